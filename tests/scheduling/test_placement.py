"""Where requests run: with their data, unless waiting for that takes longer than bringing them elsewhere."""

from __future__ import annotations

import pytest

from kaasd.scheduling import Datum, Group, Placement, Policy, QueuedRequest, Scheduler, Start
from kaasd.scheduling.placement import FULL_COST, MOST_HOLDERS, MOST_KEYS, Residents

WEIGHTS = (Datum("weights", 1.0),)


def scheduler(devices: int, *, slots: int = 1, policy: Policy = Policy.AFFINITY) -> Scheduler:
    made = Scheduler(policy=policy)
    for number in range(devices):
        made.add_device(f"d{number}", slots)
    return made


def request(name: str, data: tuple[Datum, ...] = WEIGHTS, expected_s: float = 0.4, **fields: object) -> QueuedRequest:
    return QueuedRequest(name, data=data, expected_s=expected_s, **fields)  # type: ignore[arg-type]


def decided(by: Scheduler, now: float) -> list[tuple[object, str, Placement]]:
    starts = by.decide(now)
    assert all(isinstance(start, Start) for start in starts)
    return [(start.request.id, start.device, start.placement) for start in starts if isinstance(start, Start)]


def test_requests_go_where_their_data_are() -> None:
    queue = scheduler(3)
    queue.holds("d1", "weights")
    queue.submit(first := request("first"))
    assert decided(queue, 0.0) == [("first", "d1", Placement.RESIDENT)]
    queue.finished(first, 0.4)
    queue.submit(request("other", (Datum("other", 1.0),)))
    queue.submit(request("second"))
    assert decided(queue, 0.4) == [("other", "d0", Placement.LOADED), ("second", "d1", Placement.RESIDENT)]


def test_a_short_wait_for_the_data_is_better_than_bringing_them() -> None:
    """The device that has them is busy for 0.4, then 0.8; bringing them takes 1."""
    queue = scheduler(2)
    queue.holds("d1", "weights")
    requests = [request(f"r{n}") for n in range(4)]
    for each in requests:
        queue.submit(each)
    assert decided(queue, 0.0) == [("r0", "d1", Placement.RESIDENT), ("r3", "d0", Placement.REPLICATED)]
    queue.finished(requests[0], 0.4)
    assert decided(queue, 0.4) == [("r1", "d1", Placement.RESIDENT)]
    queue.finished(requests[1], 0.8)
    assert decided(queue, 0.8) == [("r2", "d1", Placement.RESIDENT)]


def test_a_wait_that_lasts_longer_than_expected_ends_when_bringing_would_have_been_as_fast() -> None:
    queue = scheduler(2)
    queue.holds("d1", "weights")
    queue.submit(request("endless"))
    queue.submit(request("waits"))
    assert decided(queue, 0.0) == [("endless", "d1", Placement.RESIDENT)]
    assert queue.wakes_at == 1.0
    assert decided(queue, 0.9) == []
    assert decided(queue, 1.0) == [("waits", "d0", Placement.REPLICATED)]
    assert queue.wakes_at == float("inf")


def test_whoever_has_waited_that_long_takes_the_next_slot_of_any_device() -> None:
    queue = scheduler(2)
    queue.holds("d1", "weights")
    queue.submit(request("endless"))
    queue.submit(request("waits"))
    decided(queue, 0.0)
    queue.submit(other := request("other", ()))
    queue.submit(request("behind", ()))
    assert decided(queue, 0.5) == [("other", "d0", Placement.UNSPECIFIED)]
    assert decided(queue, 1.0) == []
    queue.finished(other, 1.5)
    assert decided(queue, 1.5) == [("waits", "d0", Placement.REPLICATED)]


def test_what_waits_for_its_data_can_be_cancelled() -> None:
    queue = scheduler(2)
    queue.holds("d1", "weights")
    requests = [request(f"r{n}") for n in range(3)]
    for each in requests:
        queue.submit(each)
    decided(queue, 0.0)
    assert queue.use("default").running == 3
    assert queue.cancel(requests[1])
    assert queue.use("default").running == 2
    assert queue.wakes_at == 1.0, "the other one still waits"
    queue.finished(requests[0], 0.4)
    assert decided(queue, 0.4) == [("r2", "d1", Placement.RESIDENT)]


