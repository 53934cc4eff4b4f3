"""What is between the front and a worker: channels of messages, and memory that says how far calls are.

A channel carries protobuf messages behind their length, over a unix socketpair. The front's end lives on its event loop, in
``front_channel.py``, and the worker's blocks. A unix stream took 34 µs a round trip of 1 KB on two cores, half of SEQPACKET or
shared memory with an eventfd.

``Progress`` tells the front what a worker that died had touched. A message would come too late where the process is killed.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import threading
from contextlib import suppress
from enum import IntEnum
from typing import Generic, TypeVar

from google.protobuf.message import Message

from kaas.worker.v1 import worker_pb2

Received = TypeVar("Received", bound=Message)

LENGTH = struct.Struct("<I")
"""Of a message, before it."""
_RECEIVE_BYTES = 256 * 1024
_PLACE = struct.Struct("<QQ")
"""A call and its stage; all zeros where there is none."""


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
        if not self._receive_up_to(LENGTH.size):
            return None
        (length,) = LENGTH.unpack_from(self._received)
        end = LENGTH.size + length
        if not self._receive_up_to(end):
            return None
        message: Received = self._parse(bytes(memoryview(self._received)[LENGTH.size : end]))
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
                self._socket.sendall(LENGTH.pack(len(data)) + data)
            except (BrokenPipeError, ConnectionResetError):
                return  # The receiving thread sees the same end.

    def end(self) -> None:
        """Say that nothing more comes, behind what was sent. What the other end still sends is lost."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

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
