"""The scheduler at the size of a cluster, in simulated time: how fast it decides, how fair it is, and whether data are met where
they lie. No device is used: requests take the times in the tables below.
"""

from __future__ import annotations

import math
import random
import timeit
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import thread_time
from typing import NamedTuple

from benchmarks.bench import Bench
from benchmarks.report import Row, Target
from benchmarks.simulation import Caller, Scheduling, Simulation, jain_index
from benchmarks.turns import Figure
from kaasd.scheduling import Datum, Decision, Group, Placement, Policy, QueuedRequest, Scheduler, Start


class Kind(NamedTuple):
    """Requests that take about the same time."""

    name: str
    device_s: float
    part: float
    """Of the groups."""


KINDS = (
    Kind("dot product, 2 kernels", 222e-6, 0.01),
    Kind("90 small kernels", 161e-6, 0.01),
    Kind("800 small kernels", 909e-6, 0.15),
    Kind("Jacobi, 3000 launches", 10.23e-3, 0.83),
)
"""Medians on an H100, from docs/performance.md: what the server sees of a request. Most groups have long requests; three of
four requests are of the others."""
LIBRARY_S = 11.0e-3
"""What a new cubin adds to a first request: 11.9 ms there, beside 0.86."""
LIBRARIES = 50
CONSTANTS_S = (16 * 2**20 / 29.2e9, 64 * 2**20 / 41.2e9, 256 * 2**20 / 49.5e9)
"""Constants of 16, 64 and 256 MiB, from the store to the GPU, from the same table. Each group has its own."""
OUTSTANDING = (1, 2, 4, 8)
"""Requests that groups keep in flight."""
ROOM = 16
"""Constants and libraries for which a device has room."""
BLOCK = 10_000
"""Decisions that are timed together."""

DECISIONS_A_SECOND = 30_000
DECISION_S = 30e-6
JAIN = 0.99


def scheduling_rows(bench: Bench) -> Iterator[Row]:
    """Simulate a cluster, and a single machine with long queues."""
    gpus, groups = bench.pick((1000, 10_000), (100, 1000))
    warm_s, measured_s = bench.pick((0.3, 0.8), (0.3, 0.5))
    names = [f"g{number}" for number in range(groups)]
    scheduler = TimedScheduler(cluster(Policy.AFFINITY, names, gpus))
    ours = simulate(scheduler, names, warm_s, measured_s)
    size = f"{gpus:,} GPUs and {groups:,} groups"
    rate = Figure.of([1 / each for each in scheduler.blocks])
    yield Row(
        "scheduling",
        f"decisions a second, {size}",
        "/s",
        rate,
        targets=[Target(f"{DECISIONS_A_SECOND:,} /s", rate.scaled(1 / DECISIONS_A_SECOND), at_least=1)],
        notes={"decisions": len(scheduler.blocks) * BLOCK, "a decision": "its submit and its end too"},
    )
    yield one_machine(bench)
    balance = simulate(cluster(Policy.BALANCE, names, gpus), names, warm_s, measured_s)
    fifo = simulate(FirstComeFirstServed(gpus), names, warm_s, measured_s)
    jain = Figure.of([ours.jain])
    yield Row(
        "scheduling",
        f"Jain's index of device times, {size}, all busy",
        "",
        jain,
        {"balance": Figure.of([balance.jain]), "first come, first served": Figure.of([fifo.jain])},
        [Target("1", jain, at_least=JAIN)],
    )
    yield Row(
        "scheduling",
        f"requests served where their data are, {size}",
        "%",
        Figure.of([100 * ours.resident]),
        {"balance": Figure.of([100 * balance.resident]), "first come, first served": Figure.of([100 * fifo.resident])},
    )
    yield Row(
        "scheduling",
        f"device time that is not spent on bringing data, {size}",
        "%",
        Figure.of([100 * ours.useful]),
        {"balance": Figure.of([100 * balance.useful]), "first come, first served": Figure.of([100 * fifo.useful])},
    )


def one_machine(bench: Bench) -> Row:
    """Measure a decision with 10,000 requests of 1,000 groups queued, on 8 devices."""
    names = [f"g{number}" for number in range(1000)]
    scheduler = TimedScheduler(cluster(Policy.AFFINITY, names, 8))
    simulation = Simulation(scheduler)
    for caller in callers(names, [10]):
        simulation.add(caller)
    until = 0.0
    while len(scheduler.blocks) < bench.pick(10, 5):
        simulation.run(until := until + 0.5)
    taken = Figure.of(scheduler.blocks)
    return Row(
        "scheduling",
        "a decision, 8 GPUs, 1,000 groups, 10,000 requests queued",
        "µs",
        taken.scaled(1e6),
        targets=[Target(f"{DECISION_S * 1e6:g} µs", taken.scaled(1 / DECISION_S), at_most=1)],
    )


def cluster(policy: Policy, groups: Iterable[str], gpus: int) -> Scheduler:
    """Return a scheduler of groups with equal shares."""
    scheduler = Scheduler([Group(name) for name in groups], policy)
    for number in range(gpus):
        scheduler.add_device(f"gpu{number}")
    return scheduler


