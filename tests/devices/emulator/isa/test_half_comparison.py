"""Comparisons of half precision that are combined with a predicate, or give numbers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.devices.emulator.isa.test_half import decode, patterns
from tests.devices.emulator.runner import Array, cross, evaluate

JOIN = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def sources(ptx: str) -> tuple[Array, Array, Array, Array, Array]:
    """Return patterns, their values, and a predicate."""
    a, b, c = cross(patterns(ptx)[::3], patterns(ptx)[::2], [False, True], kinds=["u2", "u2", "?"])
    p, q = (np.array([decode(int(x), ptx) for x in values]) for values in (a, b))
    return a, b, p, q, c


@pytest.mark.parametrize("combine", JOIN)
@pytest.mark.parametrize("ptx", ["f16", "bf16"])
def test_combined(ptx: str, combine: str) -> None:
    a, b, p, q, c = sources(ptx)
    first, second = evaluate(f"setp.le.{combine}.{ptx} %d0|%d1, %a, %b, %c;", ["?", "?"], a, b, c)
    np.testing.assert_array_equal(first, JOIN[combine](p <= q, c))
    np.testing.assert_array_equal(second, JOIN[combine](~(p <= q), c))
    both, other = a | b.astype("u4") << np.uint32(16), b | a.astype("u4") << np.uint32(16)
    low, high = evaluate(f"setp.gtu.{combine}.{ptx}x2 %d0|%d1, %a, %b, %c;", ["?", "?"], both, other, c)
    np.testing.assert_array_equal(low, JOIN[combine](~(p <= q), c))
    np.testing.assert_array_equal(high, JOIN[combine](~(q <= p), c))


@pytest.mark.parametrize("ptx", ["f16", "bf16"])
def test_numbers(ptx: str) -> None:
    a, b, p, q, c = sources(ptx)
    one = {"f16": 0x3C00, "bf16": 0x3F80}[ptx]
    np.testing.assert_array_equal(evaluate(f"set.lt.{ptx}.{ptx} %d, %a, %b;", "u2", a, b), np.where(p < q, one, 0))
    np.testing.assert_array_equal(evaluate(f"set.lt.u32.{ptx} %d, %a, %b;", "u4", a, b), np.where(p < q, 2**32 - 1, 0))
    truth = (p < q) | ~c
    np.testing.assert_array_equal(evaluate(f"set.lt.or.s16.{ptx} %d, %a, %b, !%c;", "i2", a, b, c), np.where(truth, -1, 0))
    both, other = a | b.astype("u4") << np.uint32(16), b | a.astype("u4") << np.uint32(16)
    expected = np.where((p == q) & c, one * 0x10001, 0)
    np.testing.assert_array_equal(evaluate(f"set.eq.and.{ptx}x2.{ptx}x2 %d, %a, %b, %c;", "u4", both, other, c), expected)
