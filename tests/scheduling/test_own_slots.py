"""Groups that reserve a part of each device have a slot of their own there."""

from __future__ import annotations

import pytest

from kaasd.scheduling import Datum, Group, Placement, Policy, QueuedRequest, Scheduler, Start, State

ALERTS = Group("alerts", reserves=True)


def scheduler(*devices: str, slots: int = 2, policy: Policy = Policy.AFFINITY, divides: bool = True) -> Scheduler:
    made = Scheduler([ALERTS, Group("hogs")], policy, restart_s=1.0)
    for name in devices or ("d0",):
        made.add_device(name, slots, divides=divides)
    return made


def submitted(to: Scheduler, group: str, *ids: object, **options: object) -> list[QueuedRequest]:
    requests = [QueuedRequest(each, group, **options) for each in ids]  # type: ignore[arg-type]
    for request in requests:
        to.submit(request)
    return requests


def started(by: Scheduler, now: float = 0.0) -> list[object]:
    return [decision.request.id for decision in by.decide(now) if isinstance(decision, Start)]


def test_its_request_starts_where_others_have_all_slots() -> None:
    queue = scheduler()
    submitted(queue, "hogs", *range(5))
    assert started(queue) == [0, 1]
    assert queue.may_start
    first, second = submitted(queue, "alerts", "a", "b")
    assert started(queue) == ["a"], "there is one slot for it"
    queue.finished(first, 0.1, 0.01)
    assert started(queue, 0.1) == ["b"]
    queue.finished(second, 0.2, 0.01)
    assert started(queue, 0.2) == [], "nobody borrows it"
    assert queue.use("alerts").device_s == pytest.approx(0.02)


def test_it_has_the_slots_of_all_too_when_it_is_its_turn() -> None:
    queue = scheduler()
    submitted(queue, "alerts", *"abcd")
    assert started(queue) == ["a", "b", "c"]


def test_at_once_it_takes_its_own() -> None:
    queue = scheduler(slots=1)
    assert queue.start_at_once(QueuedRequest("a", "alerts"), 0.0) is None
    submitted(queue, "alerts", "a")
    assert started(queue) == ["a"]
    assert queue.start_at_once(QueuedRequest("h", "hogs"), 0.0) == "d0"


def test_only_devices_that_divide_have_it() -> None:
    queue = scheduler(divides=False)
    submitted(queue, "hogs", 1, 2)
    assert started(queue) == [1, 2]
    submitted(queue, "alerts", "a")
    assert started(queue) == []


def test_a_limit_of_running_requests_counts_there_too() -> None:
    queue = scheduler()
    queue.set_group(Group("alerts", max_running=1, reserves=True))
    submitted(queue, "alerts", "a", "b")
    assert started(queue) == ["a"]


def test_who_reserves_no_more_has_none() -> None:
    queue = scheduler(slots=1)
    submitted(queue, "hogs", 1, 2)
    (running,) = submitted(queue, "alerts", "a")
    assert set(started(queue)) == {1, "a"}
    queue.set_group(Group("alerts"))
    submitted(queue, "alerts", "b")
    queue.finished(running, 0.1, 0.1)
    assert started(queue, 0.1) == []
    queue.set_group(ALERTS)
    assert started(queue, 0.1) == ["b"]


def test_where_its_data_are() -> None:
    queue = scheduler("d0", "d1", "d2", slots=1)
    queue.holds("d1", "k")
    submitted(queue, "hogs", *range(6))
    assert len(started(queue)) == 3
    first, second = submitted(queue, "alerts", "a", "b", data=(Datum("k", 1.0),))
    (start,) = queue.decide(0.0)
    assert start == Start(first, "d1", Placement.RESIDENT)
    assert (second.state, second.runs_on) == (State.PROMISED, "d1"), "its data cost more than waiting there"
    queue.finished(first, 0.01, 0.01)
    assert started(queue, 0.01) == ["b"]
    third, late = submitted(queue, "alerts", "c", "d", data=(Datum("k", 1.0),))
    queue.finished(second, 0.02, 0.01)
    assert started(queue, 0.02) == ["c"]
    assert late.state is State.PROMISED
    assert queue.wakes_at == pytest.approx(1.02, abs=0.05)
    (start,) = queue.decide(2.0)
    assert isinstance(start, Start) and (start.request, third.state) == (late, State.RUNNING)
    assert start.device in ("d0", "d2"), "it takes a slot of its own elsewhere once it is overdue"


def test_what_a_lost_device_ran_there_runs_again() -> None:
    queue = scheduler("d0", "d1", slots=1)
    submitted(queue, "hogs", *range(4))
    assert len(started(queue)) == 2
    (request,) = submitted(queue, "alerts", "a")
    assert started(queue) == ["a"]
    where = request.runs_on
    assert request in queue.remove_device(where)
    queue.run_again(request, 0.1)
    assert started(queue, 0.1) == ["a"]
    assert request.runs_on != where
    queue.add_device(where, 1, divides=True)
    submitted(queue, "alerts", "b")
    assert "b" in started(queue, 0.2)


def test_an_exclusive_device_is_idle_only_without_it() -> None:
    queue = scheduler(slots=1, policy=Policy.EXCLUSIVE)
    first, second = submitted(queue, "alerts", "a", "b")
    assert sorted(map(str, started(queue))) == ["a", "b"]
    submitted(queue, "hogs", 1)
    ended, goes_on = (first, second) if second.in_own_slot else (second, first)
    queue.finished(ended, 0.1, 0.1)
    assert queue.decide(0.1) == [] == queue.decide(10.0)
    queue.finished(goes_on, 11.0, 0.1)
    assert queue.decide(11.0) == []
    assert len(queue.decide(12.0)) == 1, "it restarts for the other group"
