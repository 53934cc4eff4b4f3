"""Executors that change hands: who is told what, from what executors report."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from kaas_client.ray.landlord import HEARD_S, Landlord, Lease, Retire
from kaas_client.ray.reports import Report
from kaasd.scheduling import Group

GROUPS = [Group("red"), Group("blue")]
RESTART_S = 1.0


class House:
    """Executors that do what they are told."""

    def __init__(self, *names: str) -> None:
        self.landlord = Landlord(RESTART_S, {})
        self.now = 0.0
        self._numbers = count()
        self.reports: dict[str, Report] = {}
        for name in names:
            self.start(name)

    def start(self, name: str) -> None:
        """An executor comes up."""
        self.reports[name] = Report(f"process {next(self._numbers)}", "node", 0.0, 0.0, {}, (), ())

    def say(self, name: str, **changed: Any) -> None:
        """An executor says something else."""
        self.reports[name] = self.reports[name]._replace(**changed)

    def step(self, after_s: float = 0.0) -> list[Lease | Retire]:
        """Return what is told after some time, which is done."""
        self.now += after_s
        told = self.landlord.step(self.reports, GROUPS, self.now)
        for each in told:
            if isinstance(each, Lease):
                self.say(each.executor, leased_to=each.group)
            else:
                self.say(each.executor, retiring=True)
        return told

    def move(self) -> None:
        """Have another landlord take over."""
        self.landlord = Landlord(RESTART_S, self.landlord.virtual_times())


@pytest.fixture
def house() -> House:
    return House("e0", "e1")


def test_who_waits_gets_an_executor_each(house: House) -> None:
    assert house.step() == []
    house.say("e0", waiting={"red": 5, "blue": 5})
    told = house.step()
    assert all(isinstance(each, Lease) for each in told)
    assert {each.executor for each in told} == {"e0", "e1"}
    assert {each.group for each in told if isinstance(each, Lease)} == {"red", "blue"}
    assert house.step() == []


def test_what_was_not_heard_is_told_again(house: House) -> None:
    house.say("e0", waiting={"red": 1})
    (lease,) = house.step()
    house.say(lease.executor, leased_to=None)
    assert house.step() == [lease]


def test_an_idle_executor_goes_to_another_group_in_another_process(house: House) -> None:
    house.say("e0", waiting={"red": 9})
    assert len(house.step()) == 2
    house.say("e0", waiting={"blue": 1})
    house.say("e1", calls=1)
    assert house.step() == []
    assert house.step(after_s=RESTART_S) == [Retire("e0")]
    assert house.step() == []
    house.start("e0")
    assert house.step() == [Lease("e0", "blue")]


def leased_and_behind(house: House) -> None:
    """Have ``red`` use both executors, for so long that ``blue`` is to have one."""
    house.say("e0", waiting={"red": 9})
    assert len(house.step()) == 2
    for name in house.reports:
        house.say(name, calls=1, waiting={"red": 9, "blue": 9})
    assert house.step() == []
    for name in house.reports:
        house.say(name, used_s={"red": RESTART_S})


def test_who_is_behind_gets_an_executor_that_is_busy(house: House) -> None:
    leased_and_behind(house)
    (retire,) = house.step()
    assert house.step() == []
    house.start(retire.executor)
    house.say(retire.executor, waiting={"red": 9, "blue": 9})
    assert house.step() == [Lease(retire.executor, "blue")]


def test_an_executor_goes_back_where_nobody_wants_it_any_more(house: House) -> None:
    leased_and_behind(house)
    (retire,) = house.step()
    for name in house.reports:
        house.say(name, waiting={"red": 9})
    assert house.step() == []
    house.start(retire.executor)
    assert house.step() == [Lease(retire.executor, "red")]


def test_an_executor_that_ends_by_itself_is_leased_again(house: House) -> None:
    house.say("e0", waiting={"red": 9})
    assert len(house.step()) == 2
    house.start("e0")
    house.say("e0", waiting={"blue": 1})
    house.say("e1", calls=1)
    assert house.step(after_s=HEARD_S) == [Lease("e0", "blue")]
    assert house.step() == []


def test_one_that_retires_is_leased_when_it_is_there_again(house: House) -> None:
    house.say("e0", retiring=True)
    house.say("e1", waiting={"red": 9, "blue": 9})
    (first,) = house.step()
    assert first.executor == "e1"
    house.start("e0")
    (second,) = house.step()
    assert isinstance(first, Lease)
    assert second == Lease("e0", "blue" if first.group == "red" else "red")


def test_another_landlord_finds_leases_and_who_is_behind() -> None:
    house = House("e0")
    house.say("e0", waiting={"red": 9})
    assert house.step() == [Lease("e0", "red")]
    house.say("e0", calls=1, waiting={"red": 9, "blue": 9})
    assert house.step() == []
    for used_s in (5, 9):
        house.say("e0", used_s={"red": used_s * RESTART_S})
        assert house.step() == []
        house.move()
        assert house.step() == []
    house.say("e0", used_s={"red": 10.1 * RESTART_S})
    assert house.step() == [Retire("e0")]


def test_another_landlord_waits_for_one_that_retires(house: House) -> None:
    leased_and_behind(house)
    (retire,) = house.step()
    house.move()
    house.step()
    house.start(retire.executor)
    house.say(retire.executor, waiting={"red": 9, "blue": 9})
    told = house.step()
    assert [each.executor for each in told] == [retire.executor]
    assert isinstance(told[0], Lease)


def test_an_executor_that_is_gone_is_forgotten(house: House) -> None:
    house.say("e0", waiting={"red": 9})
    assert len(house.step()) == 2
    del house.reports["e0"]
    assert house.step() == []
    house.start("e0")
    house.say("e0", waiting={"red": 1})
    assert house.step() == [Lease("e0", "red")]


def test_one_that_serves_another_group_starts_anew_first(house: House) -> None:
    house.say("e0", leased_to="gone")
    house.say("e1", leased_to="gone", waiting={"red": 9})
    assert house.step() == [Retire("e0"), Retire("e1")]
    house.start("e0")
    assert house.step() == [Lease("e0", "red")]
