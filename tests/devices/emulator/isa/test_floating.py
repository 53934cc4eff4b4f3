"""Floating-point instructions against exact fractions, rounded as the mode says."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from tests.devices.emulator.numbers import F32, F64, Format, edge_floats, round_fraction, same_floats
from tests.devices.emulator.runner import EVERYTHING, Array, cross, evaluate

FORMATS = {"f32": F32, "f64": F64}
MODES = ["rn", "rz", "rm", "rp"]
KINDS = {"f32": "f4", "f64": "f8"}


def bits_of(ptx: str) -> int:
    return int(ptx[1:])


def exact(operation: str, a: float, b: float, c: float, to: Format, mode: str) -> float:
    """Return what IEEE 754 defines for an operation on floats, c being the addend of an fma."""
    special = {"add": lambda: a + b, "sub": lambda: a - b, "mul": lambda: a * b, "fma": lambda: a * b + c}
    if math.isinf(c) and math.isfinite(a) and math.isfinite(b):
        return c
    if not all(map(math.isfinite, (a, b, c))):
        return special[operation]()
    x, y, z = Fraction(a), Fraction(b), Fraction(c)
    value = {"add": x + y, "sub": x - y, "mul": x * y, "fma": x * y + z}[operation]
    if value != 0:
        return round_fraction(value, to, mode) or math.copysign(0.0, value)
    # The sign of an exact zero: of equal signs it stays, of unlike ones it is + except when rounding down.
    sign = math.copysign(1, a) * math.copysign(1, b)
    if operation == "mul":
        return math.copysign(0.0, sign)
    first, second = {"add": (a, b), "sub": (a, -b), "fma": (math.copysign(0.0, sign), c)}[operation]
    if operation == "fma" and x * y != 0:
        first = math.copysign(1.0, sign)
    if math.copysign(1, first) == math.copysign(1, second):
        return math.copysign(0.0, first)
    return -0.0 if mode == "rm" else 0.0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ptx", ["f32", "f64"])
@pytest.mark.parametrize("operation", ["add", "sub", "mul"])
def test_arithmetic(operation: str, ptx: str, mode: str) -> None:
    values = edge_floats(bits_of(ptx))
    a, b = cross(values, values, kinds=[KINDS[ptx]] * 2)
    actual = evaluate(f"{operation}.{mode}.{ptx} %d, %a, %b;", KINDS[ptx], a, b)
    expected = [exact(operation, float(x), float(y), 0.0, FORMATS[ptx], mode) for x, y in zip(a, b, strict=True)]
    assert same_floats(actual, np.array(expected, KINDS[ptx]))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ptx", ["f32", "f64"])
def test_fma(ptx: str, mode: str) -> None:
    values = edge_floats(bits_of(ptx), extra=3)[::2]
    a, b, c = cross(values, values, values, kinds=[KINDS[ptx]] * 3)
    actual = evaluate(f"fma.{mode}.{ptx} %d, %a, %b, %c;", KINDS[ptx], a, b, c)
    with np.errstate(all="ignore"):
        expected = [exact("fma", float(x), float(y), float(z), FORMATS[ptx], mode) for x, y, z in zip(a, b, c, strict=True)]
    assert same_floats(actual, np.array(expected, KINDS[ptx]))
    assert same_floats(evaluate(f"mad.{mode}.{ptx} %d, %a, %b, %c;", KINDS[ptx], a, b, c), np.array(expected, KINDS[ptx]))


def divide(a: float, b: float, to: Format, mode: str) -> float:
    if math.isnan(a) or math.isnan(b) or (math.isinf(a) and math.isinf(b)) or a == b == 0:
        return math.nan
    sign = math.copysign(1, a) * math.copysign(1, b)
    if math.isinf(a) or b == 0:
        return math.copysign(math.inf, sign)
    if math.isinf(b) or a == 0:
        return math.copysign(0.0, sign)
    return math.copysign(round_fraction(Fraction(a) / Fraction(b), to, mode), sign)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ptx", ["f32", "f64"])
def test_division(ptx: str, mode: str) -> None:
    values = edge_floats(bits_of(ptx))
    a, b = cross(values, values, kinds=[KINDS[ptx]] * 2)
    expected = [divide(float(x), float(y), FORMATS[ptx], mode) for x, y in zip(a, b, strict=True)]
    assert same_floats(evaluate(f"div.{mode}.{ptx} %d, %a, %b;", KINDS[ptx], a, b), np.array(expected, KINDS[ptx]))
    reciprocal = [divide(1.0, float(x), FORMATS[ptx], mode) for x in values]
    assert same_floats(evaluate(f"rcp.{mode}.{ptx} %d, %a;", KINDS[ptx], values), np.array(reciprocal, KINDS[ptx]))


def square_root(a: float, to: Format, mode: str) -> float:
    if math.isnan(a) or a < 0:
        return math.nan
    if a == 0 or math.isinf(a):
        return a
    x = Fraction(a)
    scale = 4**200  # enough digits that rounding the truncated root, with a sticky tail, rounds the true one
    shift = 2 ** (2 * 1200)
    root = math.isqrt(x.numerator * shift * scale // x.denominator)
    value = Fraction(root, math.isqrt(shift * scale))
    if value * value != x:
        value += Fraction(1, 2 * math.isqrt(shift * scale))
    return round_fraction(value, to, mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ptx", ["f32", "f64"])
def test_square_root(ptx: str, mode: str) -> None:
    values = edge_floats(bits_of(ptx), extra=40)
    expected = [square_root(float(x), FORMATS[ptx], mode) for x in values]
    assert same_floats(evaluate(f"sqrt.{mode}.{ptx} %d, %a;", KINDS[ptx], values), np.array(expected, KINDS[ptx]))


def flushed(values: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(values) < np.float32(2.0**-126), np.copysign(np.float32(0), values), values).astype("f4")


@pytest.mark.parametrize("operation", ["add", "sub", "mul"])
def test_flush_to_zero(operation: str) -> None:
    values = edge_floats(32)
    a, b = cross(values, values, kinds=["f4", "f4"])
    expected = [exact(operation, float(x), float(y), 0.0, F32, "rn") for x, y in zip(flushed(a), flushed(b), strict=True)]
    assert same_floats(evaluate(f"{operation}.ftz.f32 %d, %a, %b;", "f4", a, b), flushed(np.array(expected, "f4")))


@pytest.mark.parametrize("mode", MODES)
def test_flush_before_rounding_up(mode: str) -> None:
    """What only rounding makes the smallest normal number is flushed where it would not reach it with a wider exponent."""
    smallest, wide = 2.0**-126, Format(F32.precision, 1023)
    near = [smallest * (1 + sign * k * 2.0**-23) for k in range(3) for sign in (-1, 1)]
    a, b = cross([*near, *(-x for x in near)], [1 - k * 2.0**-24 for k in range(9)], kinds=["f4", "f4"])
    a = flushed(a)
    a, b = a[a != 0], b[a != 0]

    def expected(results: list[Fraction]) -> Array:
        return flushed(np.array([round_fraction(result, wide, mode) for result in results]))

    products = [Fraction(float(x)) * Fraction(float(y)) for x, y in zip(a, b, strict=True)]
    assert same_floats(evaluate(f"mul.{mode}.ftz.f32 %d, %a, %b;", "f4", a, b), expected(products))
    x, y, c = cross([2.0**-100, -(2.0**-100)], [k * 2.0**-53 for k in range(1, 17)], [smallest, -smallest], kinds=["f4"] * 3)
    sums = [Fraction(float(i)) * Fraction(float(j)) + Fraction(float(k)) for i, j, k in zip(x, y, c, strict=True)]
    assert same_floats(evaluate(f"fma.{mode}.ftz.f32 %d, %a, %b, %c;", "f4", x, y, c), expected(sums))


@pytest.mark.parametrize("operation", ["add", "sub", "mul"])
def test_saturation(operation: str) -> None:
    values = edge_floats(32)
    a, b = cross(values, values, kinds=["f4", "f4"])
    exact_values = [exact(operation, float(x), float(y), 0.0, F32, "rn") for x, y in zip(a, b, strict=True)]
    expected = np.array([0.0 if math.isnan(v) else min(max(v, 0.0), 1.0) + 0.0 for v in exact_values], "f4")
    assert same_floats(evaluate(f"{operation}.sat.f32 %d, %a, %b;", "f4", a, b), expected)


def test_nan_is_canonical() -> None:
    a = np.array([0x7FC12345, 0xFFC00001, 0x7F800001], "u4")
    for code in ("add.f32 %d, %a, 0f3F800000;", "mul.f32 %d, %a, %a;", "fma.rn.f32 %d, %a, %a, %a;", "min.f32 %d, %a, %a;"):
        assert set(evaluate(code, "u4", a)) == {0x7FFFFFFF}, code


def extremum(a: float, b: float, largest: bool, nan_wins: bool) -> float:
    if math.isnan(a) or math.isnan(b):
        return math.nan if nan_wins or (math.isnan(a) and math.isnan(b)) else b if math.isnan(a) else a
    key = lambda x: (x, math.copysign(1, x))  # noqa: E731
    return max(a, b, key=key) if largest else min(a, b, key=key)


@pytest.mark.parametrize("nan", ["", ".NaN"])
@pytest.mark.parametrize("opcode", ["min", "max"])
@pytest.mark.parametrize("ptx", ["f32", "f64"])
def test_extrema(opcode: str, ptx: str, nan: str) -> None:
    if ptx == "f64" and nan:
        nan = ""
    values = edge_floats(bits_of(ptx))
    a, b = cross(values, values, kinds=[KINDS[ptx]] * 2)
    expected = [extremum(float(x), float(y), opcode == "max", bool(nan)) for x, y in zip(a, b, strict=True)]
    assert same_floats(evaluate(f"{opcode}{nan}.{ptx} %d, %a, %b;", KINDS[ptx], a, b), np.array(expected, KINDS[ptx]))


@pytest.mark.parametrize("opcode", ["min", "max"])
def test_extrema_of_magnitude(opcode: str) -> None:
    values = edge_floats(32)[:-1]
    a, b = cross(values, values, kinds=["f4", "f4"])
    size = [extremum(abs(float(x)), abs(float(y)), opcode == "max", False) for x, y in zip(a, b, strict=True)]
    sign = [math.copysign(1, x) * math.copysign(1, y) for x, y in zip(a, b, strict=True)]
    expected = np.array([math.copysign(x, s) for x, s in zip(size, sign, strict=True)], "f4")
    assert same_floats(evaluate(f"{opcode}.xorsign.abs.f32 %d, %a, %b;", "f4", a, b), expected)


@pytest.mark.parametrize("ptx", ["f32", "f64"])
def test_signs(ptx: str) -> None:
    values = edge_floats(bits_of(ptx))
    kind = KINDS[ptx]
    assert same_floats(evaluate(f"abs.{ptx} %d, %a;", kind, values), np.abs(values))
    assert same_floats(evaluate(f"neg.{ptx} %d, %a;", kind, values), -values)
    a, b = cross(values, values, kinds=[kind, kind])
    assert same_floats(evaluate(f"copysign.{ptx} %d, %a, %b;", kind, a, b), np.copysign(b, a))


@pytest.mark.parametrize("ptx", ["f32", "f64"])
def test_testp(ptx: str) -> None:
    values = edge_floats(bits_of(ptx))
    tiny = np.finfo(values.dtype).tiny
    size = np.abs(values)
    expected = {
        "finite": np.isfinite(values),
        "infinite": np.isinf(values),
        "number": ~np.isnan(values),
        "notanumber": np.isnan(values),
        "normal": np.isfinite(values) & ((size >= tiny) | (size == 0)),
        "subnormal": (size < tiny) & (size > 0),
    }
    for name, truth in expected.items():
        np.testing.assert_array_equal(evaluate(f"testp.{name}.{ptx} %d, %a;", "?", values), truth, name)


# Of each approximation: the function in double precision, the range of arguments, and the manual's bound (relative, absolute).
APPROXIMATIONS = {
    "rcp.approx.f32": (lambda x: 1 / x, (-1e30, 1e30), 2.0**-23, 0.0),
    "sqrt.approx.f32": (np.sqrt, (0, 1e30), 2.0**-23, 0.0),
    "rsqrt.approx.f32": (lambda x: 1 / np.sqrt(x), (1e-30, 1e30), 2.0**-22.9, 0.0),
    "sin.approx.f32": (np.sin, (-math.pi, math.pi), 0.0, 2.0**-20.5),
    "cos.approx.f32": (np.cos, (-math.pi, math.pi), 0.0, 2.0**-20.5),
    "lg2.approx.f32": (np.log2, (1e-6, 1e6), 2.0**-22, 2.0**-22),
    "ex2.approx.f32": (np.exp2, (-100, 100), 2.0**-22.5, 0.0),
    "tanh.approx.f32": (np.tanh, (-10, 10), 2.0**-11, 0.0),
}


@pytest.mark.parametrize("opcode", APPROXIMATIONS)
def test_approximations(opcode: str) -> None:
    function, (low, high), relative, absolute = APPROXIMATIONS[opcode]
    a = np.random.default_rng(7).uniform(low, high, 5000).astype("f4")
    expected = function(a.astype("f8"))
    error = np.abs(evaluate(f"{opcode} %d, %a;", "f4", a) - expected)
    assert (error <= relative * np.abs(expected) + absolute).all()


def test_approximate_limits() -> None:
    a = np.array([0.0, -0.0, math.inf, -math.inf, math.nan], "f4")
    expected = {
        "rcp.approx.ftz.f32": [math.inf, -math.inf, 0.0, -0.0, math.nan],
        "rsqrt.approx.ftz.f32": [math.inf, -math.inf, 0.0, math.nan, math.nan],
        "lg2.approx.ftz.f32": [-math.inf, -math.inf, math.inf, math.nan, math.nan],
        "ex2.approx.ftz.f32": [1.0, 1.0, math.inf, 0.0, math.nan],
        "sin.approx.ftz.f32": [0.0, -0.0, math.nan, math.nan, math.nan],
        "cos.approx.ftz.f32": [1.0, 1.0, math.nan, math.nan, math.nan],
    }
    for opcode, values in expected.items():
        assert same_floats(evaluate(f"{opcode} %d, %a;", "f4", a), np.array(values, "f4")), opcode


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_pairs(mode: str) -> None:
    """Packed single precision: each half rounded by itself, as exact fractions say."""
    generator = np.random.default_rng(5)
    a, b, c = ((generator.standard_normal((100, 2)) * 2.0 ** generator.integers(-8, 9, (100, 2))).astype("f4") for _ in range(3))
    exact = {
        "add": lambda x, y, z: x + y,
        "sub": lambda x, y, z: x - y,
        "mul": lambda x, y, z: x * y,
        "fma": lambda x, y, z: x * y + z,
    }
    for name, compute in exact.items():
        operands = "%a, %b, %c" if name == "fma" else "%a, %b"
        result = evaluate(
            f"{name}.{mode}.f32x2 %d, {operands};", "u8", *(v.view("u8")[:, 0] for v in (a, b, c)), target=EVERYTHING
        )
        flat = zip(a.ravel(), b.ravel(), c.ravel(), strict=True)
        expected = [round_fraction(compute(*(Fraction(float(v)) for v in numbers)), F32, mode) for numbers in flat]
        np.testing.assert_array_equal(result.view("f4"), np.array(expected, "f4"), name)
