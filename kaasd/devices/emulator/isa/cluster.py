"""Thread block clusters: their barrier, and addresses in the shared memory of other blocks.

A generic address of that has a segment for each rank; an address in the window of shared memory has the rank above the offset.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.llvm_builder import I32, I64, PTR, VOID, Builder, i32, i64
from kaasd.devices.emulator.codegen.structures import (
    BLOCK,
    CONTEXT,
    LAUNCH,
    MOST_CLUSTER_BLOCKS,
    OFFSET_BITS,
    OFFSET_MASK,
    RANK_SHIFT,
    THREAD,
    Segment,
    Status,
)
from kaasd.devices.emulator.isa import special_registers
from kaasd.devices.emulator.isa.table import instruction
from kaasd.devices.emulator.ptx.forms import Match


@instruction("mapa{.space}.type d, a, b:u32", space="shared::cluster", type="u32 u64")
def mapa(t: Emitter, m: Match, a: Any, rank: Any) -> Any:
    """Return the address of the same place in the shared memory of another block."""
    b = t.b
    address, rank = b.zext(a, I64) if a.type.width == 32 else a, b.zext(rank, I64)
    known, own = b.is_("<", rank, MOST_CLUSTER_BLOCKS), b.is_("==", rank, b.zext(special_registers.cluster_rank(t), I64))
    if m["space"]:
        nowhere = i64((1 << 32 - RANK_SHIFT) - 1)
        place = b.select(own, i64(0), b.select(known, b.add(rank, i64(1)), nowhere))
        address = b.or_(b.shl(place, i64(RANK_SHIFT)), b.and_(address, i64((1 << RANK_SHIFT) - 1)))
        return b.resize(address, a.type)
    if a.type.width == 32:
        raise t.error("addresses have 64 bits on the emulated device")
    segment = b.select(known, b.add(rank, i64(Segment.CLUSTER)), i64(Segment.NOWHERE))
    segment = b.select(own, i64(Segment.SHARED), segment)
    return b.or_(b.shl(segment, i64(OFFSET_BITS)), b.and_(address, i64(OFFSET_MASK)))


@instruction("getctarank{.space}.type d:u32, a", space="shared::cluster", type="u32 u64")
def getctarank(t: Emitter, m: Match, a: Any) -> Any:
    """Return the rank of the block in whose shared memory an address is."""
    b = t.b
    address = b.zext(a, I64) if a.type.width == 32 else a
    segment = b.lshr(t.of_cluster(address) if m["space"] else address, i64(OFFSET_BITS))
    rank = b.trunc(b.sub(segment, i64(Segment.CLUSTER)), I32)
    return b.select(b.is_("==", segment, Segment.SHARED), special_registers.cluster_rank(t), rank)


@instruction("barrier.cluster.arrive{.order}{.aligned}", order="release relaxed")
def arrive(t: Emitter, m: Match) -> None:
    function = t.image.helper("arrive_at_cluster", ir.FunctionType(VOID, [PTR, PTR]), _build_arrive)
    t.b.call(function, [t.context, t.thread])


@instruction("barrier.cluster.wait{.acquire}{.aligned}", suspends=True)
def wait(t: Emitter, m: Match) -> None:
    """Let others run until all threads of the cluster that have not ended have arrived."""
    b = t.b
    again, go_on = b.append_basic_block("waiting"), b.append_basic_block("arrived")
    b.branch(again)
    b.position_at_end(again)
    t.go_on(forget=True)
    b.put(THREAD, t.thread, site=t.image.site(t.routine, t.operation))
    t.suspend(Status.PAUSE)
    function = t.image.helper("cluster_has_arrived", ir.FunctionType(I32, [PTR, PTR]), _build_has_arrived)
    b.cbranch(b.is_("!=", b.call(function, [t.context, t.thread]), 0), go_on, again)
    b.position_at_end(go_on)


def _leader(b: Builder, context: Any) -> Any:
    return b.get(BLOCK, b.get(CONTEXT, context, "block"), "leader")


def _build_arrive(b: Builder, function: ir.Function) -> None:
    context, thread = function.args
    leader = _leader(b, context)
    b.bump(BLOCK, leader, "arrived", 1)
    b.put(THREAD, thread, phase=b.get(BLOCK, leader, "phase"))
    b.ret_void()


def _build_has_arrived(b: Builder, function: ir.Function) -> None:
    """Whether the phase is over in which a thread arrived; the first thread to see that all have come ends it."""
    context, thread = function.args
    leader, launch = _leader(b, context), b.get(CONTEXT, context, "launch")
    stride, blocks = b.get(LAUNCH, launch, "block_stride"), b.zext(b.get(LAUNCH, launch, "cluster_size"), I64)
    phase = b.get(THREAD, thread, "phase")
    with b.when(b.is_("!=", b.get(BLOCK, leader, "phase"), phase)):
        b.ret(i32(1))
    live = b.variable(I32, 0)
    with b.count(blocks) as rank:
        other = b.at(leader, b.mul(rank, stride))
        b.store(b.add(b.load(live, typ=I32), b.get(BLOCK, other, "live")), live)
    with b.when(b.is_("<", b.get(BLOCK, leader, "arrived"), b.load(live, typ=I32))):
        b.ret(i32(0))
    b.put(BLOCK, leader, arrived=0, phase=b.add(phase, i32(1)))
    time = b.bump(CONTEXT, context, "time", 1)
    with b.count(blocks) as rank:
        b.put(BLOCK, b.at(leader, b.mul(rank, stride)), since=time)
    b.ret(i32(1))
