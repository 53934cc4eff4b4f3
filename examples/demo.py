"""Run real requests through a real daemon, on what this machine has, and check every answer against NumPy: ``make demo``.

Exits with 0 only if every answer was right.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from examples.local_daemon import local_daemon
from examples.workloads import Workload, blur, dot_product, draw_picture, jacobi
from kaas_client import Client
from kaas_client.types import Result

WIDTH, HEIGHT = 640, 400


def main() -> int:
    """Run the demo; return its exit code."""
    parser = argparse.ArgumentParser(prog="make demo", description="Run real requests and check their answers against NumPy.")
    parser.add_argument("--device", default="auto", help="auto (default), cuda:N or emulator")
    parser.add_argument("--output", type=Path, default=Path("build/demo"), help="where the pictures go; default %(default)s")
    options = parser.parse_args()

    console = Console()
    failures, devices = 0, set()
    with local_daemon("--device", options.device) as address, Client(address) as kaas:
        models = {device.name: device.model for device in kaas.devices()}
        table = Table("request")
        for heading in ("launches", "first", "warm", "kernels"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("NumPy says")
        for workload in (dot_product(kaas), jacobi(kaas), blur(kaas, WIDTH, HEIGHT)):
            first, _ = run(kaas, workload)
            warm, result = run(kaas, workload)
            try:
                verdict = Text(workload.check(kaas), style="green")
            except AssertionError as error:
                failures += 1
                verdict = Text(str(error), style="red")
            kernels = milliseconds(result.timing.run_ns)
            devices.add(result.device)
            table.add_row(workload.title, str(workload.launches), first, warm, kernels, verdict)
        pictures = save_pictures(kaas, options.output)

    console.print(table)
    console.print(
        "milliseconds; kernels: of the warm call; residual: relative to the start's",
        style="dim",
    )
    for name in sorted(devices):
        console.print(f"ran on {name}: {models[name]}", highlight=False)
    console.print(f"the picture: {pictures[0]}\nblurred:     {pictures[1]}", highlight=False, soft_wrap=True)
    return 1 if failures else 0


def run(kaas: Client, workload: Workload) -> tuple[str, Result]:
    """Put the inputs, submit, and return how long the submit took and its result."""
    for key, value in workload.inputs.items():
        kaas.put(key, value)
    start_ns = time.perf_counter_ns()
    result = kaas.submit(workload.request)
    return milliseconds(time.perf_counter_ns() - start_ns), result


def milliseconds(duration_ns: int) -> str:
    """Return a duration in milliseconds for a person to read."""
    return f"{duration_ns / 1e6:.2f}"


def save_pictures(kaas: Client, directory: Path) -> tuple[Path, Path]:
    """Write the picture and what is now under its key as PNG files; return their names."""
    directory.mkdir(parents=True, exist_ok=True)
    original, result = directory / "picture.png", directory / "blurred.png"
    Image.fromarray(draw_picture(WIDTH, HEIGHT)).save(original)
    Image.fromarray(kaas.get("image", dtype="u1").reshape(HEIGHT, WIDTH, 3)).save(result)
    return original, result


if __name__ == "__main__":
    sys.exit(main())
