"""Integer arithmetic, logic and shifts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.llvm_builder import I32, I64, const, i32
from kaasd.devices.emulator.isa.table import instruction
from kaasd.devices.emulator.ptx.forms import Match
from kaasd.devices.emulator.ptx.types import TYPES, Type

INTEGERS = "u16 u32 u64 s16 s32 s64"
SIGNED = "s16 s32 s64"
BITS = "b16 b32 b64"


def extend(t: Emitter, value: ir.Value, kind: Type, to: ir.IntType) -> ir.Value:
    """Sign- or zero-extend a value of an integer type."""
    return t.b.sext(value, to) if kind.signed else t.b.zext(value, to)


def minimum(t: Emitter, a: ir.Value, b: ir.Value, kind: Type) -> ir.Value:
    return t.call(f"llvm.{'s' if kind.signed else 'u'}min.i{kind.bits}", kind.raw, a, b)


def maximum(t: Emitter, a: ir.Value, b: ir.Value, kind: Type) -> ir.Value:
    return t.call(f"llvm.{'s' if kind.signed else 'u'}max.i{kind.bits}", kind.raw, a, b)


@instruction("add.type d, a, b", type=INTEGERS)
def add(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return t.b.add(a, b)


@instruction("sub.type d, a, b", type=INTEGERS)
def sub(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return t.b.sub(a, b)


@instruction("add.sat.s32 d, a, b")
def add_saturated(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return t.call("llvm.sadd.sat.i32", I32, a, b)


@instruction("sub.sat.s32 d, a, b")
def sub_saturated(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return t.call("llvm.ssub.sat.i32", I32, a, b)


def product(t: Emitter, a: Any, b: Any, kind: Type) -> Any:
    """The whole product, in twice the width."""
    wide = ir.IntType(kind.bits * 2)
    return t.b.mul(extend(t, a, kind, wide), extend(t, b, kind, wide))


def high(t: Emitter, a: Any, b: Any, kind: Type) -> Any:
    """The upper half of the product."""
    whole = product(t, a, b, kind)
    return t.b.trunc(t.b.lshr(whole, const(whole.type, kind.bits)), kind.raw)


@instruction("mul.lo.type d, a, b", type=INTEGERS)
def mul_lo(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return t.b.mul(a, b)


@instruction("mul.hi.type d, a, b", type=INTEGERS)
def mul_hi(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return high(t, a, b, m.type)


@instruction("mul.wide.type d:wide, a, b", type="u16 u32 s16 s32")
def mul_wide(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return product(t, a, b, m.type)


@instruction("mad.lo.type d, a, b, c", type=INTEGERS)
def mad_lo(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    return t.b.add(t.b.mul(a, b), c)


@instruction("mad.hi.type d, a, b, c", type=INTEGERS)
def mad_hi(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    return t.b.add(high(t, a, b, m.type), c)


@instruction("mad.hi.sat.s32 d, a, b, c")
def mad_hi_saturated(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    return t.call("llvm.sadd.sat.i32", I32, high(t, a, b, m.type), c)


@instruction("mad.wide.type d:wide, a, b, c:wide", type="u16 u32 s16 s32")
def mad_wide(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    return t.b.add(product(t, a, b, m.type), c)


def _product24(t: Emitter, a: Any, b: Any, kind: Type) -> Any:
    """The 48-bit product of the lower 24 bits."""
    shift = i32(8)
    shifted = [t.b.shl(value, shift) for value in (a, b)]
    low = [t.b.ashr(value, shift) if kind.signed else t.b.lshr(value, shift) for value in shifted]
    return product(t, low[0], low[1], kind)


def _half24(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    whole = _product24(t, a, b, m.type)
    return t.b.trunc(t.b.lshr(whole, const(I64, 16)) if "hi" in m else whole, I32)


@instruction("mul24{.hi}{.lo}.type d, a, b", type="u32 s32")
def mul24(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return _half24(t, m, a, b)


@instruction("mad24{.hi}{.lo}.type d, a, b, c", type="u32 s32")
def mad24(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    return t.b.add(_half24(t, m, a, b), c)


@instruction("mad24.hi.sat.s32 d, a, b, c")
def mad24_saturated(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    return t.call("llvm.sadd.sat.i32", I32, _half24(t, m, a, b), c)


@instruction("sad.type d, a, b, c", type=INTEGERS)
def sad(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    return t.b.add(c, t.b.sub(maximum(t, a, b, m.type), minimum(t, a, b, m.type)))


def _divide(t: Emitter, a: Any, b: Any, kind: Type) -> tuple[Any, Any]:
    """Quotient and remainder. By zero: all ones, as an H100 gives for both; the smallest number by -1: itself, and 0."""
    by_zero = t.b.is_("==", b, 0)
    odd = by_zero
    if kind.signed:
        smallest = kind.constant(1 << (kind.bits - 1))
        odd = t.b.or_(odd, t.b.and_(t.b.is_("==", a, smallest), t.b.is_("==", b, -1)))
    safe = t.b.select(odd, kind.constant(1), b)
    quotient = t.b.sdiv(a, safe) if kind.signed else t.b.udiv(a, safe)
    remainder = t.b.srem(a, safe) if kind.signed else t.b.urem(a, safe)
    return t.b.select(by_zero, kind.constant(-1), quotient), t.b.select(by_zero, kind.constant(-1), remainder)


@instruction("div.type d, a, b", type=INTEGERS)
def div(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return _divide(t, a, b, m.type)[0]


@instruction("rem.type d, a, b", type=INTEGERS)
def rem(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return _divide(t, a, b, m.type)[1]


@instruction("abs.type d, a", type=SIGNED)
def absolute(t: Emitter, m: Match, a: Any) -> Any:
    return t.b.select(t.b.icmp_signed("<", a, m.type.constant(0)), t.b.neg(a), a)


@instruction("neg.type d, a", type=SIGNED)
def negate(t: Emitter, m: Match, a: Any) -> Any:
    return t.b.neg(a)


@instruction("min.type d, a, b", type=INTEGERS)
def min_(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return minimum(t, a, b, m.type)


@instruction("max.type d, a, b", type=INTEGERS)
def max_(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return maximum(t, a, b, m.type)


@instruction("min.relu.type d, a, b", type="s32")
def min_relu(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return maximum(t, minimum(t, a, b, m.type), m.type.constant(0), m.type)


@instruction("max.relu.type d, a, b", type="s32")
def max_relu(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return maximum(t, maximum(t, a, b, m.type), m.type.constant(0), m.type)


@instruction("dp4a.atype.btype d:b32, a:b32, b:b32, c:b32", atype="u32 s32", btype="u32 s32")
def dp4a(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    for byte in range(4):
        c = t.b.add(c, t.b.mul(_part(t, a, byte * 8, 8, m.text("atype")), _part(t, b, byte * 8, 8, m.text("btype"))))
    return c


@instruction("dp2a.half.atype.btype d:b32, a:b32, b:b32, c:b32", half="lo hi", atype="u32 s32", btype="u32 s32")
def dp2a(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    start = 16 if m["half"] == "hi" else 0
    for index in range(2):
        c = t.b.add(c, t.b.mul(_part(t, a, index * 16, 16, m.text("atype")), _part(t, b, start + index * 8, 8, m.text("btype"))))
    return c


def _part(t: Emitter, value: Any, start: int, width: int, kind: str) -> Any:
    """Bits of a 32-bit value, extended to 32 bits as ``kind`` (``u32`` or ``s32``) says."""
    moved = t.b.shl(value, i32(32 - start - width))
    return t.b.ashr(moved, i32(32 - width)) if kind[0] == "s" else t.b.lshr(moved, i32(32 - width))


@instruction("and.type d, a, b", type="pred b16 b32 b64")
def and_(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return t.b.and_(a, b)


@instruction("or.type d, a, b", type="pred b16 b32 b64")
def or_(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return t.b.or_(a, b)


@instruction("xor.type d, a, b", type="pred b16 b32 b64")
def xor(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return t.b.xor(a, b)


@instruction("not.type d, a", type="pred b16 b32 b64")
def not_(t: Emitter, m: Match, a: Any) -> Any:
    return t.b.not_(a)


@instruction("cnot.type d, a", type=BITS)
def cnot(t: Emitter, m: Match, a: Any) -> Any:
    return t.b.zext(t.b.is_("==", a, 0), m.type.raw)


def shift_left(t: Emitter, value: Any, by: Any) -> Any:
    """Shift by a number of the same width; all bits go where it is the width or more."""
    width = value.type.width
    inside = t.b.is_("<", by, width)
    return t.b.select(inside, t.b.shl(value, t.b.and_(by, const(by.type, width - 1))), const(value.type, 0))


def shift_right(t: Emitter, value: Any, by: Any, signed: bool = False) -> Any:
    """Shift by a number of the same width; only the fill is left where it is the width or more."""
    width = value.type.width
    inside = t.b.is_("<", by, width)
    if signed:
        return t.b.ashr(value, t.b.select(inside, by, const(by.type, width - 1)))
    return t.b.select(inside, t.b.lshr(value, t.b.and_(by, const(by.type, width - 1))), const(value.type, 0))


def _resize_count(t: Emitter, count: Any, width: int) -> Any:
    """A shift count of 32 bits as one of ``width`` bits, never made smaller than the width by losing bits."""
    if width == 32:
        return count
    if width == 64:
        return t.b.zext(count, I64)
    return t.b.trunc(t.call("llvm.umin.i32", I32, count, i32(width)), ir.IntType(width))


@instruction("shl.type d, a, b:u32", type=BITS)
def shl(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return shift_left(t, a, _resize_count(t, b, m.type.bits))


@instruction("shr.type d, a, b:u32", type=f"{BITS} {INTEGERS}")
def shr(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return shift_right(t, a, _resize_count(t, b, m.type.bits), m.type.signed)


@instruction("shf.side.mode.b32 d, a, b, c", side="l r", mode="clamp wrap")
def shf(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    count = t.call("llvm.umin.i32", I32, c, i32(32)) if m["mode"] == "clamp" else t.b.and_(c, i32(31))
    both = t.b.or_(t.b.shl(t.b.zext(b, I64), const(I64, 32)), t.b.zext(a, I64))
    wide = t.b.zext(count, I64)
    if m["side"] == "l":
        return t.b.trunc(t.b.lshr(t.b.shl(both, wide), const(I64, 32)), I32)
    return t.b.trunc(t.b.lshr(both, wide), I32)


PACKED = "u16x2 s16x2"


def _packed(t: Emitter, m: Match, compute: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
    """Compute on the two 16-bit halves by themselves."""
    half, count = ir.IntType(16), i32(16)
    low = compute(t.b.trunc(a, half), t.b.trunc(b, half))
    high_half = compute(t.b.trunc(t.b.lshr(a, count), half), t.b.trunc(t.b.lshr(b, count), half))
    return t.b.or_(t.b.zext(low, I32), t.b.shl(t.b.zext(high_half, I32), count))


@instruction("add.type d, a, b", type=PACKED)
def add_packed(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return _packed(t, m, t.b.add, a, b)


@instruction("min{.relu}.type d, a, b", type=PACKED)
def min_packed(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return _packed(t, m, lambda x, y: _clamped(t, m, minimum(t, x, y, _half(m))), a, b)


@instruction("max{.relu}.type d, a, b", type=PACKED)
def max_packed(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return _packed(t, m, lambda x, y: _clamped(t, m, maximum(t, x, y, _half(m))), a, b)


def _half(m: Match) -> Type:
    return TYPES[m.type.name.removesuffix("x2")]


def _clamped(t: Emitter, m: Match, value: Any) -> Any:
    """``.relu``: nothing below zero."""
    return maximum(t, value, _half(m).constant(0), _half(m)) if "relu" in m else value
