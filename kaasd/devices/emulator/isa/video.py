"""Scalar video instructions: on parts of 32-bit registers, with a second operation or merged into a third operand."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from llvmlite import ir

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.llvm_builder import I32, I64, const, i32, i64
from kaasd.devices.emulator.isa.integer import maximum, minimum
from kaasd.devices.emulator.isa.table import instruction
from kaasd.devices.emulator.ptx.forms import Match
from kaasd.devices.emulator.ptx.routine import Negative, Part
from kaasd.devices.emulator.ptx.types import S64

TYPES = "u32 s32"
OPERATIONS = "vadd vsub vabsdiff vmin vmax"
SECOND = "add min max"
COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
MODES = "clamp wrap"
WIDTH = 34
"""Bits of what comes out of a first operation, before it is saturated."""


def wide(t: Emitter, value: Any, signed: bool) -> Any:
    return t.b.sext(value, I64) if signed else t.b.zext(value, I64)


def compute(t: Emitter, name: str, a: Any, b: Any) -> Any:
    """Compute on numbers of 64 bits, where nothing overflows."""
    if name == "vadd":
        return t.b.add(a, b)
    if name == "vsub":
        return t.b.sub(a, b)
    if name == "vavrg":  # halves go away from zero above it, and down below
        total = t.b.add(a, b)
        up = t.b.zext(t.b.icmp_signed(">=", total, i64(0)), I64)
        return t.b.ashr(t.b.add(total, up), i64(1))
    high, low = maximum(t, a, b, S64), minimum(t, a, b, S64)
    return {"vabsdiff": lambda: t.b.sub(high, low), "vmin": lambda: low, "vmax": lambda: high}[name]()


def clamp(t: Emitter, value: Any, bits: int, signed: bool) -> Any:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return maximum(t, minimum(t, value, i64(high), S64), i64(low), S64)


def selector(t: Emitter, operand: int, default: str) -> str:
    """Return which parts of an operand, given by its number, are named."""
    given = t.operation.operands[operand]
    return given.selector if isinstance(given, Part) else default


def _finish(t: Emitter, m: Match, value: Any, c: Any, signed: bool) -> Any:
    """Saturate a number of WIDTH bits, and combine it with a third operand or put it in its place there.

    ``signed`` says how saturation, the second operation and the third operand take numbers.
    """
    place = selector(t, 0, "")
    if place and (c is None or "second" in m or not re.fullmatch("b[0-3]|h[01]", place)):
        raise t.error(f".{place} of a result needs an operand to be merged into, and no second operation")
    width = {"": 32, "b": 8, "h": 16}[place[:1]]
    if "sat" in m:
        value = clamp(t, value, width, signed)
    if place:
        start = int(place[1]) * width
        mask = i32(((1 << width) - 1) << start)
        return t.b.or_(t.b.and_(c, t.b.not_(mask)), t.b.and_(t.b.shl(t.b.trunc(value, I32), i32(start)), mask))
    if c is None or "second" not in m:
        return t.b.trunc(value, I32)
    first, other = value if signed else t.b.and_(value, i64((1 << WIDTH) - 1)), wide(t, c, signed)
    second: dict[str, Callable[[], Any]] = {
        "add": lambda: t.b.add(first, other),
        "min": lambda: minimum(t, first, other, S64),
        "max": lambda: maximum(t, first, other, S64),
    }
    return t.b.trunc(second[m.text("second")](), I32)


_WORDS: dict[str, Any] = {"dtype": TYPES, "atype": TYPES, "btype": TYPES, "parts": True}


def _scalar(form: str, **groups: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter an instruction by itself or merged into a third operand, and with a second operation."""

    def register(emit: Callable[..., Any]) -> Callable[..., Any]:
        instruction(f"{form} d:b32, a:atype, b:btype{{, c:b32}}", **(_WORDS | groups))(emit)
        return instruction(f"{form}.second d:b32, a:atype, b:btype, c:b32", second=SECOND, **(_WORDS | groups))(emit)

    return register


def _define(operation: str) -> None:
    @_scalar(f"{operation}.dtype.atype.btype{{.sat}}")
    def scalar(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
        value = compute(t, operation, wide(t, a, m["atype"] == "s32"), wide(t, b, m["btype"] == "s32"))
        return _finish(t, m, value, c, m["dtype"] == "s32")


for _operation in OPERATIONS.split():
    _define(_operation)


@_scalar("vset.atype.btype.cmp", cmp=COMPARISONS)
def vset(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    x, y = wide(t, a, m["atype"] == "s32"), wide(t, b, m["btype"] == "s32")
    holds = t.b.zext(t.b.icmp_signed(COMPARISONS[m.text("cmp")], x, y), I64)
    return _finish(t, m, holds, c, signed=False)


@_scalar("vshl.dtype.atype.btype{.sat}.mode", mode=MODES, btype="u32")
@_scalar("vshr.dtype.atype.btype{.sat}.mode", mode=MODES, btype="u32")
def shift(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    by = t.b.and_(b, i32(31)) if m["mode"] == "wrap" else t.call("llvm.umin.i32", I32, b, i32(32))
    value = wide(t, a, m["atype"] == "s32")
    moved = (t.b.shl if m.mnemonic.startswith("vshl") else t.b.ashr)(value, t.b.zext(by, I64))
    unused = i64(64 - WIDTH)
    return _finish(t, m, t.b.ashr(t.b.shl(moved, unused), unused), c, m["dtype"] == "s32")


@instruction("vmad.dtype.atype.btype{.po}{.sat}{.scale} d:b32, a:atype, b:btype, c:b32", scale="shr7 shr15", **_WORDS)
def vmad(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    """Multiply and add in full width; ``.po`` adds one more, a scale shifts to the right.

    The result is signed if a factor is, or if one operand is negated.
    """
    kind = ir.IntType(80)
    minus = [isinstance(operand, Negative) for operand in t.operation.operands[1:]]
    negated = minus[0] != minus[1]
    if any(minus) if "po" in m else negated and minus[2]:
        raise t.error("the product or the addend may be negated, and nothing with .po")
    signed = "s32" in (m["atype"], m["btype"]) or negated or minus[2]

    def extend(value: Any, signed: bool) -> Any:
        return t.b.sext(value, kind) if signed else t.b.zext(value, kind)

    product = t.b.mul(extend(a, m["atype"] == "s32"), extend(b, m["btype"] == "s32"))
    addend = extend(c, signed)
    total = t.b.add(t.b.neg(product) if negated else product, t.b.neg(addend) if minus[2] else addend)
    if "po" in m:
        total = t.b.add(total, const(kind, 1))
    total = t.b.ashr(total, const(kind, int((m["scale"] or "shr0")[3:])))
    if "sat" in m:
        low, high = (-(1 << 31), (1 << 31) - 1) if signed else (0, (1 << 32) - 1)
        total = t.b.select(t.b.icmp_signed(">", total, const(kind, high)), const(kind, high), total)
        total = t.b.select(t.b.icmp_signed("<", total, const(kind, low)), const(kind, low), total)
    return t.b.trunc(total, I32)
