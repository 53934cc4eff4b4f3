"""How a client comes to the local channel of its server, where there is one, and streams over it. For asyncio."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc

from kaas.v1 import admin_pb2, executor_pb2, local_pb2
from kaas_client import _local, errors
from kaas_client._asyncio import LocalChannel, Lock, Queue, join, open_local, start, until_none
from kaas_client._local import Transport
from kaas_client._rpcs import Stubs


class LocalTransport:
    """The local channel of one server."""

    def __init__(self, address: str, stubs: Stubs, max_message_bytes: int, transport: Transport) -> None:
        self._address = address
        self._stubs = stubs
        self._max_bytes = max_message_bytes
        self._transport = transport
        self._lock = Lock()
        self._info: admin_pb2.GetServerInfoResponse | None = None
        self._channel: LocalChannel | None = None
        self._not_before = 0.0
        """When it is looked for again, by the monotonic clock."""

    def close(self) -> None:
        """End the connection; calls under way are cancelled."""
        self._transport = Transport.GRPC
        if self._channel is not None:
            self._channel.close()

    async def channel(self, options: Mapping[str, Any]) -> LocalChannel | None:
        """Return the connection for single calls; None where a call is to go by gRPC.

        ``options`` are those of the call. Raises ``NotEnabledError`` where that is not wanted.
        """
        channel = self._channel
        if channel is not None and channel.is_open:
            return channel
        opened = await self.open(options)
        if opened is None:
            return None
        with self._lock:
            if self._channel is not None and self._channel.is_open:  # another call's, made meanwhile
                opened.close()
            else:
                self._channel = opened
            return self._channel

    async def open(self, options: Mapping[str, Any]) -> LocalChannel | None:
        """Return a connection of its own; None as ``channel``."""
        if self._transport is Transport.GRPC or time.monotonic() < self._not_before:
            return None
        if self._info is not None:
            opened = await self._connect(self._info, options["timeout"])
            if opened is not None:
                return opened
        try:
            info = await self._stubs.admin.GetServerInfo(admin_pb2.GetServerInfoRequest(), **options)
        except grpc.RpcError:
            return None  # The call itself, by gRPC, says what the matter is.
        opened = await self._connect(info, options["timeout"])
        if opened is not None:
            self._info = info
        elif self._transport is Transport.LOCAL:
            raise _local.absent(self._address)
        else:
            self._not_before = time.monotonic() + _local.AGAIN_S
        return opened

    async def _connect(self, info: admin_pb2.GetServerInfoResponse, timeout: float | None) -> LocalChannel | None:
        """Return a connection to the server that has said ``info``."""
        timeout = _local.CONNECT_S if timeout is None else min(timeout, _local.CONNECT_S)
        for path in _local.paths(self._address, info):
            try:
                channel = await open_local(path, self._address, self._max_bytes, timeout)
            except OSError:
                continue
            try:
                hello = await channel.call(local_pb2.Hello(), timeout)
                if isinstance(hello, local_pb2.Hello) and hello.store_id == info.store_id:
                    channel.max_sent_bytes = min(self._max_bytes, info.max_message_bytes)
                    return channel
            except errors.KaasError:
                pass
            except BaseException:
                channel.close()
                raise
            channel.close()
        return None


class StreamCall:
    """One call of ``InvokeStream``, by gRPC, or what is the same over a local channel of its own."""

    def __init__(
        self,
        local: LocalTransport,
        stubs: Stubs,
        messages: Queue[executor_pb2.InvokeStreamRequest | None],
        options: dict[str, Any],
    ) -> None:
        """``messages`` are sent as they come, until None does."""
        self._local = local
        self._stubs = stubs
        self._messages = messages
        self._options = options
        self._is_cancelled = False
        self._call: Any = None
        self._channel: LocalChannel | None = None
        self._lock = Lock()
        self._unanswered = 0
        self._is_sent = False
        self._failure: errors.KaasError | None = None

    def cancel(self) -> None:
        """End it early."""
        self._is_cancelled = True
        if self._call is not None:
            self._call.cancel()
        if self._channel is not None:
            self._channel.close()

    async def answers(self) -> AsyncIterator[executor_pb2.InvokeStreamResponse]:
        """Yield the answers. Raises ``grpc.RpcError``, ``kaas_client.errors``."""
        timeout = self._options["timeout"]
        deadline = None if timeout is None else time.monotonic() + timeout
        self._channel = await self._local.open(self._options)
        if self._channel is None:
            self._call = self._stubs.executor.InvokeStream(until_none(self._messages), **self._options)
            if self._is_cancelled:
                self._call.cancel()
            async for answer in self._call:
                yield answer
            return
        if self._is_cancelled:
            self._channel.close()
        sender = start(lambda: self._send(deadline), "kaas-local-stream")
        try:
            while (frame := await self._receive(deadline)) is not None:
                yield _to_answer(frame)
        finally:
            self._channel.close()
            self._messages.put_nowait(None)
            await join(sender)

    async def _send(self, deadline: float | None) -> None:
        """Send the messages of the stream."""
        channel = self._channel
        assert channel is not None
        try:
            async for message in until_none(self._messages):
                timeout_ns = message.timeout_ns
                if deadline is not None:
                    left_ns = max(1, int((deadline - time.monotonic()) * 1e9))
                    timeout_ns = min(timeout_ns, left_ns) if timeout_ns else left_ns
                with self._lock:
                    self._unanswered += 1
                await channel.begin(message.id, message.invoke, timeout_ns)
        except errors.KaasError as error:
            self._failure = error
            channel.close()
        with self._lock:
            self._is_sent = True
            if not self._unanswered:
                channel.close()

    async def _receive(self, deadline: float | None) -> local_pb2.LocalFrame | None:
        """Return the next answer; None behind the last."""
        assert self._channel is not None
        with self._lock:
            if self._is_sent and not self._unanswered:
                return None
        try:
            frame = await self._channel.receive(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except errors.KaasError:
            if self._failure is not None:
                raise self._failure from None
            if self._is_cancelled or (self._is_sent and not self._unanswered):
                return None
            raise
        with self._lock:
            self._unanswered -= 1
        return frame


def _to_answer(frame: local_pb2.LocalFrame) -> executor_pb2.InvokeStreamResponse:
    if frame.WhichOneof("body") == "invoked":
        return executor_pb2.InvokeStreamResponse(id=frame.id, response=frame.invoked)
    return executor_pb2.InvokeStreamResponse(id=frame.id, error=frame.error)
