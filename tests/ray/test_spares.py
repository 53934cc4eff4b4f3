"""Spare executors: they take what comes while the one beside which they are starts anew."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ray

import kaas_client.ray as kaas_ray
from kaas_client.ray import pool, reports, spares, table
from kaas_client.ray.cluster import ExecutorRef
from kaas_client.ray.placement import Placer
from kaas_client.ray.session import Session
from tests.ray.conftest import wait_until
from tests.ray.support import dot_request, pid_of, product_request, vectors
from tests.ray.test_placement import Handle, Seen

pytestmark = pytest.mark.timeout(300)
WAIT_S = 240
EXECUTORS = ("emulator:0", "emulator:1")
ALIVE, RESTARTING = 2, 3


def spare_of(executor: str) -> Any:
    """Return the actor of an executor's spare; None where there is none, or the executor has not come up yet."""
    report = reports.read([executor]).get(executor)
    return None if report is None else table.actor(spares.name_of(executor, report))


@pytest.fixture
def with_spares(cluster: None) -> Iterator[None]:
    kaas_ray.init("emulator", executors=2, spares=True)
    wait_until(lambda: None not in map(spare_of, EXECUTORS), WAIT_S)
    ray.get([spare_of(name).device.remote() for name in EXECUTORS], timeout=WAIT_S)
    yield
    kaas_ray.init("emulator", executors=2)
    wait_until(lambda: not spares.names(), WAIT_S)


def test_a_killed_executors_calls_are_right_whoever_runs_them(with_spares: None) -> None:
    assert kaas_ray.executors() == list(EXECUTORS), "spares are no executors"
    dot = kaas_ray.remote(dot_request()).options(executor="emulator:0")
    a, b = vectors(1)
    expected = np.sum(a * b, dtype=np.uint32)
    assert ray.get(dot.remote(a=a, b=b), timeout=WAIT_S) == expected
    executor = Session.current().executors[0]
    before = pid_of(executor.actor)
    os.kill(before, signal.SIGKILL)
    wait_until(executor.is_down, WAIT_S)
    at_once = dot.remote(a=a, b=b)
    assert ray.get([at_once, *(dot.remote(a=a, b=b) for _ in range(50))], timeout=WAIT_S) == [expected] * 51
    assert pid_of(executor.actor) != before


def test_a_spare_runs_what_comes_on_a_device_of_its_own(with_spares: None) -> None:
    spare = ExecutorRef("spare", spare_of("emulator:1"))
    before = Session.current()
    Session.begin([spare])
    try:
        n = 1 << 18
        a, b = vectors(2, n)
        references = ray.put(a), ray.put(b)
        assert ray.get(spare.actor.usage.remote()).uploads == 0
        product = kaas_ray.remote(product_request(n))
        assert np.array_equal(ray.get(product.remote(a=references[0], b=references[1]), timeout=WAIT_S), a * b)
        assert ray.get(spare.actor.usage.remote()).uploads == 2
    finally:
        Session._current = before


def test_the_pool_starts_one_that_has_ended_for_good(with_spares: None) -> None:
    ray.kill(spare_of("emulator:0"))
    wait_until(lambda: spare_of("emulator:0") is None, WAIT_S)
    ray.kill(pool.find(), no_restart=False)
    wait_until(lambda: spare_of("emulator:0") is not None, WAIT_S)
    assert ray.get(spare_of("emulator:0").device.remote(), timeout=WAIT_S) == "emulator"


class TestChoosing:
    """Which actor a call goes to, without a cluster."""

    @pytest.fixture
    def seen(self, monkeypatch: pytest.MonkeyPatch) -> Seen:
        seen = Seen(monkeypatch, ["e0", "e1"])
        for name in ("e0", "e1"):
            seen.say(name)
        self.spares = {spares.name_of(name, seen.reports[name]): Handle() for name in ("e0",)}
        monkeypatch.setattr(table, "actor", self.spares.get)
        return seen

    def chosen(self, placer: Placer, seen: Seen, only: str) -> str:
        return placer.choose(seen.task, {}, "default", only).executor.name

    def test_the_spare_of_one_that_is_down_and_itself_otherwise(self, seen: Seen) -> None:
        placer = Placer(seen.refs)
        (spare,) = self.spares
        assert self.chosen(placer, seen, "e0") == "e0"
        seen.set_state("e0", RESTARTING)
        assert self.chosen(placer, seen, "e0") == spare
        self.spares[spare].state = RESTARTING
        assert self.chosen(placer, seen, "e0") == "e0", "both are down"
        self.spares[spare].state = ALIVE
        seen.set_state("e0", ALIVE)
        assert self.chosen(placer, seen, "e0") == "e0"

    def test_one_without_a_spare_waits(self, seen: Seen) -> None:
        placer = Placer(seen.refs)
        seen.set_state("e1", RESTARTING)
        assert self.chosen(placer, seen, "e1") == "e1"

    def test_calls_that_name_none_go_on_to_the_spare_too(self, seen: Seen) -> None:
        placer = Placer(seen.refs)
        seen.set_state("e0", RESTARTING)
        seen.set_state("e1", RESTARTING)
        (spare,) = self.spares
        names = [placer.choose(seen.task, {}, "default").executor.name for _ in range(8)]
        assert set(names) <= {spare}

    def test_a_single_executor_has_its_spare_too(self, seen: Seen) -> None:
        placer = Placer(seen.refs[:1])
        seen.set_state("e0", RESTARTING)
        (spare,) = self.spares
        assert placer.choose(seen.task, {}, "default").executor.name == spare

    def test_a_spare_of_another_place_is_none(self, seen: Seen) -> None:
        """The executor has come up on another node, or another GPU, since."""
        seen.say("e0", node="another node")
        placer = Placer(seen.refs)
        seen.set_state("e0", RESTARTING)
        assert self.chosen(placer, seen, "e0") == "e0"
