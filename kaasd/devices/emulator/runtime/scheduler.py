"""The native scheduler: runs the threads of a launch, warp by warp and block by block, and lets them meet.

A thread runs until its code returns a ``Status``. Those that wait for others stay in their state until all that they need have
come; then they run on. So threads of a warp may diverge as they like, and only a true deadlock stops a launch.
"""

from __future__ import annotations

from llvmlite import ir

from kaasd.devices.emulator.codegen.checks import begin_block
from kaasd.devices.emulator.codegen.llvm_builder import I32, I64, PTR, Builder, const, i32, i64
from kaasd.devices.emulator.codegen.structures import (
    BARRIER,
    BARRIER_COUNT,
    BLOCK,
    COLLECTIVE,
    CONTEXT,
    FRAME,
    FUEL,
    LAUNCH,
    RUN,
    SEGMENT,
    THREAD,
    THREAD_FUNCTION,
    WARP_SIZE,
    Fault,
    Segment,
    Status,
    ThreadState,
    enter_block,
    enter_thread,
    exchange,
    record_thread,
    segment_entry,
    stopped,
)

IDLE_PASSES = 4
"""Passes over a block in which threads only spun, after which another block becomes resident beside it."""
IDLE = 0x7FFF_FFFF
"""What ``run_block`` returns when the block is not done but only spins."""


def build_scheduler() -> ir.Module:
    """Return the module with ``schedule`` (one launch) and ``execute`` (launches in order, some number of times)."""
    module = ir.Module("scheduler")
    _build_execute(module)
    run_thread = _build_run_thread(module)
    release = _build_release(module)
    arrive = _build_arrive(module, release)
    resolve = _build_resolve(module)
    run_warp = _build_run_warp(module, run_thread, arrive, release, resolve)
    run_block = _build_run_block(module, run_warp)
    _build_schedule(module, _build_admit(module), run_block)
    return module


def _function(module: ir.Module, name: str, result: ir.Type, *arguments: ir.Type) -> tuple[ir.Function, Builder]:
    function = ir.Function(module, ir.FunctionType(result, arguments), name)
    if name not in ("schedule", "execute"):
        function.linkage = "internal"
    return function, Builder(function.append_basic_block("entry"))


def _build_execute(module: ir.Module) -> None:
    function, b = _function(module, "execute", I32, PTR, PTR, I64, I64)
    context, launches, count, iterations = function.args
    with b.count(iterations), b.count(count) as index:
        launch = b.item(launches, LAUNCH.ir, index)
        time = b.bump(CONTEXT, context, "time", 1)
        b.put(CONTEXT, context, launch=launch, launch_index=b.trunc(index, I32), launch_time=time)
        size = b.get(LAUNCH, launch, "arguments_size")
        b.put(
            SEGMENT, segment_entry(b, context, Segment.PARAM), base=b.get(LAUNCH, launch, "arguments"), size=size, writable_size=0
        )
        table = b.get(CONTEXT, context, "table")
        read_only = b.get(LAUNCH, launch, "read_only")
        read_only_count = b.get(LAUNCH, launch, "read_only_count")
        with b.count(read_only_count) as i:
            b.put(SEGMENT, b.item(table, SEGMENT.ir, b.load_as(I64, b.item(read_only, I64, i))), writable_size=0)
        run = b.load_as(RUN.as_pointer(), b.field(LAUNCH, launch, "run"))
        fault = b.call(run, [context])
        with b.count(read_only_count) as i:
            entry = b.item(table, SEGMENT.ir, b.load_as(I64, b.item(read_only, I64, i)))
            b.put(SEGMENT, entry, writable_size=b.get(SEGMENT, entry, "size"))
        with b.when(b.is_("!=", fault, Fault.NONE), likely=False):
            b.ret(fault)
    b.ret(i32(Fault.NONE))


def _build_run_thread(module: ir.Module) -> ir.Function:
    """Run a thread through its calls and returns until it waits, ends or has used up its share."""
    function, b = _function(module, "run_thread", I32, PTR, PTR)
    context, thread = function.args
    enter_thread(b, context, b.get(THREAD, thread, "locals"))
    with b.count(i32(FUEL)):
        code = b.load_as(THREAD_FUNCTION.as_pointer(), b.field(THREAD, thread, "function"))
        status = b.call(code, [context, thread])
        with b.when(b.is_("!=", status, Status.CONTINUE)):
            b.ret(status)
    b.ret(i32(Status.YIELD))
    return function


