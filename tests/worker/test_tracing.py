"""What a trace says of what a device has noted."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kaas.v1 import trace_pb2, types_pb2
from kaasd.devices.base import DeviceLost
from kaasd.devices.trace import SpanKind, TracedSpan
from kaasd.request.plan import PlannedLaunch
from kaasd.worker.tracing import read_trace

STAGE = TracedSpan(SpanKind.STAGE, 100, 300, "run")
COPY = TracedSpan(SpanKind.COPY_TO_DEVICE, 90, 150, "a", "copies", size_bytes=8)
KERNEL = TracedSpan(SpanKind.KERNEL, 120, 119, "k", "compute", kernel_index=1, iteration=2)
LAUNCHES = cast("Sequence[PlannedLaunch]", [SimpleNamespace(kernel=("library", "k"), grid=(1, 2, 3), block=(4, 5, 6))])


class Noted:
    """A tracer of a request that has ended."""

    stages = (STAGE,)
    notes = ("It was replayed.",)
    launches_left_out = 7

    def __init__(self, *, lost: bool = False) -> None:
        self._lost = lost

    def spans(self) -> list[TracedSpan]:
        if self._lost:
            raise DeviceLost
        return [STAGE, COPY, KERNEL]


def trace(tracer: Any) -> trace_pb2.Trace:
    return read_trace(tracer, 100, LAUNCHES)


def test_times_count_from_the_arrival_and_are_never_negative() -> None:
    read = trace(Noted())
    assert list(read.spans) == [
        trace_pb2.Span(kind=trace_pb2.SPAN_KIND_STAGE, name="run", start_ns=0, duration_ns=200),
        trace_pb2.Span(kind=trace_pb2.SPAN_KIND_COPY_TO_DEVICE, name="a", start_ns=0, duration_ns=50, stream=0, size_bytes=8),
        trace_pb2.Span(kind=trace_pb2.SPAN_KIND_KERNEL, name="k", start_ns=20, stream=1, kernel_index=1, iteration=2),
    ]
    assert list(read.streams) == ["copies", "compute"]
    assert read.launches_left_out == 7


@pytest.mark.parametrize("lost", [False, True])
def test_notes_and_kernels_are_told_also_of_a_device_that_was_lost(lost: bool) -> None:
    read = trace(Noted(lost=lost))
    more = ["The device was lost before it told when it did what."] if lost else []
    assert list(read.notes) == ["It was replayed.", *more]
    assert [span.name for span in read.spans] == (["run"] if lost else ["run", "a", "k"])
    assert list(read.kernels) == [
        trace_pb2.TracedKernel(name="k", grid=types_pb2.Dim3(x=1, y=2, z=3), block=types_pb2.Dim3(x=4, y=5, z=6))
    ]
