"""Bit fields, counts and permutations."""

from __future__ import annotations

from typing import Any

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.llvm_builder import I1, I32, I64, const, i32, i64
from kaasd.devices.emulator.isa.integer import shift_left, shift_right
from kaasd.devices.emulator.isa.table import instruction
from kaasd.devices.emulator.ptx import ast
from kaasd.devices.emulator.ptx.forms import Match
from kaasd.devices.emulator.ptx.types import Type


def _as_count(t: Emitter, value: Any, kind: Type) -> Any:
    """A position or length in the width of ``kind``: its lower byte for 32 bits, but all of it for 64, as the compiler does."""
    return t.b.zext(value, kind.raw) if kind.bits > 32 else t.b.and_(value, i32(255))


def _to_32(t: Emitter, value: Any) -> Any:
    return t.b.trunc(value, I32) if value.type.width > 32 else value


@instruction("popc.type d:u32, a", type="b32 b64")
def popc(t: Emitter, m: Match, a: Any) -> Any:
    return _to_32(t, t.call(f"llvm.ctpop.i{m.type.bits}", m.type.raw, a))


@instruction("clz.type d:u32, a", type="b32 b64")
def clz(t: Emitter, m: Match, a: Any) -> Any:
    return _to_32(t, t.b.ctlz(a, const(I1, 0)))


@instruction("brev.type d, a", type="b32 b64")
def brev(t: Emitter, m: Match, a: Any) -> Any:
    return t.call(f"llvm.bitreverse.i{m.type.bits}", m.type.raw, a)


@instruction("bfind{.shiftamt}.type d:u32, a", type="u32 u64 s32 s64")
def bfind(t: Emitter, m: Match, a: Any) -> Any:
    if m.type.signed:  # the highest bit unlike the sign
        a = t.b.xor(a, t.b.ashr(a, m.type.constant(m.type.bits - 1)))
    zeros = _to_32(t, t.b.ctlz(a, const(I1, 0)))
    found = zeros if "shiftamt" in m else t.b.sub(i32(m.type.bits - 1), zeros)
    return t.b.select(t.b.is_("==", a, 0), i32(-1), found)


