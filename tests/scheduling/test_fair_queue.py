"""Virtual time: where a group enters, what it keeps, and what is expected of its next request."""

from __future__ import annotations

import pytest

from kaasd.scheduling import Group, QueuedRequest
from kaasd.scheduling.durations import DEFAULT_S, MOST_FUNCTIONS, Durations
from kaasd.scheduling.fair_queue import LAG_REQUESTS, GroupState

LONGEST_S = 0.5


def state_at(tag: float, share: float = 1.0) -> GroupState:
    state = GroupState(Group("a", share))
    state.tag = tag
    return state


def test_a_new_group_enters_at_the_virtual_time_of_all() -> None:
    state = GroupState(Group("a"))
    state.enter(7.0, LONGEST_S)
    assert state.tag == 7.0


def test_who_is_ahead_stays_ahead() -> None:
    state = state_at(9.0)
    state.idle(3.0)
    state.enter(7.0, LONGEST_S)
    assert state.tag == 9.0


@pytest.mark.parametrize("share", [1.0, 4.0])
def test_who_has_requests_at_devices_stays_behind_by_a_few_of_the_longest_requests(share: float) -> None:
    state = state_at(1.0, share)
    state.send(QueuedRequest(1), 0.0)
    state.enter(7.0, LONGEST_S)
    assert state.tag == 7.0 - LAG_REQUESTS * LONGEST_S / share


def test_what_an_idle_group_is_owed_fades_as_the_others_go_on() -> None:
    for now, tag in ((7.0, 6.2), (7.1, 6.2), (7.4, 6.8), (8.0, 8.0), (9.0, 9.0)):
        state = state_at(6.2)
        state.idle(7.0)
        state.enter(now, LONGEST_S)
        assert state.tag == pytest.approx(tag), now


def test_a_request_is_expected_to_take_what_those_before_took_the_latest_most() -> None:
    durations = Durations()
    assert durations.expected_s("f") == DEFAULT_S
    durations.learn("f", 8.0)
    assert durations.expected_s("f") == 8.0
    durations.learn("f", 4.0)
    assert durations.expected_s("f") == 7.0
    assert durations.expected_s("g") == DEFAULT_S


def test_functions_beyond_the_limit_are_forgotten() -> None:
    durations = Durations()
    for number in range(MOST_FUNCTIONS + 1):
        durations.learn(number, 1.0)
    assert durations.expected_s(0) == DEFAULT_S
    assert durations.expected_s(1) == durations.expected_s(MOST_FUNCTIONS) == 1.0
