"""A server that is busy answers late: a client waits for it, and does not take it for one that is not there."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kaas.v1 import kv_pb2
from tests.client.fake_server import FakeServer
from tests.client.test_calls import entry_message

LATE_S = 0.5


@pytest.fixture
def late_address(address: str, server: FakeServer, tmp_path: Path) -> Iterator[str]:
    """Where ``server`` can be reached by who waits for its first bytes."""
    path = str(tmp_path / "late")

    def serve(client: socket.socket) -> None:
        time.sleep(LATE_S)
        upstream = socket.socket(socket.AF_UNIX)
        upstream.connect(address.removeprefix("unix:"))
        threading.Thread(target=pump, args=(client, upstream), daemon=True).start()
        pump(upstream, client)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        threading.Thread(target=accept, daemon=True).start()
        yield f"unix:{path}"
        listener.shutdown(socket.SHUT_RDWR)


def pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)


def test_a_server_that_answers_late_is_reached(connect: Callable[..., Any], server: FakeServer, late_address: str) -> None:
    server.expect("Stat", kv_pb2.StatResponse(entry=entry_message("k")))
    assert connect(address=late_address).stat("k").key == "k"
