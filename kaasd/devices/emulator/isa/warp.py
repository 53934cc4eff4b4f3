"""Operations of the threads of a warp: shuffles, votes, matches, reductions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.llvm_builder import I1, I32, I64, Builder, const, i32
from kaasd.devices.emulator.codegen.structures import THREAD, WARP_SIZE, Fault
from kaasd.devices.emulator.codegen.warp_plan import Recorder
from kaasd.devices.emulator.isa import special_registers
from kaasd.devices.emulator.isa.table import instruction
from kaasd.devices.emulator.ptx.forms import Match

Lane = tuple[Builder, ir.Value, ir.Value, Callable[[ir.Value, int, ir.Type], ir.Value]]
"""What computes one lane's results: builder, lane, mask of those here, and how to get a lane's operand at an offset."""


def join(t: Emitter, mask: Any) -> Any:
    """Check that the thread is itself in the mask that it gives."""
    t.fault_if(t.b.not_(t.b.bits(mask, special_registers.read(t, "%lanemask_eq"))), Fault.MEMBER)
    return mask


def per_lane(compute: Callable[..., list[tuple[ir.Value, int]]], size: int) -> Callable[..., None]:
    """Return the code of a warp operation that leaves each thread the results that ``compute`` gives, as (value, offset).

    The operands, ``size`` bytes a thread, are first copied, since the results take their place.
    """

    def build(b: Builder, warp: ir.Value, stride: ir.Value, mask: ir.Value) -> None:
        copies = b.alloca(ir.ArrayType(ir.ArrayType(I32, size // 4), WARP_SIZE))
        row = ir.ArrayType(I32, size // 4)

        def exchange_of(lane: ir.Value) -> ir.Value:
            return b.at(b.at(warp, b.mul(b.zext(lane, I64), stride)), THREAD.size)

        def operand(lane: ir.Value, offset: int, kind: ir.Type) -> ir.Value:
            return b.load_as(kind, b.at(b.item(copies, row, b.zext(lane, I64)), offset), align=4)

        for phase in ("copy", "compute"):
            with b.count(i32(WARP_SIZE)) as lane, b.when(b.bits(mask, b.shl(i32(1), lane))):
                if phase == "copy":
                    for word in range(size // 4):
                        value = b.load_as(I32, b.at(exchange_of(lane), word * 4))
                        b.store_as(value, b.at(b.item(copies, row, b.zext(lane, I64)), word * 4))
                else:
                    for value, offset in compute(b, lane, mask, operand):
                        b.store_as(value, b.at(exchange_of(lane), offset), align=4)

    return build


def _meet(t: Emitter, mask: Any, operands: list[Any], compute: Callable[..., Any]) -> None:
    size = sum(operand.type.width // 8 for operand in operands)
    index = t.collective(per_lane(compute, max(size, 4)), size)
    t.wait_for_warp(mask, operands, index)


def _fold(b: Builder, mask: Any, start: Any, step: Callable[[Any, Any], Any]) -> Any:
    """Fold over the lanes of ``mask``."""
    total = b.variable(start.type)
    b.store(start, total)
    with b.count(i32(WARP_SIZE)) as lane, b.when(b.bits(mask, b.shl(i32(1), lane))):
        b.store(step(b.load(total, typ=start.type), lane), total)
    return b.load(total, typ=start.type)


def _require_all(t: Recorder, mask: Any) -> None:
    """Go on as a whole warp only if the instruction is for all of its threads."""
    t.require(t.b.is_("==", mask, -1))


@instruction("shfl.sync.mode.b32 d{|d2:pred}, a, b, c, mask", mode="up down bfly idx", suspends=True)
@instruction("shfl.mode.b32 d{|d2:pred}, a, b, c", mode="up down bfly idx", suspends=True)
def shfl(t: Emitter, m: Match, a: Any, b: Any, c: Any, mask: Any = None) -> Any:
    mode = m["mode"]

    def source_of(code: Builder, lane: Any, by: Any, control: Any) -> tuple[Any, Any]:
        """Return which lane's value a lane gets, and whether that is in reach."""
        by = code.and_(by, i32(31))
        clamp, segmask = code.and_(control, i32(31)), code.and_(code.lshr(control, i32(8)), i32(31))
        low = code.and_(lane, segmask)
        last = code.or_(low, code.and_(clamp, code.not_(segmask)))
        if mode == "up":
            source = code.sub(lane, by)
            inside = code.icmp_signed(">=", source, last)
        else:
            if mode == "down":
                source = code.add(lane, by)
            elif mode == "bfly":
                source = code.xor(lane, by)
            else:
                source = code.or_(low, code.and_(by, code.not_(segmask)))
            inside = code.icmp_signed("<=", source, last)
        return code.and_(code.select(inside, source, lane), i32(31)), inside

    def compute(code: Builder, lane: Any, mask: Any, operand: Any) -> list[tuple[Any, int]]:
        source, inside = source_of(code, lane, operand(lane, 4, I32), operand(lane, 8, I32))
        here = code.bits(code.lshr(mask, source), 1)
        source = code.select(here, source, lane)  # the manual leaves it open what a thread that is not here gives
        return [(operand(source, 0, I32), 0), (code.zext(inside, I32), 4)]

    if isinstance(t, Recorder) and mask is not None:
        _require_all(t, mask)
        source, inside = source_of(t.b, special_registers.read(t, "%laneid"), b, c)
        return t.of_lane(a, source), inside
    _meet(t, i32(0) if mask is None else join(t, mask), [a, b, c], compute)
    return t.result(I32), t.b.trunc(t.result(I32, 4), I1)


