"""Each group gets its max-min fair share, given what it has outstanding; in simulated time, with times drawn from fixed seeds."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product

import pytest

from benchmarks.simulation import Caller, Simulation, max_min_shares
from kaasd.scheduling import Group, Policy, Scheduler

TOLERANCE = 0.05
SECONDS = 600.0
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


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
@pytest.mark.parametrize(
    ("shares", "service"),
    [
        ((1.0, 1.0), constant),
        ((1.0, 1.0), uniform),
        ((1.0, 1.0), exponential),
        ((1.0, 4.0), constant),
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


def test_the_case_that_starves_under_the_original_affinity_policy() -> None:
    """Costs 1 and 4 there are shares 4 and 1 here; it serves 5999 requests of one group to 1 of the other."""
    for counts in ((8, 1), (1, 8)):
        outstanding = dict(zip("ab", counts, strict=True))
        got = served({"a": 4.0, "b": 1.0}, outstanding, 1, constant(random.Random(1)), until=6000.0)
        assert got == pytest.approx({"a": 0.8, "b": 0.2}, rel=0.001), outstanding
