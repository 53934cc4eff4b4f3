"""A fake server, and both kinds of client behind one blocking face, so that every test holds for both."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from kaas_client import AsyncClient, Client
from tests.client.fake_server import FakeServer


class Blocking:
    """An asynchronous client whose coroutines are run to their end and whose iterators are read to theirs."""

    def __init__(self, loop: asyncio.AbstractEventLoop, target: Any) -> None:
        self._loop = loop
        self._target = target

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        return (lambda *args, **kwargs: self._finish(value(*args, **kwargs))) if inspect.ismethod(value) else value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._finish(self._target(*args, **kwargs))

    def _finish(self, value: Any) -> Any:
        if inspect.isawaitable(value):
            value = self._loop.run_until_complete(_await(value))
        if isinstance(value, AsyncIterator):
            value = self._loop.run_until_complete(_collect(value))
        return Blocking(self._loop, value) if type(value).__name__ == "Function" else value


async def _await(value: Any) -> Any:
    return await value


async def _collect(values: AsyncIterator[Any]) -> Iterator[Any]:
    return iter([value async for value in values])


@pytest.fixture
def address(tmp_path: Path) -> str:
    # A socket's path may be 107 bytes long, which pytest's own folders come close to.
    path = Path("/tmp") / f"kaas-test-{uuid.uuid4().hex[:12]}.sock"
    return f"unix:{path}"


@pytest.fixture
def server(address: str) -> Iterator[FakeServer]:
    with FakeServer(address) as server:
        yield server


@pytest.fixture(params=["threads", "asyncio"])
def connect(request: pytest.FixtureRequest, address: str) -> Iterator[Any]:
    """A function that returns a client of either kind, with the options given."""
    clients: list[Any] = []
    if request.param == "threads":
        yield lambda **options: clients.append(Client(address, **options)) or clients[-1]
    else:
        loop = asyncio.new_event_loop()

        async def make(options: dict[str, Any]) -> AsyncClient:
            return AsyncClient(address, **options)

        yield lambda **options: clients.append(Blocking(loop, loop.run_until_complete(make(options)))) or clients[-1]
    for client in clients:
        client.close()
    if request.param == "asyncio":
        loop.close()


@pytest.fixture
def client(connect: Any, server: FakeServer) -> Any:
    return connect()
