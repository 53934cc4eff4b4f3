"""Keeps the worker of one device alive and passes calls to it.

The decisions are ``CallQueue``'s, ``Deadlines``' and ``SeenRequests``', the process is ``WorkerProcess``'s; here is what they
bring about, and the timers. Everything runs on the event loop of the front.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import perf_counter_ns

from kaas.v1 import admin_pb2
from kaas.worker.v1 import worker_pb2
from kaas_core.errors import DrainingError, InternalError, KaasError, KernelFaultError, WorkerBusyError, WorkerRestartingError
from kaasd.front.call_queue import (
    DEATH,
    Blame,
    CallQueue,
    Cancel,
    CancelReason,
    Deadlines,
    Decision,
    Fail,
    Kill,
    SeenRequests,
    Send,
)
from kaasd.front.quarantine import Quarantine
from kaasd.front.spare import Ready, Spare
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

MAX_FAILED_STARTS = 3
"""In a row; they take some seconds. After as many, calls do not wait for the next."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class PendingCall:
    """A call whose caller waits for the answer."""

    message: worker_pb2.ToWorker
    answer: asyncio.Future[worker_pb2.FromWorker]
    request: SerializedRequest | None
    """What the message is about."""
    function: str
    input_bytes: int
    came_at_ns: int
    sent_at_ns: int = 0


