"""Registered functions: kept in the store, and in memory so that invoking one reads nothing.

The front is the only process that registers, so what it loaded at its start and changed since is the truth.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import re
import time
from dataclasses import dataclass, replace

from google.protobuf.message import DecodeError

from kaas.v1 import executor_pb2, types_pb2
from kaas_core.errors import FunctionNotFoundError, InvalidArgumentError, KaasError, KeyNotFoundError
from kaas_core.protobuf import request_from_proto, request_to_proto
from kaas_core.request import Request
from kaas_core.violations import shown
from kaasd.front.validated_requests import ValidatedRequest
from kaasd.store.base import KeyValueStore, Namespace, Write

MAX_NAME_LENGTH = 200
_NAME = re.compile(rf"[A-Za-z0-9._/-]{{1,{MAX_NAME_LENGTH}}}")
_PAGE = 1000

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RegisteredFunction:
    """A function, ready to be invoked."""

    function: executor_pb2.Function
    checked: ValidatedRequest


class FunctionRegistry:
    """The functions of one server. Used by one event loop."""

    def __init__(self, store: KeyValueStore) -> None:
        self._store = store
        self._functions: dict[str, RegisteredFunction] = {}
        self._writing = asyncio.Lock()
        self._load()

    def __len__(self) -> int:
        return len(self._functions)

    def get(self, name: str) -> RegisteredFunction:
        """Return a function. Raises ``FunctionNotFoundError``, ``InvalidArgumentError`` (malformed name)."""
        found = self._functions.get(name)
        if found is None:
            check_name(name)
            raise FunctionNotFoundError(f"no function is registered as {shown(name)}")
        return found

    def list(self, prefix: str = "", after: str = "", limit: int = 100) -> list[executor_pb2.Function]:
        """Return at most ``limit`` functions whose name starts with ``prefix`` and is greater than ``after``, in order."""
        names = (name for name in self._functions if name > after and name.startswith(prefix))
        return [self._functions[name].function for name in heapq.nsmallest(limit, names)]

    async def register(self, registered: RegisteredFunction) -> None:
        """Keep what ``describe`` described under its name, in place of what was there. Raises ``StoreFullError``."""
        name = registered.function.name
        write = Write(name, [registered.function.SerializeToString()], namespace=Namespace.FUNCTIONS)
        async with self._writing:  # The order in the store is the order in memory.
            await asyncio.wrap_future(self._store.commit([write]))
            self._functions[name] = registered

    async def delete(self, name: str) -> None:
        """Forget a function. Raises ``FunctionNotFoundError``, ``InvalidArgumentError`` (malformed name)."""
        async with self._writing:
            self.get(name)
            try:
                await asyncio.wrap_future(self._store.delete(name, Namespace.FUNCTIONS))
            except KeyNotFoundError:
                log.warning("function %s was in memory but not in the store", name)
            del self._functions[name]

    def _load(self) -> None:
        after = ""
        with self._store.snapshot() as snapshot:
            while entries := snapshot.list(after=after, limit=_PAGE, namespace=Namespace.FUNCTIONS):
                for entry in entries:
                    self._restore(entry.key, b"".join(snapshot.pieces(entry.key, namespace=Namespace.FUNCTIONS)))
                after = entries[-1].key

    def _restore(self, name: str, stored: bytes) -> None:
        """Take a function from the store; one that this version no longer accepts is left where it is."""
        try:
            function = executor_pb2.Function.FromString(stored)
            request = request_from_proto(function.request)
        except (DecodeError, KaasError) as error:
            log.warning("function %s in the store cannot be used: %s", name, error)
            return
        self._functions[name] = RegisteredFunction(function, _checked(request, function))


def describe(name: str, message: types_pb2.Request) -> RegisteredFunction:
    """Return the function that ``name`` and a request make, created now, with the request's defaults filled in.

    Raises ``InvalidArgumentError`` (malformed name), ``InvalidRequestError``.
    """
    check_name(name)
    request = _with_keys(request_from_proto(message))
    function = executor_pb2.Function(name=name, request=request_to_proto(request))
    function.create_time.FromNanoseconds(time.time_ns())
    return RegisteredFunction(function, _checked(request, function))


def check_name(name: str) -> None:
    """Raise ``InvalidArgumentError`` unless ``name`` may name a function."""
    if not _NAME.fullmatch(name):
        raise InvalidArgumentError(
            f"{shown(name)} is no function name: 1 to {MAX_NAME_LENGTH} characters of A-Z a-z 0-9 . _ - / are allowed"
        )


def _checked(request: Request, function: executor_pb2.Function) -> ValidatedRequest:
    return ValidatedRequest.of(request, function.request.SerializeToString(deterministic=True))


def _with_keys(request: Request) -> Request:
    """Return the request with the default key of every buffer that has one spelt out."""
    buffers = (spec if spec.ephemeral else replace(spec, key=spec.store_key) for spec in request.buffers)
    return replace(request, buffers=tuple(buffers))
