"""Executors that change hands: what is to be done so that groups take turns, from what the executors report.

``Leases`` decides. A process serves one group at most, so an executor that is to serve another is told to retire, and what comes
up in its place is leased. All that must outlast whoever does this is in the reports, but for the virtual times of groups.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from kaas_client.ray.reports import REPORT_S, Report
from kaasd.scheduling import DEFAULT_GROUP, Close, Give, Group, Leases

HEARD_S = 5 * REPORT_S
"""For so long what waits, as reported, may be what an executor was given for."""


class Lease(NamedTuple):
    """Tell an executor to serve a group."""

    executor: str
    group: str


class Retire(NamedTuple):
    """Tell an executor to take no more calls, and to end."""

    executor: str


class Landlord:
    """Leases executors to groups."""

    def __init__(self, restart_s: float, virtual_times: Mapping[str, float]) -> None:
        """``virtual_times`` are those that there were last."""
        self._leases = Leases(restart_s)
        self._resumed: Mapping[str, float] | None = virtual_times
        """Virtual times that are still to be taken over."""
        self._processes: dict[str, str] = {}
        """Of the executors that are there."""
        self._leased: dict[str, str] = {}
        """Groups by executor."""
        self._closed: set[str] = set()
        """Executors that were told to retire when they are idle."""
        self._restarting: set[str] = set()
        """Executors that were idle, and were told to retire."""
        self._seen_s: dict[tuple[str, str], float] = {}
        """Device time by process and group."""
        self._shares: dict[str, float] = {}
        """Of groups."""
        self._given_at: dict[str, float] = {}
        """When each got an executor last."""

    def step(self, reports: Mapping[str, Report], groups: Iterable[Group], now: float) -> list[Lease | Retire]:
        """Return what is to be told to executors now. What was not heard is told again at the next step."""
        for group in (Group(DEFAULT_GROUP), *groups):
            self._leases.set_group(group.name, group.share)
            self._shares[group.name] = group.share
        if self._resumed is not None:
            self._resume(self._resumed, reports)
            self._resumed = None
        for name, report in reports.items():
            if self._processes.get(name) != report.process and not report.retiring:
                self._came_up(name, report, now)
        for name in self._processes.keys() - reports.keys():
            self._forget(name)
        self._count(reports, now)
        self._decide(now)
        return self._to_tell(reports)

    def virtual_times(self) -> dict[str, float]:
        """Return what another is to go on with."""
        return self._leases.virtual_times()

    def _resume(self, virtual_times: Mapping[str, float], reports: Mapping[str, Report]) -> None:
        """Go on where another was."""
        known = {group: time for group, time in virtual_times.items() if group in self._shares}
        for group in known:
            self._leases.wants(group, 1)
        for group, virtual_time in known.items():
            self._leases.used(group, virtual_time * self._shares[group])
        self._seen_s = {(report.process, group): used_s for report in reports.values() for group, used_s in report.used_s.items()}

    def _came_up(self, name: str, report: Report, now: float) -> None:
        """An executor is there, or there again in another process."""
        self._processes[name] = report.process
        owner = report.leased_to if report.leased_to in self._shares else None
        if name in self._restarting:
            self._restarting.discard(name)
            self._leases.add_device(name)
        elif name in self._closed:
            self._leases.idle(name, now)  # so another gets it, or who has it keeps it
            self._decide(now, came_up=name)
        else:
            if self._leased.pop(name, None) is not None:
                self._leases.remove_device(name)
            self._leases.add_device(name, owner)
        self._closed.discard(name)

    def _forget(self, name: str) -> None:
        del self._processes[name]
        self._leased.pop(name, None)
        self._closed.discard(name)
        self._restarting.discard(name)
        self._leases.remove_device(name)

    def _count(self, reports: Mapping[str, Report], now: float) -> None:
        """See who wants executors, who has used them, and which are idle."""
        waiting: Counter[str] = Counter()
        seen_s: dict[tuple[str, str], float] = {}
        for name, report in reports.items():
            waiting.update(report.waiting)
            for group, used_s in report.used_s.items():
                key = report.process, group
                seen_s[key] = used_s
                if group in self._shares and (more_s := used_s - self._seen_s.get(key, 0.0)) > 0:
                    self._leases.used(group, more_s)
            if name in self._leased:
                if report.calls:
                    self._leases.busy(name)
                elif name not in self._closed:
                    self._leases.idle(name, now)
        self._seen_s = seen_s
        for group in self._shares:
            if now >= self._given_at.get(group, -math.inf) + HEARD_S:
                self._leases.wants(group, waiting[group])

    def _decide(self, now: float, came_up: str | None = None) -> None:
        """``came_up`` is idle, and in a process that has served nobody."""
        for decision in self._leases.decide(now):
            name = decision.device
            if isinstance(decision, Give):
                self._leased[name] = decision.group
                self._given_at[decision.group] = now
                self._closed.discard(name)
            elif isinstance(decision, Close):
                self._closed.add(name)
            else:
                self._leased.pop(name, None)
                if name == came_up:
                    self._leases.add_device(name)
                    self._decide(now)
                else:
                    self._restarting.add(name)

    def _to_tell(self, reports: Mapping[str, Report]) -> list[Lease | Retire]:
        told: list[Lease | Retire] = []
        for name, report in reports.items():
            if report.retiring:
                continue
            if name in self._closed or name in self._restarting:
                told.append(Retire(name))
            elif (group := self._leased.get(name)) is not None and report.leased_to != group:
                # One that serves another group, as by a lease of before, must start anew first.
                told.append(Lease(name, group) if report.leased_to is None else Retire(name))
        return told
