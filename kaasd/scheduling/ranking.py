"""Who is first: things by a number that changes."""

from __future__ import annotations

import math
from collections.abc import Hashable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Ranking(Generic[T]):
    """Things in the order of their keys, the lowest first; of equal ones, who got that key first. Each step takes O(log n)."""

    def __init__(self) -> None:
        self._keys: dict[T, float] = {}
        self._entries: list[tuple[float, int, T]] = []
        """A heap. What is no longer true is passed over when it comes to the front."""
        self._numbers = count()

    def set(self, thing: T, key: float) -> None:
        """Give a thing a key, in place of the one that it has."""
        if self._keys.get(thing) == key:
            return
        self._keys[thing] = key
        heappush(self._entries, (key, next(self._numbers), thing))
        if len(self._entries) > 4 * len(self._keys) + 64:
            self._entries = [entry for entry in self._entries if self._keys.get(entry[2]) == entry[0]]
            heapify(self._entries)

    def discard(self, thing: T) -> None:
        """Take a thing out. Idempotent."""
        self._keys.pop(thing, None)

    def first(self) -> T | None:
        """Return the thing with the lowest key; None where there is none."""
        while self._entries:
            key, _, thing = self._entries[0]
            if self._keys.get(thing) == key:
                return thing
            heappop(self._entries)
        return None

    def key(self, thing: T | None) -> float:
        """Return the key of a thing; infinity for what has none."""
        return math.inf if thing is None else self._keys.get(thing, math.inf)
