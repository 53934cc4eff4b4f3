"""The gRPC server: services, limits, health and reflection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from kaas.v1 import admin_pb2, executor_pb2, kv_pb2, library_pb2
from kaas_core.address import is_loopback
from kaas_core.errors import GroupNotFoundError
from kaasd.api.admin import AdminServicer
from kaasd.api.core import Core
from kaasd.api.executor import ExecutorServicer
from kaasd.api.groups import Listener
from kaasd.api.kv import KvServicer
from kaasd.api.library import LibraryServicer
from kaasd.api.listen import forget, listen, local_socket_of
from kaasd.api.local import LocalServer
from kaasd.api.rpc import service_handler
from kaasd.api.tls import ServerTls
from kaasd.config import Settings, split_listener
from kaasd.front.dispatcher import Dispatcher
from kaasd.front.functions import FunctionRegistry
from kaasd.front.groups import Groups
from kaasd.front.quarantine import Quarantine
from kaasd.front.store_watch import StoreWatch
from kaasd.libraries.registry import Libraries
from kaasd.store.base import KeyValueStore

SERVICES = {
    executor_pb2.DESCRIPTOR.services_by_name["ExecutorService"]: ExecutorServicer,
    library_pb2.DESCRIPTOR.services_by_name["LibraryService"]: LibraryServicer,
    kv_pb2.DESCRIPTOR.services_by_name["KvService"]: KvServicer,
    admin_pb2.DESCRIPTOR.services_by_name["AdminService"]: AdminServicer,
}

_log = logging.getLogger(__name__)


class Server:
    """A server that listens. Its owner stops it, and then closes what it calls."""

    def __init__(self, core: Core, servers: Sequence[grpc.aio.Server | LocalServer], *background: asyncio.Task[None]) -> None:
        """``servers`` share the servicers; ``background`` are tasks that end with it."""
        self._core = core
        self._servers = servers
        self._background = background

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens, with the ports that were bound."""
        return self._core.addresses

    async def drain(self) -> None:
        """Turn health to NOT_SERVING and refuse new work, for good, and return when none is left."""
        await self._core.dispatcher.drain(for_good=True)

    async def stop(self, grace_s: float | None = None) -> None:
        """Take no new call, let running ones go on for ``grace_s``, then cancel them, and return when all have ended."""
        await asyncio.gather(*(server.stop(grace_s) for server in self._servers))
        for task in self._background:
            task.cancel()
        self._core.aside.close()


MAX_CALLS_OF_CONNECTION, MAX_PENDING_CALLS = 1000, 1_000_000

GRPC_LOGGER = "grpc._cython.cygrpc"


def is_worth_a_line(record: logging.LogRecord) -> bool:
    """Whether a record of gRPC's own tells of a defect. A reply that finds its caller gone does not: any deadline may do that."""
    return not (record.exc_info and isinstance(record.exc_info[1], grpc.aio.InternalError))


async def start_server(
    settings: Settings,
    *,
    store: KeyValueStore,
    functions: FunctionRegistry,
    libraries: Libraries,
    dispatcher: Dispatcher,
    quarantine: Quarantine,
    groups: Groups,
    watch: StoreWatch,
) -> Server:
    """Listen on all of ``settings.listen``.

    Raises ``ListenError``, ``TlsError``, ``GroupNotFoundError`` (of a socket); then it listens on none.
    """
    logging.getLogger(GRPC_LOGGER).addFilter(is_worth_a_line)
    core = Core(settings, store, functions, libraries, dispatcher, quarantine, groups, watch)
    credentials = _credentials(settings)
    listeners = [split_listener(text) for text in settings.listen]
    for address, group in listeners:
        if group and group not in groups:
            raise GroupNotFoundError(f"{address} is for the group {group!r}, which there is not: make it first", {"group": group})
    servicers = {service: servicer(core) for service, servicer in SERVICES.items()}
    executor = next(servicer for servicer in servicers.values() if isinstance(servicer, ExecutorServicer))
    # In the order in which they were named, so that it is known which failed. Unix sockets have their own, TCP ones share.
    at = [(address, Listener(group, local_socket_of(address))) for address, group in listeners]
    servers = {listener: _make_server(core, servicers, listener) for _, listener in at}
    local_servers: list[LocalServer] = []
    names = (health.OVERALL_HEALTH, *(service.full_name for service in SERVICES))
    for name in names:
        await core.health.set(name, health_pb2.HealthCheckResponse.SERVING)
    bound: list[str] = []
    try:
        for address, listener in at:
            bound.append(listen(servers[listener], address, credentials))
            if listener.local_socket:
                local_servers.append(LocalServer(core, executor, listener))
        for server in servers.values():
            await server.start()
        for local_server in local_servers:
            local_server.start()
    except BaseException:
        await asyncio.gather(*(server.stop(None) for server in (*servers.values(), *local_servers)))
        forget(bound)
        raise
    core.addresses = tuple(bound)
    background = core.keep_health(names), core.request_ids.keep_few()
    return Server(core, [*servers.values(), *local_servers], *map(asyncio.create_task, background))


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    if settings.tls_client_ca is None and not all(is_loopback(split_listener(text)[0]) for text in settings.listen):
        _log.warning("TLS encrypts, but without --tls-client-ca whoever reaches a TCP address can run kernels")
    return ServerTls(settings.tls_cert, settings.tls_key, settings.tls_client_ca).credentials()


def _make_server(core: Core, servicers: Mapping[ServiceDescriptor, object], listener: Listener) -> grpc.aio.Server:
    """Return the gRPC server of a listener, which listens nowhere yet."""
    server = grpc.aio.server(options=server_options(core.settings))
    server.add_generic_rpc_handlers(
        tuple(service_handler(servicer, service, core, listener) for service, servicer in servicers.items())
    )
    health_pb2_grpc.add_HealthServicer_to_server(core.health, server)
    health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    names = (*(service.full_name for service in SERVICES), health_name, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    return server


def server_options(settings: Settings) -> list[tuple[str, int]]:
    """Return gRPC's options for a server with these settings."""
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        # Two daemons must not share a TCP port unnoticed.
        ("grpc.so_reuseport", 0),
        # A caller that vanished without a word is noticed within 80 s, and its kernels stop.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        # A client's gRPC keeps further calls of a connection until there is room. 20,000 at once took 230 MiB here; now 96.
        ("grpc.max_concurrent_streams", MAX_CALLS_OF_CONNECTION),
        # With it, half of those were cut off with UNAVAILABLE, before the client knew of the limit.
        ("grpc.http.overload_protection", 0),
        # Past 1000 calls that are not taken up yet gRPC ends some, past 3000 all, in CANCELLED, as if callers wanted it.
        ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_CALLS),
    ]
