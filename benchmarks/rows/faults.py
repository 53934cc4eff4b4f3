"""How long callers wait when the worker is lost that serves them all."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise

from benchmarks.bench import TIMEOUT_S, Bench
from benchmarks.problems import DOT_PTX, dot_of, dot_vectors
from benchmarks.report import Row, Target, compare
from benchmarks.requests import dot_request
from benchmarks.turns import take_turns
from kaas_client import Client

CALLERS = 8
SETTLED_S = 3.0
"""Until a spare has come up again."""
MORE_CALLS = 20
"""That each caller makes before a worker is killed, and after."""
SPARE, NONE = "kaasd", "without a spare"
MOST_MS = 50.0
"""For the longest pause of any caller, on the emulated device."""


class Callers:
    """Threads that call a daemon without pause."""

    def __init__(self, address: str) -> None:
        self.replies: list[list[float]] = [[] for _ in range(CALLERS)]
        """When each got its replies, by ``time.monotonic``."""
        self._address = address
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(times,)) for times in self.replies]
        for thread in self._threads:
            thread.start()

    def go_on(self) -> None:
        """Return when each has made more calls."""
        before = [len(times) for times in self.replies]
        end = time.monotonic() + TIMEOUT_S
        while any(len(times) < count + MORE_CALLS for times, count in zip(self.replies, before, strict=True)):
            if time.monotonic() > end:
                raise TimeoutError("callers get no replies")
            time.sleep(0.005)

    def longest_pause_s(self, since: float) -> float:
        """Return the longest time that one waited for a reply, of those that ended later than ``since``."""
        pauses = [after - before for times in self.replies for before, after in pairwise(times) if after > since]
        return max(pauses)

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _call(self, times: list[float]) -> None:
        a, b = dot_vectors()
        expected = dot_of(a, b)
        with Client(self._address, timeout=TIMEOUT_S) as kaas:
            dot = kaas.function("dot")
            while not self._stop.is_set():
                assert dot(a=a)["c"] == expected
                times.append(time.monotonic())


class Daemon:
    """A daemon whose workers are killed."""

    def __init__(self, bench: Bench, stack: ExitStack, *options: str) -> None:
        address = stack.enter_context(bench.daemon(*options))
        self._kaas = stack.enter_context(Client(address, timeout=TIMEOUT_S))
        self._kaas.put("b", dot_vectors()[1])
        self._kaas.register("dot", dot_request(self._kaas.upload(DOT_PTX)))
        self._callers = Callers(address)
        stack.callback(self._callers.close)

    def measure(self) -> list[float]:
        """Kill the worker once; return the longest pause of any caller, as a list of one."""
        time.sleep(SETTLED_S)
        self._callers.go_on()
        since = time.monotonic()
        os.kill(self._kaas.devices()[0].worker_pid, signal.SIGKILL)
        self._callers.go_on()
        return [self._callers.longest_pause_s(since)]


def fault_rows(bench: Bench) -> Iterator[Row]:
    """Kill the workers of daemons with and without a spare, in turns."""
    with ExitStack() as stack:
        contenders = {
            SPARE: Daemon(bench, stack, "--spare", "1").measure,
            NONE: Daemon(bench, stack, "--spare", "0").measure,
        }
        turns = take_turns(contenders, rounds=bench.pick(10, 3), seconds=bench.pick(90, 30))
        figure, beside = compare(turns, scale=1e3, name=SPARE)
        goals = [] if bench.cuda else [Target(f"{MOST_MS:.0f} ms", figure.scaled(1 / MOST_MS), at_most=1.0)]
        yield Row("faults", f"longest pause of {CALLERS} callers when the worker is killed", "ms", figure, beside, goals)
