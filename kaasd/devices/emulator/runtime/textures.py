"""The textures and surfaces of a launch: their handles, and what native code reads of them. Texels are bytes of buffers."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from itertools import count
from typing import Any

from kaas_core.texture import ELEMENTS, AddressMode, FilterMode
from kaasd.devices.base import Launch, TextureRef
from kaasd.devices.emulator.codegen.structures import (
    OFFSET_BITS,
    TEXTURE,
    Segment,
    TextureAddress,
    TextureElement,
    TextureGeometry,
)
from kaasd.devices.emulator.runtime.address_space import Allocation

_ADDRESSES = {
    AddressMode.WRAP: TextureAddress.WRAP,
    AddressMode.MIRROR: TextureAddress.MIRROR,
    AddressMode.CLAMP: TextureAddress.CLAMP,
    AddressMode.BORDER: TextureAddress.BORDER,
}


def texture_handles() -> Iterator[bytes]:
    """Yield the handle of each texture or surface among the arguments of a launch."""
    return (((Segment.TEXTURE << OFFSET_BITS) + number).to_bytes(8, "little") for number in count())


def describe_textures(launch: Launch) -> ctypes.Array[Any]:
    """Return the description of each, in the order of their handles."""
    described = [_describe(argument) for argument in launch.arguments if isinstance(argument, TextureRef)]
    array: ctypes.Array[Any] = (TEXTURE.ctype * len(described))(*described)
    return array


def _describe(argument: TextureRef) -> Any:
    buffer, texture = argument.reference.buffer, argument.texture
    if not isinstance(buffer, Allocation):
        raise TypeError(f"buffer {argument.reference.name} belongs to another device")
    if buffer.size_bytes != texture.size_bytes:
        raise ValueError(f"texture {argument.reference.name} has {texture.size_bytes} bytes, not {buffer.size_bytes}")
    width, height, depth = (*texture.extent, 1, 1)[:3]
    dimensions = len(texture.extent)
    return TEXTURE.ctype(
        base=buffer.host_address,
        width=width,
        height=height,
        depth=depth,
        layers=texture.layers,
        slices=texture.layers or depth,
        dimensions=dimensions,
        geometry=TextureGeometry(dimensions + (TextureGeometry.THREE if texture.layers else 0)),
        element=TextureElement[texture.dtype.upper()],
        element_bytes=ELEMENTS[texture.dtype].size_bytes,
        channels=texture.channels,
        texel_bytes=texture.texel_bytes,
        address=_ADDRESSES[texture.address_mode],
        is_linear=texture.filter_mode is FilterMode.LINEAR,
        is_normalized=texture.normalized_coordinates,
        is_surface=argument.is_surface,
    )