class Supervisor:
    """The worker of one device, as the front sees it."""

    def __init__(
        self,
        config: worker_pb2.WorkerConfig,
        max_queued: int,
        check_store: Callable[[], object] = lambda: None,
        quarantine: Quarantine | None = None,
        *,
        max_queued_bytes: float = math.inf,
        has_spare: bool = False,
    ) -> None:
        """``check_store`` is called before each worker is started; where it raises ``KaasError``, none is started any more.

        ``quarantine`` is told which requests cost a worker; devices that share it refuse the same ones.
        """
        self._loop = asyncio.get_running_loop()
        self._queue = CallQueue(max_queued, config.concurrency, max_queued_bytes)
        self._calls: dict[int, PendingCall] = {}
        self._deadlines = Deadlines()
        self._timer: asyncio.TimerHandle | None = None
        self._seen = SeenRequests(MAX_KNOWN_REQUESTS)
        self.ids: Iterator[int] = itertools.count(1)
        """Where the numbers of messages come from. Several supervisors may share it, so that each call has its own."""
        self._quarantine = quarantine or Quarantine()
        self._check_store = check_store
        self._process = WorkerProcess(config, self._process_started, self._received, self._lost)
        self._spare = Spare(config, check_store) if has_spare else None
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._refusal: KaasError | None = None
        """What calls fail with from now on."""
        self._start_error: KaasError | None = None
        """Why the last worker has not started, if it could say so."""
        self._not_starting: KaasError | None = None
        """What calls fail with until a worker has started."""
        self._is_wanted = False
        """A call has failed so since the last start."""
        self._restarting: asyncio.Task[None] | None = None
        self._may_hold_pages = True
        self._hold_pages_id = 0
        """Of the last message that said so."""
        self._released: asyncio.Future[None] | None = None
        """Done when the worker has answered that message, where somebody waits for that."""
        self.counters: Counter[str] = Counter()
        """``succeeded``, ``failed``, ``kernels_launched`` and ``run_ns`` of executed requests."""
        self.info = admin_pb2.Device(name=config.device, state=admin_pb2.WORKER_STATE_STARTING)
        """The device and the state of its worker."""
        self.on_state: Callable[[], object] = lambda: None
        """Called when the state has changed."""

    @property
    def queue(self) -> CallQueue:
        """The calls that wait and run, to be looked at."""
        return self._queue

    async def start(self) -> None:
        """Start the worker and wait until it is ready; a spare comes later. Raises its error when its device cannot be opened."""
        await self._process.start()
        await self._ready
        if self._spare is not None:
            self._spare.keep()

    async def call(
        self,
        message: worker_pb2.ToWorker,
        request: SerializedRequest | None = None,
        deadline: float | None = None,
        input_bytes: int = 0,
        function: str = "",
    ) -> tuple[worker_pb2.FromWorker, int]:
        """Have the worker serve ``message`` and return its answer, and the ``perf_counter_ns`` at which it was sent.

        ``request`` is what the message executes or prepares, and ``function`` its name, if it has one; ``deadline`` is in the
        loop's time; ``input_bytes`` is the size of the inputs in the message. When the awaiting task is cancelled the call is
        cancelled too. Raises ``KaasError``.
        """
        if (refusal := self._refusal or self._not_starting) is not None:
            self._is_wanted = True
            raise refusal.with_traceback(None)
        if request is not None and request.digest in self._quarantine.refused:
            raise self._quarantine.refusal(request.digest)
        call_id = message.id = next(self.ids)
        call = PendingCall(message, self._loop.create_future(), request, function, input_bytes, perf_counter_ns())
        self._calls[call_id] = call
        try:
            self._act(self._queue.submit(call_id, input_bytes))
            if deadline is not None and self._deadlines.add(call_id, deadline):
                self._set_timer()
            answer = await call.answer
        except asyncio.CancelledError:
            # Its deadline stays: gRPC cancels a call then too, and a kernel that cannot be stopped has to end all the same.
            self._act(self._queue.cancel(call_id, CancelReason.CANCELLED))
            raise
        finally:
            del self._calls[call_id]
        if answer.HasField("failed"):
            raise error_from_failed(answer.failed)
        return answer, call.sent_at_ns

    def requests(self, now_ns: int) -> list[admin_pb2.RequestInfo]:
        """Return the requests whose callers wait, in the order in which they came. ``now_ns`` is a ``perf_counter_ns``."""
        begun = self._process.begun()
        requests = []
        for call_id, call in self._calls.items():
            if call.message.HasField("execute"):
                stage = begun.get(call_id) if self._queue.is_sent(call_id) else None
                request = admin_pb2.RequestInfo(
                    id=str(call_id),
                    function=call.function,
                    device=self.info.name,
                    state=STATE_OF_STAGE[stage],
                    input_bytes=call.input_bytes,
                )
                request.age.FromNanoseconds(now_ns - call.came_at_ns)
                requests.append(request)
        return requests

    def cancel_request(self, request_id: str) -> bool:
        """End a request early, for an operator; return whether it is one of this worker's, whose caller waits."""
        for call_id, call in self._calls.items():
            if str(call_id) == request_id and call.message.HasField("execute"):
                self._act(self._queue.cancel(call_id, CancelReason.OPERATOR))
                return True
        return False

    def forget_library(self, library_id: str) -> None:
        """Tell the worker that an uploaded library was deleted. One that starts later knows nothing of it."""
        message = worker_pb2.ToWorker(forget_library=worker_pb2.ForgetLibrary(library=library_id))
        if self._process.calls is not None:
            self._process.calls.send(message)
        if self._spare is not None:
            self._spare.forget_library(message)

    async def release_pages(self, timeout_s: float) -> None:
        """Have the worker's device let go of the store's pages, and hold on to none until ``hold_pages``; no later one's either.

        Its requests go on. Raises ``WorkerBusyError`` where it has not done so in time, ``WorkerRestartingError`` where its
        process is about to end.
        """
        self._may_hold_pages = False
        if not self._process.is_running or self.info.state == admin_pb2.WORKER_STATE_STARTING:
            return  # It holds none, and is told before its first call.
        if self.info.state != admin_pb2.WORKER_STATE_READY:
            raise WorkerRestartingError(f"the worker of {self.info.name} is restarting; nothing was changed")
        self._released = self._loop.create_future()
        try:
            async with asyncio.timeout(timeout_s):
                self._send_hold_pages()
                await self._released
        except TimeoutError:
            raise WorkerBusyError(
                f"the worker of {self.info.name} has not let go of the store's pages within {timeout_s:g} s, because of the"
                " requests that it runs; nothing was changed"
            ) from None
        finally:
            self._released = None

    def hold_pages(self) -> None:
        """Let the worker's device hold on to the store's pages again."""
        self._may_hold_pages = True
        self._send_hold_pages()

    def _send_hold_pages(self) -> None:
        if self._process.calls is not None:
            self._hold_pages_id = next(self.ids)
            allowed = worker_pb2.HoldPages(allowed=self._may_hold_pages)
            self._process.calls.send(worker_pb2.ToWorker(id=self._hold_pages_id, hold_pages=allowed))

    def give_up(self, error: KaasError) -> None:
        """Fail all calls, and those to come, with ``error``. What the worker still answers is lost, and it gets no successor."""
        self._refusal = error
        self._act(self._queue.fail_all(error))

    async def close(self) -> None:
        """Stop the worker; calls that are left fail. Idempotent."""
        self.give_up(DrainingError("the server is shutting down"))
        if self._restarting is not None:
            self._restarting.cancel()
        if self._timer is not None:
            self._timer.cancel()
        if self._spare is not None:
            await self._spare.close()
        await self._process.close()
        self.info.worker_pid = 0
        self._set_state(admin_pb2.WORKER_STATE_STOPPED)

    def _process_started(self) -> None:
        self.info.worker_pid, self.info.restarts = self._process.pid, self._process.restarts
        self._seen.clear()
        self._is_wanted = False
        self._set_state(admin_pb2.WORKER_STATE_STARTING)

    def _set_state(self, state: admin_pb2.WorkerState) -> None:
        self.info.state = state
        self.on_state()

    def _received(self, message: worker_pb2.FromWorker) -> None:
        match message.WhichOneof("answer"):
            case "ready":
                self._worker_ready(message.ready.device)
            case "unknown_request" if message.id in self._calls:
                self._queue.sent_again(message.id)
                self._send(message.id, with_content=True)
            case "pages_released":
                self._pages_released(message.id, None)
            case "failed":
                self._failed(message)
            case _:
                self._answered(message)

    def _worker_ready(self, device: admin_pb2.Device) -> None:
        self.info.CopyFrom(device)
        self.info.worker_pid, self.info.restarts = self._process.pid, self._process.restarts
        self._process.policy.ready()
        self._start_error = self._not_starting = None
        if not self._ready.done():
            self._ready.set_result(None)
        if not self._may_hold_pages:
            self._send_hold_pages()
        self._set_state(admin_pb2.WORKER_STATE_READY)
        self._act(self._queue.worker_ready())

    def _pages_released(self, message_id: int, error: KaasError | None) -> None:
        """The worker's device has let go of the store's pages, or could not."""
        if self._released is None or self._released.done() or message_id != self._hold_pages_id:
            return  # Nobody waits for it any more.
        if error is None:
            self._released.set_result(None)
        else:
            self._released.set_exception(error)

    def _failed(self, message: worker_pb2.FromWorker) -> None:
        failed = message.failed
        if message.id == 0:  # The device cannot be opened.
            error = error_from_failed(failed)
            _log.error("worker of %s: %s", self.info.name, error)
            self._start_error = error
            if not self._ready.done():
                self._ready.set_exception(error)
            return
        if message.id == self._hold_pages_id:
            self._pages_released(message.id, error_from_failed(failed))
        if failed.device_lost:
            self._set_state(admin_pb2.WORKER_STATE_RESTARTING)
            by_another = failed.reason == WorkerRestartingError.reason
            if by_another or int(failed.metadata.get("suspects", "1")) > 1:
                self._act(self._queue.run_again(message.id, alone=not by_another))
                return
            if failed.reason == KernelFaultError.reason:
                self._blame(message.id, failed.message)
        self._answered(message, device_lost=failed.device_lost)

    def _answered(self, message: worker_pb2.FromWorker, *, device_lost: bool = False) -> None:
        call = self._calls.get(message.id)
        if call is not None and not call.answer.done():
            call.answer.set_result(message)
            if self._quarantine.suspected and call.request is not None and message.HasField("executed"):
                self._quarantine.acquit(call.request.digest)
        self._deadlines.discard(message.id)
        self._act(self._queue.answered(message.id, device_lost=device_lost))

    def _lost(self) -> None:
        was_ready = self.info.state != admin_pb2.WORKER_STATE_STARTING
        self._pages_released(
            self._hold_pages_id, WorkerRestartingError(f"the worker of {self.info.name} has ended; nothing was changed")
        )
        decisions = self._queue.worker_lost(self._process.begun())
        if self._refusal is None and self._spare is not None and (spare := self._spare.take()) is not None:
            self._act(decisions)
            self._take_over(spare)
            return
        if self._refusal is None:
            self._set_state(admin_pb2.WORKER_STATE_RESTARTING)
            if not self._ready.done():
                self._ready.set_exception(InternalError(f"the worker of {self.info.name} ended before it was ready"))
            failed_starts = 0 if was_ready else self._process.policy.failures + 1
            if failed_starts >= MAX_FAILED_STARTS:
                self._not_starting = WorkerRestartingError(
                    f"the worker of {self.info.name} has not started {failed_starts} times in a row"
                    f"{f': {self._start_error}' if self._start_error else ''}; kaasd goes on trying"
                )
                decisions += self._queue.fail_all(self._not_starting)
            self._restarting = self._loop.create_task(self._restart(was_ready))
        self._act(decisions)

    def _take_over(self, spare: Ready) -> None:
        """Have the spare serve, in place of the process that has ended."""
        _log.warning(
            "worker of %s (pid %d) ended; its spare (pid %d) takes over", self.info.name, self._process.pid, spare.process.pid
        )
        lost, self._process = self._process, spare.process
        lost.kill()  # where it closed its channel and goes on
        self._restarting = self._loop.create_task(lost.close())
        self._process.restarts = lost.restarts + 1
        self._process.hand_over(self._process_started, self._received, self._lost)
        self._seen.clear()
        self._worker_ready(spare.device)

    async def _restart(self, was_ready: bool) -> None:
        try:
            await self._process.restart(was_ready, self._check_store, lambda: self._is_wanted or self._queue.load > 0)
        except KaasError as error:
            self.give_up(error)
            self._set_state(admin_pb2.WORKER_STATE_STOPPED)

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

    def _send(self, call_id: int, *, with_content: bool = False) -> None:
        call = self._calls.get(call_id)
        if call is None:  # Its caller went away while it was queued for a successor.
            self._deadlines.discard(call_id)
            self._act(self._queue.answered(call_id))
            return
        call.sent_at_ns = perf_counter_ns()
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
        if is_new and self._spare is not None:
            self._spare.warm(request)

    def _blame(self, call_id: int, fault: str) -> None:
        """A call has cost the worker."""
        call = self._calls.get(call_id)
        if call is not None and call.request is not None:
            self._quarantine.cost(call.request.digest, fault)

    def _fail(self, call_id: int, error: KaasError) -> None:
        self._deadlines.discard(call_id)
        call = self._calls.get(call_id)
        if call is not None and not call.answer.done():
            call.answer.set_exception(error)
