"""More inputs than fit: tenants whose inputs together are a multiple of the device memory limit take turns, or come at random.

Each request needs 32 MiB of its tenant's and computes next to nothing. What is not on the device must be loaded: that is a share
of 1 - limit / total of the requests where all tenants come equally often, and at the bus's measured speed it gives the reload
bound. Where they come by Zipf's law it is what is left when those that come most often stay. Several callers keep the bus busy
while requests come and go: there, on a GPU, the bound is what takes longer, copies or requests. What plain LRU would reach is
reckoned from the same trace. On the emulated device an input is 4 MiB, and a copy in host memory stands for the bus.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from operator import add

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench import TIMEOUT_S, Bench, stages
from benchmarks.problems import DOT_PTX
from benchmarks.report import Row, compare, targets
from benchmarks.requests import reading_request
from benchmarks.turns import Contender, Turns, take_turns
from kaas_client import Client, Key, Result
from kaas_client.types import Timing

MIB = 1 << 20
SHARES = (0.5, 0.9, 1.1, 1.5, 2.0, 4.0)
IN_TURN, AT_RANDOM, ZIPF = "in turn", "at random", "Zipf"
ZIPF_SHARES = (2.0, 4.0)
NOT_IN_CACHE = 16
"""So many inputs together are in no cache of the processor, as those of so many tenants are not."""
OWN_BYTES = 256 << 10
"""For what requests have beside their inputs."""
CALLERS = 4
CALLERS_SHARES = (2.0, 4.0)
ZIPF_EXPONENT = 1.0
"""The tenant that is asked for most often comes twice as often as the second, three times as often as the third, and so on."""

BOUND = "reload bound"
LRU = "plain LRU"
RESIDENT = "always resident"


def residency_rows(bench: Bench) -> Iterator[Row]:
    """Measure every share of the limit, in turn and at random."""
    size = 32 * MIB if bench.cuda else 4 * MIB
    fitting = bench.pick(32, 16)
    limit = size * fitting + OWN_BYTES
    option = limit_option()
    if option is None:
        yield Row("residency", "inputs beyond the device memory limit", "/s", "kaasd has no such setting here")
        return
    with ExitStack() as stack:
        kaas = stack.enter_context(Client(stack.enter_context(bench.daemon(option, str(limit))), timeout=TIMEOUT_S))
        kaas.register("read", reading_request(kaas.upload(DOT_PTX), size))
        rng = np.random.default_rng(5)
        for tenant in range(round(max(SHARES) * fitting)):
            kaas.put(f"tenant-{tenant}", rng.integers(0, 256, size, dtype=np.uint8))
        copy = copy_contender(bench, stack, size)
        for order, shares in ((IN_TURN, SHARES), (AT_RANDOM, SHARES), (ZIPF, ZIPF_SHARES)):
            for share in shares:
                yield residency_row(bench, kaas, copy, fitting, share, order)
        with ThreadPoolExecutor(CALLERS) as pool:
            for order in (IN_TURN, ZIPF):
                for share in CALLERS_SHARES:
                    yield residency_row(bench, kaas, copy, fitting, share, order, pool)


def limit_option() -> str | None:
    """Return the daemon's option that limits the device's memory, or None."""
    command = [sys.executable, "-m", "kaasd", "--help"]
    environ = {**os.environ, "COLUMNS": "200", "TERM": "dumb"}
    text = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
    found = re.search(r"--device-memory[a-z-]*", text)
    return found.group() if found else None


def copy_contender(bench: Bench, stack: ExitStack, size: int) -> Contender:
    """Return what measures how long the bus takes for one tenant's input, in seconds."""
    content = np.random.default_rng(6).integers(0, 256, size, dtype=np.uint8)
    if not bench.cuda:
        sources, places = ([content.copy() for _ in range(NOT_IN_CACHE)] for _ in range(2))

        def copy_on_host() -> list[float]:
            start = time.perf_counter()
            for source, target in zip(sources, places, strict=True):
                target[:] = source
            return [(time.perf_counter() - start) / NOT_IN_CACHE]

        return copy_on_host
    from benchmarks.alternatives import raw

    gpu = stack.enter_context(raw.Gpu())
    pinned, address, stream = gpu.pinned(size), gpu.allocate(size), gpu.stream()
    pinned[:] = content

    def copy() -> list[float]:
        start = time.perf_counter()
        for _ in range(5):
            raw.to_device(address, pinned, stream)
        raw.wait(stream)
        return [(time.perf_counter() - start) / 5]

    return copy


