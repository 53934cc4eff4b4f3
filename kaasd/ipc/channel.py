"""What is between the front and a worker: channels of messages, and memory that says how far calls are.

A channel carries protobuf messages behind their length, over a unix socketpair. The front's end lives on its event loop, the
worker's blocks. A unix stream took 34 µs a round trip of 1 KB on two cores, half of SEQPACKET or shared memory with an eventfd.

``Progress`` tells the front what a worker that died had touched. A message would come too late where the process is killed.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
import struct
import threading
from collections.abc import Callable
from enum import IntEnum
from typing import Generic, TypeVar, cast

from google.protobuf.message import DecodeError, Message

from kaas.worker.v1 import worker_pb2

Received = TypeVar("Received", bound=Message)

_LENGTH = struct.Struct("<I")
_RECEIVE_BYTES = 256 * 1024
_PLACE = struct.Struct("<QQ")
"""A call and its stage; all zeros where there is none."""


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
            self.on_message(message)
        del received[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        self.on_lost()


class BlockingChannel(Generic[Received]):
    """An end that blocks: one thread receives, any may send."""

    def __init__(self, sock: socket.socket, kind: type[Received]) -> None:
        """``kind`` is what it receives."""
        self._socket = sock
        self._parse = kind.FromString
        self._send_lock = threading.Lock()
        self._received = bytearray()

    def fileno(self) -> int:
        """Return the descriptor to wait on for a message where ``has_begun`` is false."""
        return self._socket.fileno()

    @property
    def has_begun(self) -> bool:
        """Whether part of the next message has been received already, so that the descriptor may not become readable."""
        return bool(self._received)

    def receive(self) -> Received | None:
        """Wait for the next message; None when the other end is closed."""
        if not self._receive_up_to(_LENGTH.size):
            return None
        (length,) = _LENGTH.unpack_from(self._received)
        end = _LENGTH.size + length
        if not self._receive_up_to(end):
            return None
        message: Received = self._parse(bytes(memoryview(self._received)[_LENGTH.size : end]))
        del self._received[:end]
        return message

    def _receive_up_to(self, size: int) -> bool:
        while len(self._received) < size:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except ConnectionResetError:  # The other process has gone, and has not read all that was sent to it.
                return False
            if not data:
                return False
            self._received += data
        return True

    def send(self, message: Message) -> None:
        """Send a message. Does nothing when the other process has gone."""
        data = message.SerializeToString()
        with self._send_lock:
            try:
                self._socket.sendall(_LENGTH.pack(len(data)) + data)
            except (BrokenPipeError, ConnectionResetError):
                return  # The receiving thread sees the same end.

    def close(self) -> None:
        """Close this end. Idempotent."""
        self._socket.close()


class WorkerChannel(BlockingChannel[worker_pb2.ToWorker]):
    """The worker's end."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock, worker_pb2.ToWorker)


class Stage(IntEnum):
    """How far a call is that a worker has begun, and not answered."""

    RUNNING = 1
    """Nothing outside the device has changed."""
    COMMITTING = 2
    """The store may have changed: all that it writes is there, or nothing."""


class Progress:
    """The calls that a worker has begun. The worker writes, and the front reads.

    While the worker runs, what is read may be wrong about a call that begins or ends at that moment.
    """

    def __init__(self, descriptor: int) -> None:
        """Map the memory that ``create`` made. The descriptor is used no more."""
        size = os.fstat(descriptor).st_size
        self._memory = mmap.mmap(descriptor, size)
        self._free = list(range(0, size - _PLACE.size + 1, _PLACE.size))
        self._places: dict[int, int] = {}

    @staticmethod
    def create(calls: int) -> int:
        """Return the descriptor of new memory for so many calls, to be closed by who called."""
        descriptor = os.memfd_create("kaasd-progress", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, -(-calls * _PLACE.size // mmap.PAGESIZE) * mmap.PAGESIZE)
        return descriptor

    def begin(self, call: int) -> None:
        """The worker begins a call."""
        place = self._places[call] = self._free.pop()
        _PLACE.pack_into(self._memory, place, call, Stage.RUNNING)

    def commit(self, call: int) -> None:
        """What a call writes goes to the store from now on."""
        _PLACE.pack_into(self._memory, self._places[call], call, Stage.COMMITTING)

    def end(self, call: int) -> None:
        """A call has its answer, which was sent. Idempotent."""
        place = self._places.pop(call, None)
        if place is not None:
            _PLACE.pack_into(self._memory, place, 0, 0)
            self._free.append(place)

    def begun(self) -> dict[int, Stage]:
        """Return the calls that were begun and not ended."""
        return {call: Stage(stage) for call, stage in _PLACE.iter_unpack(self._memory[:]) if stage}

    def close(self) -> None:
        """Free the memory at this end. Idempotent."""
        self._memory.close()
