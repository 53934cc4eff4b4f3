"""The engine of an executor: a device, and the calls that threads bring to it.

Whoever brings a call drives the device itself when nobody else does: for all who have calls there, until its own has its
outcome, and then hands that on. So a call costs no change of threads where one thread is enough. What may hold up its driver for
long is left to a thread of the engine's own, since Ray tells of a cancellation in the call's own thread only. Both run the code
of a worker of kaasd, which takes calls from a queue here.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from functools import partial
from itertools import count
from queue import Empty, SimpleQueue
from time import monotonic, perf_counter_ns, sleep

from kaas_client.ray.jobs import YOUR_TURN, Job, Outputs, Pending, YourTurn, forget_frames
from kaas_client.ray.journal import Journal
from kaas_client.ray.objects import ObjectStore
from kaas_client.ray.plasma import Plasma
from kaas_client.ray.queue import DeviceQueue
from kaas_core.errors import (
    CancelledError,
    DeadlineExceededError,
    KaasError,
    KernelFaultError,
    QuarantinedError,
    WorkerRestartingError,
)
from kaas_core.request import BufferSpec
from kaasd.devices.base import DeviceLost
from kaasd.devices.registry import kind_of, open_device
from kaasd.libraries.registry import LibrarySource
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
SHORT_S = LOOK_S / 4
"""Where kernels run on the thread that starts them, calls of functions that take less are run by who brings them."""
LONG_S = 0.05
"""Where one of these goes on for longer, it is begun anew in the engine's own thread."""
CLOSE_TIMEOUT_S = 10.0
_LOST = -1
"""In place of a call's number: from now on only the engine's own thread drives."""
EXIT_DEFECT = 71
"""The exit status of a process that serves its device no more, by a defect."""

