"""Comparison and selection."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.llvm_builder import const
from kaasd.devices.emulator.isa.narrow import one
from kaasd.devices.emulator.isa.rounding import flush
from kaasd.devices.emulator.isa.table import instruction
from kaasd.devices.emulator.ptx.forms import Match
from kaasd.devices.emulator.ptx.types import Type

ORDERED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
UNSIGNED = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
UNORDERED = {f"{name}u": operator for name, operator in ORDERED.items()}
INTEGERS = "b16 b32 b64 u16 u32 u64 s16 s32 s64"
BOOLEANS = "and or xor"
RESULTS = "u32 s32 f32 f16 bf16"
COMPARISONS = [*ORDERED, *UNSIGNED, *UNORDERED, "num", "nan"]


def compare(t: Emitter, m: Match, kind: Type, a: Any, b: Any) -> Any:
    """Compare as the modifier ``cmp`` says."""
    name = m.text("cmp")
    if not kind.floating:
        if name in UNSIGNED:
            return t.b.icmp_unsigned(UNSIGNED[name], a, b)
        if name not in ORDERED:
            raise t.error(f".{name} does not compare integers")
        return (t.b.icmp_signed if kind.signed else t.b.icmp_unsigned)(ORDERED[name], a, b)
    if "ftz" in m:
        a, b = flush(t, a), flush(t, b)
    if name in ("num", "nan"):
        return t.b.fcmp_ordered("ord", a, b) if name == "num" else t.b.fcmp_unordered("uno", a, b)
    if name in UNORDERED:
        return t.b.fcmp_unordered(UNORDERED[name], a, b)
    if name not in ORDERED:
        raise t.error(f".{name} does not compare floating-point numbers")
    return t.b.fcmp_ordered(ORDERED[name], a, b)


def combine(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    """Combine two predicates as the modifier ``bool`` says."""
    return {"and": t.b.and_, "or": t.b.or_, "xor": t.b.xor}[m.text("bool")](a, b)


@instruction("setp.cmp{.ftz}.type d:pred{|d2:pred}, a, b", cmp=COMPARISONS, type=f"{INTEGERS} f32 f64", nans_alike=True)
def setp(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    result = compare(t, m, m.type, a, b)
    return result, t.b.not_(result)


@instruction(
    "setp.cmp.bool{.ftz}.type d:pred{|d2:pred}, a, b, c:pred", cmp=COMPARISONS, bool=BOOLEANS, type=f"{INTEGERS} f32 f64"
)
def setp_with(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    result = compare(t, m, m.type, a, b)
    return combine(t, m, result, c), combine(t, m, t.b.not_(result), c)


def _truth(t: Emitter, condition: Any, kind: Type) -> Any:
    """All ones, or 1.0, where the condition holds."""
    if kind.floating:
        return t.b.select(condition, ir.Constant(kind.ir, 1.0), ir.Constant(kind.ir, 0.0))
    if kind.kind == "f":
        return t.b.select(condition, kind.constant(one(kind.name)), kind.constant(0))
    return t.b.sext(condition, kind.raw)


@instruction("set.cmp{.ftz}.dtype.type d:dtype, a, b", cmp=COMPARISONS, dtype=RESULTS, type=f"{INTEGERS} f32 f64")
def set_(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return _truth(t, compare(t, m, m.type, a, b), m.type_of("dtype"))


@instruction(
    "set.cmp.bool{.ftz}.dtype.type d:dtype, a, b, c:pred",
    cmp=COMPARISONS, bool=BOOLEANS, dtype=RESULTS, type=f"{INTEGERS} f32 f64",
)  # fmt: skip
def set_with(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    return _truth(t, combine(t, m, compare(t, m, m.type, a, b), c), m.type_of("dtype"))


@instruction("selp.type d, a, b, c:pred", type=f"{INTEGERS} f32 f64")
def selp(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    return t.b.select(c, a, b)


@instruction("slct.type.s32 d, a, b, c:s32", type=f"{INTEGERS} f32 f64")
def slct(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    return t.b.select(t.b.icmp_signed(">=", c, const(c.type, 0)), a, b)


@instruction("slct{.ftz}.type.f32 d, a, b, c:f32", type=f"{INTEGERS} f32 f64")
def slct_float(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    c = flush(t, c) if "ftz" in m else c
    return t.b.select(t.b.fcmp_ordered(">=", c, ir.Constant(c.type, 0.0)), a, b)
