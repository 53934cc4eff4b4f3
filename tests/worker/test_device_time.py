"""The time for which a device is busy, divided among the runs that are there."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaasd.worker.device_time import STEP_NS, DeviceTime

MS = 1_000_000


@dataclass(eq=False)
class Run:
    """A run, whose times come to be known."""

    begins: int
    ends: int
    now: int = 0
    untold: bool = False
    """It was stopped, and never tells its end."""

    @property
    def times_ns(self) -> tuple[int, int]:
        return self.begins * (self.begins <= self.now), self.ends * (self.ends <= self.now and not self.untold)


def used_ms(*times: tuple[int, int], order: list[int] | None = None) -> list[float]:
    """Run all, each from and to so many milliseconds; ask for their ends in some order, once all have ended."""
    device = DeviceTime()
    runs = [Run(begins * MS, ends * MS, now=10**12) for begins, ends in times]
    for run in runs:
        device.start(run)
    used = {index: device.end(runs[index]) for index in order or range(len(runs))}
    return [used[index] / MS for index in range(len(runs))]


def test_who_is_alone_uses_all() -> None:
    assert used_ms((10, 15)) == [5]
    assert used_ms((10, 15), (20, 21)) == [5, 1]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
def test_who_is_beside_others_uses_a_part(order: list[int]) -> None:
    """The first two share 10 ms; then all three 6; then the last two 4, and the last one has 10 alone."""
    assert used_ms((10, 26), (10, 30), (20, 40), order=order) == [7, 9, 14]


def test_a_run_can_come_again_and_one_that_waits_uses_nothing() -> None:
    device = DeviceTime()
    run, waits = Run(10 * MS, 12 * MS, now=15 * MS), Run(40 * MS, 41 * MS, now=15 * MS)
    device.start(run)
    device.start(waits)
    assert device.end(run) == 2 * MS
    run.begins, run.ends, run.now = 20 * MS, 23 * MS, 30 * MS
    device.start(run)
    assert device.end(run) == 3 * MS
    assert device.end(run) == 0
    waits.now = 50 * MS
    assert device.end(waits) == MS


def test_what_tells_no_end_leaves_all_to_the_others() -> None:
    device = DeviceTime()
    stopped, first, second = (Run(10 * MS, ends * MS, now=100 * MS) for ends in (90, 20, 30))
    stopped.untold = True
    for run in (stopped, first, second):
        device.start(run)
    assert device.end(first) == round(10 * MS / 3)
    assert device.end(stopped) == 0
    assert device.end(second) == round(10 * MS / 3 + 10 * MS)


def test_the_shortest_uses_something() -> None:
    assert used_ms((10, 10)) == [STEP_NS / MS]


times = st.tuples(st.integers(1, 40), st.integers(0, 20)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(data=st.data(), all_times=st.lists(times, min_size=1, max_size=12))
def test_all_use_together_what_the_device_was_busy(data: st.DataObject, all_times: list[tuple[int, int]]) -> None:
    """Whenever each end is noticed, in whatever order."""
    device = DeviceTime()
    runs = [Run(begins * MS, ends * MS) for begins, ends in all_times]
    expected = dict.fromkeys(runs, 0.0)
    for begins in range(1, 61):
        there = [run for run in runs if run.begins <= begins * MS < run.ends]
        for run in there:
            expected[run] += MS / len(there)
    left = dict.fromkeys(runs)
    for run in runs:
        device.start(run)
    for now in range(1, 63):
        for run in runs:
            run.now = now * MS
        ended = [run for run in left if run.ends <= run.now]
        if now < 62:
            ended = [run for run in data.draw(st.permutations(ended)) if data.draw(st.booleans())] if ended else []
        for run in ended:
            del left[run]
            assert device.end(run) == pytest.approx(max(STEP_NS, expected[run]), abs=2)
    assert not left
