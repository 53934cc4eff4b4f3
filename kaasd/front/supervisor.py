"""Keeps the worker of one device alive and passes calls to it.

The decisions are ``CallQueue``'s, ``SeenRequests``' and ``RestartPolicy``'s; here are the process, the channel and the timers.
Everything runs on the event loop of the front.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from time import perf_counter_ns

from kaas.v1 import admin_pb2
from kaas.worker.v1 import worker_pb2
from kaas_core.errors import DrainingError, InternalError, KaasError, WorkerRestartingError
from kaasd.front.call_queue import CallQueue, CancelReason, Decision, Fail, Kill, RestartPolicy, SeenRequests, Send, Stop
from kaasd.front.deadlines import Deadlines
from kaasd.ipc.channel import FrontChannel
from kaasd.ipc.messages import MAX_KNOWN_REQUESTS, SerializedRequest, error_from_failed
from kaasd.ipc.worker_config import WorkerConfig

STOP_GRACE_S = 0.5
"""From a deadline to the killing of a worker that neither stops its kernel nor gives up its device. The emulated device stops
within 0.1 s, a GPU is given up after 0.2."""
EXIT_GRACE_S = 5.0
"""From the closing of the channel to the killing of a worker that does not exit."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Call:
    message: worker_pb2.ToWorker
    answer: asyncio.Future[worker_pb2.FromWorker]
    request: SerializedRequest | None
    """What the message is about."""
    sent_at_ns: int = 0


