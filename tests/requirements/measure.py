"""What each line needs: the first version that ptxas takes it in, and the first target that it takes it for."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from functools import cached_property

from tests.requirements.ptxas import TARGETS, VERSIONS, Ptxas

Measured = dict[str, tuple[int, int]]
"""Of each line that is taken at all: where its first version and its first target stand in ``VERSIONS`` and ``TARGETS``."""

_HOMES = ("sm_62", "sm_90a", TARGETS[-1])
"""Targets that between them take everything: the first takes what later ones have no more."""


class Measurement:
    def __init__(self, ptxas: Ptxas) -> None:
        self._ptxas = ptxas

    @cached_property
    def first_versions(self) -> dict[str, int]:
        """The first version with each target."""
        found = {}
        for target in TARGETS:
            found[target] = next(place for place, version in enumerate(VERSIONS) if self._ptxas.takes(["ret;"], version, target))
        return found

    def _newest(self, version: int) -> set[str]:
        """Targets of a version that between them take all it has: the newest ones, and those that are ``_HOMES``."""
        there = [target for target in TARGETS if self.first_versions[target] <= version]
        plain = [target for target in there if target[-1].isdigit()]
        return {there[0], plain[-1], there[-1], *(target for target in _HOMES if target in there)}

    def lines(self, lines: Iterable[str]) -> Measured:
        """Measure instructions, all at once. What a version refuses is not asked for in those before it."""
        asked, newest = set(lines), len(VERSIONS) - 1
        left = set[str]().union(*(self._ptxas.takes(asked, VERSIONS[newest], target) for target in _HOMES))
        targets = dict[str, int]()
        for place, target in reversed(list(enumerate(TARGETS))):
            targets |= dict.fromkeys(self._ptxas.takes(left, VERSIONS[newest], target), place)
        versions = dict[str, int]()
        for place in reversed(range(len(VERSIONS))):
            left = set().union(*(self._ptxas.takes(left, VERSIONS[place], target) for target in self._newest(place)))
            versions |= dict.fromkeys(left, place)
        return {line: (versions[line], targets[line]) for line in targets}

    def declaration(self, text: str) -> tuple[int, int]:
        """Measure a module with declarations."""

        def takes(version: int, target: str) -> bool:
            head = f".version {VERSIONS[version]}\n.target {target}\n.address_size 64\n"
            return not self._ptxas.refused(head + text + "\n", target)[0]

        places, newest = range(len(VERSIONS)), len(VERSIONS) - 1
        home = [max(self._newest(place), key=TARGETS.index) for place in places]
        version = bisect_left(places, True, key=lambda place: takes(place, home[place]))
        return version, bisect_left(range(len(TARGETS)), True, key=lambda place: takes(newest, TARGETS[place]))
