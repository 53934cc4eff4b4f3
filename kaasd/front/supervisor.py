"""Keeps the worker of one device alive: starts it, replaces it, and passes calls to it.

The process is ``WorkerProcess``'s, its calls are ``WorkerCalls``'; one that waits to take over is ``Spare``'s, and calls that may
cost a worker run in a ``Ward``. Everything runs on the event loop of the front.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Protocol

from kaas.v1 import admin_pb2
from kaas.worker.v1 import worker_pb2
from kaas_core.errors import (
    CancelledError,
    DrainingError,
    InternalError,
    KaasError,
    OutOfDeviceMemoryError,
    WorkerBusyError,
    WorkerRestartingError,
)
from kaasd.front.call_queue import CallQueue
from kaasd.front.pending_call import PendingCall
from kaasd.front.quarantine import Quarantine
from kaasd.front.spare import Ready, Spare
from kaasd.front.ward import Ward
from kaasd.front.worker_calls import WorkerCalls
from kaasd.front.worker_process import WorkerProcess
from kaasd.ipc.messages import WAITING_AT_WORKER, SerializedRequest, error_from_failed

MAX_FAILED_STARTS = 3
"""In a row; they take some seconds. After as many, calls do not wait for the next."""
DRAIN_POLL_S = 0.01
"""Between two looks whether the last request of a device has ended."""

_log = logging.getLogger(__name__)


class RequestsWait(Protocol):
    """Where requests wait for a device, as a device sees it: ``RequestQueue``."""

    def device_ready(self, device: str, slots: int, memory_bytes: float, *, divides: bool) -> None:
        """It can run so many requests at once, and has so much memory for their buffers."""

    def device_lost(self, device: str, not_begun: Iterable[PendingCall]) -> None:
        """It can run nothing more, and had not begun these."""

    def leaves_slot(self, call: PendingCall) -> None:
        """A request has no need of its slot."""

    def left(self, call: PendingCall, device_s: float | None = None) -> None:
        """A request has run, and has used so much of the device; None: it has failed."""

    def fail_all(self, error: KaasError, device: str | None = None) -> None:
        """What waits for the device alone fails."""


class Supervisor(WorkerCalls):
    """The worker of one device, as the front sees it."""

    def __init__(
        self,
        config: worker_pb2.WorkerConfig,
        max_queued: int,
        check_store: Callable[[], object] = lambda: None,
        quarantine: Quarantine | None = None,
        *,
        has_spare: bool = False,
        least_memory_for_spare: int = 0,
    ) -> None:
        """``check_store`` is called before each worker is started; where it raises ``KaasError``, none is started any more.

        ``quarantine`` is told which requests cost a worker; devices that share it refuse the same ones. A device with less memory
        than ``least_memory_for_spare`` has no spare all the same.
        """
        queue = CallQueue(max_queued, config.concurrency)
        process = WorkerProcess(config, self._process_started, self._received, self._lost)
        super().__init__(config.device, queue, quarantine or Quarantine(), process)
        self._config = config
        self._check_store = check_store
        self._spare = Spare(config, check_store) if has_spare else None
        self._least_memory_for_spare = least_memory_for_spare
        self._ward: Ward | None = None
        """The last one."""
        self._wards: set[asyncio.Task[None]] = set()
        """Those whose processes have not ended."""
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._serving = asyncio.Event()
        """Set while the worker has its device open, and is not lost."""
        self._undrained: asyncio.Event | None = None
        """Set by ``resume``; None where the device is not drained."""
        self._start_error: KaasError | None = None
        """Why the last worker has not started, if it could say so."""
        self._restarting: asyncio.Task[None] | None = None
        self._hold_pages_id = 0
        """Of the last message that said so."""
        self._reserved: Mapping[str, int] = {}
        """Multiprocessors by group."""
        self.memory_limit_bytes = math.inf
        """For buffers, those that stay too."""
        self.multiprocessor_unit = 0
        """Of which number of them a group may have multiples for its own; 0: it may have none."""
        self._released: asyncio.Future[None] | None = None
        """Done when the worker has answered that message, where somebody waits for that."""
        self.counters: Counter[str] = Counter()
        """``succeeded``, ``failed``, ``kernels_launched`` and ``device_ns`` of executed requests."""
        self.info = admin_pb2.Device(name=config.device, state=admin_pb2.WORKER_STATE_STARTING)
        """The device and the state of its worker."""
        self.on_state: Callable[[], object] = lambda: None
        """Called when the state has changed."""
        self.requests_wait: RequestsWait | None = None
        """Told what the worker takes."""

    @property
    def slots(self) -> int:
        """Requests that the worker takes at once: one waits there for the others."""
        return self._config.concurrency + WAITING_AT_WORKER

    @property
    def queued(self) -> int:
        """Calls that wait here, suspects too."""
        return self._queue.queued + (self._ward.queue.queued if self._ward is not None else 0)

    @property
    def running(self) -> int:
        """Calls being served, suspects too."""
        return self._queue.running + (self._ward.queue.running if self._ward is not None else 0)

    async def start(self) -> None:
        """Start the worker and wait until it is ready; a spare comes later. Raises its error when its device cannot be opened."""
        await self._process.start()
        await self._ready
        if self.info.memory_bytes < self._least_memory_for_spare:
            self._spare = None
        if self._spare is not None:
            self._spare.keep()

    def requests(self, now_ns: int) -> list[admin_pb2.RequestInfo]:
        """As ``WorkerCalls``, and suspects."""
        return super().requests(now_ns) + ([] if self._ward is None else self._ward.requests(now_ns))

    def cancel_request(self, request_id: str) -> bool:
        """As ``WorkerCalls``, also a suspect."""
        return super().cancel_request(request_id) or (self._ward is not None and self._ward.cancel_request(request_id))

    def forget_library(self, library_id: str) -> None:
        """As ``WorkerCalls``, the spare too, and who runs suspects."""
        super().forget_library(library_id)
        if self._ward is not None:
            self._ward.forget_library(library_id)
        if self._spare is not None:
            self._spare.forget_library(library_id)

    async def release_pages(self, timeout_s: float) -> None:
        """Have the worker's device let go of the store's pages, and hold on to none until ``hold_pages``; no later one's either.

        Its requests go on. Raises ``WorkerBusyError`` where it has not done so in time, ``WorkerRestartingError`` where its
        process is about to end.
        """
        if self._ward is not None and not self._ward.is_over:
            raise WorkerBusyError(f"requests of {self.info.name} that may cost a worker run aside; nothing was changed")
        self._may_hold_pages = False
        if not self._process.is_running or not self._serving.is_set():
            return  # It holds none, and is told before its first call.
        if self.info.state not in (admin_pb2.WORKER_STATE_READY, admin_pb2.WORKER_STATE_DRAINING):
            raise WorkerRestartingError(f"the worker of {self.info.name} is restarting; nothing was changed")
        self._released = self._loop.create_future()
        try:
            async with asyncio.timeout(timeout_s):
                self._hold_pages_id = self._send_hold_pages()
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
        self._hold_pages_id = self._send_hold_pages()
        if self._ward is not None:
            self._ward.hold_pages(allowed=True)

    def reserve(self, groups: Mapping[str, int]) -> None:
        """Give groups so many multiprocessors of their own from now on, in each worker of this device."""
        self._reserved = groups
        if self._serving.is_set():
            self._send_reserved()

    def _send_reserved(self) -> None:
        if not self.multiprocessor_unit:
            _log.warning("%s cannot reserve multiprocessors, and all groups share them: %s", self.info.name, dict(self._reserved))
        elif self._process.calls is not None:
            self._process.calls.send(worker_pb2.ToWorker(reserve=worker_pb2.Reserve(multiprocessors=self._reserved)))
            self._act(self._queue.set_concurrency(self._config.concurrency + len(self._reserved)))

    def replace(self) -> None:
        """Have another process take the place of the worker's, which has no calls."""
        self._process.kill()

    def give_up(self, error: KaasError) -> None:
        """Fail all calls, and those to come, with ``error``. What the worker still answers is lost, and it gets no successor."""
        self._refusal = error
        self.fail_all(error)
        if self._ward is not None:
            self._ward.fail_all(error)

    async def drain(self) -> None:
        """Be shown as draining until ``resume``, and return when neither the worker nor the ward has a call.

        Raises ``CancelledError`` where ``resume`` undoes it meanwhile.
        """
        if self._undrained is None:
            self._undrained = asyncio.Event()
            if self.info.state == admin_pb2.WORKER_STATE_READY:
                self._set_state(admin_pb2.WORKER_STATE_READY)
        undrained = self._undrained
        while self.queued + self.running:
            with suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_POLL_S):
                    await undrained.wait()
            if undrained.is_set():
                raise CancelledError(f"the drain of {self.info.name} was undone")

    def resume(self) -> None:
        """Undo ``drain``, and have a worker that is to start do so at once. Idempotent."""
        if self._undrained is not None:
            self._undrained.set()
            self._undrained = None
            if self.info.state == admin_pb2.WORKER_STATE_DRAINING:
                self._set_state(admin_pb2.WORKER_STATE_READY)
        if not self._serving.is_set():
            self._process.start_at_once()

    async def close(self) -> None:
        """Stop the worker; calls that are left fail. Idempotent."""
        self.give_up(DrainingError("the server is shutting down"))
        if self._restarting is not None:
            self._restarting.cancel()
        if self._ward is not None:
            self._ward.end()
        await asyncio.gather(*self._wards)
        if self._spare is not None:
            await self._spare.close()
        await super().close()
        self.info.worker_pid = 0
        self._set_state(admin_pb2.WORKER_STATE_STOPPED)

    def _process_started(self) -> None:
        self.info.worker_pid, self.info.restarts = self._process.pid, self._process.restarts
        self._seen.clear()
        self._is_wanted = False
        self._serving.clear()
        self._set_state(admin_pb2.WORKER_STATE_STARTING)

    def _set_state(self, state: admin_pb2.WorkerState) -> None:
        """The worker has come to a state. What is shown of it says too whether the device is drained or lost."""
        if state == admin_pb2.WORKER_STATE_READY:
            if self._undrained is not None:
                state = admin_pb2.WORKER_STATE_DRAINING
        elif self._not_starting is not None and state != admin_pb2.WORKER_STATE_STOPPED:
            state = admin_pb2.WORKER_STATE_LOST
        self.info.state = state
        self.on_state()

    def _worker_ready(self, ready: worker_pb2.Ready) -> None:
        self.info.CopyFrom(ready.device)
        self.multiprocessor_unit = ready.multiprocessor_unit
        self.memory_limit_bytes = ready.memory_limit_bytes or math.inf
        self.info.worker_pid, self.info.restarts = self._process.pid, self._process.restarts
        self._process.ready()
        self._start_error = self._not_starting = None
        self._serving.set()
        if not self._ready.done():
            self._ready.set_result(None)
        if not self._may_hold_pages:
            self._hold_pages_id = self._send_hold_pages()
        if self._reserved:
            self._send_reserved()
        self._set_state(admin_pb2.WORKER_STATE_READY)
        self._act(self._queue.worker_ready())
        self.tell_ready()

    def tell_ready(self) -> None:
        """Have requests come to the worker, which is ready."""
        if self.requests_wait is not None:
            divides = self.multiprocessor_unit > 0
            self.requests_wait.device_ready(self.info.name, self.slots, self.memory_limit_bytes, divides=divides)

    def _pages_released(self, message_id: int, error: KaasError | None) -> None:
        """The worker's device has let go of the store's pages, or could not."""
        if self._released is None or self._released.done() or message_id != self._hold_pages_id:
            return  # Nobody waits for it any more.
        if error is None:
            self._released.set_result(None)
        else:
            self._released.set_exception(error)

    def _cannot_start(self, error: KaasError) -> None:
        _log.error("worker of %s: %s", self.info.name, error)
        self._start_error = error
        if not self._ready.done():
            self._ready.set_exception(error)

    def _failed(self, message: worker_pb2.FromWorker) -> None:
        if message.id == self._hold_pages_id:
            self._pages_released(message.id, error_from_failed(message.failed))
        if message.failed.device_lost:
            self._set_state(admin_pb2.WORKER_STATE_RESTARTING)
        before = self._restarting
        if message.failed.reason == OutOfDeviceMemoryError.reason and before is not None and not before.done():
            # The process before this one, of which this was the spare, has not ended, and holds what is missing.
            before.add_done_callback(partial(self._send_again, message.id, self._process))
            return
        super()._failed(message)

    def _send_again(self, call_id: int, process: WorkerProcess, _: object) -> None:
        """Have a call served that has found no room, unless the worker that it was sent to has gone too."""
        if process is self._process and self._queue.is_sent(call_id):
            self._send(call_id)

    def _isolate(self, call_id: int, call: PendingCall, losses: int) -> None:
        if losses == 1 and call.request is not None and self._quarantine.is_proven(call.request.digest):
            self.admit(call_id, call, losses)  # Another is to blame, most likely; a process for suspects takes seconds to start.
            return
        if self._ward is None or self._ward.is_over:
            self._ward = Ward(self._config, self._quarantine, self._check_store, self._take_back)
            self._ward.hold_pages(allowed=self._may_hold_pages)
            self._ward.ids = self.ids
            running = self._loop.create_task(self._ward.run(self._serving))
            self._wards.add(running)
            running.add_done_callback(self._wards.discard)
        self._ward.admit(call_id, call, losses)

    def _take_back(self, call_id: int, call: PendingCall, losses: int) -> None:
        """Run a suspect beside no other, since it cannot run in a process of its own."""
        self.admit(call_id, call, losses, alone=True)
        if self._refusal is not None:
            self.fail_all(self._refusal)

    def _is_new(self, request: SerializedRequest) -> None:
        if self._spare is not None:
            self._spare.warm(request)

    def _lost(self) -> None:
        was_ready = self._serving.is_set()
        self._serving.clear()
        self._pages_released(
            self._hold_pages_id, WorkerRestartingError(f"the worker of {self.info.name} has ended; nothing was changed")
        )
        decisions = self._queue.worker_lost(self._process.begun())
        self._displace()
        if self._refusal is None and self._spare is not None and (spare := self._spare.take()) is not None:
            self._act(decisions)
            self._take_over(spare)
            return
        if self._refusal is None:
            if not self._ready.done():
                self._ready.set_exception(InternalError(f"the worker of {self.info.name} ended before it was ready"))
            failed_starts = 0 if was_ready else self._process.policy.failures + 1
            if failed_starts >= MAX_FAILED_STARTS:
                self._not_starting = WorkerRestartingError(
                    f"the worker of {self.info.name} has not started {failed_starts} times in a row"
                    f"{f': {self._start_error}' if self._start_error else ''}; kaasd goes on trying"
                )
                decisions += self._queue.fail_all(self._not_starting)
                if self.requests_wait is not None:
                    self.requests_wait.fail_all(self._not_starting, self.info.name)
            self._set_state(admin_pb2.WORKER_STATE_RESTARTING)
            self._restarting = self._loop.create_task(self._restart(was_ready))
        self._act(decisions)

    def _displace(self) -> None:
        """Have requests that the worker had not begun go elsewhere."""
        displaced = [call for call_id in self._queue.waiting if (call := self._displaced(call_id)) is not None]
        for call in displaced:
            self._queue.withdraw(call.id)
            self._deadlines.discard(call.id)
            self.forget(call)
        if self.requests_wait is not None:
            self.requests_wait.device_lost(self.info.name, displaced)

    def _displaced(self, call_id: int) -> PendingCall | None:
        """Return a call that waits here, if it is a request whose caller waits, and that is no suspect."""
        call = self._calls.get(call_id)
        is_suspect = self._queue.is_alone(call_id) or self._queue.losses(call_id) > 0
        return None if call is None or call.queued is None or is_suspect else call

    def _leaves_slot(self, call: PendingCall) -> None:
        if self.requests_wait is not None:
            self.requests_wait.leaves_slot(call)

    def _has_run(self, call: PendingCall, answer: worker_pb2.FromWorker) -> None:
        if self.requests_wait is not None:
            executed = answer.executed if answer.HasField("executed") else None
            self.requests_wait.left(call, None if executed is None else executed.device_ns / 1e9)

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
        self._worker_ready(spare.message)

    async def _restart(self, was_ready: bool) -> None:
        try:
            await self._process.restart(was_ready, self._check_store, lambda: self._is_wanted or self._queue.load > 0)
        except KaasError as error:
            self.give_up(error)
            self._set_state(admin_pb2.WORKER_STATE_STOPPED)