def _vote(t: Emitter, m: Match, predicate: Any, mask: Any) -> Any:
    mode = m["mode"]
    if isinstance(t, Recorder) and mask is not None:
        _require_all(t, mask)
        lanes = t.ballot(predicate)
        every, none = t.b.is_("==", lanes, -1), t.b.is_("==", lanes, 0)
        return {"all": every, "any": t.b.not_(none), "uni": t.b.or_(every, none)}.get(mode or "", lanes)

    def compute(code: Builder, lane: Any, mask: Any, operand: Any) -> list[tuple[Any, int]]:
        def step(total: Any, other: Any) -> Any:
            return code.or_(total, code.shl(operand(other, 0, I32), other))

        ballot = _fold(code, mask, i32(0), step)
        every, none = code.is_("==", ballot, mask), code.is_("==", ballot, 0)
        result = {"all": every, "any": code.not_(none), "uni": code.or_(every, none)}.get(mode or "", ballot)
        return [(code.zext(result, I32) if result is not ballot else ballot, 0)]

    _meet(t, i32(0) if mask is None else join(t, mask), [t.b.zext(predicate, I32)], compute)
    return t.result(I32) if mode == "ballot" else t.b.trunc(t.result(I32), I1)


@instruction("vote.sync.mode.pred d, a:pred, mask:b32", mode="all any uni", suspends=True)
@instruction("vote.sync.mode.b32 d, a:pred, mask:b32", mode="ballot", suspends=True)
def vote(t: Emitter, m: Match, a: Any, mask: Any) -> Any:
    return _vote(t, m, a, mask)


@instruction("vote.mode.pred d, a:pred", mode="all any uni", suspends=True)
@instruction("vote.mode.b32 d, a:pred", mode="ballot", suspends=True)
def vote_unmasked(t: Emitter, m: Match, a: Any) -> Any:
    return _vote(t, m, a, None)


@instruction("match.any.sync.type d:b32, a, mask:b32", type="b32 b64", suspends=True)
def match_any(t: Emitter, m: Match, a: Any, mask: Any) -> Any:
    _meet(t, join(t, mask), [a], _equals(m.type.raw))
    return t.result(I32)


@instruction("match.all.sync.type d:b32{|d2:pred}, a, mask:b32", type="b32 b64", suspends=True)
def match_all(t: Emitter, m: Match, a: Any, mask: Any) -> Any:
    _meet(t, join(t, mask), [a], _equals(m.type.raw))
    every = t.b.trunc(t.result(I32, 4), I1)
    return t.b.select(every, t.result(I32), i32(0)), every


def _equals(kind: ir.IntType) -> Callable[..., list[tuple[Any, int]]]:
    """The mask of the lanes with the same value, and whether those are all."""

    def compute(code: Builder, lane: Any, mask: Any, operand: Any) -> list[tuple[Any, int]]:
        mine = operand(lane, 0, kind)

        def step(total: Any, other: Any) -> Any:
            same = code.zext(code.is_("==", operand(other, 0, kind), mine), I32)
            return code.or_(total, code.shl(same, other))

        same = _fold(code, mask, i32(0), step)
        return [(same, 0), (code.zext(code.is_("==", same, mask), I32), 4)]

    return compute


@instruction("redux.sync.op.type d, a, mask:b32", op="add min max", type="u32 s32", suspends=True)
@instruction("redux.sync.op.type d, a, mask:b32", op="and or xor", type="b32", suspends=True)
def redux(t: Emitter, m: Match, a: Any, mask: Any) -> Any:
    signed = m.type.signed
    name = m.text("op")

    def compute(code: Builder, lane: Any, mask: Any, operand: Any) -> list[tuple[Any, int]]:
        def step(total: Any, other: Any) -> Any:
            value = operand(other, 0, I32)
            if name in ("min", "max"):
                compare = code.icmp_signed if signed else code.icmp_unsigned
                return code.select(compare("<" if name == "min" else ">", value, total), value, total)
            return {"add": code.add, "and": code.and_, "or": code.or_, "xor": code.xor}[name](total, value)

        low, high = (-(2**31), 2**31 - 1) if signed else (0, 2**32 - 1)
        start = {"and": -1, "min": high, "max": low}.get(name, 0)
        return [(_fold(code, mask, i32(start), step), 0)]

    _meet(t, join(t, mask), [a], compute)
    return t.result(I32)


@instruction("activemask.b32 d", suspends=True)
def activemask(t: Emitter, m: Match) -> Any:
    _meet(t, i32(0), [], lambda code, lane, mask, operand: [(mask, 0)])
    return t.result(I32)


@instruction("elect.sync d:b32|d2:pred, mask:b32", suspends=True)
def elect(t: Emitter, m: Match, mask: Any) -> Any:
    def compute(code: Builder, lane: Any, mask: Any, operand: Any) -> list[tuple[Any, int]]:
        leader = code.cttz(mask, const(I1, 1))
        return [(leader, 0), (code.zext(code.is_("==", leader, lane), I32), 4)]

    _meet(t, join(t, mask), [], compute)
    return t.result(I32), t.b.trunc(t.result(I32, 4), I1)
