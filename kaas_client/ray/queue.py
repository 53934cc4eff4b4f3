"""The calls that wait for an executor's device, and which of them begins next.

kaasd's scheduler, for one device and for several threads: groups share the device by their shares, whatever they have waiting.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from time import monotonic
from typing import Generic, NamedTuple, Protocol, TypeVar

from kaasd.scheduling import Group, GroupUse, Policy, QueuedRequest, Scheduler, Start

_DEVICE = "device"
HELD_UP_S = 0.02
"""A call that has been on the device for longer holds up others."""


class QueuedCall(Protocol):
    """A call, as far as it is of interest here."""

    @property
    def suspect(self) -> bool:
        """Whether it may cost the process its device: it runs alone."""

    @property
    def queued(self) -> QueuedRequest:
        """What it is in the scheduler, whose ``id`` is the call."""


C = TypeVar("C", bound=QueuedCall)


class Load(NamedTuple):
    """What a device has to do."""

    calls: int
    """That wait for it, or that it runs."""
    device_s: float
    """That they are likely to take, together."""
    expected_s: Mapping[Hashable, float]
    """What a call of a function is likely to take, by its digest."""


class DeviceQueue(Generic[C]):
    """The queue of one device that runs ``slots`` calls at once."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._lock = threading.Lock()
        """Held while a call is begun, so that one that is no longer here has begun."""
        # With one device there is nothing to place.
        self._scheduler = Scheduler(policy=Policy.BALANCE)
        self._scheduler.add_device(_DEVICE, slots)
        self._groups = {group.name for group in self._scheduler.groups()}
        self._waiting: set[C] = set()
        self._next: deque[C] = deque()
        """Those that have a slot, and cannot begin yet for another reason."""
        self._running: set[C] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def knows(self, group: str) -> bool:
        """Return whether a group has been set."""
        return group in self._groups

    def set_group(self, group: Group) -> None:
        """Make a group, or change what it is granted."""
        with self._lock:
            self._scheduler.set_group(group)
            self._groups.add(group.name)

    def granted(self, group: str) -> Group | None:
        """Return what a group is granted now; also for ``begin`` to call."""
        return self._scheduler.granted(group)

    def group_uses(self) -> dict[str, GroupUse]:
        """Return what each group uses."""
        with self._lock:
            return {group: self._scheduler.use(group) for group in self._groups}

    def least_s(self, call: C) -> float:
        """Return the device time that a call takes at least, by those of its function before; 0: not known."""
        return self._scheduler.least_s(call.queued)

    def short_ones(self, functions: int, below_s: float) -> set[Hashable]:
        """Return those of so many functions whose calls take less device time at least, by their digests.

        There are none while all slots are taken by calls that go on for long.
        """
        with self._lock:
            begun_before = monotonic() - HELD_UP_S
            if sum(call.queued.started_at < begun_before for call in self._running) >= self._slots:
                return set()
            return self._scheduler.short_ones(functions, below_s)

    def load(self, functions: int) -> Load:
        """Return what there is to do, and the times of so many functions."""
        with self._lock:
            scheduler, now = self._scheduler, monotonic()
            device_s = sum(scheduler.expected_s(call.queued) for call in self._waiting)
            for call in self._running:
                # What is late may take as long again.
                device_s += abs(call.queued.started_at + scheduler.expected_s(call.queued) - now)
            calls = len(self._waiting) + len(self._running)
            return Load(calls, device_s / self._slots, scheduler.expected_of(functions))

    def push(self, call: C) -> None:
        """A call has come. Raises ``GroupLimitError``, ``GroupNotFoundError``."""
        with self._lock:
            self._scheduler.submit(call.queued)
            self._waiting.add(call)

    def begin(self, may_begin: Callable[[C], bool], begin: Callable[[C], None]) -> None:
        """Begin those whose turn it is, in order, up to the first that must still wait for those before it."""
        with self._lock:
            for decision in self._scheduler.decide(monotonic()):
                assert isinstance(decision, Start)
                self._next.append(decision.request.id)  # type: ignore[arg-type]
            while self._next:
                call = self._next[0]
                alone = call.suspect or any(other.suspect for other in self._running)
                if (alone and self._running) or not may_begin(call):
                    return
                self._next.popleft()
                self._waiting.discard(call)
                self._running.add(call)
                begin(call)

    def remove(self, call: C) -> bool:
        """A call is not to run. Return whether it was waiting."""
        with self._lock:
            if call not in self._waiting:
                return False
            self._waiting.discard(call)
            if not self._scheduler.cancel(call.queued):
                self._next.remove(call)
                self._scheduler.finished(call.queued, monotonic(), 0.0)
            return True

    def left(self, call: C) -> None:
        """A call needs the device no more. Idempotent."""
        with self._lock:
            if call in self._running:
                self._running.discard(call)
                self._scheduler.finished(call.queued, monotonic())
