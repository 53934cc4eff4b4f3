"""Conversions to and from half precision, tf32 and fp8, and packing of integers."""

from __future__ import annotations

from typing import Any

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.llvm_builder import I16, I32, I64, const, i32, i64
from kaasd.devices.emulator.isa.conversion import INTEGERS, ROUND_TO_INTEGER, convert_to_integer, limits
from kaasd.devices.emulator.isa.half import clamp_negative
from kaasd.devices.emulator.isa.integer import maximum, minimum
from kaasd.devices.emulator.isa.narrow import FORMATS, flush_narrow, from_double, sum_to_odd, to_double
from kaasd.devices.emulator.isa.rounding import finish, flush, saturate
from kaasd.devices.emulator.isa.table import instruction
from kaasd.devices.emulator.ptx.forms import Match
from kaasd.devices.emulator.ptx.types import F32, F64, TYPES

HALF = "f16 bf16"
MODES = "rn rz rm rp"


def _double(t: Emitter, m: Match, value: Any, name: str) -> Any:
    """Return any floating-point value in double precision."""
    if name == "f64":
        return value
    # Between f16 and f32 nothing is flushed: what is subnormal in the one is not in the other.
    flushes = "ftz" in m and {m["type"], m["atype"]} != {"f16", "f32"}
    if name == "f32":
        return t.b.fpext(flush(t, value) if flushes else value, F64.ir)
    return to_double(t, flush_narrow(t, value, name) if flushes else value, name)


def _narrow(t: Emitter, m: Match, value: Any, name: str) -> Any:
    """Round a double as the modifiers say."""
    if "sat" in m:
        value = saturate(t, value)
    result = from_double(t, value, name, m["rnd"] or "rn", "satfinite" in m)
    return clamp_negative(t, result, name) if "relu" in m else result


@instruction("cvt{.rnd}{.relu}{.satfinite}{.ftz}{.sat}.type.atype d, a:atype", rnd=MODES, type=HALF, atype="f32 f64 f16 bf16")
def to_half(t: Emitter, m: Match, a: Any) -> Any:
    result = _narrow(t, m, _double(t, m, a, m.text("atype")), m.type.name)
    if m["atype"] != "f64" or "sat" in m:
        return result
    # A NaN of double precision keeps its sign and the upper bits of its payload.
    b, fraction = t.b, FORMATS[m.type.name].fraction
    bits = b.bitcast(a, I64)
    payload = b.trunc(b.lshr(bits, i64(52 - fraction)), I16)
    sign = b.shl(b.trunc(b.lshr(bits, i64(63)), I16), const(I16, 15))
    quiet = const(I16, (1 << 15) - (1 << fraction - 1))
    nan = b.or_(sign, b.or_(quiet, b.and_(payload, const(I16, (1 << fraction) - 1))))
    return b.select(b.fcmp_unordered("uno", a, a), nan, result)


@instruction("cvt.rnd{.ftz}{.sat}.type.type2 d, a", rnd=ROUND_TO_INTEGER, type=HALF, type2=HALF)
def half_to_whole(t: Emitter, m: Match, a: Any) -> Any:
    if m["type"] != m["type2"]:
        raise t.error("rounding to an integer keeps the type")
    value = t.call(f"llvm.{ROUND_TO_INTEGER[m.text('rnd')]}.f64", F64.ir, _double(t, m, a, m.type.name))
    return from_double(t, saturate(t, value) if "sat" in m else value, m.type.name)


@instruction("cvt{.rnd}{.ftz}{.sat}.type.atype d, a:atype", rnd=MODES, type="f32 f64", atype=HALF)
def from_half(t: Emitter, m: Match, a: Any) -> Any:
    if m.type is F32 and m["atype"] == "bf16" and not ("ftz" in m or "sat" in m):
        return t.b.bitcast(t.b.shl(t.b.zext(a, I32), const(I32, 16)), F32.ir)  # NaN stays as it is
    value = _double(t, m, a, m.text("atype"))
    if m.type is not F64:
        value = t.b.fptrunc(value, m.type.ir)
    return finish(t, m, value)


@instruction("cvt.rnd{.ftz}{.sat}.type.atype d, a:atype", rnd=ROUND_TO_INTEGER, type=INTEGERS, atype=HALF)
def half_to_integer(t: Emitter, m: Match, a: Any) -> Any:
    return convert_to_integer(t, m, _double(t, m, a, m.text("atype")), wide=m.type.bits == 64)


@instruction("cvt.rnd{.sat}.type.atype d, a:atype", rnd=MODES, type=HALF, atype=INTEGERS)
def integer_to_half(t: Emitter, m: Match, a: Any) -> Any:
    source, b = m.type_of("atype"), t.b
    if source.bits == 64:  # both halves are exact
        high = (b.ashr if source.signed else b.lshr)(a, const(a.type, 32))
        high = b.sitofp(high, F64.ir)  # an unsigned one has its upper half clear
        low = b.uitofp(b.and_(a, const(a.type, 0xFFFFFFFF)), F64.ir)
        value = sum_to_odd(t, b.fmul(high, const(F64.ir, 2.0**32)), low)
    else:
        value = b.sitofp(a, F64.ir) if source.signed else b.uitofp(a, F64.ir)
    return _narrow(t, m, value, m.type.name)