def _barrier(b: Builder, block: ir.Value, index: ir.Value) -> ir.Value:
    return b.item(b.at(block, BLOCK.size), BARRIER.ir, b.zext(index, I64))


def _thread(b: Builder, context: ir.Value, block: ir.Value, index: ir.Value) -> ir.Value:
    launch = b.get(CONTEXT, context, "launch")
    offset = b.add(b.get(LAUNCH, launch, "threads_offset"), b.mul(b.zext(index, I64), b.get(LAUNCH, launch, "thread_stride")))
    return b.at(block, offset)


def _build_release(module: ir.Module) -> ir.Function:
    """Complete a barrier if all that it waits for have come: its threads run on."""
    function, b = _function(module, "release", ir.VoidType(), PTR, PTR, I32)
    context, block, index = function.args
    barrier = _barrier(b, block, index)
    arrived, expected = b.get(BARRIER, barrier, "arrived"), b.get(BARRIER, barrier, "expected")
    expected = b.select(b.is_("==", expected, 0), b.get(BLOCK, block, "live"), expected)
    with b.when(b.or_(b.is_("==", arrived, 0), b.is_("<", arrived, expected))):
        b.ret_void()
    with b.count(b.get(LAUNCH, b.get(CONTEXT, context, "launch"), "threads")) as i:
        thread = _thread(b, context, block, i)
        waits = b.is_("==", b.get(THREAD, thread, "state"), ThreadState.BARRIER)
        with b.when(b.and_(waits, b.is_("==", b.get(THREAD, thread, "operation"), index))):
            b.put(THREAD, thread, state=ThreadState.RUNNABLE)
            for place, name in enumerate(("population", "all", "any")):
                b.store_as(b.get(BARRIER, barrier, name), b.item(exchange(b, thread), I32, place))
    b.put(BARRIER, barrier, arrived=0, expected=0, population=0, all=1, any=0)
    b.put(BLOCK, block, since=b.bump(CONTEXT, context, "time", 1))
    b.ret_void()
    return function


def _build_arrive(module: ir.Module, release: ir.Function) -> ir.Function:
    """Count a thread in at the barrier that it names: index in ``operation``, count in ``mask``, predicate in the exchange."""
    function, b = _function(module, "arrive", ir.VoidType(), PTR, PTR, PTR)
    context, block, thread = function.args
    index = b.get(THREAD, thread, "operation")
    barrier = _barrier(b, block, index)
    predicate = b.load_as(I32, exchange(b, thread))
    b.bump(BARRIER, barrier, "arrived", 1)
    b.bump(BARRIER, barrier, "population", predicate)
    b.put(
        BARRIER,
        barrier,
        expected=b.get(THREAD, thread, "mask"),
        all=b.and_(b.get(BARRIER, barrier, "all"), predicate),
        any=b.or_(b.get(BARRIER, barrier, "any"), predicate),
    )
    b.call(release, [context, block, index])
    b.ret_void()
    return function


def _build_resolve(module: ir.Module) -> ir.Function:
    """Complete the warp operations that have all their threads, and return the mask of those that may run on.

    Arguments: context, first thread of the warp, masks of the threads that wait and that have not exited, and whether to complete
    the operations that take whoever is there (those without a mask).
    """
    function, b = _function(module, "resolve", I32, PTR, PTR, I32, I32, ir.IntType(1))
    context, warp, waiting, present, whoever = function.args
    launch = b.get(CONTEXT, context, "launch")
    stride = b.get(LAUNCH, launch, "thread_stride")
    collectives = b.get(LAUNCH, launch, "collectives")
    remaining, resumed = b.variable(I32, waiting), b.variable(I32, 0)
    with b.while_(lambda: b.is_("!=", b.load(remaining, typ=I32), 0)):
        left = b.load(remaining, typ=I32)
        first = b.at(warp, b.mul(b.zext(b.cttz(left, const(ir.IntType(1), 1)), I64), stride))
        operation, mask = b.get(THREAD, first, "operation"), b.get(THREAD, first, "mask")
        group = b.variable(I32, 0)
        with b.count(i32(WARP_SIZE)) as lane:
            bit = b.shl(i32(1), lane)
            with b.when(b.bits(left, bit)):
                thread = b.at(warp, b.mul(b.zext(lane, I64), stride))
                same = b.and_(
                    b.is_("==", b.get(THREAD, thread, "operation"), operation), b.is_("==", b.get(THREAD, thread, "mask"), mask)
                )
                with b.when(same):
                    b.store(b.or_(b.load(group, typ=I32), bit), group)
        here = b.load(group, typ=I32)
        b.store(b.and_(left, b.not_(here)), remaining)
        needed = b.and_(mask, present)
        complete = b.is_("==", b.and_(needed, b.not_(here)), 0)
        with b.when(b.select(b.is_("==", mask, 0), whoever, complete)):
            code = b.item(collectives, PTR, b.zext(operation, I64))
            b.call(b.load_as(COLLECTIVE.as_pointer(), code), [warp, stride, here])
            b.store(b.or_(b.load(resumed, typ=I32), here), resumed)
    done = b.load(resumed, typ=I32)
    with b.count(i32(WARP_SIZE)) as lane, b.when(b.bits(done, b.shl(i32(1), lane))):
        b.put(THREAD, b.at(warp, b.mul(b.zext(lane, I64), stride)), state=ThreadState.RUNNABLE)
    b.ret(done)
    return function


