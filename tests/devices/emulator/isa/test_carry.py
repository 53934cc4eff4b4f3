"""Extended precision against Python's integers."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.devices.emulator.runner import Array, evaluate

GENERATOR = random.Random(11)
NUMBERS = [0, 1, 2**32 - 1, 2**64 - 1, 2**96, 2**128 - 1, *(GENERATOR.getrandbits(128) for _ in range(40))]
PAIRS = [(x, y) for x in NUMBERS for y in NUMBERS[:12]]


def words(numbers: list[int], bits: int, count: int) -> list[Array]:
    return [np.array([n >> bits * i & (2**bits - 1) for n in numbers], f"u{bits // 8}") for i in range(count)]


def joined(parts: list[Array], bits: int) -> list[int]:
    return [sum(int(part[i]) << bits * j for j, part in enumerate(parts)) for i in range(len(parts[0]))]


@pytest.mark.parametrize(("ptx", "bits"), [("u32", 32), ("s32", 32), ("u64", 64)])
@pytest.mark.parametrize("opcode", ["add", "sub"])
def test_sums_over_several_words(opcode: str, ptx: str, bits: int) -> None:
    count = 3 if bits == 32 else 2
    a, b = (words([pair[i] for pair in PAIRS], bits, count) for i in range(2))
    names = [("%a", "%b"), ("%c", "%e"), ("%f", "%g")][:count]
    inputs = [array for pair in zip(a, b, strict=True) for array in pair]
    code = "".join(
        f"{opcode}{'' if i == 0 else 'c'}{'' if i == count - 1 else '.cc'}.{ptx} %d{i}, {x}, {y};"
        for i, (x, y) in enumerate(names)
    )
    result = joined(evaluate(code, [a[0].dtype] * count, *inputs), bits)
    width = 2 ** (bits * count)
    assert result == [(x + y if opcode == "add" else x - y) % width for x, y in ((x % width, y % width) for x, y in PAIRS)]


def test_product_of_64_bits_from_words() -> None:
    a, b = (words([pair[i] % 2**64 for pair in PAIRS], 32, 2) for i in range(2))
    code = """
    mul.lo.u32 %d0, %a, %c; mul.hi.u32 %d1, %a, %c;
    mad.lo.cc.u32 %d1, %b, %c, %d1; madc.hi.u32 %d2, %b, %c, 0;
    mad.lo.cc.u32 %d1, %a, %e, %d1; madc.hi.cc.u32 %d2, %a, %e, %d2; addc.u32 %d3, 0, 0;
    mad.lo.cc.u32 %d2, %b, %e, %d2; madc.hi.u32 %d3, %b, %e, %d3;"""
    result = joined(evaluate(code, ["u4"] * 4, *a, *b), 32)
    assert result == [(x % 2**64) * (y % 2**64) for x, y in PAIRS]


def test_addition_reads_the_flag_of_a_subtraction() -> None:
    a, b = (np.array([pair[i] % 2**32 for pair in PAIRS], "u4") for i in range(2))
    code = "sub.cc.u32 %d0, %a, %b; addc.cc.u32 %d1, 0, 0; add.cc.u32 %d2, %a, %b; subc.u32 %d2, 0, 0;"
    difference, kept, borrowed = evaluate(code, ["u4"] * 3, a, b)
    assert np.array_equal(difference, a - b)
    # One flag serves both: on an H100 a subtraction sets it where it borrows nothing.
    assert np.array_equal(kept, a >= b)
    assert np.array_equal(borrowed, np.where(a.astype("u8") + b >= 2**32, 0, 2**32 - 1))


def test_carry_outlives_a_barrier() -> None:
    a = np.array([2**32 - 1, 5], "u4")
    code = "add.cc.u32 %d0, %a, 1; bar.sync 0; addc.u32 %d1, 0, 0;"
    low, high = evaluate(code, ["u4", "u4"], a, block=2)
    assert (list(low), list(high)) == ([0, 6], [1, 0])
