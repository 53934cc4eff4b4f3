"""The calls in flight in the front: how many, what further ones fail with, and an event loop that stays awake for a lone one."""

from __future__ import annotations

import asyncio
from time import perf_counter_ns

from kaas_core.errors import CancelledError, KaasError


class BusyPoll:
    """Has the running event loop look for events, instead of sleeping until one comes, for a while after each ``extend``.

    To be woken costs 20 to 100 microseconds, twice for each request: for what comes from the caller and from the worker. With
    several requests in flight the loop hardly sleeps anyway, and would only look more often for the same events.
    """

    def __init__(self, duration_s: float) -> None:
        """0 for ``duration_s`` lets the loop sleep."""
        self._loop = asyncio.get_running_loop()
        self._duration_ns = round(duration_s * 1e9)
        self._until_ns = 0
        self._polling = False

    def extend(self) -> None:
        """A request has come or gone."""
        if self._duration_ns:
            self._until_ns = perf_counter_ns() + self._duration_ns
            if not self._polling:
                self._polling = True
                self._loop.call_soon(self._again)

    def end(self) -> None:
        """Sleep from now on, until the next ``extend``."""
        self._until_ns = 0

    def _again(self) -> None:
        self._polling = perf_counter_ns() < self._until_ns
        if self._polling:
            self._loop.call_soon(self._again)


class InFlight:
    """Counts the calls that are in its ``with`` block."""

    def __init__(self, busy_poll: BusyPoll) -> None:
        self._busy_poll = busy_poll
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()
        self.refusal: KaasError | None = None
        """What further calls fail with."""

    def __enter__(self) -> None:
        if self.refusal is not None:
            raise self.refusal.with_traceback(None)
        self._count += 1
        self._none.clear()
        self._keep_awake()

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if self._count == 0:
            self._none.set()
        self._keep_awake()

    @property
    def only_call(self) -> bool:
        """Whether no other call is in flight."""
        return self._count == 1

    def _keep_awake(self) -> None:
        if self._count <= 1:
            self._busy_poll.extend()
        else:
            self._busy_poll.end()

    def resume(self) -> None:
        """Refuse no call any more, and have who waits for the last to end wait no longer."""
        self.refusal = None
        self._none.set()
        if self._count:
            self._none = asyncio.Event()

    async def none_left(self) -> None:
        """Return when no call is in flight.

        Raises ``CancelledError`` where calls are taken again before, and where they are refused for another reason, that.
        """
        refusal = self.refusal
        await self._none.wait()
        if self.refusal is not refusal:
            raise CancelledError("the drain was undone") if self.refusal is None else self.refusal.with_traceback(None)
