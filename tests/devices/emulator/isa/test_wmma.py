"""``wmma``: load, multiply and store against NumPy."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from kaasd.devices.emulator.runtime.device import EmulatedDevice
from tests.devices.emulator.fragments import registers, sizes
from tests.devices.emulator.numbers import F64, round_fraction
from tests.devices.emulator.runner import Array, array_of, buffer_of, kernel, launch, read_write, run_launches

RNG = np.random.default_rng(12)

WMMA = [  # shape, PTX types of A and B and of C, registers of A, B, C, NumPy types
    ("m16n16k16", "f16", "f32", 8, 8, 8, "f2", "f4"), ("m32n8k16", "f16", "f32", 8, 8, 8, "f2", "f4"),
    ("m8n32k16", "f16", "f32", 8, 8, 8, "f2", "f4"), ("m16n16k16", "f16", "f16", 8, 8, 4, "f2", "f2"),
    ("m16n16k8", "tf32", "f32", 4, 4, 8, "f4", "f4"), ("m16n16k16", "s8", "s32", 2, 2, 8, "i1", "i4"),
    ("m32n8k16", "u8", "s32", 4, 1, 8, "u1", "i4"), ("m8n32k16", "s8", "s32", 1, 4, 8, "i1", "i4"),
    ("m8n8k4", "f64", "f64", 1, 1, 2, "f8", "f8"),
]  # fmt: skip


@pytest.mark.parametrize("layouts", ["row col row", "col row col"])
@pytest.mark.parametrize(("shape", "ptx", "ctype", "na", "nb", "nc", "kind", "ckind"), WMMA)
def test_wmma(shape: str, ptx: str, ctype: str, na: int, nb: int, nc: int, kind: str, ckind: str, layouts: str) -> None:
    m, n, k = sizes(shape)
    la, lb, lc = layouts.split()
    low = 0 if kind == "u1" else -5
    a, b, c = RNG.integers(low, 6, (m, k)), RNG.integers(low, 6, (k, n)), RNG.integers(-5, 6, (m, n))
    pad = 8  # rows (or columns) are further apart than they are long

    def stored(matrix: Array, layout: str, dtype: str) -> tuple[Array, int]:
        lines = matrix if layout == "row" else matrix.T
        out = np.zeros((lines.shape[0], lines.shape[1] + pad), dtype)
        out[:, : lines.shape[1]] = lines
        return out, lines.shape[1] + pad

    (ma, sa), (mb, sb), (mc, sc) = stored(a, la, kind), stored(b, lb, kind), stored(c, lc, ckind)
    width = "b64" if ptx == "f64" else "b32"
    names = {"a": registers("ra", 0, na), "b": registers("rb", 0, nb), "c": registers("rc", 0, nc)}
    types = f"{ctype}.{ctype}" if ptx == "f16" else f"{ctype}.{ptx}.{ptx}.{ctype}"
    if ptx == "f64" and lc == "row":
        types += ".rn"  # nvcc writes the rounding last
    body = f"""
    .reg .{width} %ra<{na}>, %rb<{nb}>, %rc<{nc}>; .reg .b64 %pa, %pb, %pc;
    ld.param.u64 %pa, [p0]; ld.param.u64 %pb, [p1]; ld.param.u64 %pc, [p2];
    wmma.load.a.sync.aligned.{la}.{shape}.global.{ptx} {names["a"]}, [%pa], {sa};
    wmma.load.b.sync.aligned.{lb}.{shape}.global.{ptx} {names["b"]}, [%pb], {sb};
    wmma.load.c.sync.aligned.{lc}.{shape}.global.{ctype} {names["c"]}, [%pc], {sc};
    wmma.mma.sync.aligned.{la}.{lb}.{shape}.{types} {names["c"]}, {names["a"]}, {names["b"]}, {names["c"]};
    wmma.store.d.sync.aligned.{lc}.{shape}.global.{ctype} [%pc], {names["c"]}, {sc};"""
    device = EmulatedDevice()
    module = device.load(kernel(body, ".param .u64 p0, .param .u64 p1, .param .u64 p2"))
    buffers = [buffer_of(device, v) for v in (ma, mb, mc)]
    run_launches(device, [launch(module, "k", (1, 1, 1), (32, 1, 1), *(read_write(str(i), v) for i, v in enumerate(buffers)))])
    result = array_of(buffers[2], ckind).reshape(mc.shape)
    expected, _ = stored(a @ b + c, lc, ckind)
    np.testing.assert_array_equal(result, expected)
    device.close()


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_doubles_rounded(mode: str) -> None:
    """Each element of the result is the first of A's row times the first of B's column, plus 1."""
    a, b = np.zeros((8, 4)), np.zeros((4, 8))
    a[:, 0], b[0] = RNG.standard_normal(8), RNG.standard_normal(8)
    result = _multiply("m8n8k4", "f64", f".{mode}.f64.f64.f64.f64", a, b, np.ones((8, 8)))
    exact = [[Fraction(x) * Fraction(y) + 1 for y in b[0]] for x in a[:, 0]]
    np.testing.assert_array_equal(result, [[round_fraction(value, F64, mode) for value in row] for row in exact])


def test_halves_made_finite() -> None:
    a, b = np.zeros((16, 16), "f2"), np.zeros((16, 16), "f2")
    a[:, 0], b[0] = np.linspace(-30000, 30000, 16), [3, *[1] * 13, np.inf, np.nan]
    result = _multiply("m16n16k16", "f16", ".f16.f16.satfinite", a, b, np.zeros((16, 16), "f2"))
    with np.errstate(invalid="ignore"):
        exact = a[:, :1].astype("f8") * b[0].astype("f8")
    expected = np.where(np.isnan(exact), 0, np.clip(exact, -65504, 65504)).astype("f2")
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("combine", ["xor", "and"])
def test_single_bits(combine: str) -> None:
    a, b, c = RNG.integers(0, 2, (8, 128)), RNG.integers(0, 2, (128, 8)), RNG.integers(0, 100, (8, 8)).astype("u4")
    lines = [np.packbits(bits.astype("u1"), axis=1, bitorder="little") for bits in (a, b.T)]
    body = f"""
    .reg .b32 %a, %b, %c<2>; .reg .b64 %pa, %pb, %pc; ld.param.u64 %pa, [p0]; ld.param.u64 %pb, [p1]; ld.param.u64 %pc, [p2];
    wmma.load.a.sync.aligned.row.m8n8k128.global.b1 {{%a}}, [%pa]; wmma.load.b.sync.aligned.col.m8n8k128.global.b1 {{%b}}, [%pb];
    wmma.load.c.sync.aligned.row.m8n8k128.global.s32 {{%c0, %c1}}, [%pc];
    wmma.mma.{combine}.popc.sync.aligned.row.col.m8n8k128.s32.b1.b1.s32 {{%c0, %c1}}, {{%a}}, {{%b}}, {{%c0, %c1}};
    wmma.store.d.sync.aligned.row.m8n8k128.global.s32 [%pc], {{%c0, %c1}};"""
    pairs = a[:, :, None] & b[None] if combine == "and" else a[:, :, None] ^ b[None]
    np.testing.assert_array_equal(_run(body, [*lines, c]), pairs.sum(axis=1) + c)


def _multiply(shape: str, kind: str, types: str, a: Array, b: Array, c: Array) -> Array:
    """Multiply matrices that lie row by row, of one type."""
    counts, width = ((1, 1, 2), "b64") if kind == "f64" else ((8, 8, 4), "b32")
    ra, rb, rc = (registers(f"r{name}", 0, count) for name, count in zip("abc", counts, strict=True))
    load, mma = f"sync.aligned.row.{shape}.global.{kind}", f"wmma.mma.sync.aligned.row.row.{shape}{types}"
    body = f"""
    .reg .{width} %ra<{counts[0]}>, %rb<{counts[1]}>, %rc<{counts[2]}>; .reg .b64 %pa, %pb, %pc;
    ld.param.u64 %pa, [p0]; ld.param.u64 %pb, [p1]; ld.param.u64 %pc, [p2];
    wmma.load.a.{load} {ra}, [%pa]; wmma.load.b.{load} {rb}, [%pb]; wmma.load.c.{load} {rc}, [%pc];
    {mma} {rc}, {ra}, {rb}, {rc}; wmma.store.d.{load} [%pc], {rc};"""
    return _run(body, [a, b, c])


def _run(body: str, matrices: list[Array]) -> Array:
    """Run one warp, and return the last matrix afterwards."""
    device = EmulatedDevice()
    module = device.load(kernel(body, ".param .u64 p0, .param .u64 p1, .param .u64 p2"))
    buffers = [buffer_of(device, matrix) for matrix in matrices]
    run_launches(device, [launch(module, "k", (1, 1, 1), (32, 1, 1), *(read_write(str(i), v) for i, v in enumerate(buffers)))])
    result = array_of(buffers[-1], matrices[-1].dtype).reshape(matrices[-1].shape)
    device.close()
    return result
