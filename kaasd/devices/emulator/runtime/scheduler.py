"""The native scheduler: runs launches in order, and the blocks of each in turn, several at once where one waits for another."""

from __future__ import annotations

from llvmlite import ir

from kaasd.devices.emulator.codegen.checks import begin_block
from kaasd.devices.emulator.codegen.cores import CALL_AFTER, call_others, cycles, declare, take
from kaasd.devices.emulator.codegen.llvm_builder import I32, I64, PTR, Builder, i32, i64
from kaasd.devices.emulator.codegen.structures import (
    BARRIER,
    BARRIER_COUNT,
    BLOCK,
    CONTEXT,
    FRAME,
    LAUNCH,
    SEGMENT,
    TEAM,
    THREAD,
    WARP,
    WARP_SIZE,
    Fault,
    ThreadState,
    enter_block,
    enter_cluster,
    stopped,
)
from kaasd.devices.emulator.runtime.helping import build_close, build_help, build_join
from kaasd.devices.emulator.runtime.rendezvous import barrier_at, define, random, thread_at, warp_at
from kaasd.devices.emulator.runtime.warps import build_run_warp

IDLE_PASSES = 4
"""Passes over a block in which threads only spun, after which another block becomes resident beside it."""
IDLE = 0x7FFF_FFFF
"""What ``run_block`` returns when the block is not done but only spins."""


def build_scheduler() -> ir.Module:
    """Return the module with ``schedule`` (one launch), ``execute`` (launches in order, some number of times) and ``help``."""
    module = ir.Module("scheduler")
    _build_execute(module)
    build_help(module)
    run_block = _build_run_block(module, build_run_warp(module))
    _build_schedule(module, _build_admit_cluster(module, _build_admit(module)), run_block)
    return module


def _build_execute(module: ir.Module) -> None:
    function, b = define(module, "execute", I32, PTR, PTR, I64, I64)
    context, launches, count, iterations = function.args
    join, close = build_join(module), build_close(module)
    with b.count(iterations), b.count(count) as index:
        launch = b.item(launches, LAUNCH.ir, index)
        time = b.bump(CONTEXT, context, "time", 1)
        b.put(CONTEXT, context, launch_time=time)
        table = b.get(CONTEXT, context, "table")
        read_only = b.get(LAUNCH, launch, "read_only")
        read_only_count = b.get(LAUNCH, launch, "read_only_count")
        with b.count(read_only_count) as i:
            b.put(SEGMENT, b.item(table, SEGMENT.ir, b.load_as(I64, b.item(read_only, I64, i))), writable_size=0)
        is_shared_out = b.is_(">", b.get(LAUNCH, launch, "cores"), 1)
        call_at = b.select(is_shared_out, b.add(cycles(b), i64(CALL_AFTER)), i64(0))
        b.put(CONTEXT, context, call_at=call_at)
        b.put(TEAM, b.get(CONTEXT, context, "team"), next=0, launch=launch, launch_index=b.trunc(index, I32))
        fault = b.call(join, [context])
        were_called = b.and_(is_shared_out, b.is_("==", b.get(CONTEXT, context, "call_at"), 0))
        with b.when(were_called):
            b.call(close, [context])
        with b.count(read_only_count) as i:
            entry = b.item(table, SEGMENT.ir, b.load_as(I64, b.item(read_only, I64, i)))
            b.put(SEGMENT, entry, writable_size=b.get(SEGMENT, entry, "size"))
        faulty = b.get(TEAM, b.get(CONTEXT, context, "team"), "faulty")
        with b.when(b.icmp_unsigned("!=", faulty, ir.Constant(PTR, None)), likely=False):
            b.ret(b.get(CONTEXT, faulty, "fault"))
        with b.when(b.is_("!=", fault, Fault.NONE), likely=False):
            b.ret(fault)
    b.ret(i32(Fault.NONE))


