"""What goes from device memory when others need the room: a state machine, events in, decisions out, no I/O.

The best that can go is what is used again last (Bélády). What requests wait for is known, and goes last of all, what is wanted
latest first. For all else, when it is used again is guessed from when it was used before: a holding that comes every n uses and
came k uses ago comes again in n - k; one that is overdue is late by k - n, and the later it is the less it is believed in. One
that came only once goes before all that came twice. So a sweep over more than fits keeps a part of it, and passes the rest
through the room of one, where the least recently used policy would reload everything each time; and a scan that comes once pushes
out nothing that comes often. Where holdings differ, what is cheap to bring back for the room that it takes goes first.

What each owner holds may have a limit of its own: then its own holdings make room for what is new of it. Those of them that only
others use count for nobody then, so that no owner waits for as long as others use what it has brought.
"""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)

MAX_REMEMBERED = 16384
"""Holdings that have gone and whose uses are still known, at about 200 bytes each."""
KEPT_ORDER = 256
"""One in so many of all holdings: as many go by one look at all of them, which takes half a microsecond each. With one in 16 a
sweep over a tenth more than fits loaded a fifth more than it must."""
_NEVER = 1e12
"""When a holding that came once comes again, in uses."""


class Owner(NamedTuple):
    """Whom holdings count for."""

    name: str
    limit_bytes: int = 0
    """Most that it may hold; 0: no limit of its own."""


NOBODY = Owner("")


class NoRoomError(Exception):
    """What is in use leaves too little room."""

    def __init__(self, asked_bytes: int, in_use_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"{asked_bytes} bytes asked, {in_use_bytes} of {limit_bytes} in use")
        self.asked_bytes = asked_bytes
        self.in_use_bytes = in_use_bytes
        self.limit_bytes = limit_bytes


class OwnerLimitError(NoRoomError):
    """What its owner has in use leaves too little of what that may hold."""


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


@dataclass(slots=True)
class _Known:
    size_bytes: int
    cost_s: float
    uses: _Uses
    owner: str
    pins: int = 1
    own_pins: int = 0
    """By its owner, where it has one."""


