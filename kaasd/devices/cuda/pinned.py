"""Page-locked host memory, which the GPU reads and writes by itself."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from cuda.bindings import driver

from kaasd.devices.cuda.driver import check

MAX_IDLE_BYTES = 1 << 30
"""Kept for the next who asks. On an H100's host 4 KiB to 1 MiB take 4 microseconds, 16 MiB 5.6 ms, 256 MiB 107 ms."""
_MIN_BYTES = 4096


class PinnedMemory:
    """One piece; it begins at a page. What is made of ``view`` must be gone before it closes."""

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
    """Gives pieces out and keeps those that come back, by size."""

    def __init__(self, release: Callable[..., None]) -> None:
        self._release = release
        self._idle: dict[int, list[int]] = {}
        self._idle_bytes = 0

    def take(self, size_bytes: int) -> PinnedMemory:
        """Return a piece of unspecified content. Raises ``CudaError``."""
        capacity = capacity_of(size_bytes)
        idle = self._idle.get(capacity)
        if idle:
            self._idle_bytes -= capacity
            return PinnedMemory(idle.pop(), capacity, size_bytes, self._give_back)
        return PinnedMemory(int(check(driver.cuMemHostAlloc, capacity, 0)), capacity, size_bytes, self._give_back)

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
