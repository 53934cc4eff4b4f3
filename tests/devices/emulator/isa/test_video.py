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


def between(value: int, kind: str) -> int:
    """The 34 bits that a first operation leaves for a second one."""
    value &= 2**34 - 1
    return value - 2**34 if kind == "s32" and value >> 33 else value


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
        expected = [combine(between(r, dtype), wrap(int(c), dtype)) & 0xFFFFFFFF for r, c in zip(results, C, strict=True)]
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


COMPARISONS = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


@pytest.mark.parametrize("types", [("u32", "u32"), ("s32", "s32"), ("u32", "s32")])
@pytest.mark.parametrize("cmp", COMPARISONS)
def test_comparisons(cmp: str, types: tuple[str, str]) -> None:
    atype, btype = types
    holds = COMPARISONS[cmp]
    a, b = A.copy(), B.copy()
    b[::5] = a[::5]
    results = [int(holds(wrap(int(x), atype), wrap(int(y), btype))) for x, y in zip(a, b, strict=True)]
    name = ".".join(("vset", *types, cmp))
    np.testing.assert_array_equal(evaluate(f"{name} %d, %a, %b;", "u4", a, b), results)
    added = (C + np.array(results, "u4")).astype("u4")
    np.testing.assert_array_equal(evaluate(f"{name}.add %d, %a, %b, %c;", "u4", a, b, C), added)
    np.testing.assert_array_equal(evaluate(f"{name}.max %d, %a, %b, %c;", "u4", a, b, C), np.maximum(C, results))
    for count in (2, 4):
        bits = 32 // count
        lanes = [
            [
                int(holds(*(wrap(int(v) >> lane * bits, f"{kind[0]}{bits}") for v, kind in ((x, atype), (y, btype)))))
                for lane in range(count)
            ]
            for x, y in zip(a, b, strict=True)
        ]
        name = ".".join((f"vset{count}", *types, cmp))
        expected = [sum(one << lane * bits for lane, one in enumerate(row)) for row in lanes]
        np.testing.assert_array_equal(evaluate(f"{name} %d, %a, %b, %c;", "u4", a, b, C), expected)
        expected = [(sum(row) + int(c)) & 0xFFFFFFFF for row, c in zip(lanes, C, strict=True)]
        np.testing.assert_array_equal(evaluate(f"{name}.add %d, %a, %b, %c;", "u4", a, b, C), expected)


