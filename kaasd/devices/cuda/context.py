"""What the runs, buffers and transfers of one GPU share: streams, events, pinned memory, and whether the context still lives."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from contextlib import ExitStack
from ctypes import addressof, c_uint32
from typing import Any

from cuda.bindings import driver

from kaasd.devices.base import DeviceLost
from kaasd.devices.cuda.driver import CudaError, check
from kaasd.devices.cuda.pinned import PinnedPool


class Lane:
    """A stream for one run at a time, and a counter that tells how far it came.

    The GPU writes the counter between kernels. After a fault every call of the driver fails, event queries too, so only plain
    memory can tell which kernels had ended. The page is our own and stays readable whatever becomes of the context.
    """

    def __init__(self, release: Callable[..., None]) -> None:
        with ExitStack() as undo:
            self.stream = check(driver.cuStreamCreate, driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
            undo.callback(release, driver.cuStreamDestroy, self.stream)
            self._page = mmap.mmap(-1, mmap.PAGESIZE)
            self._counter = c_uint32.from_buffer(self._page)
            host = addressof(self._counter)
            check(driver.cuMemHostRegister, host, mmap.PAGESIZE, driver.CU_MEMHOSTREGISTER_DEVICEMAP)
            undo.callback(release, driver.cuMemHostUnregister, host)
            self._device_address = check(driver.cuMemHostGetDevicePointer, host, 0)
            self._undo = undo.pop_all()

    def reset(self) -> None:
        """Begin at zero. The stream must be idle."""
        self._counter.value = 0

    def mark(self, count: int) -> None:
        """Have ``count`` written when all that is in the stream has ended."""
        check(driver.cuStreamWriteValue32, self.stream, self._device_address, count, 0)

    @property
    def progress(self) -> int:
        """The last mark reached."""
        return int(self._counter.value)

    def close(self) -> None:
        """Free the stream. Idempotent."""
        self._undo.close()


class CudaContext:
    """The streams, events and pinned memory of a context that is current in this thread."""

    def __init__(self) -> None:
        self._lanes: list[Lane] = []
        self._events: list[Any] = []
        self._suspects = 0
        self.runs_under_way = 0
        with ExitStack() as undo:
            undo.callback(self._close_idle)
            self.copies_in = self._new_stream(undo)
            """Copies to the device go one after the other: it has one engine for them."""
            self.copies_out = self._new_stream(undo)
            self.pinned = PinnedPool(self.release)
            undo.callback(self.pinned.close)
            self._undo = undo.pop_all()

    def _new_stream(self, undo: ExitStack) -> Any:
        stream = check(driver.cuStreamCreate, driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        undo.callback(self.release, driver.cuStreamDestroy, stream)
        return stream

    @property
    def lost(self) -> bool:
        """Whether a fault has ended the context."""
        return self._suspects > 0

    def release(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> None:
        """Call a function that frees something. A lost context takes no call any more; the end of the process frees all."""
        if not self.lost:
            check(function, *arguments)

    def note_fault(self) -> int:
        """Take note of a fault; return how many runs were under way when the first one was noted, at least 1."""
        if not self.lost:
            self._suspects = max(1, self.runs_under_way)
        return self._suspects

    def check(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
        """As ``driver.check``, for calls that launch nothing. Raises ``DeviceLost`` where a kernel's fault comes back."""
        try:
            return check(function, *arguments)
        except CudaError as error:
            if not error.is_fault:
                raise
            self.note_fault()
            raise DeviceLost(f"a kernel faulted before: {error}") from error

    def take_lane(self) -> Lane:
        """Return an idle lane."""
        return self._lanes.pop() if self._lanes else Lane(self.release)

    def give_lane(self, lane: Lane) -> None:
        """Take back a lane whose stream is idle."""
        self._lanes.append(lane)

    def take_event(self) -> Any:
        """Return an event that nobody uses."""
        if self._events:
            return self._events.pop()
        return self.check(driver.cuEventCreate, driver.CUevent_flags.CU_EVENT_DISABLE_TIMING)

    def give_event(self, event: Any) -> None:
        """Take back an event."""
        self._events.append(event)

    def close(self) -> None:
        """Free them. Idempotent."""
        self._undo.close()

    def _close_idle(self) -> None:
        while self._lanes:
            self._lanes.pop().close()
        while self._events:
            self.release(driver.cuEventDestroy, self._events.pop())
