"""Large values: from the store to the GPU, and from the GPU to a commit, beside plain copies of the same size.

kaasd's time is the server's, from a request's arrival to its reply, less that of the same request on 4 KiB, the two in turns.
Every input was put anew just before, so that it cannot be on the device already.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import lmdb
import numpy as np
from numpy.typing import NDArray

from benchmarks.bench import NO_GPU, Bench, stages
from benchmarks.problems import DOT_PTX
from benchmarks.report import Row, compare, targets
from benchmarks.requests import reading_request, writing_request
from benchmarks.turns import Contender, Turns, take_turns
from kaas_client import Client, Result

MIB = 1 << 20
SMALL = 4096
HELD_FROM = 16 * MIB
"""Below this the call's own time hides the copy's."""
TIMEOUT_S = 120

PINNED = "cuMemcpy, pinned"
PAGEABLE = "cuMemcpy, pageable"
COPY_AND_PUT = "cuMemcpy + LMDB put"


def input_rows(bench: Bench) -> Iterator[Row]:
    """Measure from the store to the device."""
    with Transfers(bench) as transfers:
        for size in sizes(bench):
            yield transfers.input_row(size)


def output_rows(bench: Bench) -> Iterator[Row]:
    """Measure from the device to a commit."""
    with Transfers(bench) as transfers:
        for size in sizes(bench):
            yield transfers.output_row(size)


def sizes(bench: Bench) -> list[int]:
    """Return the sizes that are measured, in bytes."""
    full = [1, 4, 16, 64, 256, 1024] if bench.cuda else [1, 4, 16]
    return [MIB * size for size in bench.pick(full, [1, 16, 256] if bench.cuda else [1, 4])]


def rounds_of(bench: Bench, size: int) -> int:
    """Return how often a size is measured: the larger, the less it scatters, and the longer it takes."""
    return bench.pick(20 if size <= 64 * MIB else 6 if size < 1024 * MIB else 3, 5 if size <= 64 * MIB else 3)


class Transfers:
    """A daemon, a bare GPU where there is one, and random data."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._stack = ExitStack()
        self._data = np.random.default_rng(4).integers(0, 256, max(sizes(bench)), dtype=np.uint8)

    def __enter__(self) -> Transfers:
        self._kaas = self._stack.enter_context(Client(self._stack.enter_context(self._bench.daemon()), timeout=TIMEOUT_S))
        self._library = self._kaas.upload(DOT_PTX)
        self._gpu: Any = None
        if self._bench.cuda:
            from benchmarks.alternatives import raw

            self._gpu = self._stack.enter_context(raw.Gpu())
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def input_row(self, size: int) -> Row:
        """Measure one size."""
        self._kaas.register("read", reading_request(self._library, size))
        self._kaas.register("read-small", reading_request(self._library, SMALL))
        results: list[Result] = []

        def load(function: str, length: int) -> int:
            self._kaas.put("input", self._data[:length])
            result = self._kaas.invoke(function, returns=["p"])
            expected = self._data[:SMALL].view(np.uint32) ** 2
            np.testing.assert_array_equal(result.array("p", "u4"), expected)
            if function == "read":
                results.append(result)
            return result.timing.total_ns

        def kaasd() -> list[float]:
            return [beyond(lambda: load("read", size), lambda: load("read-small", SMALL), size)]

        with self._pinned(size) as (stack, pinned):
            contenders: dict[str, Contender] = {"kaasd": kaasd}
            if pinned is not None:
                contenders |= self._copies(stack, pinned, size)
            turns = self._take_turns(contenders, size)
        figure, beside = compare(turns, missing={} if pinned is not None else {PINNED: NO_GPU})
        goals = targets(turns, at_least={PINNED: 0.9}) if size >= HELD_FROM else []
        note = {"server, p50": stages(result.timing for result in results)}
        return Row("input", f"store to GPU, {size // MIB:,} MiB", "GB/s", figure, beside, goals, note, x=size / MIB)

    def output_row(self, size: int) -> Row:
        """Measure one size. What is written are the squares of random numbers; loading those is not counted."""
        self._kaas.put("factors", self._data[:size])
        self._kaas.register("write", writing_request(self._library, size))
        self._kaas.register("write-small", writing_request(self._library, SMALL, "small-product"))
        results: list[Result] = []

        def store(function: str) -> int:
            result = self._kaas.invoke(function)
            if function == "write":
                results.append(result)
            return result.timing.total_ns - result.timing.load_ns

        def kaasd() -> list[float]:
            return [beyond(lambda: store("write"), lambda: store("write-small"), size)]

        with self._pinned(size) as (stack, pinned):
            contenders: dict[str, Contender] = {"kaasd": kaasd}
            if pinned is not None:
                contenders[COPY_AND_PUT] = self._copy_and_put(stack, pinned, size)
            turns = self._take_turns(contenders, size)
        tail = self._kaas.get("product", dtype="u4", offset=size - SMALL, size=SMALL)
        np.testing.assert_array_equal(tail, self._data[size - SMALL : size].view(np.uint32) ** 2)
        figure, beside = compare(turns, missing={} if pinned is not None else {COPY_AND_PUT: NO_GPU})
        goals = targets(turns, at_least={COPY_AND_PUT: 0.9}) if size >= HELD_FROM else []
        note = {"server, p50": stages(result.timing for result in results)}
        return Row("output", f"GPU to committed, {size // MIB:,} MiB", "GB/s", figure, beside, goals, note, x=size / MIB)

    def _take_turns(self, contenders: dict[str, Contender], size: int) -> Turns:
        # The first put of a large value lets the store grow, which no later one does.
        return take_turns(contenders, rounds=rounds_of(self._bench, size), seconds=6, warm_up=2 if size <= 64 * MIB else 1)

    def _pinned(self, size: int) -> Any:
        return _Pinned(self._gpu, self._data[:size])

    def _copies(self, stack: ExitStack, pinned: NDArray[np.uint8], size: int) -> dict[str, Contender]:
        """Return copies to the device, from page-locked memory and from any."""
        from benchmarks.alternatives import raw

        address = self._gpu.allocate(size)
        stream = self._gpu.stream()

        def copy(source: NDArray[np.uint8]) -> Contender:
            def run() -> None:
                raw.to_device(address, source, stream)
                raw.wait(stream)

            return lambda: [rate(size, elapsed_ns(run))]

        return {PINNED: copy(pinned), PAGEABLE: copy(self._data[:size])}

    def _copy_and_put(self, stack: ExitStack, pinned: NDArray[np.uint8], size: int) -> Contender:
        """Return a copy from the device into page-locked memory, and a put of that into LMDB, synchronised as kaasd does it."""
        from benchmarks.alternatives import raw

        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="kaasd-bench-"))
        environment = stack.enter_context(lmdb.open(folder, map_size=8 << 30, metasync=False))
        address = self._gpu.allocate(pinned)
        stream = self._gpu.stream()

        def run() -> None:
            raw.to_host(pinned, address, stream)
            raw.wait(stream)
            with environment.begin(write=True) as transaction:
                transaction.put(b"product", pinned.data)

        return lambda: [rate(size, elapsed_ns(run))]


