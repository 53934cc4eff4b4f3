"""The engine of an executor: a thread that owns the device, and the calls that other threads bring.

The thread runs the code of a worker of kaasd, which takes calls from a queue here. Whoever brings one waits for its outputs, and
looks meanwhile whether it is cancelled or past its deadline.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from queue import Empty, SimpleQueue
from time import monotonic
from typing import NamedTuple

from kaas_client.ray.objects import Loan, ObjectStore
from kaas_client.ray.plasma import Plasma
from kaas_client.ray.waiting import WaitingCalls
from kaas_core.errors import CancelledError, DeadlineExceededError, InternalError, KaasError
from kaasd.devices.registry import kind_of, open_device
from kaasd.ipc.messages import SerializedRequest
from kaasd.libraries.registry import LibrarySource
from kaasd.worker.calls import Call, Calls
from kaasd.worker.cancellation import GRACE_S, REPEAT_S, Cancellation
from kaasd.worker.execution import Invocation, Result, execute
from kaasd.worker.executor import Executor
from kaasd.worker.loop import NAP_S
from kaasd.worker.programs import UnknownRequest

CONCURRENCY = 16
"""Requests on a device that can run several at once: what kaasd has by default."""
CANCEL_GRACE_S = 5.0
"""From a cancellation to the loss of a device that cannot stop a kernel: nobody waits for it, and others may run beside it."""
LOOK_S = 0.02
"""Between two looks of who waits at whether its call is cancelled."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """A request as it is to be run."""

    request: SerializedRequest
    keys: Mapping[str, str]
    """Object ids of inputs that others may share, and of outputs, by buffer name."""
    inputs: Mapping[str, memoryview]
    """Bytes of the other inputs, by buffer name."""
    values: Mapping[str, memoryview]
    """What is lent for this call, by object id; what is on the device needs not be."""
    outputs: Sequence[str]
    """Object ids of the outputs."""
    deadline: float = math.inf
    """By ``time.monotonic``."""


class Outputs(NamedTuple):
    """What a request has written."""

    contents: Mapping[str, memoryview]
    """By object id."""
    loan: Loan
    """To be held while the bytes are used."""


@dataclass(eq=False)
class _Pending:
    """A job, for who waits for it."""

    id: int
    job: Job
    outcome: SimpleQueue[Outputs | Exception] = field(default_factory=SimpleQueue)
    """Of one element."""
    handed_over: bool = False

    def receive(self, contents: Mapping[str, memoryview], loan: Loan) -> None:
        """Take the outputs."""
        self.handed_over = True
        self.outcome.put(Outputs(contents, loan))


class Engine:
    """A device, and the requests that run on it. ``run`` is for any thread."""

    def __init__(
        self,
        device_name: str,
        libraries: LibrarySource,
        *,
        memory_limit_bytes: int | None = None,
        on_failure: Callable[[], object] = lambda: None,
    ) -> None:
        """Open the device. ``on_failure`` is called where a defect ends the thread, after which no call is answered.

        Raises ``DeviceUnavailable``.
        """
        self._events: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._ids = count()
        self._lock = threading.Lock()
        self._waiting: WaitingCalls[_Pending] = WaitingCalls()
        """Guarded by the lock."""
        self._closing = False
        self._concurrency = CONCURRENCY if kind_of(device_name).runs_aside else 1
        self._on_failure = on_failure
        opened: Future[tuple[Executor, Calls]] = Future()
        arguments = (device_name, libraries, memory_limit_bytes, opened)
        self._thread = threading.Thread(target=self._own_device, args=arguments, name="device", daemon=True)
        self._thread.start()
        self.executor, self._calls = opened.result()

    def run(self, job: Job, is_cancelled: Callable[[], bool] = lambda: False) -> Outputs:
        """Run a request, and return what it has written.

        ``is_cancelled`` is asked now and then. Raises ``KaasError``, ``UnknownRequest``.
        """
        pending = _Pending(next(self._ids), job)
        with self._lock:
            self._waiting.push(pending)
        self._events.put(_look)
        overdue_from = math.inf
        wait_s = min(LOOK_S, job.deadline - monotonic())
        while True:
            try:
                outcome = pending.outcome.get(timeout=max(0.0, wait_s))
            except Empty:
                now = monotonic()
            else:
                if isinstance(outcome, Exception):
                    raise outcome
                return outcome
            if now >= job.deadline:
                error: KaasError = DeadlineExceededError("the deadline passed")
                overdue_from = min(overdue_from, job.deadline + GRACE_S)
            elif is_cancelled():
                error = CancelledError("the call was cancelled")
                overdue_from = min(overdue_from, now + CANCEL_GRACE_S)
            else:
                wait_s = min(LOOK_S, job.deadline - now)
                continue
            self._cancel(pending, error, overdue=now > overdue_from)
            wait_s = REPEAT_S

    def close(self) -> None:
        """End what is under way, and close the device."""
        self._events.put(self._close)
        self._thread.join()

    def _cancel(self, pending: _Pending, error: KaasError, *, overdue: bool) -> None:
        with self._lock:
            if self._waiting.remove(pending):
                raise type(error)(f"{error.message} while the request was queued")
        self._calls.cancel(pending.id, error, overdue=overdue)

    def _own_device(
        self, device_name: str, libraries: LibrarySource, memory_limit_bytes: int | None, opened: Future[tuple[Executor, Calls]]
    ) -> None:
        """Open the device, and serve until this is closed."""
        with ExitStack() as stack:
            try:
                device = open_device(device_name)
                stack.callback(device.close)
                self._store = ObjectStore(self._events.put, Plasma().mapping)
                executor = Executor(device, self._store, libraries, memory_limit_bytes=memory_limit_bytes)
                stack.callback(executor.close)
                calls = Calls(executor)
                stack.callback(calls.close)
            except Exception as error:
                opened.set_exception(error)
                return
            opened.set_result((executor, calls))
            try:
                while not self._closing:
                    self._begin_waiting(executor, calls)
                    calls.poll()
                    self._wait(calls)
            except BaseException:
                _log.critical("the device is served no more", exc_info=True)
                self._on_failure()

    def _begin_waiting(self, executor: Executor, calls: Calls) -> None:
        """Begin the calls that there is room for."""
        running = sum(not job.is_committing for job in calls.jobs)
        while running < self._concurrency:
            with self._lock:
                pending = self._waiting.pop()
                if pending is None:
                    return
                self._begin(pending, executor, calls)
            running += 1

    def _begin(self, pending: _Pending, executor: Executor, calls: Calls) -> None:
        job, cancellation, undo = pending.job, Cancellation(), ExitStack()
        undo.enter_context(self._store.serving(job.values, job.outputs, pending))

        def succeeded(result: Result) -> None:
            undo.close()
            if result.printed:
                print(result.printed, end="", flush=True)

        def failed(error: Exception) -> None:
            undo.close()
            if not isinstance(error, KaasError | UnknownRequest):
                _log.error("request %s", job.request.digest.hex(), exc_info=error)
                error = InternalError("a defect of kaasd; the executor's log has the details")
            if pending.handed_over:
                _log.error("request %s failed after its outputs were handed over", job.request.digest.hex(), exc_info=error)
            else:
                pending.outcome.put(error)

        invocation = Invocation(job.request, job.keys, job.inputs, (), cancellation)
        calls.begin(pending.id, Call(execute(executor, invocation), cancellation, succeeded, failed))

    def _wait(self, calls: Calls) -> None:
        """Return when there may be something to do."""
        if any(not job.is_committing for job in calls.jobs):
            timeout_s: float | None = NAP_S
        else:
            with self._lock:
                timeout_s = None if not len(self._waiting) else 0
        try:
            self._events.get(timeout=timeout_s)()
            while True:
                self._events.get_nowait()()
        except Empty:
            return

    def _close(self) -> None:
        self._closing = True


def _look() -> None:
    """Wake the thread."""
