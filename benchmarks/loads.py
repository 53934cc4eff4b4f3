"""Callers of groups that share devices: what they are to do, and what they saw."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.crew import Crew
from kaas.v1.executor_pb2 import InvokeRequest
from kaas_client import Client, Request

MODULE = "benchmarks.alternatives.group_caller"


@dataclass(frozen=True)
class Load:
    """Callers of one function for one group, that call without a pause unless they are told otherwise."""

    message: InvokeRequest
    expected: Mapping[str, bytes]
    """What comes back, by buffer. A caller ends in an error where it is anything else."""
    connections: int = 1
    outstanding: int = 1
    """Requests in flight on each connection."""
    pause_s: float = 0.0
    """Between an answer and the next request, on average."""
    connection: str = ""
    """Loads in one process that name the same share their connections. Default: the function's and the group's name."""

    def order(self, address: str) -> dict[str, Any]:
        """Return it for a process of ``MODULE``."""
        return {
            "address": address,
            "message": base64.b64encode(self.message.SerializeToString()).decode(),
            "expected": {name: base64.b64encode(value).decode() for name, value in self.expected.items()},
            "connections": self.connections,
            "outstanding": self.outstanding,
            "pause_s": self.pause_s,
            "connection": self.connection or f"{self.message.function} {self.message.group}",
        }


@dataclass(frozen=True)
class Seen:
    """What the callers of one load saw; times of the machine's monotonic clock, in seconds, in the order of the answers."""

    begun: Sequence[float]
    answered: Sequence[float]
    placements: Counter[str] = field(default_factory=Counter)
    devices: Counter[str] = field(default_factory=Counter)
    brought: Counter[str] = field(default_factory=Counter)
    """Copies to a device, by buffer, of requests that were traced."""

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> Seen:
        """Return what a process of ``MODULE`` reports of a load."""
        return cls(
            report["begun"],
            report["answered"],
            Counter(report["placements"]),
            Counter(report["devices"]),
            Counter(report["brought"]),
        )

    @property
    def latencies(self) -> list[float]:
        """How long each answer took, in seconds."""
        return [answered - begun for begun, answered in zip(self.begun, self.answered, strict=True)]

    def rate(self, margin: float = 0.1) -> float:
        """Return answers a second, between the first and the last answer but for ``margin`` of that time at either end.

        So neither the start nor the end counts, when others have not begun yet or have ended. 0 where there are too few.
        """
        return rate_of(self.answered, margin)


def rate_of(times: Sequence[float], margin: float = 0.1) -> float:
    """Return events a second, between the first and the last of them within the middle part of their time."""
    if len(times) < 2:
        return 0.0
    begin, end = min(times), max(times)
    cut = (end - begin) * margin
    kept = [when for when in times if begin + cut <= when <= end - cut]
    if len(kept) < 2 or kept[-1] == kept[0]:
        return 0.0
    return (len(kept) - 1) / (max(kept) - min(kept))


def part_got(mine: Sequence[float], others: Sequence[float]) -> float:
    """Return which part of all answers, given at these times, were mine while I had requests.

    Counted is from my first answer to my last, so that a turn of mine that is long in coming, and would be cut in two by a
    clock, counts as a whole. NaN where I have fewer than two.
    """
    if len(mine) < 2:
        return float("nan")
    first, last = min(mine), max(mine)
    between = sum(first < when <= last for when in others)
    return (len(mine) - 1) / (len(mine) - 1 + between)


class LoadCrew:
    """``size`` processes of callers, and the server that they call."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew

    def run(self, address: str, loads: Sequence[Load], seconds: float, *, one_process: bool = False) -> list[Seen]:
        """Let all call for so long; return what each saw. They are dealt out to the processes, or all are in one."""
        size = 1 if one_process else self._crew.size
        shares = [share for number in range(size) if (share := loads[number::size])]
        orders = [{"loads": [load.order(address) for load in share], "seconds": seconds} for share in shares]
        reports = self._crew.run(orders)
        seen: list[Seen | None] = [None] * len(loads)
        for number, report in enumerate(reports):
            for place, answers in enumerate(report["loads"]):
                seen[number + place * size] = Seen.of(answers)
        return [each for each in seen if each is not None]


def calibrate(kaas: Client, name: str, request: Callable[[int], Request], seconds: float) -> int:
    """Register a request of so many iterations that it takes at least ``seconds`` on this device; return how many."""
    iterations = 1
    while True:
        kaas.register(name, request(iterations))
        kaas.invoke(name)
        run_s = min(kaas.invoke(name).timing.run_ns for _ in range(5)) / 1e9
        if run_s >= seconds:
            return iterations
        iterations = max(iterations + 1, int(iterations * min(16.0, 1.05 * seconds / run_s)))


def p99(samples: Iterable[float]) -> float:
    """Return the 99th percentile."""
    return float(np.percentile(list(samples), 99))
