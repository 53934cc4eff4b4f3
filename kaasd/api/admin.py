"""``kaas.v1.AdminService``."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing

import grpc

from kaas.v1 import admin_pb2
from kaas_core import __version__
from kaas_core.errors import DeadlineExceededError
from kaasd.api.core import Core
from kaasd.api.groups import listener_of_call
from kaasd.api.shared import OneAtATime, check_local, finish, in_thread, page
from kaasd.store import base as store

PROGRESS_S = 1.0
"""Between two messages that say how far a check is."""
MOST_FUNCTIONS = 10
"""That are named of one request."""
STALLED_S = 300.0
"""A backup whose reader takes nothing for so long ends: its copy takes up disk."""


class AdminServicer:
    """Looks after the server."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._one_check = OneAtATime("a check")
        self._one_backup = OneAtATime("a backup")
        self._one_compaction = OneAtATime("a compaction")

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
            local_socket=listener_of_call.get().local_socket,
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
            groups=self._core.groups.uses(),
        )
        response.uptime.FromNanoseconds(round((time.monotonic() - self._core.started) * 1e9))
        return response

    async def Drain(self, request: admin_pb2.DrainRequest, context: grpc.aio.ServicerContext) -> admin_pb2.DrainResponse:
        check_local(context)
        await self._core.dispatcher.drain()
        return admin_pb2.DrainResponse()

    async def Resume(self, request: admin_pb2.ResumeRequest, context: grpc.aio.ServicerContext) -> admin_pb2.ResumeResponse:
        check_local(context)
        self._core.watch.check()
        self._core.dispatcher.resume()
        return admin_pb2.ResumeResponse()

    async def ListRequests(
        self, request: admin_pb2.ListRequestsRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.ListRequestsResponse:
        check_local(context)
        requests, token = page(
            request.page_size, request.page_token, "", self._core.dispatcher.requests, lambda listed: listed.id
        )
        return admin_pb2.ListRequestsResponse(requests=requests, next_page_token=token)

    async def CancelRequest(
        self, request: admin_pb2.CancelRequestRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.CancelRequestResponse:
        check_local(context)
        self._core.dispatcher.cancel_request(request.id)
        return admin_pb2.CancelRequestResponse()

    async def ListQuarantine(
        self, request: admin_pb2.ListQuarantineRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.ListQuarantineResponse:
        check_local(context)
        requests, token = page(
            request.page_size,
            request.page_token,
            "",
            self._quarantined,
            lambda listed: listed.id,
            admin_pb2.QuarantinedRequest.ByteSize,
        )
        return admin_pb2.ListQuarantineResponse(requests=requests, next_page_token=token)

    def _quarantined(self, after: str, limit: int) -> list[admin_pb2.QuarantinedRequest]:
        losses = self._core.quarantine.list(after, limit)
        functions = self._core.functions.names_by_request({bytes.fromhex(id) for id in losses}, MOST_FUNCTIONS)
        return [
            admin_pb2.QuarantinedRequest(
                id=id,
                workers=lost.workers,
                last_fault=lost.last_fault,
                last_time=lost.last_time,
                functions=functions[bytes.fromhex(id)],
            )
            for id, lost in losses.items()
        ]

    async def ReleaseQuarantine(
        self, request: admin_pb2.ReleaseQuarantineRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.ReleaseQuarantineResponse:
        check_local(context)
        self._core.quarantine.release(request.id)
        return admin_pb2.ReleaseQuarantineResponse()

    async def DrainDevice(
        self, request: admin_pb2.DrainDeviceRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.DrainDeviceResponse:
        check_local(context)
        await self._core.dispatcher.drain_device(request.name)
        return admin_pb2.DrainDeviceResponse()

    async def ResumeDevice(
        self, request: admin_pb2.ResumeDeviceRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.ResumeDeviceResponse:
        check_local(context)
        self._core.dispatcher.resume_device(request.name)
        return admin_pb2.ResumeDeviceResponse()

    async def SetGroup(self, request: admin_pb2.SetGroupRequest, context: grpc.aio.ServicerContext) -> admin_pb2.SetGroupResponse:
        check_local(context)
        self._core.watch.refuse_if_lost()
        return admin_pb2.SetGroupResponse(group=await self._core.write(self._core.groups.set(request.group)))

    async def GetGroup(self, request: admin_pb2.GetGroupRequest, context: grpc.aio.ServicerContext) -> admin_pb2.GetGroupResponse:
        check_local(context)
        grant = self._core.groups.get(request.name)
        return admin_pb2.GetGroupResponse(group=grant.message, use=self._core.groups.use(request.name), fixed=grant.fixed)

    async def ListGroups(
        self, request: admin_pb2.ListGroupsRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.ListGroupsResponse:
        check_local(context)
        groups, token = page(request.page_size, request.page_token, "", self._core.groups.list, lambda group: group.name)
        return admin_pb2.ListGroupsResponse(groups=groups, next_page_token=token)

    async def DeleteGroup(
        self, request: admin_pb2.DeleteGroupRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.DeleteGroupResponse:
        check_local(context)
        self._core.watch.refuse_if_lost()
        await self._core.write(self._core.groups.delete(request.name))
        return admin_pb2.DeleteGroupResponse()

    async def CheckStore(self, request: admin_pb2.CheckStoreRequest, context: grpc.aio.ServicerContext) -> None:
        check_local(context)
        self._core.watch.refuse_if_lost()
        with self._one_check:
            progress = store.CheckProgress()
            used_bytes = self._core.store.stats().used_bytes
            damaged = self._core.store.check(progress)

            async def tell(*, finished: bool) -> None:
                message = admin_pb2.CheckProgress(
                    entries=progress.entries, checked_bytes=progress.checked_bytes, used_bytes=used_bytes, finished=finished
                )
                await context.write(admin_pb2.CheckStoreResponse(progress=message))

            while (entry := await self._next(damaged, progress, tell)) is not None:
                await context.write(admin_pb2.CheckStoreResponse(damaged=_damaged(entry)))
                if entry.namespace is None:
                    self._core.watch.suspect()
            await tell(finished=True)

    @staticmethod
    async def _next(
        damaged: Iterator[store.DamagedEntry], progress: store.CheckProgress, tell: Callable[..., Awaitable[None]]
    ) -> store.DamagedEntry | None:
        """Return the next damaged entry, None at the end, and ``tell`` how far that is now and then."""
        looking = asyncio.create_task(asyncio.to_thread(next, damaged, None))
        try:
            while not (await asyncio.wait([looking], timeout=PROGRESS_S))[0]:
                await tell(finished=False)
            return looking.result()
        finally:
            progress.stopped = not looking.done()
            await finish(asyncio.wait([looking]))
            looking.exception()  # Seen: where somebody is left to hear of it, that has been raised.

    async def CompactStore(
        self, request: admin_pb2.CompactStoreRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.CompactStoreResponse:
        check_local(context)
        self._core.refuse_if_draining()
        stopped = threading.Event()
        with self._one_compaction:
            async with self._core.dispatcher.pages_released():
                done = await finish(asyncio.to_thread(self._core.store.compact, stopped.is_set), stop=stopped.set)
        self._core.watch.check()
        return admin_pb2.CompactStoreResponse(
            file_before_bytes=done.file_before_bytes,
            file_after_bytes=done.file_after_bytes,
            disk_before_bytes=done.disk_before_bytes,
            disk_after_bytes=done.disk_after_bytes,
            only_end=done.only_end,
        )

    async def BackupStore(self, request: admin_pb2.BackupStoreRequest, context: grpc.aio.ServicerContext) -> None:
        check_local(context)
        self._core.watch.refuse_if_lost()
        with self._one_backup, closing(self._core.store.backup()) as backup:
            await finish(asyncio.to_thread(backup.make), stop=backup.stop)
            header = admin_pb2.BackupHeader(size_bytes=backup.size_bytes)
            await _write(context, admin_pb2.BackupStoreResponse(header=header))
            pieces = backup.pieces()
            while (piece := await in_thread(next, pieces, None)) is not None:
                await _write(context, admin_pb2.BackupStoreResponse(chunk=piece))


def _damaged(entry: store.DamagedEntry) -> admin_pb2.DamagedEntry:
    return admin_pb2.DamagedEntry(
        kind="store" if entry.namespace is None else entry.namespace.noun, key=entry.key, problem=entry.problem
    )


async def _write(context: grpc.aio.ServicerContext, response: admin_pb2.BackupStoreResponse) -> None:
    """Send a part of a backup, unless its reader has stopped: one that never goes on would keep all others from theirs."""
    try:
        async with asyncio.timeout(STALLED_S):
            await context.write(response)
    except TimeoutError:
        raise DeadlineExceededError(f"the reader of the backup took nothing for {STALLED_S:g} s") from None