class Residency(Generic[K]):
    """The holdings of one device's memory."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        """By all holdings."""
        self.was_full = False
        """Something had to go that was in nobody's way but the device's, since this was set to False."""
        self.in_use_bytes = 0
        """By those that are pinned."""
        self._holdings: dict[K, _Known] = {}
        self._held_of: defaultdict[str, int] = defaultdict(int)
        self._in_use_of: defaultdict[str, int] = defaultdict(int)
        """By owner, what it has pinned of its own."""
        self._remembered: OrderedDict[K, _Uses] = OrderedDict()
        self._now = 0
        self._awaited: dict[Hashable, Sequence[K]] = {}
        """By who waits: what is wanted, in order."""
        self._ranks: dict[K, int] | None = {}
        """When what is awaited is wanted, 0 for the next; None: to be counted anew."""
        self._order: list[K] = []
        """What goes next, the first one last, of what nobody awaited; as it was at ``_ordered_at``."""
        self._ordered_at = 0

    def __contains__(self, key: K) -> bool:
        return key in self._holdings

    def held_of(self, owner: str) -> int:
        """Return what an owner's holdings take."""
        return self._held_of.get(owner, 0)

    def in_use_of(self, owner: str) -> int:
        """Return what those take that it has pinned itself."""
        return self._in_use_of.get(owner, 0)

    def use(self, key: K, by: str = NOBODY.name) -> bool:
        """Note that a holding is wanted, and pin it; return False where it is not held."""
        holding = self._holdings.get(key)
        if holding is None:
            return False
        self._now += 1
        holding.uses.again(self._now)
        if holding.pins == 0:
            self.in_use_bytes += holding.size_bytes
        holding.pins += 1
        if by and by == holding.owner:
            self._pin_own(holding)
        return True

    def add(self, key: K, size_bytes: int, cost_s: float, owner: str = NOBODY.name) -> None:
        """Note that a holding was made, for which there was room; it is pinned. ``cost_s`` is what making it again would take."""
        self._now += 1
        uses = self._remembered.pop(key, None)
        if uses is None:
            uses = _Uses(self._now)
        else:
            uses.again(self._now)
        holding = self._holdings[key] = _Known(size_bytes, cost_s, uses, owner)
        self._count_held(holding, size_bytes)
        self.in_use_bytes += size_bytes
        if owner:
            self._pin_own(holding)

    def release(self, key: K, by: str = NOBODY.name) -> bool:
        """Take back one pin of who has pinned it; return whether another is left."""
        holding = self._holdings[key]
        holding.pins -= 1
        if by and by == holding.owner:
            self._unpin_own(holding)
        if holding.pins == 0:
            self.in_use_bytes -= holding.size_bytes
        return holding.pins > 0

    def pins(self, key: K) -> int:
        """Return how many use a holding."""
        return self._holdings[key].pins

    def remove(self, key: K) -> None:
        """Note that a holding was freed."""
        holding = self._holdings.pop(key)
        self._count_held(holding, -holding.size_bytes)
        if holding.pins:
            self.in_use_bytes -= holding.size_bytes
        if holding.own_pins:
            self._in_use_of[holding.owner] -= holding.size_bytes
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

    def give(self, key: K, owner: Owner) -> list[K]:
        """Have a holding that nobody uses count for another owner; remove those of it that must go for that, and return them.

        Raises ``OwnerLimitError``, and changes nothing.
        """
        holding = self._holdings[key]
        if holding.owner == owner.name:
            return []
        holding.pins += 1  # it is not what goes
        try:
            gone = self._make_owner_room(holding.size_bytes, owner)
        finally:
            holding.pins -= 1
        self._assign(holding, owner.name)
        return gone

    def awaits(self, who: Hashable, keys: Sequence[K]) -> None:
        """Say what somebody waits for, in the order in which it is wanted, in place of what was said before.

        Who is first to say so is first to want it. No ``keys``: it waits no more.
        """
        if keys:
            self._awaited[who] = keys
        elif self._awaited.pop(who, None) is None:
            return
        self._ranks = None

    def make_room(self, size_bytes: int, owner: Owner = NOBODY) -> list[K]:
        """Remove holdings until ``size_bytes`` more stay below the limits, and return them, to be freed.

        Raises ``NoRoomError``, and removes nothing, where what is pinned leaves too little; ``OwnerLimitError``, where what the
        owner itself has pinned does.
        """
        if self.in_use_bytes + size_bytes > self.limit_bytes:
            raise NoRoomError(size_bytes, self.in_use_bytes, self.limit_bytes)
        gone = self._make_owner_room(size_bytes, owner)
        return gone + self.evict(self.held_bytes + size_bytes - self.limit_bytes)

    def evict(self, size_bytes: int) -> list[K]:
        """Remove holdings of at least ``size_bytes`` together, or all that are not pinned, and return them, to be freed.

        Those that take no room stay.
        """
        gone: list[K] = []
        if size_bytes <= 0:
            return gone
        ranks = self._awaited_ranks()
        while size_bytes > 0 and self._order:
            key = self._order.pop()
            holding = self._holdings.get(key)
            if holding is not None and not holding.pins and holding.uses.last <= self._ordered_at and key not in ranks:
                size_bytes -= self._take(key, gone)
        if size_bytes > 0:
            idle = self._idle(None)
            while size_bytes > 0 and idle:
                size_bytes -= self._take(heappop(idle)[-1], gone)
            self._order = [heappop(idle)[-1] for _ in range(len(idle) // KEPT_ORDER)]
            self._order.reverse()
            self._ordered_at = self._now
        self.was_full |= bool(gone)
        return gone

    def _make_owner_room(self, size_bytes: int, owner: Owner) -> list[K]:
        name, limit = owner
        gone: list[K] = []
        if not limit:
            return gone
        if self._in_use_of[name] + size_bytes > limit:
            raise OwnerLimitError(size_bytes, self._in_use_of[name], limit)
        too_many = self._held_of[name] + size_bytes - limit
        if too_many > 0:
            idle = self._idle(name)
            while too_many > 0 and idle:
                too_many -= self._take(heappop(idle)[-1], gone)
        if too_many > 0:
            for holding in self._holdings.values():
                if holding.owner == name and not holding.own_pins and holding.size_bytes:
                    self._assign(holding, NOBODY.name)
        return gone

    def _assign(self, holding: _Known, owner: str) -> None:
        """Have a holding that its owner has not pinned count for another, which has not either."""
        self._held_of[holding.owner] -= holding.size_bytes
        self._held_of[owner] += holding.size_bytes
        holding.owner = owner

    def _take(self, key: K, gone: list[K]) -> int:
        """Remove a holding, and return its size."""
        size = self._holdings[key].size_bytes
        self.remove(key)
        gone.append(key)
        return size

    def _idle(self, owner: str | None) -> list[tuple[float, float, int, K]]:
        """Return a heap of what may go, of all owners or of one: each behind what it is worth to keep, the least first.

        That is when it is awaited, the sooner the more; then what is saved, a byte and a use. Of equals the one used last goes
        first; no two were.
        """
        now, ranks = self._now, self._awaited_ranks()
        idle: list[tuple[float, float, int, K]] = []
        for key, holding in self._holdings.items():
            if holding.pins or not holding.size_bytes or (owner is not None and holding.owner != owner):
                continue
            uses = holding.uses
            distance = _NEVER if uses.interval is None else max(1.0, abs(uses.interval + uses.last - now))
            rank = -ranks[key] if ranks and key in ranks else -math.inf
            idle.append((rank, holding.cost_s / (holding.size_bytes * distance), -uses.last, key))
        heapify(idle)
        return idle

    def _awaited_ranks(self) -> dict[K, int]:
        if self._ranks is None:
            self._ranks = {}
            for keys in self._awaited.values():
                for key in keys:
                    self._ranks.setdefault(key, len(self._ranks))
        return self._ranks

    def _count_held(self, holding: _Known, size_bytes: int) -> None:
        self.held_bytes += size_bytes
        self._held_of[holding.owner] += size_bytes

    def _pin_own(self, holding: _Known) -> None:
        if holding.own_pins == 0:
            self._in_use_of[holding.owner] += holding.size_bytes
        holding.own_pins += 1

    def _unpin_own(self, holding: _Known) -> None:
        holding.own_pins -= 1
        if holding.own_pins == 0:
            self._in_use_of[holding.owner] -= holding.size_bytes