def _build_run_warp(
    module: ir.Module, run_thread: ir.Function, arrive: ir.Function, release: ir.Function, resolve: ir.Function
) -> ir.Function:
    """Run a warp until all its threads wait for other warps, have ended or have used up their share, or for some rounds.

    Returns 1 if any thread got on, 0 if none did, 2 if those that ran only spun, and with 4 added if there was a fault.
    """
    function, b = _function(module, "run_warp", I32, PTR, PTR, PTR, I32)
    context, block, warp, lanes = function.args
    stride = b.get(LAUNCH, b.get(CONTEXT, context, "launch"), "thread_stride")
    result, again, rounds = b.variable(I32, 0), b.variable(I32, 1), b.variable(I32, FUEL)
    with b.count(lanes) as lane:
        thread = b.at(warp, b.mul(b.zext(lane, I64), stride))
        with b.when(b.is_("==", b.get(THREAD, thread, "state"), ThreadState.YIELDED)):
            b.put(THREAD, thread, state=ThreadState.RUNNABLE)
    with b.while_(lambda: b.bits(b.load(again, typ=I32), b.sext(b.is_("!=", b.load(rounds, typ=I32), 0), I32))):
        b.store(i32(0), again)
        b.store(b.sub(b.load(rounds, typ=I32), i32(1)), rounds)
        waiting, present = b.variable(I32), b.variable(I32)
        b.store(i32(0), waiting)
        b.store(i32(0), present)
        with b.count(lanes) as lane:
            bit = b.shl(i32(1), lane)
            thread = b.at(warp, b.mul(b.zext(lane, I64), stride))
            with b.when(b.is_("==", b.get(THREAD, thread, "state"), ThreadState.RUNNABLE)):
                _run_until_it_waits(b, context, block, thread, result, run_thread, arrive, release)
            state = b.get(THREAD, thread, "state")
            with b.when(b.is_("==", state, ThreadState.WARP)):
                b.store(b.or_(b.load(waiting, typ=I32), bit), waiting)
            with b.when(b.is_("!=", state, ThreadState.EXITED)):
                b.store(b.or_(b.load(present, typ=I32), bit), present)
            with b.when(b.is_("==", state, ThreadState.RUNNABLE)):  # a barrier that a later lane completed
                b.store(i32(1), again)
        mask = b.load(waiting, typ=I32)
        with b.when(b.is_("!=", mask, 0)):
            for whoever in (0, 1):
                with b.when(b.is_("==", b.load(again, typ=I32), 0)):
                    arguments = [context, warp, mask, b.load(present, typ=I32), const(ir.IntType(1), whoever)]
                    with b.when(b.is_("!=", b.call(resolve, arguments), 0)):
                        b.store(i32(1), again)
    b.ret(b.load(result, typ=I32))
    return function


