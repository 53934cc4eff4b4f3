"""The client for asyncio: the same methods as ``kaas_client.Client``, as coroutines and asynchronous iterators."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

import grpc
import grpc.aio

from kaas_client import _calls
from kaas_client._calls import Binding, Call, Page
from kaas_client._status import from_rpc_error
from kaas_client._transfer import Bytes, Data, Download, Progress, Source, Upload, Writable, is_buffer, open_source
from kaas_client.aio_streams import InvokeStream
from kaas_client.builders import Request
from kaas_client.functions import BaseFunction
from kaas_client.types import DeviceInfo, Entry, Library, LibraryInspection, Result, ServerInfo, Stats
from kaas_core.address import default_connect_address, parse_address

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike

T = TypeVar("T")


class Function(BaseFunction):
    """As ``kaas_client.client.Function``."""

    _client: Client

    async def __call__(
        self,
        *,
        inputs: Mapping[str, Binding] | None = None,
        returns: Iterable[str] | None = None,
        device: str = "",
        timeout: float | None = None,
        **buffers: Binding,
    ) -> Result:
        """As ``kaas_client.client.Function.__call__``."""
        bindings = self._bindings(inputs, buffers)
        return await self._client.invoke(self.name, bindings, returns=self._returns(returns), device=device, timeout=timeout)


class Client:
    """A connection to a server, for one event loop; use it as an asynchronous context manager, or ``close`` it.

    Calls raise ``kaas_client.errors``. None is repeated on failure: a kernel would run twice. Cancelling a task cancels its call.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float | None = None,
        wait_for_ready: bool = False,
        max_message_bytes: int = _calls.DEFAULT_MAX_MESSAGE_BYTES,
    ) -> None:
        """As ``kaas_client.Client``."""
        self.address = default_connect_address() if address is None else parse_address(address)
        self._timeout = timeout
        self._wait_for_ready = wait_for_ready
        self._channel = grpc.aio.insecure_channel(self.address, _calls.channel_options(max_message_bytes))
        self._stubs = _calls.Stubs(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls under way are cancelled. Idempotent."""
        await self._channel.close()

    # The store.

    async def put(
        self, key: str, data: Data, *, size: int | None = None, progress: Progress | None = None, timeout: float | None = None
    ) -> Entry:
        """As ``kaas_client.Client.put``."""
        async with _opened(data, size) as source:
            return await self._upload(_calls.put(key, source, progress), timeout)

    @overload
    async def get(
        self,
        key: str,
        dtype: None = None,
        *,
        offset: int = 0,
        size: int | None = None,
        into: None = None,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> bytes: ...
    @overload
    async def get(
        self,
        key: str,
        dtype: DTypeLike,
        *,
        offset: int = 0,
        size: int | None = None,
        into: None = None,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> np.ndarray[Any, np.dtype[Any]]: ...
    @overload
    async def get(
        self,
        key: str,
        dtype: None = None,
        *,
        offset: int = 0,
        size: int | None = None,
        into: Bytes | Writable,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> int: ...
    async def get(
        self,
        key: str,
        dtype: DTypeLike | None = None,
        *,
        offset: int = 0,
        size: int | None = None,
        into: Bytes | Writable | None = None,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> Any:
        """As ``kaas_client.Client.get``."""
        download = Download(dtype, offset, size, into, progress)
        return await self._download(_calls.get(key, offset, size, download), download, timeout)

    async def stat(self, key: str, *, timeout: float | None = None) -> Entry:
        """As ``kaas_client.Client.stat``."""
        return await self._unary(_calls.stat(key), timeout)

    def list(self, prefix: str = "", *, timeout: float | None = None) -> AsyncIterator[Entry]:
        """As ``kaas_client.Client.list``."""
        return self._pages(lambda token: _calls.list_keys(prefix, token), timeout)

    async def delete(self, key: str, *, timeout: float | None = None) -> None:
        """As ``kaas_client.Client.delete``."""
        return await self._unary(_calls.delete(key), timeout)

    # Libraries.

    async def upload(
        self,
        library: Data,
        *,
        file_name: str | None = None,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> str:
        """As ``kaas_client.Client.upload``."""
        data = Path(library) if isinstance(library, str) else library
        async with _opened(data) as source:
            return await self._upload(_calls.upload(source, _calls.library_name(data, file_name), progress), timeout)

    async def inspect(self, library: str, *, timeout: float | None = None) -> LibraryInspection:
        """As ``kaas_client.Client.inspect``."""
        return await self._unary(_calls.inspect(library), timeout)

    def libraries(self, *, timeout: float | None = None) -> AsyncIterator[Library]:
        """As ``kaas_client.Client.libraries``."""
        return self._pages(_calls.libraries, timeout)

    async def delete_library(self, id: str, *, timeout: float | None = None) -> None:
        """As ``kaas_client.Client.delete_library``."""
        return await self._unary(_calls.delete_library(id), timeout)

    # Requests and functions.

    async def submit(
        self,
        request: Request,
        *,
        inputs: Mapping[str, Bytes] | None = None,
        returns: Iterable[str] = (),
        device: str = "",
        trace: bool = False,
        timeout: float | None = None,
    ) -> Result:
        """As ``kaas_client.Client.submit``."""
        return await self._unary(_calls.submit(request, inputs or {}, returns, device, trace), timeout)

    async def register(self, name: str, request: Request, *, timeout: float | None = None) -> Function:
        """As ``kaas_client.Client.register``."""
        return Function(self, await self._unary(_calls.register(name, request), timeout))

    async def function(self, name: str, *, timeout: float | None = None) -> Function:
        """As ``kaas_client.Client.function``."""
        return Function(self, await self._unary(_calls.function(name), timeout))

    async def functions(self, prefix: str = "", *, timeout: float | None = None) -> AsyncIterator[Function]:
        """As ``kaas_client.Client.functions``."""
        async for fields in self._pages(lambda token: _calls.functions(prefix, token), timeout):
            yield Function(self, fields)

    async def delete_function(self, name: str, *, timeout: float | None = None) -> None:
        """As ``kaas_client.Client.delete_function``."""
        return await self._unary(_calls.delete_function(name), timeout)

    async def invoke(
        self,
        name: str,
        bindings: Mapping[str, Binding] | None = None,
        *,
        returns: Iterable[str] = (),
        device: str = "",
        trace: bool = False,
        timeout: float | None = None,
    ) -> Result:
        """As ``kaas_client.Client.invoke``."""
        return await self._unary(_calls.invoke(name, bindings or {}, returns, device, trace), timeout)

    def stream(self, *, max_in_flight: int = 64, timeout: float | None = None) -> InvokeStream:
        """As ``kaas_client.Client.stream``."""
        return InvokeStream(self._stubs, self.address, self._options(timeout), max_in_flight)

    # The server.

    async def server_info(self, *, timeout: float | None = None) -> ServerInfo:
        """As ``kaas_client.Client.server_info``."""
        return await self._unary(_calls.server_info(), timeout)

    async def devices(self, *, timeout: float | None = None) -> tuple[DeviceInfo, ...]:
        """As ``kaas_client.Client.devices``."""
        return await self._unary(_calls.devices(), timeout)

    async def stats(self, *, timeout: float | None = None) -> Stats:
        """As ``kaas_client.Client.stats``."""
        return await self._unary(_calls.stats(), timeout)

    async def health(self, service: str = "", *, timeout: float | None = None) -> str:
        """As ``kaas_client.Client.health``."""
        return await self._unary(_calls.health(service), timeout)

    async def drain(self, *, timeout: float | None = None) -> None:
        """As ``kaas_client.Client.drain``."""
        return await self._unary(_calls.drain(), timeout)

    # How calls are made.

    def _options(self, timeout: float | None) -> dict[str, Any]:
        return {"timeout": self._timeout if timeout is None else timeout, "wait_for_ready": self._wait_for_ready}

    async def _unary(self, call: Call[T], timeout: float | None) -> T:
        try:
            answer = await call.method(self._stubs)(call.request, **self._options(timeout))
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.address) from None
        return call.convert(answer)

    async def _upload(self, call: Call[T], timeout: float | None) -> T:
        """Make a call whose messages are an ``Upload``, whose own failure comes before what the server made of it."""
        upload: Upload[Any] = call.request
        messages = _in_threads(upload) if upload.blocking else iter(upload)
        try:
            answer = await call.method(self._stubs)(messages, **self._options(timeout))
        except grpc.RpcError as error:
            raise upload.error or from_rpc_error(error, self.address) from None
        if upload.error:
            raise upload.error
        return call.convert(answer)

    async def _download(self, call: Call[T], download: Download, timeout: float | None) -> T:
        """Make a call whose answer is a stream of messages for ``download``."""
        answers = call.method(self._stubs)(call.request, **self._options(timeout))
        try:
            async for answer in answers:
                if download.blocking:
                    await asyncio.to_thread(download.feed, answer)
                else:
                    download.feed(answer)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.address) from None
        except BaseException:
            answers.cancel()
            raise
        return call.convert(None)

    async def _pages(self, call: Callable[[str], Call[Page[T]]], timeout: float | None) -> AsyncIterator[T]:
        token = ""
        while True:
            items, token = await self._unary(call(token), timeout)
            for item in items:
                yield item
            if not token:
                return


@asynccontextmanager
async def _opened(data: Data, size_bytes: int | None = None) -> AsyncIterator[Source]:
    """Open a source without holding up the event loop while a stream is spooled."""
    with ExitStack() as stack:
        opening = open_source(data, size_bytes)
        yield stack.enter_context(opening) if is_buffer(data) else await asyncio.to_thread(stack.enter_context, opening)


async def _in_threads(items: Iterable[T]) -> AsyncIterator[T]:
    """Yield the items of an iterable that may block."""
    iterator, end = iter(items), object()
    while (item := await asyncio.to_thread(next, iterator, end)) is not end:
        yield item  # type: ignore[misc]  # It is no ``end``.
