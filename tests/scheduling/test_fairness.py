"""Each group gets its max-min fair share, given what it has outstanding; in simulated time, with times drawn from fixed seeds."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from itertools import product

import pytest

from benchmarks.simulation import Caller, Simulation, max_min_shares
from kaasd.scheduling import Datum, Group, Policy, Scheduler

TOLERANCE = 0.05
SECONDS = 400.0
REQUESTS = 2
"""By which a count may be off, where a small share leaves a handful of requests."""


def constant(rng: random.Random) -> Callable[[], float]:
    return lambda: 1.0


def uniform(rng: random.Random) -> Callable[[], float]:
    return lambda: rng.uniform(0.1, 1.9)


def exponential(rng: random.Random) -> Callable[[], float]:
    return lambda: rng.expovariate(1.0)


def served(
    shares: dict[str, float],
    outstanding: dict[str, int],
    devices: int,
    service_s: Callable[[], float],
    *,
    until: float = SECONDS,
    policy: Policy = Policy.AFFINITY,
) -> dict[str, float]:
    """Return the device time a second that each group got."""
    scheduler = Scheduler([Group(name, share) for name, share in shares.items()], policy)
    for device in range(devices):
        scheduler.add_device(f"d{device}")
    simulation = Simulation(scheduler)
    for group in shares:
        simulation.add(Caller(group, outstanding[group], service_s))
    simulation.run(until)
    return {group: simulation.served_s[group] / until for group in shares}


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("shares", "service"),
    [
        ((1.0, 1.0), constant),
        ((1.0, 1.0), exponential),
        ((1.0, 4.0), uniform),
        ((1.0, 4.0), exponential),
        ((1.0, 100.0), constant),  # too few requests for the mean of another distribution
    ],
)
def test_two_groups(shares: tuple[float, float], devices: int, service: Callable[[random.Random], Callable[[], float]]) -> None:
    given = dict(zip("ab", shares, strict=True))
    for counts in product((1, 2, 8), repeat=2):
        outstanding = dict(zip("ab", counts, strict=True))
        fair = max_min_shares(devices, given, outstanding)
        got = served(given, outstanding, devices, service(random.Random(1)))
        assert got == pytest.approx(fair, rel=TOLERANCE, abs=REQUESTS / SECONDS), outstanding


@pytest.mark.parametrize("policy", [Policy.BALANCE, Policy.AFFINITY])
@pytest.mark.parametrize("devices", [1, 3, 5, 8])
def test_groups_that_have_1_2_or_8_requests_outstanding(devices: int, policy: Policy) -> None:
    shares = {"a": 1.0, "b": 1.0, "c": 2.0, "d": 2.0, "e": 1.0, "f": 4.0}
    outstanding = {"a": 1, "b": 8, "c": 2, "d": 8, "e": 2, "f": 1}
    fair = max_min_shares(devices, shares, outstanding)
    got = served(shares, outstanding, devices, uniform(random.Random(2)), policy=policy)
    assert got == pytest.approx(fair, rel=TOLERANCE)


@pytest.mark.parametrize("outstanding", [1, 2, 8])
@pytest.mark.parametrize("devices", [2, 5])
def test_groups_whose_requests_and_data_differ(devices: int, outstanding: int) -> None:
    """Requests of 0.2, 1 and 10 ms, whose data are brought in 5 ms: three groups a device."""
    draw = random.Random(3)
    names = [f"g{number}" for number in range(3 * devices)]
    scheduler = Scheduler([Group(name) for name in names])
    for device in range(devices):
        scheduler.add_device(f"d{device}")
    simulation = Simulation(scheduler)
    for number, name in enumerate(names):
        service_s = (0.0002, 0.001, 0.01)[number % 3]
        times = partial(draw.uniform, 0.5 * service_s, 1.5 * service_s)
        simulation.add(Caller(name, outstanding, times, partial(tuple, [Datum(name, 0.005)]), function=name))
    simulation.run(3.0)
    total = sum(simulation.served_s.values())
    assert {name: simulation.served_s[name] / total for name in names} == pytest.approx(
        dict.fromkeys(names, 1 / len(names)), rel=TOLERANCE
    )
    assert simulation.placements["resident"] > 0.99 * simulation.placements.total()


def test_slots_are_shared_as_devices_are() -> None:
    scheduler = Scheduler([Group("a"), Group("b", 3.0)])
    for device in range(2):
        scheduler.add_device(f"d{device}", slots=4)
    simulation = Simulation(scheduler)
    for group in ("a", "b"):
        simulation.add(Caller(group, 8, uniform(random.Random(4))))
    simulation.run(SECONDS)
    assert simulation.served_s["a"] / SECONDS == pytest.approx(2.0, rel=TOLERANCE)
    assert simulation.served_s["b"] / SECONDS == pytest.approx(6.0, rel=TOLERANCE)


def test_the_case_that_starves_under_the_original_affinity_policy() -> None:
    """Costs 1 and 4 there are shares 4 and 1 here; it serves 5999 requests of one group to 1 of the other."""
    for counts in ((8, 1), (1, 8)):
        outstanding = dict(zip("ab", counts, strict=True))
        got = served({"a": 4.0, "b": 1.0}, outstanding, 1, constant(random.Random(1)), until=6000.0)
        assert got == pytest.approx({"a": 0.8, "b": 0.2}, rel=0.001), outstanding