def _run_until_it_waits(
    b: Builder,
    context: ir.Value,
    block: ir.Value,
    thread: ir.Value,
    result: ir.Value,
    run_thread: ir.Function,
    arrive: ir.Function,
    release: ir.Function,
) -> None:
    status = b.call(run_thread, [context, thread])
    got_on = b.select(b.is_("==", status, Status.YIELD), i32(2), i32(1))
    b.store(b.or_(b.load(result, typ=I32), got_on), result)
    end = b.append_basic_block("waits")
    switch = b.switch(status, end)
    for case in (Status.EXIT, Status.WARP, Status.BARRIER, Status.ARRIVE, Status.YIELD, Status.FAULT):
        body = b.append_basic_block(case.name.lower())
        switch.add_case(i32(case), body)
        b.position_at_end(body)
        if case is Status.EXIT:
            b.put(THREAD, thread, state=ThreadState.EXITED)
            b.bump(BLOCK, block, "live", -1)
            with (
                b.count(i32(BARRIER_COUNT)) as index,
                b.when(b.is_("!=", b.get(BARRIER, _barrier(b, block, index), "arrived"), 0)),
            ):
                b.call(release, [context, block, index])
        elif case is Status.WARP:
            b.put(THREAD, thread, state=ThreadState.WARP)
        elif case is Status.BARRIER:
            b.put(THREAD, thread, state=ThreadState.BARRIER)
            b.call(arrive, [context, block, thread])
        elif case is Status.ARRIVE:
            b.call(arrive, [context, block, thread])
        elif case is Status.YIELD:
            b.put(THREAD, thread, state=ThreadState.YIELDED)
        else:
            record_thread(b, context, thread)
            b.ret(i32(4))
            continue
        b.branch(end)
    b.position_at_end(end)


def _random(b: Builder, context: ir.Value) -> ir.Value:
    """Return the next number of a xorshift generator: Marsaglia's 13, 17, 5. Where the order is fixed it is always 0."""
    state = b.get(CONTEXT, context, "random")
    for shift, by in ((b.shl, 13), (b.lshr, 17), (b.shl, 5)):
        state = b.xor(state, shift(state, i32(by)))
    b.put(CONTEXT, context, random=state)
    return state


def _build_run_block(module: ir.Module, run_warp: ir.Function) -> ir.Function:
    """Run a block until it ends (``Fault.NONE``), faults, or has spun for some passes (``IDLE``)."""
    function, b = _function(module, "run_block", I32, PTR, PTR)
    context, block = function.args
    launch = b.get(CONTEXT, context, "launch")
    threads = b.get(LAUNCH, launch, "threads")
    shared = b.at(block, b.get(LAUNCH, launch, "shared_offset"))
    x, y, z = (b.get(BLOCK, block, axis) for axis in "xyz")
    enter_block(b, context, x, y, z, shared)
    b.put(CONTEXT, context, block=block)
    warps = b.udiv(b.add(threads, i32(WARP_SIZE - 1)), i32(WARP_SIZE))
    progress, idle, no_skips = b.variable(I32), b.variable(I32, 0), b.variable(I32, 0)
    with b.while_(lambda: b.is_("<", b.load(idle, typ=I32), IDLE_PASSES)):
        b.store(i32(0), progress)
        rotation = b.urem(_random(b, context), warps)
        with b.count(warps) as place:
            turned = b.add(place, rotation)
            warp = b.select(b.is_("<", turned, warps), turned, b.sub(turned, warps))
            skipped = b.and_(b.bits(_random(b, context), 1), b.is_("==", b.load(no_skips, typ=I32), 0))
            with b.when(b.not_(skipped)):
                first = b.mul(warp, i32(WARP_SIZE))
                left = b.sub(threads, first)
                lanes = b.select(b.is_("<", left, WARP_SIZE), left, i32(WARP_SIZE))
                done = b.call(run_warp, [context, block, _thread(b, context, block, first), lanes])
                with b.when(b.bits(done, 4), likely=False):
                    b.ret(b.get(CONTEXT, context, "fault"))
                b.store(b.or_(b.load(progress, typ=I32), done), progress)
        with b.when(b.is_("==", b.get(BLOCK, block, "live"), 0)):
            b.ret(i32(Fault.NONE))
        with b.when(stopped(b, context), likely=False):
            b.ret(i32(Fault.STOPPED))
        made = b.load(progress, typ=I32)
        in_vain = b.is_("==", made, 0)
        random = b.is_("!=", b.get(CONTEXT, context, "random"), 0)
        with b.when(b.and_(in_vain, b.or_(b.not_(random), b.bits(b.load(no_skips, typ=I32), 1))), likely=False):
            b.put(CONTEXT, context, fault=Fault.DEADLOCK)
            b.ret(i32(Fault.DEADLOCK))
        b.store(b.zext(in_vain, I32), no_skips)
        b.store(b.select(b.bits(made, 1), i32(0), b.add(b.load(idle, typ=I32), i32(1))), idle)
    b.ret(i32(IDLE))
    return function


