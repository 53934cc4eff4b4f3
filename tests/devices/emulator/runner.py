"""Runs a few lines of PTX over arrays: one thread for each element."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np

from kaas_core.request import Access, Dim3
from kaasd.devices.base import BufferRef, Launch
from kaasd.devices.emulator.runtime.address_space import Allocation
from kaasd.devices.emulator.runtime.device import EmulatedDevice
from kaasd.devices.emulator.runtime.module import EmulatedModule
from kaasd.request.device_checks import DeviceProperties

HEADER = ".version 9.5\n.target sm_90\n.address_size 64\n"
EVERYTHING = "sm_100f"
"""A target for which the emulated device has every instruction that it knows."""

Array = np.ndarray[Any, Any]


def buffer_of(device: EmulatedDevice, data: Array) -> Allocation:
    """Return a new buffer with an array's bytes."""
    buffer = device.allocate(data.nbytes)
    buffer.write(data.tobytes())
    return buffer


def array_of(buffer: Allocation, kind: Any) -> Array:
    """Return a buffer's content."""
    content = bytearray(buffer.size_bytes)
    buffer.read(content)
    return np.frombuffer(content, kind)


def read_write(name: str, buffer: Allocation) -> BufferRef:
    return BufferRef(name, buffer, Access.INOUT)


def load_all(device: EmulatedDevice, image: bytes) -> EmulatedModule:
    """Load a module, and have all its kernels read and lowered, as each is before its first launch."""
    module = device.load(image)
    for unit in device._translator._units(image):
        for name in unit.kernels:
            unit.lowered(name)
    return module


def launch(
    module: EmulatedModule, name: str, grid: Dim3, block: Dim3, *arguments: BufferRef | bytes | int, shared: int = 0
) -> Launch:
    """Return a launch; an int is passed as 32 bits."""
    packed = tuple(struct.pack("<I", a & 0xFFFFFFFF) if isinstance(a, int) else a for a in arguments)
    return Launch(module.kernels[name], grid, block, shared, packed)


def run_launches(device: EmulatedDevice, launches: Sequence[Launch], iterations: int = 1) -> str:
    """Run launches to the end, and return what device code printed."""
    with closing(device.prepare(launches, iterations)) as run:
        run.start()
    return run.printed


def device_for(target: str) -> EmulatedDevice:
    """Return a device that takes PTX for a target."""
    number = int(target.removeprefix("sm_").rstrip("af"))
    return EmulatedDevice(DeviceProperties("emulator", "a test's", 1 << 30, compute_capability=divmod(number, 10)))


def kernel(body: str, parameters: str = ".param .u64 p0", name: str = "k", before: str = "", target: str = "sm_90") -> bytes:
    """Return a module with one kernel that loads its 64-bit parameter ``p0`` into ``%p0`` and the thread's index into ``%i``."""
    head = (
        ".reg .b64 %p0, %at;\n.reg .b32 %i, %n;\n.reg .pred %q;\nld.param.u64 %p0, [p0];\n"
        "mov.u32 %i, %ctaid.x;\nmov.u32 %n, %ntid.x;\nmul.lo.u32 %i, %i, %n;\nmov.u32 %n, %tid.x;\nadd.u32 %i, %i, %n;\n"
    )
    return (
        f"{HEADER.replace('sm_90', target)}{before}\n.visible .entry {name}({parameters})\n{{\n{head}{body}\nret;\n}}\n".encode()
    )


def _register(kind: np.dtype[Any]) -> str:
    return "pred" if kind == np.bool_ else f"b{max(16, kind.itemsize * 8)}"


def evaluate(code: str, results: Any, *inputs: Array, block: int = 128, before: str = "", target: str = "sm_90") -> Any:
    """Run ``code`` with the inputs' elements in ``%a``, ``%b``, … and return what it leaves in ``%d`` (``%d0``, … for several).

    ``results`` is a dtype or a list of them; booleans travel as predicates. The number of elements is that of the first input.
    """
    kinds = [np.dtype(kind) for kind in (results if isinstance(results, list) else [results])]
    names = ["%d"] if not isinstance(results, list) else [f"%d{index}" for index in range(len(kinds))]
    count = len(inputs[0])
    places = [(f"%{letter}", data.dtype) for letter, data in zip("abcefgh", inputs, strict=False)]
    lines = [f".reg .{_register(kind)} {name};" for name, kind in [*places, *zip(names, kinds, strict=True)]]
    lines += [".reg .b64 %base;", ".reg .b16 %byte;", f"setp.ge.u32 %q, %i, {count};", "@%q ret;"]
    for index, (name, kind) in enumerate(places):
        lines += [f"ld.param.u64 %base, [p{index + 1}];", f"mad.wide.u32 %at, %i, {kind.itemsize}, %base;"]
        if kind == np.bool_:
            lines += ["ld.global.u8 %byte, [%at];", f"setp.ne.u16 {name}, %byte, 0;"]
        else:
            lines.append(f"ld.global.{'u8' if kind.itemsize == 1 else f'b{kind.itemsize * 8}'} {name}, [%at];")
    lines.append(code)
    for index, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        lines += [f"ld.param.u64 %base, [o{index}];", f"mad.wide.u32 %at, %i, {kind.itemsize}, %base;"]
        if kind == np.bool_:
            lines += [f"selp.u16 %byte, 1, 0, {name};", "st.global.u8 [%at], %byte;"]
        else:
            lines.append(f"st.global.{'u8' if kind.itemsize == 1 else f'b{kind.itemsize * 8}'} [%at], {name};")
    parameters = ["p0", *(f"p{index + 1}" for index in range(len(places))), *(f"o{index}" for index in range(len(kinds)))]
    text = kernel("\n".join(lines), ", ".join(f".param .u64 {name}" for name in parameters), before=before, target=target)
    device = device_for(target)
    try:
        module = device.load(text)
        outputs = [buffer_of(device, np.zeros(count, kind)) for kind in kinds]
        buffers = [buffer_of(device, np.zeros(1, "u8")), *(buffer_of(device, data) for data in inputs), *outputs]
        arguments = [read_write(name, buffer) for name, buffer in zip(parameters, buffers, strict=True)]
        grid = (-(-count // block), 1, 1)
        run_launches(device, [launch(module, "k", grid, (block, 1, 1), *arguments)])
        arrays = [array_of(buffer, kind) for buffer, kind in zip(outputs, kinds, strict=True)]
    finally:
        device.close()
    return arrays if isinstance(results, list) else arrays[0]


def cross(*values: Sequence[Any] | Array, kinds: Sequence[Any]) -> list[Array]:
    """Return every combination of the values, as one array for each position."""
    grids = np.meshgrid(*(np.arange(len(v)) for v in values), indexing="ij")
    return [np.asarray(v, kind)[grid.ravel()] for v, kind, grid in zip(values, kinds, grids, strict=True)]
