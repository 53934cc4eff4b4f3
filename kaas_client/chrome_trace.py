"""Traces in the Trace Event Format, which ui.perfetto.dev and chrome://tracing open.

A row for the stages of the request on the host, one for every stream of the device, and one for every kernel.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from typing import Any

from kaas_client.types import Result, Span

_REQUEST_ROW = "request"
_OVERLAPPING_STAGES = ("launch", "gpu")
"""Each has its own row: in this format the spans of one row must nest or not overlap."""
_TITLES = {"copy_to_device": "copy {} to the device", "copy_to_host": "copy {} to the host", "zero": "zero {}"}


def chrome_trace(result: Result) -> dict[str, Any]:
    """Return the trace of a result, to be written as JSON. Raises ``ValueError`` if it has none."""
    trace = result.trace
    if trace is None:
        raise ValueError("the result has no trace: none was requested")
    # What the format calls a process is a group of rows here, and a thread is a row.
    host, streams, kernels = (defaultdict[str, list[Span]](list) for _ in range(3))
    for span in sorted(trace.spans, key=lambda span: (span.start_ns, -span.duration_ns)):
        if span.kind == "stage":
            host[span.name if span.name in _OVERLAPPING_STAGES else _REQUEST_ROW].append(span)
        else:
            streams[span.stream].append(span)
        if span.kind == "kernel":
            kernels[span.name].append(span)
    groups = {"kaasd": host, f"{result.device}: streams": streams, f"{result.device}: kernels": kernels}
    events: list[dict[str, Any]] = []
    for group, (group_name, rows) in enumerate(groups.items(), start=1):
        events += _label("process", group, 0, group_name)
        for row, (row_name, spans) in enumerate(rows.items(), start=1):
            events += _label("thread", group, row, row_name)
            events += [_event(span, group, row) for span in spans]
    return {
        "traceEvents": events,
        "displayTimeUnit": "ns",
        "otherData": {"device": result.device, "launches_left_out": trace.launches_left_out, "notes": list(trace.notes)},
    }


def to_json(result: Result) -> bytes:
    """Return the content of a file with ``chrome_trace``. Raises ``ValueError``."""
    return json.dumps(chrome_trace(result), ensure_ascii=False).encode()


def _label(what: str, group: int, row: int, name: str) -> list[dict[str, Any]]:
    """Return the events that name a group or row and set its position."""
    place = {"ph": "M", "pid": group, "tid": row}
    return [
        {"name": f"{what}_name", **place, "args": {"name": name}},
        {"name": f"{what}_sort_index", **place, "args": {"sort_index": row or group}},
    ]


def _event(span: Span, group: int, row: int) -> dict[str, Any]:
    details = {name: getattr(span, name) for name in ("kernel_index", "iteration", "grid", "block", "size_bytes")}
    return {
        "name": _TITLES.get(span.kind, "{}").format(span.name),
        "cat": span.kind,
        "ph": "X",
        "pid": group,
        "tid": row,
        "ts": _microseconds(span.start_ns),
        "dur": _microseconds(span.duration_ns),
        "args": {name: value for name, value in details.items() if value is not None},
    }


def _microseconds(time_ns: int) -> float:
    """Return a time in the format's unit.

    Perfetto cuts times to whole nanoseconds, and drops spans that overlap. Where the nearest float is a little too small, a span
    would begin a nanosecond before another one ends.
    """
    time_us = time_ns / 1000
    return time_us if int(time_us * 1000) == time_ns else math.nextafter(time_us, math.inf)
