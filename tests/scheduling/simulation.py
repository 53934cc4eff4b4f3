"""Simulated time around a ``Scheduler``: devices that run what it starts, and callers that keep requests outstanding."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

from kaasd.scheduling import Datum, QueuedRequest, Scheduler, Start


@dataclass
class Caller:
    """Keeps ``outstanding`` requests of one group in flight from ``begins`` until ``ends``."""

    group: str
    outstanding: int
    service_s: Callable[[], float]
    """Draws the device time of the next request."""
    data: Callable[[], Sequence[Datum]] = tuple
    """Draws what the next request needs."""
    begins: float = 0.0
    ends: float = math.inf
    think_s: float = 0.0
    """Between an answer and the next request."""
    function: Hashable = None
    expected_s: float | None = None
    device: str | None = None


@dataclass
class Simulation:
    """A scheduler and what is around it. All that happens at one moment is told before the scheduler decides."""

    scheduler: Scheduler
    now: float = 0.0
    served_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Device time by group, that of running requests up to now apart."""
    served: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    waits: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    placements: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    running: dict[QueuedRequest, tuple[float, str]] = field(default_factory=dict)
    """When each began, and where."""
    on_start: Callable[[Start], None] = lambda start: None
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)
    _service: dict[QueuedRequest, tuple[float, float, Caller]] = field(default_factory=dict)
    _resident: dict[str, set[Hashable]] = field(default_factory=lambda: defaultdict(set))

    def at(self, when: float, event: Callable[[], None]) -> None:
        heappush(self._events, (when, next(self._numbers), event))

    def add(self, caller: Caller) -> None:
        for _ in range(caller.outstanding):
            self.at(caller.begins, lambda: self.submit(caller))

    def submit(self, caller: Caller) -> None:
        if self.now >= caller.ends:
            return
        request = QueuedRequest(
            next(self._numbers),
            caller.group,
            caller.function,
            caller.data(),
            caller.expected_s,
            device=caller.device,
        )
        self._service[request] = (caller.service_s(), self.now, caller)
        self.scheduler.submit(request)

    def run(self, until: float) -> None:
        """Let time go on."""
        while (self._events and self._events[0][0] <= until) or self.scheduler.wakes_at <= until:
            self.now = min(self._events[0][0] if self._events else math.inf, max(self.now, self.scheduler.wakes_at))
            while self._events and self._events[0][0] <= self.now:
                heappop(self._events)[2]()
            for decision in self.scheduler.decide(self.now):
                assert isinstance(decision, Start)
                self._start(decision)
        self.now = until

    def _start(self, start: Start) -> None:
        request, device = start.request, start.device
        self.on_start(start)
        service_s, submitted, _ = self._service[request]
        self.waits[request.group].append(self.now - submitted)
        self.placements[start.placement.value] += 1
        there = self._resident[device]
        load_s = sum(datum.load_s for datum in request.data if datum.key not in there)
        there.update(datum.key for datum in request.data)
        self.running[request] = (self.now, device)
        self.at(self.now + load_s + service_s, lambda: self._finish(request))

    def _finish(self, request: QueuedRequest) -> None:
        if request not in self.running:
            return  # its device was lost
        del self.running[request]
        service_s, _, caller = self._service.pop(request)
        self.served_s[request.group] += service_s
        self.served[request.group] += 1
        self.scheduler.finished(request, self.now, service_s)
        if caller.think_s:
            self.at(self.now + caller.think_s, lambda: self.submit(caller))
        else:
            self.submit(caller)


def max_min_shares(capacity: float, shares: Mapping[str, float], most: Mapping[str, float]) -> dict[str, float]:
    """Return what each group gets of ``capacity`` by max-min fairness: in proportion to its share, and at most its ``most``."""
    given: dict[str, float] = {}
    left = dict(shares)
    while left:
        per_share = (capacity - sum(given.values())) / sum(left.values())
        capped = {group for group, share in left.items() if most[group] <= per_share * share}
        for group in capped or set(left):
            given[group] = most[group] if capped else per_share * left[group]
            del left[group]
    return given
