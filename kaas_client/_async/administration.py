"""What a client asks of the server itself: devices, groups, and the care of the store. For asyncio."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

from kaas_client import _rpcs
from kaas_client._async.connection import Connection
from kaas_client._asyncio import created
from kaas_client._transfer import BackupDownload, CheckAnswers, Progress, Writable
from kaas_client.types import (
    Compaction,
    DeviceInfo,
    Group,
    GroupInfo,
    QuarantinedRequest,
    RequestInfo,
    ServerInfo,
    Stats,
    StoreCheck,
)


class Administration:
    """The part of a client that looks after the server."""

    _connection: Connection

    async def server_info(self, *, timeout: float | None = None) -> ServerInfo:
        """Return the server's version, addresses and settings."""
        return await self._connection.unary(_rpcs.server_info(), timeout)

    async def devices(self, *, timeout: float | None = None) -> tuple[DeviceInfo, ...]:
        """Return the server's devices and the state of their workers."""
        return await self._connection.unary(_rpcs.devices(), timeout)

    async def stats(self, *, timeout: float | None = None) -> Stats:
        """Return counters since the server's start, and current gauges."""
        return await self._connection.unary(_rpcs.stats(), timeout)

    async def health(self, service: str = "", *, timeout: float | None = None) -> str:
        """Return ``SERVING``, ``NOT_SERVING`` or another status of ``grpc.health.v1``, for the server or one of its services."""
        return await self._connection.unary(_rpcs.health(service), timeout)

    async def drain(self, *, timeout: float | None = None) -> None:
        """Make the server refuse new requests, and return when none is left; it goes on to refuse them until ``resume``.

        Raises ``DeadlineExceededError``, ``CancelledError`` where somebody resumes before, ``NotEnabledError`` over TCP.
        """
        return await self._connection.unary(_rpcs.drain(), timeout)

    async def resume(self, *, timeout: float | None = None) -> None:
        """Make the server take requests again after ``drain``.

        Raises ``DrainingError`` where it was told to exit, ``NotEnabledError`` over TCP.
        """
        return await self._connection.unary(_rpcs.resume(), timeout)

    def requests(self, *, timeout: float | None = None) -> AsyncIterator[RequestInfo]:
        """Yield the requests that wait or run on the server, in the order in which they came. ``timeout`` is for each page.

        Raises ``NotEnabledError`` over TCP.
        """
        return self._connection.pages(_rpcs.requests, timeout)

    async def cancel_request(self, id: str, *, timeout: float | None = None) -> None:
        """Have a request end early, anybody's: its caller gets ``CancelledError``. One that has begun to commit goes on.

        Raises ``RequestNotFoundError``, ``NotEnabledError`` over TCP.
        """
        return await self._connection.unary(_rpcs.cancel_request(id), timeout)

    def quarantine(self, *, timeout: float | None = None) -> AsyncIterator[QuarantinedRequest]:
        """Yield the requests that the server refuses because they have cost several workers, in the order of their ids.

        ``timeout`` is for each page. Raises ``NotEnabledError`` over TCP.
        """
        return self._connection.pages(_rpcs.quarantine, timeout)

    async def release_quarantine(self, id: str, *, timeout: float | None = None) -> None:
        """Let a request run again that is refused. It may then cost as many workers as before.

        Raises ``RequestNotFoundError``, ``NotEnabledError`` over TCP.
        """
        return await self._connection.unary(_rpcs.release_quarantine(id), timeout)

    async def drain_device(self, name: str, *, timeout: float | None = None) -> None:
        """Make the server send no more requests to a device, until ``resume_device``, and return when none is left there.

        Raises ``InvalidRequestError`` for an unknown one, otherwise as ``drain``.
        """
        return await self._connection.unary(_rpcs.drain_device(name), timeout)

    async def resume_device(self, name: str, *, timeout: float | None = None) -> None:
        """Undo ``drain_device``, and have a device that is lost tried again at once. Raises as that."""
        return await self._connection.unary(_rpcs.resume_device(name), timeout)

    async def set_group(
        self,
        name: str,
        *,
        share: float = 1.0,
        priority: int = 0,
        max_running: int = 0,
        max_queued: int = 0,
        max_queued_bytes: int = 0,
        max_device_memory_bytes: int = 0,
        max_stored_bytes: int = 0,
        reserved_multiprocessors: int = 0,
        max_region_bytes: int = 0,
        max_keys: int = 0,
        timeout: float | None = None,
    ) -> Group:
        """Make a group, or change all that it is granted, also what is not given here; return that. See ``Group``.

        Raises ``InvalidRequestError``, ``NotEnabledError`` over TCP and for a group of the server's settings file.
        """
        group = Group(
            name,
            share=share,
            priority=priority,
            max_running=max_running,
            max_queued=max_queued,
            max_queued_bytes=max_queued_bytes,
            max_device_memory_bytes=max_device_memory_bytes,
            max_stored_bytes=max_stored_bytes,
            reserved_multiprocessors=reserved_multiprocessors,
            max_region_bytes=max_region_bytes,
            max_keys=max_keys,
        )
        return await self._connection.unary(_rpcs.set_group(group), timeout)

    async def group(self, name: str, *, timeout: float | None = None) -> GroupInfo:
        """Return what a group is granted and what it uses. Raises ``GroupNotFoundError``, ``NotEnabledError`` over TCP."""
        return await self._connection.unary(_rpcs.group(name), timeout)

    def groups(self, *, timeout: float | None = None) -> AsyncIterator[Group]:
        """Yield the groups in the order of their names. ``timeout`` is for each page. Raises ``NotEnabledError`` over TCP."""
        return self._connection.pages(_rpcs.groups, timeout)

    async def delete_group(self, name: str, *, timeout: float | None = None) -> None:
        """Have the server take no more calls for a group; those that wait or run go on, and what it has stored stays.

        Raises ``GroupNotFoundError``, ``NotEnabledError`` over TCP and for a group of the server's settings file.
        """
        return await self._connection.unary(_rpcs.delete_group(name), timeout)

    async def check_store(self, *, progress: Progress | None = None, timeout: float | None = None) -> StoreCheck:
        """Compare all that is stored with its checksums, while the server goes on, and return what is damaged.

        Raises ``QueueFullError`` while another call is under way, ``NotEnabledError`` over TCP.
        """
        answers = CheckAnswers(progress)
        return await self._connection.download(_rpcs.check_store(answers), answers, timeout)

    async def backup_store(
        self,
        into: str | os.PathLike[str] | Writable,
        *,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> int:
        """Write a copy of the whole store, as a tar file, to a path or a binary file; return its size in bytes.

        At a path it appears, or takes the place of a file, only when it is complete. Unpacked in an empty directory it is a store
        for ``kaasd --store``. Raises ``StoreFullError`` where the server's disk has no room for the copy, ``QueueFullError``
        while another is made, ``NotEnabledError`` over TCP, ``OSError``.
        """
        async with created(into) as file:
            download = BackupDownload(file, progress)
            return await self._connection.download(_rpcs.backup_store(download), download, timeout)

    async def compact_store(self, *, timeout: float | None = None) -> Compaction:
        """Give the disk back what is free in the store, while the server goes on; return what has changed.

        Raises ``WorkerBusyError`` where a worker does not let go of the store's pages in time, and then nothing was done,
        ``QueueFullError`` while another call is under way, ``NotEnabledError`` over TCP.
        """
        return await self._connection.unary(_rpcs.compact_store(), timeout)
