"""Checks that are compiled in when they are asked for: data races, and reads of memory that nothing wrote.

Every byte of a buffer, and of the memory of blocks, has three notes: of its last write, of a read, and of the last read by
another thread than that, of another warp if there was one. A note says when, by whom and where. Time moves on where a launch or
block begins, at barriers, where threads of a warp do something together, and at what may order the accesses of threads: fences,
atomic operations, mbarriers. So nothing is ever cleared: an old note is one from before the launch, the block or the barrier.

Threads of one warp are ordered by what they did together since: a shuffle, a vote, ``__syncwarp``. That they do the same
instruction at the same time is no race.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from llvmlite import ir

from kaasd.devices.emulator.codegen.kernel_image import KernelImage
from kaasd.devices.emulator.codegen.llvm_builder import I32, I64, PTR, Builder, i32, i64
from kaasd.devices.emulator.codegen.structures import (
    BLOCK,
    CELL_BYTES,
    CONTEXT,
    LAUNCH,
    MOST_CLUSTER_BLOCKS,
    NOTE,
    OFFSET_BITS,
    SHADOW,
    THREAD,
    WARP_SIZE,
    Fault,
    Segment,
)
from kaasd.devices.emulator.options import EMULATOR_CHECKS
from kaasd.devices.emulator.ptx.routine import Operation, Routine

RACES, INIT = EMULATOR_CHECKS

WRITE, READ, OTHER_READ = range(3)
STORES, STRONG, ATOMIC = 1, 2, 4
"""What an access is: it writes; it is atomic or volatile, so that it may meet others of its kind in other warps; it is atomic, so
that it may also do so in its own."""
LANE_MASK = WARP_SIZE - 1
_STRONG, _ATOMIC = WARP_SIZE, 2 * WARP_SIZE
"""In a note's lane."""
_STRONG_ORDERS = ("volatile", "relaxed", "acquire", "release", "acq_rel", "mmio")
_ORDERING = ("membar", "fence", "atom", "red", "mbarrier")


class InstructionCode(Protocol):
    """What the checks see of the emitter: the instruction at hand, and the code that it gets."""

    image: KernelImage
    routine: Routine
    operation: Operation
    b: Builder
    context: ir.Value
    thread: ir.Value

    def fault_if(self, bad: ir.Value, kind: Fault, address: ir.Value | None = None, size: int = 0) -> None: ...


def observe(t: InstructionCode, segment: Any, pointer: Any, offset: Any, size: int, access: Fault) -> None:
    """Emit the checks of an access that is within bounds: ``offset`` in its segment, ``pointer`` in the host's memory."""
    opcode, given = t.operation.source.opcode, t.operation.match["order"]
    strong = STRONG if access is Fault.ATOMIC or opcode == "mbarrier" or given in _STRONG_ORDERS else 0
    strong |= ATOMIC if strong and given not in ("volatile", "mmio") else 0
    site = i32(t.image.site(t.routine, t.operation, size))
    for stores in {Fault.LOAD: (0,), Fault.STORE: (STORES,)}.get(access, (0, STORES)):
        arguments = [t.context, t.thread, segment, pointer, offset, i64(size), i32(stores | strong), site]
        found = t.b.call(_observer(t), arguments)
        address = t.b.or_(t.b.shl(segment, i64(OFFSET_BITS)), offset)
        for fault in (Fault.RACE, Fault.UNINITIALIZED):
            t.fault_if(t.b.is_("==", found, fault), fault, address, size)


def _observer(t: InstructionCode) -> ir.Function:
    kind = ir.FunctionType(I32, [PTR, PTR, I64, PTR, I64, I64, I32, I32])
    return t.image.helper("observe", kind, lambda b, f: _build_observe(t.image.checks, b, f))


def note_written(t: InstructionCode, pointer: Any, size: int) -> None:
    """Emit that the emulator itself wrote local memory: an argument or a result."""
    if INIT in t.image.checks:
        t.b.call(_observer(t), [t.context, t.thread, i64(Segment.LOCAL), pointer, i64(0), i64(size), i32(STORES), i32(0)])


def order(t: InstructionCode) -> None:
    """Emit, before an instruction that may order the accesses of threads, that the thread has come to one."""
    source = t.operation.source
    if source.opcode in _ORDERING or t.operation.match["order"] in _STRONG_ORDERS:
        put_in_order(t)


