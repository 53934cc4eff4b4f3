"""Integer instructions against Python's integers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.devices.emulator.numbers import array, dtype_of, edge_integers, wrap
from tests.devices.emulator.runner import cross, evaluate

ALL = ["u16", "u32", "u64", "s16", "s32", "s64"]
SIGNED = ["s16", "s32", "s64"]


def bits_of(ptx: str) -> int:
    return int(ptx[1:])


def clamp(value: int, ptx: str) -> int:
    low, high = (-(2 ** (bits_of(ptx) - 1)), 2 ** (bits_of(ptx) - 1) - 1) if ptx[0] == "s" else (0, 2 ** bits_of(ptx) - 1)
    return min(max(value, low), high)


def quotient(a: int, b: int, ptx: str) -> int:
    if b == 0:
        return -1
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def remainder(a: int, b: int, ptx: str) -> int:
    return -1 if b == 0 else a - b * quotient(a, b, ptx)  # by zero: as recorded on an H100


def low24(value: int, ptx: str) -> int:
    value &= 0xFFFFFF
    return value - (1 << 24) if ptx[0] == "s" and value >> 23 else value


BINARY: dict[str, tuple[list[str], Callable[[int, int, str], int]]] = {
    "add": (ALL, lambda a, b, t: a + b),
    "sub": (ALL, lambda a, b, t: a - b),
    "add.sat": (["s32"], lambda a, b, t: clamp(a + b, t)),
    "sub.sat": (["s32"], lambda a, b, t: clamp(a - b, t)),
    "mul.lo": (ALL, lambda a, b, t: a * b),
    "mul.hi": (ALL, lambda a, b, t: (a * b) >> bits_of(t)),
    "mul24.lo": (["u32", "s32"], lambda a, b, t: low24(a, t) * low24(b, t)),
    "mul24.hi": (["u32", "s32"], lambda a, b, t: (low24(a, t) * low24(b, t)) >> 16),
    "div": (ALL, quotient),
    "rem": (ALL, remainder),
    "min": (ALL, lambda a, b, t: min(a, b)),
    "max": (ALL, lambda a, b, t: max(a, b)),
    "min.relu": (["s32"], lambda a, b, t: max(min(a, b), 0)),
    "max.relu": (["s32"], lambda a, b, t: max(a, b, 0)),
    "and": (["b16", "b32", "b64"], lambda a, b, t: a & b),
    "or": (["b16", "b32", "b64"], lambda a, b, t: a | b),
    "xor": (["b16", "b32", "b64"], lambda a, b, t: a ^ b),
}


@pytest.mark.parametrize(("opcode", "ptx"), [(opcode, ptx) for opcode, (types, _) in BINARY.items() for ptx in types])
def test_binary(opcode: str, ptx: str) -> None:
    values = edge_integers(ptx)
    a, b = cross(values, values, kinds=[dtype_of(ptx)] * 2)
    actual = evaluate(f"{opcode}.{ptx} %d, %a, %b;", dtype_of(ptx), a, b)
    expected = array([BINARY[opcode][1](int(x), int(y), ptx) for x, y in zip(a, b, strict=True)], ptx)
    np.testing.assert_array_equal(actual, expected)


TERNARY: dict[str, tuple[list[str], Callable[[int, int, int, str], int]]] = {
    "mad.lo": (ALL, lambda a, b, c, t: a * b + c),
    "mad.hi": (ALL, lambda a, b, c, t: ((a * b) >> bits_of(t)) + c),
    "mad.hi.sat": (["s32"], lambda a, b, c, t: clamp(((a * b) >> 32) + c, t)),
    "mad24.lo": (["u32", "s32"], lambda a, b, c, t: low24(a, t) * low24(b, t) + c),
    "mad24.hi": (["u32", "s32"], lambda a, b, c, t: ((low24(a, t) * low24(b, t)) >> 16) + c),
    "mad24.hi.sat": (["s32"], lambda a, b, c, t: clamp(wrap((low24(a, t) * low24(b, t)) >> 16, t) + c, t)),
    "sad": (ALL, lambda a, b, c, t: c + abs(a - b)),
}


@pytest.mark.parametrize(("opcode", "ptx"), [(opcode, ptx) for opcode, (types, _) in TERNARY.items() for ptx in types])
def test_ternary(opcode: str, ptx: str) -> None:
    values = edge_integers(ptx, extra=2)[::2]
    a, b, c = cross(values, values, values, kinds=[dtype_of(ptx)] * 3)
    actual = evaluate(f"{opcode}.{ptx} %d, %a, %b, %c;", dtype_of(ptx), a, b, c)
    expected = array([TERNARY[opcode][1](int(x), int(y), int(z), ptx) for x, y, z in zip(a, b, c, strict=True)], ptx)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("ptx", ["u16", "u32", "s16", "s32"])
def test_wide_product(ptx: str) -> None:
    values = edge_integers(ptx)
    wide = f"{ptx[0]}{bits_of(ptx) * 2}"
    a, b = cross(values, values, kinds=[dtype_of(ptx)] * 2)
    product = [int(x) * int(y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_array_equal(evaluate(f"mul.wide.{ptx} %d, %a, %b;", dtype_of(wide), a, b), array(product, wide))
    c = array([value * 77777 for value in range(len(a))], wide)
    sums = array([p + int(z) for p, z in zip(product, c, strict=True)], wide)
    np.testing.assert_array_equal(evaluate(f"mad.wide.{ptx} %d, %a, %b, %c;", dtype_of(wide), a, b, c), sums)


UNARY: dict[str, tuple[list[str], Callable[[int, str], int]]] = {
    "abs": (SIGNED, lambda a, t: abs(a)),
    "neg": (SIGNED, lambda a, t: -a),
    "not": (["b16", "b32", "b64"], lambda a, t: ~a),
    "cnot": (["b16", "b32", "b64"], lambda a, t: int(a == 0)),
}


@pytest.mark.parametrize(("opcode", "ptx"), [(opcode, ptx) for opcode, (types, _) in UNARY.items() for ptx in types])
def test_unary(opcode: str, ptx: str) -> None:
    a = array(edge_integers(ptx), ptx)
    expected = array([UNARY[opcode][1](int(x), ptx) for x in a], ptx)
    np.testing.assert_array_equal(evaluate(f"{opcode}.{ptx} %d, %a;", dtype_of(ptx), a), expected)


SHIFTS = [0, 1, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 200, 65536, 2**31, 2**32 - 1]


@pytest.mark.parametrize("ptx", ["b16", "b32", "b64"])
def test_shift_left(ptx: str) -> None:
    a, b = cross(edge_integers(ptx), SHIFTS, kinds=[dtype_of(ptx), "u4"])
    expected = array([int(x) << int(n) if n < bits_of(ptx) else 0 for x, n in zip(a, b, strict=True)], ptx)
    np.testing.assert_array_equal(evaluate(f"shl.{ptx} %d, %a, %b;", dtype_of(ptx), a, b), expected)


@pytest.mark.parametrize("ptx", ["b16", "b32", "b64", *ALL])
def test_shift_right(ptx: str) -> None:
    a, b = cross(edge_integers(ptx), SHIFTS, kinds=[dtype_of(ptx), "u4"])
    expected = array([int(x) >> min(int(n), 64) for x, n in zip(a, b, strict=True)], ptx)
    np.testing.assert_array_equal(evaluate(f"shr.{ptx} %d, %a, %b;", dtype_of(ptx), a, b), expected)


@pytest.mark.parametrize("mode", ["clamp", "wrap"])
@pytest.mark.parametrize("side", ["l", "r"])
def test_funnel_shift(side: str, mode: str) -> None:
    a, b, c = cross([0, 1, 0x80000001, 0xDEADBEEF], [0, 0xFFFFFFFF, 0x12345678], [0, 1, 31, 32, 33, 255], kinds=["u4"] * 3)
    expected = []
    for x, y, n in zip(a, b, c, strict=True):
        count = min(int(n), 32) if mode == "clamp" else int(n) & 31
        both = int(y) << 32 | int(x)
        expected.append((both << count) >> 32 if side == "l" else both >> count)
    np.testing.assert_array_equal(evaluate(f"shf.{side}.{mode}.b32 %d, %a, %b, %c;", "u4", a, b, c), array(expected, "u32"))


@pytest.mark.parametrize("types", [("u32", "u32"), ("u32", "s32"), ("s32", "u32"), ("s32", "s32")])
def test_dot_products(types: tuple[str, str]) -> None:
    generator = np.random.default_rng(3)
    a, b, c = (generator.integers(0, 2**32, 100, dtype=np.uint32) for _ in range(3))
    bytes_a, bytes_b = a.view("u1" if types[0] == "u32" else "i1"), b.view("u1" if types[1] == "u32" else "i1")
    products = bytes_a.astype("i8").reshape(-1, 4) * bytes_b.astype("i8").reshape(-1, 4)
    expected = (products.sum(axis=1) + c).astype("u4")
    np.testing.assert_array_equal(evaluate(f"dp4a.{types[0]}.{types[1]} %d, %a, %b, %c;", "u4", a, b, c), expected)
    halves = a.view("u2" if types[0] == "u32" else "i2").astype("i8").reshape(-1, 2)
    for half, columns in (("lo", slice(0, 2)), ("hi", slice(2, 4))):
        expected = ((halves * bytes_b.astype("i8").reshape(-1, 4)[:, columns]).sum(axis=1) + c).astype("u4")
        np.testing.assert_array_equal(evaluate(f"dp2a.{half}.{types[0]}.{types[1]} %d, %a, %b, %c;", "u4", a, b, c), expected)


@pytest.mark.parametrize("ptx", ["u16x2", "s16x2"])
def test_packed(ptx: str) -> None:
    a, b = (np.random.default_rng(seed).integers(0, 2**32, 200, dtype=np.uint32) for seed in (1, 2))
    kind = "u2" if ptx[0] == "u" else "i2"
    x, y = a.view(kind), b.view(kind)
    for opcode, expected in (("add", x + y), ("min", np.minimum(x, y)), ("max", np.maximum(x, y))):
        np.testing.assert_array_equal(evaluate(f"{opcode}.{ptx} %d, %a, %b;", "u4", a, b), expected.view("u4"))
        if opcode != "add" and ptx[0] == "s":
            relu = np.maximum(expected, 0).astype(kind)
            np.testing.assert_array_equal(evaluate(f"{opcode}.relu.{ptx} %d, %a, %b;", "u4", a, b), relu.view("u4"))
