"""A spare worker: its device is open and the code of recent requests loaded, so that it can take over at once."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import NamedTuple

from cachetools import LRUCache

from kaas.worker.v1 import worker_pb2
from kaas_core.errors import KaasError
from kaasd.front.worker_process import WorkerProcess
from kaasd.ipc.messages import SerializedRequest, error_from_failed

FIRST_ID = 1 << 63
"""Of what a spare is asked: an answer may come when it serves already, and is none to a call."""
MOST_WARM_BYTES = 4 << 20
"""Of the requests whose code a spare loads, the last ones."""

_log = logging.getLogger(__name__)


class Ready(NamedTuple):
    """A worker that can serve."""

    process: WorkerProcess
    message: worker_pb2.Ready


class Spare:
    """The spare of one device: one after another, each until it is taken. Used by the front's event loop."""

    def __init__(self, config: worker_pb2.WorkerConfig, check_store: Callable[[], object]) -> None:
        """``check_store`` is called before each is started; where it raises ``KaasError``, none is started any more."""
        self._config = config
        self._check_store = check_store
        self._closed = False
        self._ready: Ready | None = None
        self._process: WorkerProcess | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._ids = itertools.count(FIRST_ID)
        self._recent: LRUCache[bytes, SerializedRequest] = LRUCache(MOST_WARM_BYTES, lambda request: len(request.content))

    @property
    def is_ready(self) -> bool:
        """Whether ``take`` gives one."""
        return self._ready is not None

    def keep(self) -> None:
        """Have one, from now on."""
        self._process = WorkerProcess(self._config, lambda: None, self._received, self._lost)
        self._keeping = asyncio.create_task(self._start(self._process))

    def take(self) -> Ready | None:
        """Return the spare, if it is ready and answers, and have another."""
        ready = self._ready
        if ready is None or ready.process.is_silent:
            return None
        self._ready = None
        self.keep()
        return ready

    def warm(self, request: SerializedRequest) -> None:
        """Load the code of a request, which may come to the spare."""
        if len(request.content) <= MOST_WARM_BYTES:
            self._recent[request.digest] = request
            self._prepare(request)

    def forget_library(self, library_id: str) -> None:
        """An uploaded library was deleted."""
        if self._ready is not None:
            self._ready.process.forget_library(library_id)

    async def close(self) -> None:
        """End it, and have no other. Idempotent."""
        self._closed, self._ready = True, None
        if self._keeping is not None:
            self._keeping.cancel()
        if self._process is not None:
            await self._process.close()

    def _prepare(self, request: SerializedRequest) -> None:
        if self._ready is not None and self._ready.process.calls is not None:
            named = worker_pb2.SerializedRequest(digest=request.digest, content=request.content)
            # Its answer is of no interest: what it cannot run now, it cannot run later.
            prepare = worker_pb2.ToWorker(id=next(self._ids), prepare=worker_pb2.Prepare(request=named))
            self._ready.process.calls.send(prepare)

    def _received(self, message: worker_pb2.FromWorker) -> None:
        if message.HasField("ready"):
            assert self._process is not None
            self._process.ready()
            self._ready = Ready(self._process, message.ready)
            for request in list(self._recent.values()):
                self._prepare(request)
        elif message.HasField("failed") and self._ready is None:
            _log.error("spare worker of %s: %s", self._config.device, error_from_failed(message.failed))

    def _lost(self) -> None:
        assert self._process is not None
        was_ready, self._ready = self._ready is not None, None
        if self._closed:
            return
        self._keeping = asyncio.create_task(self._restart(self._process, was_ready))

    async def _start(self, process: WorkerProcess) -> None:
        try:
            self._check_store()
            await process.start()
        except OSError as error:
            _log.error("spare worker of %s cannot be started: %s", self._config.device, error)
            await self._restart(process, was_ready=False)
        except KaasError:
            return  # The store is lost; whoever serves says so.

    async def _restart(self, process: WorkerProcess, was_ready: bool) -> None:
        try:
            await process.restart(was_ready, self._check_store, lambda: False)
        except KaasError:
            return