def test_what_waits_for_a_device_that_is_lost_goes_elsewhere() -> None:
    queue = scheduler(2)
    queue.holds("d1", "weights")
    first, second = request("first"), request("second")
    queue.submit(first)
    queue.submit(second)
    decided(queue, 0.0)
    assert queue.use("default").running == 2
    assert queue.remove_device("d1") == [first]
    assert queue.use("default").running == 1
    assert decided(queue, 0.1) == [("second", "d0", Placement.LOADED)]
    assert queue.wakes_at == float("inf")


def test_a_promise_that_was_not_kept_makes_the_device_no_busier() -> None:
    """Of three that d1 was to run for 0.4 each, one has gone elsewhere."""
    queue = scheduler(2)
    queue.holds("d1", "weights")
    for n in range(3):
        queue.submit(request(f"r{n}"))
    assert decided(queue, 0.0) == [("r0", "d1", Placement.RESIDENT)]
    assert queue._devices["d1"].free_at == pytest.approx(1.2)
    assert decided(queue, 1.0) == [("r1", "d0", Placement.REPLICATED)]
    assert queue._devices["d1"].free_at == pytest.approx(0.8)


def test_a_device_that_returns_is_empty() -> None:
    queue = scheduler(1)
    queue.holds("d0", "weights")
    queue.remove_device("d0")
    queue.add_device("d0")
    queue.submit(request("first"))
    assert decided(queue, 0.0) == [("first", "d0", Placement.LOADED)]


def test_what_was_dropped_is_not_there() -> None:
    queue = scheduler(2)
    queue.holds("d1", "weights")
    queue.dropped("d1", "weights")
    queue.dropped("d1", "weights")
    queue.dropped("gone", "weights")
    queue.submit(request("first"))
    assert decided(queue, 0.0) == [("first", "d0", Placement.LOADED)]


def test_a_part_of_the_data_is_better_than_none() -> None:
    queue = scheduler(3)
    queue.holds("d1", "small")
    queue.holds("d2", "large")
    queue.submit(request("first", (Datum("small", 0.1), Datum("large", 1.0))))
    assert decided(queue, 0.0) == [("first", "d2", Placement.REPLICATED)]


def test_of_two_devices_with_the_data_the_less_used_one() -> None:
    queue = scheduler(2, slots=4)
    for device in ("d0", "d1"):
        queue.holds(device, "weights")
    for n in range(4):
        queue.submit(request(f"r{n}"))
    assert [device for _, device, _ in decided(queue, 0.0)] == ["d0", "d1", "d0", "d1"]


def test_balance_does_not_look_where_data_are() -> None:
    queue = scheduler(2, policy=Policy.BALANCE)
    queue.holds("d1", "weights")
    queue.submit(request("first"))
    queue.submit(request("second"))
    assert decided(queue, 0.0) == [("first", "d0", Placement.REPLICATED), ("second", "d1", Placement.RESIDENT)]


def test_a_function_is_expected_to_take_what_it_took_before() -> None:
    """Its first request takes 5 s: the next rather bring their data elsewhere, in 1 s, than wait for it."""
    queue = scheduler(2)
    queue.submit(first := QueuedRequest("first", function="slow", data=WEIGHTS))
    decided(queue, 0.0)
    queue.finished(first, 6.0, 5.0)
    for name in ("second", "third"):
        queue.submit(QueuedRequest(name, function="slow", data=WEIGHTS))
    assert decided(queue, 6.0) == [("second", "d0", Placement.RESIDENT), ("third", "d1", Placement.REPLICATED)]


