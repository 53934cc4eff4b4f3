"""Half-precision arithmetic: f16 and bf16, single and packed in twos."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.llvm_builder import const, i32
from kaasd.devices.emulator.isa.narrow import (
    FORMATS,
    base_of,
    each,
    flush_narrow,
    from_double,
    one,
    sum_to_odd,
    to_double,
)
from kaasd.devices.emulator.isa.rounding import saturate
from kaasd.devices.emulator.isa.table import instruction
from kaasd.devices.emulator.ptx.forms import Match
from kaasd.devices.emulator.ptx.types import F64

HALVES = "f16 f16x2 bf16 bf16x2"


def _arithmetic(t: Emitter, m: Match, compute: Callable[..., Any], *values: Any) -> Any:
    """Compute exactly (or rounded to odd) on doubles, and round once."""
    name = base_of(m.type)

    def element(*bits: Any) -> Any:
        if "ftz" in m:
            bits = tuple(flush_narrow(t, value, name) for value in bits)
        value = compute(*(to_double(t, value, name) for value in bits))
        if "sat" in m:
            value = saturate(t, value)
        result = from_double(t, value, name)
        if "ftz" in m:
            result = _flush_tiny(t, result, value, name)
        return clamp_negative(t, result, name) if "relu" in m else result

    return each(t, m.type, element, *values)


def _flush_tiny(t: Emitter, bits: Any, exact: Any, name: str) -> Any:
    """Replace by a zero of its sign what, with no end to the exponents, would round to less than the smallest normal number."""
    target = FORMATS[name]
    smallest = 2.0 ** (1 - target.bias)
    limit = smallest * (1 - 2.0 ** -(target.fraction + 2))  # a tie, which goes up
    tiny = t.b.fcmp_ordered("<", t.call("llvm.fabs.f64", F64.ir, exact), const(F64.ir, limit))
    return t.b.select(tiny, t.b.and_(bits, const(bits.type, 1 << target.bits - 1)), bits)


def clamp_negative(t: Emitter, bits: Any, name: str) -> Any:
    """``.relu``: what is below zero becomes +0; NaN stays."""
    b, target = t.b, FORMATS[name]
    negative = b.icmp_signed("<", bits, const(bits.type, 0))
    is_nan = b.is_("==", bits, target.nan)
    return b.select(b.and_(negative, b.not_(is_nan)), const(bits.type, 0), bits)


@instruction("add{.rnd}{.ftz}{.sat}.type d, a, b", rnd="rn", type=HALVES)
def add(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return _arithmetic(t, m, lambda x, y: sum_to_odd(t, x, y), a, b)


@instruction("sub{.rnd}{.ftz}{.sat}.type d, a, b", rnd="rn", type=HALVES)
def sub(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return _arithmetic(t, m, lambda x, y: sum_to_odd(t, x, t.b.fneg(y)), a, b)


@instruction("mul{.rnd}{.ftz}{.sat}.type d, a, b", rnd="rn", type=HALVES)
def mul(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return _arithmetic(t, m, t.b.fmul, a, b)


@instruction("fma.rn{.ftz}{.sat}{.relu}.type d, a, b, c", type=HALVES)
def fma(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    return _arithmetic(t, m, lambda x, y, z: sum_to_odd(t, t.b.fmul(x, y), z), a, b, c)


@instruction("abs{.ftz}.type d, a", type=HALVES)
def absolute(t: Emitter, m: Match, a: Any) -> Any:
    def element(bits: Any) -> Any:
        return t.b.and_(flush_narrow(t, bits, base_of(m.type)) if "ftz" in m else bits, const(bits.type, 0x7FFF))

    return each(t, m.type, element, a)


@instruction("neg{.ftz}.type d, a", type=HALVES)
def negate(t: Emitter, m: Match, a: Any) -> Any:
    def element(bits: Any) -> Any:
        return t.b.xor(flush_narrow(t, bits, base_of(m.type)) if "ftz" in m else bits, const(bits.type, 0x8000))

    return each(t, m.type, element, a)


def _extremum(t: Emitter, m: Match, largest: bool, a: Any, b: Any) -> Any:
    name = base_of(m.type)
    function = f"llvm.{'max' if largest else 'min'}imum{'' if 'NaN' in m else 'num'}.f64"

    def element(x: Any, y: Any) -> Any:
        if "ftz" in m:
            x, y = flush_narrow(t, x, name), flush_narrow(t, y, name)
        sign = t.b.and_(t.b.xor(x, y), const(x.type, 0x8000))
        if "abs" in m:
            x, y = (t.b.and_(value, const(value.type, 0x7FFF)) for value in (x, y))
        result = from_double(t, t.call(function, F64.ir, to_double(t, x, name), to_double(t, y, name)), name)
        if "xorsign" not in m:
            return result
        return t.b.select(t.b.is_("==", result, FORMATS[name].nan), result, t.b.or_(result, sign))

    return each(t, m.type, element, a, b)


@instruction("min{.ftz}{.NaN}{.xorsign}{.abs}.type d, a, b", type=HALVES)
def minimum(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return _extremum(t, m, False, a, b)


@instruction("max{.ftz}{.NaN}{.xorsign}{.abs}.type d, a, b", type=HALVES)
def maximum(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return _extremum(t, m, True, a, b)


@instruction("ex2.approx{.ftz}.type d, a", type=HALVES)
def ex2(t: Emitter, m: Match, a: Any) -> Any:
    return _arithmetic(t, m, lambda x: t.call("exp2", F64.ir, x), a)


@instruction("tanh.approx.type d, a", type=HALVES)
def tanh(t: Emitter, m: Match, a: Any) -> Any:
    return _arithmetic(t, m, lambda x: t.call("tanh", F64.ir, x), a)


@instruction("selp.type d, a, b, c:pred", type="f16 f16x2 bf16 bf16x2")
def selp(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    return t.b.select(c, a, b)


ORDERED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
COMPARISONS = [*ORDERED, *(f"{name}u" for name in ORDERED), "num", "nan"]
BOOLEANS = "and or xor"


def _compare(t: Emitter, m: Match, a: Any, b: Any) -> list[Any]:
    """Compare the elements, lower one first."""
    name, comparison = base_of(m.type), m.text("cmp")
    results = []

    def element(x: Any, y: Any) -> Any:
        if "ftz" in m:
            x, y = flush_narrow(t, x, name), flush_narrow(t, y, name)
        p, q = to_double(t, x, name), to_double(t, y, name)
        if comparison in ("num", "nan"):
            truth = t.b.fcmp_ordered("ord", p, q) if comparison == "num" else t.b.fcmp_unordered("uno", p, q)
        elif comparison in ORDERED:
            truth = t.b.fcmp_ordered(ORDERED[comparison], p, q)
        else:
            truth = t.b.fcmp_unordered(ORDERED[comparison[:-1]], p, q)
        results.append(truth)
        return x

    each(t, m.type, element, a, b)
    return results


def _combine(t: Emitter, m: Match, truth: Any, c: Any) -> Any:
    return truth if c is None else {"and": t.b.and_, "or": t.b.or_, "xor": t.b.xor}[m.text("bool")](truth, c)


@instruction("setp.cmp{.ftz}.type d:pred{|d2:pred}, a, b", cmp=COMPARISONS, type=HALVES)
@instruction("setp.cmp.bool{.ftz}.type d:pred{|d2:pred}, a, b, c:pred", cmp=COMPARISONS, bool=BOOLEANS, type=HALVES)
def setp(t: Emitter, m: Match, a: Any, b: Any, c: Any = None) -> Any:
    """Of one element: the comparison and its opposite. Of two: one predicate each."""
    results = _compare(t, m, a, b)
    second = results[1] if len(results) == 2 else t.b.not_(results[0])
    return _combine(t, m, results[0], c), _combine(t, m, second, c)


@instruction(
    "set.cmp{.ftz}.dtype.type d:dtype, a, b", cmp=COMPARISONS, dtype="u16 s16 u32 s32 f16 f16x2 bf16 bf16x2", type=HALVES
)
@instruction(
    "set.cmp.bool{.ftz}.dtype.type d:dtype, a, b, c:pred",
    cmp=COMPARISONS, bool=BOOLEANS, dtype="u16 s16 u32 s32 f16 f16x2 bf16 bf16x2", type=HALVES,
)  # fmt: skip
def set_(t: Emitter, m: Match, a: Any, b: Any, c: Any = None) -> Any:
    results = [_combine(t, m, truth, c) for truth in _compare(t, m, a, b)]
    target = m.type_of("dtype")
    if len(results) == 1:
        if target.kind != "f":
            return t.b.sext(results[0], target.raw)
        return t.b.select(results[0], const(target.raw, one(target.name)), const(target.raw, 0))
    true = 0xFFFF if target.kind != "f" else one(base_of(target))
    low, high = (t.b.select(truth, i32(true), i32(0)) for truth in results)
    return t.b.or_(low, t.b.shl(high, i32(16)))
