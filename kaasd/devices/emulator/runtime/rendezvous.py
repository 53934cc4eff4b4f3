"""Where the threads of a block meet: barriers, and the operations of a warp. A part of the scheduler."""

from __future__ import annotations

from llvmlite import ir

from kaasd.devices.emulator.codegen.checks import met
from kaasd.devices.emulator.codegen.llvm_builder import I32, I64, PTR, Builder, const, i32
from kaasd.devices.emulator.codegen.structures import (
    BARRIER,
    BARRIER_COUNT,
    BLOCK,
    BLOCK_HEAD,
    COLLECTIVE,
    CONTEXT,
    LAUNCH,
    THREAD,
    WARP,
    WARP_SIZE,
    Status,
    ThreadState,
    exchange,
)


def define(module: ir.Module, name: str, result: ir.Type, *arguments: ir.Type) -> tuple[ir.Function, Builder]:
    """Begin a function of the scheduler."""
    function = ir.Function(module, ir.FunctionType(result, arguments), name)
    if name not in ("schedule", "execute", "help"):
        function.linkage = "internal"
    return function, Builder(function.append_basic_block("entry"))


def random(b: Builder, context: ir.Value) -> ir.Value:
    """Return the next number of a xorshift generator: Marsaglia's 13, 17, 5. Where the order is fixed it is always 0."""
    state = b.get(CONTEXT, context, "random")
    for shift, by in ((b.shl, 13), (b.lshr, 17), (b.shl, 5)):
        state = b.xor(state, shift(state, i32(by)))
    b.put(CONTEXT, context, random=state)
    return state


def barrier_at(b: Builder, block: ir.Value, index: ir.Value) -> ir.Value:
    return b.item(b.at(block, BLOCK.size), BARRIER.ir, b.zext(index, I64))


def warp_at(b: Builder, block: ir.Value, index: ir.Value) -> ir.Value:
    return b.item(b.at(block, BLOCK_HEAD), WARP.ir, b.zext(index, I64))


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
    launch = b.get(CONTEXT, context, "launch")
    stride, threads = b.get(LAUNCH, launch, "thread_stride"), b.get(LAUNCH, launch, "threads")
    results = [b.get(BARRIER, barrier, name) for name in ("population", "all", "any")]
    left, released = b.variable(I32), b.variable(I32)
    with b.count(b.udiv(b.add(threads, i32(WARP_SIZE - 1)), i32(WARP_SIZE))) as number:
        info, warp = warp_at(b, block, number), thread_at(b, context, block, b.mul(number, i32(WARP_SIZE)))
        busy = b.or_(b.or_(b.get(WARP, info, "runnable"), b.get(WARP, info, "yielded")), b.get(WARP, info, "waiting"))
        whole_at = b.get(WARP, info, "whole_at")
        is_here = b.is_("==", whole_at, b.add(index, i32(1)))
        alone = b.select(b.is_("==", whole_at, 0), b.not_(busy), i32(0))
        b.store(b.and_(b.get(WARP, info, "present"), alone), left)
        b.store(b.sext(is_here, I32), released)
        with b.when(is_here):
            b.put(WARP, info, whole_at=0)
        with b.while_(lambda: b.is_("!=", b.load(left, typ=I32), 0)):
            lane, thread = next_thread(b, warp, stride, left)
            waits = b.is_("==", b.get(THREAD, thread, "state"), ThreadState.BARRIER)
            with b.when(b.and_(waits, b.is_("==", b.get(THREAD, thread, "operation"), index))):
                b.put(THREAD, thread, state=ThreadState.RUNNABLE)
                b.store(b.or_(b.load(released, typ=I32), b.shl(i32(1), lane)), released)
                for place, value in enumerate(results):
                    b.store_as(value, b.item(exchange(b, thread), I32, place))
        mark(b, info, runnable=b.load(released, typ=I32))
    b.put(BARRIER, barrier, arrived=0, expected=0, population=0, all=1, any=0)
    b.put(BLOCK, block, since=b.bump(CONTEXT, context, "time", 1))
    b.ret_void()
    return function


