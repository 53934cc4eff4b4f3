"""Conversions between types."""

from __future__ import annotations

from typing import Any

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.isa.integer import maximum, minimum
from kaasd.devices.emulator.isa.rounding import finish, flush, inputs, rounded, saturate, suffix
from kaasd.devices.emulator.isa.table import instruction
from kaasd.devices.emulator.ptx.forms import Match
from kaasd.devices.emulator.ptx.types import F32, F64

INTEGERS = "u8 u16 u32 u64 s8 s16 s32 s64"
ROUND_TO_INTEGER = {"rni": "roundeven", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}


def limits(bits: int, signed: bool) -> tuple[int, int]:
    """Return the smallest and largest number of an integer type."""
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)


@instruction("cvt{.sat}.type.atype d, a:atype", type=INTEGERS, atype=INTEGERS)
def between_integers(t: Emitter, m: Match, a: Any) -> Any:
    b, source, target = t.b, m.type_of("atype"), m.type
    if "sat" in m:
        low, high = limits(target.bits, target.signed)
        source_low, source_high = limits(source.bits, source.signed)
        if source_low < low:
            a = maximum(t, a, source.constant(low), source)
        if source_high > high:
            a = minimum(t, a, source.constant(high), source)
    if target.bits > source.bits:
        return b.sext(a, target.raw) if source.signed else b.zext(a, target.raw)
    return b.trunc(a, target.raw) if target.bits < source.bits else a


@instruction("cvt.rnd{.ftz}{.sat}.type.atype d, a:atype", rnd=ROUND_TO_INTEGER, type=INTEGERS, atype="f32 f64")
def to_integer(t: Emitter, m: Match, a: Any) -> Any:
    (value,) = inputs(t, m, a)
    return convert_to_integer(t, m, value, wide=m.type_of("atype") is F64 or m.type.bits == 64)


def convert_to_integer(t: Emitter, m: Match, value: Any, wide: bool) -> Any:
    """Out of range gives the nearest limit; NaN gives 0, or the sign bit alone for ``wide`` types."""
    kind, target = value.type, m.type
    whole = t.call(f"llvm.{ROUND_TO_INTEGER[m.text('rnd')]}.{suffix(kind)}", kind, value)
    name = "fptosi" if target.signed else "fptoui"
    result = t.call(f"llvm.{name}.sat.i{target.bits}.{suffix(kind)}", target.raw, whole)
    if wide:
        nan = t.b.fcmp_unordered("uno", value, value)
        result = t.b.select(nan, target.constant(1 << target.bits - 1), result)
    return result


@instruction("cvt.rnd{.ftz}{.sat}.type.atype d, a:atype", rnd="rn rz rm rp", type="f32 f64", atype=INTEGERS)
def from_integer(t: Emitter, m: Match, a: Any) -> Any:
    value = rounded(t, "sitofp" if m.type_of("atype").signed else "uitofp", m["rnd"], m.type.ir, a)
    return saturate(t, value) if "sat" in m else value


@instruction("cvt{.ftz}{.sat}.f64.f32 d:f64, a:f32")
def widen(t: Emitter, m: Match, a: Any) -> Any:
    (value,) = inputs(t, m, a)
    value = t.b.fpext(value, F64.ir)
    return saturate(t, value) if "sat" in m else value


@instruction("cvt.rnd{.ftz}{.sat}.f32.f64 d:f32, a:f64", rnd="rn rz rm rp")
def narrow(t: Emitter, m: Match, a: Any) -> Any:
    """A NaN keeps its sign and the upper bits of its payload, and becomes quiet."""
    value = rounded(t, "fptrunc", m["rnd"], F32.ir, a)
    value = flush(t, value) if "ftz" in m else value
    return saturate(t, value) if "sat" in m else value


@instruction("cvt{.rnd}{.ftz}{.sat}.f32.f32 d, a", rnd=ROUND_TO_INTEGER)
@instruction("cvt{.rnd}{.sat}.f64.f64 d, a", rnd=ROUND_TO_INTEGER)
def same(t: Emitter, m: Match, a: Any) -> Any:
    (value,) = inputs(t, m, a)
    if not any(word in m for word in ("rnd", "ftz", "sat")):
        return value  # a move: NaN stays as it is
    if "rnd" in m:
        value = t.call(f"llvm.{ROUND_TO_INTEGER[m.text('rnd')]}.{suffix(a.type)}", a.type, value)
    return finish(t, m, value)
