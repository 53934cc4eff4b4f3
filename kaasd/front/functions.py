"""Requests that were validated once: sent anew, and known by their bytes, or registered as functions, and known by their name.

Functions are kept in the store, and in memory so that invoking one reads nothing. Only the front registers functions, so what it
loaded at its start and changed since is the truth.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import re
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple, Protocol, TypeVar

from cachetools import LRUCache
from google.protobuf.message import DecodeError

from kaas.v1 import executor_pb2, types_pb2
from kaas_core.errors import (
    DataDamagedError,
    FunctionNotFoundError,
    InvalidArgumentError,
    InvalidRequestError,
    KaasError,
    KeyNotFoundError,
    Violation,
)
from kaas_core.protobuf import request_from_proto, request_to_proto
from kaas_core.request import Request
from kaas_core.uses import buffer_uses
from kaas_core.validation import MAX_ALL_ARGUMENTS, MAX_BUFFERS, MAX_KERNELS, key_problem
from kaas_core.violations import Violations, shown
from kaasd.front.needs import StoredInput
from kaasd.ipc.messages import SerializedRequest
from kaasd.store.base import DEFAULT_ACCOUNT, KeyValueStore, Namespace, Write
from kaasd.store.contents import contents

MAX_CACHE_BYTES = 32 << 20
"""Of serialised requests; a request of ten kernels has about 1 KiB."""
MAX_NAME_LENGTH = 200
T = TypeVar("T")
_NAME = re.compile(rf"[A-Za-z0-9._/-]{{1,{MAX_NAME_LENGTH}}}")

_log = logging.getLogger(__name__)


class Call(Protocol):
    """Calls a function with these arguments, aside from the event loop where it is about a request of many bytes."""

    def __call__(self, size_bytes: int, function: Callable[..., T], *arguments: object) -> Awaitable[T]: ...


class RequestLimits(NamedTuple):
    """The most that a request may have, of each."""

    kernels: int = MAX_KERNELS
    buffers: int = MAX_BUFFERS
    arguments: int = MAX_ALL_ARGUMENTS
    """Of all kernels together."""

    def check(self, message: types_pb2.Request) -> None:
        """Raises ``InvalidRequestError``."""
        found = Violations()
        arguments = sum(len(kernel.arguments) for kernel in message.kernels)
        arguments += sum(len(argument.packed.buffers) for kernel in message.kernels for argument in kernel.arguments)
        counts = {"kernels": len(message.kernels), "buffers": len(message.buffers), "kernels[].arguments": arguments}
        for (path, number), most in zip(counts.items(), self, strict=True):
            if number > most:
                found.add(path, f"at most {most} are allowed, not {number}")
        found.raise_if_any()


DEFAULT_LIMITS = RequestLimits()


@dataclass(frozen=True, slots=True)
class ValidatedBuffer:
    """What a caller may do with a buffer."""

    size_bytes: int
    loaded: bool
    """Its first use reads it, so that it may be given inline."""
    ephemeral: bool
    """It has no key to re-bind."""


@dataclass(frozen=True, slots=True)
class ValidatedRequest:
    """A valid request as it travels to a worker, and the table that a caller's buffers are checked against."""

    serialized: SerializedRequest
    buffers: Mapping[str, ValidatedBuffer]
    """Every buffer that a kernel uses, by name."""
    stays: Mapping[str, StoredInput]
    """Stored inputs that stay on a device, by buffer name."""
    device_bytes: int
    """What all buffers take on a device."""

    @classmethod
    def from_message(cls, message: types_pb2.Request, serialized: bytes, limits: RequestLimits) -> ValidatedRequest:
        """Return what ``message``, and its serialised form, say. Raises ``InvalidRequestError`` with every violation."""
        limits.check(message)
        return cls.of(request_from_proto(message), serialized)

    @classmethod
    def of(cls, request: Request, serialized: bytes) -> ValidatedRequest:
        """Return ``request``, which was validated, with its serialised form."""
        uses = buffer_uses(request)
        buffers = {
            spec.name: ValidatedBuffer(spec.size_bytes, uses[spec.name].reads_first, spec.ephemeral)
            for spec in request.buffers
            if spec.name in uses
        }
        stays = {
            spec.name: read
            for spec in request.buffers
            if spec.name in uses and (read := StoredInput.of(spec, uses[spec.name])) is not None
        }
        device_bytes = sum(buffer.size_bytes for buffer in buffers.values())
        return cls(SerializedRequest.of(serialized), buffers, stays, device_bytes)

    def check_inputs(self, inputs: Mapping[str, bytes], field: str = "inputs") -> None:
        """Check inline bytes by buffer name. Raises ``InvalidRequestError`` naming ``field["name"]``."""
        bad = [
            Violation(item_path(field, name), problem)
            for name, data in inputs.items()
            if (problem := self._input_problem(name, len(data)))
        ]
        if bad:
            raise InvalidRequestError(bad)

    def check_keys(self, keys: Mapping[str, str], field: str = "bindings") -> None:
        """Check keys that replace the request's own, by buffer name. Raises as ``check_inputs``."""
        bad = [
            Violation(item_path(field, name), problem) for name, key in keys.items() if (problem := self._key_problem(name, key))
        ]
        if bad:
            raise InvalidRequestError(bad)

    def check_return_buffers(self, names: Iterable[str]) -> int:
        """Check the buffers wanted in the reply and return their sizes' sum. Raises ``InvalidRequestError``."""
        total = 0
        seen: set[str] = set()
        bad: list[Violation] = []
        for index, name in enumerate(names):
            buffer = self.buffers.get(name)
            if buffer is None:
                bad.append(Violation(f"return_buffers[{index}]", f"no kernel uses a buffer {shown(name)}"))
            elif name not in seen:
                seen.add(name)
                total += buffer.size_bytes
        if bad:
            raise InvalidRequestError(bad)
        return total

    def _input_problem(self, name: str, size_bytes: int) -> str | None:
        buffer = self.buffers.get(name)
        if buffer is None:
            return "no kernel uses a buffer of this name"
        if not buffer.loaded:
            return "the buffer starts as zeros: the first kernel that uses it does not read it"
        if size_bytes != buffer.size_bytes:
            return f"the buffer has {buffer.size_bytes} bytes, but {size_bytes} were sent"
        return None

    def _key_problem(self, name: str, key: str) -> str | None:
        buffer = self.buffers.get(name)
        if buffer is None:
            return "no kernel uses a buffer of this name"
        if buffer.ephemeral:
            return "an ephemeral buffer never touches the store and has no key"
        problem = key_problem(key)
        return f"key {problem}" if problem else None


