"""The message of a trace: what is told of a request that was traced. The front adds the stages that only it knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kaas.v1 import trace_pb2
from kaas_core.protobuf import dim3_to_proto
from kaasd.devices.base import DeviceLost
from kaasd.devices.trace import SpanKind, TracedSpan, Tracer
from kaasd.request.plan import PlannedLaunch

_KINDS = {kind: f"SPAN_KIND_{kind.name}" for kind in SpanKind}


def read_trace(tracer: Tracer[Any], from_ns: int, launches: Sequence[PlannedLaunch]) -> trace_pb2.Trace:
    """Return what was noted of a request that is committed, and so has succeeded whatever became of its device since.

    ``from_ns`` is what its times count from, of ``time.perf_counter_ns``; ``launches`` are the plan's, which spans name by index.
    """
    spans: Sequence[TracedSpan]
    try:
        spans, notes = tracer.spans(), tracer.notes
    except DeviceLost:
        spans, notes = tracer.stages, [*tracer.notes, "The device was lost before it told when it did what."]
    streams = list(dict.fromkeys(span.stream for span in spans if span.stream))
    return trace_pb2.Trace(
        spans=[_span(span, streams, from_ns) for span in spans],
        streams=streams,
        kernels=[
            trace_pb2.TracedKernel(name=launch.kernel[1], grid=dim3_to_proto(launch.grid), block=dim3_to_proto(launch.block))
            for launch in launches
        ],
        launches_left_out=tracer.launches_left_out,
        notes=notes,
    )


def _span(span: TracedSpan, streams: Sequence[str], from_ns: int) -> trace_pb2.Span:
    start_ns = max(0, span.start_ns - from_ns)  # a GPU's clock is not as exact as that
    return trace_pb2.Span(
        kind=_KINDS[span.kind],
        name=span.name,
        start_ns=start_ns,
        duration_ns=max(0, span.end_ns - from_ns - start_ns),
        stream=streams.index(span.stream) if span.stream else 0,
        kernel_index=span.kernel_index,
        iteration=span.iteration,
        size_bytes=span.size_bytes,
    )