class _Pinned:
    """Page-locked memory with a copy of some data, and what else is to be freed with it."""

    def __init__(self, gpu: Any, data: NDArray[np.uint8]) -> None:
        self._gpu = gpu
        self._data = data
        self._stack = ExitStack()

    def __enter__(self) -> tuple[ExitStack, NDArray[np.uint8] | None]:
        if self._gpu is None:
            return self._stack, None
        self._stack.enter_context(self._gpu.scope())
        pinned: NDArray[np.uint8] = self._gpu.pinned(self._data.size)
        pinned[:] = self._data
        return self._stack, pinned

    def __exit__(self, *exception: object) -> None:
        self._stack.close()


def beyond(large: Callable[[], int], small: Callable[[], int], size: int) -> float:
    """Return GB/s by how many nanoseconds more the large request takes than the small one, both called in turns.

    As often as it takes for the call's own scatter to matter little: a copy of 1 MiB is a tenth of it.
    """
    times = [(large(), small()) for _ in range(10 if size < HELD_FROM else 5 if size <= 64 * MIB else 1)]
    return rate(size, int(np.median([one for one, _ in times]) - np.median([other for _, other in times])))


def elapsed_ns(work: Callable[[], None]) -> int:
    """Return how long ``work`` takes."""
    start = time.perf_counter_ns()
    work()
    return time.perf_counter_ns() - start


def rate(size: int, nanoseconds: int) -> float:
    """Return GB/s; a time that vanishes in the noise of the call counts as a microsecond."""
    return size / max(nanoseconds, 1000)
