"""What is answered when ten times as many calls come as the device can serve, and how long those wait that are taken."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.bench import TIMEOUT_S, Bench
from benchmarks.crew import Crew
from benchmarks.loads import calibrate
from benchmarks.problems import DOT_PTX
from benchmarks.report import Row, Target
from benchmarks.turns import Figure, take_turns
from kaas_client import BufferSpec, Client, Kernel, Literal, Request, inp, out, u64

TIMES = 10
"""As many calls as can be served."""
MAX_QUEUE = 16
CALLERS = MAX_QUEUE
"""That keep a device busy, and never find its queue full."""
CALL_S = 0.02
"""About, so that what serves calls is the device: to refuse one costs the server 0.3 to 0.4 ms, as any answer does."""
N = 1 << 14
LEAST_GOODPUT, MOST_OF_QUEUE = 0.9, 1.2
FUNCTION = "work"
CAPACITY, GOODPUT = "capacity", "kaasd"


def work(library: str, iterations: int) -> Request:
    """Return a request that multiplies again and again, and stores nothing."""
    arguments: list[BufferSpec | Literal] = [u64(N), inp("w", 4 * N), inp("w"), out("p", 4 * N, ephemeral=True)]
    return Request([Kernel(library, "prodKern", N // 1024, 1024, arguments)], iterations=iterations)


def register_work(kaas: Client) -> None:
    """Register ``FUNCTION``, which takes about ``CALL_S`` on this device."""
    kaas.put("w", np.ones(N, np.uint32))
    library = kaas.upload(DOT_PTX)
    calibrate(kaas, FUNCTION, lambda iterations: work(library, iterations), CALL_S)


def calls_per_second(address: str, seconds: float) -> float:
    """Return how many calls are answered for callers that wait for each before the next."""
    end, done = time.monotonic() + seconds, [0] * CALLERS

    def call(caller: int) -> None:
        with Client(address, timeout=TIMEOUT_S, retry=None) as kaas:
            while time.monotonic() < end:
                kaas.invoke(FUNCTION)
                done[caller] += time.monotonic() < end

    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / seconds


def waited_for_core_s(pid: int) -> float:
    """Return how long the main thread of a process was ready to run, and did not."""
    _, waited_ns, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(waited_ns) / 1e9


def overload_rows(bench: Bench) -> Iterator[Row]:
    """Let callers that wait for their answers, and a flood of calls that do not, measure in turns."""
    seconds = bench.pick(4.0, 2.0)
    waited: list[float] = []
    refused: list[float] = []
    rates: list[float] = []
    without_core: list[float] = []
    with ExitStack() as stack:
        concurrency = ("--concurrency", "2") if bench.cuda else ()
        address = stack.enter_context(bench.daemon("--max-queue", str(MAX_QUEUE), *concurrency))
        kaas = stack.enter_context(Client(address, timeout=TIMEOUT_S))
        register_work(kaas)
        worker = kaas.devices()[0].worker_pid
        crew = stack.enter_context(Crew("benchmarks.alternatives.flood", 1))
        crew.wait_until_ready()
        capacity = calls_per_second(address, seconds)

        def flood() -> list[float]:
            order = {"address": address, "function": FUNCTION, "rate": TIMES * capacity, "seconds": seconds}
            begin, waited_s = time.monotonic(), waited_for_core_s(worker)
            (report,) = crew.run([order])
            without_core.append((waited_for_core_s(worker) - waited_s) / (time.monotonic() - begin))
            if unknown := report["codes"].keys() - {"OK", "RESOURCE_EXHAUSTED"}:
                raise RuntimeError(f"calls that were not served ended in {', '.join(unknown)}")
            waited.extend(report["answered"])
            refused.extend(report["refused"])
            rates.append(report["rate"])
            return [report["in_time"] / seconds]

        contenders = {CAPACITY: lambda: [calls_per_second(address, seconds)], GOODPUT: flood}
        turns = take_turns(contenders, rounds=bench.pick(6, 3), seconds=60, warm_up=0)
    goodput, served = turns.figure(GOODPUT), turns.figure(CAPACITY)
    notes = {"offered": f"{np.median(rates):,.0f} calls/s, {np.median(rates) / served.median:.1f} times capacity"}
    if not bench.cuda:  # Where the processor is the device, this tells how much of it was left.
        notes["the worker had no core for"] = f"{np.median(without_core):.0%} of the flood"
    goal = Target(CAPACITY, turns.ratio(GOODPUT, CAPACITY), at_least=LEAST_GOODPUT)
    yield Row("overload", f"calls answered of {TIMES} times as many", "/s", goodput, {CAPACITY: served}, [goal], notes)
    queue_s = (MAX_QUEUE + 2) / goodput.median
    p99 = Figure.of([np.percentile(waited, 99)])
    beside = {"a full queue": Figure.of([queue_s * 1e3]), "refused calls": Figure.of(refused).scaled(1e3)}
    goal = Target("a full queue", p99.scaled(1 / queue_s), at_most=MOST_OF_QUEUE)
    yield Row("overload", "the answered calls' time from end to end, p99", "ms", p99.scaled(1e3), beside, [goal])
