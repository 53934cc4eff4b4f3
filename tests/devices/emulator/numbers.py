"""Numbers for tests: edge cases, and correct rounding worked out with fractions."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from tests.devices.emulator.runner import Array

DTYPES = {"u": "u", "s": "i", "b": "u"}


def dtype_of(ptx: str) -> str:
    """Return NumPy's name of an integer type of PTX."""
    return f"{DTYPES[ptx[0]]}{int(ptx[1:]) // 8}"


def edge_integers(ptx: str, extra: int = 6) -> list[int]:
    """Return edge cases of an integer type, and some others."""
    bits, _signed = int(ptx[1:]), ptx[0] == "s"
    patterns = {0, 1, 2, 3, 7, 31, 32, 100, 2 ** (bits - 1), 2 ** (bits - 1) - 1, 2 ** (bits - 1) + 1, 2**bits - 1, 2**bits - 2}
    patterns |= {2 ** (bits // 2), 2 ** (bits // 2) - 1}
    generator = random.Random(ptx)
    patterns |= {generator.getrandbits(bits) for _ in range(extra)}
    return [wrap(pattern, ptx) for pattern in sorted(patterns)]


def wrap(value: int, ptx: str) -> int:
    """Wrap an integer to an integer type."""
    bits = int(ptx[1:])
    value &= 2**bits - 1
    return value - 2**bits if ptx[0] == "s" and value >> (bits - 1) else value


def array(values: list[int], ptx: str) -> Array:
    """Return integers as an array of an integer type."""
    return np.array([wrap(value, ptx) for value in values], dtype_of(ptx))


@dataclass(frozen=True)
class Format:
    """A binary floating-point format."""

    precision: int
    """Bits of the significand, the hidden one included."""
    emax: int

    @property
    def emin(self) -> int:
        return 1 - self.emax


F16, BF16, F32, F64 = Format(11, 15), Format(8, 127), Format(24, 127), Format(53, 1023)


def round_fraction(value: Fraction, to: Format, mode: str) -> float:
    """Round an exact number: ``rn`` to nearest even, ``rz`` to zero, ``rm`` down, ``rp`` up. Zero comes out as +0."""
    if value == 0:
        return 0.0
    size, negative = abs(value), value < 0
    exponent = math.floor(math.log2(size.numerator) - math.log2(size.denominator))
    while Fraction(2) ** exponent > size:
        exponent -= 1
    while Fraction(2) ** (exponent + 1) <= size:
        exponent += 1
    unit = Fraction(2) ** (max(exponent, to.emin) - to.precision + 1)
    whole, rest = divmod(size, unit)
    half = unit / 2
    up = {
        "rn": rest > half or (rest == half and whole % 2 == 1),
        "rz": False,
        "rm": negative and rest > 0,
        "rp": not negative and rest > 0,
    }[mode]
    result = (whole + up) * unit
    largest = (2 - Fraction(2) ** (1 - to.precision)) * Fraction(2) ** to.emax
    if result > largest:
        stays = mode == "rz" or (mode == "rm" and not negative) or (mode == "rp" and negative)
        return math.copysign(float(largest) if stays else math.inf, -1 if negative else 1)
    return math.copysign(float(result), -1 if negative else 1)


def edge_floats(bits: int, extra: int = 10) -> Array:
    """Return edge cases of single or double precision: zeros, subnormals, limits, infinities, NaN, and some others."""
    kind = {32: "f4", 64: "f8"}[bits]
    info = np.finfo(kind)
    generator = random.Random(bits)
    values = [0.0, 1.0, 1.5, 2.0, 3.0, 0.1, 1e-3, 1e10, math.pi]
    values += [float(info.max), float(info.tiny), float(info.smallest_subnormal), float(info.tiny) / 2, float(info.eps)]
    values += [1 + float(info.eps), float(info.max) / 2, float(info.tiny) * 1.5, math.inf]
    values += [generator.uniform(-1, 1) * 2.0 ** generator.randint(-40, 40) for _ in range(extra)]
    return np.array([*values, *(-v for v in values), math.nan], kind)


def same_floats(actual: Array, expected: Array) -> bool:
    """Whether two arrays of floats are alike: bit for bit, except that any NaN is like any other."""
    nan = np.isnan(expected)
    unsigned = actual.dtype.str.replace("f", "u")
    alike = bool((np.isnan(actual) == nan).all())
    return alike and bool((actual.view(unsigned)[~nan] == expected.astype(actual.dtype).view(unsigned)[~nan]).all())