class RequestValidator:
    """Validates requests, and remembers the valid ones by their bytes."""

    def __init__(self, call: Call, limits: RequestLimits = DEFAULT_LIMITS, *, limit_bytes: int = MAX_CACHE_BYTES) -> None:
        """``limit_bytes`` are remembered."""
        self._call = call
        self._limits = limits
        self._limit_bytes = limit_bytes
        self._cache: LRUCache[bytes, ValidatedRequest] = LRUCache(limit_bytes, lambda valid: len(valid.serialized.content))

    async def validate(self, message: types_pb2.Request) -> ValidatedRequest:
        """Return the request in its validated form. Raises ``InvalidRequestError`` with every violation."""
        serialized = message.SerializeToString(deterministic=True)
        validated = self._cache.get(serialized)
        if validated is None:
            validated = await self._call(len(serialized), ValidatedRequest.from_message, message, serialized, self._limits)
            if len(serialized) <= self._limit_bytes:
                self._cache[serialized] = validated
        return validated


@dataclass(frozen=True, slots=True)
class RegisteredFunction:
    """A function, ready to be invoked."""

    function: executor_pb2.Function
    validated: ValidatedRequest


class FunctionRegistry:
    """The functions of one server. Used by one event loop."""

    def __init__(self, store: KeyValueStore) -> None:
        self._store = store
        self._functions: dict[str, RegisteredFunction] = {}
        self._damaged: dict[str, DataDamagedError] = {}
        """What stands in the store under a name, but is not what was registered."""
        self._writing = asyncio.Lock()
        self._load()

    def __len__(self) -> int:
        return len(self._functions)

    def get(self, name: str) -> RegisteredFunction:
        """Return a function.

        Raises ``FunctionNotFoundError``, ``DataDamagedError``, ``InvalidArgumentError`` (malformed name).
        """
        found = self._functions.get(name)
        if found is None:
            check_name(name)
            if name in self._damaged:
                raise DataDamagedError(self._damaged[name].message, self._damaged[name].metadata)
            raise FunctionNotFoundError(f"no function is registered as {shown(name)}")
        return found

    def list(self, prefix: str = "", after: str = "", limit: int = 100) -> list[executor_pb2.Function]:
        """Return at most ``limit`` functions whose name starts with ``prefix`` and is greater than ``after``, in order.

        Of damaged ones only the name is known.
        """
        names = (name for name in chain(self._functions, self._damaged) if name > after and name.startswith(prefix))
        return [self._listed(name) for name in heapq.nsmallest(limit, names)]

    def names_by_request(self, digests: Collection[bytes], limit: int) -> Mapping[bytes, Sequence[str]]:
        """Return the names of the functions that have these requests, in order, at most ``limit`` of each, by digest."""
        names: dict[bytes, list[str]] = {digest: [] for digest in digests}
        if names:
            for name, registered in self._functions.items():
                if (digest := registered.validated.serialized.digest) in names:
                    names[digest].append(name)
        return {digest: heapq.nsmallest(limit, found) for digest, found in names.items()}

    async def register(self, registered: RegisteredFunction, group: str = DEFAULT_ACCOUNT) -> None:
        """Keep what ``describe`` described under its name, in place of what was there; it counts for ``group``.

        Raises ``StoreFullError``, ``GroupLimitError``.
        """
        name = registered.function.name
        write = Write(name, [registered.function.SerializeToString()], namespace=Namespace.FUNCTIONS, account=group)
        async with self._writing:  # The order in the store is the order in memory.
            await asyncio.wrap_future(self._store.commit([write]))
            self._functions[name] = registered
            self._damaged.pop(name, None)

    async def delete(self, name: str) -> None:
        """Forget a function. Raises ``FunctionNotFoundError``, ``InvalidArgumentError`` (malformed name)."""
        async with self._writing:
            if name not in self._damaged:
                self.get(name)
            try:
                await asyncio.wrap_future(self._store.delete(name, Namespace.FUNCTIONS))
            except KeyNotFoundError:
                _log.warning("function %s was in memory but not in the store", name)
            self._functions.pop(name, None)
            self._damaged.pop(name, None)

    def _listed(self, name: str) -> executor_pb2.Function:
        found = self._functions.get(name)
        return executor_pb2.Function(name=name) if found is None else found.function

    def _load(self) -> None:
        for name, stored in contents(self._store, Namespace.FUNCTIONS):
            if isinstance(stored, DataDamagedError):
                _log.warning("%s", stored)
                self._damaged[name] = stored
            else:
                self._restore(name, stored)

    def _restore(self, name: str, stored: bytes) -> None:
        """Take a function from the store; one that this version no longer accepts is left where it is."""
        try:
            function = executor_pb2.Function.FromString(stored)
            request = request_from_proto(function.request)
        except (DecodeError, KaasError) as error:
            _log.warning("function %s in the store cannot be used: %s", name, error)
            return
        self._functions[name] = RegisteredFunction(function, _validated(request, function))


