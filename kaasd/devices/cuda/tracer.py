"""When what one request does on a GPU was, told by events between the calls in its streams."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import perf_counter_ns
from typing import Any

from cuda.bindings import driver

from kaasd.devices.base import undone_on_failure
from kaasd.devices.cuda.context import CudaContext
from kaasd.devices.cuda.driver import check
from kaasd.devices.trace import Stream, Tracer

SINGLE_LAUNCHES = (
    "Kernels were launched one by one, with events between them, and not as a CUDA graph: without a trace the request may run "
    "faster. Where a kernel is shorter than a launch, its span is as long as a launch."
)


class CudaTracer(Tracer[Any]):
    """Records an event for every mark. Its time is that of the host when the tracer began, and what has passed since."""

    def __init__(self, context: CudaContext, idle_stream: Any) -> None:
        """On ``idle_stream`` there is nothing, so that an event comes to pass at once. Raises ``OutOfMemory``, ``DeviceLost``."""
        super().__init__(
            stream_of(context.copies_in, "copies in", context.check), stream_of(context.copies_out, "copies out", context.check)
        )
        self.notes.append(SINGLE_LAUNCHES)
        self._context = context
        with undone_on_failure() as undo:
            self._undo = undo
            before_ns = perf_counter_ns()
            self._origin = self._record(idle_stream, context.check)
            context.check(driver.cuEventSynchronize, self._origin)
            self._origin_ns = (before_ns + perf_counter_ns()) // 2

    def mark(self, stream: Stream) -> Any:
        """Return an event that was put into the stream.

        Raises ``DeviceLost``; on the stream of a run, which explains its own faults, ``CudaError``.
        """
        copies = stream in (self._copies_in, self._copies_out)
        return self._record(stream.handle, self._context.check if copies else check)

    def _record(self, handle: Any, check: Callable[..., Any]) -> Any:
        event = check(driver.cuEventCreate, driver.CUevent_flags.CU_EVENT_DEFAULT)
        self._undo.callback(self._context.release, driver.cuEventDestroy, event)
        check(driver.cuEventRecord, event, handle)
        return event

    def precede(self, handle: Any) -> None:
        """Have what comes into a stream from now on begin after what was noted so far, by the GPU's clock too."""
        for each in self._open:
            check(driver.cuStreamWaitEvent, handle, each.end, 0)

    def times_ns(self, marks: Iterable[Any]) -> list[int]:
        """Return when events came to pass; a GPU's clock ticks every half a microsecond. Raises ``DeviceLost``."""
        return [self._time_ns(event) for event in marks]

    def _time_ns(self, event: Any) -> int:
        # What the event is behind has ended, and was seen to by another event or a flag: this one may be a moment later.
        self._context.check(driver.cuEventSynchronize, event)
        elapsed_ms: float = self._context.check(driver.cuEventElapsedTime, self._origin, event)
        return self._origin_ns + round(elapsed_ms * 1e6)

    def close(self) -> None:
        """Free the events. Idempotent."""
        self._undo.close()


def stream_of(handle: Any, purpose: str, check: Callable[..., Any] = check) -> Stream:
    """Return a stream of the driver under a name that tells it from the others of this process. Raises as ``check``."""
    return Stream(f"stream {int(check(driver.cuStreamGetId, handle))}: {purpose}", handle)
