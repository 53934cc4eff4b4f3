"""Device memory under a limit: what is held, by key, and what goes when others need the room.

``Residency`` decides what goes, a state machine: events in, decisions out, no I/O. ``DeviceMemory`` allocates and frees.

The best that can go is what is used again last (Bélády). When that will be is guessed from when it was used before: a holding
that comes every n uses and came k uses ago comes again in n - k; one that is overdue is late by k - n, and the later it is the
less it is believed in. One that came only once goes before all that came twice. So a sweep over more than fits keeps a part of
it, and passes the rest through the room of one, where the least recently used policy would reload everything each time; and a
scan that comes once pushes out nothing that comes often. Where holdings differ, what is cheap to bring back for the room that it
takes goes first.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Generic, TypeVar

from kaasd.devices.base import Device, DeviceBuffer, OutOfMemory

COPY_BYTES_A_S = 25e9
"""To the device, about; with ``COPY_START_S`` it weighs small holdings against large ones."""
COPY_START_S = 20e-6


K = TypeVar("K", bound=Hashable)

MAX_REMEMBERED = 16384
"""Holdings that have gone and whose uses are still known, at about 200 bytes each."""
MAX_GONE = 4096
"""Holdings that have gone, and that nobody has asked for yet."""
_NEVER = 1e12
"""When a holding that came once comes again, in uses."""


class NoRoomError(Exception):
    """What is in use leaves too little room."""

    def __init__(self, asked_bytes: int, in_use_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"{asked_bytes} bytes asked, {in_use_bytes} of {limit_bytes} in use")
        self.asked_bytes = asked_bytes
        self.in_use_bytes = in_use_bytes
        self.limit_bytes = limit_bytes


@dataclass(slots=True)
class _Uses:
    """When something was used. Time is counted in uses of anything."""

    last: int
    interval: float | None = None
    """Between uses, the later ones counting more; None after the first."""

    def again(self, now: int) -> None:
        interval = now - self.last
        self.interval = interval if self.interval is None else (self.interval + interval) / 2
        self.last = now

    def distance(self, now: int) -> float:
        """Return in how many uses it is expected."""
        return _NEVER if self.interval is None else max(1.0, abs(self.interval - (now - self.last)))


@dataclass(slots=True)
class _Known:
    size_bytes: int
    cost_s: float
    uses: _Uses
    pins: int = 1


class Residency(Generic[K]):
    """The holdings of one device's memory."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        """By all holdings."""
        self.in_use_bytes = 0
        """By those that are pinned."""
        self._holdings: dict[K, _Known] = {}
        self._remembered: OrderedDict[K, _Uses] = OrderedDict()
        self._now = 0

    def __contains__(self, key: K) -> bool:
        return key in self._holdings

    def use(self, key: K) -> bool:
        """Note that a holding is wanted, and pin it; return False where it is not held."""
        holding = self._holdings.get(key)
        if holding is None:
            return False
        self._now += 1
        holding.uses.again(self._now)
        self._pin(holding)
        return True

    def add(self, key: K, size_bytes: int, cost_s: float) -> None:
        """Note that a holding was made, for which there was room; it is pinned. ``cost_s`` is what making it again would take."""
        self._now += 1
        uses = self._remembered.pop(key, None)
        if uses is None:
            uses = _Uses(self._now)
        else:
            uses.again(self._now)
        self._holdings[key] = _Known(size_bytes, cost_s, uses)
        self.held_bytes += size_bytes
        self.in_use_bytes += size_bytes

    def release(self, key: K) -> bool:
        """Take back one pin; return whether another is left."""
        holding = self._holdings[key]
        holding.pins -= 1
        if holding.pins == 0:
            self.in_use_bytes -= holding.size_bytes
        return holding.pins > 0

    def pins(self, key: K) -> int:
        """Return how many use a holding."""
        return self._holdings[key].pins

    def remove(self, key: K) -> None:
        """Note that a holding was freed."""
        holding = self._holdings.pop(key)
        self.held_bytes -= holding.size_bytes
        if holding.pins:
            self.in_use_bytes -= holding.size_bytes
        self._remembered[key] = holding.uses
        if len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)

    def rename(self, key: K, new_key: K, interval: float | None = None) -> None:
        """Go on under another key, which is not held; the uses stay with the old one.

        ``interval`` is in how many uses of anything the first one is expected, where something is known of that.
        """
        holding = self._holdings.pop(key)
        self._remembered[key] = holding.uses
        holding.uses = _Uses(holding.uses.last, interval)
        self._holdings[new_key] = holding

    def make_room(self, size_bytes: int) -> list[K]:
        """Remove holdings until ``size_bytes`` more stay below the limit, and return them, to be freed.

        Raises ``NoRoomError``, and removes nothing, where what is pinned leaves too little.
        """
        if self.in_use_bytes + size_bytes > self.limit_bytes:
            raise NoRoomError(size_bytes, self.in_use_bytes, self.limit_bytes)
        return self.evict(self.held_bytes + size_bytes - self.limit_bytes)

    def evict(self, size_bytes: int) -> list[K]:
        """Remove holdings of at least ``size_bytes`` together, or all that are not pinned, and return them, to be freed.

        Those that take no room stay.
        """
        if size_bytes <= 0:
            return []
        now = self._now
        idle = [
            (self._worth(holding, now), key) for key, holding in self._holdings.items() if not holding.pins and holding.size_bytes
        ]
        idle.sort(key=lambda entry: entry[0])
        gone: list[K] = []
        for _, key in idle:
            if size_bytes <= 0:
                break
            size_bytes -= self._holdings[key].size_bytes
            self.remove(key)
            gone.append(key)
        return gone

    @staticmethod
    def _worth(holding: _Known, now: int) -> tuple[float, int]:
        """Return what keeping a holding saves, a byte and a use; of equals the one used last goes first."""
        return holding.cost_s / (holding.size_bytes * holding.uses.distance(now)), -holding.uses.last

    def _pin(self, holding: _Known) -> None:
        if holding.pins == 0:
            self.in_use_bytes += holding.size_bytes
        holding.pins += 1


class Holding:
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

    def use(self, key: Hashable) -> Holding | None:
        """Return what is held under a key, pinned; None where nothing is."""
        return self._held[key] if self._residency.use(key) else None

    def make(
        self, key: Hashable, sizes: Sequence[int], cost_s: float, build: Callable[[list[DeviceBuffer]], H], extra_bytes: int = 0
    ) -> H:
        """Allocate buffers, build what is held under a key that is free, and return it, pinned.

        ``extra_bytes`` is what it takes beside its buffers, now or later; it counts like them.
        Raises ``NoRoomError``, ``OutOfMemory``.
        """
        size = sum(sizes) + extra_bytes
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

    def release(self, held: Holding) -> None:
        """Take back a pin."""
        if self._residency.release(held.key):
            return
        if held.unwanted:
            self._remove(held)
        self._free(self._residency.evict(self.held_bytes - self.in_use_bytes - self._unused_limit_bytes))

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
        for key in keys:
            self._held.pop(key).close()
        self._gone.extend(keys)

    def _remove(self, held: Holding) -> None:
        self._residency.remove(held.key)
        del self._held[held.key]
        held.close()


def copy_cost_s(size_bytes: int) -> float:
    """Return about how long it takes to bring bytes to the device."""
    return COPY_START_S + size_bytes / COPY_BYTES_A_S
