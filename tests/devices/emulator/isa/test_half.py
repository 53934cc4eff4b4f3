"""Half precision against exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from tests.devices.emulator.numbers import BF16, F16, Format, array, dtype_of, edge_integers, round_fraction
from tests.devices.emulator.runner import Array, cross, evaluate

FORMATS = {"f16": F16, "bf16": BF16}
MODES = ["rn", "rz", "rm", "rp"]


def decode(bits: int, ptx: str) -> float:
    """Return the value of a half-precision pattern."""
    if ptx == "f16":
        return float(np.array([bits], "u2").view("f2")[0])
    return float(np.array([bits << 16], "u4").view("f4")[0])


def encode(value: float, ptx: str) -> int:
    """Return the pattern of a value that the format holds exactly; NaN is the canonical one."""
    if math.isnan(value):
        return 0x7FFF
    if ptx == "f16":
        return int(np.array([value], "f2").view("u2")[0])
    return int(np.array([value], "f4").view("u4")[0]) >> 16


def rounded(value: float | Fraction, ptx: str, mode: str = "rn") -> float:
    if isinstance(value, float) and (not math.isfinite(value) or value == 0):
        return value
    sign = -1.0 if value < 0 else 1.0
    return math.copysign(round_fraction(Fraction(value), FORMATS[ptx], mode), sign)


def patterns(ptx: str) -> list[int]:
    top = {"f16": 0x7C00, "bf16": 0x7F80}[ptx]
    one = {"f16": 0x3C00, "bf16": 0x3F80}[ptx]
    values = [
        0,
        1,
        2,
        0x3FF if ptx == "f16" else 0x7F,
        0x400 if ptx == "f16" else 0x80,
        one,
        one + 1,
        one - 1,
        top - 1,
        top,
        top + 1,
    ]
    values += [int(v) for v in np.random.default_rng(2).integers(0, top, 12)]
    return [v | sign for v in values for sign in (0, 0x8000)]


def exact(operation: str, a: float, b: float, c: float) -> float | Fraction:
    special = {"add": lambda: a + b, "sub": lambda: a - b, "mul": lambda: a * b, "fma": lambda: a * b + c}[operation]()
    if not all(map(math.isfinite, (a, b, c))):
        return special
    x, y, z = Fraction(a), Fraction(b), Fraction(c)
    value = {"add": x + y, "sub": x - y, "mul": x * y, "fma": x * y + z}[operation]
    return value if value else special  # for the sign of zero; nothing underflows in double precision


@pytest.mark.parametrize("ptx", ["f16", "bf16"])
@pytest.mark.parametrize("operation", ["add", "sub", "mul"])
def test_arithmetic(operation: str, ptx: str) -> None:
    a, b = cross(patterns(ptx), patterns(ptx), kinds=["u2", "u2"])
    values = [exact(operation, decode(int(x), ptx), decode(int(y), ptx), 0.0) for x, y in zip(a, b, strict=True)]
    expected = [encode(rounded(v, ptx), ptx) for v in values]
    np.testing.assert_array_equal(evaluate(f"{operation}.rn.{ptx} %d, %a, %b;", "u2", a, b), expected)


@pytest.mark.parametrize("relu", ["", ".relu"])
@pytest.mark.parametrize("ptx", ["f16", "bf16"])
def test_fma(ptx: str, relu: str) -> None:
    some = patterns(ptx)[::2]
    a, b, c = cross(some, some, some, kinds=["u2"] * 3)
    expected = []
    for x, y, z in zip(a, b, c, strict=True):
        value = rounded(exact("fma", *(decode(int(v), ptx) for v in (x, y, z))), ptx)
        if relu and (value < 0 or value == 0):
            value = 0.0
        expected.append(encode(value, ptx))
    np.testing.assert_array_equal(evaluate(f"fma.rn{relu}.{ptx} %d, %a, %b, %c;", "u2", a, b, c), expected)


@pytest.mark.parametrize("ptx", ["f16", "bf16"])
def test_packed(ptx: str) -> None:
    generator = np.random.default_rng(4)
    a, b, c = (generator.integers(0, 2**32, 500, dtype=np.uint32) for _ in range(3))
    parts = [[v & 0xFFFF, v >> 16] for v in (a, b, c)]
    halves = []
    for half in range(2):
        values = [exact("fma", *(decode(int(p[half][i]), ptx) for p in parts)) for i in range(500)]
        halves.append(np.array([encode(rounded(v, ptx), ptx) for v in values], "u4"))
    actual = evaluate(f"fma.rn.{ptx}x2 %d, %a, %b, %c;", "u4", a, b, c)
    np.testing.assert_array_equal(actual, halves[0] | halves[1] << np.uint32(16))


def test_saturate_and_flush() -> None:
    a, b = cross(patterns("f16"), patterns("f16"), kinds=["u2", "u2"])
    expected_sat, expected_ftz = [], []
    for x, y in zip(a, b, strict=True):
        value = rounded(exact("add", decode(int(x), "f16"), decode(int(y), "f16"), 0.0), "f16")
        expected_sat.append(encode(0.0 if math.isnan(value) else min(max(value, 0.0), 1.0) + 0.0, "f16"))
        flushed = [math.copysign(0.0, v) if abs(v) < 2.0**-14 else v for v in (decode(int(x), "f16"), decode(int(y), "f16"))]
        total = rounded(exact("add", *flushed, 0.0), "f16")
        expected_ftz.append(encode(math.copysign(0.0, total) if abs(total) < 2.0**-14 else total, "f16"))
    np.testing.assert_array_equal(evaluate("add.sat.f16 %d, %a, %b;", "u2", a, b), expected_sat)
    np.testing.assert_array_equal(evaluate("add.ftz.f16 %d, %a, %b;", "u2", a, b), expected_ftz)


def test_flush_before_rounding_up() -> None:
    """What only rounding makes the smallest normal number is flushed where it would not reach it with a wider exponent."""
    smallest, wide = 2.0**-14, Format(11, 1000)
    factors, addends = [2.0**-12, -(2.0**-12)], [smallest, -smallest, smallest * (1 + 2.0**-10), -smallest * (1 + 2.0**-10)]
    bits = [[encode(x, "f16") for x in some] for some in (factors, [k * 2.0**-14 for k in (1, 1.25, 1.5, 1.75, 2)], addends)]
    a, b, c = cross(*bits, kinds=["u2", "u2", "u2"])
    expected = []
    for x, y, z in zip(a, b, c, strict=True):
        p, q, r = (Fraction(decode(int(value), "f16")) for value in (x, y, z))
        result = round_fraction(p * q + r, wide, "rn")
        expected.append(encode(math.copysign(0.0, result) if abs(result) < smallest else result, "f16"))
    np.testing.assert_array_equal(evaluate("fma.rn.ftz.f16 %d, %a, %b, %c;", "u2", a, b, c), expected)


@pytest.mark.parametrize("nan", ["", ".NaN"])
@pytest.mark.parametrize("ptx", ["f16", "bf16"])
def test_extrema(ptx: str, nan: str) -> None:
    a, b = cross(patterns(ptx), patterns(ptx), kinds=["u2", "u2"])
    for opcode, choose in (("min", min), ("max", max)):
        expected = []
        for x, y in zip(a, b, strict=True):
            p, q = decode(int(x), ptx), decode(int(y), ptx)
            if math.isnan(p) or math.isnan(q):
                value = math.nan if nan or (math.isnan(p) and math.isnan(q)) else q if math.isnan(p) else p
            else:
                value = choose(p, q, key=lambda v: (v, math.copysign(1, v)))
            expected.append(encode(value, ptx))
        np.testing.assert_array_equal(evaluate(f"{opcode}{nan}.{ptx} %d, %a, %b;", "u2", a, b), expected)


@pytest.mark.parametrize("ptx", ["f16", "bf16"])
def test_signs_and_comparison(ptx: str) -> None:
    a, b = cross(patterns(ptx), patterns(ptx), kinds=["u2", "u2"])
    np.testing.assert_array_equal(evaluate(f"abs.{ptx} %d, %a;", "u2", a), a & 0x7FFF)
    np.testing.assert_array_equal(evaluate(f"neg.{ptx} %d, %a;", "u2", a), a ^ 0x8000)
    p = np.array([decode(int(x), ptx) for x in a])
    q = np.array([decode(int(x), ptx) for x in b])
    np.testing.assert_array_equal(evaluate(f"setp.lt.{ptx} %d, %a, %b;", "?", a, b), p < q)
    np.testing.assert_array_equal(evaluate(f"setp.geu.{ptx} %d, %a, %b;", "?", a, b), ~(p < q))
    both = np.uint32(1) * a | np.uint32(65536) * b
    other = np.uint32(1) * b | np.uint32(65536) * a
    low, high = evaluate(f"setp.gt.{ptx}x2 %d0|%d1, %a, %b;", ["?", "?"], both, other)
    np.testing.assert_array_equal(low, p > q)
    np.testing.assert_array_equal(high, q > p)


@pytest.mark.parametrize("opcode", ["ex2.approx.f16", "tanh.approx.f16", "ex2.approx.ftz.bf16", "tanh.approx.bf16"])
def test_approximations(opcode: str) -> None:
    ptx = opcode.split(".")[-1]
    values = np.random.default_rng(6).uniform(-4, 4, 400)
    a = np.array([encode(rounded(float(v), ptx), ptx) for v in values], "u2")
    function = math.tanh if opcode.startswith("tanh") else lambda x: 2.0**x
    bound = {"ex2.approx.f16": 2**-9.9, "tanh.approx.f16": 2**-10.987, "ex2.approx.ftz.bf16": 2**-7, "tanh.approx.bf16": 2**-8}[
        opcode
    ]
    for x, y in zip(a, evaluate(f"{opcode} %d, %a;", "u2", a), strict=True):
        expected = function(decode(int(x), ptx))
        assert abs(decode(int(y), ptx) - expected) <= bound * abs(expected)


def to_single(values: list[float]) -> Array:
    return np.array(values, "f4")


SINGLES = to_single(
    [
        0.0,
        1.0,
        1.5,
        65504.0,
        65519.99,
        65520.0,
        1e5,
        3e38,
        2.0**-14,
        2.0**-24,
        2.0**-25,
        2.0**-25 * 1.5,
        2.0**-26,
        1e-40,
        math.inf,
    ]
    + [float(v) for v in np.random.default_rng(8).uniform(-70000, 70000, 30)]
    + [1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 3.3895e38]
)
SINGLES = np.concatenate([SINGLES, -SINGLES, to_single([math.nan])])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ptx", ["f16", "bf16"])
def test_from_single(ptx: str, mode: str) -> None:
    expected = [encode(rounded(float(x), ptx, mode), ptx) for x in SINGLES]
    np.testing.assert_array_equal(evaluate(f"cvt.{mode}.{ptx}.f32 %d, %a;", "u2", SINGLES), expected)
    relu = [0 if v >> 15 else v for v in expected]
    if mode in ("rn", "rz"):
        np.testing.assert_array_equal(evaluate(f"cvt.{mode}.relu.{ptx}.f32 %d, %a;", "u2", SINGLES), relu)
        reverse = SINGLES[::-1].copy()
        packed = np.array(expected, "u4") << np.uint32(16) | np.array(expected[::-1], "u4")
        np.testing.assert_array_equal(evaluate(f"cvt.{mode}.{ptx}x2.f32 %d, %a, %b;", "u4", SINGLES, reverse), packed)


@pytest.mark.parametrize("ptx", ["f16", "bf16"])
def test_to_single_and_double(ptx: str) -> None:
    a = np.arange(0, 65536, 7, dtype="u2")
    values = np.array([decode(int(x), ptx) for x in a])
    for target, kind in (("f32", "f4"), ("f64", "f8")):
        with np.errstate(invalid="ignore"):
            expected = values.astype(kind)
        np.testing.assert_array_equal(evaluate(f"cvt.{target}.{ptx} %d, %a;", kind, a), expected)
        for mode in ("rn", "rz", "rm", "rp") if ptx == "bf16" else ("rn",):  # there is nothing to round
            np.testing.assert_array_equal(evaluate(f"cvt.{mode}.{target}.{ptx} %d, %a;", kind, a), expected)


@pytest.mark.parametrize("source", ["u8", "u16", "u32", "u64", "s8", "s16", "s32", "s64"])
@pytest.mark.parametrize("ptx", ["f16", "bf16"])
def test_from_integers(ptx: str, source: str) -> None:
    a = array(edge_integers(source, extra=30), source)
    for mode in MODES:
        expected = [encode(rounded(Fraction(int(x)), ptx, mode), ptx) for x in a]
        np.testing.assert_array_equal(evaluate(f"cvt.{mode}.{ptx}.{source} %d, %a;", "u2", a), expected, mode)


@pytest.mark.parametrize("target", ["u8", "u32", "s16", "s32", "s64"])
def test_to_integers(target: str) -> None:
    a = np.array(patterns("f16"), "u2")
    bits, signed = int(target[1:]), target[0] == "s"
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    for mode, rounding in {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}.items():
        expected = []
        for x in (decode(int(v), "f16") for v in a):
            if math.isnan(x):
                expected.append(1 << 63 if bits == 64 else 0)
            elif math.isinf(x):
                expected.append(high if x > 0 else low)
            else:
                expected.append(min(max(rounding(Fraction(x)), low), high))
        actual = evaluate(f"cvt.{mode}.{target}.f16 %d, %a;", dtype_of(target), a)
        np.testing.assert_array_equal(actual, array(expected, target), mode)


@pytest.mark.parametrize("mode", ["rna", "rn", "rz"])
def test_tf32(mode: str) -> None:
    a = np.concatenate([SINGLES, np.array([0x3F801000, 0x3F801001, 0x3F803000, 0x3F800FFF, 0xBF801000], "u4").view("f4")])
    expected = []
    for bits, x in zip(a.view("u4"), map(float, a), strict=True):
        if math.isnan(x):  # as recorded on an H100
            expected.append(int(bits) & 0xFFFFE000 if mode == "rna" else 0x7FFFE000)
            continue
        value = x
        if math.isfinite(x) and x:
            if mode == "rna":  # ties away from zero: nudge what lies exactly between towards the larger
                down, up = (round_fraction(abs(Fraction(x)), Format(11, 127), m) for m in ("rz", "rp"))
                value = math.copysign(up if Fraction(down) + Fraction(up) <= 2 * abs(Fraction(x)) and up != down else down, x)
            else:
                value = math.copysign(round_fraction(Fraction(x), Format(11, 127), mode), x)
        expected.append(int(np.array([value], "f4").view("u4")[0]))
    np.testing.assert_array_equal(evaluate(f"cvt.{mode}.tf32.f32 %d, %a;", "u4", a), expected)


def fp8_table(ptx: str) -> list[float]:
    """Return the value of each pattern, from the format's definition."""
    exponent_bits, fraction = (4, 3) if ptx == "e4m3" else (5, 2)
    bias, values = 2 ** (exponent_bits - 1) - 1, []
    for pattern in range(256):
        exponent, mantissa = pattern >> fraction & (2**exponent_bits - 1), pattern & (2**fraction - 1)
        if ptx == "e4m3" and pattern & 127 == 127:
            value = math.nan
        elif ptx == "e5m2" and exponent == 31:
            value = math.nan if mantissa else math.inf
        elif exponent == 0:
            value = mantissa * 2.0 ** (1 - bias - fraction)
        else:
            value = (1 + mantissa / 2**fraction) * 2.0 ** (exponent - bias)
        values.append(-value if pattern & 128 else value)
    return values


