"""Traces as messages: most of one is made by the worker, the rest by the front."""

from __future__ import annotations

from collections.abc import Sequence

from kaas.v1 import trace_pb2
from kaasd.devices.trace import Span, SpanKind
from kaasd.engine.tracing import Trace
from kaasd.request.protobuf import dim3_to_proto

_KINDS = {kind: f"SPAN_KIND_{kind.name}" for kind in SpanKind}


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


def add_stage(trace: trace_pb2.Trace, name: str, duration_ns: int) -> None:
    """Add a stage that begins with the trace."""
    trace.spans.add(kind=trace_pb2.SPAN_KIND_STAGE, name=name, duration_ns=duration_ns)


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
