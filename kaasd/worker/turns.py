"""Who of a device's requests may do what next: load code, take memory, launch. State machines: no I/O."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from math import floor, log2

from kaasd.worker.device_memory import DeviceMemory
from kaasd.worker.residency import Owner

FIRST_HOLD_S = 0.002
"""Many kernels end within this."""
CYCLE = 10
"""A hold and the pause behind it take this many times as long as the hold."""


class LoadGate:
    """When code may be loaded. A state machine: the time in, decisions out, no I/O.

    CUDA copies code to a GPU only once all kernels there have ended, and meanwhile no other can be launched. Whoever loads while
    a long kernel runs would stop all requests for as long. So a request that needs code from a new library waits for a moment
    without kernels. Such a moment has to come where requests are never few, too: launches are held back for short whiles, each
    twice as long as the last and followed by nine times as long without. After about 20 t there is one in which all that runs for
    a time t ends, and the others lose a tenth of their time at most.
    """

    def __init__(self) -> None:
        self.waiting = 0
        """How many wait to load."""
        self._since_s = 0.0

    def enter(self, now_s: float) -> None:
        """Somebody begins to wait."""
        if not self.waiting:
            self._since_s = now_s
        self.waiting += 1

    def leave(self) -> None:
        """Somebody waits no more."""
        self.waiting -= 1

    def holds_back(self, now_s: float) -> bool:
        """Return whether nothing is to be launched now."""
        if not self.waiting:
            return False
        elapsed = max(0.0, now_s - self._since_s) / FIRST_HOLD_S
        # The cycles take 1, 2, 4, ... times the first one's length.
        number = floor(log2(elapsed / CYCLE + 1))
        begun = CYCLE * ((1 << number) - 1)
        return elapsed < begun + (1 << number)


class MemoryTurns:
    """Who gets device memory next, of those that found too little. A state machine.

    Who lacks memory of the device keeps waiting all that come later; who lacks only what its owner may have, those of this owner.
    Meanwhile what they need, of what others use too, is evicted last.
    """

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory
        self._of_all: list[Hashable] = []
        self._of_owner: dict[str, list[Hashable]] = {}

    def __len__(self) -> int:
        return len(self._of_all) + sum(map(len, self._of_owner.values()))

    def may_try(self, who: Hashable, owner: Owner) -> bool:
        """Whether it is somebody's turn."""
        if self._of_all:
            return self._of_all[0] is who
        waiting = self._of_owner.get(owner.name)
        return not waiting or waiting[0] is who

    def wait(self, who: Hashable, owner: Owner, needs: Sequence[Hashable], *, for_owner: bool) -> None:
        """Somebody has tried, and waits until there is more; ``for_owner``, until its owner uses less. ``needs`` it may share."""
        waiting = self._of_owner.setdefault(owner.name, []) if for_owner else self._of_all
        if who not in waiting:
            self.leave(who, owner)
            waiting.append(who)
            if for_owner:
                self._of_owner[owner.name] = waiting
            self._memory.awaits(who, needs)

    def wait_behind(self, who: Hashable, owner: Owner, needs: Callable[[], Sequence[Hashable]]) -> None:
        """It is not somebody's turn; it waits behind the others from now on, if it does not yet."""
        if who not in self._of_all and who not in self._of_owner.get(owner.name, ()):
            self.wait(who, owner, needs(), for_owner=not self._of_all)

    def leave(self, who: Hashable, owner: Owner) -> None:
        """Somebody has what it needs, or waits no more. Idempotent."""
        if not (self._of_all or self._of_owner):
            return
        if who in self._of_all:
            self._of_all.remove(who)
            self._memory.awaits(who, ())
        if (waiting := self._of_owner.get(owner.name)) is not None:
            if who in waiting:
                waiting.remove(who)
                self._memory.awaits(who, ())
            if not waiting:
                del self._of_owner[owner.name]


class Slots:
    """How many requests launch and commit at a time. Those beyond have their inputs brought meanwhile, and come in turn.

    One of a higher priority than some that have slots comes beside them, so that no long ones hold it up. Groups with
    multiprocessors of their own have a slot each besides, for one request: on these is nobody else.
    """

    def __init__(self, most: float) -> None:
        self._most = most
        self._own: dict[str, Hashable | None] = {}
        """Slots of groups' own, and who has them."""
        self._taken: dict[Hashable, int] = {}
        """Priorities."""
        self._waiting: list[Hashable] = []

    def reserve(self, groups: Iterable[str]) -> None:
        """Have these groups, and no others, have a slot of their own. Who is in one goes on."""
        self._own = {group: self._own.get(group) for group in groups}

    def has_free(self, priority: int = 0, group: str = "") -> bool:
        """Whether there is one for a request of this priority and group."""
        if self._own and self._own.get(group, self) is None:
            return True
        free = self._most - len(self._taken)
        return free > 0 or (free == 0 and priority > min(self._taken.values()))

    def take(self, who: Hashable, priority: int = 0, group: str = "") -> bool:
        """Return whether somebody has a slot now; otherwise it waits for one, and asks again."""
        if self._own and self._own.get(group, self) is None:
            self._own[group] = who
            if who in self._waiting:
                self._waiting.remove(who)
            return True
        if (not self._waiting or self._waiting[0] is who) and (len(self._taken) < self._most or self.has_free(priority)):
            if self._waiting:
                self._waiting.pop(0)
            self._taken[who] = priority
            return True
        if who not in self._waiting:
            self._waiting.append(who)
        return False

    def leave(self, who: Hashable) -> None:
        """Somebody has no need of a slot any more, whether it has one or waits. Idempotent."""
        self._taken.pop(who, None)
        for group, has in self._own.items():
            if has is who:
                self._own[group] = None
        if self._waiting and who in self._waiting:
            self._waiting.remove(who)
