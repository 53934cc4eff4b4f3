"""Builds requests: kernels with their arguments, in the order of their parameters.

Mentions of one buffer in several kernels are merged by its name, as in the JSON form: what one of them gives holds for
all. So size, key and offset need to be given only once; where they are given again, they must be the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Any, SupportsFloat, SupportsIndex, TypeAlias

from kaas_core import request as core
from kaas_core.errors import InvalidRequestError
from kaas_core.json_form import request_from_json, request_to_json
from kaas_core.request import Access
from kaas_core.violations import shown

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

Size: TypeAlias = "SupportsIndex | Sequence[SupportsIndex]"
"""Of a grid or block: one to three numbers, x first."""
Shape: TypeAlias = Size
"""Of a buffer: one dimension, or all of them."""


@dataclass(frozen=True, slots=True)
class BufferSpec:
    """One use of a buffer by a kernel; made by ``inp``, ``inout``, ``out`` and ``tmp``."""

    name: str
    size: int | None
    """In bytes; None: given by another mention."""
    access: Access
    key: str | None = None
    offset: int | None = None
    ephemeral: bool = False
    constant: bool | None = None
    dtype: str | None = None
    """NumPy's name of what its elements are, or that of ml_dtypes, or the ``descr`` of a structured type as JSON."""
    shape: tuple[int, ...] | None = None
    fortran_order: bool | None = None

    def to_json(self) -> list[object]:
        """Return the argument as it stands in the JSON form."""
        said: dict[str, object] = {"size": self.size, "key": self.key, "offset": self.offset, "constant": self.constant}
        said |= {"dtype": self.dtype, "shape": self.shape, "fortran_order": self.fortran_order}
        mention: dict[str, object] = {"name": self.name} | {name: value for name, value in said.items() if value is not None}
        return [mention | {"ephemeral": True} if self.ephemeral else mention, self.access.value]


@dataclass(frozen=True, slots=True)
class Literal:
    """A scalar passed by value; made by ``u64`` and the like."""

    type: str
    """A letter of Python's ``struct``."""
    value: int | float

    def to_json(self) -> list[object]:
        """Return the argument as it stands in the JSON form, which has strings for infinities and NaN."""
        value = self.value
        if isinstance(value, float) and not math.isfinite(value):
            return [{"type": self.type, "val": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}, "l"]
        return [{"type": self.type, "val": value}, "l"]


def inp(
    name: str,
    size: SupportsIndex | None = None,
    *,
    key: str | None = None,
    offset: SupportsIndex | None = None,
    ephemeral: bool = False,
    constant: bool | None = None,
    dtype: DTypeLike | None = None,
    shape: Shape | None = None,
    fortran_order: bool | None = None,
) -> BufferSpec:
    """Return a buffer that a kernel only reads: loaded at its first use, unless ephemeral.

    ``size`` and ``offset`` in bytes; ``key`` in the store, by default the name; ``constant`` promises that the key's value does
    not change. ``dtype``, whatever ``np.dtype`` takes, and ``shape`` say what the bytes are to their users, and so what size they
    have; without a shape it is one element. Raises ``InvalidRequestError`` where they do not fit a size that is given,
    ``TypeError`` where no device could hold the type.
    """
    return _buffer(Access.INPUT, name, size, key, offset, ephemeral, constant, (dtype, shape, fortran_order))


def inout(
    name: str,
    size: SupportsIndex | None = None,
    *,
    key: str | None = None,
    offset: SupportsIndex | None = None,
    ephemeral: bool = False,
    dtype: DTypeLike | None = None,
    shape: Shape | None = None,
    fortran_order: bool | None = None,
) -> BufferSpec:
    """Return a buffer that a kernel reads and writes: loaded at its first use and stored at the end, unless ephemeral.

    Parameters as for ``inp``.
    """
    return _buffer(Access.INOUT, name, size, key, offset, ephemeral, None, (dtype, shape, fortran_order))


