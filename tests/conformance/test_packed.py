"""Structs by value with addresses of buffers in them, through the real daemon, on every device."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from kaas_client import Client, Kernel, Key, Packed, Request, inout, inp, out, packed, tmp, u32
from kaas_client.arguments import BufferSpec
from kaas_core.errors import InvalidRequestError, KernelFaultError

PTX = Path(__file__).parent / "data/packed.ptx"
ROWS, COLUMNS = 37, 200
"""Of at most 64 KiB, which travel with the launches; twice as many rows do not."""
VIEW = np.dtype([("data", "u8"), ("rows", "i4"), ("columns", "i4"), ("row_stride", "i8")], align=True)
SCALE = np.float32([2, 3, -1, 0.5])


class View(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("rows", ctypes.c_int), ("columns", ctypes.c_int), ("row_stride", ctypes.c_longlong)]


class Pair(ctypes.Structure):
    _fields_ = [("source", View), ("count", ctypes.c_void_p)]


@pytest.fixture(scope="module")
def library(kaas: Client) -> str:
    return kaas.upload(PTX)


def view(buffer: BufferSpec, rows: int = ROWS) -> Packed:
    """The bytes of the address itself do not matter."""
    return packed(np.array((0xDEAD, rows, COLUMNS, COLUMNS), VIEW)[()], {"data": buffer})


def affine(library: str, x: BufferSpec, y: BufferSpec, shift: int = 0, rows: int = ROWS) -> Kernel:
    arguments = [view(x, rows), packed(bytes([shift % 256, 0, 0])), packed(SCALE.tobytes()), view(y, rows)]
    return Kernel(library, "affineKern", grid=(2, rows), block=128, args=arguments)


def expected(x: np.ndarray, shift: int = 0) -> np.ndarray:
    shifted = np.full_like(x, SCALE[2])
    shifted[:, : COLUMNS - shift] = x[:, shift:]
    return SCALE[0] * shifted + SCALE[1] + SCALE[3]


def numbers(seed: int, rows: int = ROWS) -> np.ndarray:
    return np.random.default_rng(seed).integers(-9, 9, (rows, COLUMNS)).astype(np.float32)


@pytest.mark.parametrize("rows", [ROWS, 2 * ROWS + 20])
def test_views_of_stored_values(kaas: Client, library: str, rows: int) -> None:
    """Again and again, so that it is a graph too where there are any, with new contents and other keys."""
    size = rows * COLUMNS * 4
    request = Request([affine(library, inp("x", size), out("y", size), 3, rows)])
    function = kaas.register(f"affine{rows}", request)
    assert function.outputs == ("y",)
    for seed in range(5):
        x = numbers(seed, rows)
        kaas.put("x", x)
        kaas.submit(request)
        np.testing.assert_array_equal(kaas.get("y", dtype="f4").reshape(x.shape), expected(x, 3))
        given = function(x=x + 1).array("y", "f4").reshape(x.shape)
        np.testing.assert_array_equal(given, expected(x + 1, 3))
        kaas.put(f"x{seed}", x + 2)
        bound = function(x=Key(f"x{seed}"), y=Key(f"y{seed}")).array("y", "f4").reshape(x.shape)
        np.testing.assert_array_equal(bound, expected(x + 2, 3))
        np.testing.assert_array_equal(kaas.get(f"y{seed}", dtype="f4").reshape(x.shape), expected(x + 2, 3))


def test_a_chain_through_structs(kaas: Client, library: str) -> None:
    size = ROWS * COLUMNS * 4
    pair = Pair(View(None, ROWS, COLUMNS, COLUMNS), None)
    kernels = [
        affine(library, inp("x", size, ephemeral=True), tmp("y", size)),
        affine(library, inp("y"), inout("z", size, ephemeral=True)),
        Kernel(
            library,
            "countKern",
            block=32,
            args=[packed(pair, {"source.data": inp("z"), "count": inout("count", 8, ephemeral=True)})],
        ),
    ]
    x = numbers(1)
    twice = expected(expected(x))
    for start in range(4):
        inputs = {"x": x, "z": np.zeros_like(x), "count": np.uint64([start])}
        result = kaas.submit(Request(kernels), inputs=inputs, returns=["z", "count"])
        np.testing.assert_array_equal(result.array("z", "f4").reshape(x.shape), twice)
        assert result.array("count", "u8").tolist() == [start + np.count_nonzero(twice > 0)]


def test_more_than_4352_bytes_of_parameters(kaas: Client, library: str) -> None:
    values = np.arange(8000, dtype=np.uint32) ** 2
    table = packed(values.tobytes() + bytes(8), {32000: out("out", 32000, ephemeral=True)})
    request = Request([Kernel(library, "tableKern", grid=63, block=128, args=[u32(3), table])])
    for _ in range(3):
        np.testing.assert_array_equal(kaas.submit(request, returns=["out"]).array("out", "u4"), 3 * values[::-1])


def test_an_input_in_a_struct_is_not_written(kaas: Client, library: str, device_name: str) -> None:
    size = ROWS * COLUMNS * 4
    request = Request([affine(library, inp("kept", size), inp("written", size))])
    kaas.put("kept", numbers(2))
    kaas.put("written", numbers(3))
    if not device_name.startswith("cuda"):  # which does not see it
        with pytest.raises(KernelFaultError, match=r"offset \d+ of buffer 'written' of \d+ bytes: it is input only"):
            kaas.submit(request)
    np.testing.assert_array_equal(kaas.get("written", dtype="f4").reshape(ROWS, COLUMNS), numbers(3))


def test_a_fault_names_the_buffer_in_a_struct(kaas: Client, library: str, device_name: str) -> None:
    if device_name.startswith("cuda"):  # where a few bytes past the end are often another buffer's
        return
    size = ROWS * COLUMNS * 4
    with pytest.raises(KernelFaultError, match="4 bytes past its end") as caught:
        kaas.submit(
            Request([affine(library, inp("x", size - 4, ephemeral=True), tmp("y", size))]),
            inputs={"x": np.zeros(size - 4, np.uint8)},
        )
    assert "buffer 'x'" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "field", "text"),
    [
        ([packed(bytes(24))] * 3, "arguments", "takes 4 arguments, but 3 are given"),
        (
            [packed(bytes(24)), packed(bytes(4)), packed(bytes(16)), packed(bytes(24))],
            "arguments[1]",
            "takes 3 bytes here, but the packed argument has 4",
        ),
        (
            [packed(bytes(24)), packed(bytes(3)), packed(bytes(12)), packed(bytes(24))],
            "arguments[2]",
            "takes 16 bytes here, but the packed argument has 12",
        ),
    ],
)
def test_what_the_kernel_does_not_take(kaas: Client, library: str, arguments: list[Packed], field: str, text: str) -> None:
    with pytest.raises(InvalidRequestError, match=text) as caught:
        kaas.submit(Request([Kernel(library, "affineKern", args=arguments)]))
    assert [violation.field for violation in caught.value.violations] == [f"kernels[0].{field}"]


def test_inspection_tells_sizes_alignments_and_names(kaas: Client, library: str) -> None:
    kernels = {kernel.name: kernel for kernel in kaas.inspect(library).kernels}
    assert kernels["affineKern"].parameter_size_bytes == (24, 3, 16, 24)
    assert kernels["affineKern"].parameter_alignment_bytes == (8, 1, 16, 8)
    assert kernels["affineKern"].parameter_names == tuple(f"affineKern_param_{index}" for index in range(4))
    assert kernels["tableKern"].parameter_size_bytes == (4, 32008)