def _count_in(
    b: Builder,
    barrier: ir.Value,
    thread: ir.Value,
    arrived: ir.Value | int,
    population: ir.Value,
    every: ir.Value,
    some: ir.Value,
) -> None:
    """Count threads in at a barrier, of which ``thread`` is one: their number, and that, all and any of their predicates."""
    b.bump(BARRIER, barrier, "arrived", arrived)
    b.bump(BARRIER, barrier, "population", population)
    b.put(
        BARRIER,
        barrier,
        expected=b.get(THREAD, thread, "mask"),
        all=b.and_(b.get(BARRIER, barrier, "all"), every),
        any=b.or_(b.get(BARRIER, barrier, "any"), some),
    )


def _build_arrive(module: ir.Module, release: ir.Function) -> ir.Function:
    """Count a thread in at the barrier that it names: index in ``operation``, count in ``mask``, predicate in the exchange."""
    function, b = define(module, "arrive", ir.VoidType(), PTR, PTR, PTR)
    context, block, thread = function.args
    index = b.get(THREAD, thread, "operation")
    predicate = b.load_as(I32, exchange(b, thread))
    _count_in(b, barrier_at(b, block, index), thread, 1, predicate, predicate, predicate)
    b.call(release, [context, block, index])
    b.ret_void()
    return function


def _build_arrive_together(module: ir.Module, settle: ir.Function, release: ir.Function) -> ir.Function:
    """Count in threads of a warp that have all come to a barrier: at once, if they name the same one and the same count."""
    function, b = define(module, "arrive_together", ir.VoidType(), PTR, PTR, PTR, PTR, I32)
    context, block, warp, info, mask = function.args
    stride = b.get(LAUNCH, b.get(CONTEXT, context, "launch"), "thread_stride")
    leader = thread_of(b, warp, stride, lowest(b, mask))
    index, count = b.get(THREAD, leader, "operation"), b.get(THREAD, leader, "mask")
    left, arrived, population, every, some, unlike = (b.variable(I32, value) for value in (mask, 0, 0, 1, 0, 0))
    with b.while_(lambda: b.is_("!=", b.load(left, typ=I32), 0)):
        _, thread = next_thread(b, warp, stride, left)
        other = b.or_(b.xor(b.get(THREAD, thread, "operation"), index), b.xor(b.get(THREAD, thread, "mask"), count))
        predicate = b.load_as(I32, exchange(b, thread))
        for variable, combine, value in (
            (unlike, b.or_, other),
            (arrived, b.add, i32(1)),
            (population, b.add, predicate),
            (every, b.and_, predicate),
            (some, b.or_, predicate),
        ):
            b.store(combine(b.load(variable, typ=I32), value), variable)
    with b.when(b.is_("!=", b.load(unlike, typ=I32), 0), likely=False):
        b.call(settle, [context, block, warp, info, mask])
        b.ret_void()
    b.store(mask, left)
    with b.while_(lambda: b.is_("!=", b.load(left, typ=I32), 0)):
        b.put(THREAD, next_thread(b, warp, stride, left)[1], state=ThreadState.BARRIER)
    clear(b, info, runnable=mask)
    number, total, all_of_them, any_of_them = (b.load(each, typ=I32) for each in (arrived, population, every, some))
    _count_in(b, barrier_at(b, block, index), leader, number, total, all_of_them, any_of_them)
    b.call(release, [context, block, index])
    b.ret_void()
    return function


def _build_arrive_as_a_whole(module: ir.Module, release: ir.Function) -> ir.Function:
    """Count in a full warp at the barrier that its first thread names."""
    function, b = define(module, "arrive_as_a_whole", ir.VoidType(), PTR, PTR, PTR, PTR)
    context, block, leader, info = function.args
    index, predicate = b.get(THREAD, leader, "operation"), b.load_as(I32, exchange(b, leader))
    b.put(WARP, info, runnable=0, whole_at=b.add(index, i32(1)))
    population = b.mul(predicate, i32(WARP_SIZE))
    _count_in(b, barrier_at(b, block, index), leader, WARP_SIZE, population, predicate, predicate)
    b.call(release, [context, block, index])
    b.ret_void()
    return function


