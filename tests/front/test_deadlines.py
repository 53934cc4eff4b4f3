"""Deadlines of many calls with one timer, at times that the test chooses."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from kaasd.front.call_queue import Deadlines


class Clock:
    """Time that passes as the test says, with the one timer of some deadlines."""

    def __init__(self) -> None:
        self.deadlines = Deadlines()
        self.now = 0.0
        self.passed: list[int] = []
        self.timers_set = 0

    def add(self, call: int, deadline: float) -> None:
        self.timers_set += self.deadlines.add(call, deadline)

    def until(self, when: float) -> None:
        """Let the timer go off whenever it is due up to a time."""
        while self.deadlines.wakes_at <= when:
            self.now = max(self.now, self.deadlines.wakes_at)
            self.passed += self.deadlines.passed(self.now)
            self.timers_set += self.deadlines.wakes_at < math.inf
        self.now = when


def test_each_passes_once_at_its_time() -> None:
    clock = Clock()
    for call, deadline in ((1, 5.0), (2, 3.0), (3, 5.0), (4, 9.0)):
        clock.add(call, deadline)
    assert clock.timers_set == 2
    clock.until(2.9)
    assert clock.passed == []
    clock.until(3.0)
    assert clock.passed == [2]
    clock.until(8.0)
    assert clock.passed == [2, 1, 3]
    clock.add(5, 1.0)  # over already
    clock.until(8.0)
    assert clock.passed == [2, 1, 3, 5]
    clock.until(20.0)
    assert clock.passed == [2, 1, 3, 5, 4]
    assert clock.deadlines.wakes_at == math.inf


def test_a_timer_that_is_early_by_the_clocks_resolution_does_not_go_off_again() -> None:
    deadlines = Deadlines()
    assert deadlines.add(1, 5.0)
    assert deadlines.passed(4.999) == [1]


def test_those_that_end_in_time_set_hardly_a_timer() -> None:
    clock = Clock()
    for call in range(1000):
        clock.add(call, clock.now + 60)
        clock.until(clock.now + 0.001)
        clock.deadlines.discard(call)
    assert clock.timers_set == 1
    clock.until(1000)
    assert clock.passed == []
    clock.deadlines.discard(7)  # once more


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans(), st.integers(0, 5)), max_size=30))
def test_as_a_timer_for_each(steps: list[tuple[int, bool, int]]) -> None:
    clock = Clock()
    expected: dict[int, float] = {}
    for call, (after, ends, wait) in enumerate(steps):
        clock.add(call, clock.now + after)
        expected[call] = clock.now + after
        clock.until(clock.now + wait)
        if ends:
            clock.deadlines.discard(call)
            if expected[call] > clock.now:
                del expected[call]
    clock.until(1e6)
    assert sorted(clock.passed) == sorted(expected)
    assert [expected[call] for call in clock.passed] == sorted(expected.values())