@pytest.mark.parametrize("ptx", ["e4m3", "e5m2"])
def test_fp8(ptx: str) -> None:
    table = fp8_table(ptx)
    a = np.arange(256, dtype="u2") | np.arange(256, dtype="u2")[::-1] << np.uint16(8)
    actual = evaluate(f"cvt.rn.f16x2.{ptx}x2 %d, %a;", "u4", a)
    low = np.array([encode(v, "f16") for v in table], "u4")
    np.testing.assert_array_equal(actual, low | low[::-1] << np.uint32(16))

    finite = sorted((abs(v), p) for p, v in enumerate(table) if p < 128 and math.isfinite(v))
    sources = to_single([0.0, 1e9, 448.0, 464.0, 500.0, 57344.0, 61440.0, 2.0**-9, 2.0**-10, 2.0**-17, 1e-9, math.inf, math.nan])
    sources = np.concatenate([sources, np.random.default_rng(9).uniform(-500, 500, 200).astype("f4"), -sources])
    expected = []
    for x in map(float, sources):
        if math.isnan(x):
            expected.append(0x7F)
            continue
        size = min(abs(x), finite[-1][0])
        nearest = min(finite, key=lambda entry: (abs(entry[0] - size), entry[1] & 1))  # ties go to the even pattern
        expected.append(nearest[1] | (0x80 if math.copysign(1, x) < 0 else 0))
    both = np.array(expected, "u2")
    actual = evaluate(f"cvt.rn.satfinite.{ptx}x2.f32 %d, %a, %b;", "u2", sources, sources[::-1].copy())
    np.testing.assert_array_equal(actual, both << np.uint16(8) | both[::-1])


def test_cvt_pack() -> None:
    a, b = cross([0, 1, -1, 127, 128, -128, -129, 255, 300, 40000], [5, -7, 2**31 - 1, -(2**31)], kinds=["i4", "i4"])
    c = np.full(len(a), 0xABCDEF12, "u4")
    halves = [np.clip(v.astype("i8"), -32768, 32767).astype("i2").view("u2").astype("u4") for v in (a, b)]
    np.testing.assert_array_equal(
        evaluate("cvt.pack.sat.s16.s32 %d, %a, %b;", "u4", a, b), halves[0] << np.uint32(16) | halves[1]
    )
    quarters = [np.clip(v.astype("i8"), 0, 255).astype("u4") for v in (a, b)]
    expected = c << np.uint32(16) | quarters[0] << np.uint32(8) | quarters[1]
    np.testing.assert_array_equal(evaluate("cvt.pack.sat.u8.s32.b32 %d, %a, %b, %c;", "u4", a, b, c), expected)
