"""Comparison and selection against NumPy."""

from __future__ import annotations

import operator

import numpy as np
import pytest

from tests.devices.emulator.isa.test_half import decode, patterns
from tests.devices.emulator.numbers import array, dtype_of, edge_floats, edge_integers
from tests.devices.emulator.runner import Array, cross, evaluate

OPERATORS = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
}  # fmt: skip
UNSIGNED = {"lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge}
JOIN = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


@pytest.mark.parametrize("ptx", ["u16", "u32", "u64", "s16", "s32", "s64", "b16", "b32", "b64"])
def test_setp_integers(ptx: str) -> None:
    values = edge_integers(ptx)
    a, b = cross(values, values, kinds=[dtype_of(ptx)] * 2)
    table = OPERATORS | (UNSIGNED if ptx[0] == "u" else {})
    for name, compare in table.items():
        p, q = evaluate(f"setp.{name}.{ptx} %d0|%d1, %a, %b;", ["?", "?"], a, b)
        np.testing.assert_array_equal(p, compare(a, b), name)
        np.testing.assert_array_equal(q, ~compare(a, b), name)


@pytest.mark.parametrize("ptx", ["f32", "f64"])
def test_setp_floats(ptx: str) -> None:
    values = edge_floats(int(ptx[1:]))
    kind = values.dtype
    a, b = cross(values, values, kinds=[kind, kind])
    nan = np.isnan(a) | np.isnan(b)
    for name, compare in OPERATORS.items():
        np.testing.assert_array_equal(evaluate(f"setp.{name}.{ptx} %d, %a, %b;", "?", a, b), compare(a, b) & ~nan, name)
        np.testing.assert_array_equal(evaluate(f"setp.{name}u.{ptx} %d, %a, %b;", "?", a, b), compare(a, b) | nan, name)
    np.testing.assert_array_equal(evaluate(f"setp.num.{ptx} %d, %a, %b;", "?", a, b), ~nan)
    np.testing.assert_array_equal(evaluate(f"setp.nan.{ptx} %d, %a, %b;", "?", a, b), nan)


def test_setp_flushes() -> None:
    a = np.array([1e-40, -1e-40, 1e-40], "f4")
    b = np.array([0.0, 0.0, 2e-40], "f4")
    assert list(evaluate("setp.eq.ftz.f32 %d, %a, %b;", "?", a, b)) == [True, True, True]
    assert list(evaluate("setp.eq.f32 %d, %a, %b;", "?", a, b)) == [False, False, False]


@pytest.mark.parametrize("combine", ["and", "or", "xor"])
def test_setp_combined(combine: str) -> None:
    a, b, c = cross([1, 2, 3], [1, 2, 3], [False, True], kinds=["i4", "i4", "?"])
    join = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[combine]
    p, q = evaluate(f"setp.lt.{combine}.s32 %d0|%d1, %a, %b, !%c;", ["?", "?"], a, b, c)
    np.testing.assert_array_equal(p, join(a < b, ~c))
    np.testing.assert_array_equal(q, join(a >= b, ~c))


def test_set() -> None:
    values = edge_integers("s32")
    a, b = cross(values, values, kinds=["i4", "i4"])
    np.testing.assert_array_equal(evaluate("set.lt.u32.s32 %d, %a, %b;", "u4", a, b), np.where(a < b, 0xFFFFFFFF, 0))
    np.testing.assert_array_equal(evaluate("set.ge.f32.s32 %d, %a, %b;", "f4", a, b), np.where(a >= b, 1.0, 0.0))
    np.testing.assert_array_equal(evaluate("set.ge.f16.s32 %d, %a, %b;", "f2", a, b), np.where(a >= b, 1.0, 0.0))
    bf16_one = np.float32(1).view("u4") >> 16
    np.testing.assert_array_equal(evaluate("set.ge.bf16.s32 %d, %a, %b;", "u2", a, b), np.where(a >= b, bf16_one, 0))
    c = np.arange(len(a)) % 2 == 0
    expected = np.where((a == b) & c, 1.0, 0.0)
    np.testing.assert_array_equal(evaluate("set.eq.and.f16.s32 %d, %a, %b, %c;", "f2", a, b, c), expected)
    expected = np.where((a == b) | c, 0xFFFFFFFF, 0)
    np.testing.assert_array_equal(evaluate("set.eq.or.u32.s32 %d, %a, %b, %c;", "u4", a, b, c), expected)


@pytest.mark.parametrize("ptx", ["b16", "b32", "b64", "u32", "s64", "f32", "f64"])
def test_selection(ptx: str) -> None:
    kind = {"f32": "f4", "f64": "f8"}.get(ptx) or dtype_of(ptx)
    a, b = np.arange(1, 9).astype(kind), np.arange(11, 19).astype(kind)
    c = np.array([0, 1, 1, 0, 0, 1, 0, 1], "?")
    np.testing.assert_array_equal(evaluate(f"selp.{ptx} %d, %a, %b, %c;", kind, a, b, c), np.where(c, a, b))
    signs = array([0, -1, 1, -(2**31), 5, 2**31 - 1, -7, 3], "s32")
    np.testing.assert_array_equal(evaluate(f"slct.{ptx}.s32 %d, %a, %b, %c;", kind, a, b, signs), np.where(signs >= 0, a, b))
    reals = np.array([0.0, -0.0, np.nan, -1.0, 2.0, -1e-40, np.inf, -np.inf], "f4")
    np.testing.assert_array_equal(evaluate(f"slct.{ptx}.f32 %d, %a, %b, %c;", kind, a, b, reals), np.where(reals >= 0, a, b))


def half_sources(ptx: str) -> tuple[Array, Array, Array, Array, Array]:
    """Return patterns, their values, and a predicate."""
    a, b, c = cross(patterns(ptx)[::3], patterns(ptx)[::2], [False, True], kinds=["u2", "u2", "?"])
    p, q = (np.array([decode(int(x), ptx) for x in values]) for values in (a, b))
    return a, b, p, q, c


@pytest.mark.parametrize("combine", JOIN)
@pytest.mark.parametrize("ptx", ["f16", "bf16"])
def test_combined_half_precision(ptx: str, combine: str) -> None:
    a, b, p, q, c = half_sources(ptx)
    first, second = evaluate(f"setp.le.{combine}.{ptx} %d0|%d1, %a, %b, %c;", ["?", "?"], a, b, c)
    np.testing.assert_array_equal(first, JOIN[combine](p <= q, c))
    np.testing.assert_array_equal(second, JOIN[combine](~(p <= q), c))
    both, other = a | b.astype("u4") << np.uint32(16), b | a.astype("u4") << np.uint32(16)
    low, high = evaluate(f"setp.gtu.{combine}.{ptx}x2 %d0|%d1, %a, %b, %c;", ["?", "?"], both, other, c)
    np.testing.assert_array_equal(low, JOIN[combine](~(p <= q), c))
    np.testing.assert_array_equal(high, JOIN[combine](~(q <= p), c))


@pytest.mark.parametrize("ptx", ["f16", "bf16"])
def test_half_precision_to_numbers(ptx: str) -> None:
    a, b, p, q, c = half_sources(ptx)
    one = {"f16": 0x3C00, "bf16": 0x3F80}[ptx]
    np.testing.assert_array_equal(evaluate(f"set.lt.{ptx}.{ptx} %d, %a, %b;", "u2", a, b), np.where(p < q, one, 0))
    np.testing.assert_array_equal(evaluate(f"set.lt.u32.{ptx} %d, %a, %b;", "u4", a, b), np.where(p < q, 2**32 - 1, 0))
    truth = (p < q) | ~c
    np.testing.assert_array_equal(evaluate(f"set.lt.or.s16.{ptx} %d, %a, %b, !%c;", "i2", a, b, c), np.where(truth, -1, 0))
    both, other = a | b.astype("u4") << np.uint32(16), b | a.astype("u4") << np.uint32(16)
    expected = np.where((p == q) & c, one * 0x10001, 0)
    np.testing.assert_array_equal(evaluate(f"set.eq.and.{ptx}x2.{ptx}x2 %d, %a, %b, %c;", "u4", both, other, c), expected)
