"""The simulated cluster, and what it is measured by."""

from __future__ import annotations

import pytest

from benchmarks.rows.scheduling import FirstComeFirstServed, TimedScheduler, callers, cluster, simulate
from benchmarks.simulation import Caller, Simulation, jain_index, max_min_shares
from kaasd.scheduling import Datum, Policy, Scheduler


def test_max_min_gives_the_rest_to_who_can_use_it() -> None:
    assert max_min_shares(8, {"a": 1, "b": 1}, {"a": 2, "b": 8}) == {"a": 2, "b": 6}
    assert max_min_shares(8, {"a": 1, "b": 3}, {"a": 8, "b": 8}) == {"a": 2, "b": 6}
    assert max_min_shares(8, {"a": 1, "b": 1}, {"a": 1, "b": 2}) == {"a": 1, "b": 2}
    assert max_min_shares(6, {"a": 1, "b": 1, "c": 2}, {"a": 1, "b": 8, "c": 3}) == {"a": 1, "b": 2, "c": 3}


def test_jain_is_1_for_all_alike_and_1_over_n_for_one_that_has_all() -> None:
    assert jain_index([3.0, 3.0, 3.0]) == pytest.approx(1.0)
    assert jain_index([0.0, 0.0, 0.0, 5.0]) == pytest.approx(0.25)


@pytest.mark.parametrize(("room", "brought_s"), [(2, 2 * 1.5), (1, 10 * 1.5)])
def test_data_are_brought_again_where_there_is_no_room_for_all(room: int, brought_s: float) -> None:
    scheduler = Scheduler()
    scheduler.add_device("d0")
    simulation = Simulation(scheduler, capacity=room)
    keys = iter("ab" * 5)
    simulation.add(Caller("default", 1, lambda: 1.0, lambda: [Datum(next(keys), 1.5)], ends=9.5 + brought_s))
    simulation.run(10.0 + brought_s)
    assert simulation.served == {"default": 10}
    assert simulation.loading_s == brought_s


def test_callers_are_the_same_each_time() -> None:
    first, second = (
        [(caller.outstanding, caller.data(), caller.service_s()) for caller in callers(["a", "b", "c"])] for _ in range(2)
    )
    assert first == second
    assert {outstanding for outstanding, _, _ in first} <= {1, 2, 4, 8}


def test_first_come_first_served_gives_most_to_who_asks_most() -> None:
    groups = [f"g{number}" for number in range(20)]
    ours = simulate(cluster(Policy.AFFINITY, groups, 4), groups, 0.3, 1.0)
    theirs = simulate(FirstComeFirstServed(4), groups, 0.3, 1.0)
    assert ours.jain > 0.97 > theirs.jain
    assert ours.resident > 0.9 > theirs.resident
    assert ours.useful > theirs.useful


def test_a_block_of_decisions_is_timed_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.rows.scheduling.BLOCK", 100)
    timed = TimedScheduler(cluster(Policy.BALANCE, ["a"], 2))
    simulation = Simulation(timed)
    simulation.add(Caller("a", 4, lambda: 0.01))
    simulation.run(2.0)
    assert len(timed.blocks) == 4
    assert all(0 < each < 1 for each in timed.blocks)