def put_in_order(t: InstructionCode) -> None:
    """Emit the same where something besides has ordered them, such as a copy that an mbarrier counts."""
    if RACES in t.image.checks:
        function = t.image.helper("order", ir.FunctionType(I32, [PTR, PTR]), _build_order)
        time = t.b.call(function, [t.context, t.thread])
        if t.operation.match["order"] not in ("volatile", "mmio"):  # which orders nothing between threads of a warp
            t.b.put(THREAD, t.thread, since=time)


def begin_block(b: Builder, context: Any, block: Any, number: Any) -> None:
    """Emit that a block begins: what its part of the arena holds is old."""
    time = b.bump(CONTEXT, context, "time", 1)
    b.put(BLOCK, block, number=number, start=time, since=time, thread_start=time)


def begin_thread(b: Builder, context: Any, block: Any) -> None:
    """Emit that a thread begins in the local memory of the thread before."""
    b.put(BLOCK, block, thread_start=b.bump(CONTEXT, context, "time", 1))


def begin_round(b: Builder, context: Any) -> None:
    """Emit that threads of a warp go on together up to the next point."""
    b.put(CONTEXT, context, round=b.bump(CONTEXT, context, "time", 1))


def met(b: Builder, context: Any, thread: Any) -> None:
    """Emit that a thread has done something together with others of its warp."""
    b.put(THREAD, thread, since=b.get(CONTEXT, context, "time"))


def _warps(b: Builder, context: Any) -> Any:
    threads = b.get(LAUNCH, b.get(CONTEXT, context, "launch"), "threads")
    return b.lshr(b.add(threads, i32(WARP_SIZE - 1)), i32(5))


def _ordered(b: Builder, context: Any, of_blocks: bool, number: Any) -> Any:
    """Where it stands when a block, or a warp of the grid, last came to something that orders."""
    blocks = b.get(CONTEXT, context, "blocks")
    place = b.zext(number, I64) if of_blocks else b.add(blocks, b.zext(number, I64))
    return b.item(b.get(CONTEXT, context, "ordered"), I32, place)


def _self(b: Builder, context: Any, thread: Any) -> tuple[Any, Any, Any, Any]:
    """Return block, its number, the warp's number in the grid, and the lane."""
    block, index = b.get(CONTEXT, context, "block"), b.get(THREAD, thread, "index")
    number = b.get(BLOCK, block, "number")
    warp = b.add(b.mul(number, _warps(b, context)), b.lshr(index, i32(5)))
    return block, number, warp, b.and_(index, i32(LANE_MASK))


def _build_order(b: Builder, function: ir.Function) -> None:
    context, thread = function.args
    _, number, warp, _ = _self(b, context, thread)
    time = b.bump(CONTEXT, context, "time", 1)
    b.store_as(time, _ordered(b, context, True, number))
    b.store_as(time, _ordered(b, context, False, warp))
    b.ret(time)


