"""Bit-field instructions against the manual's definitions, in Python's integers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.devices.emulator.numbers import array, dtype_of, edge_integers
from tests.devices.emulator.runner import cross, evaluate

POSITIONS = [0, 1, 7, 31, 32, 33, 63, 64, 100, 255, 256 + 3]


@pytest.mark.parametrize("ptx", ["b32", "b64"])
def test_counts(ptx: str) -> None:
    bits = int(ptx[1:])
    a = array(edge_integers(ptx, extra=30), ptx)
    np.testing.assert_array_equal(evaluate(f"popc.{ptx} %d, %a;", "u4", a), [int(x).bit_count() for x in a])
    np.testing.assert_array_equal(evaluate(f"clz.{ptx} %d, %a;", "u4", a), [bits - int(x).bit_length() for x in a])
    reverse = [int(f"{int(x):0{bits}b}"[::-1], 2) for x in a]
    np.testing.assert_array_equal(evaluate(f"brev.{ptx} %d, %a;", dtype_of(ptx), a), array(reverse, ptx))


@pytest.mark.parametrize("ptx", ["u32", "u64", "s32", "s64"])
def test_bfind(ptx: str) -> None:
    bits = int(ptx[1:])
    a = array(edge_integers(ptx, extra=30), ptx)
    found = [(int(x) if x >= 0 else ~int(x)).bit_length() - 1 for x in a]
    np.testing.assert_array_equal(evaluate(f"bfind.{ptx} %d, %a;", "i4", a), found)
    shift = [-1 if place < 0 else bits - 1 - place for place in found]
    np.testing.assert_array_equal(evaluate(f"bfind.shiftamt.{ptx} %d, %a;", "i4", a), shift)


def field_of(start: int, length: int, bits: int) -> tuple[int, int]:
    """Where a field is: the lower bytes say it for 32 bits, the whole numbers for 64, as recorded on an H100."""
    return (int(start) & 255, int(length) & 255) if bits == 32 else (int(start), int(length))


@pytest.mark.parametrize("ptx", ["u32", "u64", "s32", "s64"])
def test_bfe(ptx: str) -> None:
    bits = int(ptx[1:])
    a, b, c = cross(edge_integers(ptx), POSITIONS, POSITIONS, kinds=[dtype_of(ptx), "u4", "u4"])
    expected = []
    for x, start, length in zip(a, b, c, strict=True):
        position, count = field_of(start, length, bits)
        pattern = int(x) & (2**bits - 1)
        sign = 0 if ptx[0] == "u" or count == 0 else pattern >> min(position + count - 1, bits - 1) & 1
        result = 0
        for i in range(bits):
            bit = pattern >> (position + i) & 1 if i < count and position + i < bits else sign
            result |= bit << i
        expected.append(result)
    np.testing.assert_array_equal(evaluate(f"bfe.{ptx} %d, %a, %b, %c;", dtype_of(ptx), a, b, c), array(expected, ptx))


@pytest.mark.parametrize("ptx", ["b32", "b64"])
def test_bfi(ptx: str) -> None:
    bits = int(ptx[1:])
    values = edge_integers(ptx, extra=0)[::3]
    a, b, c, e = cross(values, values, POSITIONS, POSITIONS, kinds=[dtype_of(ptx)] * 2 + ["u4"] * 2)
    expected = []
    for x, y, start, length in zip(a, b, c, e, strict=True):
        (position, count), result = field_of(start, length, bits), int(y)
        for i in range(min(count, bits)):
            if position + i < bits:
                place = 1 << (position + i)
                result = result & ~place | (place if int(x) >> i & 1 else 0)
        expected.append(result)
    np.testing.assert_array_equal(evaluate(f"bfi.{ptx} %d, %a, %b, %c, %e;", dtype_of(ptx), a, b, c, e), array(expected, ptx))


@pytest.mark.parametrize("mode", ["clamp", "wrap"])
def test_masks(mode: str) -> None:
    a, b = cross([0, 1, 5, 31, 32, 40, 255], [0, 1, 8, 31, 32, 50], kinds=["u4", "u4"])
    expected = []
    for start, width in zip(a, b, strict=True):
        position, count = (int(v) & 31 if mode == "wrap" else min(int(v), 32) for v in (start, width))
        expected.append(((1 << count) - 1) << position)
    np.testing.assert_array_equal(evaluate(f"bmsk.{mode}.b32 %d, %a, %b;", "u4", a, b), array(expected, "u32"))


@pytest.mark.parametrize("mode", ["clamp", "wrap"])
@pytest.mark.parametrize("ptx", ["u32", "s32"])
def test_szext(ptx: str, mode: str) -> None:
    a, b = cross(edge_integers("u32"), [0, 1, 8, 31, 32, 33, 100], kinds=["u4", "u4"])
    expected = []
    for x, n in zip(a, b, strict=True):
        width = min(int(n), 32) if mode == "clamp" else int(n) & 31
        field = int(x) & ((1 << width) - 1)
        negative = ptx == "s32" and width > 0 and field >> (width - 1) & 1
        expected.append(field - (1 << width) if negative else field)
    np.testing.assert_array_equal(evaluate(f"szext.{mode}.{ptx} %d, %a, %b;", "u4", a, b), array(expected, "u32"))


def test_fns() -> None:
    a, b, c = cross(
        [0, 1, 0x80000000, 0xFFFFFFFF, 0x0F0F00F0], [0, 4, 13, 31], [0, 1, 2, 5, -1, -3, 32], kinds=["u4", "u4", "i4"]
    )
    expected = []
    for mask, base, offset in zip(a, b, c, strict=True):
        n, step = abs(int(offset)), 1 if offset >= 0 else -1
        if n == 0:
            expected.append(int(base) if int(mask) >> int(base) & 1 else 0xFFFFFFFF)
            continue
        places = [p for p in (range(int(base), 32) if step > 0 else range(int(base), -1, -1)) if int(mask) >> p & 1]
        expected.append(places[n - 1] if n <= len(places) else 0xFFFFFFFF)
    np.testing.assert_array_equal(evaluate("fns.b32 %d, %a, %b, %c;", "u4", a, b, c), expected)


def choose_bytes(a: int, b: int, selectors: list[int]) -> int:
    pool = (b << 32 | a).to_bytes(8, "little")
    return int.from_bytes([(255 if pool[s & 7] >> 7 else 0) if s & 8 else pool[s & 7] for s in selectors], "little")


def test_prmt() -> None:
    generator = np.random.default_rng(5)
    a, b, c = (generator.integers(0, 2**32, 300, dtype=np.uint32) for _ in range(3))
    expected = [choose_bytes(int(x), int(y), [int(z) >> 4 * i & 15 for i in range(4)]) for x, y, z in zip(a, b, c, strict=True)]
    np.testing.assert_array_equal(evaluate("prmt.b32 %d, %a, %b, %c;", "u4", a, b, c), expected)


PERMUTATIONS = {  # for each value of the control, the bytes from least to most significant
    "f4e": [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 6]],
    "b4e": [[0, 7, 6, 5], [1, 0, 7, 6], [2, 1, 0, 7], [3, 2, 1, 0]],
    "rc8": [[0] * 4, [1] * 4, [2] * 4, [3] * 4],
    "ecl": [[0, 1, 2, 3], [1, 1, 2, 3], [2, 2, 2, 3], [3, 3, 3, 3]],
    "ecr": [[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 2, 2], [0, 1, 2, 3]],
    "rc16": [[0, 1, 0, 1], [2, 3, 2, 3], [0, 1, 0, 1], [2, 3, 2, 3]],
}


@pytest.mark.parametrize("mode", PERMUTATIONS)
def test_prmt_modes(mode: str) -> None:
    a, b, c = cross([0x03020100, 0xDEADBEEF], [0x07060504, 0x8899AABB], [0, 1, 2, 3, 7], kinds=["u4"] * 3)
    expected = [choose_bytes(int(x), int(y), PERMUTATIONS[mode][int(z) & 3]) for x, y, z in zip(a, b, c, strict=True)]
    np.testing.assert_array_equal(evaluate(f"prmt.b32.{mode} %d, %a, %b, %c;", "u4", a, b, c), expected)


@pytest.mark.parametrize("table", [0, 255, 0x80, 0xFE, 0x96, 0xE8, 0x1B, 0xCA])
def test_lop3(table: int) -> None:
    a, b, c = (np.array([value], "u4") for value in (0xF0F0F0F0, 0xCCCCCCCC, 0xAAAAAAAA))
    expected = sum((table >> (i & 7) & 1) << i for i in range(32))  # those operands run through all eight rows
    assert evaluate(f"lop3.b32 %d, %a, %b, %c, {table};", "u4", a, b, c)[0] == expected


@pytest.mark.parametrize("combine", ["or", "and"])
def test_lop3_with_a_predicate(combine: str) -> None:
    a, b, c = (np.array(values, "u4") for values in ([1, 0, 3, 0], [2, 0, 1, 0], [0, 0, 0, 0]))
    q = np.array([False, True, True, False])
    result, truth = evaluate(f"lop3.{combine}.b32 %d0|%d1, %a, %b, %c, 0xC0, %e;", ["u4", "?"], a, b, c, q)
    np.testing.assert_array_equal(result, a & b)
    some = (a & b) != 0
    np.testing.assert_array_equal(truth, some | q if combine == "or" else some & q)
