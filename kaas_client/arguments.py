"""The arguments of a kernel: buffers by address or handle, numbers, and bytes with buffers among them."""

from __future__ import annotations

import ctypes
import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from operator import index
from typing import TYPE_CHECKING, Any, SupportsFloat, SupportsIndex, TypeAlias, TypeVar

from kaas_core.errors import InvalidRequestError
from kaas_core.request import ADDRESS_BYTES, Access
from kaas_core.texture import AddressMode, FilterMode, Texture, texture_problems
from kaas_core.violations import shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike

E = TypeVar("E", bound=Enum)
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
class Packed:
    """Bytes passed by value, with addresses of buffers among them; made by ``packed``."""

    data: bytes
    buffers: tuple[tuple[int, BufferSpec], ...] = ()
    """Each with the offset of its address in bytes."""

    def to_json(self) -> list[object]:
        """Return the argument as it stands in the JSON form."""
        fields: dict[str, object] = {"packed": b64encode(self.data).decode()}
        if self.buffers:
            fields["buffers"] = [[offset, *buffer.to_json()] for offset, buffer in self.buffers]
        return [fields, "p"]


@dataclass(frozen=True, slots=True)
class TextureSpec:
    """A buffer that a kernel has by a handle; made by ``texture`` and ``surface``."""

    buffer: BufferSpec
    texture: Texture

    def to_json(self) -> list[object]:
        """Return the argument as it stands in the JSON form."""
        mention, letter = self.buffer.to_json()
        seen = self.texture
        fields: dict[str, object] = {"texture": mention, "dtype": seen.dtype, "channels": seen.channels, "extent": seen.extent}
        fields |= {"layers": seen.layers, "address_mode": seen.address_mode.value, "filter_mode": seen.filter_mode.value}
        return [fields | {"normalized_coordinates": seen.normalized_coordinates}, letter]


def texture(
    buffer: BufferSpec,
    *,
    dtype: str,
    extent: Shape,
    channels: SupportsIndex = 1,
    layers: SupportsIndex = 0,
    address_mode: str = "clamp",
    filter_mode: str = "point",
    normalized_coordinates: bool = False,
) -> TextureSpec:
    """Return a buffer that a kernel reads as a texture: its parameter is a ``cudaTextureObject_t``.

    ``buffer`` is ``inp(…)``, whose size may be left out. ``extent`` are width, height and depth in texels, as many as the texture
    has dimensions; the buffer has them in the order of C, ``(layers, depth, height, width, channels)``. ``dtype`` is ``uint8``,
    ``int8``, ``uint16``, ``int16``, ``uint32``, ``int32``, ``float16`` or ``float32``, or for integers that the kernel reads as
    floats of 0 to 1, or -1 to 1, ``unorm8``, ``unorm16``, ``snorm8`` or ``snorm16``; ``channels`` are 1, 2 or 4. ``address_mode``
    is ``wrap``, ``clamp``, ``mirror`` or ``border``, ``filter_mode`` is ``point`` or ``linear``. Raises ``InvalidRequestError``.
    """
    if buffer.access is not Access.INPUT:
        raise TypeError("a texture is read only: texture(inp(…), …); what a kernel writes is surface(…)")
    return _texture(
        buffer,
        Texture(
            str(dtype),
            index(channels),
            tuple(numbers(extent)),
            index(layers),
            _mode(AddressMode, "address_mode", address_mode),
            _mode(FilterMode, "filter_mode", filter_mode),
            bool(normalized_coordinates),
        ),
    )


def surface(
    buffer: BufferSpec, *, dtype: str, extent: Shape, channels: SupportsIndex = 1, layers: SupportsIndex = 0
) -> TextureSpec:
    """Return a buffer that a kernel writes, or reads and writes, as a surface: its parameter is a ``cudaSurfaceObject_t``.

    ``buffer`` is ``out(…)``, ``inout(…)`` or ``tmp(…)``, whose size may be left out; the rest is as for ``texture``.
    """
    if buffer.access is Access.INPUT:
        raise TypeError(
            "a surface is written: surface(out(…), …) or surface(inout(…), …); what a kernel only reads is texture(…)"
        )
    return _texture(buffer, Texture(str(dtype), index(channels), tuple(numbers(extent)), index(layers)))


def _texture(buffer: BufferSpec, seen: Texture) -> TextureSpec:
    problem = next(texture_problems(seen, buffer.size, buffer.access is not Access.INPUT), None)
    if problem is not None:
        raise InvalidRequestError.at(problem[0], f"texture {shown(buffer.name)}: {problem[1]}")
    return TextureSpec(replace(buffer, size=seen.size_bytes), seen)


