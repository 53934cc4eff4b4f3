"""Where suspects run, beside which a worker was lost: one at a time, in a process of their own, so that they hurt nobody."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable
from typing import Protocol

from kaas.worker.v1 import worker_pb2
from kaas_core.errors import KaasError, OutOfDeviceMemoryError
from kaasd.front.call_queue import CallQueue, Decision
from kaasd.front.pending_call import PendingCall
from kaasd.front.quarantine import Quarantine
from kaasd.front.worker_calls import WorkerCalls
from kaasd.front.worker_process import WorkerProcess
from kaasd.ipc.messages import SerializedRequest

IDLE_S = 5.0
"""For so long the process waits for another suspect before it ends: after a fault others may follow."""
LONGEST_DELAY_S = 3.0
"""For which the process waits until the next worker serves."""

_log = logging.getLogger(__name__)


class GiveBack(Protocol):
    """Takes a call that cannot run in a ward, and that has cost ``losses`` workers."""

    def __call__(self, call_id: int, call: PendingCall, losses: int) -> None: ...


class Ward(WorkerCalls):
    """The suspects of one device. It is over when none is left, and another one takes those that come later.

    What finds no room on the device beside the worker that serves, or no process, is given back.
    """

    def __init__(
        self, config: worker_pb2.WorkerConfig, quarantine: Quarantine, check_store: Callable[[], object], give_back: GiveBack
    ) -> None:
        """``check_store`` is called before a process is started; where it raises ``KaasError``, none is."""
        own = worker_pb2.WorkerConfig()
        own.CopyFrom(config)
        own.concurrency = 1
        queue = CallQueue(math.inf)
        process = WorkerProcess(own, lambda: self._seen.clear(), self._received, self._lost)
        super().__init__(config.device, queue, quarantine, process)
        self._check_store = check_store
        self._give_back = give_back
        self._serves = False
        self._over = asyncio.Event()
        self._restarting: asyncio.Task[None] | None = None

    @property
    def is_over(self) -> bool:
        """Whether it takes no call any more."""
        return self._over.is_set()

    async def run(self, serving: asyncio.Event) -> None:
        """Start the process, once the next worker is ``serving``, and return when it has ended."""
        try:
            await self._begins(serving)
            self._check_store()
            if not self.is_over:
                await self._process.start()
            await self._over.wait()
        except (KaasError, OSError) as error:
            _log.error("suspects of %s get no process of their own: %s", self.device, error)
        finally:
            self.end()
            for call_id in self._queue.take_all():
                self._return(call_id)
            if self._restarting is not None:
                self._restarting.cancel()
            await self.close()

    async def _begins(self, serving: asyncio.Event) -> None:
        """Return when the next worker serves, whose start another one's would make longer, or is long in coming."""
        events = [self._loop.create_task(event.wait()) for event in (serving, self._over)]
        try:
            await asyncio.wait(events, timeout=LONGEST_DELAY_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for event in events:
                event.cancel()

    def end(self) -> None:
        """Take no call any more, and give back those that are left."""
        self._over.set()

    def hold_pages(self, *, allowed: bool) -> None:
        """Say whether the device may hold on to the store's pages from now on."""
        self._may_hold_pages = allowed
        if self._serves:
            self._send_hold_pages()

    def _worker_ready(self, ready: worker_pb2.Ready) -> None:
        self._serves = True
        self._process.ready()
        if not self._may_hold_pages:
            self._send_hold_pages()
        self._act(self._queue.worker_ready())

    def _cannot_start(self, error: KaasError) -> None:
        _log.error("worker of %s for suspects: %s", self.device, error)

    def _isolate(self, call_id: int, call: PendingCall, losses: int) -> None:
        self.admit(call_id, call, losses)  # for the next process here

    def _leaves_slot(self, call: PendingCall) -> None:
        """It has no slot of a device that others wait for."""

    def _has_run(self, call: PendingCall, answer: worker_pb2.FromWorker) -> None:
        """Nor leaves it one to another."""

    def _is_new(self, request: SerializedRequest) -> None:
        """No spare has to know of it."""

    def _pages_released(self, message_id: int, error: KaasError | None) -> None:
        """Nobody waits for that: see ``Supervisor.release_pages``."""

    def _failed(self, message: worker_pb2.FromWorker) -> None:
        if message.failed.reason == OutOfDeviceMemoryError.reason:
            self._return(message.id)
            self._act(self._queue.answered(message.id))
        else:
            super()._failed(message)

    def _lost(self) -> None:
        if self.is_over:
            return
        served, self._serves = self._serves, False
        self._act(self._queue.worker_lost(self._process.begun()))
        if served and self._queue.load:
            self._restarting = self._loop.create_task(self._restart())
        else:
            self.end()

    async def _restart(self) -> None:
        try:
            await self._process.restart(was_ready=True, check=self._check_store, is_wanted=lambda: True)
        except KaasError:
            self.end()

    def _act(self, decisions: Iterable[Decision]) -> None:
        super()._act(decisions)
        if not self._queue.load:
            self._loop.call_later(IDLE_S, self._end_if_idle)

    def _end_if_idle(self) -> None:
        if not self._queue.load:
            self.end()

    def _return(self, call_id: int) -> None:
        if (call := self._calls.get(call_id)) is not None:
            self._give_back(call_id, call, self._queue.losses(call_id))
