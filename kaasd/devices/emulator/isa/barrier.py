"""Barriers of a block and of a warp."""

from __future__ import annotations

from typing import Any

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.llvm_builder import I1, I32, i32
from kaasd.devices.emulator.codegen.structures import BARRIER_COUNT, THREAD, WARP_SIZE, Fault, Status
from kaasd.devices.emulator.codegen.warp_plan import Recorder
from kaasd.devices.emulator.isa.table import instruction
from kaasd.devices.emulator.isa.warp import join
from kaasd.devices.emulator.ptx.forms import Match


def _arrive(t: Emitter, status: Status, barrier: Any, count: Any, predicate: Any = None) -> None:
    b = t.b
    count = i32(0) if count is None else count
    t.fault_if(b.or_(b.is_(">=", barrier, BARRIER_COUNT), b.bits(count, WARP_SIZE - 1)), Fault.BARRIER)
    b.store_as(i32(0) if predicate is None else b.zext(predicate, I32), t.exchange)
    b.put(THREAD, t.thread, operation=barrier, mask=count, site=t.image.site(t.routine, t.operation))
    t.suspend(status)


@instruction("bar{.cta}.sync a:u32{, b:u32}", suspends=True)
@instruction("barrier{.cta}.sync{.aligned} a:u32{, b:u32}", suspends=True)
def sync(t: Emitter, m: Match, a: Any, b: Any) -> None:
    _arrive(t, Status.BARRIER, a, b)


@instruction("bar{.cta}.arrive a:u32, b:u32", suspends=True)
@instruction("barrier{.cta}.arrive{.aligned} a:u32, b:u32", suspends=True)
def arrive(t: Emitter, m: Match, a: Any, b: Any) -> None:
    _arrive(t, Status.ARRIVE, a, b)


@instruction("bar{.cta}.red.popc.u32 d, a:u32{, b:u32}, c:pred", suspends=True)
@instruction("barrier{.cta}.red.popc{.aligned}.u32 d, a:u32{, b:u32}, c:pred", suspends=True)
def count(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    _arrive(t, Status.BARRIER, a, b, c)
    return t.result(I32)


@instruction("bar{.cta}.red.op.pred d, a:u32{, b:u32}, c:pred", op="and or", suspends=True)
@instruction("barrier{.cta}.red.op{.aligned}.pred d, a:u32{, b:u32}, c:pred", op="and or", suspends=True)
def reduce(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
    _arrive(t, Status.BARRIER, a, b, c)
    return t.b.trunc(t.result(I32, 4 if m["op"] == "and" else 8), I1)


@instruction("bar.warp.sync mask:b32", suspends=True)
def warp_sync(t: Emitter, m: Match, mask: Any) -> None:
    if isinstance(t, Recorder):
        t.require(t.b.is_("==", mask, -1))
        return
    # All such barriers are one operation: its threads may come from different places.
    index = t.image.collective("bar.warp.sync", "bar.warp.sync", lambda b, warp, stride, mask: None)
    t.wait_for_warp(join(t, mask), [], index)