def _build_run_block(module: ir.Module, run_warp: ir.Function) -> ir.Function:
    """Run a block until it ends (``Fault.NONE``), faults, or has spun for some passes (``IDLE``)."""
    function, b = define(module, "run_block", I32, PTR, PTR)
    context, block = function.args
    launch = b.get(CONTEXT, context, "launch")
    threads = b.get(LAUNCH, launch, "threads")
    shared = b.at(block, b.get(LAUNCH, launch, "shared_offset"))
    x, y, z = (b.get(BLOCK, block, axis) for axis in "xyz")
    enter_block(b, context, x, y, z, shared)
    b.put(CONTEXT, context, block=block)
    enter_cluster(b, context, block)
    warps = b.udiv(b.add(threads, i32(WARP_SIZE - 1)), i32(WARP_SIZE))
    progress, idle, no_skips = b.variable(I32), b.variable(I32, 0), b.variable(I32, 0)
    with b.while_(lambda: b.is_("<", b.load(idle, typ=I32), IDLE_PASSES)):
        b.store(i32(0), progress)
        rotation = b.urem(random(b, context), warps)
        with b.count(warps) as place:
            call_others(b, context)
            turned = b.add(place, rotation)
            warp = b.select(b.is_("<", turned, warps), turned, b.sub(turned, warps))
            skipped = b.and_(b.bits(random(b, context), 1), b.is_("==", b.load(no_skips, typ=I32), 0))
            with b.when(b.not_(skipped)):
                first = thread_at(b, context, block, b.mul(warp, i32(WARP_SIZE)))
                done = b.call(run_warp, [context, block, first, warp_at(b, block, warp)])
                with b.when(b.bits(done, 4), likely=False):
                    b.ret(b.get(CONTEXT, context, "fault"))
                b.store(b.or_(b.load(progress, typ=I32), done), progress)
        with b.when(b.is_("==", b.get(BLOCK, block, "live"), 0)):
            b.ret(i32(Fault.NONE))
        with b.when(stopped(b, context), likely=False):
            b.ret(i32(Fault.STOPPED))
        made = b.load(progress, typ=I32)
        in_vain = b.is_("==", made, 0)
        is_random = b.is_("!=", b.get(CONTEXT, context, "random"), 0)
        with b.when(b.and_(in_vain, b.or_(b.not_(is_random), b.bits(b.load(no_skips, typ=I32), 1))), likely=False):
            b.put(CONTEXT, context, fault=Fault.DEADLOCK)
            b.ret(i32(Fault.DEADLOCK))
        b.store(b.zext(in_vain, I32), no_skips)
        b.store(b.select(b.bits(made, 1), i32(0), b.add(b.load(idle, typ=I32), i32(1))), idle)
    b.ret(i32(IDLE))
    return function


def _coordinates(b: Builder, number: ir.Value, size: list[ir.Value]) -> list[ir.Value]:
    """Return where a number is in a box of this size, x first."""
    row = b.udiv(number, size[0])
    return [b.urem(number, size[0]), b.urem(row, size[1]), b.udiv(row, size[1])]


