"""Simulated time around a scheduler: devices that run what it starts, and callers that keep requests outstanding.

All that happens at one moment is told before the scheduler decides. A run is the same each time, but for what callers draw.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Protocol

from kaasd.scheduling import Datum, Decision, QueuedRequest, Restart, Start


class Scheduling(Protocol):
    """What a simulation needs of ``kaasd.scheduling.Scheduler``, or of what it is compared with."""

    @property
    def wakes_at(self) -> float: ...

    def submit(self, request: QueuedRequest) -> None: ...

    def finished(self, request: QueuedRequest, now: float, device_s: float) -> None: ...

    def dropped(self, device: str, key: Hashable) -> None: ...

    def decide(self, now: float) -> Iterable[Decision]: ...

    def add_device(self, name: str) -> None: ...


@dataclass(slots=True)
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


@dataclass(slots=True)
class InFlight:
    """A request as the simulation knows it."""

    caller: Caller
    service_s: float
    submitted_at: float


@dataclass
class Simulation:
    """A scheduler, and the world around it."""

    scheduler: Scheduling
    capacity: int | None = None
    """Keys for which a device has room; what was used longest ago goes. None: all."""
    restart_s: float = 0.0
    """What a restart of a device takes."""
    on_start: Callable[[Start, InFlight], None] = lambda start, in_flight: None
    now: float = 0.0
    served_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Device time of the requests that have finished, by group."""
    served: Counter[str] = field(default_factory=Counter)
    """Requests that have finished, by group."""
    placements: Counter[str] = field(default_factory=Counter)
    """Requests that have started, by placement."""
    restarts: int = 0
    loading_s: float = 0.0
    """How long devices brought data."""
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)
    _in_flight: dict[QueuedRequest, InFlight] = field(default_factory=dict)
    _resident: dict[str, OrderedDict[Hashable, None]] = field(default_factory=dict)

    def at(self, when: float, event: Callable[[], None]) -> None:
        """Let something happen."""
        heappush(self._events, (when, next(self._numbers), event))

    def add(self, caller: Caller) -> None:
        """Let a caller begin."""
        for _ in range(caller.outstanding):
            self.at(caller.begins, lambda: self._submit(caller))

    def run(self, until: float) -> None:
        """Let time go on."""
        events, scheduler = self._events, self.scheduler
        while True:
            self.now = min(events[0][0] if events else math.inf, max(self.now, scheduler.wakes_at))
            if self.now > until:
                break
            while events and events[0][0] <= self.now:
                heappop(events)[2]()
            for decision in scheduler.decide(self.now):
                if isinstance(decision, Restart):
                    self._restart(decision.device)
                else:
                    self._start(decision)
        self.now = until

    def _submit(self, caller: Caller) -> None:
        if self.now >= caller.ends:
            return
        request = QueuedRequest(None, caller.group, caller.function, caller.data(), caller.expected_s)
        self._in_flight[request] = InFlight(caller, caller.service_s(), self.now)
        self.scheduler.submit(request)

    def _start(self, start: Start) -> None:
        request = start.request
        in_flight = self._in_flight[request]
        self.on_start(start, in_flight)
        self.placements[start.placement.value] += 1
        load_s = self._bring(start.device, request.data) if request.data else 0.0
        self.loading_s += load_s
        self.at(self.now + load_s + in_flight.service_s, lambda: self._finish(request))

    def _restart(self, device: str) -> None:
        self.restarts += 1
        self._resident.pop(device, None)
        self.at(self.now + self.restart_s, lambda: self.scheduler.add_device(device))

    def _bring(self, device: str, data: Sequence[Datum]) -> float:
        """Bring data to a device, and return how long that takes."""
        resident = self._resident.setdefault(device, OrderedDict())
        load_s = 0.0
        for key, key_load_s, _ in data:
            if key in resident:
                resident.move_to_end(key)
            else:
                resident[key] = None
                load_s += key_load_s
        while self.capacity is not None and len(resident) > self.capacity:
            gone, _ = resident.popitem(last=False)
            self.scheduler.dropped(device, gone)
        return load_s

    def _finish(self, request: QueuedRequest) -> None:
        in_flight = self._in_flight.pop(request)
        caller = in_flight.caller
        self.served_s[caller.group] += in_flight.service_s
        self.served[caller.group] += 1
        self.scheduler.finished(request, self.now, in_flight.service_s)
        if caller.think_s:
            self.at(self.now + caller.think_s, lambda: self._submit(caller))
        else:
            self._submit(caller)


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


def jain_index(values: Iterable[float]) -> float:
    """Return Jain's index of fairness: 1 where all are equal, 1/n where one has everything."""
    values = list(values)
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))