_log = logging.getLogger(__name__)


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
        here, as the others can in the next process. ``on_result`` is called by who drives the device when a request has run.
        Without a ``journal`` nothing is known in the next process of what this one did. Raises ``DeviceUnavailable``.
        """
        self._runs_aside = kind_of(device_name).runs_aside
        self._ids = count()
        self._queue: DeviceQueue[Pending] = DeviceQueue(CONCURRENCY if self._runs_aside else 1)
        self.knows_group, self.set_group, self.group_uses = self._queue.knows, self._queue.set_group, self._queue.group_uses
        self.load, self.short_ones = self._queue.load, self._queue.short_ones
        self._turn = threading.Lock()
        """Held by the thread that drives the device."""
        self._passes = 0
        """Of the loop of who drives."""
        self._passes_seen, self._seen_at = -1, 0.0
        """How many there were when the engine's own thread saw another one, and when that was."""
        self._events: SimpleQueue[Callable[[], None]] = SimpleQueue()
        """What who drives is to call."""
        self._bell: SimpleQueue[None] = SimpleQueue()
        """Rung for the engine's own thread."""
        self._dozes = False
        """That thread: it looks at nothing unless the bell rings."""
        self._waiting: dict[int, Pending] = {}
        """Calls whose threads are here, by number."""
        self._aside: set[int] = set()
        """Those that only the engine's own thread drives."""
        self._exit_status: int | None = None
        """Set when the device is served no more."""
        self._closing = False
        self._slot_freed = False
        self._on_failure = on_failure
        self._on_result = on_result
        self._journal = journal
        self._store = ObjectStore(self.call_soon, Plasma().mapping)

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
        pending = Pending(next(self._ids), job, bool(losses), self._leaves_device)
        self._waiting[pending.id] = pending
        try:
            self._queue.push(pending)
            if self._may_hold_up(pending):
                self._set_aside(pending.id)
            return self._await(pending, is_cancelled)
        finally:
            self._waiting.pop(pending.id, None)
            if pending.id in self._aside:
                self._aside.discard(pending.id)
                self._events.put(_look)
            self._hand_on()

    def holds(self, object_id: str, spec: BufferSpec) -> bool:
        """Return whether what a buffer is read from is on the device now, or on its way there. For any thread."""
        return value_key(object_id, spec) in self.executor.memory

    def call_soon(self, function: Callable[[], None]) -> None:
        """Have a function called by who drives the device, soon. For any thread, in the middle of anything: it does not wait."""
        self._events.put(function)
        self._bell.put(None)

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
        self._closing = True
        self.call_soon(_look)
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            _log.warning("the device stays open: outputs are still in use")

    # By the thread of a call

    def _may_hold_up(self, pending: Pending) -> bool:
        """Whether a call may hold up who drives the device: its function is new, or takes long where kernels run on that thread.

        The main thread drives nothing: an interrupt from the keyboard comes there in the middle of anything.
        """
        if threading.get_ident() == threading.main_thread().ident:
            return True
        least_s = self._queue.least_s(pending)
        return not least_s or (least_s > SHORT_S and not self._runs_aside)

    def _set_aside(self, call_id: int) -> None:
        self._aside.add(call_id)
        self.call_soon(_look)

    def _await(self, pending: Pending, is_cancelled: Callable[[], bool]) -> Outputs:
        """Return a call's outputs; meanwhile drive the device where nobody does, and look whether the call is to end."""
        job = pending.job
        overdue_from = math.inf
        wait_s = min(LOOK_S, job.deadline - monotonic())
        while True:
            look_at = monotonic() + wait_s
            if self._others_may_drive() and self._turn.acquire(blocking=False):
                try:
                    if not pending.is_answered:
                        self._drive(lambda: pending.is_answered or not self._others_may_drive(), look_at)
                finally:
                    self._turn.release()
            elif not pending.is_answered:
                self._events.put(_look)  # who drives may sleep
            try:
                outcome = pending.outcome.get(timeout=max(0.0, look_at - monotonic()))
            except Empty:
                pass
            else:
                if isinstance(outcome, YourTurn):
                    continue
                if isinstance(outcome, Exception):
                    raise outcome
                return outcome
            now = monotonic()
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

    def _others_may_drive(self) -> bool:
        """Whether any call's thread may drive the device."""
        return not self._aside and not self._closing and self._exit_status is None

    def _cancel(self, pending: Pending, error: KaasError, *, overdue: bool) -> None:
        if self._queue.remove(pending):
            raise type(error)(f"{error.message} while the request was queued")
        self._calls.cancel(pending.id, error, overdue=overdue)

    def _hand_on(self) -> None:
        """Have somebody drive the device where nobody does, and there is something to do."""
        if self._turn.locked():
            return  # who drives does this when it ends
        if not self._aside and (self._queue or self._calls.some_run):
            next_one = next((each for each in list(self._waiting.values()) if not each.is_answered), None)
            if next_one is not None:
                next_one.outcome.put(YOUR_TURN)
                return
        if self._aside or not self._events.empty():
            self._bell.put(None)

    # By who drives

    def _drive(self, ends: Callable[[], bool], until: float) -> None:
        """Run what there is to run until ``ends`` says so or it is late, by ``time.monotonic``. To be called in turn."""
        executor, calls = self.executor, self._calls
        self._passes += 1
        if self._dozes and not self._runs_aside:
            self._bell.put(None)
        try:
            executor.device.attach()
        except DeviceLost:  # The engine's own thread is attached, and will see what has happened.
            self._set_aside(_LOST)
            return
        try:
            while True:
                self._passes += 1
                self._slot_freed = False
                with suppress(Empty):
                    while True:
                        self._events.get_nowait()()
                if not executor.device_lost:
                    self._queue.begin(self._may_begin, self._begin)
                calls.poll()
                if executor.device_lost and not calls:
                    self._end(EXIT_DEVICE_LOST)
                if ends() or (left_s := until - monotonic()) <= 0:
                    return
                self._wait(calls, left_s)
        except BaseException:
            _log.critical("the device is served no more", exc_info=True)
            self._end(EXIT_DEFECT)

    def _end(self, status: int) -> None:
        self._exit_status = status
        self._bell.put(None)

    def _may_begin(self, pending: Pending) -> bool:
        # One that Ray has sent twice, since it heard nothing for a while, waits for the first.
        return not self._store.serves(pending.job.outputs.values())

    def _begin(self, pending: Pending) -> None:
        if self._journal is not None:
            self._journal.begin(pending.job.task_id)
        self._start(pending)

    def _start(self, pending: Pending) -> None:
        job, cancellation = pending.job, Cancellation()
        lent = job.values, job.outputs.values()
        self._store.lend(*lent)

        def succeeded(result: Result) -> None:
            self._store.take_back(*lent)
            pending.succeed()
            self._on_result(result)
            if result.printed:
                print(result.printed, end="", flush=True)

        def failed(error: Exception) -> None:
            self._store.take_back(*lent)
            if isinstance(error, KaasError):
                forget_frames(error)
            if isinstance(error, _TooLong):
                self._set_aside(pending.id)
                self._start(pending)  # It has changed nothing, and keeps its place.
            elif isinstance(error, WorkerRestartingError):  # Another one has cost the device: it runs in the next process.
                self._leaves_device(pending)
            elif isinstance(error, KernelFaultError) and "suspects" in error.metadata and self._journal is not None:
                self._journal.note(error.message)  # It may have cost the device: it runs there too, alone.
            else:
                pending.fail(error)

        on_commit = partial(self._store.hand_over_to, pending)
        granted = self._queue.granted(job.group)
        invocation = Invocation(
            job.request,
            job.keys,
            job.inputs,
            (),
            cancellation,
            input_keys=job.input_keys,
            on_commit=on_commit,
            group=job.group,
            max_device_memory_bytes=0 if granted is None else granted.max_device_memory_bytes,
        )
        self._calls.begin(pending.id, CallUnderWay(execute(self.executor, invocation), cancellation, succeeded, failed))

    def _leaves_device(self, pending: Pending) -> None:
        self._queue.left(pending)
        self._slot_freed = True
        if self._journal is not None:
            self._journal.end(pending.job.task_id)

    def _wait(self, calls: Calls, at_most_s: float) -> None:
        """Return when there may be something to do."""
        if self._slot_freed or calls.one_ends_about(perf_counter_ns(), BUSY_POLL_NS):
            sleep(0)  # others may have the interpreter
            return
        if calls.some_run:
            at_most_s = min(at_most_s, NAP_S)
        with suppress(Empty):
            self._events.get(timeout=None if at_most_s == math.inf else at_most_s)()

    # The engine's own thread

    def _own_device(self, open_executor: Callable[[ExitStack], Executor], opened: Future[tuple[Executor, Calls]]) -> None:
        """Open the device, and do what no call's thread does, until it is closed or served no more."""
        with ExitStack() as stack:
            try:
                executor = open_executor(stack)
            except Exception as error:
                opened.set_exception(error)
                return
            calls = Calls(executor)
            stack.callback(calls.close)
            opened.set_result((executor, calls))
            while self._exit_status is None and not self._is_closed:
                must = bool(self._aside) or self._closing
                if (must or not self._events.empty()) and self._turn.acquire(timeout=LOOK_S if must else 0):
                    try:
                        self._drive(self._owner_may_leave, math.inf)
                    finally:
                        self._turn.release()
                    self._hand_on()
                elif not must:
                    self._sleep()
                self._stop_what_takes_long(calls)
            self._turn.acquire()  # for good
            if self._exit_status is not None:
                self._on_failure(self._exit_status)

    def _owner_may_leave(self) -> bool:
        return self._is_closed or self._others_may_drive() or self._exit_status is not None

    def _sleep(self) -> None:
        """Return when the bell rings, or it is time for a look at who drives: none is needed where nobody has since the last."""
        self._dozes = self._runs_aside or self._passes == self._passes_seen
        if not self._runs_aside and self._turn.locked():
            self._dozes = False
        with suppress(Empty):
            self._bell.get(timeout=None if self._dozes else LOOK_S)
            while True:
                self._bell.get_nowait()
        self._dozes = False

    def _stop_what_takes_long(self, calls: Calls) -> None:
        """Have what goes on for long in the thread of a call begin anew in this one."""
        now = monotonic()
        if self._passes != self._passes_seen or not self._turn.locked():
            self._passes_seen, self._seen_at = self._passes, now
        elif now - self._seen_at > LONG_S and not self._runs_aside:
            calls.cancel_all(_TooLong("it is to run elsewhere"))

    @property
    def _is_closed(self) -> bool:
        return self._closing and not any(job.is_committing for job in self._calls.jobs)


class _TooLong(KaasError):
    """A kernel goes on for long in the thread of a call, which cannot look whether that is cancelled."""


def _look() -> None:
    """Wake who drives."""
