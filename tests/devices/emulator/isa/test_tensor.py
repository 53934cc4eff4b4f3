"""Matrix products of a warp against NumPy."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tests.devices.emulator.fragments import a_places, b_places, bf16_of, c_places, pack, registers, sizes, warp
from tests.devices.emulator.numbers import F64, round_fraction
from tests.devices.emulator.runner import Array

RNG = np.random.default_rng(12)

FLOATS = [  # shape, PTX type of A and B, bits
    ("m16n8k8", "f16", 16), ("m16n8k16", "f16", 16), ("m16n8k8", "bf16", 16), ("m16n8k16", "bf16", 16),
    ("m16n8k4", "tf32", 32), ("m16n8k8", "tf32", 32),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "ptx", "bits"), FLOATS)
def test_mma_floats(shape: str, ptx: str, bits: int) -> None:
    m, n, k = sizes(shape)
    a, b, c = RNG.integers(-8, 9, (m, k)) / 4, RNG.integers(-8, 9, (k, n)) / 4, RNG.standard_normal((m, n)).astype("f4")
    encode = {"f16": lambda v: v.astype("f2").view("u2"), "bf16": bf16_of, "tf32": lambda v: v.astype("f4").view("u4")}[ptx]
    inputs = [
        pack(encode(a[a_places(m, k, 32 // bits)]), bits),
        pack(encode(b[b_places(k, 32 // bits)]), bits),
        np.ascontiguousarray(c[c_places(m)]),
    ]
    counts = [x.reshape(32, -1).shape[1] for x in inputs]
    names = [registers("x", sum(counts[:i]), count) for i, count in enumerate(counts)]
    code = f"mma.sync.aligned.{shape}.row.col.f32.{ptx}.{ptx}.f32 {registers('y', 0, 4)}, {', '.join(names)};"
    actual = warp(code, 4, inputs).view("f4")
    np.testing.assert_array_equal(actual, (a @ b + c)[c_places(m)].astype("f4"))  # those products are exact


def test_mma_half_results() -> None:
    a, b, c = RNG.integers(-8, 9, (16, 16)) / 4, RNG.integers(-8, 9, (16, 8)) / 4, RNG.integers(-8, 9, (16, 8)) / 4
    halves = [pack(v.astype("f2").view("u2"), 16) for v in (a[a_places(16, 16, 2)], b[b_places(16, 2)], c[c_places(16)])]
    code = "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%y0, %y1}, {%x0, %x1, %x2, %x3}, {%x4, %x5}, {%x6, %x7};"
    expected = pack((a @ b + c)[c_places(16)].astype("f2").view("u2"), 16)
    np.testing.assert_array_equal(warp(code, 2, halves), expected)


@pytest.mark.parametrize("shape", ["m8n8k4", "m16n8k4", "m16n8k8", "m16n8k16"])
def test_mma_doubles(shape: str) -> None:
    m, n, k = sizes(shape)
    a, b, c = (RNG.integers(-99, 100, s).astype("f8") for s in ((m, k), (k, n), (m, n)))
    inputs = [np.ascontiguousarray(v) for v in (a[a_places(m, k, 1)], b[b_places(k, 1)], c[c_places(m)])]
    counts = [x.shape[1] for x in inputs]
    names = [registers("x", sum(counts[:i]), count) for i, count in enumerate(counts)]
    code = f"mma.sync.aligned.{shape}.row.col.f64.f64.f64.f64 {registers('y', 0, counts[2])}, {', '.join(names)};"
    np.testing.assert_array_equal(warp(code, counts[2], inputs, wide=True).view("f8"), (a @ b + c)[c_places(m)])


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_mma_doubles_rounded(mode: str) -> None:
    a, b, c = (RNG.standard_normal(s) for s in ((8, 4), (4, 8), (8, 8)))
    b[1:] = 0  # so that there is one product to round, and no order of sums
    inputs = [np.ascontiguousarray(v) for v in (a[a_places(8, 4, 1)], b[b_places(4, 1)], c[c_places(8)])]
    code = f"mma.sync.aligned.m8n8k4.row.col.{mode}.f64.f64.f64.f64 {{%y0, %y1}}, {{%x0}}, {{%x1}}, {{%x2, %x3}};"
    exact = [[Fraction(a[i, 0]) * Fraction(b[0, j]) + Fraction(c[i, j]) for j in range(8)] for i in range(8)]
    expected = np.array([[round_fraction(value, F64, mode) for value in row] for row in exact])
    np.testing.assert_array_equal(warp(code, 2, inputs, wide=True).view("f8"), expected[c_places(8)])


INTEGERS = [
    (shape, a, b)
    for shapes, kinds in (("m8n8k16 m16n8k16 m16n8k32", ("u8", "s8")), ("m8n8k32 m16n8k32 m16n8k64", ("u4", "s4")))
    for shape in shapes.split()
    for a in kinds
    for b in kinds
]


@pytest.mark.parametrize(("shape", "a_type", "b_type"), INTEGERS)
def test_mma_integers(shape: str, a_type: str, b_type: str) -> None:
    m, n, k = sizes(shape)
    bits = int(a_type[1:])

    def matrix(kind: str, size: tuple[int, int]) -> Array:
        return RNG.integers(-(2 ** (bits - 1)) if kind[0] == "s" else 0, 2 ** (bits - (kind[0] == "s")), size)

    a, b, c = matrix(a_type, (m, k)), matrix(b_type, (k, n)), RNG.integers(-(2**31), 2**31, (m, n))
    inputs = [
        pack(a[a_places(m, k, 32 // bits)] & (2**bits - 1), bits),
        pack(b[b_places(k, 32 // bits)] & (2**bits - 1), bits),
        np.ascontiguousarray(c[c_places(m)].astype("i4").view("u4")),
    ]
    counts = [x.shape[1] for x in inputs]
    names = [registers("x", sum(counts[:i]), count) for i, count in enumerate(counts)]
    for modifier in ("", ".satfinite"):
        types = f"s32.{a_type}.{b_type}.s32"
        code = f"mma.sync.aligned.{shape}.row.col{modifier}.{types} {registers('y', 0, counts[2])}, {', '.join(names)};"
        total = a @ b + c
        expected = np.clip(total, -(2**31), 2**31 - 1) if modifier else total
        actual = warp(code, counts[2], inputs)
        np.testing.assert_array_equal(actual, expected[c_places(m)].astype("u8").astype("u4"))


@pytest.mark.parametrize("combine", ["xor", "and"])
@pytest.mark.parametrize("shape", ["m8n8k128", "m16n8k128", "m16n8k256"])
def test_mma_bits(shape: str, combine: str) -> None:
    m, n, k = sizes(shape)
    a, b, c = RNG.integers(0, 2, (m, k)), RNG.integers(0, 2, (k, n)), RNG.integers(0, 100, (m, n))
    inputs = [pack(a[a_places(m, k, 32)], 1), pack(b[b_places(k, 32)], 1), np.ascontiguousarray(c[c_places(m)].astype("u4"))]
    counts = [x.shape[1] for x in inputs]
    names = [registers("x", sum(counts[:i]), count) for i, count in enumerate(counts)]
    code = f"mma.sync.aligned.{shape}.row.col.s32.b1.b1.s32.{combine}.popc {registers('y', 0, counts[2])}, {', '.join(names)};"
    pairs = a[:, :, None] & b[None] if combine == "and" else a[:, :, None] ^ b[None]
    np.testing.assert_array_equal(warp(code, counts[2], inputs), (pairs.sum(axis=1) + c)[c_places(m)])


@pytest.mark.parametrize("result", ["f16", "f32"])
@pytest.mark.parametrize("ptx", ["e4m3", "e5m2"])
def test_mma_fp8(ptx: str, result: str) -> None:
    one = {"e4m3": 0x38, "e5m2": 0x3C}[ptx]
    step = {"e4m3": 8, "e5m2": 4}[ptx]  # patterns this far apart differ by a factor of two
    powers_a, powers_b = RNG.integers(-2, 3, (16, 32)), RNG.integers(-2, 3, (32, 8))
    a, b = pack((one + step * powers_a)[a_places(16, 32, 4)], 8), pack((one + step * powers_b)[b_places(32, 4)], 8)
    dtype, size = ("f2", 2) if result == "f16" else ("f4", 4)
    inputs = [a, b, np.zeros((32, size), "u4")]
    code = f"mma.sync.aligned.m16n8k32.row.col.{result}.{ptx}.{ptx}.{result} {registers('y', 0, size)}, "
    code += f"{registers('x', 0, 4)}, {registers('x', 4, 2)}, {registers('x', 6, size)};"
    expected = (2.0**powers_a @ 2.0**powers_b)[c_places(16)].astype(dtype)
    np.testing.assert_array_equal(warp(code, size, inputs).view(dtype), expected)
