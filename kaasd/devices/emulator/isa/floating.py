"""Single- and double-precision arithmetic."""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.llvm_builder import I32, I64, i32, i64
from kaasd.devices.emulator.isa.rounding import CANONICAL_NAN, canonical, finish, flush, inputs, real, rounded, suffix
from kaasd.devices.emulator.isa.table import instruction
from kaasd.devices.emulator.ptx.forms import Match
from kaasd.devices.emulator.ptx.types import F32, F64

ROUNDING = "rn rz rm rp"
_SCALE = 2.0**64
"""Takes tiny results away from the end of the exponents; a source that it makes infinite makes no result tiny."""


@instruction("add{.rnd}{.ftz}{.sat}.type d, a, b", rnd=ROUNDING, type="f32 f64", nans_alike=True)
def add(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return _compute(t, m, "fadd", a, b)


@instruction("sub{.rnd}{.ftz}{.sat}.type d, a, b", rnd=ROUNDING, type="f32 f64", nans_alike=True)
def sub(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return _compute(t, m, "fsub", a, b)


@instruction("mul{.rnd}{.ftz}{.sat}.type d, a, b", rnd=ROUNDING, type="f32 f64", nans_alike=True)
def mul(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return _compute(t, m, "fmul", a, b)


@instruction("fma.rnd{.ftz}{.sat}.type d, a, b, c", rnd=ROUNDING, type="f32 f64", nans_alike=True)
@instruction("mad{.rnd}{.ftz}{.sat}.type d, a, b, c", rnd=ROUNDING, type="f32 f64")
def fma(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    return _compute(t, m, "fma", a, b, c)


def _compute(t: Emitter, m: Match, operation: str, *values: Any) -> Any:
    """Compute in the instruction's rounding mode, with its ``.ftz`` and ``.sat``."""
    a, b, *c = inputs(t, m, *values)
    result = rounded(t, operation, m["rnd"], a.type, a, b, *c)
    if "ftz" in m and operation in ("fmul", "fma"):  # sums are exact where they are tiny
        scaled = [t.b.fmul(value, real(a.type, _SCALE)) for value in (a, *c)]
        result = _flush_tiny(t, result, rounded(t, operation, m["rnd"], a.type, scaled[0], b, *scaled[1:]))
    return finish(t, m, result)


def _pairs(t: Emitter, m: Match, operation: str, *values: Any) -> Any:
    """Compute on two single-precision numbers packed in 64 bits."""
    result = i64(0)
    for place in (0, 32):
        parts = [t.b.bitcast(t.b.trunc(t.b.lshr(value, i64(place)), I32), F32.ir) for value in values]
        number = _compute(t, m, operation, *parts)
        result = t.b.or_(result, t.b.shl(t.b.zext(t.b.bitcast(number, I32), I64), i64(place)))
    return result


@instruction("add{.rnd}{.ftz}.f32x2 d:b64, a:b64, b:b64", rnd=ROUNDING)
def add_pairs(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return _pairs(t, m, "fadd", a, b)


@instruction("sub{.rnd}{.ftz}.f32x2 d:b64, a:b64, b:b64", rnd=ROUNDING)
def sub_pairs(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return _pairs(t, m, "fsub", a, b)


@instruction("mul{.rnd}{.ftz}.f32x2 d:b64, a:b64, b:b64", rnd=ROUNDING)
def mul_pairs(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return _pairs(t, m, "fmul", a, b)


@instruction("fma.rnd{.ftz}.f32x2 d:b64, a:b64, b:b64, c:b64", rnd=ROUNDING)
def fma_pairs(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    return _pairs(t, m, "fma", a, b, c)


@instruction("div.rnd{.ftz}.type d, a, b", rnd=[*ROUNDING.split(), "full", "approx"], type="f32 f64", nans_alike=True)
def div(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    mode = None if m["rnd"] in ("full", "approx") else m["rnd"]
    a, b = inputs(t, m, a, b)
    quotient = rounded(t, "fdiv", mode, a.type, a, b)
    if m["rnd"] == "approx":  # the reciprocal of so large a divisor is taken for zero
        size = t.call("llvm.fabs.f32", a.type, b)
        large = t.b.and_(t.b.fcmp_ordered(">", size, real(a.type, 2.0**126)), t.b.fcmp_ordered("<", size, real(a.type, math.inf)))
        zero = t.call("llvm.copysign.f32", a.type, real(a.type, 0.0), b)
        quotient = t.b.select(large, t.b.fmul(a, zero), quotient)
    elif "ftz" in m:
        quotient = _flush_tiny(t, quotient, rounded(t, "fdiv", mode, a.type, t.b.fmul(a, real(a.type, _SCALE)), b))
    return finish(t, m, quotient)


def _flush_tiny(t: Emitter, value: Any, scaled: Any) -> Any:
    """Flush also what rounding made the smallest normal number, and would not have with a wider range of exponents.

    ``scaled`` is the same result, _SCALE times as large and rounded there.
    """
    if not isinstance(value.type, ir.FloatType):
        return value
    tiny = t.b.fcmp_ordered("<", t.call("llvm.fabs.f32", value.type, scaled), real(value.type, _SCALE * 2.0**-126))
    zero = t.call("llvm.copysign.f32", value.type, real(value.type, 0.0), value)
    return t.b.select(tiny, zero, value)


@instruction("rcp.rnd{.ftz}.type d, a", rnd=[*ROUNDING.split(), "approx"], type="f32 f64")
def rcp(t: Emitter, m: Match, a: Any) -> Any:
    if m["rnd"] == "approx" and m.type is F64:
        return _upper_half(t, t.b.fdiv(real(a.type, 1.0), _upper_source(t, a)))
    mode = None if m["rnd"] == "approx" else m["rnd"]
    return finish(t, m, rounded(t, "fdiv", mode, a.type, real(a.type, 1.0), *inputs(t, m, a)))


@instruction("sqrt.rnd{.ftz}.type d, a", rnd=[*ROUNDING.split(), "approx"], type="f32 f64")
def sqrt(t: Emitter, m: Match, a: Any) -> Any:
    (a,) = inputs(t, m, a)
    mode = None if m["rnd"] == "approx" else m["rnd"]
    root = rounded(t, "sqrt", mode, a.type, a)
    if m.type is F64:
        return root
    # The test for NaN is one of integers, since LLVM drops one of floats: it takes the root's own NaN to be as good.
    bits = t.b.bitcast(a, I32)
    nan = t.b.and_(t.b.is_(">", bits, 0x7F800000), t.b.is_("!=", bits, 0x80000000))
    return t.b.select(nan, t.b.bitcast(i32(CANONICAL_NAN), a.type), root)


@instruction("rsqrt.approx{.ftz}.type d, a", type="f32 f64")
def rsqrt(t: Emitter, m: Match, a: Any) -> Any:
    if m.type is F64:
        root = t.b.fdiv(real(F64.ir, 1.0), rounded(t, "sqrt", None, F64.ir, _upper_source(t, a) if "ftz" in m else a))
        return _upper_half(t, root) if "ftz" in m else root
    (a,) = inputs(t, m, a)
    root = rounded(t, "sqrt", None, F64.ir, t.b.fpext(a, F64.ir))
    return finish(t, m, t.b.fptrunc(t.b.fdiv(real(F64.ir, 1.0), root), a.type))


def _flush_double(t: Emitter, value: Any) -> Any:
    """Replace a double-precision subnormal by a zero of its sign."""
    bits = t.b.bitcast(value, I64)
    subnormal = t.b.not_(t.b.bits(bits, 0x7FF0000000000000))
    return t.b.bitcast(t.b.select(subnormal, t.b.and_(bits, i64(1 << 63)), bits), value.type)


def _upper_source(t: Emitter, value: Any) -> Any:
    """What the double-precision approximations read: the upper 32 bits, flushed."""
    bits = t.b.and_(t.b.bitcast(value, I64), i64(0xFFFFFFFF00000000))
    return _flush_double(t, t.b.bitcast(bits, value.type))


def _upper_half(t: Emitter, value: Any) -> Any:
    """What the double-precision approximations return: the upper 32 bits, flushed; infinity and zero as they are."""
    bits = t.b.and_(t.b.bitcast(_flush_double(t, value), I64), i64(0xFFFFFFFF00000000))
    nan = t.b.fcmp_unordered("uno", value, value)
    return t.b.bitcast(t.b.select(nan, i64(0x7FFFFFFF00000000), bits), value.type)


def _by_library(t: Emitter, m: Match, function: str, a: Any) -> Any:
    """Compute with the C library's double-precision function and round once: far within the manual's bound."""
    (a,) = inputs(t, m, a)
    wide = t.call(function, F64.ir, t.b.fpext(a, F64.ir))
    return finish(t, m, t.b.fptrunc(wide, a.type))


@instruction("sin.approx{.ftz}.f32 d, a")
def sin(t: Emitter, m: Match, a: Any) -> Any:
    return _by_library(t, m, "sin", a)


@instruction("cos.approx{.ftz}.f32 d, a")
def cos(t: Emitter, m: Match, a: Any) -> Any:
    return _by_library(t, m, "cos", a)


@instruction("lg2.approx{.ftz}.f32 d, a")
def lg2(t: Emitter, m: Match, a: Any) -> Any:
    return _by_library(t, m, "log2", a)


@instruction("ex2.approx{.ftz}.f32 d, a")
def ex2(t: Emitter, m: Match, a: Any) -> Any:
    return _by_library(t, m, "exp2", a)


@instruction("tanh.approx.f32 d, a")
def tanh(t: Emitter, m: Match, a: Any) -> Any:
    return _by_library(t, m, "tanh", a)


@instruction("abs{.ftz}.type d, a", type="f32 f64", nans_alike=True)
def absolute(t: Emitter, m: Match, a: Any) -> Any:
    return finish(t, m, t.call(f"llvm.fabs.{suffix(a.type)}", a.type, *inputs(t, m, a)))


@instruction("neg{.ftz}.type d, a", type="f32 f64", nans_alike=True)
def negate(t: Emitter, m: Match, a: Any) -> Any:
    return finish(t, m, t.b.fneg(inputs(t, m, a)[0]))


@instruction("copysign.type d, a, b", type="f32 f64")
def copysign(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    """The sign is that of the first source."""
    return t.call(f"llvm.copysign.{suffix(a.type)}", a.type, b, a)


def extremum(t: Emitter, m: Match, largest: bool, *values: Any) -> Any:
    """Minimum or maximum, with -0 below +0; NaN loses, or wins where ``.NaN`` is given."""
    values = tuple(inputs(t, m, *values))
    kind = values[0].type
    wins = "NaN" in m
    name = ("maximum" if largest else "minimum") + ("" if wins else "num")
    result = values[0]
    for value in values[1:]:
        a, b = result, value
        if "xorsign" in m:
            sign = t.b.and_(t.b.xor(t.b.bitcast(a, I32), t.b.bitcast(b, I32)), i32(0x80000000))
            a, b = (t.call(f"llvm.fabs.{suffix(kind)}", kind, x) for x in (a, b))
        elif "abs" in m:
            a, b = (t.call(f"llvm.fabs.{suffix(kind)}", kind, x) for x in (a, b))
        result = t.call(f"llvm.{name}.{suffix(kind)}", kind, a, b)
        if "xorsign" in m:
            result = t.b.bitcast(t.b.or_(t.b.and_(t.b.bitcast(result, I32), i32(0x7FFFFFFF)), sign), kind)
    return canonical(t, result)


@instruction("min{.ftz}{.NaN}{.xorsign}{.abs}.type d, a, b{, c}", type="f32 f64")
def minimum(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    return extremum(t, m, False, *(value for value in (a, b, c) if value is not None))


@instruction("max{.ftz}{.NaN}{.xorsign}{.abs}.type d, a, b{, c}", type="f32 f64")
def maximum(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    return extremum(t, m, True, *(value for value in (a, b, c) if value is not None))


@instruction("testp.test.type d:pred, a", test="finite infinite number notanumber normal subnormal", type="f32 f64")
def testp(t: Emitter, m: Match, a: Any) -> Any:
    b, kind = t.b, a.type
    size = t.call(f"llvm.fabs.{suffix(kind)}", kind, a)
    infinity = real(kind, float("inf"))
    smallest = real(kind, 2.0**-1022 if m.type is F64 else 2.0**-126)
    match m["test"]:
        case "finite":
            return b.fcmp_ordered("<", size, infinity)
        case "infinite":
            return b.fcmp_ordered("==", size, infinity)
        case "number":
            return b.fcmp_ordered("ord", a, a)
        case "notanumber":
            return b.fcmp_unordered("uno", a, a)
    subnormal = b.and_(b.fcmp_ordered("<", size, smallest), b.fcmp_ordered(">", size, real(kind, 0.0)))
    if m["test"] == "subnormal":
        return subnormal
    return b.and_(b.fcmp_ordered("<", size, infinity), b.not_(subnormal))  # zero is normal


__all__ = ["ROUNDING", "extremum", "flush", "ir"]
