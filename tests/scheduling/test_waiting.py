"""No group waits longer for its next start than the bound of docs/scheduling.md; priority is an advance, and no more."""

from __future__ import annotations

import random
from functools import partial

import pytest

from benchmarks.simulation import Caller, Simulation
from kaasd.scheduling import Datum, Group, Policy, QueuedRequest, Scheduler, Start
from kaasd.scheduling.placement import FULL_COST
from tests.scheduling.watched import Watched


@pytest.mark.parametrize("policy", [Policy.BALANCE, Policy.AFFINITY])
@pytest.mark.parametrize("seed", range(8))
def test_no_group_waits_longer_than_the_bound(seed: int, policy: Policy) -> None:
    draw = random.Random(seed)
    devices = draw.choice([1, 2, 3])
    slots = draw.choice([1, 1, 2])
    names = [f"g{number}" for number in range(draw.choice([3, 6, 12]))]
    groups = [Group(name, draw.choice([0.5, 1.0, 4.0]), draw.choice([0, 0, 1, -1])) for name in names]
    watched = Watched(Scheduler(groups, policy))
    for number in range(devices):
        watched.scheduler.add_device(f"d{number}", slots)
    simulation = Simulation(watched, capacity=draw.choice([3, 100]))
    longest_s = loading_s = 0.0
    for number, group in enumerate(groups):
        service_s = draw.choice([0.001, 0.01, 0.1])
        data = [Datum(number, draw.choice([0.0, 0.01, 0.05])), Datum(f"library {number % 3}", draw.choice([0.0, 0.02]))]
        bring_s = sum(datum.load_s for datum in data)
        longest_s, loading_s = max(longest_s, 1.5 * service_s + bring_s), max(loading_s, bring_s)
        times = partial(draw.uniform, 0.5 * service_s, 1.5 * service_s)
        think_s = draw.choice([0.0, 0.0, 0.03])
        simulation.add(Caller(group.name, draw.choice([1, 2, 8]), times, partial(tuple, data), think_s=think_s, function=number))
    simulation.run(8.0)
    shares = [group.share for group in groups]
    advances = [group.advance_s for group in groups]
    turn = sum(shares) * ((longest_s + 2 * loading_s * FULL_COST) / min(shares) + max(advances) - min(advances))
    bound = (turn + 3 * len(groups) * longest_s) / (devices * slots) + 3 * longest_s + loading_s * FULL_COST
    assert watched.longest <= bound


def test_a_group_of_higher_priority_goes_first_when_it_comes() -> None:
    scheduler = Scheduler([Group("a"), Group("b", priority=1)])
    scheduler.add_device("d0")
    for number in range(4):
        scheduler.submit(QueuedRequest(f"a{number}", "a", expected_s=0.05))
    order = []
    for step in range(6):
        (start,) = scheduler.decide(step / 20)
        assert isinstance(start, Start)
        order.append(start.request.id)
        scheduler.finished(start.request, (step + 1) / 20)
        if step == 0:
            for number in range(2):
                scheduler.submit(QueuedRequest(f"b{number}", "b", expected_s=0.05))
    assert order == ["a0", "b0", "b1", "a1", "a2", "a3"]


@pytest.mark.parametrize("priority", [1, 10, 1000, -10])
def test_priority_does_not_change_what_a_group_gets_in_the_long_run(priority: int) -> None:
    scheduler = Scheduler([Group("a"), Group("b", priority=priority)])
    scheduler.add_device("d0")
    simulation = Simulation(scheduler)
    for group in ("a", "b"):
        simulation.add(Caller(group, 8, lambda: 0.1))
    simulation.run(200.0)
    ahead_s = simulation.served_s["b"] - simulation.served_s["a"]
    assert abs(ahead_s) <= 1.0 + 0.3, "ten steps of 0.1 s, and what is running"
    assert ahead_s * priority >= 0


def test_who_comes_late_is_owed_nothing_and_waits_for_nobody() -> None:
    """One group has been alone for 1000 s when the other comes."""
    scheduler = Scheduler([Group("a"), Group("b")])
    scheduler.add_device("d0")
    simulation = Simulation(scheduler)
    simulation.add(Caller("a", 8, lambda: 1.0))
    simulation.add(Caller("b", 8, lambda: 1.0, begins=1000.0))
    simulation.run(1000.0)
    assert simulation.served == {"a": 1000}
    simulation.run(1020.0)
    assert simulation.served["a"] - 1000 == pytest.approx(10, abs=1)
    assert simulation.served["b"] == pytest.approx(10, abs=1)


def test_pauses_earn_nothing() -> None:
    """A group that comes for one second of ten has half of the device in that second, and then the 8 requests that it left."""
    scheduler = Scheduler([Group("a"), Group("b")])
    scheduler.add_device("d0")
    simulation = Simulation(scheduler)
    simulation.add(Caller("a", 8, lambda: 0.01))
    for begin in range(0, 100, 10):
        simulation.add(Caller("b", 8, lambda: 0.01, begins=float(begin), ends=begin + 1.0))
    simulation.run(100.0)
    assert simulation.served_s["b"] == pytest.approx(10 * (0.5 + 8 * 0.01), rel=0.02)