def test_who_has_its_data_there_goes_before_others_until_they_are_owed_what_bringing_theirs_takes() -> None:
    """One device has the data of a, the other that of b, which has twice as many requests to run. Bringing data takes 1 s."""
    queue = Scheduler([Group("a"), Group("b")])
    for device in ("d0", "d1"):
        queue.add_device(device)
    queue.holds("d0", "a")
    queue.holds("d1", "b")
    running: dict[str, QueuedRequest] = {}
    order: dict[str, list[str]] = {"d0": [], "d1": []}
    for group, count in (("a", 3), ("b", 40)):
        for _ in range(count):
            queue.submit(QueuedRequest(group, group, data=(Datum(group, 1.0),), expected_s=0.1))
    for step in range(20):
        for start in queue.decide(step / 10):
            assert isinstance(start, Start)
            running[start.device] = start.request
            order[start.device].append(f"{start.request.id} {start.placement.value}")
        for request in running.values():
            queue.finished(request, (step + 1) / 10, 0.1)
        running.clear()
    assert order["d1"] == ["b resident"] * 20
    assert order["d0"][:3] == ["a resident"] * 3
    assert order["d0"][3] == "b replicated", "waiting there would have taken longer"


def test_a_device_that_is_late_is_not_waited_for() -> None:
    """At 3.0 the request of 0.4 is late by 2.6, and may take as long again; bringing the data takes 1."""
    queue = scheduler(2)
    queue.holds("d1", "weights")
    queue.submit(request("late"))
    decided(queue, 0.0)
    queue.submit(request("next"))
    assert decided(queue, 3.0) == [("next", "d0", Placement.REPLICATED)]


def test_what_a_device_has_dropped_is_not_looked_for_there() -> None:
    """Both devices have the data when the request begins to wait; the one that is free first has dropped them by then."""
    queue = scheduler(2)
    for device in ("d0", "d1"):
        queue.holds(device, "weights")
    running = [request(f"r{n}") for n in range(2)]
    for each in running:
        queue.submit(each)
    decided(queue, 0.0)
    queue.submit(request("waits"))
    assert decided(queue, 0.0) == []
    queue.dropped("d0", "weights")
    queue.finished(running[0], 0.2)
    assert decided(queue, 0.2) == []
    queue.finished(running[1], 0.4)
    assert decided(queue, 0.4) == [("waits", "d1", Placement.RESIDENT)]


def test_a_flow_stands_where_its_data_are() -> None:
    queue = scheduler(2)
    queue.holds("d1", "weights")
    running = [request(f"r{n}", expected_s=3.0) for n in range(2)]
    for each in running:
        queue.submit(each)
    assert decided(queue, 0.0) == [("r0", "d1", Placement.RESIDENT), ("r1", "d0", Placement.REPLICATED)]
    for name in ("r2", "r3"):
        queue.submit(request(name, expected_s=3.0))
    flow = queue._groups["default"].flows[None]
    assert {device.name for device in flow.claims} == {"d0", "d1"}
    queue.close_device("d0")
    queue.close_device("d1")
    assert not flow.stands
    queue.open_device("d1")
    queue.submit(request("first", priority=1))
    assert flow.stands
    queue.finished(running[0], 3.0)
    assert decided(queue, 3.0) == [("first", "d1", Placement.RESIDENT)]


def test_a_flow_stands_at_a_device_that_has_just_got_its_data() -> None:
    queue = scheduler(1)
    for n in range(3):
        queue.submit(request(f"r{n}"))
    decided(queue, 0.0)
    flow = queue._groups["default"].flows[None]
    assert [device.name for device in flow.claims] == ["d0"]


