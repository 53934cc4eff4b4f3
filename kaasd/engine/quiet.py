"""When code may be loaded. A state machine: the time in, decisions out, no I/O.

CUDA copies code to a GPU only once all kernels there have ended, and meanwhile no other can be launched; so whoever loads while a
long kernel runs would stop all requests for as long. A request that needs code from a new library waits for a moment without
kernels instead. So that this comes where requests are never few, launches are held back for short whiles, each twice as long as
the last and followed by nine times as long without: after about 20 t there is one in which all that runs for a time t ends, and
the others lose a tenth of their time at most.
"""

from __future__ import annotations

from math import floor, log2

FIRST_HOLD_S = 0.002
"""Many kernels end within this."""
CYCLE = 10
"""So many times as long as the hold is a hold with the pause behind it."""


class Quiet:
    """Those that wait for a moment without kernels."""

    def __init__(self) -> None:
        self._waiting = 0
        self._since_s = 0.0

    def enter(self, now_s: float) -> None:
        """Somebody begins to wait."""
        if not self._waiting:
            self._since_s = now_s
        self._waiting += 1

    def leave(self) -> None:
        """Somebody waits no more."""
        self._waiting -= 1

    def holds_back(self, now_s: float) -> bool:
        """Return whether nothing is to be launched now."""
        if not self._waiting:
            return False
        elapsed = max(0.0, now_s - self._since_s) / FIRST_HOLD_S
        # The cycles take 1, 2, 4, ... times the first one's length.
        number = floor(log2(elapsed / CYCLE + 1))
        begun = CYCLE * ((1 << number) - 1)
        return elapsed < begun + (1 << number)
