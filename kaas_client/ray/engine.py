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
from time import monotonic, perf_counter_ns
from typing import NamedTuple

from kaas_client.ray.journal import Journal
from kaas_client.ray.objects import Loan, ObjectStore
from kaas_client.ray.plasma import Plasma
from kaas_client.ray.queue import DeviceQueue, Load
from kaas_core.errors import (
    CancelledError,
    DeadlineExceededError,
    InternalError,
    KaasError,
    KernelFaultError,
    QuarantinedError,
    WorkerRestartingError,
)
from kaas_core.request import BufferSpec
from kaasd.devices.registry import kind_of, open_device
from kaasd.ipc.messages import SerializedRequest
from kaasd.libraries.registry import LibrarySource
from kaasd.scheduling import DEFAULT_GROUP, QueuedRequest
from kaasd.worker.cancellation import GRACE_S, REPEAT_S, Cancellation
from kaasd.worker.execution import Invocation, Result, execute
from kaasd.worker.executor import EXIT_DEVICE_LOST, Executor
from kaasd.worker.inputs import value_key
from kaasd.worker.loop import NAP_S, Calls, CallUnderWay

CONCURRENCY = 16
"""Requests on a device that can run several at once: what kaasd has by default."""
CANCEL_GRACE_S = 5.0
"""From a cancellation to the loss of a device that cannot stop a kernel: nobody waits for it, and others may run beside it."""
LOOK_S = 0.02
"""Between two looks of who waits at whether its call is cancelled."""
BUSY_POLL_NS = 1_000_000
"""For so long the device is asked without pause whether a run has ended that should have."""
CLOSE_TIMEOUT_S = 10.0
EXIT_DEFECT = 71
"""The exit status of a process that serves its device no more, by a defect."""

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
    task_id: str = ""
    """What it is known by when it comes again to another process."""
    max_losses: int = 0
    """Processes that it may cost before it is refused."""
    input_keys: Mapping[str, str] = field(default_factory=dict)
    """Object ids of those of ``inputs`` that are objects, by buffer name."""
    group: str = DEFAULT_GROUP
    """Who it is for."""
    priority: int = 0
    """Higher first, within the group."""


class Outputs(NamedTuple):
    """What a request has written."""

    contents: Mapping[str, memoryview]
    """By object id."""
    loan: Loan | None
    """To be held while the bytes are used, if there is one."""


@dataclass(eq=False)
class _Pending:
    """A job, for who waits for it."""

    id: int
    job: Job
    suspect: bool
    """It was on the device when a process before this one ended: it runs alone."""
    leaves_device: Callable[[_Pending], None]
    """Called when it needs the device no more, before who waits learns of it."""
    outcome: SimpleQueue[Outputs | Exception] = field(default_factory=SimpleQueue)
    """Of one element."""
    queued: QueuedRequest = field(init=False)
    _handed_over: bool = False
    _outputs: Outputs | None = None

    def __post_init__(self) -> None:
        job = self.job
        held = sum(map(len, job.inputs.values())) + sum(map(len, job.values.values()))
        function = job.request.digest
        self.queued = QueuedRequest(self, job.group, function, priority=job.priority, deadline=job.deadline, size_bytes=held)

    def receive(self, contents: Mapping[str, memoryview], loan: Loan | None) -> None:
        """Take the outputs."""
        self._handed_over = True
        self.leaves_device(self)
        outputs = Outputs(contents, loan)
        if loan is None:
            self._outputs = outputs
        else:
            self.outcome.put(outputs)  # and nothing here holds on to the loan

    def succeed(self) -> None:
        """Learn that all is done. Who waits is better woken now than before, where the rest does not wait for it."""
        if self._outputs is not None:
            self.outcome.put(self._outputs)

    def fail(self, error: Exception) -> None:
        """Take what it failed with."""
        if not isinstance(error, KaasError):
            _log.error("request %s", self.job.request.digest.hex(), exc_info=error)
            error = InternalError("a defect of kaasd; the executor's log has the details")
        if self._handed_over:
            _log.error("request %s failed after its outputs were handed over: %s", self.job.request.digest.hex(), error)
            return
        self.leaves_device(self)
        self.outcome.put(error)


