"""Which part of the devices each group is due, and which it has got lately. No clock: the time is told."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from kaasd.scheduling.group import Group, GroupUse

WINDOW_S = 10.0
"""Lately."""
SAMPLE_S = 1.0
"""Between two samples: what counts is up to so much longer than ``WINDOW_S``."""


@dataclass(frozen=True, slots=True)
class Shares:
    """Parts of the whole."""

    wanted: float
    """Of the shares of all groups that have requests; 0 where it has none."""
    got: float
    """Of the device time of all groups, lately; 0 where no device was used."""


class ShareMeter:
    """Compares the device times of groups with what they were a while ago."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, dict[str, float]]] = deque()
        """When, and the device time of each group until then, in seconds. The first is ``WINDOW_S`` old, once one is."""

    def sample(self, uses: Mapping[Group, GroupUse], now: float) -> None:
        """Note what groups have used. To be told each ``SAMPLE_S``."""
        self._samples.append((now, {group.name: use.device_s for group, use in uses.items()}))
        while len(self._samples) > 1 and self._samples[1][0] <= now - WINDOW_S:
            self._samples.popleft()

    def shares(self, uses: Mapping[Group, GroupUse]) -> dict[str, Shares]:
        """Return the shares of groups by name, from what they use now."""
        wanting = sum(group.share for group, use in uses.items() if use.queued or use.running)
        before = self._samples[0][1] if self._samples else {}
        lately = {group.name: _since(before.get(group.name, 0.0), use.device_s) for group, use in uses.items()}
        used_s = sum(lately.values())
        return {
            group.name: Shares(
                group.share / wanting if use.queued or use.running else 0.0, lately[group.name] / used_s if used_s else 0.0
            )
            for group, use in uses.items()
        }


def _since(before_s: float, now_s: float) -> float:
    """Return what a group has used since a sample. One that was removed, and made again, has begun anew."""
    return now_s - before_s if now_s >= before_s else now_s
