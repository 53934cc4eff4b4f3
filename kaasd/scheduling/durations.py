"""How long requests take: what is expected of the next one of a function, from those before."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import islice

DEFAULT_S = 1e-3
"""Expected of what never ran; put right by the first that has."""
WEIGHT = 0.25
"""Of the latest time, against those before."""
LEAST_WEIGHT = 0.02
"""The same, for the least: what takes longer from now on is noticed in the end."""
MOST_FUNCTIONS = 16384
"""Functions that are known, at about 300 bytes each; beyond, the one that was new first is forgotten."""


class Durations:
    """Device times by function."""

    def __init__(self) -> None:
        self._expected_s: dict[Hashable, float] = {}
        self._least_s: dict[Hashable, float] = {}
        """Of the functions that are known."""

    def expected_s(self, function: Hashable) -> float:
        """Return the device time that the next request of a function is likely to take."""
        return self._expected_s.get(function, DEFAULT_S)

    def least_s(self, function: Hashable) -> float:
        """Return the device time that the next request of a function takes at least: the least, or little more. 0: not known."""
        return self._least_s.get(function, 0.0)

    def doubt(self, function: Hashable) -> None:
        """A request of a function was not run because of what it takes at least: believe less in that."""
        if function in self._least_s:
            self._least_s[function] *= 1 - WEIGHT

    def latest(self, most: int) -> dict[Hashable, float]:
        """Return what is expected of the functions that were new last, at most so many."""
        return dict(islice(reversed(self._expected_s.items()), most))

    def latest_below(self, most: int, below_s: float) -> set[Hashable]:
        """Return those of the functions that were new last, at most so many, that take less at least."""
        return {function for function in islice(reversed(self._least_s), most) if self._least_s[function] < below_s}

    def learn(self, function: Hashable, device_s: float) -> None:
        """A request of a function took ``device_s``."""
        known = self._expected_s.get(function)
        if known is None:
            if len(self._expected_s) >= MOST_FUNCTIONS:
                first = next(iter(self._expected_s))
                del self._expected_s[first], self._least_s[first]
            self._expected_s[function] = self._least_s[function] = device_s
        else:
            self._expected_s[function] = known + WEIGHT * (device_s - known)
            least_s = self._least_s[function]
            self._least_s[function] = device_s if device_s < least_s else least_s + LEAST_WEIGHT * (device_s - least_s)
