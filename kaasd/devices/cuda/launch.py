"""Kernel launches in the form that the driver takes, and a record of how far a stream came that outlives its context."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from cuda.bindings import driver

from kaasd.devices.base import Launch
from kaasd.devices.cuda.driver import check
from kaasd.devices.cuda.memory import CudaBuffer
from kaasd.devices.cuda.module import CudaKernel


class PreparedLaunch:
    """A launch whose parameters are laid out for the driver; it can be launched any number of times."""

    def __init__(self, launch: Launch) -> None:
        assert isinstance(launch.kernel, CudaKernel)
        self._kernel = launch.kernel
        self._shared_memory_bytes = launch.shared_memory_bytes
        self._dimensions = (*launch.grid, *launch.block)

        # The driver takes an array of pointers, one to each parameter's value, and copies the values when it launches. Every
        # value begins at a multiple of 16, which suits the largest type.
        values = bytearray()
        offsets: list[int] = []
        for argument in launch.arguments:
            offsets.append(len(values))
            if isinstance(argument, bytes):
                values += argument
            else:
                assert isinstance(argument.buffer, CudaBuffer)
                values += argument.buffer.address.to_bytes(8, "little")
            values += bytes(-len(values) % 16)
        self._values = (ctypes.c_uint64 * (len(values) // 8 or 1)).from_buffer_copy(values or bytes(8))
        base = ctypes.addressof(self._values)
        self._pointers = (ctypes.c_void_p * (len(offsets) or 1))(*(base + offset for offset in offsets))
        self._parameters = ctypes.addressof(self._pointers)

    def enqueue(self, stream: Any) -> None:
        """Put the launch into a stream. Raises ``CudaError``, which can also be that of a launch before."""
        self._kernel.allow_dynamic_shared_memory(self._shared_memory_bytes)
        function, shared = self._kernel.function, self._shared_memory_bytes
        check(driver.cuLaunchKernel, function, *self._dimensions, shared, stream, self._parameters, 0)


MARKED_LAUNCHES = 64
"""Launches of a run before which a mark is written, to tell which one faulted. A mark costs about 4 microseconds, as a
launch does; marks before all 3000 launches of a run made it half as long again."""


def faulted_launch(begun: int, enqueued: int, launches: int) -> int:
    """Return which of ``launches``, repeated until ``enqueued`` are in the stream, faulted when the last mark is ``begun``.

    A launch is marked when all before it have ended, so the last one marked is the one that did not end; but past the last mark
    of all it may be a later one, and then it is -1, unless all launches are the same.
    """
    if launches == 1:
        return 0
    return begun % launches if begun < MARKED_LAUNCHES or enqueued == MARKED_LAUNCHES + 1 else -1


class Progress:
    """A counter in host memory that the GPU writes between kernels.

    After a fault every call of the driver fails, event queries too, so only plain memory can tell which kernels had ended. The
    page is our own and stays readable whatever becomes of the context.
    """

    def __init__(self, stream: Any, release: Callable[..., None]) -> None:
        self._stream = stream
        with ExitStack() as undo:
            self._page = mmap.mmap(-1, mmap.PAGESIZE)
            self._counter = ctypes.c_uint32.from_buffer(self._page)
            host = ctypes.addressof(self._counter)
            check(driver.cuMemHostRegister, host, mmap.PAGESIZE, driver.CU_MEMHOSTREGISTER_DEVICEMAP)
            undo.callback(release, driver.cuMemHostUnregister, host)
            self._device = check(driver.cuMemHostGetDevicePointer, host, 0)
            self._undo = undo.pop_all()

    def reset(self) -> None:
        """Begin at zero. The stream must be idle."""
        self._counter.value = 0

    def mark(self, count: int) -> None:
        """Have ``count`` written when all that is in the stream has ended."""
        check(driver.cuStreamWriteValue32, self._stream, self._device, count, 0)

    @property
    def count(self) -> int:
        """The last mark reached."""
        return int(self._counter.value)

    def close(self) -> None:
        """Unregister the page. Idempotent."""
        self._undo.close()
