"""Running kernels on a device with NumPy arrays as buffers."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kaas_core.request import Access, Dim3
from kaas_core.texture import Texture
from kaasd.devices.base import BufferRef, Device, DeviceBuffer, Launch, Module, TextureRef

KERNELS = Path(__file__).parents[2] / "examples" / "kernels"
DATA = Path(__file__).parents[1] / "libraries" / "data"


def library(name: str) -> bytes:
    """Return the PTX of an example."""
    return (KERNELS / f"{name}.ptx").read_bytes()


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


@dataclass(frozen=True)
class Use:
    """A buffer as an argument."""

    buffer: str
    access: Access


def inp(buffer: str) -> Use:
    return Use(buffer, Access.INPUT)


def out(buffer: str) -> Use:
    return Use(buffer, Access.OUTPUT)


def inout(buffer: str) -> Use:
    return Use(buffer, Access.INOUT)


def tmp(buffer: str) -> Use:
    return Use(buffer, Access.TEMPORARY)


@dataclass(frozen=True)
class Seen:
    """A buffer as a texture, or as a surface where its use writes."""

    use: Use
    texture: Texture


@dataclass(frozen=True)
class Call:
    """One launch, its buffers by name."""

    kernel: str
    grid: Dim3 | int
    block: Dim3 | int
    arguments: Sequence[Use | Seen | bytes]
    shared_memory_bytes: int = 0


def execute(
    device: Device, code: bytes, calls: Sequence[Call], buffers: Mapping[str, np.ndarray], iterations: int = 1
) -> dict[str, np.ndarray]:
    """Load ``code`` and run ``calls`` with buffers that start as ``buffers``; return what they are afterwards."""
    with closing(device.load(code)) as module:
        return launch(device, module, calls, buffers, iterations)


def launch(
    device: Device,
    module: Module,
    calls: Sequence[Call],
    buffers: Mapping[str, np.ndarray],
    iterations: int = 1,
    printed: list[str] | None = None,
) -> dict[str, np.ndarray]:
    """As ``execute``, with a module that is loaded. What device code printed is added to ``printed``."""
    with ExitStack() as stack:
        on_device: dict[str, DeviceBuffer] = {}
        for name, content in buffers.items():
            on_device[name] = device.allocate(content.nbytes)
            stack.callback(on_device[name].close)
            on_device[name].write(memoryview(np.ascontiguousarray(content)).cast("B"))
        run = device.prepare(
            [
                Launch(
                    kernel=module.kernels[call.kernel],
                    grid=_dim3(call.grid),
                    block=_dim3(call.block),
                    shared_memory_bytes=call.shared_memory_bytes,
                    arguments=tuple(each if isinstance(each, bytes) else _reference(each, on_device) for each in call.arguments),
                )
                for call in calls
            ],
            iterations,
        )
        stack.callback(run.close)
        run.start()
        run.wait()
        run.done()
        if printed is not None:
            printed.append(run.printed)
        results: dict[str, np.ndarray] = {}
        for name, content in buffers.items():
            raw = bytearray(content.nbytes)
            on_device[name].read(raw)
            results[name] = np.frombuffer(raw, content.dtype).reshape(content.shape)
        return results


def _reference(argument: Use | Seen, buffers: Mapping[str, DeviceBuffer]) -> BufferRef | TextureRef:
    use = argument.use if isinstance(argument, Seen) else argument
    reference = BufferRef(use.buffer, buffers[use.buffer], use.access)
    return TextureRef(reference, argument.texture) if isinstance(argument, Seen) else reference


def _dim3(size: Dim3 | int) -> Dim3:
    return (size, 1, 1) if isinstance(size, int) else size
