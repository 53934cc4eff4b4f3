"""Narrow floating-point formats: their values in double precision, and exact rounding back.

A value of a narrow type is an integer with its bits. Double precision holds every such value exactly, every product of two,
and, with rounding to odd, enough of a sum that rounding once more gives the correctly rounded result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.llvm_builder import I64, Builder, const, i32, i64
from kaasd.devices.emulator.codegen.machine_code import has_half
from kaasd.devices.emulator.ptx.types import F64, Type

_DOUBLE_BIAS = 1023
_DOUBLE_FRACTION = 52


@dataclass(frozen=True, slots=True)
class FloatFormat:
    """A format of ``bits`` bits, ``fraction`` of them after the point."""

    bits: int
    fraction: int
    bias: int
    largest: int
    """The bits of the largest finite number."""
    nan: int
    infinity: int | None
    """None where the format has none: NaN stands for what is too large."""

    @property
    def raw(self) -> ir.IntType:
        return ir.IntType(self.bits)


FORMATS = {
    "f16": FloatFormat(16, 10, 15, 0x7BFF, 0x7FFF, 0x7C00),
    "bf16": FloatFormat(16, 7, 127, 0x7F7F, 0x7FFF, 0x7F80),
    "tf32": FloatFormat(32, 23, 127, 0x7F7FFFFF, 0x7FFFE000, 0x7F800000),
    "e4m3": FloatFormat(8, 3, 7, 0x7E, 0x7F, None),
    "e5m2": FloatFormat(8, 2, 15, 0x7B, 0x7F, 0x7C),
}
TF32_FRACTION = 10
"""A tf32 number is single precision with only so many bits after the point."""


def one(name: str) -> int:
    """Return the bits of 1.0."""
    return FORMATS[name].bias << FORMATS[name].fraction


def half_to_single(b: Builder, bits: Any) -> Any:
    """Return the 32 bits of a half-precision number, given as as many, with no instruction of half precision."""
    sign, size = b.shl(b.and_(bits, i32(0x8000)), i32(16)), b.and_(bits, i32(0x7FFF))
    moved = b.shl(size, i32(13))
    # As a single this is 2**112 too small; so are subnormals, which the product makes normal.
    finite = b.bitcast(b.fmul(b.bitcast(moved, ir.FloatType()), const(ir.FloatType(), 2.0**112)), ir.IntType(32))
    return b.or_(sign, b.select(b.is_(">=", size, 0x7C00), b.or_(moved, i32(0x7F800000)), finite))


def to_double(t: Emitter, value: Any, name: str) -> Any:
    """Return a narrow number in double precision."""
    b = t.b
    if name == "f16" and not has_half():
        return b.fpext(b.bitcast(half_to_single(b, b.zext(value, ir.IntType(32))), ir.FloatType()), F64.ir)
    if name == "f16":
        return b.fpext(b.bitcast(value, ir.HalfType()), F64.ir)
    if name in ("bf16", "tf32"):
        shift = 16 if name == "bf16" else 0
        wide = b.shl(b.resize(value, ir.IntType(32)), const(ir.IntType(32), shift))
        return b.fpext(b.bitcast(wide, ir.FloatType()), F64.ir)
    if name == "e5m2":  # the upper half of an f16
        return to_double(t, b.shl(b.zext(value, ir.IntType(16)), const(ir.IntType(16), 8)), "f16")
    # e4m3: as f16 it is 2**8 too small, and its NaN must be told apart
    wide = b.zext(value, ir.IntType(16))
    sign = b.shl(b.and_(wide, const(wide.type, 0x80)), const(wide.type, 8))
    half = b.or_(sign, b.shl(b.and_(wide, const(wide.type, 0x7F)), const(wide.type, 7)))
    number = b.fmul(to_double(t, half, "f16"), const(F64.ir, 256.0))
    is_nan = b.is_("==", b.and_(wide, const(wide.type, 0x7F)), 0x7F)
    return b.select(is_nan, const(F64.ir, float("nan")), number)


def from_double(t: Emitter, value: Any, name: str, mode: str = "rn", finite: bool = False) -> Any:
    """Round a double to a narrow format.

    ``mode`` is rn, rna (ties away from zero), rz, rm or rp; with ``finite`` what is too large becomes the largest number.
    """
    target = FORMATS[name]
    key = f"round.{name}.{mode}{'.finite' if finite else ''}"
    kind = ir.FunctionType(target.raw, [F64.ir])
    helper = t.image.helper(key, kind, lambda b, function: _build_rounding(b, function, name, mode, finite))
    return t.b.call(helper, [value])


def _build_rounding(b: Builder, function: ir.Function, name: str, mode: str, finite: bool) -> None:
    target = FORMATS[name]
    fraction = TF32_FRACTION if name == "tf32" else target.fraction
    (value,) = function.args
    bits = b.bitcast(value, I64)
    negative = b.is_("!=", b.lshr(bits, i64(63)), 0)
    exponent = b.and_(b.lshr(bits, i64(_DOUBLE_FRACTION)), i64(0x7FF))
    significand = b.or_(b.and_(bits, i64((1 << _DOUBLE_FRACTION) - 1)), i64(1 << _DOUBLE_FRACTION))
    # Bits to drop: more below the smallest normal number. A double's own subnormals are far below every format.
    smallest = _DOUBLE_BIAS - target.bias + 1
    below = b.select(b.icmp_signed("<", exponent, i64(smallest)), b.sub(i64(smallest), exponent), i64(0))
    dropped = b.add(i64(_DOUBLE_FRACTION - fraction), below)
    dropped = b.select(b.is_("<", dropped, 60), dropped, i64(60))
    kept = b.lshr(significand, dropped)
    rest = b.sub(significand, b.shl(kept, dropped))
    half = b.shl(i64(1), b.sub(dropped, i64(1)))
    inexact, odd = b.is_("!=", rest, 0), b.bits(kept, 1)
    is_zero = b.is_("==", b.shl(bits, i64(1)), 0)
    up = {
        "rn": b.or_(b.is_(">", rest, half), b.and_(b.is_("==", rest, half), odd)),
        "rna": b.is_(">=", rest, half),
        "rz": const(ir.IntType(1), 0),
        "rm": b.and_(negative, inexact),
        "rp": b.and_(b.not_(negative), inexact),
    }[mode]
    kept = b.add(kept, b.zext(up, I64))
    step = b.select(b.icmp_signed(">", exponent, i64(smallest)), b.sub(exponent, i64(smallest)), i64(0))
    size = b.add(kept, b.shl(step, i64(fraction)))
    size = b.shl(size, i64(target.fraction - fraction))
    size = b.select(is_zero, i64(0), size)
    limit = ((target.infinity or target.nan) - 1) if name != "tf32" else (0xFF << 23) - 1
    too_large = b.is_(">", size, limit)
    inward = {"rz": const(ir.IntType(1), 1), "rm": b.not_(negative), "rp": negative}.get(mode, const(ir.IntType(1), 0))
    overflow = b.select(inward, i64(target.largest), i64(target.infinity or target.nan))
    if finite:
        overflow = i64(target.largest)
    infinite = b.is_("==", b.shl(bits, i64(1)), 0xFFE0000000000000)
    beyond = b.select(infinite, i64(target.largest if finite else target.infinity or target.nan), overflow)
    size = b.select(b.or_(too_large, infinite), beyond, size)
    sign = b.shl(b.zext(negative, I64), i64(target.bits - 1))
    result = b.select(b.fcmp_unordered("uno", value, value), i64(target.nan), b.or_(size, sign))
    b.ret(b.resize(result, target.raw))


def sum_to_odd(t: Emitter, a: Any, c: Any) -> Any:
    """Return a + c in double precision, rounded to odd: a result that is not exact has its last bit set."""

    def build(b: Builder, function: ir.Function) -> None:
        x, y = function.args
        total = b.fadd(x, y)
        part = b.fsub(total, x)
        error = b.fadd(b.fsub(x, b.fsub(total, part)), b.fsub(y, part))
        bits, error_bits = b.bitcast(total, I64), b.bitcast(error, I64)
        same_sign = b.icmp_signed(">=", b.xor(bits, error_bits), i64(0))
        moved = b.add(bits, b.select(same_sign, i64(1), i64(-1)))
        inexact = b.fcmp_ordered("!=", error, const(F64.ir, 0.0))  # false for infinity and NaN, whose error is NaN
        even = b.not_(b.bits(bits, 1))
        b.ret(b.bitcast(b.select(b.and_(inexact, even), moved, bits), F64.ir))

    kind = ir.FunctionType(F64.ir, [F64.ir, F64.ir])
    return t.b.call(t.image.helper("sum_to_odd", kind, build), [a, c])


def base_of(kind: Type) -> str:
    """The format of a type's elements: ``f16`` of ``f16x2``."""
    return kind.name.removesuffix("x2")


def flush_narrow(t: Emitter, bits: Any, name: str) -> Any:
    """Replace a subnormal by a zero of its sign."""
    b, target = t.b, FORMATS[name]
    exponent = ((1 << target.bits - 1) - 1) & ~((1 << target.fraction) - 1)
    sign = b.and_(bits, const(bits.type, 1 << target.bits - 1))
    return b.select(b.bits(bits, exponent), bits, sign)


def each(t: Emitter, kind: Type, compute: Callable[..., Any], *values: Any) -> Any:
    """Apply ``compute`` to the elements, as integers with their bits, of values of ``kind``: one, or two packed ones."""
    if not kind.name.endswith("x2"):
        return compute(*values)
    b, half, whole = t.b, ir.IntType(kind.bits // 2), kind.raw
    count = const(whole, kind.bits // 2)
    low = compute(*(b.trunc(value, half) for value in values))
    high = compute(*(b.trunc(b.lshr(value, count), half) for value in values))
    return b.or_(b.zext(low, whole), b.shl(b.zext(high, whole), count))
