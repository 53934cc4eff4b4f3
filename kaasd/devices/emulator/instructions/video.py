"""Video instructions: bytes and half words of 32-bit registers, scalar and SIMD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from kaasd.devices.emulator.emitter import Emitter
from kaasd.devices.emulator.instructions.integer import maximum, minimum
from kaasd.devices.emulator.native import I32, I64, const, i32, i64
from kaasd.devices.emulator.table import Match, instruction
from kaasd.devices.emulator.types import S64

TYPES = "u32 s32"
OPERATIONS = "vadd vsub vabsdiff vmin vmax"
SECOND = "add min max"
COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
MODES = "clamp wrap"


def _wide(t: Emitter, value: Any, signed: bool) -> Any:
    return t.b.sext(value, I64) if signed else t.b.zext(value, I64)


def _compute(t: Emitter, name: str, a: Any, b: Any) -> Any:
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


def _clamp(t: Emitter, value: Any, bits: int, signed: bool) -> Any:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return maximum(t, minimum(t, value, i64(high), S64), i64(low), S64)


def _part(t: Emitter, value: Any, start: int, width: int, signed: bool) -> Any:
    """Bits of a 32-bit value as a number of 64 bits."""
    moved = t.b.shl(t.b.zext(value, I64), i64(64 - start - width))
    return t.b.ashr(moved, i64(64 - width)) if signed else t.b.lshr(moved, i64(64 - width))


_LANES = {2: 16, 4: 8}


def _define(operation: str, count: int) -> None:
    """Enter a SIMD instruction: a lane each of ``count``, chosen by the mask, or the sum of the lanes chosen."""

    @instruction(
        f"{operation}{count}.dtype.atype.btype{{.sat}}{{.add}} d:b32, a:b32, b:b32, c:b32",
        dtype=TYPES, atype=TYPES, btype=TYPES,
    )  # fmt: skip
    def simd(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
        width = _LANES[count]
        signed = m["dtype"] == "s32"
        result, total = c, t.b.zext(c, I64)
        for lane in range(count):
            x = _part(t, a, lane * width, width, m["atype"] == "s32")
            y = _part(t, b, lane * width, width, m["btype"] == "s32")
            value = _compute(t, operation, x, y)
            if "sat" in m:
                value = _clamp(t, value, width, signed)
            total = t.b.add(total, value)
            mask = const(I32, ((1 << width) - 1) << lane * width)
            placed = t.b.and_(t.b.shl(t.b.trunc(value, I32), i32(lane * width)), mask)
            result = t.b.or_(t.b.and_(result, t.b.not_(mask)), placed)
        return t.b.trunc(total, I32) if "add" in m else result


def _define_comparison(count: int) -> None:
    """Enter ``vset2`` or ``vset4``: 1 in each lane where the comparison holds, or how many hold."""

    @instruction(f"vset{count}.atype.btype.cmp{{.add}} d:b32, a:b32, b:b32, c:b32", atype=TYPES, btype=TYPES, cmp=COMPARISONS)
    def simd(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
        width = _LANES[count]
        result, total = i32(0), c
        for lane in range(count):
            x = _part(t, a, lane * width, width, m["atype"] == "s32")
            y = _part(t, b, lane * width, width, m["btype"] == "s32")
            holds = t.b.zext(t.b.icmp_signed(COMPARISONS[m.text("cmp")], x, y), I32)
            total = t.b.add(total, holds)
            result = t.b.or_(result, t.b.shl(holds, i32(lane * width)))
        return total if "add" in m else result


def _second(t: Emitter, m: Match, first: Any, c: Any, signed: bool) -> Any:
    """Combine a result with a third operand as the modifier ``second`` says; both are taken as 32 bits."""
    first, other = _wide(t, t.b.trunc(first, I32), signed), _wide(t, c, signed)
    second: dict[str, Callable[[], Any]] = {
        "add": lambda: t.b.add(first, other),
        "min": lambda: minimum(t, first, other, S64),
        "max": lambda: maximum(t, first, other, S64),
    }
    return t.b.trunc(second[m.text("second")](), I32)


def _define_scalar(operation: str) -> None:
    """Enter a scalar instruction, with and without a second operation."""

    @instruction(f"{operation}.dtype.atype.btype{{.sat}} d:b32, a:b32, b:b32", dtype=TYPES, atype=TYPES, btype=TYPES)
    @instruction(
        f"{operation}.dtype.atype.btype{{.sat}}.second d:b32, a:b32, b:b32, c:b32",
        dtype=TYPES, atype=TYPES, btype=TYPES, second=SECOND,
    )  # fmt: skip
    def scalar(t: Emitter, m: Match, a: Any, b: Any, c: Any = None) -> Any:
        signed = m["dtype"] == "s32"
        value = _compute(t, operation, _wide(t, a, m["atype"] == "s32"), _wide(t, b, m["btype"] == "s32"))
        if "sat" in m:
            value = _clamp(t, value, 32, signed)
        if c is None:
            return t.b.trunc(value, I32)
        return _second(t, m, value, c, signed)


@instruction("vset.atype.btype.cmp d:b32, a:b32, b:b32", atype=TYPES, btype=TYPES, cmp=COMPARISONS)
@instruction("vset.atype.btype.cmp.second d:b32, a:b32, b:b32, c:b32", atype=TYPES, btype=TYPES, cmp=COMPARISONS, second=SECOND)
def vset(t: Emitter, m: Match, a: Any, b: Any, c: Any = None) -> Any:
    x, y = _wide(t, a, m["atype"] == "s32"), _wide(t, b, m["btype"] == "s32")
    holds = t.b.zext(t.b.icmp_signed(COMPARISONS[m.text("cmp")], x, y), I64)
    return t.b.trunc(holds, I32) if c is None else _second(t, m, holds, c, signed=False)


@instruction("vshl.dtype.atype.u32.mode d:b32, a:b32, b:b32", dtype=TYPES, atype=TYPES, mode=MODES)
@instruction("vshl.dtype.atype.u32.mode.second d:b32, a:b32, b:b32, c:b32", dtype=TYPES, atype=TYPES, mode=MODES, second=SECOND)
@instruction("vshr.dtype.atype.u32.mode d:b32, a:b32, b:b32", dtype=TYPES, atype=TYPES, mode=MODES)
@instruction("vshr.dtype.atype.u32.mode.second d:b32, a:b32, b:b32, c:b32", dtype=TYPES, atype=TYPES, mode=MODES, second=SECOND)
def shift(t: Emitter, m: Match, a: Any, b: Any, c: Any = None) -> Any:
    by = t.b.and_(b, i32(31)) if m["mode"] == "wrap" else t.call("llvm.umin.i32", I32, b, i32(32))
    value, by = _wide(t, a, m["atype"] == "s32"), t.b.zext(by, I64)
    moved = t.b.shl(value, by) if m.mnemonic.startswith("vshl") else t.b.ashr(value, by)
    return t.b.trunc(moved, I32) if c is None else _second(t, m, moved, c, m["dtype"] == "s32")


@instruction("vmad.dtype.atype.btype{.po}{.scale} d:b32, a:b32, b:b32, c:b32",
             dtype=TYPES, atype=TYPES, btype=TYPES, scale="shr7 shr15")  # fmt: skip
def vmad(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    """Multiply and add in full width; ``.po`` adds one more, a scale shifts to the right."""
    kind = ir.IntType(80)

    def extend(value: Any, signed: bool) -> Any:
        return t.b.sext(value, kind) if signed else t.b.zext(value, kind)

    product = t.b.mul(extend(a, m["atype"] == "s32"), extend(b, m["btype"] == "s32"))
    signed = "s32" in (m["atype"], m["btype"])
    total = t.b.add(product, extend(c, signed))
    if "po" in m:
        total = t.b.add(total, const(kind, 1))
    return t.b.trunc(t.b.ashr(total, const(kind, int((m["scale"] or "shr0")[3:]))), I32)


for _operation in OPERATIONS.split():
    _define_scalar(_operation)
    for _count in _LANES:
        _define(_operation, _count)
for _count in _LANES:
    _define("vavrg", _count)
    _define_comparison(_count)
