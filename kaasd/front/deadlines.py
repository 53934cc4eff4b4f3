"""Deadlines of many calls, with one timer: most calls end long before theirs, and one timer for each would be set in vain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Deadlines:
    """When calls are due, in the running event loop's time."""

    def __init__(self, on_due: Callable[[int], object]) -> None:
        """``on_due`` gets each call whose time has come, once."""
        self._on_due = on_due
        self._loop = asyncio.get_running_loop()
        self._due: dict[int, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = 0.0

    def add(self, call: int, deadline: float) -> None:
        """A call is due at ``deadline``."""
        self._due[call] = deadline
        if self._timer is None or deadline < self._wakes_at:
            self._sleep(deadline)

    def discard(self, call: int) -> None:
        """A call has ended, or not even begun."""
        self._due.pop(call, None)

    def _sleep(self, until: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wakes_at = until
        self._timer = self._loop.call_at(until, self._wake)

    def _wake(self) -> None:
        self._timer = None
        now = max(self._loop.time(), self._wakes_at)  # a loop's timers may be early by its clock's resolution
        due = [call for call, deadline in self._due.items() if deadline <= now]
        for call in due:
            del self._due[call]
        if self._due:
            self._sleep(min(self._due.values()))
        for call in due:
            self._on_due(call)
