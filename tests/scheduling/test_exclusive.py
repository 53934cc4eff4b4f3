"""The policy that gives each device to one group at a time."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import partial

import pytest

from benchmarks.simulation import Caller, Simulation
from kaas_core.errors import InvalidRequestError
from kaasd.scheduling import Datum, Group, Policy, QueuedRequest, Restart, Scheduler, Start
from tests.scheduling.watched import Watched

RESTART_S = 2.0


def scheduler(*groups: Group, devices: int = 1, slots: int = 1) -> Scheduler:
    made = Scheduler(groups, Policy.EXCLUSIVE, restart_s=RESTART_S)
    for number in range(devices):
        made.add_device(f"d{number}", slots)
    return made


def decided(by: Scheduler, now: float) -> list[tuple[object, str]]:
    return [
        (decision.request.id if isinstance(decision, Start) else f"restart for {decision.group}", decision.device)
        for decision in by.decide(now)
    ]


def submitted(to: Scheduler, group: str, *ids: str) -> list[QueuedRequest]:
    requests = [QueuedRequest(each, group) for each in ids]
    for request in requests:
        to.submit(request)
    return requests


def test_groups_have_devices_of_their_own() -> None:
    queue = scheduler(Group("a"), Group("b"), devices=3, slots=2)
    submitted(queue, "a", "a1", "a2", "a3")
    submitted(queue, "b", "b1")
    assert sorted(decided(queue, 0.0)) == [("a1", "d0"), ("a2", "d2"), ("a3", "d0"), ("b1", "d1")]


def test_an_idle_device_is_restarted_for_another_group() -> None:
    queue = scheduler(Group("a"), Group("b"))
    (first,) = submitted(queue, "a", "a1")
    assert decided(queue, 0.0) == [("a1", "d0")]
    queue.finished(first, 1.0)
    submitted(queue, "b", "b1")
    assert decided(queue, 1.0) == []
    assert queue.wakes_at == 1.0 + RESTART_S
    assert decided(queue, 3.0) == [("restart for b", "d0")]
    assert decided(queue, 4.0) == []
    queue.add_device("d0")
    assert decided(queue, 5.0) == [("b1", "d0")]


def test_a_device_that_came_for_nothing_goes_to_the_next_group_as_it_is() -> None:
    queue = scheduler(Group("a"), Group("b"), Group("c"))
    (first,) = submitted(queue, "a", "a1")
    decided(queue, 0.0)
    queue.finished(first, 0.0)
    (second,) = submitted(queue, "b", "b1")
    decided(queue, 0.0)
    assert decided(queue, 2.0) == [("restart for b", "d0")]
    queue.cancel(second)
    queue.add_device("d0")
    assert decided(queue, 4.0) == []
    submitted(queue, "c", "c1")
    assert decided(queue, 5.0) == [("c1", "d0")]


def test_a_device_that_is_lost_in_its_restart_is_another_time_a_device() -> None:
    queue = scheduler(Group("a"), Group("b"))
    (first,) = submitted(queue, "a", "a1")
    decided(queue, 0.0)
    queue.finished(first, 0.0)
    submitted(queue, "b", "b1")
    decided(queue, 0.0)
    assert decided(queue, 2.0) == [("restart for b", "d0")]
    assert queue.remove_device("d0") == []
    submitted(queue, "a", "a2")
    queue.add_device("d0")
    assert decided(queue, 3.0) in ([("b1", "d0")], [("a2", "d0")])


def test_a_device_that_is_closed_is_nobodys_and_opens_as_whose_it_was() -> None:
    queue = scheduler(Group("a"), Group("b"))
    (first,) = submitted(queue, "a", "a1")
    assert decided(queue, 0.0) == [("a1", "d0")]
    queue.close_device("d0")
    queue.finished(first, 1.0)
    submitted(queue, "a", "a2")
    submitted(queue, "b", "b1")
    assert decided(queue, 100.0) == []
    queue.open_device("d0")
    queue.open_device("d0")
    assert decided(queue, 100.0) == [("a2", "d0")]


def test_no_request_can_name_its_device() -> None:
    with pytest.raises(InvalidRequestError, match="device: group a cannot ask for d0"):
        scheduler(Group("a")).submit(QueuedRequest(1, "a", device="d0"))


def served_by_shares(queue: Scheduler, shares: Mapping[str, float]) -> float:
    """Have groups keep 8 requests of half a second there for 2000 s; see that each got its share, and return what all got."""
    simulation = Simulation(queue, restart_s=RESTART_S)
    for name in shares:
        simulation.add(Caller(name, 8, lambda: 0.5))
    simulation.run(2000.0)
    total = sum(simulation.served_s.values())
    for name, share in shares.items():
        assert simulation.served_s[name] / total == pytest.approx(share / sum(shares.values()), rel=0.05)
    return total


@pytest.mark.parametrize("devices", [1, 2, 3, 5])
def test_shares_are_kept_at_few_restarts(devices: int) -> None:
    shares = {"a": 1.0, "b": 2.0, "c": 1.0}
    queue = scheduler(*(Group(name, share) for name, share in shares.items()), devices=devices)
    assert served_by_shares(queue, shares) > 0.88 * devices * 2000.0


def test_groups_with_less_to_do_than_their_share_get_what_they_need() -> None:
    queue = scheduler(*(Group(name) for name in "ab"), devices=4)
    simulation = Simulation(queue, restart_s=RESTART_S)
    simulation.add(Caller("a", 1, lambda: 0.5))
    simulation.add(Caller("b", 8, lambda: 0.5))
    simulation.run(1000.0)
    assert simulation.served_s["a"] == pytest.approx(1000.0, rel=0.05)
    assert simulation.served_s["b"] == pytest.approx(3000.0, rel=0.05)
    assert simulation.restarts <= 4


@pytest.mark.parametrize("seed", range(6))
def test_no_group_waits_longer_than_the_bound(seed: int) -> None:
    """That of docs/scheduling.md."""
    draw = random.Random(seed)
    devices = draw.choice([1, 2, 3])
    groups = [Group(f"g{number}", draw.choice([0.5, 1.0, 2.0])) for number in range(draw.choice([2, 4, 7]))]
    watched = Watched(scheduler(*groups, devices=devices))
    simulation = Simulation(watched, restart_s=RESTART_S)
    for group in groups:
        simulation.add(Caller(group.name, draw.choice([1, 8]), partial(draw.uniform, 0.5, 1.5), think_s=draw.choice([0.0, 3.0])))
    simulation.run(2000.0)
    shares = [group.share for group in groups]
    quanta = sum(shares) / min(shares) + 2 * len(groups)
    bound = (quanta * 10 * RESTART_S + len(groups) * (RESTART_S + 1.5)) / devices
    assert watched.longest <= bound


def test_a_restart_is_told_once() -> None:
    queue = scheduler(Group("a"), Group("b"), devices=2)
    first = submitted(queue, "a", "a1", "a2")
    decided(queue, 0.0)
    for request in first:
        queue.finished(request, 0.0)
    submitted(queue, "b", "b1")
    assert queue.decide(0.0) == []
    assert queue.decide(2.0) == [Restart("d0", "b")]
    assert queue.decide(3.0) == []


class TestBesideCommonDevices:
    """d0 and d1 are for all, e0 and e1 for one group at a time."""

    def scheduler(self, *groups: Group, slots: int = 1, common: Policy = Policy.AFFINITY) -> Scheduler:
        made = Scheduler(groups, common, policies={"e0": Policy.EXCLUSIVE, "e1": Policy.EXCLUSIVE}, restart_s=RESTART_S)
        for name in ("d0", "d1", "e0", "e1"):
            made.add_device(name, slots)
        return made

    def test_a_group_gets_devices_to_itself_for_what_the_common_ones_cannot_take(self) -> None:
        queue = self.scheduler(Group("a"), Group("b"))
        submitted(queue, "a", "a1", "a2")
        assert decided(queue, 0.0) == [("a1", "d0"), ("a2", "d1")]
        submitted(queue, "b", "b1")
        submitted(queue, "a", "a3")
        assert sorted(decided(queue, 0.0)) == [("a3", "e1"), ("b1", "e0")]

    def test_what_is_a_groups_own_takes_no_other_though_it_is_idle(self) -> None:
        queue = self.scheduler(Group("a"), Group("b"))
        requests = submitted(queue, "a", *"1234")
        assert len(decided(queue, 0.0)) == 4
        for request in requests:
            queue.finished(request, 1.0)
        submitted(queue, "b", *"567")
        assert [device for _, device in decided(queue, 1.0)] == ["d0", "d1"]
        submitted(queue, "a", "8")
        assert [device for _, device in decided(queue, 1.5)] in (["e0"], ["e1"])
        assert queue.wakes_at == 1.0 + RESTART_S

    def test_data_are_met_on_common_and_own_devices(self) -> None:
        queue = self.scheduler(Group("a"), Group("b"))
        first = [QueuedRequest(key, "a", data=(Datum(key, 10.0),)) for key in "wxyz"]
        for request in first:
            queue.submit(request)
        places = dict(decided(queue, 0.0))
        assert set(places.values()) == {"d0", "d1", "e0", "e1"}
        for request in first:
            queue.finished(request, 1.0)
        again = [QueuedRequest(key, "a", data=(Datum(key, 10.0),)) for key in "zxwy"]
        for request in again:
            queue.submit(request)
        assert dict(decided(queue, 1.0)) == places

    def test_a_device_that_was_wanted_for_what_then_waits_elsewhere_is_nobodys(self) -> None:
        queue = self.scheduler(Group("a"), Group("b"))
        queue.holds("d0", "k")
        submitted(queue, "b", "b1", "b2")
        decided(queue, 0.0)
        queue.submit(QueuedRequest("a1", "a", data=(Datum("k", 10.0),)))
        assert decided(queue, 0.0) == []
        submitted(queue, "b", "b3", "b4")
        assert {device for _, device in decided(queue, 0.0)} == {"e0", "e1"}

    @pytest.mark.parametrize("common", [Policy.AFFINITY, Policy.BALANCE])
    @pytest.mark.parametrize("shares", [{"a": 1.0, "b": 1.0, "c": 2.0}, {"a": 1.0, "b": 3.0}])
    def test_shares_are_of_all_devices(self, shares: dict[str, float], common: Policy) -> None:
        queue = self.scheduler(*(Group(name, share) for name, share in shares.items()), common=common)
        assert served_by_shares(queue, shares) > 0.94 * 4 * 2000.0

    @pytest.mark.parametrize("seed", range(6))
    def test_no_group_waits_long(self, seed: int) -> None:
        """The turns of exclusive devices hold up nobody by more than they would alone."""
        draw = random.Random(seed)
        groups = [Group(f"g{number}", draw.choice([0.5, 1.0, 2.0])) for number in range(draw.choice([2, 4, 7]))]
        watched = Watched(self.scheduler(*groups, common=draw.choice([Policy.AFFINITY, Policy.BALANCE])))
        simulation = Simulation(watched, restart_s=RESTART_S)
        for group in groups:
            outstanding, think_s = draw.choice([1, 8]), draw.choice([0.0, 3.0])
            simulation.add(Caller(group.name, outstanding, partial(draw.uniform, 0.5, 1.5), think_s=think_s))
        simulation.run(2000.0)
        shares = [group.share for group in groups]
        quanta = sum(shares) / min(shares) + 2 * len(groups)
        assert watched.longest <= (quanta * 10 * RESTART_S + len(groups) * (RESTART_S + 1.5)) / 2
        assert set(simulation.served) == {group.name for group in groups}
