"""Matrix operations of four warps (``wgmma``) on every device that has them: kinds of numbers, and how factors lie in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from kaasd.devices.base import Device, Module
from tests.conformance.launching import Call, inout, inp, launch, u32, u64

PTX = Path(__file__).parent / "data/warpgroup.ptx"
ROWS = COLUMNS = 64
IMAGE = 8192
"""Bytes of shared memory for each factor."""
MODES = {1: 0, 8: 1, 4: 2, 2: 3}
"""In a descriptor, by how many chunks of 16 bytes are swizzled."""
Array = np.ndarray[Any, Any]
Kind = Any
"""Whatever NumPy takes for a dtype."""


@pytest.fixture(scope="module")
def module(device: Device) -> Iterator[Module]:
    with closing(device.load(PTX.read_bytes())) as loaded:
        yield loaded


def image(matrix: Array, chunks: int, transposed: bool) -> tuple[Array, int]:
    """Return shared memory that holds a factor, its rows by depth, in the canonical layouts of CUTLASS, and its descriptor."""
    rows, depth = matrix.shape
    width = matrix.itemsize
    unit = 16 // width
    memory = np.zeros(IMAGE, np.uint8)
    pitch = 16 * chunks
    leading, stride = (128, 256) if chunks == 1 and not transposed else (2048, 8 * pitch)
    if chunks == 1 and transposed:  # cores of 8 by 8, those along the depth first
        leading, stride = 128, 256
    for r in range(rows):
        for k in range(depth):
            if transposed:
                chunk, within = divmod(r, unit)
                outer, chunk = divmod(chunk, chunks)
                steps = (stride, leading) if chunks == 1 else (leading, stride)
                at = outer * steps[0] + k % 8 * pitch + k // 8 * steps[1] + chunk * 16 + within * width
            else:
                chunk, within = divmod(k * width, 16)
                at = r // 8 * stride + r % 8 * pitch + chunk * (leading if chunks == 1 else 16) + within
            at ^= (at >> 7) % chunks << 4  # both start at multiples of 1024
            memory[at : at + width] = np.frombuffer(matrix[r, k].tobytes(), np.uint8)
    return memory, MODES[chunks] << 62 | stride >> 4 << 32 | leading >> 4 << 16


def of_threads(matrix: Array) -> Array:
    """Return what each of 128 threads has of the result: pairs of neighbours of two rows, in each eight columns."""
    thread, number = np.indices((128, 32))
    row = 16 * (thread // 32) + thread % 32 // 4 + 8 * (number // 2 % 2)
    return np.asarray(matrix[row, 8 * (number // 4) + thread % 4 * 2 + number % 2])


def run(
    device: Device, module: Module, kernel: str, left: tuple[Array, int], right: tuple[Array, int], addend: Array, adds: bool
) -> Array:
    call = Call(kernel, 1, 128, [inp("a"), inp("b"), u64(left[1]), u64(right[1]), u32(adds), inout("d")])
    return launch(device, module, [call], {"a": left[0], "b": right[0], "d": addend})["d"]


def whole_numbers(seed: int, shape: tuple[int, int], kind: Kind, low: int = -4) -> Array:
    return np.asarray(np.random.default_rng(seed).integers(low, 5, shape).astype(kind))


@pytest.mark.parametrize("adds", [True, False], ids=["adds", "replaces"])
@pytest.mark.parametrize(
    ("kernel", "kinds", "depth", "sign"),
    [
        ("halfKern00", ("f2", "f2"), 16, 1),
        ("negatedKern", ("f2", "f2"), 16, -1),
        ("bfloatKern", (ml_dtypes.bfloat16, ml_dtypes.bfloat16), 16, -1),
        ("tf32Kern", ("f4", "f4"), 8, 1),
        ("fp8Kern", (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2), 32, 1),
        ("byteKern", ("i1", "u1"), 32, 1),
    ],
)
def test_kinds(device: Device, module: Module, kernel: str, kinds: tuple[Kind, Kind], depth: int, sign: int, adds: bool) -> None:
    a, b = whole_numbers(1, (ROWS, depth), kinds[0]), whole_numbers(2, (COLUMNS, depth), kinds[1], 0)
    kind = "i4" if kernel == "byteKern" else "f4"
    c = whole_numbers(3, (ROWS, COLUMNS), kind)
    expected = sign * (a.astype(kind) @ b.astype(kind).T) + (c if adds else 0)
    d = run(device, module, kernel, image(a, 8, False), image(b, 2, False), of_threads(c), adds)
    np.testing.assert_array_equal(d, of_threads(expected))


@pytest.mark.parametrize("left", [1, 2, 4, 8])
@pytest.mark.parametrize("right", [1, 2, 4, 8])
@pytest.mark.parametrize("transposed", [(False, False), (False, True), (True, False), (True, True)])
def test_layouts(device: Device, module: Module, left: int, right: int, transposed: tuple[bool, bool]) -> None:
    a, b = whole_numbers(left, (ROWS, 16), "f2"), whole_numbers(right + 10, (COLUMNS, 16), "f2")
    images = image(a, left, transposed[0]), image(b, right, transposed[1])
    kernel = "halfKern{:d}{:d}".format(*transposed)
    d = run(device, module, kernel, *images, np.zeros((128, 32), "f4"), False)
    np.testing.assert_array_equal(d, of_threads(a.astype("f4") @ b.astype("f4").T))


def test_sums_in_half_precision(device: Device, module: Module) -> None:
    a, b = whole_numbers(1, (ROWS, 16), "f2"), whole_numbers(2, (COLUMNS, 16), "f2")
    c = whole_numbers(3, (ROWS, COLUMNS), "f2")
    packed = of_threads(c).view("u4")
    d = run(device, module, "narrowKern", image(a, 4, False), image(b, 4, False), np.ascontiguousarray(packed), True)
    np.testing.assert_array_equal(d.view("f2"), of_threads(a @ b.T + c))


def test_a_factor_in_registers(device: Device, module: Module) -> None:
    a, b = whole_numbers(1, (ROWS, 16), "f2"), whole_numbers(2, (COLUMNS, 16), "f2")
    thread, number = np.indices((128, 8))
    row = 16 * (thread // 32) + thread % 32 // 4 + 8 * (number // 2 % 2)
    held = np.zeros(IMAGE, np.uint8)
    held[: 128 * 16] = np.ascontiguousarray(a[row, number // 4 * 8 + thread % 4 * 2 + number % 2]).view(np.uint8).reshape(-1)
    d = run(device, module, "registersKern", (held, 0), image(b, 8, False), np.ones((128, 32), "f4"), True)
    np.testing.assert_array_equal(d, of_threads(1 - a.astype("f4") @ b.astype("f4").T))


def test_integers_stop_at_their_limits(device: Device, module: Module) -> None:
    a, b = np.full((ROWS, 32), 100, "i1"), np.full((COLUMNS, 32), 100, "i1")
    b[1::2] = -100
    c = np.where(np.arange(COLUMNS) % 2, -(2**31) + 5, 2**31 - 5).astype("i4") * np.ones((ROWS, 1), "i4")
    d = run(device, module, "saturatedKern", image(a, 1, False), image(b, 1, False), of_threads(c), True)
    expected = np.where(np.arange(COLUMNS) % 2, -(2**31), 2**31 - 1) * np.ones((ROWS, 1), "i8")
    np.testing.assert_array_equal(d, of_threads(expected.astype("i4")))
