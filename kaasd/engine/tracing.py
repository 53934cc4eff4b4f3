"""What is told of a request that was traced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kaasd.devices.base import DeviceLost
from kaasd.devices.trace import Span, Tracer
from kaasd.request.plan import PlannedLaunch


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
