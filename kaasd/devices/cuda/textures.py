"""Textures and surfaces of a run: CUDA arrays with an object each, and the copies between them and the buffers that they show.

What stands in a buffer before a launch is copied to the array, and what a surface holds behind it is copied back. So a buffer is
a texture for one launch, and plain memory for another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TypeAlias

from cuda.bindings import driver

from kaas_core.request import Access
from kaas_core.texture import ELEMENTS, AddressMode, FilterMode, Texture
from kaasd.devices.base import Launch, TextureRef, undone_on_failure
from kaasd.devices.cuda.buffers import CudaBuffer
from kaasd.devices.cuda.context import CudaContext
from kaasd.devices.cuda.driver import check

Key: TypeAlias = tuple[str, Texture, bool]
"""The buffer's name, how it is seen, and whether as a surface."""

_LAYERED, _SURFACE, _GATHER = 1, 2, 8
"""CUDA_ARRAY3D_LAYERED, _SURFACE_LDST and _TEXTURE_GATHER: macros, which the bindings do not have."""
_READ_AS_INTEGER, _NORMALIZED = 1, 2
"""CU_TRSF_READ_AS_INTEGER, CU_TRSF_NORMALIZED_COORDINATES."""
_MOST_GATHERED = 32_768
"""Extent of a texture that ``tld4`` reads."""
_FORMATS: Mapping[str, Any] = {
    "uint8": driver.CUarray_format.CU_AD_FORMAT_UNSIGNED_INT8,
    "uint16": driver.CUarray_format.CU_AD_FORMAT_UNSIGNED_INT16,
    "uint32": driver.CUarray_format.CU_AD_FORMAT_UNSIGNED_INT32,
    "int8": driver.CUarray_format.CU_AD_FORMAT_SIGNED_INT8,
    "int16": driver.CUarray_format.CU_AD_FORMAT_SIGNED_INT16,
    "int32": driver.CUarray_format.CU_AD_FORMAT_SIGNED_INT32,
    "float16": driver.CUarray_format.CU_AD_FORMAT_HALF,
    "float32": driver.CUarray_format.CU_AD_FORMAT_FLOAT,
    "unorm8": driver.CUarray_format.CU_AD_FORMAT_UNSIGNED_INT8,
    "unorm16": driver.CUarray_format.CU_AD_FORMAT_UNSIGNED_INT16,
    "snorm8": driver.CUarray_format.CU_AD_FORMAT_SIGNED_INT8,
    "snorm16": driver.CUarray_format.CU_AD_FORMAT_SIGNED_INT16,
}
_ADDRESS_MODES: Mapping[AddressMode, Any] = {
    AddressMode.WRAP: driver.CUaddress_mode.CU_TR_ADDRESS_MODE_WRAP,
    AddressMode.CLAMP: driver.CUaddress_mode.CU_TR_ADDRESS_MODE_CLAMP,
    AddressMode.MIRROR: driver.CUaddress_mode.CU_TR_ADDRESS_MODE_MIRROR,
    AddressMode.BORDER: driver.CUaddress_mode.CU_TR_ADDRESS_MODE_BORDER,
}
_FILTER_MODES: Mapping[FilterMode, Any] = {
    FilterMode.POINT: driver.CUfilter_mode.CU_TR_FILTER_MODE_POINT,
    FilterMode.LINEAR: driver.CUfilter_mode.CU_TR_FILTER_MODE_LINEAR,
}


class ArrayCopy:
    """A copy of a whole array from or to a buffer, to go into a stream or a graph any number of times."""

    def __init__(self, array: Any, texture: Texture, buffer: CudaBuffer, *, to_buffer: bool) -> None:
        width, height, depth = (*texture.extent, 1, 1)[:3]
        self._parameters = parameters = driver.CUDA_MEMCPY3D()
        self._to_buffer = to_buffer
        pitch = width * texture.texel_bytes
        if to_buffer:
            parameters.srcMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_ARRAY
            parameters.srcArray = array
            parameters.dstMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
            parameters.dstPitch, parameters.dstHeight = pitch, height
        else:
            parameters.srcMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
            parameters.srcPitch, parameters.srcHeight = pitch, height
            parameters.dstMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_ARRAY
            parameters.dstArray = array
        parameters.WidthInBytes, parameters.Height, parameters.Depth = pitch, height, texture.layers or depth
        self.set_buffer(buffer)

    def set_buffer(self, buffer: CudaBuffer) -> None:
        """Copy from or to this buffer from now on."""
        if self._to_buffer:
            self._parameters.dstDevice = driver.CUdeviceptr(buffer.address)
        else:
            self._parameters.srcDevice = driver.CUdeviceptr(buffer.address)

    def enqueue(self, stream: Any) -> None:
        """Put the copy into a stream. Raises ``CudaError``."""
        check(driver.cuMemcpy3DAsync, self._parameters, stream)

    def add_to(self, graph: Any, before: Sequence[Any]) -> Any:
        """Add the copy to a graph behind some nodes; return its node. Raises ``CudaError``."""
        context = check(driver.cuCtxGetCurrent)
        return check(driver.cuGraphAddMemcpyNode, graph, before, len(before), self._parameters, context)


