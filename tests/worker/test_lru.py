"""The cache that is bounded by bytes."""

from __future__ import annotations

from kaasd.lru import LruCache


def test_what_was_used_longest_ago_goes_first() -> None:
    cache: LruCache[str, int] = LruCache(10)
    cache.put("a", 1, 4)
    cache.put("b", 2, 4)
    assert cache.get("a") == 1
    cache.put("c", 3, 4)
    assert [cache.get(key) for key in "abc"] == [1, None, 3]


def test_as_many_go_as_the_new_one_needs() -> None:
    cache: LruCache[str, int] = LruCache(10)
    for key in "abcde":
        cache.put(key, 0, 2)
    cache.put("f", 1, 7)
    assert [key for key in "abcdef" if cache.get(key) is not None] == ["e", "f"]


def test_a_key_is_counted_once() -> None:
    cache: LruCache[str, int] = LruCache(10)
    for value in range(20):
        cache.put("a", value, 6)
    cache.put("b", 7, 4)
    assert (cache.get("a"), cache.get("b"), len(cache)) == (19, 7, 2)


def test_what_is_over_the_limit_alone_is_not_kept() -> None:
    cache: LruCache[str, int] = LruCache(10)
    cache.put("a", 1, 3)
    cache.put("a", 2, 11)
    cache.put("b", 3, 10)
    assert (cache.get("a"), cache.get("b")) == (None, 3)


def test_discarding_makes_room() -> None:
    cache: LruCache[str, int] = LruCache(10)
    cache.put("a", 1, 10)
    cache.discard("a")
    cache.discard("absent")
    cache.put("b", 2, 5)
    cache.put("c", 3, 5)
    assert [cache.get(key) for key in "abc"] == [None, 2, 3]
