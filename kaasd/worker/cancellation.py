"""Cancellations: which calls are to end. They come on a channel of their own to a thread of their own, while kernels may run.

So do the front's questions whether this process still runs.
"""

from __future__ import annotations

import logging
import select
import threading
from collections.abc import Callable
from time import monotonic, sleep
from typing import Protocol

from kaas.worker.v1 import worker_pb2
from kaas_core.errors import CancelledError, DeadlineExceededError, KaasError
from kaasd.ipc.channel import WorkerChannel

REPEAT_S = 0.01
"""A call is cancelled again until it has ended: the kernel that is to stop may not have begun when the cancellation came."""
GRACE_S = 0.2
"""From a deadline, or the word of an operator, to the loss of a device that cannot stop a kernel. The front kills a worker that
does not let go of it."""

_log = logging.getLogger(__name__)


class Cancellation:
    """Whether one call is to end. An attribute, since every call looks at it several times."""

    reason: KaasError | None = None
    """What the call fails with, once it notices; None where it may go on. Set by another thread."""

    def check(self) -> None:
        """Raise the reason, if there is one."""
        if self.reason is not None:
            raise self.reason


class CancellableCalls(Protocol):
    """The calls of a worker, as another thread sees them."""

    def cancel(self, call_id: int, error: KaasError, *, overdue: bool = False) -> bool:
        """Have one call end, now or when it comes. Returns whether it is under way, and is to be cancelled again.

        ``overdue`` says that it had time enough to do so.
        """

    def cancel_all(self, error: KaasError) -> None:
        """Have all calls end that are under way."""


class Listener:
    """The thread that cancels calls as the front says, and all of them once the front has gone. It also answers the front."""

    calls: CancellableCalls | None = None
    """None while the device is opened, which may take its time: then there are none, and the front is answered all the same."""

    def __init__(self, channel: WorkerChannel, on_failure: Callable[[], object]) -> None:
        """Start it. ``on_failure`` is called by it where a defect ends it: a worker without it must not go on."""
        self._channel = channel
        self._on_failure = on_failure
        threading.Thread(target=self._run, name="cancellations", daemon=True).start()

    def _run(self) -> None:
        try:
            self._listen(self._channel)
        except BaseException:
            _log.critical("cancellations are not heard any more", exc_info=True)
            self._on_failure()

    def _listen(self, channel: WorkerChannel) -> None:
        cancelled: dict[int, tuple[KaasError, float]] = {}
        """Calls that have not ended yet, each with its error and the time from which it is overdue."""
        while True:
            if channel.has_begun or select.select([channel], (), (), REPEAT_S if cancelled else None)[0]:
                message = channel.receive()
                if message is None:
                    break
                if message.HasField("ping"):
                    channel.send(worker_pb2.FromWorker(pong=worker_pb2.Pong()))
                elif message.cancel.deadline_exceeded:
                    cancelled[message.id] = DeadlineExceededError("the deadline passed"), monotonic() + GRACE_S
                elif message.cancel.by_operator:
                    cancelled[message.id] = CancelledError("an operator cancelled it"), monotonic() + GRACE_S
                else:
                    cancelled[message.id] = CancelledError("the caller went away"), float("inf")
            now = monotonic()
            for call_id, (error, overdue_from) in list(cancelled.items()):
                if self.calls is None or not self.calls.cancel(call_id, error, overdue=now > overdue_from):
                    del cancelled[call_id]
        while True:  # Calls that were on their way may still be taken up, until the main thread sees the end of its channel.
            if self.calls is not None:
                self.calls.cancel_all(CancelledError("the front went away"))
            sleep(REPEAT_S)
