"""Leases: one group at a time for each device, and turns that are worth their restarts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kaasd.scheduling import Close, Give, Leases, Restart

RESTART_S = 2.0
QUANTUM_S = 20.0


def leases(devices: Sequence[str] = ("d0",), **shares: float) -> Leases:
    made = Leases(RESTART_S)
    for group, share in shares.items():
        made.set_group(group, share)
    for device in devices:
        made.add_device(device)
    return made


def test_a_device_of_nobody_is_given_as_it_is() -> None:
    made = leases(["d0", "d1"], a=1.0, b=1.0)
    assert made.decide(0.0) == []
    made.wants("b", 1)
    assert made.decide(0.0) == [Give("d0", "b")]
    made.wants("a", 2)
    assert made.decide(0.0) == [Give("d1", "a")]


def test_a_group_gets_no_more_devices_than_it_has_requests_waiting() -> None:
    made = leases(["d0", "d1", "d2"], a=1.0)
    made.wants("a", 2)
    assert made.decide(0.0) == [Give("d0", "a"), Give("d1", "a")]
    made.wants("a", 0)
    assert made.decide(0.0) == []


def test_devices_are_given_in_turn() -> None:
    made = leases(["d0", "d1", "d2", "d3"], a=1.0, b=3.0)
    made.wants("a", 9)
    made.wants("b", 9)
    given = [decision.group for decision in made.decide(0.0)]
    assert sorted(given) == ["a", "b", "b", "b"]


def test_a_turn_ends_when_another_group_is_behind_by_a_quantum() -> None:
    made = leases(a=1.0, b=1.0)
    made.wants("a", 9)
    assert made.decide(0.0) == [Give("d0", "a")]
    made.busy("d0")
    made.wants("b", 9)
    made.used("a", QUANTUM_S)
    assert made.decide(20.0) == []
    made.used("a", 0.1)
    assert made.decide(21.0) == [Close("d0")]
    assert made.decide(21.0) == []
    made.idle("d0", 21.5)
    assert made.decide(21.5) == [Restart("d0", "b")]
    made.add_device("d0")
    assert made.decide(23.5) == [Give("d0", "b")]


def test_who_is_behind_is_so_after_the_keeper_of_the_leases_has_come_back() -> None:
    before = leases(a=2.0, b=1.0, c=1.0)
    before.wants("a", 9)
    assert before.decide(0.0) == [Give("d0", "a")]
    before.wants("b", 9)
    before.used("a", 2 * QUANTUM_S)
    assert before.decide(1.0) == []
    assert before.virtual_times() == {"a": QUANTUM_S, "b": 0.0}
    made = leases([], a=2.0, b=1.0, c=1.0)
    for group in before.virtual_times():
        made.wants(group, 1)
    made.used("a", before.virtual_times()["a"] * 2.0)
    made.add_device("d0", owner="a")
    made.busy("d0")
    assert made.virtual_times() == before.virtual_times()
    made.wants("c", 9)
    assert made.virtual_times()["c"] == 0.0
    assert made.decide(2.0) == [Give("d0", "a")]
    made.used("a", 0.1)
    assert made.decide(3.0) == [Close("d0")]


def test_turns_are_as_long_as_the_shares() -> None:
    """On one device, in steps of 0.1 s."""
    made = leases(a=4.0, b=1.0)
    for group in ("a", "b"):
        made.wants(group, 9)
    used = {"a": 0.0, "b": 0.0}
    restarts = 0
    owner = ""
    for step in range(20_000):
        for decision in made.decide(step / 10):
            if isinstance(decision, Give):
                owner = decision.group
            elif isinstance(decision, Close):
                made.idle("d0", step / 10)
            else:
                restarts += 1
                made.add_device("d0")
        made.busy("d0")
        used[owner] += 0.1
        made.used(owner, 0.1)
        for group in ("a", "b"):
            made.wants(group, 9)
    assert abs(used["a"] / used["b"] - 4.0) < 0.1
    # A turn of a is 1.25 quanta of virtual time, 5 quanta of device time; one of b is 1.25.
    assert abs(restarts - 2 * 2000 / (6.25 * QUANTUM_S)) <= 1


def test_an_idle_device_is_taken_when_a_restart_could_have_been_made_meanwhile() -> None:
    made = leases(a=1.0, b=1.0)
    made.wants("a", 1)
    assert made.decide(0.0) == [Give("d0", "a")]
    made.busy("d0")
    made.idle("d0", 5.0)
    made.idle("d0", 6.0)  # said twice
    assert made.wakes_at == math.inf, "nobody wants it"
    made.wants("b", 1)
    assert made.decide(6.0) == []
    assert made.wakes_at == 5.0 + RESTART_S
    assert made.decide(7.0) == [Restart("d0", "b")]
    assert made.wakes_at == math.inf
    made.add_device("d0")
    assert made.decide(9.0) == [Give("d0", "b")]


def test_a_group_that_goes_on_in_time_keeps_its_device() -> None:
    made = leases(a=1.0, b=1.0)
    made.wants("a", 1)
    made.decide(0.0)
    made.idle("d0", 5.0)
    made.busy("d0")
    made.wants("b", 1)
    assert made.decide(8.0) == []


def test_a_device_that_nobody_wants_any_more_goes_back_without_a_restart() -> None:
    made = leases(a=1.0, b=1.0)
    made.wants("a", 9)
    made.decide(0.0)
    made.busy("d0")
    made.wants("b", 1)
    made.used("a", QUANTUM_S + 1)
    assert made.decide(21.0) == [Close("d0")]
    made.wants("b", 0)
    made.idle("d0", 22.0)
    assert made.decide(22.0) == [Give("d0", "a")]


def test_a_device_that_another_group_wants_by_then_goes_to_that() -> None:
    made = leases(a=1.0, b=1.0, c=1.0)
    made.wants("a", 9)
    made.decide(0.0)
    made.busy("d0")
    made.wants("b", 1)
    made.used("a", QUANTUM_S + 1)
    assert made.decide(21.0) == [Close("d0")]
    made.wants("b", 0)
    made.wants("c", 1)
    made.idle("d0", 22.0)
    assert made.decide(22.0) == [Restart("d0", "c")]


def test_who_comes_late_is_owed_nothing() -> None:
    """A group that has used a device for hours need not give it to a newcomer for as long."""
    made = leases(a=1.0, b=1.0)
    made.wants("a", 9)
    made.decide(0.0)
    made.busy("d0")
    made.used("a", 10_000.0)
    made.wants("b", 9)
    assert made.decide(10_000.0) == []
    made.used("a", QUANTUM_S + 1)
    made.wants("a", 9)
    assert made.decide(10_021.0) == [Close("d0")]
    made.idle("d0", 10_021.0)
    made.decide(10_021.0)
    made.add_device("d0")
    made.decide(10_023.0)
    made.busy("d0")
    made.wants("b", 9)
    made.used("b", 2 * QUANTUM_S + 2)
    assert made.decide(10_063.0) == [Close("d0")]


def test_a_lost_device_is_nobodys() -> None:
    made = leases(["d0", "d1"], a=1.0, b=1.0)
    made.wants("a", 2)
    made.decide(0.0)
    made.remove_device("d0")
    made.remove_device("d0")
    made.wants("a", 1)
    assert made.decide(0.0) == []
    made.add_device("d0")
    assert made.decide(0.0) == [Give("d0", "a")]


def test_a_device_that_does_not_come_back_from_its_restart_is_wanted_no_longer() -> None:
    made = leases(["d0", "d1"], a=1.0, b=1.0)
    made.wants("a", 1)
    made.decide(0.0)
    made.idle("d0", 0.0)
    made.remove_device("d1")
    made.wants("b", 1)
    assert made.decide(2.0) == [Restart("d0", "b")]
    made.remove_device("d0")
    made.add_device("d1")
    assert made.decide(3.0) == [Give("d1", "b")]


def test_what_is_known_of_the_owners_outlives_whoever_keeps_it() -> None:
    made = leases([], a=1.0, b=1.0)
    made.add_device("d0", owner="a")
    assert made.decide(0.0) == [Give("d0", "a")]
    made.wants("b", 1)
    made.idle("d0", 0.0)
    assert made.decide(RESTART_S) == [Restart("d0", "b")]


def test_the_devices_of_a_group_that_is_gone_go_to_the_next() -> None:
    made = leases(a=1.0, b=1.0)
    made.wants("a", 1)
    made.decide(0.0)
    made.idle("d0", 0.0)
    made.remove_group("a")
    made.remove_group("a")
    made.wants("b", 1)
    assert made.decide(RESTART_S) == [Restart("d0", "b")]
