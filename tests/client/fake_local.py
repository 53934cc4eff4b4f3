"""The local channel of a ``FakeServer``: the same answers, over the other way."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import grpc

from kaas.v1 import admin_pb2, errors_pb2, local_pb2
from kaas_core.frames import FrameReader, to_frame
from tests.client.fake_server import Failure, FakeServer, Recorded

STORE_ID = "0123456789abcdef"
RPCS = {"invoke": ("Invoke", "invoked"), "submit": ("Submit", "submitted")}


class Lost(Exception):
    """The connection is to end."""


class Context:
    """What there is of ``grpc.ServicerContext`` on this way."""

    def __init__(self, timeout_ns: int) -> None:
        self._timeout_ns = timeout_ns

    def time_remaining(self) -> float | None:
        return self._timeout_ns / 1e9 if self._timeout_ns else None

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        raise Lost


class FakeLocal:
    """Serves the local channel beside a fake server's socket, and names it: ``GetServerInfo`` is no call that is recorded."""

    def __init__(self, server: FakeServer, *, store_id: str = STORE_ID, max_message_bytes: int = 1 << 20) -> None:
        """``store_id`` is what the channel says; the server says ``STORE_ID``."""
        self._server = server
        self._store_id = store_id
        self.path = server.address.removeprefix("unix:") + ".local"
        self.frames: list[local_pb2.LocalFrame] = []
        """All that came."""
        self.connections: list[socket.socket] = []
        self._sending = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX)
        server.info = admin_pb2.GetServerInfoResponse(
            local_socket=self.path, store_id=STORE_ID, max_message_bytes=max_message_bytes
        )

    def __enter__(self) -> Self:
        self._socket.bind(self.path)
        self._socket.listen()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        Path(self.path).unlink(missing_ok=True)
        self.lose()

    def lose(self) -> None:
        """End all connections."""
        while self.connections:
            with suppress(OSError):
                self.connections.pop().shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.connections.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        reader = FrameReader(64 << 20)
        with connection, suppress(OSError):
            while data := connection.recv(1 << 16):
                reader.feed(data)
                while (content := reader.next()) is not None:
                    frame = local_pb2.LocalFrame.FromString(bytes(content))
                    self.frames.append(frame)
                    if frame.WhichOneof("body") == "hello":
                        self.send(connection, frame.id, "hello", local_pb2.Hello(store_id=self._store_id))
                    elif frame.WhichOneof("body") in RPCS:
                        threading.Thread(target=self._answer, args=(connection, frame), daemon=True).start()

    def _answer(self, connection: socket.socket, frame: local_pb2.LocalFrame) -> None:
        body = str(frame.WhichOneof("body"))
        rpc, field = RPCS[body]
        request, context = getattr(frame, body), Context(frame.timeout_ns)
        try:
            planned: Any = self._server.take(rpc, context)  # type: ignore[arg-type]
            self._server.calls.append(Recorded(rpc, request, context.time_remaining()))
            if callable(planned):
                planned = planned(request, context)
            if isinstance(planned, Failure):
                field, planned = "error", errors_pb2.StreamError.FromString(planned.status().SerializeToString())
            self.send(connection, frame.id, field, planned)
        except Lost:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def send(self, connection: socket.socket, id: int, field: str, message: Any) -> None:
        with suppress(OSError), self._sending:
            connection.sendall(b"".join(to_frame(id, field, message)))
