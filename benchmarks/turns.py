"""Measures alternatives in turns, so that what the machine does meanwhile hits all of them, and sums up what was seen."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Contender = Callable[[], Sequence[float]]
"""Makes one block of measurements and returns them."""


@dataclass(frozen=True)
class Figure:
    """A median and its spread."""

    median: float
    p10: float
    p90: float
    p99: float
    samples: int

    @classmethod
    def of(cls, samples: ArrayLike) -> Figure:
        """Sum up what was measured, one number at least."""
        values = np.asarray(samples, dtype=np.float64)
        p10, median, p90, p99 = (float(value) for value in np.percentile(values, [10, 50, 90, 99]))
        return cls(median, p10, p90, p99, values.size)

    def scaled(self, factor: float) -> Figure:
        """Return the same in another unit."""
        return Figure(self.median * factor, self.p10 * factor, self.p90 * factor, self.p99 * factor, self.samples)


@dataclass(frozen=True)
class Turns:
    """What every contender measured, by name: one list of samples a round."""

    rounds: Mapping[str, list[list[float]]]

    def __contains__(self, name: str) -> bool:
        return name in self.rounds

    def figure(self, name: str) -> Figure:
        """Return the figure of all samples of one contender."""
        return Figure.of(np.concatenate([np.asarray(block) for block in self.rounds[name]]))

    def ratio(self, name: str, other: str) -> Figure:
        """Return how the medians of one contender relate to those of another, round by round."""
        pairs = zip(self.rounds[name], self.rounds[other], strict=True)
        return Figure.of([float(np.median(mine) / np.median(theirs)) for mine, theirs in pairs])


def take_turns(
    contenders: Mapping[str, Contender], *, rounds: int, seconds: float, warm_up: int = 1, least_rounds: int = 3
) -> Turns:
    """Let every contender measure a block a round: ``rounds`` times, or fewer where that takes more than ``seconds``.

    Every second round goes the other way about, so that none always follows the same neighbour. The blocks of ``warm_up`` rounds
    before are thrown away.
    """
    for _ in range(warm_up):
        for measure in contenders.values():
            measure()
    blocks: dict[str, list[list[float]]] = {name: [] for name in contenders}
    end = time.monotonic() + seconds
    for done in range(rounds):
        if done >= least_rounds and time.monotonic() > end:
            break
        for name in list(contenders)[:: -1 if done % 2 else 1]:
            blocks[name].append(list(contenders[name]()))
    return Turns(blocks)


def timed(work: Callable[[], Any], times: int = 1) -> Contender:
    """Return a contender that does ``work`` a number of times and measures each in seconds."""

    def measure() -> list[float]:
        samples = []
        for _ in range(times):
            start = time.perf_counter()
            work()
            samples.append(time.perf_counter() - start)
        return samples

    return measure
