"""``kaas.v1.AdminService``."""

from __future__ import annotations

import time

import grpc

from kaas.v1 import admin_pb2
from kaas_core import __version__
from kaasd.api.core import Core


class AdminServicer:
    """Looks after the server."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def GetServerInfo(
        self, request: admin_pb2.GetServerInfoRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.GetServerInfoResponse:
        settings = self._core.settings
        response = admin_pb2.GetServerInfoResponse(
            version=__version__,
            addresses=self._core.addresses,
            max_message_bytes=settings.max_message_bytes,
            store_limit_bytes=settings.store_limit_bytes,
            durability=settings.durability.value,
            draining=self._core.dispatcher.draining,
            store_id=self._core.store.store_id,
        )
        response.start_time.FromNanoseconds(self._core.start_time_ns)
        return response

    async def ListDevices(
        self, request: admin_pb2.ListDevicesRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.ListDevicesResponse:
        return admin_pb2.ListDevicesResponse(devices=self._core.dispatcher.devices())

    async def GetStats(self, request: admin_pb2.GetStatsRequest, context: grpc.aio.ServicerContext) -> admin_pb2.GetStatsResponse:
        store = self._core.store.stats()
        response = admin_pb2.GetStatsResponse(
            devices=self._core.dispatcher.stats(),
            store_keys=store.keys,
            store_used_bytes=store.used_bytes,
            store_limit_bytes=store.limit_bytes,
            functions=len(self._core.functions),
            failures_by_reason=self._core.failures,
        )
        response.uptime.FromNanoseconds(round((time.monotonic() - self._core.started) * 1e9))
        return response

    async def Drain(self, request: admin_pb2.DrainRequest, context: grpc.aio.ServicerContext) -> admin_pb2.DrainResponse:
        await self._core.drain()
        return admin_pb2.DrainResponse()
