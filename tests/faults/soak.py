"""Whether memory stays flat: ``python -m tests.faults.soak --minutes 30``, which is part of ``make soak``.

Callers run a known workload, and beside them one makes all kinds of calls that fail, are given up, or bring something new and
take it away again. In the first half nothing dies: front and worker may have 2 % more at its end than a minute after its
beginning. In the second half the worker or its spare is killed every few seconds, and the front is judged alone.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from kaas_client import Client
from tests.faults.neighbours import Resources, advance, assert_nothing_is_left, callers_of, children, running, started
from tests.faults.troubles import KERNELS, Troubles

CALLERS = 4
SETTLED_S, MOST_GROWTH = 60.0, 0.02
SAMPLE_S, ROW_S, KILL_S = 2.0, 30.0, 4.0
MIN_MINUTES = 4.0
HEADINGS = ["seconds", "front MiB", "with files", "open", "worker MiB", "with files", "open", "calls", "troubles"]


@dataclass(frozen=True)
class Sample:
    """What a process has at a moment."""

    at_s: float
    own_bytes: int
    """In memory, without what it maps of files, such as the store's."""
    all_bytes: int
    descriptors: int

    @classmethod
    def of(cls, pid: int, at_s: float) -> Sample:
        """Look at a process. Raises ``OSError``, ``IndexError`` where it has ended."""
        status = Path(f"/proc/{pid}/status").read_text()
        own, everything = (int(re.findall(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)[0]) for name in ("RssAnon", "VmRSS"))
        return cls(at_s, own << 10, everything << 10, Resources.of(pid).descriptors.total())


def growth(samples: list[Sample]) -> tuple[float, float]:
    """Return a process's own memory at the beginning and at the end, in MiB: the least of a tenth of the time each.

    What calls that are under way hold comes and goes, up to a quarter of it.
    """
    tenth = max(1, len(samples) // 10)
    before, after = (min(s.own_bytes for s in part) / 2**20 for part in (samples[:tenth], samples[-tenth:]))
    return before, after


def soak(minutes: float, say: Callable[[str], object]) -> bool:
    """Run it all; return whether memory was flat."""
    half_s = minutes * 30
    samples: dict[str, list[Sample]] = {"front": [], "worker": [], "front, while workers are killed": []}
    quiet_front, quiet_worker, killed_front = samples.values()
    stop = threading.Event()
    with tempfile.TemporaryDirectory() as folder, started(Path(folder), KERNELS, "--spare", "1") as daemon:
        callers, troubles = callers_of(KERNELS, CALLERS), Troubles(daemon.address)
        say("  ".join(f"{heading:>10}" for heading in HEADINGS))

        def look(kaas: Client, at_s: float) -> tuple[Sample, Sample]:
            front, worker = Sample.of(daemon.pid, at_s), Sample.of(kaas.devices()[0].worker_pid, at_s)
            if at_s >= half_s:
                killed_front.append(front)
            elif at_s >= SETTLED_S:
                quiet_front.append(front)
                quiet_worker.append(worker)
            return front, worker

        with running(callers, daemon) as check, Client(daemon.address) as kaas, ThreadPoolExecutor(1) as thread:
            trouble = thread.submit(troubles.run, stop)
            try:
                begin, next_row, next_kill = time.monotonic(), 0.0, half_s
                while (at_s := time.monotonic() - begin) < 2 * half_s:
                    check()
                    if trouble.done():
                        trouble.result()
                    try:
                        both = look(kaas, at_s)
                    except (OSError, IndexError):
                        both = None
                    if both is not None and at_s >= next_row:
                        next_row += ROW_S
                        figures = [f"{s.own_bytes / 2**20:10.1f}  {s.all_bytes / 2**20:10.1f}  {s.descriptors:10}" for s in both]
                        calls = f"{sum(caller.done for caller in callers):10}  {troubles.done.total():10}"
                        say("  ".join([f"{at_s:10.0f}", *figures, calls]))
                    if at_s >= next_kill:
                        next_kill = at_s + KILL_S
                        os.kill(random.choice(sorted(children(daemon.pid))), signal.SIGKILL)
                    time.sleep(SAMPLE_S)
                advance(callers, check)
            finally:
                stop.set()
            trouble.result()
        troubles.clean_up()
        assert daemon.end(signal.SIGTERM) == 0
        assert_nothing_is_left(daemon)
    say(f"calls that came to nothing, by kind: {dict(troubles.done)}")
    is_flat = True
    for name, taken in samples.items():
        before, after = growth(taken)
        flat = after <= before * (1 + MOST_GROWTH)
        is_flat &= flat
        figures = f"{before:.1f} MiB at the beginning, {after:.1f} at the end, {after / before - 1:+.1%}"
        say(f"{'flat ' if flat else 'GROWS'}  {name}: {figures}")
    return is_flat


def main() -> int:
    """Return 1 where memory grows."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description="See whether memory stays flat.")
    parser.add_argument("--minutes", type=float, default=MIN_MINUTES, help=f"default, and at least, {MIN_MINUTES:g}")
    minutes = max(MIN_MINUTES, parser.parse_args().minutes)
    console = Console(highlight=False, soft_wrap=True)
    return 0 if soak(minutes, console.print) else 1


if __name__ == "__main__":
    sys.exit(main())
