"""Device memory under a limit: what is held, by key, and freed when others need the room. The rule is in ``residency``."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import count
from typing import TypeVar

from kaasd.devices.base import Device, DeviceBuffer, OutOfMemory
from kaasd.engine.residency import Residency

COPY_BYTES_A_S = 25e9
"""To the device, about; with ``COPY_START_S`` it weighs small holdings against large ones."""
COPY_START_S = 20e-6


class Held:
    """Buffers under one key. Used by those that have pinned it; when nobody has, it may go at any time."""

    def __init__(self, key: Hashable, buffers: Sequence[DeviceBuffer]) -> None:
        self.key = key
        self.buffers = buffers
        self.unwanted = False
        """It goes when nobody uses it any more."""

    def close(self) -> None:
        """Free it. Idempotent."""
        for buffer in self.buffers:
            buffer.close()


H = TypeVar("H", bound=Held)


class DeviceMemory:
    """The memory of one device, as far as this process may take it."""

    def __init__(self, device: Device, limit_bytes: int, *, keep_unused: bool = True) -> None:
        """``keep_unused`` False frees everything as soon as nobody uses it."""
        self._device = device
        self._keep_unused = keep_unused
        self._residency: Residency[Hashable] = Residency(limit_bytes)
        self._held: dict[Hashable, Held] = {}
        self._serial = count()

    @property
    def held_bytes(self) -> int:
        """Taken now."""
        return self._residency.held_bytes

    @property
    def in_use_bytes(self) -> int:
        """Taken now, and pinned."""
        return self._residency.in_use_bytes

    @property
    def limit_bytes(self) -> int:
        """Most that may be taken."""
        return self._residency.limit_bytes

    def __contains__(self, key: Hashable) -> bool:
        return key in self._held

    def use(self, key: Hashable) -> Held | None:
        """Return what is held under a key, pinned; None where nothing is."""
        return self._held[key] if self._residency.use(key) else None

    def make(self, key: Hashable, sizes: Sequence[int], cost_s: float, build: Callable[[list[DeviceBuffer]], H]) -> H:
        """Allocate buffers, build what is held under a key that is free, and return it, pinned.

        Raises ``NoRoomError``, ``OutOfMemory``.
        """
        size = sum(sizes)
        self._free(self._residency.make_room(size))
        buffers: list[DeviceBuffer] = []
        try:
            for each in sizes:
                buffers.append(self._allocate(each))  # noqa: PERF401  (what was allocated before an error is freed)
            held = build(buffers)
        except BaseException:
            for buffer in buffers:
                buffer.close()
            raise
        self._residency.add(key, size, cost_s)
        self._held[key] = held
        return held

    def release(self, held: Held) -> None:
        """Take back a pin."""
        if not self._residency.release(held.key) and (held.unwanted or not self._keep_unused):
            self._remove(held)

    def is_shared(self, held: Held) -> bool:
        """Whether somebody else has pinned it too."""
        return self._residency.pins(held.key) > 1

    def drop(self, held: Held) -> None:
        """Free what is held as soon as nobody uses it; its key is free at once."""
        if held.unwanted:
            return
        held.unwanted = True
        key, held.key = held.key, ("unwanted", next(self._serial))
        self._residency.rename(key, held.key)
        self._held[held.key] = self._held.pop(key)
        self._residency.use(held.key)
        self.release(held)

    def close(self) -> None:
        """Free everything. Idempotent."""
        for held in list(self._held.values()):
            self._remove(held)

    def _allocate(self, size_bytes: int) -> DeviceBuffer:
        while True:
            try:
                return self._device.allocate(size_bytes)
            except OutOfMemory:
                # Others use the device too. What we hold and do not need goes before a request fails.
                gone = self._residency.give_up(size_bytes)
                if not gone:
                    raise
                self._free(gone)

    def _free(self, keys: Sequence[Hashable]) -> None:
        for key in keys:
            self._held.pop(key).close()

    def _remove(self, held: Held) -> None:
        self._residency.remove(held.key)
        del self._held[held.key]
        held.close()


def copy_cost_s(size_bytes: int) -> float:
    """Return about how long it takes to bring bytes to the device."""
    return COPY_START_S + size_bytes / COPY_BYTES_A_S
