"""Conversions against exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from tests.devices.emulator.numbers import F32, F64, array, dtype_of, edge_floats, edge_integers, round_fraction, same_floats
from tests.devices.emulator.runner import evaluate

INTEGERS = ["u8", "u16", "u32", "u64", "s8", "s16", "s32", "s64"]
FORMATS = {"f32": F32, "f64": F64}
KINDS = {"f32": "f4", "f64": "f8"}


def limits(ptx: str) -> tuple[int, int]:
    bits = int(ptx[1:])
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if ptx[0] == "s" else (0, 2**bits - 1)


@pytest.mark.parametrize("source", INTEGERS)
@pytest.mark.parametrize("target", INTEGERS)
def test_integers(target: str, source: str) -> None:
    a = array(edge_integers(source), source)
    wrapped = array([int(x) for x in a], target)
    np.testing.assert_array_equal(evaluate(f"cvt.{target}.{source} %d, %a;", dtype_of(target), a), wrapped)
    low, high = limits(target)
    clamped = array([min(max(int(x), low), high) for x in a], target)
    np.testing.assert_array_equal(evaluate(f"cvt.sat.{target}.{source} %d, %a;", dtype_of(target), a), clamped)


ROUNDINGS = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}


@pytest.mark.parametrize("source", ["f32", "f64"])
@pytest.mark.parametrize("target", INTEGERS)
def test_float_to_integer(target: str, source: str) -> None:
    low, high = limits(target)
    some = [0.5, 1.5, 2.5, -0.5, -1.5, 2.0**31, 2.0**32, 2.0**63, 2.0**64, -(2.0**31), -(2.0**63), 126.5, 127.5, 254.5, 255.5]
    a = np.concatenate([edge_floats(int(source[1:])), np.array(some, KINDS[source])])
    for mode, rounding in ROUNDINGS.items():
        expected = []
        for x in map(float, a):
            if math.isnan(x):
                expected.append(0 if source == "f32" and target[1:] != "64" else 1 << (int(target[1:]) - 1))
            elif math.isinf(x):
                expected.append(high if x > 0 else low)
            else:
                expected.append(min(max(rounding(Fraction(x)), low), high))
        actual = evaluate(f"cvt.{mode}.{target}.{source} %d, %a;", dtype_of(target), a)
        np.testing.assert_array_equal(actual, array(expected, target), mode)


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("source", INTEGERS)
@pytest.mark.parametrize("target", ["f32", "f64"])
def test_integer_to_float(target: str, source: str, mode: str) -> None:
    a = array(edge_integers(source, extra=40), source)
    expected = np.array([round_fraction(Fraction(int(x)), FORMATS[target], mode) for x in a], KINDS[target])
    assert same_floats(evaluate(f"cvt.{mode}.{target}.{source} %d, %a;", KINDS[target], a), expected)
    if target == "f32":  # of which no integer makes anything subnormal
        assert same_floats(evaluate(f"cvt.{mode}.ftz.f32.{source} %d, %a;", "f4", a), expected)


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_double_to_single(mode: str) -> None:
    a = np.concatenate([edge_floats(64, extra=50), edge_floats(32).astype("f8"), np.array([1e-40, 1e-46, 3.4028236e38])])
    expected = []
    for x in map(float, a):
        finite = math.isfinite(x)
        expected.append(math.copysign(round_fraction(Fraction(x), F32, mode), x) if finite else x)
    assert same_floats(evaluate(f"cvt.{mode}.f32.f64 %d, %a;", "f4", a), np.array(expected, "f4"))


def test_single_to_double() -> None:
    a = edge_floats(32)
    assert same_floats(evaluate("cvt.f64.f32 %d, %a;", "f8", a), a.astype("f8"))


@pytest.mark.parametrize("ptx", ["f32", "f64"])
def test_round_to_integer(ptx: str) -> None:
    a = np.concatenate([edge_floats(int(ptx[1:])), np.array([0.5, 1.5, 2.5, -0.5, -2.5], KINDS[ptx])])
    for mode, rounding in {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}.items():
        assert same_floats(evaluate(f"cvt.{mode}.{ptx}.{ptx} %d, %a;", KINDS[ptx], a), rounding(a)), mode


@pytest.mark.parametrize("ptx", ["f32", "f64"])
def test_saturate(ptx: str) -> None:
    a = edge_floats(int(ptx[1:]))
    expected = np.array([0.0 if math.isnan(x) else min(max(float(x), 0.0), 1.0) + 0.0 for x in a], KINDS[ptx])
    assert same_floats(evaluate(f"cvt.sat.{ptx}.{ptx} %d, %a;", KINDS[ptx], a), expected)