def residency_row(
    bench: Bench, kaas: Client, copy: Contender, fitting: int, share: float, order: str, pool: ThreadPoolExecutor | None = None
) -> Row:
    """Measure one share of the limit: one caller, or ``CALLERS`` of a ``pool``."""
    tenants = round(share * fitting)
    length = max(2 * tenants, 50)
    traces = iter(Traces(tenants, length, order))
    measured: list[Sequence[int]] = []
    loaded: list[float] = []
    loads: list[Timing] = []

    def call_all(trace: Sequence[int]) -> list[Timing]:
        """Return the times of those that had to be loaded."""

        def invoke(tenant: int) -> Result:
            return kaas.invoke("read", {"input": Key(f"tenant-{tenant}")})

        results = list(map(invoke, trace) if pool is None else pool.map(invoke, trace))
        return [result.timing for result in results if result.placement != "resident"]

    def kaasd() -> list[float]:
        trace = next(traces)
        measured.append(trace)
        start = time.perf_counter()
        of_loads = call_all(trace)
        taken = (time.perf_counter() - start) / len(trace)
        loaded.append(len(of_loads) / len(trace))
        loads.extend(of_loads)
        return [taken]

    def resident() -> list[float]:
        call_all([0])
        start = time.perf_counter()
        call_all([0] * 50)
        return [(time.perf_counter() - start) / 50]

    turns = take_turns(
        {"kaasd": kaasd, RESIDENT: resident, "copy": copy},
        rounds=bench.pick(4, 3),
        seconds=bench.pick(4, 1.5),
        least_rounds=2,
    )
    misses = bound_misses(tenants, fitting, order)
    rates = requests_per_second(turns, misses, lru_misses(measured, fitting), at_once=pool is not None and bench.cuda)
    figure, beside = compare(rates)
    series = order if pool is None else f"{order}, {CALLERS} callers"
    what = f"inputs {share:g} × the limit, {series}"  # noqa: RUF001
    notes = {"loaded": f"{np.mean(loaded[1:]):.3f} of the requests, {misses:.3f} at best"}
    if loads:
        notes["one that loads, in the server"] = stages(loads)
    return Row("residency", what, "/s", figure, beside, targets(rates, at_least={BOUND: 0.92}), notes, x=share, series=series)


class Traces:
    """Blocks of a tenant's number a request, without end."""

    def __init__(self, tenants: int, length: int, order: str) -> None:
        self._tenants = tenants
        self._length = length
        self._random = None if order == IN_TURN else np.random.default_rng(7)
        self._parts = parts(tenants, order)

    def __iter__(self) -> Iterator[Sequence[int]]:
        position = 0
        while True:
            if self._random is not None:
                yield self._random.choice(self._tenants, self._length, p=self._parts).tolist()
            else:
                yield [(position + i) % self._tenants for i in range(self._length)]
                position += self._length


def parts(tenants: int, order: str) -> NDArray[np.float64]:
    """Return which part of the requests is each tenant's."""
    ranks = np.arange(1, tenants + 1, dtype=np.float64)
    weights = ranks ** -(ZIPF_EXPONENT if order == ZIPF else 0.0)
    of_all: NDArray[np.float64] = weights / weights.sum()
    return of_all


def bound_misses(tenants: int, capacity: int, order: str) -> float:
    """Return the share of the requests that must load, where those inputs stay that are asked for most often."""
    return float(parts(tenants, order)[capacity:].sum())


def lru_misses(blocks: Sequence[Sequence[int]], capacity: int) -> list[float]:
    """Return the share of each block's requests that plain LRU with room for ``capacity`` inputs would have to load."""
    kept: OrderedDict[int, None] = OrderedDict()
    shares = []
    for block in blocks:
        misses = 0
        for tenant in block:
            if tenant in kept:
                kept.move_to_end(tenant)
                continue
            misses += 1
            kept[tenant] = None
            if len(kept) > capacity:
                kept.popitem(last=False)
        shares.append(misses / len(block))
    return shares


def requests_per_second(turns: Turns, misses_at_best: float, lru: Sequence[float], *, at_once: bool) -> Turns:
    """Return rates, with what the bound and plain LRU would reach at the speeds measured in the same round.

    ``at_once`` says that copies go on while other requests come and go.
    """
    rounds = dict(turns.rounds)
    copies = rounds.pop("copy")
    together = max if at_once else add
    lru = lru[-len(copies) :]
    pairs = [(float(np.median(hit)), float(np.median(copy))) for hit, copy in zip(rounds[RESIDENT], copies, strict=True)]
    rounds[BOUND] = [[together(hit, misses_at_best * copy)] for hit, copy in pairs]
    rounds[LRU] = [[together(hit, misses * copy)] for (hit, copy), misses in zip(pairs, lru, strict=True)]
    return Turns({name: [[1 / x for x in block] for block in blocks] for name, blocks in rounds.items()})
