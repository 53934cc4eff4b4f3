"""Fragments of matrices as the threads of a warp hold them: where the manual's figures put the elements, and runs of one warp."""

from __future__ import annotations

import numpy as np

from kaasd.devices.emulator.runtime.device import EmulatedDevice
from tests.devices.emulator.runner import Array, array_of, buffer_of, kernel, launch, read_write, run_launches

LANES = np.arange(32)


def warp(code: str, results: int, inputs: list[Array], wide: bool = False) -> Array:
    """Run code in one warp; inputs are arrays of (lane, register). Returns an array of (lane, register)."""
    kinds, width = ("u8", "b64") if wide else ("u4", "b32")
    rows = np.concatenate([x.reshape(32, -1).view(kinds) for x in inputs], axis=1)
    size = rows.dtype.itemsize
    body = f".reg .{width} %x<{rows.shape[1]}>, %y<{results}>; .reg .b64 %out; ld.param.u64 %out, [p1];\n"
    body += f"mad.wide.u32 %at, %i, {rows.shape[1] * size}, %p0;\n"
    body += "\n".join(f"ld.global.{width} %x{i}, [%at+{i * size}];" for i in range(rows.shape[1])) + "\n" + code
    body += f"\nmad.wide.u32 %at, %i, {results * size}, %out;\n"
    body += "\n".join(f"st.global.{width} [%at+{i * size}], %y{i};" for i in range(results))
    device = EmulatedDevice()
    module = device.load(kernel(body, ".param .u64 p0, .param .u64 p1"))
    data, out = buffer_of(device, np.ascontiguousarray(rows)), buffer_of(device, np.zeros((32, results), kinds))
    run_launches(device, [launch(module, "k", (1, 1, 1), (32, 1, 1), read_write("in", data), read_write("out", out))])
    result = array_of(out, kinds).reshape(32, results)
    device.close()
    return result


def registers(name: str, start: int, count: int) -> str:
    return "{" + ", ".join(f"%{name}{start + i}" for i in range(count)) + "}"


def pack(elements: Array, bits: int) -> Array:
    """Pack arrays of (lane, element) into words, lowest first. Elements are patterns."""
    per_word = 32 // bits
    grouped = elements.reshape(32, -1, per_word).astype("u8")
    shifts = np.arange(per_word, dtype="u8") * np.uint64(bits)
    return (grouped << shifts).sum(axis=2).astype("u4")


def a_places(rows: int, depth: int, per_register: int) -> tuple[Array, Array]:
    """Row and column of each element of A, as arrays of (lane, element): the manual's figures for m16 and m8 shapes."""
    count = rows * depth // 32
    i = np.arange(count)[None, :]
    lane = LANES[:, None]
    register, inside = i // per_register, i % per_register
    if rows == 16:
        row = lane // 4 + 8 * (register % 2)
        column = (lane % 4) * per_register + inside + 4 * per_register * (register // 2)
    else:
        row, column = lane // 4 + 0 * i, (lane % 4) * per_register + inside + 4 * per_register * register
    return row, column


def b_places(depth: int, per_register: int) -> tuple[Array, Array]:
    i = np.arange(depth * 8 // 32)[None, :]
    lane = LANES[:, None]
    row = (lane % 4) * per_register + i % per_register + 4 * per_register * (i // per_register)
    return row, lane // 4 + 0 * i


def c_places(rows: int) -> tuple[Array, Array]:
    i = np.arange(rows * 8 // 32)[None, :]
    lane = LANES[:, None]
    return lane // 4 + 8 * (i // 2), (lane % 4) * 2 + i % 2


def bf16_of(values: Array) -> Array:
    return (values.astype("f4").view("u4") >> np.uint32(16)).astype("u2")


def sizes(shape: str) -> tuple[int, int, int]:
    m, n, k = (int(v) for v in shape[1:].replace("n", " ").replace("k", " ").split())
    return m, n, k
