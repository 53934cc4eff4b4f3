"""The calls of one worker process and their callers: what is sent, what is answered, what is due, who is told.

The decisions are ``CallQueue``'s, ``Deadlines``' and ``SeenRequests``'; here is what they bring about, and the timers. What
becomes of the process is for ``Supervisor`` and ``Ward``. Everything runs on the event loop of the front.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from time import perf_counter_ns

from kaas.v1 import admin_pb2
from kaas.worker.v1 import worker_pb2
from kaas_core.errors import KaasError, KernelFaultError, WorkerRestartingError
from kaasd.front.call_queue import (
    DEATH,
    Blame,
    CallQueue,
    Cancel,
    CancelReason,
    Deadlines,
    Decision,
    Fail,
    Isolate,
    Kill,
    SeenRequests,
    Send,
)
from kaasd.front.pending_call import PendingCall
from kaasd.front.quarantine import Quarantine
from kaasd.front.worker_process import WorkerProcess
from kaasd.ipc.channel import Stage
from kaasd.ipc.messages import MAX_KNOWN_REQUESTS, SerializedRequest, error_from_failed

CANCEL_GRACE_S = 0.5
"""From a deadline, or the word of an operator, to the killing of a worker that neither stops its kernel nor marks its device
lost. The emulated device stops within 0.1 s, a GPU is marked lost after 0.2."""

STATE_OF_STAGE = {
    None: admin_pb2.REQUEST_STATE_QUEUED,
    Stage.RUNNING: admin_pb2.REQUEST_STATE_RUNNING,
    Stage.COMMITTING: admin_pb2.REQUEST_STATE_COMMITTING,
}


class WorkerCalls(ABC):
    """Calls at, and on their way to, one worker process after another."""

    def __init__(self, device: str, queue: CallQueue, quarantine: Quarantine, process: WorkerProcess) -> None:
        """``quarantine`` is told which requests cost a worker, and refuses some."""
        self.device = device
        self._loop = asyncio.get_running_loop()
        self._queue = queue
        self._process = process
        self._calls: dict[int, PendingCall] = {}
        self._deadlines = Deadlines()
        self._timer: asyncio.TimerHandle | None = None
        self._seen = SeenRequests(MAX_KNOWN_REQUESTS)
        self._quarantine = quarantine
        self.ids: Iterator[int] = itertools.count(1)
        """Where the numbers of messages come from. Several may share it, so that each call has its own."""
        self._refusal: KaasError | None = None
        """What calls fail with from now on."""
        self._not_starting: KaasError | None = None
        """What calls fail with until a worker has started."""
        self._is_wanted = False
        """A call has failed so since the last start."""
        self._may_hold_pages = True
        """Whether the device may hold on to the store's pages."""

    @property
    def refusal(self) -> KaasError | None:
        """What a call fails with that comes now. Where a worker cannot start, who asks has it tried again."""
        refusal = self._refusal or self._not_starting
        if refusal is not None:
            self._is_wanted = True
        return refusal

    @property
    def queue(self) -> CallQueue:
        """The calls that wait and run, to be looked at."""
        return self._queue

    def check(self, request: SerializedRequest | None) -> None:
        """Raise the reason where a call that comes now fails at once."""
        if (refusal := self.refusal) is not None:
            raise refusal.with_traceback(None)
        if request is not None:
            self.check_quarantine(request)

    def check_quarantine(self, request: SerializedRequest) -> None:
        """Raises ``QuarantinedError``."""
        if request.digest in self._quarantine.refused:
            raise self._quarantine.refusal(request.digest)

    async def call(
        self, message: worker_pb2.ToWorker, request: SerializedRequest | None = None, deadline: float | None = None
    ) -> tuple[worker_pb2.FromWorker, int]:
        """Have the worker serve ``message`` and return its answer, and the ``perf_counter_ns`` at which it was sent.

        ``request`` is what the message executes or prepares; ``deadline`` is in the loop's time. When the awaiting task is
        cancelled the call is cancelled too. Raises ``KaasError``.
        """
        message.id = next(self.ids)
        call = PendingCall(message, self._loop.create_future(), request, deadline)
        self.begin(call)
        return await call.outcome(), call.sent_at_ns

    def begin(self, call: PendingCall) -> None:
        """Have the worker serve a call. Raises ``KaasError``, and then it is not here."""
        self.check(call.request)
        call_id = call.id
        decisions = self._queue.submit(call_id)
        call.held_by = self
        self._calls[call_id] = call
        self._act(decisions)
        self._await_deadline(call_id, call.deadline)

    def abandon(self, call: PendingCall) -> None:
        """The caller of one that is here has gone.

        Its deadline stays: gRPC cancels a call then too, and a kernel that cannot be stopped has to end all the same.
        """
        self._act(self._queue.cancel(call.id, CancelReason.CANCELLED))

    def forget(self, call: PendingCall) -> None:
        """Nobody waits any more for the answer of one that is here."""
        del self._calls[call.id]
        call.held_by = None

    def admit(self, call_id: int, call: PendingCall, losses: int, *, alone: bool = False) -> None:
        """Serve a call that others had; as ``CallQueue.admit``."""
        if call.held_by is not None:
            call.held_by.forget(call)
        call.held_by = self
        self._calls[call_id] = call
        self._act(self._queue.admit(call_id, losses, alone=alone))
        self._await_deadline(call_id, call.deadline)

    def requests(self, now_ns: int) -> list[admin_pb2.RequestInfo]:
        """Return the requests whose callers wait, in the order in which they came. ``now_ns`` is a ``perf_counter_ns``."""
        begun = self._process.begun()
        requests = []
        for call_id, call in self._calls.items():
            if call.queued is not None:
                info = call.info(now_ns)
                info.device = self.device
                info.state = STATE_OF_STAGE[begun.get(call_id) if self._queue.is_sent(call_id) else None]
                requests.append(info)
        return requests

    def cancel_request(self, request_id: str) -> bool:
        """End a request early, for an operator; return whether it is one of this worker's, whose caller waits."""
        for call_id, call in self._calls.items():
            if str(call_id) == request_id and call.queued is not None:
                self._act(self._queue.cancel(call_id, CancelReason.OPERATOR))
                return True
        return False

    def forget_library(self, library_id: str) -> None:
        """Tell the worker that an uploaded library was deleted."""
        self._process.forget_library(library_id)

    def fail_all(self, error: KaasError) -> None:
        """Fail all calls with ``error``. What the worker still answers is lost."""
        self._act(self._queue.fail_all(error))

    async def close(self) -> None:
        """Stop the worker, which has no calls any more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        await self._process.close()

    # What whoever keeps the process does

    @abstractmethod
    def _isolate(self, call_id: int, call: PendingCall, losses: int) -> None:
        """Have a suspect run where it can hurt no other."""

    @abstractmethod
    def _leaves_slot(self, call: PendingCall) -> None:
        """A request waits at the worker for its code, so that another may come there."""

    @abstractmethod
    def _has_run(self, call: PendingCall, answer: worker_pb2.FromWorker) -> None:
        """A request was answered, so that another may come."""

    @abstractmethod
    def _is_new(self, request: SerializedRequest) -> None:
        """A request goes to this worker for the first time."""

    @abstractmethod
    def _worker_ready(self, ready: worker_pb2.Ready) -> None:
        """The process can serve."""

    @abstractmethod
    def _cannot_start(self, error: KaasError) -> None:
        """The device cannot be opened, and the process ends."""

    @abstractmethod
    def _pages_released(self, message_id: int, error: KaasError | None) -> None:
        """The worker's device has let go of the store's pages, or could not."""

    # Answers

    def _received(self, message: worker_pb2.FromWorker) -> None:
        match message.WhichOneof("answer"):
            case "failed":
                if message.id:
                    self._failed(message)
                else:
                    self._cannot_start(error_from_failed(message.failed))
            case "ready":
                self._worker_ready(message.ready)
            case "pages_released":
                self._pages_released(message.id, None)
            case "compiling":
                self._act(self._queue.compiling(message.id, begins=message.compiling.begins))
                if message.compiling.begins and (call := self._calls.get(message.id)) is not None and call.queued is not None:
                    self._leaves_slot(call)
            case "unknown_request" if message.id in self._calls:
                self._queue.sent_again(message.id)
                self._send(message.id, with_content=True)
            case _:
                self._answered(message)

    def _send_hold_pages(self) -> int:
        """Tell the worker whether it may hold on to pages; return the message's id."""
        message_id = next(self.ids)
        if self._process.calls is not None:
            allowed = worker_pb2.HoldPages(allowed=self._may_hold_pages)
            self._process.calls.send(worker_pb2.ToWorker(id=message_id, hold_pages=allowed))
        return message_id

    def _failed(self, message: worker_pb2.FromWorker) -> None:
        """The worker has answered a call with an error."""
        failed = message.failed
        if failed.device_lost:
            by_another = failed.reason == WorkerRestartingError.reason
            if by_another or int(failed.metadata.get("suspects", "1")) > 1:
                self._act(self._queue.run_again(message.id, suspect=not by_another))
                return
            if failed.reason == KernelFaultError.reason:
                self._blame(message.id, failed.message)
        self._answered(message, device_lost=failed.device_lost)

    def _answered(self, message: worker_pb2.FromWorker, *, device_lost: bool = False) -> None:
        call = self._calls.get(message.id)
        if call is not None and not call.answer.done():
            call.answer.set_result(message)
            if call.request is not None and message.HasField("executed"):
                self._quarantine.ran_well(call.request.digest)
        self._deadlines.discard(message.id)
        self._act(self._queue.answered(message.id, device_lost=device_lost))
        if call is not None and call.queued is not None:
            self._has_run(call, message)

    # Deadlines

    def _await_deadline(self, call_id: int, deadline: float | None) -> None:
        if deadline is not None and self._deadlines.add(call_id, deadline):
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._deadlines.wakes_at, self._deadlines_passed)

    def _deadlines_passed(self) -> None:
        self._timer = None
        passed = self._deadlines.passed(self._loop.time())
        if self._deadlines.wakes_at < math.inf:
            self._set_timer()
        for call_id in passed:
            self._act(self._queue.cancel(call_id, CancelReason.DEADLINE))

    def _grace_over(self, call_id: int) -> None:
        self._act(self._queue.grace_over(call_id))

    # Decisions

    def _act(self, decisions: Iterable[Decision]) -> None:
        for decision in decisions:
            match decision:
                case Send(call_id):
                    self._send(call_id)
                case Fail(call_id, error):
                    self._fail(call_id, error)
                case Cancel(call_id, reason):
                    if self._process.cancellations is not None:
                        cancel = worker_pb2.Cancel(
                            deadline_exceeded=reason is CancelReason.DEADLINE, by_operator=reason is CancelReason.OPERATOR
                        )
                        self._process.cancellations.send(worker_pb2.ToWorker(id=call_id, cancel=cancel))
                    if reason.is_final:
                        self._loop.call_later(CANCEL_GRACE_S, self._grace_over, call_id)
                case Kill():
                    self._process.kill()
                case Blame(call_id):
                    self._blame(call_id, DEATH)
                case Isolate(call_id, losses):
                    if (call := self._calls.get(call_id)) is not None:
                        self._isolate(call_id, call, losses)
                    else:  # Its caller went away.
                        self._deadlines.discard(call_id)

    def _send(self, call_id: int, *, with_content: bool = False) -> None:
        call = self._calls.get(call_id)
        if call is None:  # Its caller went away while it was queued for a successor.
            self._deadlines.discard(call_id)
            self._act(self._queue.answered(call_id))
            return
        call.sent_at_ns = perf_counter_ns()
        call.attempts += not with_content
        if self._process.calls is not None:
            if call.request is not None:
                self._name_request(call.message, call.request, with_content=with_content)
            self._process.calls.send(call.message)

    def _name_request(self, message: worker_pb2.ToWorker, request: SerializedRequest, *, with_content: bool) -> None:
        """Say in a message which request it is about, and what that is unless the worker has seen it."""
        named = message.execute.request if message.HasField("execute") else message.prepare.request
        named.digest = request.digest
        is_new = self._seen.add(request.digest)
        if is_new or with_content:
            named.content = request.content
        if is_new:
            self._is_new(request)

    def _blame(self, call_id: int, fault: str) -> None:
        """A call has cost the worker."""
        call = self._calls.get(call_id)
        if call is not None and call.request is not None:
            self._quarantine.cost(call.request.digest, fault)

    def _fail(self, call_id: int, error: KaasError) -> None:
        self._deadlines.discard(call_id)
        if (call := self._calls.get(call_id)) is not None:
            call.fail(error)
