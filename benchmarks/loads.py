"""Callers of groups that share devices: what they are to do, and what they saw."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.crew import Crew
from benchmarks.turns import Contender
from kaas.v1.executor_pb2 import InvokeRequest
from kaas_client import Client, Request

MODULE = "benchmarks.alternatives.group_caller"

Answers = Sequence[tuple[float, float]]
"""When each was given, and the device time that it took, in seconds."""


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
    ran_s: Sequence[float]
    """Device time of each, as the server says."""
    since: float
    until: float
    """Between these times all loads were calling."""
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
            report["ran_s"],
            report["since"],
            report["until"],
            Counter(report["placements"]),
            Counter(report["devices"]),
            Counter(report["brought"]),
        )

    @property
    def latencies(self) -> list[float]:
        """How long each answer took, in seconds."""
        return [answered - begun for begun, answered in zip(self.begun, self.answered, strict=True)]

    @property
    def while_all_called(self) -> Answers:
        """The answers, but for the beginning, and for those that came after all had stopped calling."""
        pairs = zip(self.answered, self.ran_s, strict=True)
        return [(when, run_s) for when, run_s in pairs if self.since <= when <= self.until]

    @property
    def rate(self) -> float:
        """Answers a second meanwhile; 0 where there are fewer than two."""
        times = [when for when, _ in self.while_all_called]
        return (len(times) - 1) / (max(times) - min(times)) if len(times) > 1 else 0.0


def part_got(mine: Answers, others: Answers) -> float:
    """Return which part of the device time of all answers was mine.

    Counted is from my first answer to my last: a turn of mine that is long in coming would be cut in two by a clock. The last one
    itself is not counted, since what it costs me comes after it. NaN where there are fewer than two.
    """
    if len(mine) < 2:
        return float("nan")
    *paid, (last, _) = sorted(mine)
    first = paid[0][0]
    own_s = sum(run_s for _, run_s in paid)
    return own_s / (own_s + sum(run_s for when, run_s in others if first < when <= last))


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


class Contest:
    """What callers saw in each contender's turns."""

    def __init__(self, crew: LoadCrew, seconds: float) -> None:
        self._crew = crew
        self._seconds = seconds
        self.seen: dict[str, list[list[Seen]]] = {}

    def contender(
        self, name: str, address: str, loads: Sequence[Load], seconds: float | None = None, *, one_process: bool = False
    ) -> Contender:
        """Return what lets these call at the same time, and measures the first one's latencies in seconds."""
        rounds = self.seen.setdefault(name, [])
        self._crew.run(address, loads, 0.1, one_process=one_process)

        def measure() -> list[float]:
            seen = self._crew.run(address, loads, seconds or self._seconds, one_process=one_process)
            rounds.append(seen)
            return seen[0].latencies

        return measure

    def latencies(self, name: str, loads: slice = slice(0, 1)) -> list[float]:
        """Return those of some loads of a contender in all rounds; by default of its first one."""
        return [latency for seen in self.seen[name] for load in seen[loads] for latency in load.latencies]

    def rates(self, name: str, loads: slice) -> list[list[float]]:
        """Return the answers a second of some loads of a contender together, a list of one each round."""
        return [[sum(load.rate for load in seen[loads])] for seen in self.seen[name]]


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