class _Bound:
    """An array that shows a buffer, with its object."""

    def __init__(self, argument: TextureRef, context: CudaContext) -> None:
        """Raises as ``CudaContext.check``."""
        texture, buffer = argument.texture, argument.reference.buffer
        assert isinstance(buffer, CudaBuffer)
        self.address = buffer.address
        with undone_on_failure() as undo:
            array = context.check(driver.cuArray3DCreate, _description(texture, is_surface=argument.is_surface))
            undo.callback(context.release, driver.cuArrayDestroy, array)
            resource = driver.CUDA_RESOURCE_DESC()
            resource.resType = driver.CUresourcetype.CU_RESOURCE_TYPE_ARRAY
            resource.res.array.hArray = array
            if argument.is_surface:
                handle = context.check(driver.cuSurfObjectCreate, resource)
                undo.callback(context.release, driver.cuSurfObjectDestroy, handle)
            else:
                handle = context.check(driver.cuTexObjectCreate, resource, _reading(texture), None)
                undo.callback(context.release, driver.cuTexObjectDestroy, handle)
            self.handle = int(handle).to_bytes(8, "little")
            self.load = ArrayCopy(array, texture, buffer, to_buffer=False)
            self.store = ArrayCopy(array, texture, buffer, to_buffer=True) if argument.is_surface else None
        self._undo = undo

    def set_buffer(self, buffer: CudaBuffer) -> bool:
        """Show another buffer from now on; return whether it is another."""
        if buffer.address == self.address:
            return False
        self.address = buffer.address
        self.load.set_buffer(buffer)
        if self.store is not None:
            self.store.set_buffer(buffer)
        return True

    def close(self) -> None:
        """Free it. Idempotent."""
        self._undo.close()


class RunTextures:
    """All textures and surfaces of a run's launches."""

    def __init__(self, launches: Sequence[Launch], context: CudaContext) -> None:
        """Raises as ``CudaContext.check``."""
        written = {use.name for launch in launches for use in launch.references if use.access is not Access.INPUT}
        self._bound: dict[Key, _Bound] = {}
        with undone_on_failure() as undo:
            for argument in _textures(launches):
                key = _key(argument)
                if key not in self._bound:
                    self._bound[key] = bound = _Bound(argument, context)
                    undo.callback(bound.close)
        self._undo: ExitStack = undo
        self.first = [bound.load for (name, *_), bound in self._bound.items() if name not in written]
        """The copies that are made once, before all launches: of what none of them writes."""

    def handle(self, argument: TextureRef) -> bytes:
        """Return what the kernel gets."""
        return self._bound[_key(argument)].handle

    def before(self, launch: Launch) -> list[ArrayCopy]:
        """Return the copies to be made just before a launch."""
        copies = (self._bound[_key(argument)].load for argument in _textures([launch]))
        return [copy for copy in dict.fromkeys(copies) if copy not in self.first]

    def behind(self, launch: Launch) -> list[ArrayCopy]:
        """Return the copies to be made just behind it."""
        copies = (self._bound[_key(argument)].store for argument in _textures([launch]))
        return [copy for copy in copies if copy is not None]

    def update(self, launches: Sequence[Launch]) -> bool:
        """Show the buffers of other launches of the same kind; return whether these are others."""
        changed = False
        for argument in _textures(launches):
            assert isinstance(argument.reference.buffer, CudaBuffer)
            changed |= self._bound[_key(argument)].set_buffer(argument.reference.buffer)
        return changed

    def close(self) -> None:
        """Free all. Idempotent."""
        self._undo.close()


def _textures(launches: Iterable[Launch]) -> Iterable[TextureRef]:
    return (argument for launch in launches for argument in launch.arguments if isinstance(argument, TextureRef))


def _key(argument: TextureRef) -> Key:
    return argument.reference.name, argument.texture, argument.is_surface


def _description(texture: Texture, *, is_surface: bool) -> Any:
    description = driver.CUDA_ARRAY3D_DESCRIPTOR()
    width, height, depth = (*texture.extent, 0, 0)[:3]
    description.Width, description.Height, description.Depth = width, height, texture.layers or depth
    description.Format = _FORMATS[texture.dtype]
    description.NumChannels = texture.channels
    description.Flags = (_LAYERED if texture.layers else 0) | (_SURFACE if is_surface else 0)
    if not is_surface and not texture.layers and len(texture.extent) == 2 and max(texture.extent) <= _MOST_GATHERED:
        description.Flags |= _GATHER
    return description


def _reading(texture: Texture) -> Any:
    description = driver.CUDA_TEXTURE_DESC()
    description.addressMode = [_ADDRESS_MODES[texture.address_mode]] * 3
    description.filterMode = _FILTER_MODES[texture.filter_mode]
    element = ELEMENTS[texture.dtype]
    description.flags = (0 if element.is_float else _READ_AS_INTEGER) | (_NORMALIZED if texture.normalized_coordinates else 0)
    return description
