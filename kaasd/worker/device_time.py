"""How much of its device each run uses: the time for which the device is busy, divided among the runs that are there.

A state machine: no I/O, no clock. Where several run at once, each uses the same part of the time in which they do: a device does
not tell whose kernels are on it and whose wait behind them. So all runs use together the time for which the device was busy.
"""

from __future__ import annotations

from typing import Protocol

STEP_NS = 1000
"""What a run uses at least: clocks of GPUs may go on in steps of this."""


class Timed(Protocol):
    """A run, as far as it is looked at here."""

    @property
    def times_ns(self) -> tuple[int, int]:
        """As of ``Run``."""


class _Part:
    """What is known of a run that is under way."""

    __slots__ = ("begun", "ended", "used_ns")

    def __init__(self) -> None:
        self.begun = self.ended = False
        """Whether that has been counted."""
        self.used_ns = 0.0
        """What each run got until it began, by then; once it has ended, what it has used."""


class DeviceTime:
    """The runs of one device."""

    def __init__(self) -> None:
        self._parts: dict[Timed, _Part] = {}
        self._now_ns = 0
        """Until when all is counted, by the device's clock."""
        self._each_ns = 0.0
        """What a run that has been there always would have used."""
        self._running = 0

    def start(self, run: Timed) -> None:
        """A run has been given to the device."""
        self._parts[run] = _Part()

    def end(self, run: Timed) -> int:
        """A run is over. Return what it has used, in nanoseconds; 0 where it did not come to its end. Idempotent."""
        part = self._parts.get(run)
        if part is None:
            return 0
        begun_ns, ended_ns = run.times_ns
        if not ended_ns:
            self._running -= part.begun and not part.ended
            del self._parts[run]
            return 0
        if len(self._parts) == 1 and not self._running and not part.ended:
            used_ns: float = ended_ns - max(begun_ns, self._now_ns)
            self._now_ns = max(self._now_ns, ended_ns)
        else:
            self._count_until(ended_ns)
            used_ns = part.used_ns
        del self._parts[run]
        return max(STEP_NS, round(used_ns))

    def _count_until(self, until_ns: int) -> None:
        """Take account of all that has begun and ended until some time."""
        events: list[tuple[int, bool, int, _Part]] = []
        for number, (run, part) in enumerate(self._parts.items()):
            begun_ns, ended_ns = run.times_ns
            if (begun_ns or ended_ns) and not part.begun:
                events.append((begun_ns or ended_ns, False, number, part))
            if ended_ns and not part.ended:
                events.append((ended_ns, True, number, part))
        events.sort()
        for at_ns, is_end, _, part in events:
            if at_ns > until_ns:
                break
            if at_ns > self._now_ns:
                if self._running:
                    self._each_ns += (at_ns - self._now_ns) / self._running
                self._now_ns = at_ns
            if is_end:
                part.ended = True
                part.used_ns = self._each_ns - part.used_ns
                self._running -= 1
            else:
                part.begun = True
                part.used_ns = self._each_ns
                self._running += 1