@instruction("cvt.rnd{.relu}{.satfinite}.type.f32 d, a:f32, b:f32", rnd="rn rz", type="f16x2 bf16x2")
def pack_halves(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    """The first source goes to the upper half."""
    name = m.type.name.removesuffix("x2")
    high, low = (t.b.zext(_narrow(t, m, _double(t, m, value, "f32"), name), I32) for value in (a, b))
    return t.b.or_(t.b.shl(high, const(I32, 16)), low)


@instruction("cvt.rnd{.relu}{.satfinite}.tf32.f32 d:b32, a:f32", rnd="rna rn rz")
def to_tf32(t: Emitter, m: Match, a: Any) -> Any:
    if m["rnd"] == "rna":
        return _tf32_away(t, m, a)
    return _narrow(t, m, _double(t, m, a, "f32"), "tf32")


def _tf32_away(t: Emitter, m: Match, a: Any) -> Any:
    """Ties go away from zero. It is integer arithmetic on the bits, which treats a NaN as a number past infinity."""
    b, beyond = t.b, 0x7F800000
    bits = b.bitcast(a, I32)
    special = b.is_("==", b.and_(bits, i32(beyond)), beyond)
    result = b.and_(b.select(special, bits, b.add(bits, i32(1 << 12))), i32(-1 << 13))
    if "satfinite" not in m:
        return result
    return b.select(b.is_("==", b.and_(result, i32(beyond)), beyond), b.sub(result, i32(1 << 13)), result)


FP8 = "e4m3x2 e5m2x2"


@instruction("cvt.rn.satfinite{.relu}.type.f32 d, a:f32, b:f32", type=FP8)
def pack_fp8(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    """The first source goes to the upper byte."""
    name = m.type.name.removesuffix("x2")
    high, low = (t.b.zext(_fp8(t, m, t.b.fpext(value, F64.ir), name), I16) for value in (a, b))
    return t.b.or_(t.b.shl(high, const(I16, 8)), low)


@instruction("cvt.rn.satfinite{.relu}.type.atype d, a:b32", type=FP8, atype="f16x2 bf16x2")
def halves_to_fp8(t: Emitter, m: Match, a: Any) -> Any:
    source, name = m.text("atype").removesuffix("x2"), m.type.name.removesuffix("x2")
    low, high = (t.b.trunc(t.b.lshr(a, const(I32, shift)), I16) for shift in (0, 16))
    low, high = (t.b.zext(_fp8(t, m, to_double(t, value, source), name), I16) for value in (low, high))
    return t.b.or_(t.b.shl(high, const(I16, 8)), low)


def _fp8(t: Emitter, m: Match, value: Any, name: str) -> Any:
    result = from_double(t, value, name, finite=True)
    return clamp_negative(t, result, name) if "relu" in m else result


@instruction("cvt.rn{.relu}.type.atype d, a:b16", type="f16x2 bf16x2", atype=FP8)
def halves_from_fp8(t: Emitter, m: Match, a: Any) -> Any:
    source, name = m.text("atype").removesuffix("x2"), m.type.name.removesuffix("x2")

    def element(bits: Any) -> Any:
        result = from_double(t, to_double(t, bits, source), name)
        return clamp_negative(t, result, name) if "relu" in m else result

    low, high = (t.b.trunc(t.b.lshr(a, const(I16, shift)), TYPES["u8"].raw) for shift in (0, 8))
    low, high = (t.b.zext(element(value), I32) for value in (low, high))
    return t.b.or_(t.b.shl(high, const(I32, 16)), low)


@instruction("cvt.pack.sat.dtype.atype d:b32, a:atype, b:atype", dtype="u16 s16", atype="s32")
@instruction("cvt.pack.sat.dtype.atype.b32 d:b32, a:atype, b:atype, c:b32", dtype="u8 s8 u4 s4 u2 s2", atype="s32")
def cvt_pack(t: Emitter, m: Match, a: Any, b: Any, c: Any = None) -> Any:
    """Saturate both; the second source goes lowest, the third, shifted, above both."""
    name = m.text("dtype")
    bits, signed = int(name[1:]), name[0] == "s"
    source = m.type_of("atype")
    low, high = limits(bits, signed)
    packed = [minimum(t, maximum(t, value, source.constant(low), source), source.constant(high), source) for value in (b, a)]
    mask = const(I32, (1 << bits) - 1)
    first, second = (t.b.and_(value, mask) for value in packed)
    result = t.b.or_(first, t.b.shl(second, const(I32, bits)))
    return result if c is None else t.b.or_(result, t.b.shl(c, const(I32, 2 * bits)))