def item_path(field: str, name: str) -> str:
    """Return the path of one entry of a map, such as ``inputs["a"]``."""
    quoted = shown(name)[1:].removesuffix("…")[:-1].replace('"', '\\"')
    return f'{field}["{quoted}"]'


def describe(name: str, message: types_pb2.Request, limits: RequestLimits = DEFAULT_LIMITS) -> RegisteredFunction:
    """Return the function that ``name`` and a request make, created now, with the request's defaults filled in.

    Raises ``InvalidArgumentError`` (malformed name), ``InvalidRequestError``.
    """
    check_name(name)
    limits.check(message)
    request = _with_keys(request_from_proto(message))
    function = executor_pb2.Function(name=name, request=request_to_proto(request))
    function.create_time.FromNanoseconds(time.time_ns())
    return RegisteredFunction(function, _validated(request, function))


def check_name(name: str) -> None:
    """Raise ``InvalidArgumentError`` unless ``name`` may name a function."""
    if not _NAME.fullmatch(name):
        raise InvalidArgumentError(
            f"{shown(name)} is not a valid function name: 1 to {MAX_NAME_LENGTH} characters of A-Z a-z 0-9 . _ - / are allowed"
        )


def _validated(request: Request, function: executor_pb2.Function) -> ValidatedRequest:
    return ValidatedRequest.of(request, function.request.SerializeToString(deterministic=True))


def _with_keys(request: Request) -> Request:
    """Return the request with the default key of every buffer that has one spelt out."""
    buffers = (spec if spec.ephemeral else replace(spec, key=spec.store_key) for spec in request.buffers)
    return replace(request, buffers=tuple(buffers))
