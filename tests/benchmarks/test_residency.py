"""What the row of inputs beyond the limit is measured against."""

from __future__ import annotations

from itertools import islice

import pytest

from benchmarks.rows.residency import BOUND, LRU, RESIDENT, ZIPF, Traces, bound_misses, lru_misses, requests_per_second
from benchmarks.turns import Turns


def test_lru_misses_everything_in_a_cycle_of_one_too_many() -> None:
    cycle = [0, 1, 2, 3] * 3
    assert lru_misses([cycle, cycle], capacity=3) == [1.0, 1.0]


def test_lru_keeps_what_fits_from_one_block_to_the_next() -> None:
    assert lru_misses([[0, 1, 2], [0, 1, 2]], capacity=3) == [1.0, 0.0]


def test_lru_drops_what_was_used_longest_ago() -> None:
    assert lru_misses([[0, 1, 0, 2, 0, 1]], capacity=2) == [pytest.approx(4 / 6)]


def test_turns_go_on_from_block_to_block() -> None:
    assert list(islice(Traces(3, 4, "in turn"), 2)) == [[0, 1, 2, 0], [1, 2, 0, 1]]


def test_random_blocks_name_every_tenant() -> None:
    first, second = islice(Traces(5, 100, "at random"), 2)
    assert set(first) == set(range(5)) and first != second


def test_zipf_names_the_first_most_often() -> None:
    (trace,) = islice(Traces(4, 1200, ZIPF), 1)
    counts = [trace.count(tenant) for tenant in range(4)]
    # Weights 1, 1/2, 1/3 and 1/4 are 12, 6, 4 and 3 of 25.
    assert counts == [pytest.approx(1200 * weight / 25, abs=60) for weight in (12, 6, 4, 3)]


def test_at_best_those_stay_that_come_most_often() -> None:
    assert bound_misses(4, 2, "in turn") == pytest.approx(0.5)
    assert bound_misses(4, 2, ZIPF) == pytest.approx(7 / 25)
    assert bound_misses(2, 4, "at random") == 0.0


def test_the_bound_loads_its_share_at_the_speed_of_the_bus() -> None:
    """A hit takes 1 s and a copy 4 s: at twice the limit a request takes 3 s, and LRU that misses everything 5 s."""
    turns = Turns({"kaasd": [[4.0]], RESIDENT: [[1.0]], "copy": [[4.0]]})
    rates = requests_per_second(turns, misses_at_best=0.5, lru=[0.25, 1.0], at_once=False)
    assert rates.rounds == {"kaasd": [[1 / 4]], RESIDENT: [[1.0]], BOUND: [[1 / 3]], LRU: [[1 / 5]]}
    rates = requests_per_second(turns, misses_at_best=0.5, lru=[1.0], at_once=True)
    assert (rates.rounds[BOUND], rates.rounds[LRU]) == ([[1 / 2]], [[1 / 4]])