@pytest.mark.parametrize("kind", ["u32", "s32"])
@pytest.mark.parametrize("count", [2, 4])
def test_averages(count: int, kind: str) -> None:
    bits = 32 // count
    expected: dict[str, list[int]] = {"": [], ".add": []}
    for a, b, c in zip(A, B, C, strict=True):
        lanes = []
        for lane in range(count):
            total = sum(wrap(int(v) >> lane * bits, f"{kind[0]}{bits}") for v in (a, b))
            lanes.append((total + 1) // 2 if total >= 0 else total // 2)
        expected[""].append(sum((v & (2**bits - 1)) << i * bits for i, v in enumerate(lanes)))
        expected[".add"].append((sum(lanes) + int(c)) & 0xFFFFFFFF)
    for modifier, values in expected.items():
        code = f"vavrg{count}.{kind}.{kind}.{kind}{modifier} %d, %a, %b, %c;"
        np.testing.assert_array_equal(evaluate(code, "u4", A, B, C), values, modifier)


@pytest.mark.parametrize("mode", ["clamp", "wrap"])
@pytest.mark.parametrize("kind", ["u32", "s32"])
@pytest.mark.parametrize("opcode", ["vshl", "vshr"])
def test_shifts(opcode: str, kind: str, mode: str) -> None:
    counts = np.resize(np.array([0, 1, 5, 31, 32, 33, 64, 2**32 - 1], "u4"), len(A))
    results = []
    for a, b in zip(A, counts, strict=True):
        by = int(b) & 31 if mode == "wrap" else min(int(b), 32)
        value = wrap(int(a), kind)
        results.append((value << by if opcode == "vshl" else value >> by) & 0xFFFFFFFF)
    name = f"{opcode}.{kind}.{kind}.u32.{mode}"
    np.testing.assert_array_equal(evaluate(f"{name} %d, %a, %b;", "u4", A, counts), results)
    added = (np.array(results, "u4") + C).astype("u4")
    np.testing.assert_array_equal(evaluate(f"{name}.add %d, %a, %b, %c;", "u4", A, counts, C), added)


@pytest.mark.parametrize("scale", ["", ".shr7", ".shr15"])
@pytest.mark.parametrize("po", ["", ".po"])
@pytest.mark.parametrize("kind", ["u32", "s32"])
def test_multiply_and_add(kind: str, po: str, scale: str) -> None:
    shift = int(scale[4:] or 0)
    expected = [
        (wrap(int(a), kind) * wrap(int(b), kind) + wrap(int(c), kind) + bool(po)) >> shift & 0xFFFFFFFF
        for a, b, c in zip(A, B, C, strict=True)
    ]
    name = f"vmad.{kind}.{kind}.{kind}{po}{scale}"
    np.testing.assert_array_equal(evaluate(f"{name} %d, %a, %b, %c;", "u4", A, B, C), expected)


PLACES = {"b0": (0, 8), "b1": (8, 8), "b2": (16, 8), "b3": (24, 8), "h0": (0, 16), "h1": (16, 16), "": (0, 32)}


def part(value: int, selector: str, kind: str) -> int:
    start, width = PLACES[selector]
    return wrap(int(value) >> start, f"{kind[0]}{width}")


def dotted(selector: str) -> str:
    return f".{selector}" if selector else ""


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("selectors", [("b0", "h1"), ("b3", ""), ("h0", "b2"), ("", "b1"), ("h1", "h0")])
@pytest.mark.parametrize("opcode", OPERATIONS)
def test_parts_of_sources(opcode: str, selectors: tuple[str, str], types: tuple[str, str, str]) -> None:
    pairs = [(part(a, selectors[0], types[1]), part(b, selectors[1], types[2])) for a, b in zip(A, B, strict=True)]
    name = ".".join((opcode, *types))
    a, b = (f"%{letter}{dotted(selector)}" for letter, selector in zip("ab", selectors, strict=True))
    results = np.array([OPERATIONS[opcode](*pair) & 0xFFFFFFFF for pair in pairs], "u4")
    np.testing.assert_array_equal(evaluate(f"{name} %d, {a}, {b};", "u4", A, B), results)
    np.testing.assert_array_equal(evaluate(f"{name}.add %d, {a}, {b}, %c;", "u4", A, B, C), results + C)
    np.testing.assert_array_equal(evaluate(f"{name} %d, {a}, {b}, %c;", "u4", A, B, C), results)


@pytest.mark.parametrize("kind", ["u32", "s32"])
@pytest.mark.parametrize("place", ["b0", "b1", "b2", "b3", "h0", "h1"])
def test_result_merged_into_a_third_operand(place: str, kind: str) -> None:
    start, width = PLACES[place]
    mask = ((1 << width) - 1) << start
    for sat in ("", ".sat"):
        expected = []
        for a, b, c in zip(A, B, C, strict=True):
            value = part(a, "b1", kind) - wrap(int(b), kind)
            value = clamp(value, width, kind == "s32") if sat else value
            expected.append((int(c) & ~mask) | (value << start & mask))
        code = f"vsub.{kind}.{kind}.{kind}{sat} %d.{place}, %a.b1, %b, %c;"
        np.testing.assert_array_equal(evaluate(code, "u4", A, B, C), expected, sat)
    expected = [
        (int(c) & ~mask) | (int(part(a, "h0", kind) < part(b, "b3", kind)) << start) for a, b, c in zip(A, B, C, strict=True)
    ]
    code = f"vset.{kind}.{kind}.lt %d.{place}, %a.h0, %b.b3, %c;"
    np.testing.assert_array_equal(evaluate(code, "u4", A, B, C), expected)


@pytest.mark.parametrize("dtype", ["u32", "s32"])
@pytest.mark.parametrize("kind", ["u32", "s32"])
@pytest.mark.parametrize("mode", ["clamp", "wrap"])
def test_shifts_saturate(mode: str, kind: str, dtype: str) -> None:
    counts = np.resize(np.array([0, 1, 5, 31, 32, 33, 255], "u4"), len(A))
    values = np.where(np.arange(len(A)) % 2, A, A >> 20)
    expected = []
    for a, n in zip(values, counts, strict=True):
        by = int(n) & 31 if mode == "wrap" else min(int(n), 32)
        expected.append(clamp(between(wrap(int(a), kind) << by, "s32"), 32, dtype == "s32") & 0xFFFFFFFF)
    code = f"vshl.{dtype}.{kind}.u32.sat.{mode} %d, %a, %b;"
    np.testing.assert_array_equal(evaluate(code, "u4", values, counts), expected)
    expected = [
        (int(c) & 0xFFFF) | ((part(a, "b3", kind) >> (int(n) & 31)) & 0xFFFF) << 16 for a, n, c in zip(A, counts, C, strict=True)
    ]
    code = f"vshr.{dtype}.{kind}.u32.wrap %d.h1, %a.b3, %b.b0, %c;"
    np.testing.assert_array_equal(evaluate(code, "u4", A, counts, C), expected)


@pytest.mark.parametrize("sat", ["", ".sat"])
@pytest.mark.parametrize("signs", [("", "", ""), ("-", "", ""), ("", "-", ""), ("-", "-", ""), ("", "", "-"), ("-", "-", "-")])
@pytest.mark.parametrize("types", [("u32", "u32"), ("s32", "u32")])
def test_multiply_and_add_with_signs(types: tuple[str, str], signs: tuple[str, str, str], sat: str) -> None:
    a_minus, b_minus, c_minus = (bool(sign) for sign in signs)
    signed = "s32" in types or a_minus != b_minus or c_minus
    expected = []
    for a, b, c in zip(A, B, C, strict=True):
        product = part(a, "h1", types[0]) * part(b, "b2", types[1]) * (-1 if a_minus != b_minus else 1)
        addend = wrap(int(c), "s32" if signed else "u32") * (-1 if c_minus else 1)
        value = (product + addend) >> 7
        expected.append((clamp(value, 32, signed) if sat else value) & 0xFFFFFFFF)
    operands = f"{signs[0]}%a.h1, {signs[1]}%b.b2, {signs[2]}%c"
    actual = evaluate(f"vmad.s32.{types[0]}.{types[1]}{sat}.shr7 %d, {operands};", "u4", A, B, C)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("kind", ["u32", "s32"])
@pytest.mark.parametrize(
    ("count", "mask", "first", "second"),
    [
        (2, "h0", "h13", "h22"),
        (2, "h10", "h32", "h01"),
        (2, "h1", "", "h30"),
        (4, "b20", "b7531", "b0123"),
        (4, "b3", "b4444", ""),
        (4, "", "b6240", "b3210"),
    ],
)
def test_lanes_selected(count: int, mask: str, first: str, second: str, kind: str) -> None:
    bits = 32 // count
    places = [int(digit) for digit in mask[1:]] or list(range(count))

    def lanes(a: int, b: int, selector: str, default: int) -> list[int]:
        both = int(b) << 32 | int(a)
        digits = [int(digit) for digit in reversed(selector[1:])] or [default + lane for lane in range(count)]
        return [wrap(both >> digit * bits, f"{kind[0]}{bits}") for digit in digits]

    for opcode, compute in (*OPERATIONS.items(), ("vset", lambda x, y: int(x < y))):
        merged, added = [], []
        for a, b, c in zip(A, B, C, strict=True):
            results = [compute(x, y) for x, y in zip(lanes(a, b, first, 0), lanes(a, b, second, count), strict=True)]
            word = int(c)
            for lane in places:
                field = ((1 << bits) - 1) << lane * bits
                word = (word & ~field) | (results[lane] << lane * bits & field)
            merged.append(word)
            added.append((int(c) + sum(results[lane] for lane in places)) & 0xFFFFFFFF)
        name = f"vset{count}.{kind}.{kind}.lt" if opcode == "vset" else f"{opcode}{count}.{kind}.{kind}.{kind}"
        operands = f"%d{dotted(mask)}, %a{dotted(first)}, %b{dotted(second)}, %c"
        np.testing.assert_array_equal(evaluate(f"{name} {operands};", "u4", A, B, C), merged, opcode)
        np.testing.assert_array_equal(evaluate(f"{name}.add {operands};", "u4", A, B, C), added, opcode)