class Supervisor:
    """The worker of one device, as the front sees it."""

    def __init__(self, config: WorkerConfig, max_queued: int) -> None:
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._queue = CallQueue(max_queued, config.concurrency)
        self._restart = RestartPolicy()
        self._calls: dict[int, _Call] = {}
        self._deadlines = Deadlines(self._deadline_passed)
        self._seen = SeenRequests(MAX_KNOWN_REQUESTS)
        self._ids = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: FrontChannel | None = None
        self._cancellations: FrontChannel | None = None
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.counters: Counter[str] = Counter()
        """``succeeded``, ``failed``, ``kernels_launched`` and ``run_ns`` of executed requests."""
        self.info = admin_pb2.Device(name=config.device, state=admin_pb2.WORKER_STATE_STARTING)
        """The device and the state of its worker."""

    @property
    def queue(self) -> CallQueue:
        """The calls that wait and run, to be looked at."""
        return self._queue

    async def start(self) -> None:
        """Start the worker and wait until it is ready. Raises its error when its device cannot be opened."""
        await self._spawn()
        await self._started

    async def call(
        self, message: worker_pb2.ToWorker, request: SerializedRequest | None = None, deadline: float | None = None
    ) -> tuple[worker_pb2.FromWorker, int]:
        """Have the worker serve ``message`` and return its answer, and the ``perf_counter_ns`` at which it was sent.

        ``request`` is what the message executes or prepares; ``deadline`` is in the loop's time. When the awaiting task is
        cancelled the call is stopped. Raises ``KaasError``.
        """
        if self._closing:
            raise DrainingError("the server is shutting down")
        call_id = message.id = next(self._ids)
        call = self._calls[call_id] = _Call(message, self._loop.create_future(), request)
        try:
            self._act(self._queue.submit(call_id))
            if deadline is not None:
                self._deadlines.add(call_id, deadline)
            answer = await call.answer
        except asyncio.CancelledError:
            # Its deadline stays: gRPC cancels a call then too, and a kernel that heeds no stop has to end all the same.
            self._stop(call_id, CancelReason.CANCELLED)
            raise
        finally:
            del self._calls[call_id]
        if answer.HasField("failed"):
            raise error_from_failed(answer.failed)
        return answer, call.sent_at_ns

    async def close(self) -> None:
        """Stop the worker; calls that are left fail. Idempotent."""
        self._closing = True
        self._act(self._queue.fail_all(DrainingError("the server is shutting down")))
        for channel in (self._channel, self._cancellations):
            if channel is not None:
                channel.close()
        for task in self._tasks:
            task.cancel()
        if self._process is not None:
            await self._reap(self._process, EXIT_GRACE_S)
        self.info.state = admin_pb2.WORKER_STATE_STOPPED
        self.info.worker_pid = 0

    async def _spawn(self) -> None:
        """Start a process with exec: nothing of the front's gRPC or LMDB may cross a fork."""
        calls, cancellations = socket.socketpair(), socket.socketpair()
        with calls[1], cancellations[1]:
            descriptors = (calls[1].fileno(), cancellations[1].fileno())
            command = [sys.executable, "-m", "kaasd.worker.main", *map(str, descriptors), self._config.to_json()]
            self._process = subprocess.Popen(command, pass_fds=descriptors, stdin=subprocess.DEVNULL)
        self.info.worker_pid = self._process.pid
        self._seen.clear()
        self._channel = await FrontChannel.open(calls[0], self._received, self._lost)
        self._cancellations = await FrontChannel.open(cancellations[0])

    def _received(self, message: worker_pb2.FromWorker) -> None:
        match message.WhichOneof("answer"):
            case "ready":
                self._ready(message.ready.device)
            case "unknown_request" if message.id in self._calls:
                self._send(message.id, with_content=True)
            case "failed":
                self._failed(message)
            case _:
                self._answered(message)

    def _ready(self, device: admin_pb2.Device) -> None:
        restarts, pid = self.info.restarts, self.info.worker_pid
        self.info.CopyFrom(device)
        self.info.state = admin_pb2.WORKER_STATE_READY
        self.info.restarts, self.info.worker_pid = restarts, pid
        self._restart.ready()
        if not self._started.done():
            self._started.set_result(None)
        self._act(self._queue.worker_ready())

    def _failed(self, message: worker_pb2.FromWorker) -> None:
        failed = message.failed
        if message.id == 0:  # The device cannot be opened.
            error = error_from_failed(failed)
            _log.error("worker of %s: %s", self.info.name, error)
            if not self._started.done():
                self._started.set_exception(error)
            return
        if failed.device_lost:
            self.info.state = admin_pb2.WORKER_STATE_RESTARTING
            by_another = failed.reason == WorkerRestartingError.reason
            if by_another or int(failed.metadata.get("suspects", "1")) > 1:
                self._act(self._queue.run_again(message.id, alone=not by_another))
                return
        self._answered(message, device_lost=failed.device_lost)

    def _answered(self, message: worker_pb2.FromWorker, *, device_lost: bool = False) -> None:
        call = self._calls.get(message.id)
        if call is not None and not call.answer.done():
            call.answer.set_result(message)
        self._deadlines.discard(message.id)
        self._act(self._queue.answered(message.id, device_lost=device_lost))

    def _lost(self) -> None:
        was_ready = self.info.state != admin_pb2.WORKER_STATE_STARTING
        decisions = self._queue.worker_lost()
        if self._closing:
            self._act(decisions)
            return
        self.info.state = admin_pb2.WORKER_STATE_RESTARTING
        if not self._started.done():
            self._started.set_exception(InternalError(f"the worker of {self.info.name} ended before it was ready"))
        self._act(decisions)
        delay_s = self._restart.lost(was_ready)
        _log.warning("worker of %s (pid %d) ended; a new one starts in %.2f s", self.info.name, self.info.worker_pid, delay_s)
        self._run(self._respawn(delay_s))

    async def _respawn(self, delay_s: float) -> None:
        if self._process is not None:
            await self._reap(self._process, 0.0)
        await asyncio.sleep(delay_s)
        self.info.restarts += 1
        self.info.state = admin_pb2.WORKER_STATE_STARTING
        await self._spawn()

    @staticmethod
    async def _reap(process: subprocess.Popen[bytes], grace_s: float) -> None:
        """Wait for the end of a process, and kill it when it takes longer than ``grace_s``."""

        def wait() -> None:
            try:
                process.wait(grace_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

        await asyncio.to_thread(wait)

    def _stop(self, call_id: int, reason: CancelReason) -> None:
        self._act(self._queue.stop(call_id, reason))

    def _deadline_passed(self, call_id: int) -> None:
        self._stop(call_id, CancelReason.DEADLINE)

    def _grace_over(self, call_id: int) -> None:
        self._act(self._queue.grace_over(call_id))

    def _act(self, decisions: Iterable[Decision]) -> None:
        for decision in decisions:
            match decision:
                case Send(call_id):
                    self._send(call_id)
                case Fail(call_id, error):
                    self._fail(call_id, error)
                case Stop(call_id, reason):
                    deadline = reason is CancelReason.DEADLINE
                    if self._cancellations is not None:
                        self._cancellations.send(
                            worker_pb2.ToWorker(id=call_id, cancel=worker_pb2.Cancel(deadline_exceeded=deadline))
                        )
                    if deadline:
                        self._loop.call_later(STOP_GRACE_S, self._grace_over, call_id)
                case Kill():
                    if self._process is not None:
                        self._process.kill()

    def _send(self, call_id: int, *, with_content: bool = False) -> None:
        call = self._calls.get(call_id)
        if call is None:  # Its caller went away while it was queued for a successor.
            self._deadlines.discard(call_id)
            self._act(self._queue.answered(call_id))
            return
        call.sent_at_ns = perf_counter_ns()
        if self._channel is not None:
            if call.request is not None:
                self._name_request(call.message, call.request, with_content=with_content)
            self._channel.send(call.message)

    def _name_request(self, message: worker_pb2.ToWorker, request: SerializedRequest, *, with_content: bool) -> None:
        """Say in a message which request it is about, and what that is unless the worker has seen it."""
        named = message.execute.request if message.HasField("execute") else message.prepare.request
        named.digest = request.digest
        if self._seen.add(request.digest) or with_content:
            named.content = request.content

    def _fail(self, call_id: int, error: KaasError) -> None:
        self._deadlines.discard(call_id)
        call = self._calls.get(call_id)
        if call is not None and not call.answer.done():
            call.answer.set_exception(error)

    def _run(self, coroutine: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
