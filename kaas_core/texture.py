"""What a texture or surface is: how a kernel sees a buffer's bytes through a handle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from math import prod
from typing import NamedTuple


class AddressMode(Enum):
    """What a coordinate outside of a texture is; the values are the words of the JSON form."""

    WRAP = "wrap"
    """The texture repeats. For normalised coordinates only."""
    CLAMP = "clamp"
    """The nearest edge."""
    MIRROR = "mirror"
    """It repeats, every other time mirrored. For normalised coordinates only."""
    BORDER = "border"
    """Zeros."""


class FilterMode(Enum):
    """What is read between texels; the values are the words of the JSON form."""

    POINT = "point"
    """The texel that the coordinate is in."""
    LINEAR = "linear"
    """Of the nearest ones, weighted with 8 bits of fraction."""


class Reading(Enum):
    """What a kernel gets of an element."""

    SIGNED = "signed"
    UNSIGNED = "unsigned"
    FLOAT = "float"
    NORMALIZED = "normalized"
    """Of an unsigned integer: 0 to 1."""
    SIGNED_NORMALIZED = "signed normalized"
    """-1 to 1."""


class Element(NamedTuple):
    """One channel of a texel."""

    size_bytes: int
    reading: Reading

    @property
    def is_float(self) -> bool:
        """Whether a kernel reads it as a float."""
        return self.reading in (Reading.FLOAT, Reading.NORMALIZED, Reading.SIGNED_NORMALIZED)

    @property
    def is_normalized(self) -> bool:
        """Whether it is an integer that is read as a float."""
        return self.reading in (Reading.NORMALIZED, Reading.SIGNED_NORMALIZED)


ELEMENTS: Mapping[str, Element] = {
    **{f"uint{8 * size}": Element(size, Reading.UNSIGNED) for size in (1, 2, 4)},
    **{f"int{8 * size}": Element(size, Reading.SIGNED) for size in (1, 2, 4)},
    **{f"float{8 * size}": Element(size, Reading.FLOAT) for size in (2, 4)},
    **{f"unorm{8 * size}": Element(size, Reading.NORMALIZED) for size in (1, 2)},
    **{f"snorm{8 * size}": Element(size, Reading.SIGNED_NORMALIZED) for size in (1, 2)},
}
"""By the dtype's name: NumPy's for what is read as it is, those of graphics for integers that are read as floats."""
CHANNELS = (1, 2, 4)
MAX_TEXTURE_EXTENT = {1: (131_072,), 2: (131_072, 65_536), 3: (16_384, 16_384, 16_384)}
"""Of compute capability 7.0 to 9.0, by the number of dimensions."""
MAX_LAYERED_EXTENT = 32_768
MAX_SURFACE_LINE = 32_768
"""Of a surface of one dimension."""
MAX_LAYERS = 2048


@dataclass(frozen=True, slots=True)
class Texture:
    """How a kernel sees a buffer: texels in the order of C, the last layer's and the last row's at the end."""

    dtype: str
    """One of ``ELEMENTS``."""
    channels: int
    """Elements of a texel: 1, 2 or 4."""
    extent: tuple[int, ...]
    """Texels: width, height, depth. As many numbers as it has dimensions."""
    layers: int = 0
    """0: it is not layered. Only with one or two dimensions."""
    address_mode: AddressMode = AddressMode.CLAMP
    filter_mode: FilterMode = FilterMode.POINT
    normalized_coordinates: bool = False
    """Coordinates go from 0 to 1 over the texture, rather than from 0 to its extent."""

    @property
    def texel_bytes(self) -> int:
        """Size of one."""
        return self.channels * ELEMENTS[self.dtype].size_bytes

    @property
    def size_bytes(self) -> int:
        """Size of all."""
        return prod(self.extent) * max(self.layers, 1) * self.texel_bytes


def texture_problems(texture: Texture, size_bytes: int | None, is_surface: bool) -> Iterator[tuple[str, str]]:
    """Yield fields that are wrong, each with why. ``size_bytes`` is its buffer's, if that is known."""
    shape = list(_shape_problems(texture, is_surface))
    yield from shape
    element = ELEMENTS.get(texture.dtype)
    if element is None:
        yield "dtype", f"is none of {', '.join(ELEMENTS)}: {texture.dtype!r:.40}"
    elif is_surface and element.is_normalized:
        yield "dtype", f"a surface has integers as they are: {texture.dtype.replace('norm', 'int').replace('sint', 'int')}"
    if texture.channels not in CHANNELS:
        yield "channels", f"must be 1, 2 or 4, not {texture.channels}"
    elif element is not None and not shape and size_bytes is not None and texture.size_bytes != size_bytes:
        layers = f" x {texture.layers} layers" if texture.layers else ""
        described = f"{' x '.join(map(str, texture.extent))}{layers} x {texture.channels} x {element.size_bytes} bytes"
        yield "extent", f"{described} are {texture.size_bytes}, but the buffer has {size_bytes}"
    if is_surface:
        if (texture.address_mode, texture.filter_mode, texture.normalized_coordinates) != _AS_A_SURFACE:
            yield "", "is written, so it is a surface, which has no filter, no normalized coordinates and no address mode"
        return
    if texture.address_mode in (AddressMode.WRAP, AddressMode.MIRROR) and not texture.normalized_coordinates:
        yield "address_mode", f"{texture.address_mode.value} needs normalized_coordinates"
    if texture.filter_mode is FilterMode.LINEAR and element is not None and not element.is_float:
        yield "filter_mode", f"linear needs elements that are read as floats, such as unorm8, not {texture.dtype}"
    is_line = len(texture.extent) == 1 and not texture.layers
    if is_line and texture.filter_mode is FilterMode.LINEAR and texture.address_mode is AddressMode.BORDER:
        # Seen on an H200: they mix the border in across the line too, and give half of what it holds.
        yield "address_mode", "GPUs filter no line with a border: give it two dimensions, the second one 1, or layers"


_AS_A_SURFACE = (AddressMode.CLAMP, FilterMode.POINT, False)


def _shape_problems(texture: Texture, is_surface: bool) -> Iterator[tuple[str, str]]:
    extent, dimensions = texture.extent, len(texture.extent)
    if not 1 <= dimensions <= 3:
        yield "extent", f"must have one to three numbers, not {dimensions}"
        return
    limits: tuple[int, ...] = MAX_TEXTURE_EXTENT[dimensions]
    if texture.layers:
        limits = (MAX_LAYERED_EXTENT,) * dimensions
    elif is_surface and dimensions == 1:
        limits = (MAX_SURFACE_LINE,)
    for axis, (number, limit) in enumerate(zip(extent, limits, strict=True)):
        if not 1 <= number <= limit:
            yield f"extent[{axis}]", f"must be 1 to {limit}, not {number}"
    if texture.layers and dimensions == 3:
        yield "layers", "a texture of three dimensions has none"
    if not 0 <= texture.layers <= MAX_LAYERS:
        yield "layers", f"must be 0 to {MAX_LAYERS}, not {texture.layers}"