def _build_admit(module: ir.Module) -> ir.Function:
    """Set up the block whose turn has this number, in its part of the arena; ``leader`` is the first of its cluster."""
    function, b = define(module, "admit", ir.VoidType(), PTR, PTR, I64, PTR)
    context, block, number, leader = function.args
    launch = b.get(CONTEXT, context, "launch")
    threads = b.get(LAUNCH, launch, "threads")
    grid, cluster = ([b.zext(b.get(LAUNCH, launch, f"{what}_{axis}"), I64) for axis in "xyz"] for what in ("grid", "cluster"))
    clusters = [b.udiv(*pair) for pair in zip(grid, cluster, strict=True)]
    blocks = b.zext(b.get(LAUNCH, launch, "cluster_size"), I64)
    turn, rank = b.udiv(number, blocks), b.urem(number, blocks)
    turn = b.add(b.get(LAUNCH, launch, "first_cluster"), b.mul(turn, b.get(LAUNCH, launch, "cluster_step")))
    turn = b.urem(turn, b.get(LAUNCH, launch, "clusters"))
    coordinates = [
        b.add(b.mul(outer, size), inner)
        for outer, size, inner in zip(_coordinates(b, turn, clusters), cluster, _coordinates(b, rank, cluster), strict=True)
    ]
    x, y, z = (b.trunc(value, I32) for value in coordinates)
    in_grid = b.add(coordinates[0], b.mul(grid[0], b.add(coordinates[1], b.mul(grid[1], coordinates[2]))))
    b.put(BLOCK, block, x=x, y=y, z=z, live=threads, idle=0, leader=leader)
    begin_block(b, context, block, b.trunc(in_grid, I32))
    with b.count(i32(BARRIER_COUNT)) as i:
        b.put(BARRIER, barrier_at(b, block, i), arrived=0, expected=0, population=0, all=1, any=0)
    with b.count(b.udiv(b.add(threads, i32(WARP_SIZE - 1)), i32(WARP_SIZE))) as i:
        left = b.sub(threads, b.mul(i, i32(WARP_SIZE)))
        missing = b.select(b.is_("<", left, WARP_SIZE), b.sub(i32(WARP_SIZE), left), i32(0))
        lanes = b.lshr(i32(-1), missing)
        b.put(WARP, warp_at(b, block, i), runnable=lanes, yielded=0, waiting=0, present=lanes, together=1, waited=0, whole_at=0)
    width, height = b.get(LAUNCH, launch, "block_x"), b.get(LAUNCH, launch, "block_y")
    x_now, y_now, z_now = (b.variable(I32, 0) for _ in range(3))
    frame_stride, local_stride = b.get(LAUNCH, launch, "frame_stride"), b.get(LAUNCH, launch, "local_stride")
    frames = b.at(block, b.get(LAUNCH, launch, "frames_offset"))
    local = b.at(block, b.get(LAUNCH, launch, "locals_offset"))
    code = b.get(LAUNCH, launch, "group_function")
    with b.count(threads) as i:
        thread, wide = thread_at(b, context, block, i), b.zext(i, I64)
        frame = b.at(frames, b.mul(wide, frame_stride))
        b.put(
            THREAD,
            thread,
            state=ThreadState.RUNNABLE,
            x=b.load(x_now, typ=I32),
            y=b.load(y_now, typ=I32),
            z=b.load(z_now, typ=I32),
            index=i,
            function=code,
            frame=frame,
            frame_end=b.at(frame, frame_stride),
            locals=b.at(local, b.mul(wide, local_stride)),
            local=0,
            allocated=0,
            trace=0,
            spins=0,
            since=0,
        )
        b.put(FRAME, frame, resume=0)
        b.store(b.add(b.load(x_now, typ=I32), i32(1)), x_now)
        with b.when(b.is_("==", b.load(x_now, typ=I32), width)):
            b.store(i32(0), x_now)
            b.store(b.add(b.load(y_now, typ=I32), i32(1)), y_now)
            with b.when(b.is_("==", b.load(y_now, typ=I32), height)):
                b.store(i32(0), y_now)
                b.store(b.add(b.load(z_now, typ=I32), i32(1)), z_now)
    b.ret_void()
    return function


def _build_admit_cluster(module: ir.Module, admit: ir.Function) -> ir.Function:
    """Set up the cluster whose turn has this number, from a place in the arena on, and note its blocks as resident."""
    function, b = define(module, "admit_cluster", ir.VoidType(), PTR, PTR, I64, PTR)
    context, first, number, resident = function.args
    launch = b.get(CONTEXT, context, "launch")
    stride, blocks = b.get(LAUNCH, launch, "block_stride"), b.get(LAUNCH, launch, "cluster_size")
    with b.count(b.zext(blocks, I64)) as rank:
        block = b.at(first, b.mul(rank, stride))
        b.store_as(block, b.item(resident, PTR, rank))
        b.call(admit, [context, block, b.add(b.mul(number, b.zext(blocks, I64)), rank), first])
    b.put(BLOCK, first, members=blocks, arrived=0, phase=0)
    b.ret_void()
    return function


