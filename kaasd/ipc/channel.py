"""The channel between the front and a worker: protobuf messages behind their length, over a unix socketpair.

The front's end lives on its event loop, the worker's blocks. A unix stream took 34 µs a round trip of 1 KB on two cores, half of
SEQPACKET or shared memory with an eventfd.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from typing import cast

from google.protobuf.message import DecodeError

from kaas.worker.v1 import worker_pb2

_LENGTH = struct.Struct("<I")
_RECEIVE_BYTES = 256 * 1024


class FrontChannel(asyncio.Protocol):
    """The front's end. ``on_message`` gets every message; ``on_lost`` is called once the worker has gone."""

    def __init__(
        self,
        on_message: Callable[[worker_pb2.FromWorker], object] = lambda message: None,
        on_lost: Callable[[], object] = lambda: None,
    ) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()

    @classmethod
    async def open(cls, sock: socket.socket, *callbacks: Callable[..., object]) -> FrontChannel:
        """Take over ``sock`` on the running event loop; ``callbacks`` as ``__init__``."""
        _, channel = await asyncio.get_running_loop().create_connection(lambda: cls(*callbacks), sock=sock)
        return channel

    def send(self, message: worker_pb2.ToWorker) -> None:
        """Queue a message; one that can no longer be sent is lost with the worker."""
        if self._transport is not None and not self._transport.is_closing():
            data = message.SerializeToString()
            self._transport.writelines((_LENGTH.pack(len(data)), data))

    def close(self) -> None:
        """Close this end: an idle worker then exits."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it.

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        start = 0
        while len(received) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(received, start)
            end = start + _LENGTH.size + length
            if len(received) < end:
                break
            try:
                message = worker_pb2.FromWorker.FromString(bytes(received[start + _LENGTH.size : end]))
            except DecodeError:  # A worker whose memory is damaged: treat it as dead.
                self.close()
                return
            start = end
            self._on_message(message)
        del received[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost()


class WorkerChannel:
    """The worker's end: one thread receives, any may send."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._send_lock = threading.Lock()
        self._received = bytearray()

    def fileno(self) -> int:
        """Return the descriptor to wait on for a message where ``has_begun`` is false."""
        return self._socket.fileno()

    @property
    def has_begun(self) -> bool:
        """Whether part of the next message has been received already, so that the descriptor may not become readable."""
        return bool(self._received)

    def receive(self) -> worker_pb2.ToWorker | None:
        """Wait for the next message; None when the front has closed its end."""
        if not self._receive_up_to(_LENGTH.size):
            return None
        (length,) = _LENGTH.unpack_from(self._received)
        end = _LENGTH.size + length
        if not self._receive_up_to(end):
            return None
        message = worker_pb2.ToWorker.FromString(bytes(memoryview(self._received)[_LENGTH.size : end]))
        del self._received[:end]
        return message

    def _receive_up_to(self, size: int) -> bool:
        while len(self._received) < size:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except ConnectionResetError:  # The front has gone, and has not read all that was sent to it.
                return False
            if not data:
                return False
            self._received += data
        return True

    def send(self, message: worker_pb2.FromWorker) -> None:
        """Send a message. Does nothing when the front has gone."""
        data = message.SerializeToString()
        with self._send_lock:
            try:
                self._socket.sendall(_LENGTH.pack(len(data)) + data)
            except (BrokenPipeError, ConnectionResetError):
                return  # The receiving thread sees the same end and stops the worker.

    def close(self) -> None:
        """Close this end. Idempotent."""
        self._socket.close()
