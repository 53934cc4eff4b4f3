"""The clients over a real server's local channel: streams, cancellation, and what ends a connection."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from kaas.v1 import executor_pb2
from kaas_client import AsyncClient, Client, errors
from kaas_core.errors import QueueFullError
from tests.api.support import WAIT_S, FakeDispatcher, Held, Running
from tests.api.test_executor import RAN, register
from tests.client.conftest import Blocking, loop

__all__ = ["loop"]


@pytest.fixture(autouse=True)
def local_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAAS_TRANSPORT", "local")


@pytest.fixture(params=["threads", "asyncio"])
def client(request: pytest.FixtureRequest, server: Running) -> Iterator[Any]:
    """A client of either kind that makes each call once."""
    register(server)
    address = server.server.addresses[0]
    if request.param == "threads":
        with Client(address, retry=None) as client:
            yield client
        return
    running = request.getfixturevalue("loop")

    async def make() -> AsyncClient:
        return AsyncClient(address, retry=None)

    with Blocking(running, asyncio.run_coroutine_threadsafe(make(), running).result(WAIT_S)) as client:
        yield client


def answers(count: int) -> list[executor_pb2.InvokeResponse]:
    return [executor_pb2.InvokeResponse(outputs={"c": number.to_bytes(4, "little")}) for number in range(count)]


def test_a_stream(client: Any, server: Running) -> None:
    server.dispatcher.expect("execute", *answers(300))
    with client.stream(max_in_flight=8) as stream:
        results = list(stream.map("f", ({"a": bytes(16)} for _ in range(300)), returns=["c"]))
    assert sorted(int.from_bytes(result.outputs["c"], "little") for result in results) == list(range(300))
    assert {sender[0] for sender in server.dispatcher.senders} == {"local"}  # type: ignore[index]


def test_failures_of_a_stream_are_answers(client: Any, server: Running) -> None:
    server.dispatcher.expect("execute", QueueFullError("full"), RAN)
    with client.stream() as stream:
        with pytest.raises(errors.QueueFullError, match="full"):
            stream.submit("f").result(WAIT_S)
        with pytest.raises(errors.FunctionNotFoundError):
            stream.submit("absent").result(WAIT_S)
        with pytest.raises(errors.InvalidRequestError) as raised:
            stream.submit("f", {"a": b"short"}).result(WAIT_S)
        assert raised.value.violations[0].field == 'bindings["a"]'
        stream.submit("f").result(WAIT_S)


def test_deadlines_of_a_stream(client: Any, server: Running) -> None:
    server.dispatcher.expect("execute", RAN, RAN, RAN)
    with client.stream(timeout=100) as stream:
        for timeout in (None, 50, 5000):
            stream.submit("f", timeout=timeout).result(WAIT_S)
    of_stream, own, later = (c.arguments["remaining"] for c in server.dispatcher.calls if c.method == "execute")
    assert 50 < of_stream <= 100 and 0 < own <= 50 and 50 < later <= 100


def test_a_stream_that_is_late(client: Any, server: Running) -> None:
    held = Held()
    server.dispatcher.expect("execute", held)
    with client.stream(timeout=0.5) as stream, pytest.raises(errors.DeadlineExceededError):
        stream.submit("f").result(WAIT_S)
    assert held.cancelled.wait(WAIT_S)


def test_a_stream_that_is_left_by_an_exception_cancels(client: Any, server: Running) -> None:
    held = Held()
    server.dispatcher.expect("execute", held)
    with pytest.raises(ZeroDivisionError), client.stream() as stream:
        future = stream.submit("f")
        assert held.started.wait(WAIT_S)
        raise ZeroDivisionError
    assert held.cancelled.wait(WAIT_S)
    with pytest.raises(errors.CancelledError):
        future.result(WAIT_S)


def test_a_stream_whose_server_stops(client: Any, server: Running) -> None:
    held = Held()
    server.dispatcher.expect("execute", held)
    with client.stream() as stream:
        future = stream.submit("f")
        assert held.started.wait(WAIT_S)
        server.background.run(server.server.stop())
        with pytest.raises(errors.ConnectionLostError):
            future.result(WAIT_S)


def test_a_call_whose_server_stops(client: Any, server: Running) -> None:
    held = Held()
    server.dispatcher.expect("execute", held)
    server.background.loop.call_later(0.3, lambda: server.background.loop.create_task(server.server.stop()))
    with pytest.raises(errors.ConnectionLostError):
        client.invoke("f")


def test_a_task_that_is_cancelled_cancels_its_call(server: Running) -> None:
    register(server)
    held = Held()
    server.dispatcher.expect("execute", held, RAN)

    async def run() -> None:
        async with AsyncClient(server.server.addresses[0], retry=None) as client:
            calling = asyncio.create_task(client.invoke("f"))
            await asyncio.to_thread(held.started.wait, WAIT_S)
            calling.cancel()
            assert await asyncio.to_thread(held.cancelled.wait, WAIT_S)
            with pytest.raises(asyncio.CancelledError):
                await calling
            await client.invoke("f")  # on the same connection

    asyncio.run(run())


FORK = """
import os, sys
from kaas_client import Client

def call(first):
    for number in range(first, first + 100):
        sent = number.to_bytes(16, "little")
        assert client.invoke("f", {"a": sent}, returns=["c"], timeout=60).outputs["c"] == sent, number

client = Client(sys.argv[1], retry=None)
call(0)
child = os.fork()
if child == 0:
    call(1000)
    client.close()
    os._exit(0)
call(2000)
assert os.waitpid(child, 0)[1] == 0
call(3000)
"""


def test_a_forked_process_has_a_connection_of_its_own(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    register(server)

    async def echo(self: FakeDispatcher, request: Any, **arguments: Any) -> executor_pb2.InvokeResponse:
        await asyncio.sleep(0)
        return executor_pb2.InvokeResponse(outputs={"c": arguments["inputs"]["a"]})

    monkeypatch.setattr(FakeDispatcher, "execute", echo)
    command = [sys.executable, "-c", FORK, server.server.addresses[0]]
    child = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S * 2)
    assert (child.returncode, child.stderr) == (0, "")
