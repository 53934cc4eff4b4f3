"""The original's counters and timers. Times are in ms."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import numpy as np

timeScale = 1000
"""Of what ``timer`` notes, from s."""

_STATISTICS = ("total", "mean", "min", "max", "std", "p50", "p90", "p99", "events")


class prof:
    """A metric: the sum of its events, and with ``detail`` each of them."""

    def __init__(self, fromDict: dict[str, Any] | None = None, detail: bool = False) -> None:
        """``fromDict`` has ``total``, ``nevent`` and, with ``detail``, ``events`` of another."""
        values = fromDict or {"total": 0.0, "nevent": 0, "events": []}
        self.detail = detail
        self.total: float = values["total"]
        self.nevent: int = values["nevent"]
        if detail:
            self.events: list[float] = values["events"]
            self.currentEvent = 0.0

    def update(self, n: float) -> None:
        """Add to the event under way."""
        self.total += n
        if self.detail:
            self.currentEvent += n

    def increment(self, n: float = 0) -> None:
        """Add to the event under way, and end it."""
        self.update(n)
        self.nevent += 1
        if self.detail:
            self.events.append(self.currentEvent)
            self.currentEvent = 0.0

    def merge(self, new: prof) -> None:
        """Add the events of another."""
        self.total += new.total
        self.nevent += new.nevent
        if self.detail and new.detail:
            self.events += new.events

    def mean(self) -> float:
        """Return the mean of the events. Raises ``RuntimeError`` where there was none."""
        if not self.nevent:
            raise RuntimeError("the metric has no events")
        return self.total / self.nevent

    def report(self, includeEvents: bool = False, metrics: Sequence[str] | None = None) -> dict[str, Any]:
        """Return these statistics, those of them that it has: only total and mean without ``detail``.

        None stands for all. Raises ``RuntimeError`` where there was no event.
        """
        found: dict[str, Any] = {"total": self.total, "mean": self.mean()}
        if self.detail:
            events = np.array(self.events)
            found |= {"min": events.min(), "max": events.max(), "std": events.std()}
            found |= {f"p{percent}": np.quantile(events, percent / 100) for percent in (50, 90, 99)}
            if includeEvents:
                found["events"] = self.events
        return {name: found[name] for name in metrics or _STATISTICS if name in found}


class profCollection(MutableMapping[str, prof]):
    """Metrics by name, each made when it is first asked for, and further collections by name: its modules."""

    def __init__(self, detail: bool = False) -> None:
        self.detail = detail
        self.profs: dict[str, prof] = {}
        self.mods: dict[str, profCollection] = {}

    def __contains__(self, key: object) -> bool:
        return key in self.profs

    def __getitem__(self, key: str) -> prof:
        if key not in self.profs:
            self.profs[key] = prof(detail=self.detail)
        return self.profs[key]

    def __setitem__(self, key: str, value: prof) -> None:
        self.profs[key] = value

    def __delitem__(self, key: str) -> None:
        del self.profs[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.profs)

    def __len__(self) -> int:
        return len(self.profs)

    def __str__(self) -> str:
        return json.dumps(self.report(), indent=4)

    def mod(self, name: str) -> profCollection:
        """Return a module, which is made if it is not there."""
        if name not in self.mods:
            self.mods[name] = profCollection(detail=self.detail)
        return self.mods[name]

    def of_group(self, group: str | None) -> profCollection:
        """Return the module of a group; this, for None."""
        return self if group is None else self.mod("groups").mod(group)

    def getMods(self) -> Iterator[tuple[str, profCollection]]:
        """Yield the modules with their names."""
        yield from self.mods.items()

    def merge(self, new: profCollection, prefix: str = "") -> None:
        """Add the events of another collection, to metrics with ``prefix`` before their names, and those of its modules."""
        for name, value in new.items():
            if prefix + name in self.profs:
                self.profs[prefix + name].merge(value)
            else:
                self.profs[prefix + name] = value
        for name, module in new.mods.items():
            self.mod(name).merge(module)

    def report(self, includeEvents: bool = False, metrics: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the reports of all metrics and modules by name. Raises ``RuntimeError`` for a metric that has no events."""
        reports: dict[str, Any] = {}
        for name, value in self.profs.items():
            try:
                reports[name] = value.report(includeEvents, metrics)
            except RuntimeError as error:
                raise RuntimeError(f"metric {name}: {error}") from error
        return reports | {name: module.report(includeEvents, metrics) for name, module in self.mods.items()}

    def reset(self) -> None:
        """Forget all metrics; modules stay, and are empty."""
        self.profs = {}
        for module in self.mods.values():
            module.reset()


def createProfiler(level: int) -> profCollection:
    """Return an empty collection, with details from level 1 on."""
    return profCollection(detail=level > 0)


@contextmanager
def timer(name: str, timers: profCollection | None, final: bool = True) -> Iterator[None]:
    """Add the time that the block takes to a metric, and end its event if ``final``; nothing where ``timers`` is None."""
    began = perf_counter()
    try:
        yield
    finally:
        if timers is not None:
            metric = timers[name]
            (metric.increment if final else metric.update)((perf_counter() - began) * timeScale)


def reportTimers(times: profCollection | None) -> dict[str, float]:
    """Return the mean of each metric."""
    return {name: value.mean() for name, value in (times or {}).items()}


def printTimers(times: profCollection | None) -> None:
    """Print the mean of each metric."""
    print(json.dumps(reportTimers(times), indent=4))


@contextmanager
def cudaProfile(enable: bool = True) -> Iterator[None]:
    """Have a profiler of CUDA, under which the process runs, record this block. Raises ``OSError`` without the CUDA runtime."""
    if enable:
        cudaProfilerStart()
    try:
        yield
    finally:
        if enable:
            cudaProfilerStop()


def cudaProfilerStart() -> None:
    """Have a profiler record from now on."""
    ctypes.CDLL("libcudart.so").cudaProfilerStart()


def cudaProfilerStop() -> None:
    """Have it record no more."""
    ctypes.CDLL("libcudart.so").cudaProfilerStop()
