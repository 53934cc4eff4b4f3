"""What the servicers call: the parts of a server."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health

from kaas_core.errors import DataDamagedError, DrainingError, KaasError
from kaasd.api.errors import as_kaas_error
from kaasd.api.groups import group_of_call
from kaasd.api.replies import HeldReplies
from kaasd.api.shared import Aside, finish
from kaasd.config import Settings
from kaasd.front.dispatcher import Dispatcher
from kaasd.front.functions import FunctionRegistry, RequestLimits, RequestValidator
from kaasd.front.groups import Groups
from kaasd.front.quarantine import Quarantine
from kaasd.front.request_ids import RequestIds
from kaasd.front.store_watch import StoreWatch
from kaasd.libraries.registry import Libraries
from kaasd.store.base import KeyValueStore

T = TypeVar("T")


@dataclass(slots=True)
class Core:
    """One server's parts and counters. Used by one event loop."""

    settings: Settings
    store: KeyValueStore
    functions: FunctionRegistry
    libraries: Libraries
    dispatcher: Dispatcher
    quarantine: Quarantine
    groups: Groups
    watch: StoreWatch
    aside: Aside = field(default_factory=Aside)
    limits: RequestLimits = field(init=False)
    validator: RequestValidator = field(init=False)
    request_ids: RequestIds = field(init=False)
    replies: HeldReplies = field(init=False)
    health: health.HealthServicer = field(default_factory=health.HealthServicer)
    failures: Counter[str] = field(default_factory=Counter)
    """Failed calls by reason."""
    addresses: tuple[str, ...] = ()
    """Where it listens, once it does."""
    start_time_ns: int = field(default_factory=time.time_ns)
    """Since the epoch."""
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        settings = self.settings
        self.limits = RequestLimits(settings.max_kernels, settings.max_buffers, settings.max_arguments)
        self.validator = RequestValidator(self.aside.call, self.limits)
        self.request_ids = RequestIds(self.store, settings.request_id_window_s, settings.max_queued_bytes)
        self.replies = HeldReplies(settings.max_queued_bytes)

    def refuse_if_draining(self) -> None:
        """Raise ``DrainingError`` while draining. For calls that change something; those that only look are answered.

        Raises ``StoreGoneError`` or ``DataDamagedError`` where that is why.
        """
        self.watch.refuse_if_lost()
        if self.dispatcher.draining:
            raise DrainingError("the server is draining")

    def group_of(self, named: str) -> str:
        """Return whom the present call is for; see ``group_of_call``. Raises ``GroupNotFoundError``."""
        return group_of_call(self.groups, named)

    def failed(self, error: Exception) -> KaasError:
        """Count a failed call; return what its caller should see of ``error``."""
        known = as_kaas_error(error)
        self.failures[known.reason] += 1
        if isinstance(known, DataDamagedError) and not known.metadata:
            self.watch.suspect()
        return known

    async def write(self, change: Awaitable[T]) -> T:
        """Await a change of the store, to its end. Raises ``StoreGoneError`` where the store is gone, and the change with it."""
        result = await finish(change)
        self.watch.check()
        return result

    async def keep_health(self, services: Sequence[str]) -> None:
        """Have the health of ``services`` say, from now on, whether a worker is ready and calls are taken."""
        async for ready in self.dispatcher.readiness():
            status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
            for service in services:
                await self.health.set(service, status)
