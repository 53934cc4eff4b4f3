"""Device memory, and the pinned memory through which a host's pageable bytes reach it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
from cuda.bindings import driver

from kaasd.devices.base import ReadableBuffer
from kaasd.devices.cuda.driver import check

_HALF_BYTES = 4 << 20
"""Large enough for the bus: one copy of this size runs at over 45 of the 55 GB/s that an H100 reaches."""
_ALIGNMENT = 64


def address_of(data: ReadableBuffer) -> int:
    """Return where contiguous bytes lie. They must be kept alive meanwhile."""
    address: int = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    return address


class Staging:
    """Pinned memory in two halves: while the GPU copies from or to one, the CPU fills or empties the other.

    The driver would stage pageable memory itself, but then it is up to the driver and the platform whether the source may be
    reused at once. A copy between the halves and pageable memory releases the GIL.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._half = 0
        self._used = 0
        with ExitStack() as undo:
            self._base = int(check(driver.cuMemHostAlloc, 2 * _HALF_BYTES, 0))
            undo.callback(check, driver.cuMemFreeHost, self._base)
            self._events = []
            for _ in range(2):
                event = check(driver.cuEventCreate, driver.CUevent_flags.CU_EVENT_DISABLE_TIMING)
                undo.callback(check, driver.cuEventDestroy, event)
                self._events.append(event)
            self._undo = undo.pop_all()

    def to_device(self, destination: int, data: ReadableBuffer) -> None:
        """Copy ``data`` to device memory, in the stream's order. ``data`` may be reused when this returns."""
        source, remaining = address_of(data), len(data)
        while remaining:
            if self._used >= _HALF_BYTES:
                self._switch()
            size = min(remaining, _HALF_BYTES - self._used)
            staged = self._base + self._half * _HALF_BYTES + self._used
            ctypes.memmove(staged, source, size)
            check(driver.cuMemcpyHtoDAsync, destination, staged, size, self._stream)
            self._used += -(-size // _ALIGNMENT) * _ALIGNMENT
            source, destination, remaining = source + size, destination + size, remaining - size

    def _switch(self) -> None:
        """Go to the other half, once the copies from it have ended."""
        check(driver.cuEventRecord, self._events[self._half], self._stream)
        self._half ^= 1
        self._used = 0
        check(driver.cuEventSynchronize, self._events[self._half])

    def to_host(self, into: bytearray | memoryview, source: int) -> None:
        """Copy from device memory, in the stream's order. The bytes are there when this returns."""
        destination, total = address_of(into), len(into)
        starts = range(0, total, _HALF_BYTES)

        def empty(piece: int) -> None:
            check(driver.cuEventSynchronize, self._events[piece % 2])
            size = min(_HALF_BYTES, total - starts[piece])
            ctypes.memmove(destination + starts[piece], self._base + piece % 2 * _HALF_BYTES, size)

        # The stream's order keeps these copies behind those that still read from the halves.
        for piece, start in enumerate(starts):
            staged = self._base + piece % 2 * _HALF_BYTES
            check(driver.cuMemcpyDtoHAsync, staged, source + start, min(_HALF_BYTES, total - start), self._stream)
            check(driver.cuEventRecord, self._events[piece % 2], self._stream)
            if piece:
                empty(piece - 1)
        if starts:
            empty(len(starts) - 1)
        self._used = 0  # all that was staged before has been copied too

    def close(self) -> None:
        """Free the pinned memory. Idempotent."""
        self._undo.close()


class CudaBuffer:
    """Memory of the device, allocated, used and freed in the order of one stream."""

    def __init__(self, address: int, size_bytes: int, stream: Any, staging: Staging, free: Callable[[CudaBuffer], None]) -> None:
        self.address = address
        """On the device."""
        self._size = size_bytes
        self._stream = stream
        self._staging = staging
        self._free: Callable[[CudaBuffer], None] | None = free

    @property
    def size_bytes(self) -> int:
        return self._size

    def zero(self) -> None:
        """Fill with zeros."""
        check(driver.cuMemsetD8Async, self.address, 0, self._size, self._stream)

    def write(self, data: ReadableBuffer, offset_bytes: int = 0) -> None:
        """Copy ``data`` to the device. It may be reused or unmapped when this returns."""
        self._check_range(offset_bytes, len(data))
        if data:
            self._staging.to_device(self.address + offset_bytes, data)

    def read(self, into: bytearray | memoryview, offset_bytes: int = 0) -> None:
        """Copy ``len(into)`` bytes from the device. They are there when this returns."""
        self._check_range(offset_bytes, len(into))
        if into:
            self._staging.to_host(into, self.address + offset_bytes)

    def _check_range(self, offset_bytes: int, size_bytes: int) -> None:
        if not 0 <= offset_bytes <= offset_bytes + size_bytes <= self._size:
            raise ValueError(f"bytes {offset_bytes} to {offset_bytes + size_bytes} of a buffer of {self._size}")

    def close(self) -> None:
        """Free the memory, in the stream's order. Idempotent."""
        free, self._free = self._free, None
        if free:
            free(self)
