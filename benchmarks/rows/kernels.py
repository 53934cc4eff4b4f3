"""Requests of many launches: what kaasd adds to a CUDA graph of the same kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench import NO_GPU, TIMEOUT_S, Bench, stages
from benchmarks.problems import (
    DOT_PTX,
    JACOBI_LAUNCHES,
    JACOBI_N,
    JACOBI_PTX,
    chain_of,
    chain_vector,
    jacobi_steps,
    jacobi_system,
)
from benchmarks.report import Row, compare, targets
from benchmarks.requests import chain_request, jacobi_request
from benchmarks.turns import Contender, Turns, take_turns, timed
from kaas_client import Client, Result

GRAPH = "raw CUDA graph"
LAUNCHES = "raw launches"
WHOLE_CALL = "kaasd, the whole call"


def jacobi_rows(bench: Bench) -> Iterator[Row]:
    """Solve one system by 3000 dependent launches: the whole call, and the server's time from plan to result."""
    launches = JACOBI_LAUNCHES if bench.cuda else 200
    matrix, rhs = jacobi_system()
    expected = jacobi_steps(matrix, rhs, launches)
    with ExitStack() as stack:
        kaas = stack.enter_context(Client(stack.enter_context(bench.daemon()), timeout=TIMEOUT_S))
        kaas.put("A", matrix)
        kaas.put("rhs", rhs)
        kaas.register("jacobi", jacobi_request(kaas.upload(JACOBI_PTX), "A", "rhs", launches))
        results: list[Result] = []

        def solve() -> None:
            results.append(kaas.invoke("jacobi", returns=["x"]))

        contenders: dict[str, Contender] = {"kaasd": timed(solve)}
        if bench.cuda:
            from benchmarks.alternatives.raw_jobs import raw_jacobi

            contenders |= raw_contenders(stack, lambda gpu: raw_jacobi(gpu, matrix, rhs, launches), expected)
        solve()
        check(results[-1].array("x", "f8"), expected)
        turns = take_turns(contenders, rounds=bench.pick(30, 6), seconds=bench.pick(10, 3))
        missing = {} if bench.cuda else {GRAPH: NO_GPU}
        note = {"server, p50": stages(result.timing for result in results)}
        what = f"Jacobi, N = {JACOBI_N}, {launches} launches"
        figure, beside = compare(turns, scale=1e3, missing=missing)
        yield Row("jacobi", f"{what}, the whole call", "ms", figure, beside, targets(turns, at_most={GRAPH: 1.03}), note)
        served = [[served_seconds(result)] for result in results[-len(turns.rounds["kaasd"]) :]]
        turns = Turns({**turns.rounds, "kaasd": served})
        figure, beside = compare(turns, scale=1e3, missing=missing)
        yield Row("jacobi", f"{what}, the RPC apart", "ms", figure, beside, targets(turns, at_most={GRAPH: 1.03}))


def graph_rows(bench: Bench) -> Iterator[Row]:
    """Run chains of small kernels: as many as ResNet-50 has, and BERT. Measured is the server's time from plan to result."""
    w = chain_vector()
    with ExitStack() as stack:
        kaas = stack.enter_context(Client(stack.enter_context(bench.daemon()), timeout=TIMEOUT_S))
        kaas.put("w", w)
        library = kaas.upload(DOT_PTX)
        for kernels in (90, 800):
            yield chain_row(bench, kaas, library, w, kernels)


def chain_row(bench: Bench, kaas: Client, library: str, w: NDArray[np.uint32], kernels: int) -> Row:
    """Measure one chain."""
    name = f"chain-{kernels}"
    expected = chain_of(w, kernels)
    kaas.register(name, chain_request(library, kernels))
    results: list[Result] = []
    whole: list[float] = []

    def served() -> list[float]:
        block = timed(lambda: results.append(kaas.invoke(name, returns=["y"])), 10)
        whole.extend(block())
        return [served_seconds(result) for result in results[-10:]]

    with ExitStack() as stack:
        contenders: dict[str, Contender] = {"kaasd": served}
        if bench.cuda:
            from benchmarks.alternatives.raw_jobs import raw_chain

            contenders |= raw_contenders(stack, lambda gpu: raw_chain(gpu, w, kernels), expected, 10)
        served()
        check(results[-1].array("y", "u4"), expected)
        turns = take_turns(contenders, rounds=bench.pick(40, 6), seconds=bench.pick(4, 1))
    figure, beside = compare(turns, scale=1e6, missing={} if bench.cuda else {GRAPH: NO_GPU})
    notes = {
        "server, p50": stages(result.timing for result in results),
        "whole call, p50": f"{np.median(whole) * 1e6:,.0f} µs",
    }
    what = f"{kernels} small kernels, the RPC apart"
    return Row("kernels", what, "µs", figure, beside, targets(turns, at_most={GRAPH: 1.05}), notes, x=kernels)


def served_seconds(result: Result) -> float:
    """Return the server's time from plan to result, in seconds."""
    timing = result.timing
    return (timing.plan_ns + timing.load_ns + timing.run_ns + timing.commit_ns) / 1e9


def check(found: NDArray[Any], expected: NDArray[Any]) -> None:
    """Raise ``AssertionError`` where a result is not NumPy's: integers bit for bit, the rest to 1e-9 of the largest."""
    exact = np.issubdtype(expected.dtype, np.integer)
    np.testing.assert_allclose(found, expected, rtol=0, atol=0 if exact else 1e-9 * np.abs(expected).max())


def raw_contenders(stack: ExitStack, make: Callable[[Any], Any], expected: NDArray[Any], times: int = 1) -> dict[str, Contender]:
    """Return a job of a bare GPU as a graph and launch by launch, both checked against what NumPy expects."""
    from benchmarks.alternatives import raw

    gpu = stack.enter_context(raw.Gpu())
    job = make(gpu)
    launch = gpu.graph(job.stream, job.enqueue)

    def as_graph() -> None:
        launch()
        raw.wait(job.stream)

    def as_launches() -> None:
        job.enqueue(job.stream)
        raw.wait(job.stream)

    for run in (as_graph, as_launches):
        job.result[:] = 0
        run()
        check(job.result, expected)
    return {GRAPH: timed(as_graph, times), LAUNCHES: timed(as_launches, times)}