def _mode(kind: type[E], field: str, word: str) -> E:
    try:
        return kind(word)
    except ValueError:
        words = ", ".join(str(each.value) for each in kind)
        raise InvalidRequestError.at(field, f"must be one of {words}, not {shown(word)}") from None


def packed(
    data: bytes | bytearray | memoryview | np.void | ctypes.Structure,
    buffers: Mapping[str, BufferSpec] | Mapping[int, BufferSpec] | Mapping[str | int, BufferSpec] | None = None,
) -> Packed:
    """Return a parameter that is passed by value, such as a struct: its bytes, with addresses of ``buffers`` in their places.

    ``data`` is of any length: bytes, a structure of ctypes, or an element of a structured NumPy array, whose dtype is made with
    ``align=True``, as C++ lays a struct out. ``buffers`` are by offset in bytes, a multiple of 8, or by the name of a field of 8
    bytes, in a struct within a struct as ``"outer.inner"``; what ``data`` has there does not matter. Raises ``KeyError`` where
    there is no such field, ``InvalidRequestError`` where it does not hold an address, ``TypeError``.
    """
    given = {} if buffers is None else dict(buffers.items())
    places = tuple((_offset(data, place), buffer) for place, buffer in given.items())
    for place, buffer in given.items():
        if not isinstance(buffer, BufferSpec):
            raise TypeError(f"what packed(…) has at {place!r} is {buffer!r:.60}: expected inp(…), inout(…), out(…) or tmp(…)")
    return Packed(_bytes_of(data), places)


def _bytes_of(data: Any) -> bytes:
    if isinstance(data, ctypes.Structure | bytes | bytearray | memoryview):
        return bytes(data)
    if getattr(getattr(data, "dtype", None), "fields", None) is None:
        raise TypeError(f"packed(…) takes bytes, a structured element of NumPy or a structure of ctypes, not {data!r:.60}")
    if data.dtype.hasobject or data.shape != ():
        raise TypeError(f"packed(…) takes one element that is made of bytes, not {data!r:.60}")
    content: bytes = data.tobytes()
    return content


def _offset(data: Any, place: str | int) -> int:
    """Return where an address is to stand in ``data``."""
    if not isinstance(place, str):
        return index(place)
    kind: Any = type(data) if isinstance(data, ctypes.Structure) else getattr(data, "dtype", None)
    offset = size = 0
    for name in place.split("."):
        found = _field(kind, name)
        if found is None:
            raise KeyError(f"packed data has no field {place!r}")
        start, size, kind = found
        offset += start
    if size != ADDRESS_BYTES:
        raise InvalidRequestError.at(f"buffers[{shown(place)}]", f"an address has {ADDRESS_BYTES} bytes, and this field {size}")
    return offset


def _field(kind: Any, name: str) -> tuple[int, int, Any] | None:
    """Return where a field of a struct begins, its size in bytes, and what it is; None where there is no such field."""
    if isinstance(kind, type) and issubclass(kind, ctypes.Structure):
        fields = {each[0]: each[1] for base in kind.__mro__ for each in vars(base).get("_fields_", ())}
        place = getattr(kind, name, None)
        return None if name not in fields or place is None else (place.offset, ctypes.sizeof(fields[name]), fields[name])
    fields = getattr(kind, "fields", None) or {}
    return None if name not in fields else (fields[name][1], fields[name][0].itemsize, fields[name][0])


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
    dimensions = None if shape is None else tuple(numbers(shape))
    size_bytes, text = _optional(size), None
    if dtype is not None:
        from kaas_client import _dtypes

        try:
            text = _dtypes.dtype_to_text(dtype)
        except TypeError as error:
            raise TypeError(f"buffer {shown(name)}: {error}") from None
        form_bytes = math.prod(dimensions or ()) * _dtypes.dtype_from_text(text).itemsize
        if size_bytes is not None and size_bytes != form_bytes:
            described = f"{text} of shape {list(dimensions or ())}"
            raise InvalidRequestError.at("size", f"buffer {shown(name)} is {described}: {form_bytes} bytes, not {size_bytes}")
        size_bytes = form_bytes
    return BufferSpec(name, size_bytes, access, key, _optional(offset), ephemeral, constant, text, dimensions, fortran_order)


def _optional(number: SupportsIndex | None) -> int | None:
    return None if number is None else index(number)


def numbers(size: Size) -> list[int]:
    """Return one to three numbers as a list."""
    return [index(number) for number in size] if isinstance(size, Sequence) else [index(size)]
