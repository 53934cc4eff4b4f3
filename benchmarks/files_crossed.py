"""Counts the files that one warm ``Invoke`` passes through in front and worker: ``python -m benchmarks.files_crossed``.

A file counts where one of its functions runs between the call and its reply. The dot product of the README is called on the
emulated device: its inputs come with the call, its output is stored. An input from the store, read anew where there was a commit
since, adds ``store/snapshot.py``. A call that has a ``request_id``, as those of ``kaas_client`` have unless ``retry`` is None,
passes through some more.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.problems import DOT_N
from benchmarks.requests import dot_request
from examples.local_daemon import local_daemon
from kaas_client import Client, RetryPolicy

ROOT = Path(__file__).parent.parent
WARM_CALLS = 50
COUNTED_CALLS = 5
"""A file counts that each of these passes through: others are of what the processes do now and then, beside the call."""
TIMEOUT_S = 30


def main() -> None:
    """Print the files of each process, and their number together."""
    for title, retry in {"without a request_id": None, "with one": RetryPolicy()}.items():
        with tempfile.TemporaryDirectory() as folder:
            crossed = files_crossed(Path(folder), retry)
        print(f"{title}:")
        for process, files in crossed.items():
            print(f"{process}: {len(files)}", *files, sep="\n  ")
        print(f"together: {len(set().union(*crossed.values()))}")


def files_crossed(folder: Path, retry: RetryPolicy | None) -> dict[str, list[str]]:
    """Return the project's files that a warm call passes through, by process. ``folder`` is empty, for what they write."""
    hook = str(ROOT / "benchmarks" / "tracing_hook")
    path = os.pathsep.join([hook, str(ROOT), str(ROOT / "proto"), os.environ.get("PYTHONPATH", "")])
    environ = {"FILES_CROSSED_DIRECTORY": str(folder), "PYTHONPATH": path}
    with local_daemon("--device", "emulator", environ=environ) as address, Client(address, retry=retry) as kaas:
        a = np.arange(DOT_N, dtype="u4")
        dot = kaas.register("dot", dot_request(kaas.upload(ROOT / "examples/kernels/dot.ptx"), stored=True))
        for _ in range(WARM_CALLS):
            dot(a=a, b=a)
        (worker,) = (device.worker_pid for device in kaas.devices())
        pids = {"front": _parent(worker), "worker": worker}
        crossed: dict[str, set[str]] = {}
        for _ in range(COUNTED_CALLS):
            _signal(signal.SIGUSR1, *pids.values())
            start = time.monotonic()
            dot(a=a, b=a)
            end = time.monotonic()
            _signal(signal.SIGUSR2, *pids.values())
            for name, pid in pids.items():
                files = _read(folder / f"{pid}.json", start, end)
                crossed[name] = crossed.get(name, files) & files
        return {name: sorted(files) for name, files in crossed.items()}


def _signal(number: int, *pids: int) -> None:
    for pid in pids:
        os.kill(pid, number)
    time.sleep(0.1)  # Both processes sleep by now, and have taken the signal.


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _read(path: Path, start: float, end: float) -> set[str]:
    """Return the project's own files of those that ran then, from ``path``, which another process is about to write."""
    deadline = time.monotonic() + TIMEOUT_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} was not written")
        time.sleep(0.01)
    times: dict[str, list[float]] = json.loads(path.read_text())
    path.unlink()
    files = (Path(name) for name, when in times.items() if any(start <= each <= end for each in when))
    inside = {str(file.relative_to(ROOT)) for file in files if file.is_relative_to(ROOT)}
    return {name for name in inside if name.startswith(("kaasd/", "kaas_core/"))}


if __name__ == "__main__":
    main()
