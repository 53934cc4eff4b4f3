"""A fake server, and both kinds of client behind one blocking face, so that every test holds for both."""

from __future__ import annotations

import asyncio
import inspect
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from kaas_client import AsyncClient, Client, aio
from tests.client.fake_local import FakeLocal
from tests.client.fake_server import FakeServer


class Blocking:
    """Something of the asynchronous client, whose coroutines run to their end on an event loop in another thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, target: Any) -> None:
        self._loop = loop
        self._target = target

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        return (lambda *args, **kwargs: self._finish(value(*args, **kwargs))) if inspect.ismethod(value) else value

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self._finish(self._target(*args, **kwargs))

    def __enter__(self) -> Any:
        self._run(self._target.__aenter__())
        return self

    def __exit__(self, *error: Any) -> None:
        self._run(self._target.__aexit__(*error))

    def result(self, timeout: float | None = None) -> Any:
        """Of a future, as ``concurrent.futures`` has it."""
        return asyncio.run_coroutine_threadsafe(_await(self._target), self._loop).result(timeout)

    def done(self) -> bool:
        """Whether a future has its result."""
        return bool(self._target.done())

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _finish(self, value: Any) -> Any:
        if inspect.iscoroutine(value):
            value = self._run(value)
        if isinstance(value, AsyncIterator):
            return self._items(value)
        return Blocking(self._loop, value) if isinstance(value, aio.Function | aio.InvokeStream | asyncio.Future) else value

    def _items(self, values: AsyncIterator[Any]) -> Iterator[Any]:
        end = object()
        while (item := self._run(_next(values, end))) is not end:
            yield self._finish(item)


async def _await(value: Any) -> Any:
    return await value


async def _next(values: AsyncIterator[Any], end: Any) -> Any:
    return await anext(values, end)


@pytest.fixture
def address(tmp_path: Path) -> str:
    # A socket's path may be 107 bytes long, which pytest's own folders come close to.
    path = Path("/tmp") / f"kaas-test-{uuid.uuid4().hex[:12]}.sock"
    return f"unix:{path}"


@pytest.fixture
def transport() -> str:
    """How requests and invocations travel. Modules have others."""
    return "grpc"


@pytest.fixture(autouse=True)
def _of_clients(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAAS_TRANSPORT", transport)


@pytest.fixture
def server(address: str, transport: str) -> Iterator[FakeServer]:
    with FakeServer(address) as server, FakeLocal(server) if transport == "local" else nullcontext():
        yield server


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(params=["threads", "asyncio"])
def connect(request: pytest.FixtureRequest, address: str) -> Iterator[Any]:
    """A function that returns a client of either kind, with the options given."""
    clients: list[Any] = []
    if request.param == "threads":
        yield lambda **options: clients.append(Client(**{"address": address} | options)) or clients[-1]
    else:
        loop = request.getfixturevalue("loop")

        async def make(options: dict[str, Any]) -> AsyncClient:
            return AsyncClient(**{"address": address} | options)

        def connect(**options: Any) -> Blocking:
            return Blocking(loop, asyncio.run_coroutine_threadsafe(make(options), loop).result())

        yield lambda **options: clients.append(connect(**options)) or clients[-1]
    for client in clients:
        client.close()


@pytest.fixture
def client(connect: Any, server: FakeServer) -> Any:
    """One that makes each call once."""
    return connect(retry=None)