def out(
    name: str,
    size: SupportsIndex | None = None,
    *,
    key: str | None = None,
    offset: SupportsIndex | None = None,
    ephemeral: bool = False,
    dtype: DTypeLike | None = None,
    shape: Shape | None = None,
    fortran_order: bool | None = None,
) -> BufferSpec:
    """Return a buffer that a kernel writes: zeros at its first use, stored at the end, unless ephemeral.

    Parameters as for ``inp``.
    """
    return _buffer(Access.OUTPUT, name, size, key, offset, ephemeral, None, (dtype, shape, fortran_order))


def tmp(
    name: str,
    size: SupportsIndex | None = None,
    *,
    dtype: DTypeLike | None = None,
    shape: Shape | None = None,
) -> BufferSpec:
    """Return a scratch buffer: zeros at its first use, never stored. ``dtype`` and ``shape`` as for ``inp``."""
    return _buffer(Access.TEMPORARY, name, size, None, None, True, None, (dtype, shape, None))


def i8(value: SupportsIndex) -> Literal:
    """Return a signed 8-bit integer."""
    return Literal("b", index(value))


def u8(value: SupportsIndex) -> Literal:
    """Return an unsigned 8-bit integer."""
    return Literal("B", index(value))


def i16(value: SupportsIndex) -> Literal:
    """Return a signed 16-bit integer."""
    return Literal("h", index(value))


def u16(value: SupportsIndex) -> Literal:
    """Return an unsigned 16-bit integer."""
    return Literal("H", index(value))


def i32(value: SupportsIndex) -> Literal:
    """Return a signed 32-bit integer."""
    return Literal("i", index(value))


def u32(value: SupportsIndex) -> Literal:
    """Return an unsigned 32-bit integer."""
    return Literal("I", index(value))


def i64(value: SupportsIndex) -> Literal:
    """Return a signed 64-bit integer."""
    return Literal("q", index(value))


def u64(value: SupportsIndex) -> Literal:
    """Return an unsigned 64-bit integer."""
    return Literal("Q", index(value))


def f16(value: SupportsFloat) -> Literal:
    """Return a half-precision floating-point number."""
    return Literal("e", float(value))


def f32(value: SupportsFloat) -> Literal:
    """Return a single-precision floating-point number."""
    return Literal("f", float(value))


def f64(value: SupportsFloat) -> Literal:
    """Return a double-precision floating-point number."""
    return Literal("d", float(value))


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
    args: Sequence[BufferSpec | Literal] = ()
    shared_memory_bytes: int = 0
    """Dynamic shared memory."""

    def to_json(self) -> dict[str, object]:
        """Return the kernel as it stands in the JSON form."""
        for position, argument in enumerate(self.args):
            if not isinstance(argument, BufferSpec | Literal):
                raise TypeError(
                    f"argument {position} of kernel {self.name!r} is {argument!r:.60}: expected inp(…), inout(…), out(…), tmp(…) "
                    "or a number with its type, such as u64(…)"
                )
        return {
            "library": self.library,
            "name": self.name,
            "grid": _numbers(self.grid),
            "block": _numbers(self.block),
            "shared_memory_bytes": index(self.shared_memory_bytes),
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


def _buffer(
    access: Access,
    name: str,
    size: SupportsIndex | None,
    key: str | None,
    offset: SupportsIndex | None,
    ephemeral: bool,
    constant: bool | None,
    form: tuple[DTypeLike | None, Shape | None, bool | None],
) -> BufferSpec:
    dtype, shape, fortran_order = form
    dimensions = None if shape is None else tuple(_numbers(shape))
    size_bytes, text = _optional(size), None
    if dtype is not None:
        from kaas_client import _dtypes

        text = _dtypes.dtype_to_text(dtype)
        form_bytes = math.prod(dimensions or ()) * _dtypes.dtype_from_text(text).itemsize
        if size_bytes is not None and size_bytes != form_bytes:
            described = f"{text} of shape {list(dimensions or ())}"
            raise InvalidRequestError.at("size", f"buffer {shown(name)} is {described}: {form_bytes} bytes, not {size_bytes}")
        size_bytes = form_bytes
    return BufferSpec(name, size_bytes, access, key, _optional(offset), ephemeral, constant, text, dimensions, fortran_order)


def _optional(number: SupportsIndex | None) -> int | None:
    return None if number is None else index(number)


def _numbers(size: Size) -> list[int]:
    return [index(number) for number in size] if isinstance(size, Sequence) else [index(size)]
