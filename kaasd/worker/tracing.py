"""What is told of a request that was traced, and its message. The front adds the stages that only it knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kaas.v1 import trace_pb2
from kaas_core.protobuf import dim3_to_proto
from kaasd.devices.base import DeviceLost
from kaasd.devices.trace import Span, SpanKind, Tracer
from kaasd.request.plan import PlannedLaunch

_KINDS = {kind: f"SPAN_KIND_{kind.name}" for kind in SpanKind}


@dataclass(frozen=True, slots=True)
class Trace:
    """When what a request did was done."""

    from_ns: int
    """What its times count from, of ``time.perf_counter_ns``, as those of the spans are."""
    spans: Sequence[Span]
    launches: Sequence[PlannedLaunch]
    """Those of the plan, which the spans name by index."""
    launches_left_out: int
    """Launches without a span."""
    notes: Sequence[str]
    """For a person."""


def read_trace(tracer: Tracer[Any], from_ns: int, launches: Sequence[PlannedLaunch]) -> Trace:
    """Return what was noted of a request that is committed, and so has succeeded whatever became of its device since."""
    try:
        spans, notes = tracer.spans(), tracer.notes
    except DeviceLost:
        spans, notes = tracer.stages, [*tracer.notes, "The device was lost before it told when it did what."]
    return Trace(from_ns, spans, launches, tracer.launches_left_out, notes)


def trace_to_proto(trace: Trace) -> trace_pb2.Trace:
    """Return the message of a trace."""
    streams = list(dict.fromkeys(span.stream for span in trace.spans if span.stream))
    return trace_pb2.Trace(
        spans=[_span(span, streams, trace.from_ns) for span in trace.spans],
        streams=streams,
        kernels=[
            trace_pb2.TracedKernel(name=launch.kernel[1], grid=dim3_to_proto(launch.grid), block=dim3_to_proto(launch.block))
            for launch in trace.launches
        ],
        launches_left_out=trace.launches_left_out,
        notes=trace.notes,
    )


def _span(span: Span, streams: Sequence[str], from_ns: int) -> trace_pb2.Span:
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
