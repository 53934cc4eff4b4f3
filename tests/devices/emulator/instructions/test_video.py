"""Video instructions against the manual's definitions."""

from __future__ import annotations

import numpy as np
import pytest

from tests.devices.emulator.numbers import wrap
from tests.devices.emulator.runner import evaluate

OPERATIONS = {
    "vadd": lambda a, b: a + b,
    "vsub": lambda a, b: a - b,
    "vabsdiff": lambda a, b: abs(a - b),
    "vmin": min,
    "vmax": max,
}
GENERATOR = np.random.default_rng(13)
A, B, C = (GENERATOR.integers(0, 2**32, 200, dtype=np.uint32) for _ in range(3))
TYPES = [("u32", "u32", "u32"), ("s32", "s32", "s32"), ("u32", "s32", "u32"), ("s32", "u32", "s32")]


def clamp(value: int, bits: int, signed: bool) -> int:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return min(max(value, low), high)


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("opcode", OPERATIONS)
def test_scalar(opcode: str, types: tuple[str, str, str]) -> None:
    dtype, atype, btype = types
    compute = OPERATIONS[opcode]
    results = [compute(wrap(int(a), atype), wrap(int(b), btype)) for a, b in zip(A, B, strict=True)]
    name = ".".join((opcode, *types))
    np.testing.assert_array_equal(evaluate(f"{name} %d, %a, %b;", "u4", A, B), [r & 0xFFFFFFFF for r in results])
    clamped = [clamp(r, 32, dtype == "s32") & 0xFFFFFFFF for r in results]
    np.testing.assert_array_equal(evaluate(f"{name}.sat %d, %a, %b;", "u4", A, B), clamped)
    seconds = {"add": lambda x, c: x + c, "min": min, "max": max}
    for second, combine in seconds.items():
        expected = [combine(wrap(r, dtype), wrap(int(c), dtype)) & 0xFFFFFFFF for r, c in zip(results, C, strict=True)]
        np.testing.assert_array_equal(evaluate(f"{name}.{second} %d, %a, %b, %c;", "u4", A, B, C), expected)


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("opcode", OPERATIONS)
def test_simd(opcode: str, count: int, types: tuple[str, str, str]) -> None:
    dtype, atype, btype = types
    bits = 32 // count
    compute = OPERATIONS[opcode]
    expected: dict[str, list[int]] = {"": [], ".sat": [], ".add": []}
    for a, b, c in zip(A, B, C, strict=True):
        lanes = []
        for lane in range(count):
            x, y = (int(v) >> lane * bits & (2**bits - 1) for v in (a, b))
            lanes.append(compute(wrap(x, f"{atype[0]}{bits}"), wrap(y, f"{btype[0]}{bits}")))
        expected[""].append(sum((v & (2**bits - 1)) << i * bits for i, v in enumerate(lanes)))
        clamped = [clamp(v, bits, dtype == "s32") & (2**bits - 1) for v in lanes]
        expected[".sat"].append(sum(v << i * bits for i, v in enumerate(clamped)))
        expected[".add"].append((sum(lanes) + int(c)) & 0xFFFFFFFF)
    name = f"{opcode}{count}." + ".".join(types)
    for modifier, values in expected.items():
        np.testing.assert_array_equal(evaluate(f"{name}{modifier} %d, %a, %b, %c;", "u4", A, B, C), values, modifier)
