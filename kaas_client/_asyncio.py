"""What differs between asyncio and threads, for asyncio; ``kaas_client._threads`` has the same names for threads.

Both are written by hand. All other code of the client is one source: see ``kaas_client._async``.
"""

from __future__ import annotations

import asyncio
import os
from asyncio import Future, Queue, Semaphore, sleep
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import ExitStack, asynccontextmanager
from typing import Any, TypeAlias, TypeVar

import grpc.aio

from kaas_client._files import open_target
from kaas_client._local_asyncio import LocalChannel, open_local
from kaas_client._tls import Tls
from kaas_client._transfer import Data, Source, Upload, Writable, is_buffer, open_source

T = TypeVar("T")

__all__ = [
    "CALL_CANCELLED",
    "Eventually",
    "Future",
    "LocalChannel",
    "Lock",
    "Queue",
    "Semaphore",
    "Task",
    "call_blocking",
    "created",
    "is_cancelled",
    "join",
    "new_future",
    "open_channel",
    "open_local",
    "opened",
    "result_of",
    "send",
    "sleep",
    "start",
    "until_none",
]

Eventually: TypeAlias = Awaitable[T]
"""What a function of the client returns, as its caller gets it."""
Task: TypeAlias = "asyncio.Task[None]"
"""What ``start`` began."""
CALL_CANCELLED: tuple[type[BaseException], ...] = (asyncio.CancelledError,)
"""What reading the answers of a cancelled call raises, other than ``grpc.RpcError``: the same as in a cancelled task."""


class Lock:
    """Locks nothing: on one event loop, code is interrupted only where it awaits."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def open_channel(address: str, options: list[tuple[str, Any]], tls: Tls | None) -> Any:
    """Return a channel that connects on first use."""
    return (
        grpc.aio.insecure_channel(address, options)
        if tls is None
        else grpc.aio.secure_channel(address, tls.credentials(), options)
    )


@asynccontextmanager
async def opened(data: Data, size_bytes: int | None = None) -> AsyncIterator[Source]:
    """Open a source without holding up the event loop while a stream is spooled."""
    with ExitStack() as stack:
        opening = open_source(data, size_bytes)
        yield stack.enter_context(opening) if is_buffer(data) else await asyncio.to_thread(stack.enter_context, opening)


@asynccontextmanager
async def created(into: str | os.PathLike[str] | Writable) -> AsyncIterator[Writable]:
    """Open a target, and end it, without holding up the event loop while the disk takes what was written."""
    target = open_target(into)
    file = await asyncio.to_thread(target.__enter__)
    try:
        yield file
    except BaseException as error:
        await asyncio.shield(asyncio.to_thread(target.__exit__, type(error), error, error.__traceback__))
        raise
    await asyncio.to_thread(target.__exit__, None, None, None)


async def send(method: Any, upload: Upload[Any], options: Mapping[str, Any]) -> Any:
    """Call an RPC that takes a stream of messages, and return its answer."""
    return await method(_in_threads(upload) if upload.blocking else iter(upload), **options)


async def call_blocking(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function that may wait for a file."""
    return await asyncio.to_thread(function, *arguments)


def start(run: Callable[[], Coroutine[Any, Any, None]], name: str) -> asyncio.Task[None]:
    """Run a function in the background."""
    return asyncio.create_task(run(), name=name)


async def join(task: asyncio.Task[None]) -> None:
    """Wait for what ``start`` began."""
    await task


def is_cancelled() -> bool:
    """Return whether the task that asks was cancelled, not only the call that it reads."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def new_future() -> Future[Any]:
    """Return a future for an answer that is still to come."""
    return asyncio.get_running_loop().create_future()


def result_of(future: Future[T]) -> Awaitable[T]:
    """Wait for a future and return its result."""
    return future


async def until_none(queue: Queue[T | None]) -> AsyncIterator[T]:
    """Yield what is put into a queue, until None is."""
    while (item := await queue.get()) is not None:
        yield item


async def _in_threads(items: Iterable[T]) -> AsyncIterator[T]:
    """Yield the items of an iterable that may block."""
    iterator, end = iter(items), object()
    while (item := await asyncio.to_thread(next, iterator, end)) is not end:
        yield item  # type: ignore[misc]  # ``end`` has ended the loop.
