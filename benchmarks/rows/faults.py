"""How long callers wait when the worker is lost that serves them all: killed, or by a kernel's fault on a GPU."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise

from benchmarks.bench import NO_GPU, TIMEOUT_S, Bench
from benchmarks.problems import DOT_PTX, FAULTS_PTX, dot_of, dot_vectors
from benchmarks.report import Row, Target, compare
from benchmarks.requests import dot_request, faulting_request
from benchmarks.turns import Turns, take_turns
from kaas_client import Client
from kaas_core.errors import KernelFaultError, QuarantinedError

CALLERS = 8
SETTLED_S = 3.0
"""Until a spare has come up again."""
MORE_CALLS = 20
"""That each caller makes before a worker is killed, and after."""
SPARE, NONE, BARE = "kaasd", "without a spare", "bare process, restarted"
KILLED, ILLEGAL, TRAP = "the worker is killed", "a kernel writes to no memory", "a kernel traps"
FAULTING_KERNEL = {ILLEGAL: "writeAtKern", TRAP: "trapKern"}
MOST_MS = {ILLEGAL: (180.0, 1000.0), TRAP: (800.0, 1600.0)}
"""For the longest pause of any caller on a GPU, with a spare and without."""
MOST_EMULATED_MS = 50.0
"""On the emulated device, whose worker no kernel can end."""
UNDISTURBED, FAULTING = "undisturbed", "beside a fault a second"
LEAST_BESIDE_FAULTS = 0.7


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

    @property
    def count(self) -> int:
        """Replies so far."""
        return sum(map(len, self.replies))

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
    """A daemon whose workers are lost."""

    def __init__(self, bench: Bench, stack: ExitStack, *options: str) -> None:
        address = stack.enter_context(bench.daemon(*options))
        self._kaas = stack.enter_context(Client(address, timeout=TIMEOUT_S))
        self._kaas.put("b", dot_vectors()[1])
        self._kaas.register("dot", dot_request(self._kaas.upload(DOT_PTX)))
        self._faults = self._kaas.upload(FAULTS_PTX)
        self._numbers = itertools.count()
        self.callers = Callers(address)
        stack.callback(self.callers.close)

    def lose(self, way: str) -> None:
        """Kill the worker, or have a kernel fault, each time of another request."""
        if way == KILLED:
            os.kill(self._kaas.devices()[0].worker_pid, signal.SIGKILL)
            return
        with suppress(KernelFaultError, QuarantinedError):
            self._kaas.submit(faulting_request(self._faults, FAULTING_KERNEL[way], next(self._numbers)))

    def pause(self, way: str) -> Callable[[], list[float]]:
        """Return what loses the worker once and measures the longest pause of any caller, as a list of one."""

        def measure() -> list[float]:
            time.sleep(SETTLED_S)
            self.callers.go_on()
            since = time.monotonic()
            self.lose(way)
            self.callers.go_on()
            return [self.callers.longest_pause_s(since)]

        return measure

    def rate(self, seconds: float, way: str | None) -> list[float]:
        """Return the replies a second of all callers, while the worker is lost once a second or left alone."""
        time.sleep(SETTLED_S)
        before, start = self.callers.count, time.monotonic()
        while (left := start + seconds - time.monotonic()) > 0:
            if way is not None:
                self.lose(way)
            time.sleep(min(1.0, left))
        return [(self.callers.count - before) / (time.monotonic() - start)]


@contextmanager
def bare_process() -> Iterator[Callable[[str], list[float]]]:
    """A process with a GPU to itself, and another each time it has ended; yield what measures how long that takes."""
    command = [sys.executable, "-m", "benchmarks.alternatives.restart"]

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["equal"], "the process computed something else"
        return process

    process = start()

    def measure(way: str) -> list[float]:
        nonlocal process
        begun = time.monotonic()
        if way == KILLED:
            process.kill()
        process.communicate(f"{FAULTING_KERNEL.get(way, '')}\n", timeout=TIMEOUT_S)
        process = start()
        return [time.monotonic() - begun]

    try:
        yield measure
    finally:
        process.communicate("", timeout=TIMEOUT_S)


def fault_rows(bench: Bench) -> Iterator[Row]:
    """Lose the workers of daemons with and without a spare, beside a bare process, in turns."""
    with ExitStack() as stack:
        daemons = {SPARE: Daemon(bench, stack, "--spare", "1"), NONE: Daemon(bench, stack, "--spare", "0")}
        bare = stack.enter_context(bare_process()) if bench.cuda else None
        for way in (KILLED, *(FAULTING_KERNEL if bench.cuda else ())):
            contenders: dict[str, Callable[[], list[float]]] = {name: daemon.pause(way) for name, daemon in daemons.items()}
            if bare is not None:
                contenders[BARE] = lambda bare=bare, way=way: bare(way)  # type: ignore[misc]
            turns = take_turns(contenders, rounds=bench.pick(10, 3), seconds=bench.pick(90, 15), warm_up=0, least_rounds=2)
            yield pause_row(bench, way, turns)
        if bench.cuda:
            yield rate_row(bench, daemons[SPARE])


def pause_row(bench: Bench, way: str, turns: Turns) -> Row:
    """Return the row of one way to lose a worker."""
    figure, beside = compare(turns, scale=1e3, missing=None if bench.cuda else {BARE: NO_GPU}, name=SPARE)
    if not bench.cuda:
        goals = [Target(f"{MOST_EMULATED_MS:.0f} ms", figure.scaled(1 / MOST_EMULATED_MS), at_most=1.0)]
    else:
        most = dict(zip((SPARE, NONE), MOST_MS.get(way, ()), strict=False))
        goals = [
            Target(f"{ms:.0f} ms{f' {name}' if name == NONE else ''}", turns.figure(name).scaled(1e3 / ms), at_most=1.0)
            for name, ms in most.items()
        ]
    return Row("faults", f"longest pause of {CALLERS} callers when {way}", "ms", figure, beside, goals)


def rate_row(bench: Bench, daemon: Daemon) -> Row:
    """Measure what callers keep of their rate beside one whose kernels fault once a second, each time of another request."""
    seconds = bench.pick(8.0, 4.0)
    turns = take_turns(
        {UNDISTURBED: lambda: daemon.rate(seconds, None), FAULTING: lambda: daemon.rate(seconds, ILLEGAL)},
        rounds=bench.pick(2, 1),
        seconds=60,
        warm_up=0,
        least_rounds=1,
    )
    figure, beside = compare(turns, name=FAULTING)
    goal = Target(UNDISTURBED, turns.ratio(FAULTING, UNDISTURBED), at_least=LEAST_BESIDE_FAULTS)
    return Row(
        "faults",
        f"replies of {CALLERS} callers, kernels of another write to no memory once a second",
        "/s",
        figure,
        beside,
        [goal],
    )
