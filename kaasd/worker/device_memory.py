"""Device memory under a limit: what is held, by key. ``Residency`` decides what goes; here it is allocated and freed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from itertools import count
from typing import TypeVar

from kaasd.devices.base import Device, DeviceBuffer, OutOfMemory
from kaasd.worker.residency import NOBODY, Owner, Residency

COPY_BYTES_A_S = 25e9
"""To the device, about; with ``COPY_START_S`` it weighs small holdings against large ones."""
COPY_START_S = 20e-6
MAX_GONE = 4096
"""Holdings that have gone, and that nobody has asked for yet."""


class Holding:
    """Buffers under one key. Used by those that have pinned it; when nobody has, it may go at any time."""

    def __init__(self, key: Hashable, buffers: Sequence[DeviceBuffer]) -> None:
        self.key = key
        self.buffers = buffers
        self.unwanted = False
        """It goes when nobody uses it any more."""

    def close(self) -> None:
        """Free it. Idempotent."""
        for buffer in self.take_buffers():
            buffer.close()

    def take_buffers(self) -> Sequence[DeviceBuffer]:
        """Hand over the buffers, to be freed or used again, and close what was made with them. There are none from then on."""
        taken, self.buffers = self.buffers, ()
        return taken


H = TypeVar("H", bound=Holding)


class DeviceMemory:
    """The memory of one device, as far as this process may take it."""

    def __init__(self, device: Device, limit_bytes: int, *, unused_limit_bytes: int | None = None) -> None:
        """Of what nobody uses at most ``unused_limit_bytes`` is held; None: all that there is room for."""
        self._device = device
        self._unused_limit_bytes = limit_bytes if unused_limit_bytes is None else unused_limit_bytes
        self._residency: Residency[Hashable] = Residency(limit_bytes)
        self._held: dict[Hashable, Holding] = {}
        self._gone: deque[Hashable] = deque(maxlen=MAX_GONE)
        """What others needed the room of, the latest."""
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

    def in_use_of(self, owner: str) -> int:
        """Return what somebody has pinned of what counts for it."""
        return self._residency.in_use_of(owner)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._held

    def keys(self) -> list[Hashable]:
        """Return what is held, the oldest first. For any thread."""
        return list(self._held)

    def take_gone(self) -> list[Hashable]:
        """Return what others needed the room of, since this was last asked."""
        if not self._gone:
            return []
        gone = list(self._gone)
        self._gone.clear()
        return gone

    def take_was_full(self) -> bool:
        """Return whether any of that had to go for the device's own limit, and not only for an owner's."""
        was_full, self._residency.was_full = self._residency.was_full, False
        return was_full

    def awaits(self, who: Hashable, keys: Sequence[Hashable]) -> None:
        """Say what somebody waits for; as ``Residency.awaits``."""
        self._residency.awaits(who, keys)

    def use(self, key: Hashable, owner: Owner = NOBODY) -> Holding | None:
        """Return what is held under a key, pinned for an owner; None where nothing is."""
        return self._held[key] if self._residency.use(key, owner.name) else None

    def make(
        self,
        key: Hashable,
        sizes: Sequence[int],
        cost_s: float,
        build: Callable[[list[DeviceBuffer]], H],
        extra_bytes: int = 0,
        owner: Owner = NOBODY,
    ) -> H:
        """Allocate buffers, build what is held under a key that is free, and return it, pinned. It counts for its ``owner``.

        ``extra_bytes`` is what it takes beside its buffers, now or later; it counts like them.
        Raises ``NoRoomError``, ``OwnerLimitError``, ``OutOfMemory``.
        """
        size = sum(sizes) + extra_bytes
        buffers = self._get_buffers(sizes, self._residency.make_room(size, owner))
        try:
            held = build(buffers)
        except BaseException:
            for buffer in buffers:
                buffer.close()
            raise
        self._residency.add(key, size, cost_s, owner.name)
        self._held[key] = held
        return held

    def give(self, held: Holding, owner: Owner) -> None:
        """Have what nobody uses count for another. Raises ``OwnerLimitError``, and changes nothing."""
        if gone := self._residency.give(held.key, owner):
            self._free(gone)

    def release(self, held: Holding, owner: Owner = NOBODY) -> None:
        """Take back a pin of an owner's."""
        if self._residency.release(held.key, owner.name):
            return
        if held.unwanted:
            self._remove(held)
        too_many = self.held_bytes - self.in_use_bytes - self._unused_limit_bytes
        if too_many > 0:
            self._free(self._residency.evict(too_many))

    def rename(self, held: Holding, key: Hashable, interval: float | None = None) -> None:
        """Hold it under another key, which is free, from now on; ``interval`` as for ``Residency.rename``."""
        self._residency.rename(held.key, key, interval)
        self._held[key] = self._held.pop(held.key)
        held.key = key

    def is_shared(self, held: Holding) -> bool:
        """Whether somebody else has pinned it too."""
        return self._residency.pins(held.key) > 1

    def drop(self, held: Holding) -> None:
        """Free what is held as soon as nobody uses it; its key is free at once."""
        if held.unwanted:
            return
        held.unwanted = True
        self.rename(held, ("unwanted", next(self._serial)))
        self._residency.use(held.key)
        self.release(held)

    def close(self) -> None:
        """Free everything. Idempotent."""
        for held in list(self._held.values()):
            self._remove(held)

    def _get_buffers(self, sizes: Sequence[int], gone: Sequence[Hashable]) -> list[DeviceBuffer]:
        """Return buffers of these sizes: those of what has ``gone``, where they fit, or new ones. All others of them are freed.

        What is brought in turn is often of one size, and then costs the device no call. Raises ``OutOfMemory``.
        """
        spare: dict[int, list[DeviceBuffer]] = {}
        for buffer in self._take_buffers(gone):
            spare.setdefault(buffer.size_bytes, []).append(buffer)
        buffers = [spare[size].pop() if spare.get(size) else None for size in sizes]
        for left in spare.values():
            for buffer in left:
                buffer.close()
        try:
            for index, size in enumerate(sizes):
                buffers[index] = buffers[index] or self._allocate(size)
        except BaseException:
            for taken in filter(None, buffers):
                taken.close()
            raise
        return [taken for taken in buffers if taken is not None]

    def _allocate(self, size_bytes: int) -> DeviceBuffer:
        while True:
            try:
                return self._device.allocate(size_bytes)
            except OutOfMemory:
                # Others use the device too. What we hold and do not need goes before a request fails.
                gone = self._residency.evict(size_bytes)
                if not gone:
                    raise
                self._free(gone)

    def _free(self, keys: Sequence[Hashable]) -> None:
        for buffer in self._take_buffers(keys):
            buffer.close()

    def _take_buffers(self, keys: Sequence[Hashable]) -> list[DeviceBuffer]:
        """Return the buffers of what was evicted."""
        self._gone.extend(keys)
        return [buffer for key in keys for buffer in self._held.pop(key).take_buffers()]

    def _remove(self, held: Holding) -> None:
        self._residency.remove(held.key)
        del self._held[held.key]
        held.close()


def copy_cost_s(size_bytes: int) -> float:
    """Return about how long it takes to bring bytes to the device."""
    return COPY_START_S + size_bytes / COPY_BYTES_A_S