def test_who_goes_ahead_of_its_turn_moves_nobody_elses() -> None:
    """Requests of b run where their data are, while a waits for its own device, for less than bringing its data would take. A
    newcomer starts where a is.
    """
    queue = Scheduler([Group("a"), Group("b"), Group("c")])
    for device in ("d0", "d1"):
        queue.add_device(device)
    queue.holds("d0", "a")
    queue.holds("d1", "b")
    for n in range(9):
        queue.submit(QueuedRequest(f"b{n}", "b", data=(Datum("b", 1.0),), expected_s=0.1))
    for n in range(2):
        queue.submit(QueuedRequest(f"a{n}", "a", data=(Datum("a", 1.0),), expected_s=0.1))
    running = {start.device: start.request for start in queue.decide(0.0) if isinstance(start, Start)}
    for step in range(1, 5):
        queue.finished(running["d1"], step / 10, 0.1)
        running |= {start.device: start.request for start in queue.decide(step / 10) if isinstance(start, Start)}
        assert running["d1"].group == "b"
    assert queue._groups["b"].tag == pytest.approx(0.5)
    queue.submit(QueuedRequest("c", "c"))
    assert queue._groups["c"].tag == queue._groups["a"].tag == pytest.approx(0.1)


def test_a_choice_looks_at_few_of_many_devices_and_at_all_in_turn() -> None:
    residents: Residents[int] = Residents()
    for device in range(100):
        residents.add(device, "weights")
    seen = [list(residents.holders("weights")) for _ in range(100)]
    assert {len(each) for each in seen} == {MOST_HOLDERS}
    assert {device for each in seen for device in each} == set(range(100))


def test_what_came_first_is_forgotten_first() -> None:
    residents: Residents[str] = Residents()
    for key in range(MOST_KEYS):
        residents.add("d0", key)
    residents.add("d0", 0)
    residents.add("d0", "one more")
    assert residents.missing_s("d0", [Datum(0, 1.0), Datum(1, 2.0), Datum("one more", 4.0)]) == 1.0
    assert list(residents.holders(0)) == []


def test_who_runs_beside_others_has_a_part_of_a_device_only() -> None:
    """A slot is free where the data are, and those that run there take longer than bringing them to who is idle."""
    queue = scheduler(2, slots=4)
    queue.holds("d0", "weights")
    for number in range(3):
        queue.submit(request(f"r{number}", expected_s=0.7))
    assert decided(queue, 0.0) == [
        ("r0", "d0", Placement.RESIDENT),
        ("r1", "d0", Placement.RESIDENT),
        ("r2", "d1", Placement.REPLICATED),
    ]


def test_what_fills_a_device_goes_to_another_only_for_a_longer_wait() -> None:
    """One that has dropped something for a group's limit is not full."""
    for dropped, is_full, moves in ((False, False, True), (True, True, False), (True, False, True)):
        queue = scheduler(2)
        queue.holds("d0", "weights")
        if dropped:
            queue.holds("d1", "old")
            queue.dropped("d1", "old", is_full=is_full)
        queue.submit(request("first", expected_s=2.0))
        queue.submit(request("second", expected_s=2.0))
        assert len(decided(queue, 0.0)) == 1 + moves, (dropped, is_full)


def test_data_that_no_device_has_go_where_least_was_brought() -> None:
    queue = scheduler(2)
    for name, expected in (("a", "d0"), ("b", "d1"), ("c", "d0"), ("d", "d1")):
        one = request(name, (Datum(name, 1.0),))
        queue.submit(one)
        assert decided(queue, 0.0) == [(name, expected, Placement.LOADED)]
        queue.finished(one, 0.0, 0.0)
    assert queue.remove_device("d1") == []
    queue.add_device("d1")
    for name in "ef":
        one = request(name, (Datum(name, 1.0),))
        queue.submit(one)
        assert decided(queue, 0.0) == [(name, "d1", Placement.LOADED)]
        queue.finished(one, 0.0, 0.0)


@pytest.mark.parametrize(("more_bytes", "times"), [(100, 1), (150, FULL_COST), (200, FULL_COST)])
def test_what_leaves_requests_too_little_for_themselves_fills_a_device(more_bytes: int, times: float) -> None:
    """1600 bytes, of which 1400 are taken, and 100 are not for what stays."""
    residents: Residents[str] = Residents()
    residents.limit("d", 1600)
    residents.add("d", "first", 1.0, 1400)
    assert residents.cost_s("d", [Datum("second", 1.0, more_bytes)]) == times