@instruction("bfe.type d, a, b:u32, c:u32", type="u32 u64 s32 s64")
def bfe(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    kind = m.type
    start, length = (_as_count(t, value, kind) for value in (b, c))
    moved = shift_right(t, a, start, kind.signed)
    length = t.call(f"llvm.umin.i{kind.bits}", kind.raw, length, kind.constant(kind.bits))
    spare = t.b.sub(kind.constant(kind.bits), length)
    field = shift_right(t, shift_left(t, moved, spare), spare, kind.signed)
    return t.b.select(t.b.is_("==", length, 0), kind.constant(0), field)


@instruction("bfi.type d, a, b, c:u32, e:u32", type="b32 b64")
def bfi(t: Emitter, m: Match, a: Any, b: Any, c: Any, e: Any) -> Any:
    kind = m.type
    start, length = (_as_count(t, value, kind) for value in (c, e))
    mask = t.b.not_(shift_left(t, kind.constant(-1), length))
    place = shift_left(t, mask, start)
    field = shift_left(t, t.b.and_(a, mask), start)
    return t.b.or_(t.b.and_(b, t.b.not_(place)), field)


@instruction("bmsk.mode.b32 d, a, b", mode="clamp wrap")
def bmsk(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    if m["mode"] == "wrap":
        a, b = (t.b.and_(value, i32(31)) for value in (a, b))
    mask = t.b.not_(shift_left(t, i32(-1), b))
    return shift_left(t, mask, a)


@instruction("szext.mode.type d, a, b:u32", mode="clamp wrap", type="u32 s32")
def szext(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    if m["mode"] == "wrap":
        b = t.b.and_(b, i32(31))
    width = t.call("llvm.umin.i32", I32, b, i32(32))
    spare = t.b.sub(i32(32), width)
    field = shift_right(t, shift_left(t, a, spare), spare, m.type.signed)
    return t.b.select(t.b.is_("==", width, 0), i32(0), field)


@instruction("fns.b32 d, a, b, c:s32")
def fns(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    """The position of the n-th set bit from a base: upwards for n > 0, downwards for n < 0, the base itself for 0."""
    code = t.b
    result, left = code.variable(I32, -1), code.variable(I32)
    up = code.icmp_signed(">=", c, i32(0))
    zero = code.is_("==", c, 0)
    code.store(code.select(zero, i32(1), code.select(up, c, code.neg(c))), left)
    code.store(i32(-1), result)
    with code.count(i32(32)) as step:
        position = code.select(up, code.add(b, step), code.sub(b, step))
        inside = code.and_(code.is_("<", position, 32), code.or_(code.is_("==", step, 0), code.not_(zero)))
        is_set = code.bits(shift_right(t, a, position), 1)
        with code.when(code.and_(inside, is_set)):
            remaining = code.sub(code.load(left, typ=I32), i32(1))
            code.store(remaining, left)
            with code.when(code.is_("==", remaining, 0)):
                code.store(position, result)
    return code.load(result, typ=I32)


def _choose_bytes(t: Emitter, a: Any, b: Any, selectors: Any) -> Any:
    """Make a word of four bytes of ``b:a``, each chosen by four bits: the upper one asks for copies of the byte's sign."""
    code = t.b
    both = code.or_(code.shl(code.zext(b, I64), i64(32)), code.zext(a, I64))
    result = i32(0)
    for index in range(4):
        selector = code.and_(code.lshr(selectors, i32(4 * index)), i32(15))
        count = code.zext(code.shl(code.and_(selector, i32(7)), i32(3)), I64)
        byte = code.and_(code.trunc(code.lshr(both, count), I32), i32(255))
        sign = code.select(code.bits(byte, 128), i32(255), i32(0))
        byte = code.select(code.bits(selector, 8), sign, byte)
        result = code.or_(result, code.shl(byte, i32(8 * index)))
    return result


@instruction("prmt.b32 d, a, b, c")
def prmt(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    return _choose_bytes(t, a, b, t.b.and_(c, i32(0xFFFF)))


_PERMUTATIONS = {
    "f4e": (0x3210, 0x4321, 0x5432, 0x6543),
    "b4e": (0x5670, 0x6701, 0x7012, 0x0123),
    "rc8": (0x0000, 0x1111, 0x2222, 0x3333),
    "ecl": (0x3210, 0x3211, 0x3222, 0x3333),
    "ecr": (0x0000, 0x1110, 0x2210, 0x3210),
    "rc16": (0x1010, 0x3232, 0x1010, 0x3232),
}
"""Selectors of the named modes, for each value of the control's two lower bits."""


@instruction("prmt.b32.mode d, a, b, c", mode=_PERMUTATIONS)
def prmt_mode(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    packed = sum(word << 16 * index for index, word in enumerate(_PERMUTATIONS[m.text("mode")]))
    count = t.b.zext(t.b.shl(t.b.and_(c, i32(3)), i32(4)), I64)
    selectors = t.b.and_(t.b.trunc(t.b.lshr(i64(packed), count), I32), i32(0xFFFF))
    return _choose_bytes(t, a, b, selectors)


@instruction("lop3.bool.b32 d|d2:pred, a, b, c, *table, q:pred", bool="or and")
def lop3_with(t: Emitter, m: Match, a: Any, b: Any, c: Any, table: Any, q: Any) -> Any:
    """The second result is whether the first is not zero, combined with a predicate."""
    result = lop3(t, m, a, b, c, table)
    some = t.b.is_("!=", result, 0)
    return result, t.b.or_(some, q) if m["bool"] == "or" else t.b.and_(some, q)


@instruction("lop3.b32 d, a, b, c, *table")
def lop3(t: Emitter, m: Match, a: Any, b: Any, c: Any, table: Any) -> Any:
    if not isinstance(table, ast.Integer) or not 0 <= table.value <= 255:
        raise t.error("the table needs a constant from 0 to 255")
    result = i32(0)
    for row in range(8):
        if table.value >> row & 1:
            factors = [value if row >> place & 1 else t.b.not_(value) for value, place in ((a, 2), (b, 1), (c, 0))]
            result = t.b.or_(result, t.b.and_(t.b.and_(factors[0], factors[1]), factors[2]))
    return result
