"""How long requests take: what is expected of the next one of a function, from those before."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import islice

DEFAULT_S = 1e-3
"""Expected of what never ran; put right by the first that has."""
WEIGHT = 0.25
"""Of the latest time, against those before."""
MOST_FUNCTIONS = 16384
"""Functions that are known, at about 200 bytes each; beyond, the one that was new first is forgotten."""


class Durations:
    """Device times by function."""

    def __init__(self) -> None:
        self._expected_s: dict[Hashable, float] = {}

    def expected_s(self, function: Hashable) -> float:
        """Return the device time that the next request of a function is likely to take."""
        return self._expected_s.get(function, DEFAULT_S)

    def latest(self, most: int) -> dict[Hashable, float]:
        """Return what is expected of the functions that were new last, at most so many."""
        return dict(islice(reversed(self._expected_s.items()), most))

    def learn(self, function: Hashable, device_s: float) -> None:
        """A request of a function took ``device_s``."""
        known = self._expected_s.get(function)
        if known is None:
            if len(self._expected_s) >= MOST_FUNCTIONS:
                del self._expected_s[next(iter(self._expected_s))]
            self._expected_s[function] = device_s
        else:
            self._expected_s[function] = known + WEIGHT * (device_s - known)