def _build_schedule(module: ir.Module, admit_cluster: ir.Function, run_block: ir.Function) -> None:
    """Run clusters until none is left: one after another, or several by turns where a block only spins, waiting perhaps."""
    function, b = define(module, "schedule", I32, PTR)
    (context,) = function.args
    launch, arena = b.get(CONTEXT, context, "launch"), b.get(CONTEXT, context, "arena")
    resident = b.get(CONTEXT, context, "resident")
    stride, limit = b.get(LAUNCH, launch, "block_stride"), b.get(LAUNCH, launch, "resident_limit")
    cluster = b.zext(b.get(LAUNCH, launch, "cluster_size"), I64)
    active, turn, taken, number, end, in_vain = (b.variable(I64, 0) for _ in range(6))
    others = b.is_(">", b.get(LAUNCH, launch, "cores"), 1)

    def has_more() -> ir.Value:
        """Whether there is another cluster for this core, whose number it then has."""
        with b.when(b.is_("==", b.load(number, typ=I64), b.load(end, typ=I64))):
            for variable, value in zip((number, end), take(b, context), strict=True):
                b.store(value, variable)
        return b.is_("!=", b.load(number, typ=I64), b.load(end, typ=I64))

    def add_cluster(first: ir.Value) -> None:
        following, count = b.load(number, typ=I64), b.load(active, typ=I64)
        b.store(b.add(following, i64(1)), number)
        b.call(admit_cluster, [context, first, following, b.item(resident, PTR, count)])
        b.store(b.add(count, cluster), active)

    with b.when(has_more()):
        add_cluster(arena)
        b.store(cluster, taken)
    with b.while_(lambda: b.is_("!=", b.load(active, typ=I64), 0)):
        place = b.item(resident, PTR, b.load(turn, typ=I64))
        block = b.load_as(PTR, place)
        outcome = b.call(run_block, [context, block])
        with b.if_else(b.is_("==", outcome, Fault.NONE)) as (finished, otherwise):
            with finished:
                b.store(i64(0), in_vain)
                left = b.sub(b.load(active, typ=I64), i64(1))
                b.store(left, active)
                b.store_as(b.load_as(PTR, b.item(resident, PTR, left)), place)
                leader = b.get(BLOCK, block, "leader")
                b.put(BLOCK, leader, members=b.sub(b.get(BLOCK, leader, "members"), i32(1)))
                with b.when(b.is_("==", b.get(BLOCK, leader, "members"), 0)), b.when(has_more()):
                    add_cluster(leader)
                with b.when(b.is_(">=", b.load(turn, typ=I64), b.load(active, typ=I64))):
                    b.store(i64(0), turn)
            with otherwise:
                with b.when(b.is_("!=", outcome, IDLE), likely=False):
                    b.ret(outcome)
                waited = b.add(b.load(in_vain, typ=I64), i64(1))
                b.store(waited, in_vain)
                with b.when(b.and_(others, b.is_(">=", waited, b.load(active, typ=I64)))):  # another core may have to do it
                    b.store(i64(0), in_vain)
                    b.call(declare(module, "sched_yield", I32), [])
                used = b.load(taken, typ=I64)
                with b.when(b.is_("<=", b.add(used, cluster), limit)), b.when(has_more()):
                    add_cluster(b.at(arena, b.mul(used, stride)))
                    b.store(b.add(used, cluster), taken)
                turned = b.add(b.load(turn, typ=I64), i64(1))
                b.store(b.select(b.is_("<", turned, b.load(active, typ=I64)), turned, i64(0)), turn)
        with b.when(stopped(b, context), likely=False):
            b.ret(i32(Fault.STOPPED))
    b.ret(i32(Fault.NONE))
