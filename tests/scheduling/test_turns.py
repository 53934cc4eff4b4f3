"""In what order a group wants its requests: priority, turns of those who send them, deadlines, arrival."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaasd.scheduling import QueuedRequest, State
from kaasd.scheduling.turns import Turns


def requests_of(senders: Iterable[object], **options: object) -> list[QueuedRequest]:
    made = [QueuedRequest(number, sender=sender, **options) for number, sender in enumerate(senders)]  # type: ignore[arg-type]
    for number, request in enumerate(made):
        request.number = number
    return made


def turns_of(requests: Iterable[QueuedRequest]) -> Turns:
    turns = Turns()
    for request in requests:
        turns.push(request)
    return turns


def emptied(turns: Turns) -> list[object]:
    order = []
    while turns.waiting:
        first = turns.first()
        assert turns.pop() is first
        first.state = State.RUNNING
        order.append(first.id)
    return order


def test_senders_take_turns_and_those_of_one_come_as_they_came() -> None:
    assert emptied(turns_of(requests_of("aaaaabbc"))) == [0, 5, 7, 1, 6, 2, 3, 4]


def test_who_comes_late_waits_for_one_request_of_each_other() -> None:
    turns = turns_of(requests_of([number % 4 for number in range(100)]))
    for _ in range(10):
        turns.pop()
    late = QueuedRequest("late", sender="late")
    late.number = 1000
    turns.push(late)
    assert emptied(turns).index("late") <= 4


def test_who_was_late_before_has_not_saved_turns() -> None:
    turns = turns_of([*requests_of("a" * 50)])
    for _ in range(40):
        turns.pop()
    more = requests_of("b" * 10)
    for request in more:
        request.id, request.number = f"b{request.number}", 100 + request.number
        turns.push(request)
    assert emptied(turns)[:6] == ["b0", 40, "b1", 41, "b2", 42]


def test_a_higher_priority_comes_first_whoever_sends_it() -> None:
    requests = requests_of("aabb")
    requests[1].priority = requests[3].priority = 5
    assert emptied(turns_of(requests)) == [1, 3, 0, 2]


@pytest.mark.parametrize("senders", ["aaaa", "abcd"])
def test_of_one_turn_the_earliest_deadline_comes_first(senders: str) -> None:
    requests = requests_of(senders)
    for request, deadline in zip(requests, (9.0, 3.0, math.inf, 6.0), strict=True):
        request.deadline = deadline
    assert emptied(turns_of(requests)) == [1, 3, 0, 2]


def test_what_has_left_before_comes_before_all() -> None:
    requests = requests_of("abab")
    requests[2].left_before = requests[3].left_before = True
    assert emptied(turns_of(requests)) == [2, 3, 0, 1]


def test_what_a_sender_has_waiting_takes_so_long_at_least() -> None:
    requests = requests_of("aab")
    for request, least_s in zip(requests, (1.0, 2.0, 4.0), strict=True):
        request.least_s = least_s
    turns = Turns()
    turns.push(requests[0])
    assert (turns.ahead_s("a"), turns.ahead_s("b")) == (1.0, 0.0)
    for request in requests[1:]:
        turns.push(request)
    assert (turns.ahead_s("a"), turns.ahead_s("b"), turns.ahead_s("c")) == (3.0, 4.0, 0.0)
    requests[1].state = State.ENDED
    turns.discarded(requests[1])
    assert turns.ahead_s("a") == 1.0


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("push"), st.sampled_from("abc"), st.integers(-1, 1), st.sampled_from([1.0, 2.0, math.inf])),
            st.tuples(st.just("pop")),
            st.tuples(st.just("discard"), st.integers(0, 100)),
        ),
        max_size=150,
    )
)
def test_nothing_is_lost_and_nobody_waits_for_two_of_another(events: list[tuple]) -> None:
    """Priorities that change in between may add one to what a sender waits for."""
    turns, waiting, number = Turns(), {}, 0
    passed: dict[object, dict[object, int]] = {}
    for kind, *rest in events:
        if kind == "push":
            sender, priority, deadline = rest
            request = QueuedRequest(number, sender=sender, priority=priority, deadline=deadline)
            request.number = number
            waiting[number] = request
            number += 1
            was_first = turns.push(request)
            assert was_first is (turns.first() is request)
        elif kind == "pop" and waiting:
            request = turns.pop()
            request.state = State.RUNNING
            assert waiting.pop(request.id) is request
            top = max((other.priority for other in waiting.values()), default=-9)
            assert request.priority >= top
            passed.pop(request.sender, None)
            for sender in {other.sender for other in waiting.values() if other.priority == request.priority}:
                others = passed.setdefault(sender, {})
                others[request.sender] = others.get(request.sender, 0) + (sender != request.sender)
                assert others[request.sender] <= 2
        elif kind == "discard" and waiting:
            request = waiting.pop(list(waiting)[rest[0] % len(waiting)])
            request.state = State.ENDED
            turns.discarded(request)
            passed.clear()
        assert turns.waiting == len(waiting)
        assert {request.id for request in turns} == set(waiting)
    assert sorted(emptied(turns)) == sorted(waiting)


def test_one_that_comes_back_again_is_told_from_its_place_of_before() -> None:
    """Places of it that are dead may be in the heap still, where those of others moved them."""
    high, low, other, last = requests_of("bcab")
    high.priority, low.priority, other.priority = 3, 1, 2
    turns = turns_of([])

    def put_back(request: QueuedRequest) -> None:
        request.left_before = True
        turns.push(request)

    for request in (high, low):
        turns.push(request)
        assert turns.pop() is request
    put_back(low)
    put_back(high)
    turns.push(other)
    assert turns.pop() is high
    turns.push(last)
    put_back(high)
    assert turns.pop() is high
    other.state = State.ENDED
    turns.discarded(other)
    assert turns.pop() is low
    put_back(low)
    assert emptied(turns) == [low.id, last.id]