def build_resolve(module: ir.Module) -> ir.Function:
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
    b.bump(CONTEXT, context, "time", 1)
    with b.count(i32(WARP_SIZE)) as lane, b.when(b.bits(done, b.shl(i32(1), lane))):
        thread = thread_of(b, warp, stride, lane)
        b.put(THREAD, thread, state=ThreadState.RUNNABLE)
        met(b, context, thread)
    b.ret(done)
    return function


def mark(b: Builder, info: ir.Value, **masks: ir.Value) -> None:
    """Add threads to masks of a warp."""
    for name, mask in masks.items():
        b.put(WARP, info, **{name: b.or_(b.get(WARP, info, name), mask)})


def clear(b: Builder, info: ir.Value, **masks: ir.Value) -> None:
    """Take threads from masks of a warp."""
    for name, mask in masks.items():
        b.put(WARP, info, **{name: b.and_(b.get(WARP, info, name), b.not_(mask))})


def next_thread(b: Builder, warp: ir.Value, stride: ir.Value, left: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Take the lowest lane from a mask in a variable, and return it and its thread."""
    lanes = b.load(left, typ=I32)
    b.store(b.and_(lanes, b.sub(lanes, i32(1))), left)
    lane = lowest(b, lanes)
    return lane, thread_of(b, warp, stride, lane)


def lowest(b: Builder, mask: ir.Value) -> ir.Value:
    return b.cttz(mask, const(ir.IntType(1), 1))


def thread_of(b: Builder, warp: ir.Value, stride: ir.Value, lane: ir.Value) -> ir.Value:
    return b.at(warp, b.mul(b.zext(lane, I64), stride))


def build_settle(module: ir.Module) -> tuple[ir.Function, ir.Function, ir.Function]:
    """Return ``settle`` and, for threads that have all come to a barrier, ``arrive_together`` and ``arrive_as_a_whole``."""
    release = _build_release(module)
    settle = _build_settle(module, _build_arrive(module, release), release)
    return settle, _build_arrive_together(module, settle, release), _build_arrive_as_a_whole(module, release)


def _build_settle(module: ir.Module, arrive: ir.Function, release: ir.Function) -> ir.Function:
    """Enter in the warp's masks what has become of threads that stopped, and count in those at a barrier or at their end."""
    function, b = define(module, "settle", ir.VoidType(), PTR, PTR, PTR, PTR, I32)
    context, block, warp, info, mask = function.args
    stride = b.get(LAUNCH, b.get(CONTEXT, context, "launch"), "thread_stride")
    left, ended = b.variable(I32, mask), b.variable(I32, 0)
    with b.while_(lambda: b.is_("!=", b.load(left, typ=I32), 0)):
        lane, thread = next_thread(b, warp, stride, left)
        bit = b.shl(i32(1), lane)
        end = b.append_basic_block("settled")
        switch = b.switch(b.get(THREAD, thread, "state"), end)
        for state in (ThreadState.YIELDED, ThreadState.WARP, ThreadState.EXITED, Status.BARRIER, Status.ARRIVE):
            body = b.append_basic_block(state.name.lower())
            switch.add_case(i32(state), body)
            b.position_at_end(body)
            if state is Status.ARRIVE:
                b.put(THREAD, thread, state=ThreadState.RUNNABLE)
                b.call(arrive, [context, block, thread])
            else:
                clear(b, info, runnable=bit)
            if state is Status.BARRIER:
                b.put(THREAD, thread, state=ThreadState.BARRIER)
                b.call(arrive, [context, block, thread])
            elif state is ThreadState.EXITED:
                clear(b, info, present=bit)
                b.store(b.add(b.load(ended, typ=I32), i32(1)), ended)
            elif state is ThreadState.YIELDED:
                mark(b, info, yielded=bit)
            elif state is ThreadState.WARP:
                mark(b, info, waiting=bit)
            b.branch(end)
        b.position_at_end(end)
    count = b.load(ended, typ=I32)
    with b.when(b.is_("!=", count, 0)):
        b.put(BLOCK, block, live=b.sub(b.get(BLOCK, block, "live"), count))
        with b.count(i32(BARRIER_COUNT)) as index, b.when(b.is_("!=", b.get(BARRIER, barrier_at(b, block, index), "arrived"), 0)):
            b.call(release, [context, block, index])
    b.ret_void()
    return function
