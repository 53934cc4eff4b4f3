"""Turns: who measures when, and what the samples come to."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.report import Row, Target, targets
from benchmarks.turns import Figure, Turns, take_turns


def contender(name: str, log: list[str]) -> Callable[[], list[float]]:
    def measure() -> list[float]:
        log.append(name)
        return [float(len(log))]

    return measure


def test_neighbours_change_sides_and_the_warm_up_is_thrown_away() -> None:
    log: list[str] = []
    turns = take_turns({name: contender(name, log) for name in "abc"}, rounds=2, seconds=60)
    assert "".join(log) == "abc" + "abc" + "cba"
    assert turns.rounds == {"a": [[4.0], [9.0]], "b": [[5.0], [8.0]], "c": [[6.0], [7.0]]}


def test_no_more_rounds_than_there_is_time_for() -> None:
    turns = take_turns({"a": lambda: [1.0]}, rounds=100, seconds=0, least_rounds=3)
    assert len(turns.rounds["a"]) == 3


def test_a_figure_is_the_median_and_percentiles() -> None:
    figure = Figure.of(range(101))
    assert figure == Figure(median=50.0, p10=10.0, p90=90.0, p99=99.0, samples=101)
    assert figure.scaled(2).p90 == 180.0


def test_a_ratio_is_that_of_the_medians_of_a_round() -> None:
    """What slows a whole round down leaves no trace in it."""
    turns = Turns({"kaasd": [[2.0, 4.0, 3.0], [30.0]], "echo": [[1.0, 1.0, 9.0], [10.0]]})
    assert turns.ratio("kaasd", "echo") == Figure.of([3.0, 3.0])
    assert turns.figure("kaasd").samples == 4


@pytest.mark.parametrize(("bounds", "met"), [({"at_most": 1.3}, False), ({"at_most": 1.5}, True), ({"at_least": 1.5}, True)])
def test_a_target_is_met_by_the_median(bounds: dict[str, float], met: bool) -> None:
    assert Target("echo", Figure.of([1.0, 1.5, 9.0]), **bounds).met is met


def test_a_target_beside_what_is_missing_is_left_out() -> None:
    turns = Turns({"kaasd": [[2.0]], "echo": [[1.0]]})
    (target,) = targets(turns, at_most={"echo": 1.3, "not there": 1.0})
    assert str(target) == "2 × echo (≤ 1.3)"  # noqa: RUF001
    row = Row("dot", "a request", "µs", turns.figure("kaasd"), {"not there": "not installed"}, [target])
    found = row.to_json()
    assert (found["kaasd"]["median"], found["beside"], found["targets"][0]["met"]) == (2.0, {"not there": "not installed"}, False)
