"""Launches of compiled kernels as a function of arrays. For asyncio."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any, Protocol, TypeAlias

from kaas_client import _arrays
from kaas_client._async.function import Function
from kaas_client._asyncio import Lock, call_blocking
from kaas_client.builders import Request
from kaas_client.errors import FunctionNotFoundError, LibraryNotFoundError
from kaas_client.forms import Form
from kaas_client.kernels._compiled import DEFAULT_TARGET, Compiled, Launch, forms_of, only_returned
from kaas_client.types import Arrays, DeviceInfo, Key

_Signature: TypeAlias = tuple[tuple[str, Form | None, bool], ...]
"""Of each buffer that a call gives: its name, its form, and whether it is a ``Key``."""


class Binder(Protocol):
    """What a bound function uses of its client."""

    async def devices(self) -> Sequence[DeviceInfo]: ...

    async def upload(self, library: Any, *, file_name: str | None = None, group: str = "") -> str: ...

    async def register(self, name: str, request: Request, *, group: str = "") -> Function: ...


class Bound:
    """Launches in order, called with arrays by the names of their buffers; made by ``Client.bind``.

    For each combination of dtypes and shapes a function is registered when it is first called with them.
    """

    def __init__(self, client: Binder, launches: Sequence[Launch], name: str | None, group: str = "") -> None:
        self._client = client
        self._launches = tuple(launches)
        self._name = name
        self._group = group
        self._options: dict[str, Any] = {"group": group}
        self._functions: dict[_Signature, Function] = {}
        self._libraries: dict[bytes, str] = {}
        """Of the images that were uploaded, the names."""
        self._named: list[str] = []
        """The request that has the name, once there is one: those of other arrays have names of their own."""
        self._lock = Lock()

    async def __call__(self, /, **arrays: Any) -> Arrays:
        """Run them once, and return what they wrote, as arrays of the dtype and shape that went in, or that was declared.

        ``arrays`` are arrays, bytes or a ``Key``, by buffer. Nothing is stored but buffers that have a key, here or in their
        launch, and what an ``inout`` has read from the store.
        Raises ``InvalidRequestError`` where nothing tells what a buffer is, ``CompileError``, and any of ``kaas_client.errors``.
        """
        sent: dict[str, Any] = {}
        known: dict[str, Form | None] = {}
        for name, value in arrays.items():
            sent[name], known[name] = _arrays.sendable(name, value)
        signature = tuple((name, known[name], isinstance(arrays[name], Key)) for name in sorted(arrays))
        function = self._functions.get(signature)
        if function is not None:
            try:
                return Arrays(await function.options(**self._options)(**sent))
            except (FunctionNotFoundError, LibraryNotFoundError):  # Somebody deleted it, or the server has another store now.
                self._libraries.clear()
        function = await self._prepare(signature)
        self._functions[signature] = function
        return Arrays(await function.options(**self._options)(**sent))

    def options(
        self,
        *,
        returns: Iterable[str] | None = None,
        device: str = "",
        trace: bool = False,
        request_id: str = "",
        group: str = "",
        priority: int = 0,
        timeout: float | None = None,
    ) -> Bound:
        """Return the same, called so; as for ``Function.options``."""
        other = Bound(self._client, self._launches, self._name, group or self._group)
        other._functions, other._libraries, other._lock = self._functions, self._libraries, self._lock
        other._named = self._named
        other._options = {
            "returns": returns,
            "device": device,
            "trace": trace,
            "request_id": request_id,
            "group": group or self._group,
            "priority": priority,
            "timeout": timeout,
        }
        return other

    async def _prepare(self, signature: _Signature) -> Function:
        """Compile, upload and register what is called so."""
        forms = forms_of(self._launches, {name: form for name, form, _ in signature if form})
        given = {name for name, *_ in signature}
        ephemeral = only_returned(self._launches, given, {name for name, _, is_key in signature if is_key})
        target, ptx_version = common_target(await self._client.devices())
        kernels = []
        for position, launch in enumerate(self._launches):
            compiled = launch.compiled
            if not compiled.is_made:
                compiled = await call_blocking(_compiled_for, compiled, target, ptx_version)
            library = await self._upload(compiled)
            kernels.append(replace(launch, compiled=compiled).kernel(library, forms, position, ephemeral))
        request = Request(kernels)
        digest = sha256(request.to_json().encode()).hexdigest()
        name = f"{self._name or f'bound-{kernels[0].name[:64]}'}-{digest[:32]}"
        if self._name is not None:
            with self._lock:
                if not self._named:
                    self._named.append(digest)
                if self._named[0] == digest:
                    name = self._name
        return await self._client.register(name, request, group=self._group)

    async def _upload(self, compiled: Compiled) -> str:
        digest = sha256(compiled.image).digest()
        with self._lock:
            library = self._libraries.get(digest)
        if library is None:
            library = await self._client.upload(compiled.image, file_name=compiled.made.file_name, group=self._group)
            with self._lock:
                self._libraries[digest] = library
        return library


def _compiled_for(compiled: Compiled, target: str, ptx_version: int) -> Compiled:
    return compiled.compile(target=target, ptx_version=ptx_version)


def common_target(devices: Iterable[DeviceInfo]) -> tuple[str, int]:
    """Return the architecture and the newest PTX that all devices take: ``("sm_90", 90)``; 0 where one does not tell."""
    devices = [device for device in devices if device.compute_capability]
    if not devices:
        return DEFAULT_TARGET, 0
    capability = min(tuple(map(int, device.compute_capability.split("."))) for device in devices)
    return "sm_{}{}".format(*capability), min(device.max_ptx_version for device in devices)
