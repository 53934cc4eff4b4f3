"""Requests that were validated once, kept so that running one again costs a look-up instead of a validation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kaas.v1 import types_pb2
from kaas_core.errors import InvalidRequestError, Violation
from kaas_core.protobuf import request_from_proto
from kaas_core.request import Request
from kaas_core.uses import buffer_uses
from kaas_core.validation import key_problem
from kaas_core.violations import shown
from kaasd.ipc.messages import SerializedRequest
from kaasd.lru import LruCache

MAX_CACHE_BYTES = 32 << 20
"""Of serialised requests; a request of ten kernels has about 1 KiB."""


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

    @classmethod
    def of(cls, request: Request, serialized: bytes) -> ValidatedRequest:
        """Return ``request``, which was validated, with its serialised form."""
        uses = buffer_uses(request)
        buffers = {
            spec.name: ValidatedBuffer(spec.size_bytes, uses[spec.name].reads_first, spec.ephemeral)
            for spec in request.buffers
            if spec.name in uses
        }
        return cls(SerializedRequest.of(serialized), buffers)

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

    def __init__(self, limit_bytes: int = MAX_CACHE_BYTES) -> None:
        self._cache: LruCache[bytes, ValidatedRequest] = LruCache(limit_bytes)

    def check(self, message: types_pb2.Request) -> ValidatedRequest:
        """Return the checked request. Raises ``InvalidRequestError`` with every violation."""
        serialized = message.SerializeToString(deterministic=True)
        checked = self._cache.get(serialized)
        if checked is None:
            checked = ValidatedRequest.of(request_from_proto(message), serialized)
            self._cache.put(serialized, checked, len(serialized))
        return checked


def item_path(field: str, name: str) -> str:
    """Return the path of one entry of a map, such as ``inputs["a"]``."""
    quoted = shown(name)[1:].removesuffix("…")[:-1].replace('"', '\\"')
    return f'{field}["{quoted}"]'
