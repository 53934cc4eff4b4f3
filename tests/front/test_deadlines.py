"""Deadlines of many calls with one timer, on an event loop whose clock the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kaasd.front.deadlines import Deadlines


class Clock(asyncio.SelectorEventLoop):
    """A loop that does not wait: its time jumps to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.timers_set = 0

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, **options: Any) -> asyncio.TimerHandle:
        self.timers_set += 1
        return super().call_at(when, callback, *args, **options)

    async def until(self, when: float) -> None:
        """Return when all timers up to a time have gone off."""
        timers = self._scheduled  # type: ignore[attr-defined]
        while due := [timer.when() for timer in timers if timer.when() <= when and not timer.cancelled()]:
            self.now = min(due)
            await asyncio.sleep(0)  # the loop takes the timers up behind the task that sleeps
            await asyncio.sleep(0)
        self.now = when


def run(test: Callable[[Clock, Deadlines, list[int]], Any]) -> None:
    with asyncio.Runner(loop_factory=Clock) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, Clock)

        async def body() -> None:
            due: list[int] = []
            await test(loop, Deadlines(due.append), due)

        runner.run(body())


def test_each_is_told_once_at_its_time() -> None:
    async def body(clock: Clock, deadlines: Deadlines, due: list[int]) -> None:
        for call, deadline in ((1, 5.0), (2, 3.0), (3, 5.0), (4, 9.0)):
            deadlines.add(call, deadline)
        await clock.until(2.9)
        assert due == []
        await clock.until(3.0)
        assert due == [2]
        await clock.until(8.0)
        assert due == [2, 1, 3]
        deadlines.add(5, 1.0)  # over already
        await clock.until(8.0)
        assert due == [2, 1, 3, 5]
        await clock.until(20.0)
        assert due == [2, 1, 3, 5, 4]

    run(body)


def test_those_that_end_in_time_set_hardly_a_timer() -> None:
    async def body(clock: Clock, deadlines: Deadlines, due: list[int]) -> None:
        for call in range(1000):
            deadlines.add(call, clock.now + 60)
            await clock.until(clock.now + 0.001)
            deadlines.discard(call)
        await clock.until(1000)
        assert due == []
        assert clock.timers_set == 1

    run(body)


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans(), st.integers(0, 5)), max_size=30))
def test_as_a_timer_for_each(steps: list[tuple[int, bool, int]]) -> None:
    async def body(clock: Clock, deadlines: Deadlines, due: list[int]) -> None:
        expected: dict[int, float] = {}
        for call, (after, ends, wait) in enumerate(steps):
            deadlines.add(call, clock.now + after)
            expected[call] = clock.now + after
            await clock.until(clock.now + wait)
            if ends:
                deadlines.discard(call)
                if expected[call] > clock.now:
                    del expected[call]
        await clock.until(1e6)
        assert sorted(due) == sorted(expected)
        assert [expected[call] for call in due] == sorted(expected.values())

    run(body)
