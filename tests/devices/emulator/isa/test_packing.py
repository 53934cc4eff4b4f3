"""Conversions of half precision to itself and to fp8."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.devices.emulator.isa.test_half import decode, encode, fp8_table, patterns
from tests.devices.emulator.runner import EVERYTHING, evaluate


@pytest.mark.parametrize("ptx", ["f16", "bf16"])
def test_rounding_to_integers(ptx: str) -> None:
    a = np.array([*patterns(ptx), *(encode(x, ptx) for x in (0.5, 1.5, 2.5, -0.5, -2.5, 7.75, -7.75))], "u2")
    values = np.array([decode(int(x), ptx) for x in a])
    for mode, rounding in {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}.items():
        with np.errstate(invalid="ignore"):
            expected = [encode(float(x), ptx) for x in rounding(values)]
        np.testing.assert_array_equal(evaluate(f"cvt.{mode}.{ptx}.{ptx} %d, %a;", "u2", a), expected, mode)


@pytest.mark.parametrize("relu", ["", ".relu"])
@pytest.mark.parametrize("source", ["f16", "bf16"])
@pytest.mark.parametrize("ptx", ["e4m3", "e5m2"])
def test_halves_to_fp8(ptx: str, source: str, relu: str) -> None:
    finite = sorted((value, pattern) for pattern, value in enumerate(fp8_table(ptx)[:128]) if math.isfinite(value))
    ties = [encode(x, source) for x in (1 + 2**-4, 1 + 3 * 2**-4, -1 - 2**-4, 464.0, 2.0**-10, 3 * 2.0**-10)]
    low = np.array([*patterns(source), *ties], "u2")
    expected = []
    for bits in low:
        x = decode(int(bits), source)
        size = min(abs(x), finite[-1][0])
        _, pattern = min(finite, key=lambda entry: (abs(entry[0] - size), entry[1] & 1))  # ties go to the even pattern
        negative = math.copysign(1, x) < 0
        expected.append(0x7F if math.isnan(x) else 0 if negative and relu else pattern | 0x80 * negative)
    both, results = low.astype("u4") | low[::-1].astype("u4") << np.uint32(16), np.array(expected, "u2")
    actual = evaluate(f"cvt.rn.satfinite{relu}.{ptx}x2.{source}x2 %d, %a;", "u2", both, target=EVERYTHING)
    np.testing.assert_array_equal(actual, results | results[::-1] << np.uint16(8))