def _build_admit(module: ir.Module) -> ir.Function:
    """Set up the block whose turn has this number, in its part of the arena."""
    function, b = _function(module, "admit", ir.VoidType(), PTR, PTR, I64)
    context, block, number = function.args
    launch = b.get(CONTEXT, context, "launch")
    threads = b.get(LAUNCH, launch, "threads")
    grid_x, grid_y, grid_z = (b.zext(b.get(LAUNCH, launch, f"grid_{axis}"), I64) for axis in "xyz")
    number = b.add(b.get(LAUNCH, launch, "first_block"), b.mul(number, b.get(LAUNCH, launch, "block_step")))
    number = b.urem(number, b.mul(b.mul(grid_x, grid_y), grid_z))
    row = b.udiv(number, grid_x)
    coordinates = [b.urem(number, grid_x), b.urem(row, grid_y), b.udiv(row, grid_y)]
    x, y, z = (b.trunc(value, I32) for value in coordinates)
    b.put(BLOCK, block, x=x, y=y, z=z, live=threads, idle=0)
    begin_block(b, context, block, b.trunc(number, I32))
    with b.count(i32(BARRIER_COUNT)) as i:
        b.put(BARRIER, _barrier(b, block, i), arrived=0, expected=0, population=0, all=1, any=0)
    width, height = b.get(LAUNCH, launch, "block_x"), b.get(LAUNCH, launch, "block_y")
    x_now, y_now, z_now = (b.variable(I32, 0) for _ in range(3))
    frame_stride, local_stride = b.get(LAUNCH, launch, "frame_stride"), b.get(LAUNCH, launch, "local_stride")
    frames = b.at(block, b.get(LAUNCH, launch, "frames_offset"))
    local = b.at(block, b.get(LAUNCH, launch, "locals_offset"))
    code = b.get(LAUNCH, launch, "thread_function")
    with b.count(threads) as i:
        thread, wide = _thread(b, context, block, i), b.zext(i, I64)
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


def _build_schedule(module: ir.Module, admit: ir.Function, run_block: ir.Function) -> None:
    """Run all blocks: one after another, or several by turns where one only spins, waiting for another perhaps."""
    function, b = _function(module, "schedule", I32, PTR)
    (context,) = function.args
    launch, arena = b.get(CONTEXT, context, "launch"), b.get(CONTEXT, context, "arena")
    resident = b.get(CONTEXT, context, "resident")
    grid = [b.zext(b.get(LAUNCH, launch, f"grid_{axis}"), I64) for axis in "xyz"]
    blocks = b.mul(b.mul(grid[0], grid[1]), grid[2])
    stride, limit = b.get(LAUNCH, launch, "block_stride"), b.get(LAUNCH, launch, "resident_limit")
    following, active, turn = b.variable(I64, 1), b.variable(I64, 1), b.variable(I64, 0)
    b.store_as(arena, resident)
    b.call(admit, [context, arena, i64(0)])
    with b.while_(lambda: b.is_("!=", b.load(active, typ=I64), 0)):
        place = b.item(resident, PTR, b.load(turn, typ=I64))
        block = b.load_as(PTR, place)
        outcome = b.call(run_block, [context, block])
        more = b.is_("<", b.load(following, typ=I64), blocks)
        with b.if_else(b.is_("==", outcome, Fault.NONE)) as (finished, otherwise):
            with finished, b.if_else(more) as (replace, shrink):
                with replace:
                    number = b.load(following, typ=I64)
                    b.call(admit, [context, block, number])
                    b.store(b.add(number, i64(1)), following)
                with shrink:
                    left = b.sub(b.load(active, typ=I64), i64(1))
                    b.store(left, active)
                    b.store_as(b.load_as(PTR, b.item(resident, PTR, left)), place)
                    with b.when(b.is_(">=", b.load(turn, typ=I64), left)):
                        b.store(i64(0), turn)
            with otherwise:
                with b.when(b.is_("!=", outcome, IDLE), likely=False):
                    b.ret(outcome)
                count = b.load(active, typ=I64)
                with b.when(b.and_(more, b.is_("<", count, limit))):
                    # The first `active` parts of the arena are in use as long as blocks are still to come.
                    fresh = b.at(arena, b.mul(count, stride))
                    b.store_as(fresh, b.item(resident, PTR, count))
                    number = b.load(following, typ=I64)
                    b.call(admit, [context, fresh, number])
                    b.store(b.add(number, i64(1)), following)
                    b.store(b.add(count, i64(1)), active)
                turned = b.add(b.load(turn, typ=I64), i64(1))
                b.store(b.select(b.is_("<", turned, b.load(active, typ=I64)), turned, i64(0)), turn)
        with b.when(stopped(b, context), likely=False):
            b.ret(i32(Fault.STOPPED))
    b.ret(i32(Fault.NONE))
