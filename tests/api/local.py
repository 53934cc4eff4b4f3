"""A caller of the local channel, of nothing but a socket and the messages."""

from __future__ import annotations

import socket
import struct
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.message import Message

from kaas.v1 import admin_pb2, errors_pb2, local_pb2
from tests.api.support import WAIT_S, Failure, Running, read_failure


def packed(content: bytes) -> bytes:
    """Return the frame of these bytes."""
    return struct.pack("<I", len(content)) + content


class Caller:
    """One connection."""

    def __init__(self, path: str, *, greets: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(WAIT_S)
        self.socket.connect(path)
        if greets:
            self.send(id=1, hello=local_pb2.Hello())
            self.hello = self.receive().hello

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.socket.close()

    def send(self, **fields: Any) -> None:
        self.socket.sendall(packed(local_pb2.LocalFrame(**fields).SerializeToString()))

    def receive(self) -> local_pb2.LocalFrame:
        (size,) = struct.unpack("<I", self._read(4))
        return local_pb2.LocalFrame.FromString(self._read(size))

    def call(self, **fields: Any) -> Message:
        """Make a call, and return its answer, a message or what the server says of a failure."""
        self.send(**fields)
        answer = self.receive()
        assert answer.id == fields["id"]
        body: Message = getattr(answer, str(answer.WhichOneof("body")))
        return body

    def failure(self) -> Failure:
        """Return the failure that comes next."""
        answer = self.receive()
        assert answer.WhichOneof("body") == "error", answer
        return failure_of(answer.error)

    def is_closed(self) -> bool:
        """Whether the server closes the connection; what comes before that is read."""
        try:
            while self.socket.recv(1 << 16):
                pass
        except ConnectionResetError:
            pass
        return True

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                raise EOFError
            data += more
        return data


def failure_of(error: errors_pb2.StreamError) -> Failure:
    code = next(code for code in grpc.StatusCode if code.value[0] == error.code)
    return read_failure(code, error.message, error.details)


def local_socket(server: Running) -> str:
    """Return where the local channel is."""
    return server.stubs.admin.GetServerInfo(admin_pb2.GetServerInfoRequest()).local_socket
