"""What a trace tells of a request, through the real daemon, on every device."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from kaas_client import AsyncClient, Client, Kernel, Request, inout, inp, out, tmp, u64
from kaas_client.types import Result, Span, Trace
from kaas_core.errors import KernelFaultError
from tests.conformance.launching import KERNELS

N = 1024
LARGE = 50_000
MOST_LAUNCHES = 10_000
STAGES = ["request", "queue", "plan", "load", "run", "launch", "gpu", "commit"]


@pytest.fixture(scope="module")
def kaas(kaas: Client) -> Client:
    """With the keys ``a`` and ``b``."""
    kaas.put("a", np.arange(LARGE, dtype="u4"))
    kaas.put("b", np.arange(LARGE, dtype="u4"))
    return kaas


def dot_kernels(library: str) -> list[Kernel]:
    """Return the kernels of c = sum(a * b) over the first ``N`` elements."""
    arguments = [u64(N), inp("a", 4 * N), inp("b", 4 * N), tmp("p", 4 * N)]
    product = Kernel(library, "prodKern", grid=(4, 1), block=256, args=arguments)
    return [product, Kernel(library, "sumKern", grid=1, block=512, args=[inp("p"), out("c", 4)])]


def dot_product(library: str, iterations: int = 1) -> Request:
    """Return the request of ``dot_kernels``."""
    return Request(dot_kernels(library), iterations=iterations)


def trace_of(result: Result) -> Trace:
    """Return the trace that there must be."""
    assert result.trace is not None
    return result.trace


def of_kind(trace: Trace, *kinds: str) -> list[Span]:
    """Return the spans of some kinds, by when they began."""
    return sorted((span for span in trace.spans if span.kind in kinds), key=lambda span: (span.start_ns, span.end_ns))


def stages(trace: Trace) -> dict[str, Span]:
    """Return the stages by name."""
    found = {span.name: span for span in of_kind(trace, "stage")}
    assert len(found) == len(of_kind(trace, "stage"))
    return found


def test_a_reply_has_no_trace_unless_asked_for(kaas: Client, dot: str) -> None:
    kaas.register("untraced", dot_product(dot))
    assert kaas.submit(dot_product(dot)).trace is None
    assert kaas.invoke("untraced").trace is None


def test_every_launch_has_a_span_in_order(kaas: Client, dot: str) -> None:
    trace = trace_of(kaas.submit(dot_product(dot, iterations=3), trace=True))
    launches = of_kind(trace, "kernel")
    assert [(span.name, span.kernel_index, span.iteration) for span in launches] == [
        (name, index, iteration) for iteration in range(3) for index, name in enumerate(["prodKern", "sumKern"])
    ]
    assert {span.kernel_index: (span.grid, span.block) for span in launches} == {
        0: ((4, 1, 1), (256, 1, 1)),
        1: ((1, 1, 1), (512, 1, 1)),
    }
    assert len({span.stream for span in launches}) == 1
    assert trace.launches_left_out == 0


def test_small_buffers_are_copied_and_zeroed_around_the_launches(kaas: Client, dot: str, device_name: str) -> None:
    trace = trace_of(kaas.submit(dot_product(dot), trace=True))
    moved = of_kind(trace, "copy_to_device", "zero", "copy_to_host")
    assert Counter((span.kind, span.name, span.size_bytes) for span in moved) == Counter(
        [
            ("copy_to_device", "a", 4 * N),
            ("copy_to_device", "b", 4 * N),
            ("zero", "p", 4 * N),
            ("zero", "c", 4),
            # Small outputs of the emulated device are in host memory already.
            *([("copy_to_host", "c", 4)] if device_name.startswith("cuda") else []),
        ]
    )
    launches = of_kind(trace, "kernel")
    assert all(span.end_ns <= launches[0].start_ns for span in moved if span.kind != "copy_to_host")
    assert all(span.start_ns >= launches[-1].end_ns for span in moved if span.kind == "copy_to_host")


def test_large_buffers_are_copied_on_streams_of_their_own(kaas: Client, dot: str) -> None:
    size = 4 * LARGE
    kaas.put("x", np.arange(LARGE, dtype="u4"))
    kaas.put("y", np.arange(1, LARGE + 1, dtype="u4"))
    arguments = [u64(LARGE), inp("y", size), inp("x", size), inout("x", size)]
    request = Request([Kernel(dot, "prodKern", grid=-(-LARGE // 256), block=256, args=arguments)])
    trace = trace_of(kaas.submit(request, trace=True))
    (launch,) = of_kind(trace, "kernel")
    copies_in, copies_out = of_kind(trace, "copy_to_device"), of_kind(trace, "copy_to_host")
    assert {(span.name, span.size_bytes) for span in copies_in} == {("x", size), ("y", size)}
    assert [(span.name, span.size_bytes) for span in copies_out] == [("x", size)]
    assert len({launch.stream, copies_out[0].stream, *(span.stream for span in copies_in)}) == 3
    assert all(span.end_ns <= launch.start_ns for span in copies_in)
    assert launch.end_ns <= copies_out[0].start_ns
    # What is on the device already is not copied again.
    assert [span.name for span in of_kind(trace_of(kaas.submit(request, trace=True)), "copy_to_device")] == ["x"]


def test_on_a_stream_one_thing_comes_after_another_within_the_request(kaas: Client, dot: str) -> None:
    trace = trace_of(kaas.submit(dot_product(dot, iterations=50), trace=True))
    whole = stages(trace)["request"]
    streams = {span.stream for span in trace.spans if span.kind != "stage"}
    for stream in streams:
        spans = sorted((span for span in trace.spans if span.stream == stream), key=lambda span: (span.start_ns, span.end_ns))
        assert all(before.end_ns <= after.start_ns for before, after in pairwise(spans))
    assert all(whole.start_ns <= span.start_ns <= span.end_ns <= whole.end_ns for span in trace.spans)


def test_the_stages_are_those_of_the_timing(kaas: Client, dot: str) -> None:
    result = kaas.submit(dot_product(dot, iterations=5), trace=True)
    trace, timing = trace_of(result), result.timing
    found = stages(trace)
    assert sorted(found) == sorted(STAGES)
    assert {name: found[name].duration_ns for name in ("request", "queue", "plan", "load", "run", "commit")} == {
        "request": timing.total_ns,
        "queue": timing.queue_ns,
        "plan": timing.plan_ns,
        "load": timing.load_ns,
        "run": timing.run_ns,
        "commit": timing.commit_ns,
    }
    in_turn = [found[name] for name in ("queue", "plan", "load", "run", "commit")]
    assert all(before.end_ns <= after.start_ns for before, after in pairwise(in_turn))
    assert found["run"].start_ns <= found["launch"].start_ns <= found["launch"].end_ns <= found["run"].end_ns
    for span in of_kind(trace, "kernel"):
        assert found["gpu"].start_ns <= span.start_ns <= span.end_ns <= found["gpu"].end_ns


def test_only_the_first_launches_have_spans(kaas: Client, dot: str) -> None:
    trace = trace_of(kaas.submit(dot_product(dot, iterations=MOST_LAUNCHES // 2 + 3), trace=True))
    launches = of_kind(trace, "kernel")
    assert len(launches) == MOST_LAUNCHES
    assert (launches[-1].name, launches[-1].iteration) == ("sumKern", MOST_LAUNCHES // 2 - 1)
    assert trace.launches_left_out == 6
    assert launches[-1].end_ns <= stages(trace)["gpu"].end_ns


def test_a_traced_request_gives_what_an_untraced_one_gives(kaas: Client, dot: str) -> None:
    values = np.random.default_rng(3).integers(0, 2**32, (2, N), dtype=np.uint32)
    inputs = {"a": values[0], "b": values[1]}
    for trace in (False, True, False, False, True):  # before and after there is a CUDA graph
        result = kaas.submit(dot_product(dot, iterations=4), inputs=inputs, returns=["c"], trace=trace)
        assert result.array("c", "u4")[0] == np.sum(values[0] * values[1], dtype="u4")
        assert (result.trace is not None) == trace


def test_a_fault_in_a_traced_request_names_its_kernel(kaas: Client, dot: str) -> None:
    faults = kaas.upload(KERNELS / "faults.ptx")
    trap = Kernel(faults, "trapKern", grid=1, block=1, args=[out("z", 4)])
    request = Request([*dot_kernels(dot), trap])
    with pytest.raises(KernelFaultError) as caught:
        kaas.submit(request, trace=True)
    assert (caught.value.metadata["kernel_index"], caught.value.metadata["kernel"]) == ("2", "trapKern")
    assert kaas.submit(dot_product(dot), trace=True).trace is not None


def test_functions_and_streams_of_invocations_can_be_traced(kaas: Client, dot: str) -> None:
    kaas.register("traced", dot_product(dot, iterations=2))
    invoked = kaas.invoke("traced", trace=True)
    with kaas.stream() as stream:
        streamed = stream.submit("traced", trace=True).result()
    for result in (invoked, streamed):
        assert [span.name for span in of_kind(trace_of(result), "kernel")] == ["prodKern", "sumKern"] * 2


def test_the_client_for_asyncio_traces_too(address: str, kaas: Client, dot: str) -> None:
    kaas.register("traced", dot_product(dot))

    async def run() -> list[Result]:
        async with AsyncClient(address, timeout=90) as client:
            submitted = await client.submit(dot_product(dot), trace=True)
            invoked = await client.invoke("traced", trace=True)
            async with client.stream() as stream:
                return [submitted, invoked, await (await stream.submit("traced", trace=True))]

    for result in asyncio.run(run()):
        assert [span.name for span in of_kind(trace_of(result), "kernel")] == ["prodKern", "sumKern"]


def test_a_trace_tells_how_it_came_about(kaas: Client, dot: str, device_name: str) -> None:
    notes = " ".join(trace_of(kaas.submit(dot_product(dot), trace=True)).notes)
    assert ("CUDA graph" in notes) == device_name.startswith("cuda")
