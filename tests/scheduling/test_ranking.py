"""A ranking beside a sorted list."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from kaasd.scheduling.ranking import Ranking


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.none() | st.integers(0, 9)), max_size=400))
def test_the_first_is_the_lowest(steps: list[tuple[int, int | None]]) -> None:
    ranking: Ranking[int] = Ranking()
    keys: dict[int, int] = {}
    for thing, key in steps:
        if key is None:
            ranking.discard(thing)
            keys.pop(thing, None)
        else:
            ranking.set(thing, key)
            keys[thing] = key
        first = ranking.first()
        assert ranking.key(first) == min(keys.values(), default=math.inf)
        assert (first is None) == (not keys)
        assert ranking.key(thing) == keys.get(thing, math.inf)


def test_it_does_not_grow_with_its_changes() -> None:
    ranking: Ranking[str] = Ranking()
    for key in range(10_000):
        ranking.set("last", 1e9)
        ranking.set("changes", key)
    assert len(ranking._entries) <= 4 * 2 + 64
    assert ranking.first() == "changes"


def test_of_equal_ones_the_first_to_get_its_key() -> None:
    ranking: Ranking[str] = Ranking()
    for thing in ("a", "b", "c"):
        ranking.set(thing, 1.0)
    assert ranking.first() == "a"
    ranking.discard("a")
    assert ranking.first() == "b"
