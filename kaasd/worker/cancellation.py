"""Which calls of a worker are to stop: told by a channel of its own in a thread of its own, asked by the main thread."""

from __future__ import annotations

import threading
from time import monotonic

from kaas_core.errors import CancelledError, DeadlineExceededError, KaasError
from kaasd.devices.base import Device
from kaasd.ipc.channel import WorkerChannel

REPEAT_S = 0.01
"""A stop is asked for again until the call has ended: the kernel may not have begun when it first came."""
GRACE_S = 0.2
"""From a deadline to the giving up of a device that cannot stop a kernel. The front kills a worker that does not give it up."""


class Cancellations:
    """The stops that were asked for."""

    def __init__(self, channel: WorkerChannel, device: Device) -> None:
        self._channel = channel
        self._device = device
        self._lock = threading.Lock()
        self._asked: dict[int, KaasError] = {}
        self._running: set[int] = set()
        self._last_begun = 0
        self._put_back: set[int] = set()
        """Calls that were taken up and come again."""
        self.overdue: frozenset[int] = frozenset()
        """Calls that go on past their deadline, on a device that cannot stop them."""
        threading.Thread(target=self._listen, name="stops", daemon=True).start()

    def begin(self, call_id: int) -> None:
        """A call is taken up. Raises the reason if it is to be skipped."""
        with self._lock:
            self._running.add(call_id)
            self._put_back.discard(call_id)
            self._last_begun = max(self._last_begun, call_id)
        self.check(call_id, "queued")

    def reason(self, call_id: int, stage: str = "running") -> KaasError | None:
        """Return why a call is to stop, or None."""
        error = self._asked.get(call_id)
        return None if error is None else type(error)(f"{error.message} while the request was {stage}")

    def check(self, call_id: int, stage: str = "running") -> None:
        """Raise the reason if a call is to stop."""
        if (error := self.reason(call_id, stage)) is not None:
            raise error

    def end(self, call_id: int, *, comes_again: bool = False) -> None:
        """A call has ended; or it has not begun after all, and comes again."""
        with self._lock:
            self._running.discard(call_id)
            if comes_again:
                self._put_back.add(call_id)
                return
            self._asked.pop(call_id, None)
            if call_id in self.overdue:
                self.overdue -= {call_id}

    def _listen(self) -> None:
        while (message := self._channel.receive()) is not None:
            if message.cancel.deadline_exceeded:
                self._stop(message.id, DeadlineExceededError("the deadline passed"), monotonic() + GRACE_S)
            else:
                self._stop(message.id, CancelledError("the caller went away"))
        with self._lock:
            running = list(self._running)
        for call_id in running:
            self._stop(call_id, CancelledError("the front went away"))

    def _stop(self, call_id: int, error: KaasError, until: float | None = None) -> None:
        """Have a call stopped, now and again until it has ended; ``until`` is when it must have."""
        with self._lock:
            if call_id not in self._running:
                if call_id > self._last_begun or call_id in self._put_back:
                    self._asked[call_id] = error  # It is skipped when its turn comes.
                return
            self._asked[call_id] = error
            # A device that can stop a kernel runs one call at a time, so what it stops is this one.
            stops = self._device.stop()
            if not stops and until is not None and monotonic() > until:
                self.overdue |= {call_id}
        again = threading.Timer(REPEAT_S, self._stop, (call_id, error, until))
        again.daemon = True
        again.start()
