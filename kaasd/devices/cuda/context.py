"""What the runs, buffers and transfers of one GPU share: its context, streams, events and page-locked host memory."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

from cuda.bindings import driver

from kaasd.devices.base import DeviceLost, OutOfMemory, undone_on_failure
from kaasd.devices.cuda.driver import Check, CudaError, Release, check, failure
from kaasd.devices.cuda.partitions import Partition, Partitions
from kaasd.devices.cuda.silence import Questions

MAX_IDLE_BYTES = 1 << 30
"""Of page-locked memory, kept for the next who asks. On an H100's host 4 KiB to 1 MiB take 4 microseconds, 16 MiB 5.6 ms, 256 MiB
107 ms."""
_MIN_BYTES = 4096


class PinnedMemory:
    """Page-locked host memory, which the GPU reads and writes by itself; it begins at a page.

    What is made of ``view`` must be gone before it closes.
    """

    def __init__(self, address: int, capacity_bytes: int, size_bytes: int, free: Callable[[int, int], None]) -> None:
        self.address = address
        """On the host and, since addressing is unified, on the device."""
        self.view = memoryview((ctypes.c_uint8 * size_bytes).from_address(address)).cast("B")
        self._capacity = capacity_bytes
        self._free: Callable[[int, int], None] | None = free

    def close(self) -> None:
        """Give it back. Idempotent."""
        free, self._free = self._free, None
        if free:
            free(self.address, self._capacity)


class PinnedPool:
    """Gives pieces of page-locked memory out and keeps those that come back, by size."""

    def __init__(self, check: Check, release: Release) -> None:
        """``check`` raises ``OutOfMemory`` where there is too little."""
        self._check = check
        self._release = release
        self._idle: dict[int, list[int]] = {}
        self._idle_bytes = 0

    def take(self, size_bytes: int) -> PinnedMemory:
        """Return a piece of unspecified content. Raises ``OutOfMemory``, ``DeviceLost``."""
        capacity = capacity_of(size_bytes)
        idle = self._idle.get(capacity)
        if idle:
            self._idle_bytes -= capacity
            return PinnedMemory(idle.pop(), capacity, size_bytes, self._give_back)
        return PinnedMemory(self._allocate(capacity), capacity, size_bytes, self._give_back)

    def _allocate(self, capacity: int) -> int:
        if self._idle_bytes:
            try:
                return int(self._check(driver.cuMemHostAlloc, capacity, 0))
            except OutOfMemory:
                self.close()  # what is kept for others goes before anybody is refused
        try:
            return int(self._check(driver.cuMemHostAlloc, capacity, 0))
        except OutOfMemory as error:
            raise OutOfMemory(f"{capacity} bytes of page-locked host memory cannot be had: {error}") from error

    def _give_back(self, address: int, capacity: int) -> None:
        if self._idle_bytes + capacity > MAX_IDLE_BYTES:
            self._release(driver.cuMemFreeHost, address)
        else:
            self._idle.setdefault(capacity, []).append(address)
            self._idle_bytes += capacity

    def close(self) -> None:
        """Free what came back. Idempotent."""
        for addresses in self._idle.values():
            for address in addresses:
                self._release(driver.cuMemFreeHost, address)
        self._idle.clear()
        self._idle_bytes = 0


def capacity_of(size_bytes: int) -> int:
    """Return how much is taken for ``size_bytes``: at most a quarter more, so that pieces of about one size can be exchanged."""
    step = max(_MIN_BYTES, 1 << max(0, size_bytes.bit_length() - 3))
    return -(-max(size_bytes, 1) // step) * step


class LaneKind(NamedTuple):
    """What lanes, and graphs, differ in."""

    level: int = 0
    """Priority as the driver counts: lower goes first, 0 is the least."""
    partition: Partition | None = None
    """The multiprocessors to which its kernels keep; None: all."""


class Lane:
    """A stream for one run at a time, and a counter that tells how far it came.

    The GPU writes the counter between kernels. After a fault every call of the driver fails, event queries too, so only plain
    memory can tell which kernels had ended. The page is our own and stays readable whatever becomes of the context.
    """

    def __init__(self, check: Check, release: Release, kind: LaneKind) -> None:
        """Raises as ``check``."""
        self.kind = kind
        with undone_on_failure() as undo:
            flags = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
            if kind.partition is None:
                self.stream = check(driver.cuStreamCreateWithPriority, flags, kind.level)
            else:
                self.stream = kind.partition.new_stream(flags, kind.level)
            undo.callback(release, driver.cuStreamDestroy, self.stream)
            self._page = mmap.mmap(-1, mmap.PAGESIZE)
            self._counter = ctypes.c_uint32.from_buffer(self._page)
            host = ctypes.addressof(self._counter)
            check(driver.cuMemHostRegister, host, mmap.PAGESIZE, driver.CU_MEMHOSTREGISTER_DEVICEMAP)
            undo.callback(release, driver.cuMemHostUnregister, host)
            self._device_address = check(driver.cuMemHostGetDevicePointer, host, 0)
        self._undo = undo

    def reset(self) -> None:
        """Begin at zero. The stream must be idle."""
        self._counter.value = 0

    def mark(self, count: int) -> None:
        """Have ``count`` written when all that is in the stream has ended. Raises ``CudaError``."""
        check(driver.cuStreamWriteValue32, self.stream, self._device_address, count, 0)

    @property
    def progress(self) -> int:
        """The last mark reached."""
        return int(self._counter.value)

    def close(self) -> None:
        """Free the stream. Idempotent."""
        self._undo.close()


class CudaContext:
    """The primary context of a GPU, current in the thread that makes this, and what is shared in it."""

    def __init__(self, device_handle: Any) -> None:
        """Raises ``CudaError``."""
        self._lanes: dict[LaneKind, list[Lane]] = {}
        """The idle ones."""
        self._events: list[Any] = []
        self.fault: CudaError | None = None
        """What ended the context, once it is lost."""
        self.questions = Questions()
        self._suspects = 0
        self.runs_under_way = 0
        with undone_on_failure() as undo:
            check(driver.cuDevicePrimaryCtxSetFlags, device_handle, driver.CUctx_flags.CU_CTX_SCHED_SPIN)
            self._handle = current = check(driver.cuDevicePrimaryCtxRetain, device_handle)
            undo.callback(self.release, driver.cuDevicePrimaryCtxRelease, device_handle)
            check(driver.cuCtxSetCurrent, current)
            self.partitions = Partitions(device_handle, self.check, self.release)
            undo.callback(self.partitions.close)
            undo.callback(self._close_idle)
            self._least, self._greatest = check(driver.cuCtxGetStreamPriorityRange)
            self.copies_in = self._new_stream(undo)
            """Copies to the device go one after the other: it has one engine for them."""
            self.copies_out = self._new_stream(undo)
            self.pinned = PinnedPool(self.check, self.release)
            undo.callback(self.pinned.close)
        self._undo = undo

    def _new_stream(self, undo: ExitStack) -> Any:
        stream = check(driver.cuStreamCreate, driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        undo.callback(self.release, driver.cuStreamDestroy, stream)
        return stream

    @property
    def lost(self) -> bool:
        """Whether a fault has ended the context. Then nothing asks the driver any more: after a trap each call of it takes half a
        second on an H200, and all that they say is that it is lost."""
        return self.fault is not None

    def release(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> None:
        """Call a function that frees something. A lost context takes no call any more; the end of the process frees all."""
        if not self.lost:
            check(function, *arguments)

    def attach(self) -> None:
        """Make it current in the calling thread too. Raises ``DeviceLost``."""
        self.check(driver.cuCtxSetCurrent, self._handle)

    def run_begins(self) -> None:
        """One more is under way."""
        self.runs_under_way += 1
        self.questions.expect()

    def run_ends(self) -> None:
        """One less is."""
        self.runs_under_way -= 1
        if not self.runs_under_way:
            self.questions.rest()

    def note_fault(self, error: CudaError) -> int:
        """Take note of a fault; return how many runs were under way when the first one was noted, at least 1."""
        if self.fault is None:
            self.fault, self._suspects = error, max(1, self.runs_under_way)
        return self._suspects

    def has_ended(self, query: Callable[[Any], tuple[Any, ...]], handle: Any) -> bool:
        """Whether a stream or an event says that what was before it has ended, or nothing ends any more.

        Raises ``CudaError`` for all that is no fault.
        """
        if self.lost:
            return True
        with self.questions:
            status = query(handle)[0]
        if status == driver.CUresult.CUDA_ERROR_NOT_READY:  # which is no failure
            return False
        if status:
            error = failure(query, status)
            if not error.is_fault:
                raise error
            self.note_fault(error)
        return True

    def wait_for(self, wait: Callable[[Any], tuple[Any, ...]], handle: Any) -> bool:
        """Wait for a stream or an event; return whether it ended well."""
        if self.lost:
            return False
        status = wait(handle)[0]
        if status and (error := failure(wait, status)).is_fault:
            self.note_fault(error)
        return not status

    def raise_if_lost(self) -> None:
        """Raises ``DeviceLost``."""
        if self.fault is not None:
            raise DeviceLost(f"a kernel faulted before: {self.fault}") from self.fault

    def check(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
        """As ``driver.check``, for calls that launch nothing.

        Raises ``DeviceLost`` where a kernel's fault comes back, or has before, ``OutOfMemory``, and ``CudaError`` for all else.
        """
        self.raise_if_lost()
        try:
            return check(function, *arguments)
        except CudaError as error:
            if error.is_out_of_memory:
                raise OutOfMemory(str(error)) from error
            if not error.is_fault:
                raise
            self.note_fault(error)
            raise DeviceLost(f"a kernel faulted before: {error}") from error

    def lane_kind(self, priority: int = 0, group: str = "") -> LaneKind:
        """Return the kind of a run, as ``Run.start`` tells it.

        Of the driver's priorities 0 is the least, so that all below are as 0, and each above is one step.
        """
        level = int(max(self._greatest, min(self._least, self._least - priority))) if priority > 0 else 0
        return LaneKind(level, self.partitions.of(group))

    def take_lane(self, kind: LaneKind) -> Lane:
        """Return an idle lane of this kind. Raises ``OutOfMemory``, ``DeviceLost``, ``CudaError``."""
        idle = self._lanes.get(kind)
        return idle.pop() if idle else Lane(self.check, self.release, kind)

    def give_lane(self, lane: Lane) -> None:
        """Take back a lane whose stream is idle."""
        self._lanes.setdefault(lane.kind, []).append(lane)

    def take_event(self) -> Any:
        """Return an event that nobody uses. Raises ``OutOfMemory``, ``DeviceLost``."""
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
            for lane in self._lanes.popitem()[1]:
                lane.close()
        while self._events:
            self.release(driver.cuEventDestroy, self._events.pop())
