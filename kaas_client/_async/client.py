"""The client: one method for each RPC. For asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from kaas_client import _rpcs
from kaas_client._async.administration import Administration
from kaas_client._async.connection import Connection
from kaas_client._async.function import Function
from kaas_client._asyncio import opened
from kaas_client._retry import RetryPolicy
from kaas_client._rpcs import Binding
from kaas_client._tls import File
from kaas_client._transfer import Bytes, Data, Download, Progress, Writable
from kaas_client.builders import Request
from kaas_client.errors import KeyNotFoundError, ValueTooShortError
from kaas_client.types import (
    Entry,
    Key,
    Library,
    LibraryInspection,
    Result,
    Value,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike

    from kaas_client._async.bound import Bound
    from kaas_client._async.stream import InvokeStream
    from kaas_client.kernels import Launch

_DEFAULT_RETRY = RetryPolicy()


class Client(Administration):
    """A connection to a server, for one event loop. Use it as an asynchronous context manager, or ``close`` it.

    Calls raise ``kaas_client.errors``. A call that fails because the server is away, busy or restarting is made again, within its
    timeout: see ``RetryPolicy``. A request then has its effect once, whatever was lost; ``put``, ``delete`` and ``upload`` are
    made again only where nothing was sent. Where there never was a server at the address, calls fail at once.
    Cancelling a task cancels its call.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float | None = None,
        wait_for_ready: bool = False,
        max_message_bytes: int = _rpcs.DEFAULT_MAX_MESSAGE_BYTES,
        retry: RetryPolicy | None = _DEFAULT_RETRY,
        group: str = "",
        tls_ca: File | None = None,
        tls_cert: File | None = None,
        tls_key: File | None = None,
    ) -> None:
        """Connect on first use.

        ``address`` is ``unix:PATH``, ``/PATH`` or ``HOST:PORT``, by default ``KAAS_ADDRESS`` or the usual socket. ``timeout``, in
        seconds, is the default for every call. With ``wait_for_ready`` a call waits, until its timeout, for a server that does
        not answer yet. ``retry`` says how often failed calls are made again; None: never. ``group`` is whom calls are
        for that name no group themselves: by default the server's choice, which is the group of its socket or ``default``. A call
        for a group that there is not raises ``GroupNotFoundError``.

        Over a unix socket requests and invocations travel without gRPC, by the server's local channel, where that can be reached.
        ``KAAS_TRANSPORT`` may have them do otherwise: ``auto``, ``grpc`` or ``local``. Raises ``ValueError`` for others.

        With ``tls_ca``, a file of the certificates in PEM that the server's is signed by, a TCP connection is encrypted;
        ``tls_cert`` and ``tls_key`` are this client's own, where the server asks for them. By default they are the files that
        ``KAAS_TLS_CA``, ``KAAS_TLS_CERT`` and ``KAAS_TLS_KEY`` name. Raises ``ValueError`` for a malformed address or file,
        ``OSError``.
        """
        tls = tls_ca, tls_cert, tls_key
        self._connection = Connection(address, timeout, wait_for_ready, max_message_bytes, retry, group, tls)
        self.address = self._connection.address

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls under way are cancelled. Idempotent."""
        await self._connection.close()

    # The store.

    async def put(
        self,
        key: str,
        data: Data,
        *,
        size: int | None = None,
        order: Literal["C", "F"] = "C",
        progress: Progress | None = None,
        group: str = "",
        timeout: float | None = None,
    ) -> Entry:
        """Store a value: a buffer or array, a ``pathlib.Path``, a binary file from its position on, or an iterable of buffers.

        Of an array dtype and shape are kept with it: one of NumPy, or of a package that shares it by DLPack or the CUDA array
        interface. Its elements are stored in the ``order`` of C, or of Fortran. What lies in another order, or on a GPU, is
        copied with a warning. ``size``, in bytes, avoids spooling a stream whose size is unknown. Raises
        ``InvalidArgumentError``, ``StoreFullError``, ``TypeError`` for what is not made of bytes.
        """
        data, form = _rpcs.storable(key, data, order)
        async with opened(data, size) as source:
            return await self._connection.upload(_rpcs.put(key, source, form, progress, self._connection.group(group)), timeout)

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
        group: str = "",
        timeout: float | None = None,
    ) -> Value: ...
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
        group: str = "",
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
        group: str = "",
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
        group: str = "",
        timeout: float | None = None,
    ) -> Any:
        """Return a value, or ``size`` bytes of it from ``offset``: as bytes, or as a one-dimensional array of ``dtype``.

        The bytes are a ``Value``: of one that was stored as an array, ``get(key).array()`` is that array again, read-only.
        With ``into``, a writable buffer or a binary file, it is written there and the number of bytes is returned. Raises
        ``KeyNotFoundError``, ``ValueTooShortError``.
        """
        download = Download(dtype, offset, size, into, progress)
        return await self._connection.download(
            _rpcs.get(key, offset, size, download, self._connection.group(group)), download, timeout
        )

    async def stat(self, key: str, *, group: str = "", timeout: float | None = None) -> Entry:
        """Return what the store knows of a key. Raises ``KeyNotFoundError``."""
        return await self._connection.unary(_rpcs.stat(key, self._connection.group(group)), timeout)

    def list(self, prefix: str = "", *, group: str = "", timeout: float | None = None) -> AsyncIterator[Entry]:
        """Yield the keys that start with ``prefix`` in the order of their bytes, also damaged ones (``Entry.damaged``).

        ``timeout`` is for each page.
        """
        return self._connection.pages(lambda token: _rpcs.list_keys(prefix, self._connection.group(group), token), timeout)

    async def delete(self, key: str, *, group: str = "", timeout: float | None = None) -> None:
        """Delete a key. Raises ``KeyNotFoundError``."""
        return await self._connection.unary(_rpcs.delete(key, self._connection.group(group)), timeout)

    # Libraries.

    async def upload(
        self,
        library: Data,
        *,
        file_name: str | None = None,
        progress: Progress | None = None,
        group: str = "",
        timeout: float | None = None,
    ) -> str:
        """Store a library, given as its path (``str`` too) or its content, and return its id for ``Kernel``.

        ``file_name`` is for people, by default the path's last part. Raises ``InvalidLibraryError``, ``StoreFullError``.
        """
        data = Path(library) if isinstance(library, str) else library
        async with opened(data) as source:
            return await self._connection.upload(
                _rpcs.upload(source, _rpcs.library_name(data, file_name), progress, self._connection.group(group)), timeout
            )

    async def inspect(self, library: str, *, group: str = "", timeout: float | None = None) -> LibraryInspection:
        """Return the kernels of a library, named by id or by a path on the server, and their parameters.

        Raises ``LibraryNotFoundError``, ``InvalidLibraryError``.
        """
        return await self._connection.unary(_rpcs.inspect(library, self._connection.group(group)), timeout)

    def libraries(self, *, group: str = "", timeout: float | None = None) -> AsyncIterator[Library]:
        """Yield the uploaded libraries in the order of their ids, also damaged ones. ``timeout`` is for each page."""
        return self._connection.pages(lambda token: _rpcs.libraries(self._connection.group(group), token), timeout)

    async def delete_library(self, id: str, *, group: str = "", timeout: float | None = None) -> None:
        """Delete an uploaded library. Raises ``LibraryNotFoundError``."""
        return await self._connection.unary(_rpcs.delete_library(id, self._connection.group(group)), timeout)

    # Requests and functions.

    async def submit(
        self,
        request: Request,
        *,
        inputs: Mapping[str, Bytes] | None = None,
        returns: Iterable[str] = (),
        device: str = "",
        trace: bool = False,
        request_id: str = "",
        group: str = "",
        priority: int = 0,
        timeout: float | None = None,
    ) -> Result:
        """Run a request once; when this returns, its outputs are committed.

        ``inputs`` are bytes or arrays for buffers, by name, in place of the store's values, an array in the order of its buffer:
        that of C, unless the request says Fortran's. ``returns`` names buffers to return; the server chooses the ``device`` if it
        is empty; with ``trace`` the result has a trace, and the kernels take longer; after ``timeout`` the kernels are stopped.
        Who may make the same call again, after a crash for example, gives it a ``request_id``, which stands for this call for
        some minutes: it runs once. Of the calls of its group that wait, those of higher ``priority`` go first. Raises any of
        ``kaas_client.errors``.
        """
        returns = list(returns) if not isinstance(returns, str) else returns
        group = self._connection.group(group)
        id = self._connection.request_id(request_id)
        result = await self._connection.unary(
            _rpcs.submit(request, inputs or {}, returns, device, trace, id, group, priority), timeout
        )
        if result.outputs_dropped:
            result = await self._with_outputs(result, request, {}, returns, group, timeout)
        return replace(result, request=request.spec)

    async def register(self, name: str, request: Request, *, group: str = "", timeout: float | None = None) -> Function:
        """Register a request under a name, replacing what was there. Raises ``InvalidArgumentError``, ``NotFoundError``."""
        return Function(self, await self._connection.unary(_rpcs.register(name, request, self._connection.group(group)), timeout))

    async def function(self, name: str, *, group: str = "", timeout: float | None = None) -> Function:
        """Return a registered function. Raises ``FunctionNotFoundError``."""
        return Function(self, await self._connection.unary(_rpcs.function(name, self._connection.group(group)), timeout))

    async def functions(self, prefix: str = "", *, group: str = "", timeout: float | None = None) -> AsyncIterator[Function]:
        """Yield the registered functions whose names start with ``prefix``, by name, also damaged ones (``Function.damaged``).

        ``timeout`` is for each page.
        """
        async for fields in self._connection.pages(
            lambda token: _rpcs.functions(prefix, self._connection.group(group), token), timeout
        ):
            yield Function(self, fields)

    async def delete_function(self, name: str, *, group: str = "", timeout: float | None = None) -> None:
        """Delete a function. Raises ``FunctionNotFoundError``."""
        return await self._connection.unary(_rpcs.delete_function(name, self._connection.group(group)), timeout)

    async def invoke(
        self,
        name: str,
        bindings: Mapping[str, Binding] | None = None,
        *,
        returns: Iterable[str] = (),
        device: str = "",
        trace: bool = False,
        request_id: str = "",
        group: str = "",
        priority: int = 0,
        timeout: float | None = None,
    ) -> Result:
        """Run a registered function once.

        ``bindings`` gives buffers, by name, other bytes or another ``Key``; arrays are sent in the order of C, as what
        the buffers are is not known here (see ``function``); the rest is as for ``submit``.
        """
        returns = list(returns) if not isinstance(returns, str) else returns
        group = self._connection.group(group)
        id = self._connection.request_id(request_id)
        result = await self._connection.unary(
            _rpcs.invoke(name, bindings or {}, returns, device, trace, id, group, priority), timeout
        )
        return await self._complete(result, name, bindings or {}, returns, group, timeout) if result.outputs_dropped else result

    async def _complete(
        self,
        result: Result,
        name: str,
        bindings: Mapping[str, Binding],
        returns: Iterable[str],
        group: str,
        timeout: float | None,
    ) -> Result:
        """Return a function's result with the outputs that its reply lacks. Raises ``OutputsDroppedError``."""
        function = await self._connection.unary(_rpcs.function(name, group), timeout)
        return await self._with_outputs(result, function.request, bindings, returns, group, timeout)

    async def _with_outputs(
        self,
        result: Result,
        request: Request,
        bindings: Mapping[str, Binding],
        returns: Iterable[str],
        group: str,
        timeout: float | None,
    ) -> Result:
        """Return a result with the outputs that its reply lacks. Raises ``OutputsDroppedError``."""
        keys = {name: binding.name for name, binding in bindings.items() if isinstance(binding, Key)}
        outputs = {}
        for name, (download, rpc) in _rpcs.dropped_outputs(request.spec, keys, returns, result.versions, group).items():
            try:
                await self._connection.download(rpc, download, timeout)
            except (KeyNotFoundError, ValueTooShortError):
                raise _rpcs.gone(name) from None
            outputs[name] = _rpcs.fetched_output(name, download, result.versions)
        return replace(result, outputs=outputs, outputs_dropped=False)

    def bind(self, launches: Launch | Iterable[Launch], name: str | None = None, *, group: str = "") -> Bound:
        """Return launches of compiled kernels, of ``kaas_client.kernels``, as a function of arrays.

        They are compiled for the server's devices, uploaded and registered when it is first called, under ``name`` or a name made
        of their content. Arrays of other dtypes and shapes than the first ones have functions of their own. Nothing is stored but
        buffers that have a key.
        """
        from kaas_client._async.bound import Bound
        from kaas_client.kernels import Launch

        several = (launches,) if isinstance(launches, Launch) else tuple(launches)
        for launch in several:
            if not isinstance(launch, Launch):
                raise TypeError(f"bind(…) takes launches, such as kernel[grid, block](…), not {launch!r:.60}")
        return Bound(self, several, name, self._connection.group(group))

    def stream(self, *, max_in_flight: int = 64, timeout: float | None = None) -> InvokeStream:
        """Return a context manager that runs many invocations over one call, pipelined. ``timeout`` is for the whole stream."""
        from kaas_client._async.stream import InvokeStream  # Most programs need none.

        return InvokeStream(self._connection, timeout, max_in_flight, self._complete)
