"""Buffers on the device, and copies between them and the host that go on aside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from cuda.bindings import driver

from kaas_core import ReadableBuffer
from kaasd.devices.cuda.context import CudaContext

_WORD_BYTES = 32
"""From one to the next, so that two are not of one sector of memory, which the GPU's atomics take turns at."""
_WORDS = 1024
"""Made together."""


def address_of(data: ReadableBuffer) -> int:
    """Return where contiguous bytes lie. They must be kept alive meanwhile."""
    address: int = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    return address


class CudaBuffer:
    """Memory of the device; its own copies wait for their end."""

    def __init__(
        self, address: int, size_bytes: int, stream: Any, context: CudaContext, free: Callable[[CudaBuffer], None]
    ) -> None:
        self.address = address
        """On the device; a multiple of 256."""
        self._size = size_bytes
        self._stream = stream
        self._context = context
        self._free: Callable[[CudaBuffer], None] | None = free

    @property
    def size_bytes(self) -> int:
        return self._size

    def zero(self) -> None:
        """Fill with zeros."""
        self._context.check(driver.cuMemsetD8Async, self.address, 0, self._size, self._stream)
        self._context.check(driver.cuStreamSynchronize, self._stream)

    def write(self, data: ReadableBuffer, offset_bytes: int = 0) -> None:
        """Copy ``data`` to the device. It may be reused or unmapped when this returns."""
        size = len(data)
        self.check_range(offset_bytes, size)
        if size:
            self._context.check(driver.cuMemcpyHtoDAsync, self.address + offset_bytes, address_of(data), size, self._stream)
            self._context.check(driver.cuStreamSynchronize, self._stream)

    def read(self, into: bytearray | memoryview, offset_bytes: int = 0) -> None:
        """Copy ``len(into)`` bytes from the device. They are there when this returns."""
        size = len(into)
        self.check_range(offset_bytes, size)
        if size:
            self._context.check(driver.cuMemcpyDtoHAsync, address_of(into), self.address + offset_bytes, size, self._stream)
            self._context.check(driver.cuStreamSynchronize, self._stream)

    def check_range(self, offset_bytes: int, size_bytes: int) -> None:
        """Raises ``ValueError`` where a range is not within the buffer."""
        if not 0 <= offset_bytes <= offset_bytes + size_bytes <= self._size:
            raise ValueError(f"bytes {offset_bytes} to {offset_bytes + size_bytes} of a buffer of {self._size}")

    def close(self) -> None:
        """Free the memory, which nothing uses any more. Idempotent."""
        free, self._free = self._free, None
        if free:
            free(self)


class Word:
    """Four bytes of device memory that are zero, and are to be left so."""

    def __init__(self, address: int, free: Callable[[int], None]) -> None:
        self.address = address
        self._free: Callable[[int], None] | None = free

    def close(self) -> None:
        """Give it back. Idempotent."""
        free, self._free = self._free, None
        if free:
            free(self.address)


class Words:
    """Where words come from: many at a time, since making one would wait for the device."""

    def __init__(self, allocate: Callable[[int], CudaBuffer]) -> None:
        self._allocate = allocate
        self._idle: list[int] = []

    def take(self) -> Word:
        """Return one for its taker's use alone. Raises ``OutOfMemory``, ``DeviceLost``."""
        if not self._idle:
            buffer = self._allocate(_WORDS * _WORD_BYTES)  # the device frees it when it closes
            buffer.zero()
            self._idle.extend(range(buffer.address, buffer.address + buffer.size_bytes, _WORD_BYTES))
        return Word(self._idle.pop(), self._idle.append)


class CudaTransfer:
    """Copies that a stream makes; ended when the stream has come to here."""

    def __init__(self, context: CudaContext, stream: Any) -> None:
        """Raises ``OutOfMemory``, ``DeviceLost``."""
        self._context = context
        self._event: Any = context.take_event()
        try:
            context.check(driver.cuEventRecord, self._event, stream)
        except BaseException:
            self._end()
            raise

    def done(self) -> bool:
        """Whether it has ended. Raises ``DeviceLost``."""
        if self._event is None:
            return True
        if not self._context.has_ended(driver.cuEventQuery, self._event):
            return False
        self._context.raise_if_lost()
        self._end()
        return True

    def wait(self) -> None:
        """Return when it has ended, however it did."""
        if self._event is not None and self._context.wait_for(driver.cuEventSynchronize, self._event):  # else ``done`` raises
            self._end()

    def _end(self) -> None:
        self._context.give_event(self._event)
        self._event = None

    def precede(self, stream: Any) -> None:
        """Have what comes into ``stream`` from now on wait for it."""
        if self._event is not None:
            self._context.check(driver.cuStreamWaitEvent, stream, self._event, 0)


class CudaDownload(CudaTransfer):
    """A buffer's content on its way to page-locked memory."""

    def __init__(self, context: CudaContext, buffer: CudaBuffer) -> None:
        """Raises ``OutOfMemory``, ``DeviceLost``."""
        memory = context.pinned.take(buffer.size_bytes)
        try:
            context.check(driver.cuMemcpyDtoHAsync, memory.address, buffer.address, buffer.size_bytes, context.copies_out)
            super().__init__(context, context.copies_out)
        except BaseException:
            context.wait_for(driver.cuStreamSynchronize, context.copies_out)  # nothing is on its way to the memory any more
            memory.close()
            raise
        self._memory = memory
        self.view = memory.view.toreadonly()
        """Where it arrives; gone when this is closed."""

    def close(self) -> None:
        """Free the host memory; only when it has ended. Idempotent."""
        self._memory.close()
