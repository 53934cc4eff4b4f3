"""The calls under way on one device: begun, polled, cancelled, each ended once.

Whoever brings calls, by a channel or by a queue, has one of these and polls it on the thread that owns the device.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from kaas_core.errors import KaasError, WorkerRestartingError
from kaasd.worker.cancellation import Cancellation
from kaasd.worker.execution import Job
from kaasd.worker.executor import Executor
from kaasd.worker.programs import UnknownRequest

EARLY_NS = 300_000
"""So long before a run should end it is looked at without pause: two naps of who polls, and what they oversleep."""
MAX_CANCELLED_EARLY = 1024
"""Cancellations kept of calls that are not under way. Most of these have ended already, and never come again. One that is on its
way comes behind the few others that were sent, so that its cancellation is never the oldest of so many."""


class CallUnderWay(NamedTuple):
    """A call under way."""

    job: Job[Any]
    cancellation: Cancellation
    succeeded: Callable[[Any], None]
    """Takes the job's result. Where it raises, the call has failed with that."""
    failed: Callable[[Exception], None]
    """Takes what the job raised."""


class Calls:
    """The calls of one executor, by number. ``cancel`` and ``cancel_all`` are for another thread."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._lock = threading.Lock()
        """Held while a call begins, ends or is cancelled, so that a device is never told to stop the next one."""
        self._under_way: dict[int, CallUnderWay] = {}
        self._cancelled_early: dict[int, KaasError] = {}
        """Errors of calls that are not under way, in the order of their cancellation."""
        self._overdue: frozenset[int] = frozenset()
        """Calls that go on past their deadline, on a device that cannot stop them."""
        self._abandoned: list[Job[Any]] = []
        """Closing these would wait for their kernels."""

    def __len__(self) -> int:
        return len(self._under_way)

    @property
    def jobs(self) -> Iterable[Job[Any]]:
        """Those under way."""
        return (call.job for call in self._under_way.values())

    def one_ends_about(self, now_ns: int, late_ns: int) -> bool:
        """Return whether the run of one should end about now, by how long it took before: ``late_ns`` ago at most."""
        return any(-EARLY_NS < now_ns - job.expected_end_ns < late_ns for job in self.jobs)

    def begin(self, call_id: int, call: CallUnderWay) -> None:
        """Have a call polled from now on. Raises the reason where it was cancelled before."""
        with self._lock:
            if self._cancelled_early and (error := self._cancelled_early.pop(call_id, None)) is not None:
                raise error
            self._under_way[call_id] = call

    def poll(self) -> None:
        """Let every call go on; tell of those that have ended. Lose the device where one of them is long overdue."""
        for call_id, call in list(self._under_way.items()):
            try:
                result = call.job.poll()
            except Exception as error:
                self._fail(call_id, call, error)
            else:
                if result is not None:
                    self._succeed(call_id, call, result)
        if self._overdue and self._is_overdue():
            self._mark_device_lost()

    def cancel(self, call_id: int, error: KaasError, *, overdue: bool = False) -> bool:
        """Have one call end, now or when it comes. Returns whether it is under way, and is to be cancelled again.

        ``overdue`` says that it had time enough to do so: a device that cannot stop it is lost.
        """
        with self._lock:
            call = self._under_way.get(call_id)
            if call is None:
                self._cancel_early(call_id, _during("queued", error))
                return False
            if not self._cancel(call, error) and overdue:
                self._overdue |= {call_id}
            return True

    def cancel_all(self, error: KaasError) -> None:
        """Have all calls end that are under way."""
        with self._lock:
            for call in self._under_way.values():
                self._cancel(call, error)

    def close(self) -> None:
        """End what is under way; waits for the device and the store."""
        for call in self._under_way.values():
            call.job.close()

    def _cancel(self, call: CallUnderWay, error: KaasError) -> bool:
        """Have a call end; return whether the device could be told to stop it."""
        if call.cancellation.reason is None:
            call.cancellation.reason = _during("running", error)
        # A device that can stop a kernel has one call at a time on it, so what it stops is this one, unless that has left it.
        return call.job.is_committing or self._executor.device.stop()

    def _cancel_early(self, call_id: int, error: KaasError) -> None:
        self._cancelled_early[call_id] = error
        if len(self._cancelled_early) > MAX_CANCELLED_EARLY:
            del self._cancelled_early[next(iter(self._cancelled_early))]

    def _is_overdue(self) -> bool:
        """Whether a kernel goes on past its request's deadline."""
        calls = map(self._under_way.get, self._overdue)
        return any(call is not None and not call.job.is_committing for call in calls)

    def _mark_device_lost(self) -> None:
        """Lose the device, which only the end of this process takes from a kernel that goes on past its request's deadline.

        What commits is answered when it has; the other requests have changed nothing, and can run again in another process.
        """
        self._executor.mark_device_lost()
        for call_id, call in list(self._under_way.items()):
            if not call.job.is_committing:
                self._abandoned.append(call.job)
                by_another = WorkerRestartingError("another request's kernel went on past its deadline; nothing was changed")
                self._fail(call_id, call, call.cancellation.reason or by_another)

    def _succeed(self, call_id: int, call: CallUnderWay, result: Any) -> None:
        self._end(call_id)
        try:
            call.succeeded(result)
        except Exception as error:
            call.failed(error)

    def _fail(self, call_id: int, call: CallUnderWay, error: Exception) -> None:
        self._end(call_id)
        if isinstance(error, UnknownRequest) and call.cancellation.reason is not None:
            with self._lock:  # It comes again, with its request.
                self._cancel_early(call_id, call.cancellation.reason)
        call.failed(error)

    def _end(self, call_id: int) -> None:
        with self._lock:
            del self._under_way[call_id]
            self._overdue -= {call_id}


def _during(stage: str, error: KaasError) -> KaasError:
    """Return an error that also says what it interrupted."""
    return type(error)(f"{error.message} while the request was {stage}")