class Engine:
    """A device, and the requests that run on it. ``run`` is for any thread."""

    def __init__(
        self,
        device_name: str,
        libraries: LibrarySource,
        *,
        memory_limit_bytes: int | None = None,
        unused_limit_bytes: int | None = None,
        journal: Journal | None = None,
        on_failure: Callable[[int], object] = lambda status: None,
        on_result: Callable[[Result], object] = lambda result: None,
    ) -> None:
        """Open the device. The limits are those of ``kaasd.worker.executor.Executor``.

        ``on_failure`` is called with an exit status when the device is served no more: once all calls are answered that can be
        here, as the others can in the next process. ``on_result`` is called by the device's thread when a request has run.
        Without a ``journal`` nothing is known in the next process of what this one did. Raises ``DeviceUnavailable``.
        """
        self._events: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._ids = count()
        self._queue: DeviceQueue[_Pending] = DeviceQueue(CONCURRENCY if kind_of(device_name).runs_aside else 1)
        self.knows_group, self.set_group, self.group_uses = self._queue.knows, self._queue.set_group, self._queue.group_uses
        self._closing = False
        self._slot_freed = False
        self._on_failure = on_failure
        self._on_result = on_result
        self._journal = journal
        self._store = ObjectStore(self._events.put, Plasma().mapping)

        def open_executor(stack: ExitStack) -> Executor:
            device = open_device(device_name)
            stack.callback(device.close)
            executor = Executor(
                device,
                self._store,
                libraries,
                memory_limit_bytes=memory_limit_bytes,
                unused_limit_bytes=unused_limit_bytes,
                keep_stored=True,
            )
            stack.callback(executor.close)
            return executor

        opened: Future[tuple[Executor, Calls]] = Future()
        self._thread = threading.Thread(target=self._own_device, args=(open_executor, opened), name="device", daemon=True)
        self._thread.start()
        self.executor, self._calls = opened.result()

    def run(self, job: Job, is_cancelled: Callable[[], bool] = lambda: False) -> Outputs:
        """Run a request, and return what it has written.

        ``is_cancelled`` is asked now and then. Raises ``KaasError``, such as ``GroupNotFoundError``. Does not return where the
        device is lost through no fault of the request that is known: it is to run again in the next process.
        """
        losses = self._journal.losses(job.task_id) if self._journal is not None else ()
        if len(losses) > job.max_losses:
            raise QuarantinedError(
                f"the request was on the device each time when {len(losses)} executors ended: {'; '.join(losses)}",
                {"workers": str(len(losses)), "last_fault": losses[-1]},
            )
        pending = _Pending(next(self._ids), job, bool(losses), self._leaves_device)
        self._queue.push(pending)
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

    def holds(self, object_id: str, spec: BufferSpec) -> bool:
        """Return whether what a buffer is read from is on the device now, or on its way there. For any thread."""
        return value_key(object_id, spec) in self.executor.memory

    def load(self, functions: int) -> Load:
        """Return what there is to do, and the times of so many functions. For any thread."""
        return self._queue.load(functions)

    @property
    def queued(self) -> int:
        """Calls that wait for the device."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Calls that the device has taken, and whose outputs may still be in use."""
        return len(self._calls)

    def close(self) -> None:
        """End what is under way, and close the device once nobody uses outputs any more; leave it open where somebody goes on."""
        self._events.put(self._close)
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            _log.warning("the device stays open: outputs are still in use")

    def _cancel(self, pending: _Pending, error: KaasError, *, overdue: bool) -> None:
        if self._queue.remove(pending):
            raise type(error)(f"{error.message} while the request was queued")
        self._calls.cancel(pending.id, error, overdue=overdue)

    def _own_device(self, open_executor: Callable[[ExitStack], Executor], opened: Future[tuple[Executor, Calls]]) -> None:
        """Open the device, and serve until this is closed."""
        with ExitStack() as stack:
            try:
                executor = open_executor(stack)
            except Exception as error:
                opened.set_exception(error)
                return
            calls = Calls(executor)
            stack.callback(calls.close)
            opened.set_result((executor, calls))

            def may_begin(pending: _Pending) -> bool:
                # One that Ray has sent twice, since it heard nothing for a while, waits for the first.
                return not self._store.serves(pending.job.outputs)

            def begin(pending: _Pending) -> None:
                self._begin(pending, executor, calls)

            try:
                while True:
                    self._slot_freed = False
                    if not executor.device_lost:
                        self._queue.begin(may_begin, begin)
                    calls.poll()
                    if executor.device_lost and not calls:
                        break
                    if self._closing and not any(job.is_committing for job in calls.jobs):
                        break
                    self._wait(calls)
            except BaseException:
                _log.critical("the device is served no more", exc_info=True)
                self._on_failure(EXIT_DEFECT)
            if executor.device_lost:
                self._on_failure(EXIT_DEVICE_LOST)

    def _begin(self, pending: _Pending, executor: Executor, calls: Calls) -> None:
        job, cancellation, undo = pending.job, Cancellation(), ExitStack()
        undo.enter_context(self._store.serving(job.values, job.outputs, pending))
        if self._journal is not None:
            self._journal.begin(job.task_id)

        def succeeded(result: Result) -> None:
            undo.close()
            pending.succeed()
            self._on_result(result)
            if result.printed:
                print(result.printed, end="", flush=True)

        def failed(error: Exception) -> None:
            undo.close()
            if isinstance(error, WorkerRestartingError):  # Another one has cost the device: it runs in the next process.
                self._leaves_device(pending)
            elif isinstance(error, KernelFaultError) and "suspects" in error.metadata and self._journal is not None:
                self._journal.note(error.message)  # It may have cost the device: it runs there too, alone.
            else:
                pending.fail(error)

        granted = self._queue.granted(job.group)
        invocation = Invocation(
            job.request,
            job.keys,
            job.inputs,
            (),
            cancellation,
            input_keys=job.input_keys,
            group=job.group,
            max_device_memory_bytes=0 if granted is None else granted.max_device_memory_bytes,
        )
        calls.begin(pending.id, CallUnderWay(execute(executor, invocation), cancellation, succeeded, failed))

    def _leaves_device(self, pending: _Pending) -> None:
        self._queue.left(pending)
        self._slot_freed = True
        if self._journal is not None:
            self._journal.end(pending.job.task_id)

    def _wait(self, calls: Calls) -> None:
        """Return when there may be something to do."""
        timeout_s = NAP_S if any(not job.is_committing for job in calls.jobs) else None
        if self._slot_freed or calls.one_ends_about(perf_counter_ns(), BUSY_POLL_NS):
            timeout_s = 0
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
