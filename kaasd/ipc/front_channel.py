"""The front's end of a channel. It alone needs asyncio, which the other processes would import for nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from google.protobuf.message import DecodeError

from kaas.worker.v1 import worker_pb2
from kaasd.ipc.channel import LENGTH

RECEIVED_BYTES = 256 << 10


class FrontChannel(asyncio.Protocol):
    """The front's end. ``on_message`` gets every message; ``on_lost`` is called once the worker has gone. Both may be changed."""

    def __init__(
        self,
        on_message: Callable[[worker_pb2.FromWorker], object] = lambda message: None,
        on_lost: Callable[[], object] = lambda: None,
    ) -> None:
        self.on_message = on_message
        self.on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._is_closed = False
        self._rest: socket.socket | None = None
        """The same connection, to read what is left when a write has failed: the transport gives up both ways then."""

    @classmethod
    async def open(cls, sock: socket.socket, *callbacks: Callable[..., object]) -> FrontChannel:
        """Take over ``sock`` on the running event loop; ``callbacks`` as ``__init__``."""
        rest = sock.dup()
        try:
            _, channel = await asyncio.get_running_loop().create_connection(lambda: cls(*callbacks), sock=sock)
        except BaseException:
            rest.close()
            raise
        if channel._transport is None:  # It was lost already.
            rest.close()
        else:
            channel._rest = rest
        return channel

    def send(self, message: worker_pb2.ToWorker) -> None:
        """Queue a message; one that can no longer be sent is lost with the worker."""
        if self._transport is not None and not self._transport.is_closing():
            data = message.SerializeToString()
            self._transport.writelines((LENGTH.pack(len(data)), data))

    def close(self) -> None:
        """Close this end: an idle worker then exits."""
        self._is_closed = True
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it.

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        start = 0
        while len(received) - start >= LENGTH.size:
            (length,) = LENGTH.unpack_from(received, start)
            end = start + LENGTH.size + length
            if len(received) < end:
                break
            try:
                message = worker_pb2.FromWorker.FromString(bytes(received[start + LENGTH.size : end]))
            except DecodeError:  # A worker whose memory is damaged: treat it as dead.
                self.close()
                return
            start = end
            self.on_message(message)
        del received[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._rest is not None:
            with self._rest as rest, suppress(OSError):  # All was read, or the worker's end was reset.
                while not self._is_closed and (data := rest.recv(RECEIVED_BYTES, socket.MSG_DONTWAIT)):
                    self.data_received(data)
        self.on_lost()