def callers(groups: Sequence[str], outstanding: Sequence[int] = OUTSTANDING) -> Iterator[Caller]:
    """Yield a caller for each group: its kind, constants and requests in flight are drawn, always the same."""
    draw = random.Random(11)
    for number, group in enumerate(groups):
        kind = draw.choices(KINDS, [kind.part for kind in KINDS])[0]
        constants = Datum(("constants", number), draw.choice(CONSTANTS_S))
        data = (constants, Datum(("library", number % LIBRARIES), LIBRARY_S))

        yield Caller(group, draw.choice(outstanding), partial(around, kind.device_s, draw), partial(tuple, data), function=number)


def around(median: float, draw: random.Random) -> float:
    """Draw a time near its median."""
    return median * draw.uniform(0.9, 1.1)


@dataclass(frozen=True)
class Outcome:
    """What a simulation came to, its beginning apart."""

    jain: float
    """Of the groups' device times."""
    resident: float
    """Part of the requests whose data were where they ran."""
    useful: float
    """Part of the time in which devices were held that was not spent on bringing data."""


def simulate(scheduler: Scheduling, groups: Sequence[str], warm_s: float, measured_s: float) -> Outcome:
    """Let all groups be busy, from empty devices on."""
    simulation = Simulation(scheduler, capacity=ROOM)
    for caller in callers(groups):
        simulation.add(caller)
    simulation.run(warm_s)
    before, placed, loading_s = dict(simulation.served_s), simulation.placements.copy(), simulation.loading_s
    simulation.run(warm_s + measured_s)
    times = [simulation.served_s[group] - before.get(group, 0.0) for group in groups]
    placed = simulation.placements - placed
    brought_s = simulation.loading_s - loading_s
    resident = placed[Placement.RESIDENT.value] / placed.total()
    return Outcome(jain_index(times), resident, sum(times) / (sum(times) + brought_s))


def clock_s() -> float:
    """Return what reading the clock takes: it costs a fiftieth of a decision."""
    return min(timeit.repeat(thread_time, repeat=20, number=1000)) / 1000


@dataclass
class TimedScheduler:
    """Times what a scheduler does for a request: its submit, its decision, its end; in CPU time, without what the clock takes."""

    scheduler: Scheduler
    blocks: list[float] = field(default_factory=list)
    """Seconds a decision, of ``BLOCK`` of them each."""
    _clock_s: float = field(default_factory=clock_s)
    _spent_s: float = 0.0
    _decisions: int = 0

    @property
    def wakes_at(self) -> float:
        """When it is to decide though nothing has happened."""
        return self.scheduler.wakes_at

    def submit(self, request: QueuedRequest) -> None:
        """Take a request."""
        begin = thread_time()
        self.scheduler.submit(request)
        self._spent_s += thread_time() - begin - self._clock_s

    def finished(self, request: QueuedRequest, now: float, device_s: float) -> None:
        """A request is done."""
        begin = thread_time()
        self.scheduler.finished(request, now, device_s)
        self._spent_s += thread_time() - begin - self._clock_s

    def dropped(self, device: str, key: Hashable) -> None:
        """Data are no longer on a device."""
        begin = thread_time()
        self.scheduler.dropped(device, key)
        self._spent_s += thread_time() - begin - self._clock_s

    def add_device(self, name: str) -> None:
        """A device is there again."""
        self.scheduler.add_device(name)

    def decide(self, now: float) -> Sequence[Decision]:
        """Return what is to be done."""
        begin = thread_time()
        decisions = self.scheduler.decide(now)
        self._spent_s += thread_time() - begin - self._clock_s
        self._decisions += len(decisions)
        if self._decisions >= BLOCK:
            self.blocks.append(self._spent_s / self._decisions)
            self._spent_s, self._decisions = 0.0, 0
        return decisions


class FirstComeFirstServed:
    """One queue for all, the next free device for each: what is compared with."""

    wakes_at = math.inf

    def __init__(self, gpus: int) -> None:
        self._free: deque[str] = deque()
        self._queue: deque[QueuedRequest] = deque()
        self._running: dict[QueuedRequest, str] = {}
        self._resident: dict[str, set[Hashable]] = {}
        for number in range(gpus):
            self.add_device(f"gpu{number}")

    def submit(self, request: QueuedRequest) -> None:
        """Take a request."""
        self._queue.append(request)

    def finished(self, request: QueuedRequest, now: float, device_s: float) -> None:
        """A request is done."""
        self._free.append(self._running.pop(request))

    def dropped(self, device: str, key: Hashable) -> None:
        """Data are no longer on a device."""
        self._resident[device].discard(key)

    def add_device(self, name: str) -> None:
        """A device is there."""
        self._free.append(name)
        self._resident[name] = set()

    def decide(self, now: float) -> list[Decision]:
        """Return what is to be done."""
        decisions: list[Decision] = []
        while self._free and self._queue:
            request, device = self._queue.popleft(), self._free.popleft()
            self._running[request] = device
            keys = {datum.key for datum in request.data}
            placement = Placement.RESIDENT if keys <= self._resident[device] else Placement.LOADED
            self._resident[device] |= keys
            decisions.append(Start(request, device, placement))
        return decisions
