"""The warps of a block: runs their threads in turn, and lets them meet at barriers and warp operations. A part of the scheduler.

A thread runs until its code returns a ``Status``. Those that wait for others stay in their state until all that they need have
come; then they run on. So threads of a warp may diverge as they like, and only a true deadlock stops a launch.
"""

from __future__ import annotations

from llvmlite import ir

from kaasd.devices.emulator.codegen.llvm_builder import I32, I64, PTR, Builder, const, i32
from kaasd.devices.emulator.codegen.structures import (
    BARRIER,
    BARRIER_COUNT,
    BLOCK,
    COLLECTIVE,
    CONTEXT,
    FUEL,
    LAUNCH,
    THREAD,
    THREAD_FUNCTION,
    WARP_SIZE,
    Status,
    ThreadState,
    enter_thread,
    exchange,
    record_thread,
)


def build_run_warp(module: ir.Module) -> ir.Function:
    """Return ``run_warp``, in the module with all that it needs."""
    release = _build_release(module)
    return _build_run_warp(module, _build_run_thread(module), _build_arrive(module, release), release, _build_resolve(module))


def define(module: ir.Module, name: str, result: ir.Type, *arguments: ir.Type) -> tuple[ir.Function, Builder]:
    """Begin a function of the scheduler."""
    function = ir.Function(module, ir.FunctionType(result, arguments), name)
    if name not in ("schedule", "execute"):
        function.linkage = "internal"
    return function, Builder(function.append_basic_block("entry"))


def _build_run_thread(module: ir.Module) -> ir.Function:
    """Run a thread through its calls and returns until it waits, ends or has used up its share."""
    function, b = define(module, "run_thread", I32, PTR, PTR)
    context, thread = function.args
    enter_thread(b, context, b.get(THREAD, thread, "locals"))
    with b.count(i32(FUEL)):
        code = b.load_as(THREAD_FUNCTION.as_pointer(), b.field(THREAD, thread, "function"))
        status = b.call(code, [context, thread])
        with b.when(b.is_("!=", status, Status.CONTINUE)):
            b.ret(status)
    b.ret(i32(Status.YIELD))
    return function


def barrier_at(b: Builder, block: ir.Value, index: ir.Value) -> ir.Value:
    return b.item(b.at(block, BLOCK.size), BARRIER.ir, b.zext(index, I64))


def thread_at(b: Builder, context: ir.Value, block: ir.Value, index: ir.Value) -> ir.Value:
    launch = b.get(CONTEXT, context, "launch")
    offset = b.add(b.get(LAUNCH, launch, "threads_offset"), b.mul(b.zext(index, I64), b.get(LAUNCH, launch, "thread_stride")))
    return b.at(block, offset)


def _build_release(module: ir.Module) -> ir.Function:
    """Complete a barrier if all that it waits for have come: its threads run on."""
    function, b = define(module, "release", ir.VoidType(), PTR, PTR, I32)
    context, block, index = function.args
    barrier = barrier_at(b, block, index)
    arrived, expected = b.get(BARRIER, barrier, "arrived"), b.get(BARRIER, barrier, "expected")
    expected = b.select(b.is_("==", expected, 0), b.get(BLOCK, block, "live"), expected)
    with b.when(b.or_(b.is_("==", arrived, 0), b.is_("<", arrived, expected))):
        b.ret_void()
    with b.count(b.get(LAUNCH, b.get(CONTEXT, context, "launch"), "threads")) as i:
        thread = thread_at(b, context, block, i)
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
    function, b = define(module, "arrive", ir.VoidType(), PTR, PTR, PTR)
    context, block, thread = function.args
    index = b.get(THREAD, thread, "operation")
    barrier = barrier_at(b, block, index)
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
    function, b = define(module, "resolve", I32, PTR, PTR, I32, I32, ir.IntType(1))
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
    function, b = define(module, "run_warp", I32, PTR, PTR, PTR, I32)
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
                b.when(b.is_("!=", b.get(BARRIER, barrier_at(b, block, index), "arrived"), 0)),
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