def _build_observe(checks: Iterable[str], b: Builder, function: ir.Function) -> None:
    """Check each byte of an access and note it. Returns a ``Fault``, with the other access in the context."""
    context, thread, segment, pointer, offset, size, what, site = function.args
    function.attributes.add("noinline")
    block, number, warp, lane = _self(b, context, thread)
    time, began = b.get(CONTEXT, context, "time"), b.get(CONTEXT, context, "round")
    is_local, is_shared = (b.is_("==", segment, int(s)) for s in (Segment.LOCAL, Segment.SHARED))
    is_shared = b.or_(is_shared, b.is_("<", b.sub(segment, i64(Segment.CLUSTER)), MOST_CLUSTER_BLOCKS))
    in_window = b.or_(is_local, is_shared)
    shadow = b.item(b.get(CONTEXT, context, "shadows"), SHADOW.ir, segment)
    arena_offset = b.sub(b.ptrtoint(pointer, I64), b.ptrtoint(b.get(CONTEXT, context, "arena"), I64))
    base = b.select(in_window, b.get(CONTEXT, context, "arena_shadow"), b.get(SHADOW, shadow, "cells"))
    with b.when(b.icmp_unsigned("==", base, ir.Constant(PTR, None))):
        b.ret(i32(Fault.NONE))
    cells = b.at(base, b.mul(b.select(in_window, arena_offset, offset), i64(CELL_BYTES)))
    stores = b.bits(what, STORES)
    my_lane = b.or_(lane, b.select(b.bits(what, STRONG), i32(_STRONG), i32(0)))
    my_lane = b.or_(my_lane, b.select(b.bits(what, ATOMIC), i32(_ATOMIC), i32(0)))
    stride = b.get(LAUNCH, b.get(CONTEXT, context, "launch"), "thread_stride")
    watched = b.is_("!=", b.get(SHADOW, shadow, "watched"), 0)
    written_from = b.select(watched, b.get(CONTEXT, context, "run_time"), i32(0))
    written_from = b.select(is_shared, b.get(BLOCK, block, "start"), written_from)
    written_from = b.select(is_local, b.get(BLOCK, block, "thread_start"), written_from)

    def note(cell: Any, which: int) -> Any:
        return b.at(cell, which * NOTE.size)

    def put_note(place: Any) -> None:
        b.put(NOTE, place, time=time, warp=warp, lane=my_lane, site=site)

    def is_of_warp(place: Any) -> Any:
        return b.is_("==", b.get(NOTE, place, "warp"), warp)

    def is_live(place: Any) -> Any:
        """Whether an access may still be meeting this one: another thread's, and nothing came between that orders them."""
        other, then = b.get(NOTE, place, "warp"), b.get(NOTE, place, "time")
        other_lane = b.and_(b.get(NOTE, place, "lane"), i32(LANE_MASK))
        other_thread = b.at(thread, b.mul(b.sub(b.zext(other_lane, I64), b.zext(lane, I64)), stride))
        other_thread = b.select(is_of_warp(place), other_thread, thread)
        met = b.and_(b.is_(">", b.get(THREAD, thread, "since"), then), b.is_(">", b.get(THREAD, other_thread, "since"), then))
        ordered = b.and_(is_of_warp(place), b.or_(met, b.is_("==", other_lane, lane)))
        same_block = b.is_("==", b.udiv(other, _warps(b, context)), number)
        # In shared memory another block's notes are those of one that has ended, or that is of the same cluster.
        by_barrier = b.or_(is_shared, same_block)
        floor = b.select(by_barrier, b.get(BLOCK, block, "since"), b.get(CONTEXT, context, "launch_time"))
        return b.and_(b.is_(">=", then, floor), b.not_(ordered))

    def check(which: int) -> None:
        """Report an access that meets this one, where not both threads have come to something that orders since."""
        place = note(cell, which)
        at_once = b.and_(b.is_("==", b.get(NOTE, place, "site"), site), b.is_(">=", b.get(NOTE, place, "time"), began))
        between = b.select(is_of_warp(place), at_once, apart(place))
        with b.when(is_live(place), likely=False), b.when(b.not_(b.or_(atomic(place, which), between)), likely=False):
            names = {f"other_{name}": b.get(NOTE, place, name) for name in ("warp", "lane", "site")}
            b.put(CONTEXT, context, other_writes=int(which == WRITE), **names)
            b.ret(i32(Fault.RACE))

    def atomic(place: Any, which: int) -> Any:
        """Whether all of the two that write are atomic: loops of compare and swap begin with a plain read."""
        mark = b.select(is_of_warp(place), i32(_ATOMIC), i32(_STRONG))
        mine, other = b.bits(my_lane, mark), b.bits(b.get(NOTE, place, "lane"), mark)
        return b.and_(other, b.or_(mine, b.not_(stores))) if which == WRITE else mine

    def apart(place: Any) -> Any:
        other, then = b.get(NOTE, place, "warp"), b.get(NOTE, place, "time")
        other_block = b.udiv(other, _warps(b, context))
        same_block = b.is_("==", other_block, number)

        def since(of_block: Any, of_warp: Any) -> Any:
            blocks = b.load_as(I32, _ordered(b, context, True, of_block))
            return b.is_(">", b.select(same_block, b.load_as(I32, _ordered(b, context, False, of_warp)), blocks), then)

        return b.and_(since(other_block, other), since(number, warp))

    with b.count(size) as index:
        cell = b.at(cells, b.mul(index, i64(CELL_BYTES)))
        if INIT in checks:
            unwritten = b.is_("<", b.get(NOTE, note(cell, WRITE), "time"), written_from)
            with b.when(b.and_(b.not_(stores), unwritten), likely=False):
                b.ret(i32(Fault.UNINITIALIZED))
        if RACES in checks:
            with b.when(b.not_(is_local)):
                check(WRITE)
                with b.if_else(stores) as (writing, reading):
                    with writing:
                        for which in (READ, OTHER_READ):
                            check(which)
                    with reading, b.if_else(is_live(note(cell, READ))) as (taken, free):
                        with taken:
                            other_read = note(cell, OTHER_READ)
                            better = b.and_(is_live(other_read), b.not_(is_of_warp(other_read)))
                            with b.when(b.not_(b.and_(better, is_of_warp(note(cell, READ))))):
                                put_note(other_read)
                        with free:
                            put_note(note(cell, READ))
        with b.when(stores):
            put_note(note(cell, WRITE))
    b.ret(i32(Fault.NONE))
