"""What the servicers call: the parts of a server, and what they ask of the dispatcher."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from grpc_health.v1.health import aio as health

from kaas.v1 import admin_pb2, executor_pb2, library_pb2
from kaasd.config import Settings
from kaasd.engine.checked import RequestChecker
from kaasd.engine.functions import FunctionRegistry
from kaasd.engine.libraries import Libraries
from kaasd.errors import DrainingError
from kaasd.request.serialized import SerializedRequest
from kaasd.store.base import KeyValueStore


class Dispatcher(Protocol):
    """Runs requests on the server's devices. Its coroutines raise ``KaasError``; cancelling one stops its kernels."""

    @property
    def draining(self) -> bool: ...

    async def execute(
        self,
        request: SerializedRequest,
        *,
        keys: Mapping[str, str] | None = None,
        inputs: Mapping[str, bytes] | None = None,
        return_buffers: Sequence[str] = (),
        device: str = "",
        deadline: float | None = None,
        trace: bool = False,
    ) -> executor_pb2.InvokeResponse:
        """Run a valid request; ``deadline`` is in the loop's time, ``trace`` asks for a trace."""

    async def prepare(self, request: SerializedRequest) -> None:
        """Check a request against its libraries and the devices, without running it."""

    async def inspect(self, library: str, content: bytes | None = None) -> library_pb2.InspectLibraryResponse:
        """Describe a library, or ``content`` that is not stored."""

    async def drain(self) -> None:
        """Refuse new calls, and return when none is left."""

    def devices(self) -> list[admin_pb2.Device]: ...

    def stats(self) -> list[admin_pb2.DeviceStats]: ...


@dataclass(slots=True)
class Core:
    """One server's parts and counters. Used by one event loop."""

    settings: Settings
    store: KeyValueStore
    functions: FunctionRegistry
    libraries: Libraries
    dispatcher: Dispatcher
    checker: RequestChecker = field(default_factory=RequestChecker)
    health: health.HealthServicer = field(default_factory=health.HealthServicer)
    failures: Counter[str] = field(default_factory=Counter)
    """Failed calls by reason."""
    addresses: tuple[str, ...] = ()
    """Where it listens, once it does."""
    start_time_ns: int = field(default_factory=time.time_ns)
    """Since the epoch."""
    started: float = field(default_factory=time.monotonic)
    _drained: asyncio.Task[None] | None = None

    def refuse_if_draining(self) -> None:
        """Raise ``DrainingError`` while draining. For calls that change something; those that only look are answered."""
        if self.dispatcher.draining:
            raise DrainingError("the server is draining")

    async def drain(self) -> None:
        """Turn health to NOT_SERVING, refuse new work, and return when none is left. A cancelled caller does not stop it."""
        if self._drained is None:
            self._drained = asyncio.create_task(self._drain())
        await asyncio.shield(self._drained)

    async def _drain(self) -> None:
        await self.health.enter_graceful_shutdown()
        await self.dispatcher.drain()
