"""Measures kaasd beside its alternatives: ``make bench`` on the emulated device, ``make bench-gpu`` on a GPU.

Every row is measured beside its alternatives in one run, in turns, on random data and with checked results. It prints a table and
writes the same figures as JSON, and a picture of each section where matplotlib is installed.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from benchmarks.bench import Bench, Section, machine
from benchmarks.report import Row, table
from benchmarks.rows.callers import caller_rows
from benchmarks.rows.devices import other_fault_rows, peer_rows, scaling_rows, several_rows
from benchmarks.rows.dot import dot_rows
from benchmarks.rows.emulated import emulated_rows
from benchmarks.rows.faults import fault_rows
from benchmarks.rows.first import first_rows
from benchmarks.rows.kernels import graph_rows, jacobi_rows
from benchmarks.rows.loading import loading_rows
from benchmarks.rows.memory import memory_rows
from benchmarks.rows.overload import overload_rows
from benchmarks.rows.placement import placement_rows
from benchmarks.rows.ray import ray_rows
from benchmarks.rows.residency import residency_rows
from benchmarks.rows.scheduling import scheduling_rows
from benchmarks.rows.sharing import flood_rows, priority_rows, share_rows, unused_share_rows
from benchmarks.rows.tenants import tenant_rows
from benchmarks.rows.transfers import input_rows, output_rows
from kaas_client import Client

SECTIONS = (
    Section("dot", "A small request's latency", dot_rows, emulated=True),
    Section("callers", "Requests a second by callers", caller_rows),
    Section("jacobi", "3000 dependent launches", jacobi_rows),
    Section("kernels", "Many small kernels", graph_rows),
    Section("input", "From the store to the GPU, GB/s by MiB", input_rows),
    Section("output", "From the GPU to a commit, GB/s by MiB", output_rows),
    Section("tenants", "Jobs a second by tenants", tenant_rows),
    Section("residency", "Requests a second by inputs over the device memory limit", residency_rows),
    Section("first", "The first request of a function", first_rows),
    Section("ray", "Requests as tasks of Ray", ray_rows),
    Section("faults", "Callers of a worker that is lost", fault_rows),
    Section("overload", "Ten times as many calls as can be served", overload_rows),
    Section("memory", "Device memory by functions, MiB", memory_rows),
    Section("sharing-priority", "A tiny request beside kernels that fill the GPU", priority_rows),
    Section("sharing-unused", "A tiny request beside many launches", unused_share_rows),
    Section("sharing-flood", "Groups beside one that floods", flood_rows),
    Section("sharing-shares", "What groups get of what they are granted", share_rows),
    Section("sharing-devices", "Several devices beside one", several_rows),
    Section("sharing-peers", "Copies between GPUs", peer_rows),
    Section("sharing-scaling", "Requests a second by devices", scaling_rows),
    Section("faults-devices", "Callers of one device beside another's faults", other_fault_rows),
    Section("sharing-placement", "Functions that fill two devices", placement_rows),
    Section("emulator", "Kernels on the emulated device", emulated_rows, emulated=True),
    Section("emulator-loading", "Loading PTX on the emulated device", loading_rows, emulated=True),
    Section("scheduling", "The scheduler of a cluster, in simulated time", scheduling_rows),
)

FILE_WIDTH = 150
"""Columns of the table where no terminal says how many there are."""
SECTION_LIMIT_S = 240
"""A section that takes longer is broken; the next one begins."""


def main() -> int:
    """Measure, print, and write what was found; return 1 where a section failed, whatever its targets."""
    options = parse_options()
    # So that everything that was started, MPS above all, is stopped as at any other end.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    bench = Bench(options.device, options.quick, options.devices)
    console, progress = Console(), Console(stderr=True)
    if not console.is_terminal:
        console.width = FILE_WIDTH
    started = datetime.now(UTC)
    report: dict[str, Any] = {"machine": machine(), "device": device_model(bench), "command": sys.argv[1:]}
    report |= {"started": started.isoformat(timespec="seconds"), "quick": bench.quick, "seconds": {}, "rows": []}
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / f"{bench.device.partition(':')[0]}.json"
    rows: dict[str, list[Row]] = {}
    failed = []
    for section in chosen(options.only, bench):
        progress.print(f"{section.name}: {section.title} ...", highlight=False)
        start = time.monotonic()
        found = rows.setdefault(section.name, [])
        try:
            with time_limit(SECTION_LIMIT_S):
                found.extend(section.rows(bench))
        except Exception:
            failed.append(section.name)
            traceback.print_exc()
        report["seconds"][section.name] = round(time.monotonic() - start, 1)
        report["rows"] += [row.to_json() for row in found]
        # After every section, so that a run that is cut off leaves its figures.
        file.write_text(json.dumps({**report, "failed": failed}, indent=1) + "\n")
        draw_section(section, found, file.with_name(f"{file.stem}-{section.name}.png"), progress)
    all_rows = [row for found in rows.values() for row in found]
    console.print(table(all_rows, f"kaasd on {report['device']}"))
    goals = [target.met for row in all_rows for target in row.targets]
    taken = f"{sum(report['seconds'].values()):.0f} s"
    console.print(f"{sum(goals)} of {len(goals)} targets met; took {taken}; the figures: {file}", highlight=False)
    if failed:
        console.print(f"failed: {', '.join(failed)}", style="red", highlight=False)
    return 1 if failed else 0


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    names = ", ".join(section.name for section in SECTIONS)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure kaasd beside its alternatives.")
    parser.add_argument("--device", default="cuda:0", help="cuda:N or emulator; default %(default)s")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="also measure N devices together; default 1")
    help = f"sections, separated by commas, or the first word of several: {names}"
    parser.add_argument("--only", metavar="NAMES", help=help)
    parser.add_argument("--quick", action="store_true", help="fewer sizes and shorter measurements, to see that all runs")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"), help="folder; default %(default)s")
    options = parser.parse_args()
    if options.only is not None:
        options.only = options.only.split(",")
        if unknown := set(options.only) - {name for section in SECTIONS for name in names_of(section)}:
            parser.error(f"--only: there is no {', '.join(sorted(unknown))}; there are {names}")
    return options


def chosen(only: Sequence[str] | None, bench: Bench) -> list[Section]:
    """Return the sections to measure: those that were named, or all that suit the device."""
    if only is not None:
        return [section for section in SECTIONS if names_of(section) & set(only)]
    return [section for section in SECTIONS if bench.cuda or section.emulated]


def names_of(section: Section) -> set[str]:
    """Return what a section goes by: its name, and the first word of it, which several may share."""
    return {section.name, section.name.partition("-")[0]}


def device_model(bench: Bench) -> str:
    """Return what the device is, as a daemon calls it."""
    with bench.daemon() as address, Client(address) as kaas:
        return kaas.devices()[0].model


def draw_section(section: Section, rows: Sequence[Row], path: Path, progress: Console) -> None:
    """Draw it where matplotlib is there."""
    try:
        from benchmarks.plots import draw

        draw(rows, section.title, path)
    except ImportError:
        progress.print("  no picture: matplotlib is not installed (pip install 'kaasd[bench]')", highlight=False)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise ``TimeoutError`` in the main thread when the ``with`` block takes longer."""

    def over(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


if __name__ == "__main__":
    sys.exit(main())
