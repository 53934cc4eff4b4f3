"""How long groups wait under a scheduler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

from kaasd.scheduling import Decision, QueuedRequest, Scheduler, Start


class Watched:
    """A scheduler, and how long its groups wait: for each start, since the one before, or since there was something to start."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.now = 0.0
        self.longest = 0.0
        self.waiting: Counter[str] = Counter()
        self.since: dict[str, float] = {}

    @property
    def wakes_at(self) -> float:
        return self.scheduler.wakes_at

    def submit(self, request: QueuedRequest) -> None:
        self.waiting[request.group] += 1
        self.scheduler.submit(request)

    def finished(self, request: QueuedRequest, now: float, device_s: float) -> None:
        self.scheduler.finished(request, now)

    def dropped(self, device: str, key: Hashable) -> None:
        self.scheduler.dropped(device, key)

    def add_device(self, name: str) -> None:
        self.scheduler.add_device(name)

    def decide(self, now: float) -> list[Decision]:
        for group, waiting in self.waiting.items():
            if waiting:
                self.since.setdefault(group, now)
        decisions = self.scheduler.decide(now)
        for decision in decisions:
            if not isinstance(decision, Start):
                continue
            group = decision.request.group
            self.longest = max(self.longest, now - self.since[group])
            self.since[group] = now
            self.waiting[group] -= 1
            if not self.waiting[group]:
                del self.since[group]
        return decisions
