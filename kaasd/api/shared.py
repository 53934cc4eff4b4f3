"""What several servicers share: pages of a listing, the shape of an upload, who may call, and work not to be left half done."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc

from kaas_core.errors import (
    InvalidArgumentError,
    InvalidRequestError,
    NotEnabledError,
    QueueFullError,
    UploadIncompleteError,
)

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
MAX_PAGE_BYTES = 2 << 20
"""A client of gRPC takes messages of 4 MiB unless it asks for more."""

UPLOAD_IDLE_S = 60.0
"""Between two messages of an upload: what has come takes room meanwhile, and its sender may have gone without a word."""
AT_ONCE_BYTES = 16 << 10
"""Of a serialised request: checking it takes 5 ms."""

T = TypeVar("T")


def page(
    size: int,
    token: str,
    prefix: str,
    listing: Callable[[str, int], Sequence[T]],
    key_of: Callable[[T], str],
    bytes_of: Callable[[T], int] = lambda _: 0,
) -> tuple[Sequence[T], str]:
    """Return one page and the token of the next, which is empty on the last page. Callers are to take a token as it is.

    ``listing(after, limit)`` returns what follows the key ``after``; ``bytes_of`` is for items that may be large. Raises
    ``InvalidArgumentError`` (bad token).
    """
    size = min(size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
    items = listing(_key_of_token(token, prefix), size + 1)
    fitting = sum(total <= MAX_PAGE_BYTES for total in itertools.accumulate(map(bytes_of, items)))
    count = min(size, max(1, fitting))
    if count >= len(items):
        return items, ""
    return items[:count], base64.urlsafe_b64encode(key_of(items[count - 1]).encode()).decode()


def _key_of_token(token: str, prefix: str) -> str:
    """Return the last key of the page before, which is what a token stands for."""
    try:
        key = base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise InvalidArgumentError("page_token: this server did not make this token") from None
    if token and not key.startswith(prefix):
        raise InvalidArgumentError("page_token: this token belongs to a listing with another prefix")
    return key


async def read_upload(messages: AsyncIterator[Any]) -> tuple[Any, AsyncIterator[bytes]]:
    """Return an upload's header, and an iterator over its chunks that raises where they do not meet the header's size.

    The header comes once and first; the chunks add up to the size that it declares. Raises ``InvalidRequestError`` (messages out
    of order), ``UploadIncompleteError``, also where nothing comes for ``UPLOAD_IDLE_S``.
    """
    first = await _next(messages)
    if first is None:
        raise UploadIncompleteError("the stream ended before its header")
    if first.WhichOneof("part") != "header":
        raise InvalidRequestError.at("header", "the first message must be the header")
    return first.header, _chunks(messages, first.header.size_bytes)


async def _chunks(messages: AsyncIterator[Any], size_bytes: int) -> AsyncIterator[bytes]:
    received = 0
    while (message := await _next(messages)) is not None:
        if message.WhichOneof("part") != "chunk":
            raise InvalidRequestError.at("chunk", "every message after the header must be a chunk")
        chunk: bytes = message.chunk
        received += len(chunk)
        if received > size_bytes:
            raise UploadIncompleteError(f"more bytes came than the {size_bytes} that the header declared; nothing was stored")
        if chunk:
            yield chunk
    if received < size_bytes:
        raise UploadIncompleteError(f"the stream ended after {received} of {size_bytes} bytes; nothing was stored")


async def _next(messages: AsyncIterator[Any]) -> Any:
    """Return the next message, or None at the end."""
    try:
        async with asyncio.timeout(UPLOAD_IDLE_S):
            return await anext(messages, None)
    except TimeoutError:
        raise UploadIncompleteError(f"nothing came for {UPLOAD_IDLE_S:g} s; nothing was stored") from None


async def finish(work: Awaitable[T], stop: Callable[[], object] = lambda: None) -> T:
    """Await ``work`` to its end even when cancelled meanwhile, so that what it uses may be closed after.

    ``stop`` is called when it is cancelled: it has the work end sooner.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop()
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # Seen: nobody is left to hear of it.
        raise


class Aside:
    """A thread for what is done with large requests, one after the other, so that the event loop serves others meanwhile."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "large-requests")

    async def call(self, size_bytes: int, function: Callable[..., T], *arguments: object) -> T:
        """Call ``function``, here where it is about at most ``AT_ONCE_BYTES`` of a request."""
        if size_bytes <= AT_ONCE_BYTES:
            return function(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def close(self) -> None:
        """Begin nothing more. Returns at once."""
        self._thread.shutdown(wait=False, cancel_futures=True)


async def in_thread(function: Callable[..., T], *arguments: object) -> T:
    """Run ``function`` in a thread, to its end."""
    return await finish(asyncio.to_thread(function, *arguments))


class OneAtATime:
    """Refuses a second call of a kind that takes much of a machine, for as long as the first is in its ``with`` block."""

    def __init__(self, what: str) -> None:
        """``what`` it is, for the refusal."""
        self._what = what
        self._taken = False

    def __enter__(self) -> None:
        if self._taken:
            raise QueueFullError(f"{self._what} is under way already; there is one at a time")
        self._taken = True

    def __exit__(self, *_: object) -> None:
        self._taken = False


def check_local(context: grpc.aio.ServicerContext) -> None:
    """Refuse callers who are not on this machine: who they are is not known. Raises ``NotEnabledError``."""
    if not context.peer().startswith("unix:"):
        raise NotEnabledError("this call is answered over unix sockets only, where the socket's mode says who may make it")
