"""The client for threads: every call blocks until its answer is there. ``kaas_client.aio`` has the same for asyncio."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

import grpc

from kaas_client import _calls
from kaas_client._calls import Binding, Call, Page
from kaas_client._status import from_rpc_error
from kaas_client._transfer import Bytes, Data, Download, Progress, Upload, Writable, open_source
from kaas_client.builders import Request
from kaas_client.functions import BaseFunction
from kaas_client.streams import InvokeStream
from kaas_client.types import DeviceInfo, Entry, Library, LibraryInspection, Result, ServerInfo, Stats
from kaas_core.address import default_connect_address, parse_address

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike

T = TypeVar("T")


class Function(BaseFunction):
    """A registered function. Call it with its buffers by name."""

    _client: Client

    def __call__(
        self,
        *,
        inputs: Mapping[str, Binding] | None = None,
        returns: Iterable[str] | None = None,
        device: str = "",
        timeout: float | None = None,
        **buffers: Binding,
    ) -> Result:
        """Run it once.

        ``buffers`` are bytes or arrays to load in place of the store's values, or ``Key`` for another key; ``inputs`` is the same
        for names that are no identifiers. ``returns`` names the buffers to return, by default all that a kernel writes.
        """
        bindings = self._bindings(inputs, buffers)
        return self._client.invoke(self.name, bindings, returns=self._returns(returns), device=device, timeout=timeout)


class Client:
    """A connection to a server. Thread-safe; use it as a context manager, or ``close`` it.

    Calls raise ``kaas_client.errors``. None is repeated on failure: a kernel would run twice.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float | None = None,
        wait_for_ready: bool = False,
        max_message_bytes: int = _calls.DEFAULT_MAX_MESSAGE_BYTES,
    ) -> None:
        """Connect on first use.

        ``address`` is ``unix:PATH``, ``/PATH`` or ``HOST:PORT``, by default ``KAAS_ADDRESS`` or the usual socket. ``timeout``, in
        seconds, is the default for every call. With ``wait_for_ready`` a call waits for a server that is not there yet, until its
        timeout. Raises ``ValueError`` for a malformed address.
        """
        self.address = default_connect_address() if address is None else parse_address(address)
        self._timeout = timeout
        self._wait_for_ready = wait_for_ready
        self._channel = grpc.insecure_channel(self.address, _calls.channel_options(max_message_bytes))
        self._stubs = _calls.Stubs(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls under way are cancelled. Idempotent."""
        self._channel.close()

    # The store.

    def put(
        self, key: str, data: Data, *, size: int | None = None, progress: Progress | None = None, timeout: float | None = None
    ) -> Entry:
        """Store a value: a buffer or array, a ``pathlib.Path``, a binary file from where it stands, or an iterable of buffers.

        ``size``, in bytes, spares the spooling of a stream whose size cannot be found out. Raises ``InvalidArgumentError``,
        ``StoreFullError``.
        """
        with open_source(data, size) as source:
            return self._upload(_calls.put(key, source, progress), timeout)

    @overload
    def get(
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
    def get(
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
    def get(
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
    def get(
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
        """Return a value, or ``size`` bytes of it from ``offset``: as bytes, or as a one-dimensional array of ``dtype``.

        With ``into``, a writable buffer or a binary file, it is written there and the number of bytes is returned. Raises
        ``KeyNotFoundError``, ``ValueTooShortError``.
        """
        download = Download(dtype, offset, size, into, progress)
        return self._download(_calls.get(key, offset, size, download), download, timeout)

    def stat(self, key: str, *, timeout: float | None = None) -> Entry:
        """Return what the store knows of a key. Raises ``KeyNotFoundError``."""
        return self._unary(_calls.stat(key), timeout)

    def list(self, prefix: str = "", *, timeout: float | None = None) -> Iterator[Entry]:
        """Yield the keys that start with ``prefix`` in the order of their bytes. ``timeout`` is for each page."""
        return self._pages(lambda token: _calls.list_keys(prefix, token), timeout)

    def delete(self, key: str, *, timeout: float | None = None) -> None:
        """Delete a key. Raises ``KeyNotFoundError``."""
        return self._unary(_calls.delete(key), timeout)

    # Libraries.

    def upload(
        self,
        library: Data,
        *,
        file_name: str | None = None,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> str:
        """Store a library, given as its path (``str`` too) or its content, and return its id for ``Kernel``.

        ``file_name`` is for people, by default the path's last part. Raises ``InvalidLibraryError``, ``StoreFullError``.
        """
        data = Path(library) if isinstance(library, str) else library
        with open_source(data) as source:
            return self._upload(_calls.upload(source, _calls.library_name(data, file_name), progress), timeout)

    def inspect(self, library: str, *, timeout: float | None = None) -> LibraryInspection:
        """Return the kernels of a library, named by id or by a path on the server, and their parameters.

        Raises ``LibraryNotFoundError``, ``InvalidLibraryError``.
        """
        return self._unary(_calls.inspect(library), timeout)

    def libraries(self, *, timeout: float | None = None) -> Iterator[Library]:
        """Yield the uploaded libraries in the order of their ids. ``timeout`` is for each page."""
        return self._pages(_calls.libraries, timeout)

    def delete_library(self, id: str, *, timeout: float | None = None) -> None:
        """Delete an uploaded library. Raises ``LibraryNotFoundError``."""
        return self._unary(_calls.delete_library(id), timeout)

    # Requests and functions.

    def submit(
        self,
        request: Request,
        *,
        inputs: Mapping[str, Bytes] | None = None,
        returns: Iterable[str] = (),
        device: str = "",
        trace: bool = False,
        timeout: float | None = None,
    ) -> Result:
        """Run a request once; when this returns, its outputs are committed.

        ``inputs`` are bytes for buffers, by name, in place of the store's values; ``returns`` names buffers to return; ``device``
        is chosen by the server where empty; with ``trace`` the result tells when what was done, and the kernels take longer; past
        ``timeout`` the kernels are stopped. Raises any of ``kaas_client.errors``.
        """
        return self._unary(_calls.submit(request, inputs or {}, returns, device, trace), timeout)

    def register(self, name: str, request: Request, *, timeout: float | None = None) -> Function:
        """Register a request under a name, replacing what was there. Raises ``InvalidArgumentError``, ``NotFoundError``."""
        return Function(self, self._unary(_calls.register(name, request), timeout))

    def function(self, name: str, *, timeout: float | None = None) -> Function:
        """Return a registered function. Raises ``FunctionNotFoundError``."""
        return Function(self, self._unary(_calls.function(name), timeout))

    def functions(self, prefix: str = "", *, timeout: float | None = None) -> Iterator[Function]:
        """Yield the registered functions whose names start with ``prefix``, by name. ``timeout`` is for each page."""
        for fields in self._pages(lambda token: _calls.functions(prefix, token), timeout):
            yield Function(self, fields)

    def delete_function(self, name: str, *, timeout: float | None = None) -> None:
        """Delete a function. Raises ``FunctionNotFoundError``."""
        return self._unary(_calls.delete_function(name), timeout)

    def invoke(
        self,
        name: str,
        bindings: Mapping[str, Binding] | None = None,
        *,
        returns: Iterable[str] = (),
        device: str = "",
        trace: bool = False,
        timeout: float | None = None,
    ) -> Result:
        """Run a registered function once.

        ``bindings`` gives buffers, by name, other bytes or another ``Key``; the rest as ``submit``.
        """
        return self._unary(_calls.invoke(name, bindings or {}, returns, device, trace), timeout)

    def stream(self, *, max_in_flight: int = 64, timeout: float | None = None) -> InvokeStream:
        """Return a context manager that runs many invocations over one call, pipelined. ``timeout`` is for the whole stream."""
        return InvokeStream(self._stubs, self.address, self._options(timeout), max_in_flight)

    # The server.

    def server_info(self, *, timeout: float | None = None) -> ServerInfo:
        """Return what the server is."""
        return self._unary(_calls.server_info(), timeout)

    def devices(self, *, timeout: float | None = None) -> tuple[DeviceInfo, ...]:
        """Return the server's devices and the state of their workers."""
        return self._unary(_calls.devices(), timeout)

    def stats(self, *, timeout: float | None = None) -> Stats:
        """Return counters since the server's start and gauges of now."""
        return self._unary(_calls.stats(), timeout)

    def health(self, service: str = "", *, timeout: float | None = None) -> str:
        """Return ``SERVING`` or ``NOT_SERVING``, for the server or for one of its services."""
        return self._unary(_calls.health(service), timeout)

    def drain(self, *, timeout: float | None = None) -> None:
        """Make the server take no more requests, and return when none is left. Raises ``DeadlineExceededError``."""
        return self._unary(_calls.drain(), timeout)

    # How calls are made.

    def _options(self, timeout: float | None) -> dict[str, Any]:
        return {"timeout": self._timeout if timeout is None else timeout, "wait_for_ready": self._wait_for_ready}

    def _unary(self, call: Call[T], timeout: float | None) -> T:
        try:
            answer = call.method(self._stubs)(call.request, **self._options(timeout))
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.address) from None
        return call.convert(answer)

    def _upload(self, call: Call[T], timeout: float | None) -> T:
        """Make a call whose messages are an ``Upload``, whose own failure comes before what the server made of it."""
        upload: Upload[Any] = call.request
        running = call.method(self._stubs).future(iter(upload), **self._options(timeout))
        try:
            answer = running.result()
        except grpc.RpcError as error:
            raise upload.error or from_rpc_error(error, self.address) from None
        except BaseException:
            running.cancel()
            raise
        if upload.error:
            raise upload.error
        return call.convert(answer)

    def _download(self, call: Call[T], download: Download, timeout: float | None) -> T:
        """Make a call whose answer is a stream of messages for ``download``."""
        answers = call.method(self._stubs)(call.request, **self._options(timeout))
        try:
            for answer in answers:
                download.feed(answer)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.address) from None
        except BaseException:
            answers.cancel()
            raise
        return call.convert(None)

    def _pages(self, call: Callable[[str], Call[Page[T]]], timeout: float | None) -> Iterator[T]:
        token = ""
        while True:
            items, token = self._unary(call(token), timeout)
            yield from items
            if not token:
                return
