"""Builds requests: kernels with their arguments, in the order of their parameters.

Mentions of one buffer in several kernels are merged by its name, as in the JSON form: what one of them gives holds for
all. So size, key and offset need to be given only once; where they are given again, they must be the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

from kaas_client.arguments import BufferSpec, Literal, Packed, Size, TextureSpec, numbers
from kaas_core import request as core
from kaas_core.json_form import request_from_json, request_to_json


@dataclass(frozen=True, slots=True)
class Kernel:
    """One launch of one ``__global__`` entry point."""

    library: str
    """What ``Client.upload`` returned, or an absolute path on the server."""
    name: str
    grid: Size = 1
    """In blocks."""
    block: Size = 1
    """In threads."""
    args: Sequence[BufferSpec | Literal | Packed | TextureSpec] = ()
    shared_memory_bytes: int = 0
    """Dynamic shared memory."""
    cluster: Size | None = None
    """Blocks in a thread block cluster; None: the kernel's own, or none. The grid is a multiple of it in each dimension."""
    cooperative: bool = False
    """All blocks run at once, so that they may wait for each other."""
    programmatic_dependent_launch: bool = False
    """May begin before the launch before it has ended: the kernel itself waits before it touches what that one uses."""

    def to_json(self) -> dict[str, object]:
        """Return the kernel as it stands in the JSON form."""
        for position, argument in enumerate(self.args):
            if not isinstance(argument, BufferSpec | Literal | Packed | TextureSpec):
                raise TypeError(
                    f"argument {position} of kernel {self.name!r} is {argument!r:.60}: expected inp(…), inout(…), out(…), "
                    "tmp(…), packed(…), texture(…), surface(…), or a number with its type, such as u64(…)"
                )
        cluster = {} if self.cluster is None else {"cluster": numbers(self.cluster)}
        return cluster | {
            "library": self.library,
            "name": self.name,
            "grid": numbers(self.grid),
            "block": numbers(self.block),
            "shared_memory_bytes": index(self.shared_memory_bytes),
            "cooperative": self.cooperative,
            "programmatic_dependent_launch": self.programmatic_dependent_launch,
            "arguments": [argument.to_json() for argument in self.args],
        }


@dataclass(frozen=True, slots=True, init=False)
class Request:
    """Kernels in order, ``iterations`` times, and the buffers that they use."""

    spec: core.Request
    """Merged, validated, defaults filled in."""

    def __init__(self, kernels: Iterable[Kernel], iterations: int = 1) -> None:
        """Raises ``InvalidRequestError`` that names every bad field, such as ``kernels[1].arguments[0]``."""
        form = {"kernels": [kernel.to_json() for kernel in kernels], "iterations": index(iterations)}
        object.__setattr__(self, "spec", request_from_json(form))

    @classmethod
    def from_spec(cls, spec: core.Request) -> Request:
        """Return the request of a valid ``spec``."""
        request = object.__new__(cls)
        object.__setattr__(request, "spec", spec)
        return request

    @classmethod
    def from_json(cls, source: str | bytes | dict[str, Any]) -> Request:
        """Return the request of a JSON text, or of what a parser made of one. Raises ``InvalidRequestError``."""
        return cls.from_spec(request_from_json(source))

    def to_json(self, indent: int | None = None) -> str:
        """Return the request's JSON text."""
        return json.dumps(request_to_json(self.spec), indent=indent)
