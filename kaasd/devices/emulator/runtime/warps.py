"""The warps of a block: runs their threads together, and lets them meet at barriers and warp operations. A part of the scheduler.

Of the threads of a warp that can run, those at the first place run together up to the next point; who is further on waits there.
So they advance together and come together again after a branch, as on a GPU. Those that wait for others stay in their state until
all that they need have come. Those that spin let the others go first, so threads may diverge as they like, and only a true
deadlock stops a launch.
"""

from __future__ import annotations

from llvmlite import ir

from kaasd.devices.emulator.codegen.llvm_builder import I32, I64, PTR, Builder, const, i32
from kaasd.devices.emulator.codegen.structures import (
    CONTEXT,
    EXHAUSTED,
    FRAME,
    FUEL,
    GROUP_FUNCTION,
    LAUNCH,
    THREAD,
    UNITED,
    WARP,
    WARP_SIZE,
    WHOLE,
    Status,
    ThreadState,
)
from kaasd.devices.emulator.runtime.rendezvous import (
    build_resolve,
    build_settle,
    clear,
    define,
    lowest,
    mark,
    next_thread,
    random,
    thread_of,
)


def build_run_warp(module: ir.Module) -> ir.Function:
    """Return ``run_warp``, in the module with all that it needs."""
    return _build_run_warp(module, _build_choose(module), *build_settle(module), build_resolve(module))


Place = tuple[ir.Value, ir.Value, ir.Value]
"""Where a thread is: bytes left for frames, which are fewer the deeper it is in calls; its function; its point there."""
_KINDS = (I64, I64, I32)


def _place(b: Builder, thread: ir.Value) -> Place:
    frame = b.get(THREAD, thread, "frame")
    room = b.sub(b.ptrtoint(b.get(THREAD, thread, "frame_end"), I64), b.ptrtoint(frame, I64))
    return room, b.ptrtoint(b.get(THREAD, thread, "function"), I64), b.get(FRAME, frame, "resume")


def _same(b: Builder, one: Place, other: Place) -> ir.Value:
    return b.and_(b.and_(b.is_("==", one[0], other[0]), b.is_("==", one[1], other[1])), b.is_("==", one[2], other[2]))


def _before(b: Builder, one: Place, other: Place) -> ir.Value:
    """Whether a place comes first: deeper in calls, or earlier in its function."""
    result = b.is_("<", one[2], other[2])
    for index in (1, 0):
        result = b.or_(b.is_("<", one[index], other[index]), b.and_(b.is_("==", one[index], other[index]), result))
    return result


def _build_choose(module: ir.Module) -> ir.Function:
    """Choose threads of a warp to run next: of those that can, the ones at the first place.

    Returns their mask and, above it, a limit: the first point at which others of the same function and depth already are. Where
    the order is random they are some of those at a random place, and go only to the next point: threads need not stay together.
    """
    function, b = define(module, "choose", I64, PTR, PTR, I32)
    context, warp, runnable = function.args
    stride = b.get(LAUNCH, b.get(CONTEXT, context, "launch"), "thread_stride")
    best = [b.variable(kind) for kind in _KINDS]
    left, mask, limit, drawn = b.variable(I32), b.variable(I32, 0), b.variable(I32, -1), b.variable(I32, runnable)

    def known() -> Place:
        room, code, point = (b.load(place, typ=kind) for place, kind in zip(best, _KINDS, strict=True))
        return room, code, point

    def keep(place: Place) -> None:
        for variable, value in zip(best, place, strict=True):
            b.store(value, variable)

    is_random = b.is_("!=", b.get(CONTEXT, context, "random"), 0)
    with b.when(is_random, likely=False):  # the first of those from a random lane on
        start = b.and_(b.lshr(random(b, context), i32(7)), i32(WARP_SIZE - 1))
        from_there = b.and_(runnable, b.shl(i32(-1), start))
        b.store(b.select(b.is_("!=", from_there, 0), from_there, runnable), drawn)
    first_lane = lowest(b, b.load(drawn, typ=I32))
    keep(_place(b, thread_of(b, warp, stride, first_lane)))
    with b.when(b.not_(is_random)):
        b.store(runnable, left)
        with b.while_(lambda: b.is_("!=", b.load(left, typ=I32), 0)):
            place = _place(b, next_thread(b, warp, stride, left)[1])
            with b.when(_before(b, place, known())):
                keep(place)
    chosen = known()
    b.store(runnable, left)
    with b.while_(lambda: b.is_("!=", b.load(left, typ=I32), 0)):
        lane, thread = next_thread(b, warp, stride, left)
        place = _place(b, thread)
        with b.if_else(_same(b, place, chosen)) as (joins, stays):
            with joins:
                b.store(b.or_(b.load(mask, typ=I32), b.shl(i32(1), lane)), mask)
            with stays:
                alike = b.and_(b.is_("==", place[0], chosen[0]), b.is_("==", place[1], chosen[1]))
                nearer = b.and_(alike, b.is_("<", place[2], b.load(limit, typ=I32)))
                b.store(b.select(nearer, place[2], b.load(limit, typ=I32)), limit)
    with b.when(is_random, likely=False):
        b.store(i32(0), limit)
        some = b.or_(random(b, context), b.shl(i32(1), first_lane))
        all_of_them = b.bits(random(b, context), 1 << 9)
        b.store(b.and_(b.load(mask, typ=I32), b.select(all_of_them, i32(-1), some)), mask)
    b.ret(b.or_(b.zext(b.load(mask, typ=I32), I64), b.shl(b.zext(b.load(limit, typ=I32), I64), const(I64, 32))))
    return function


_GOT_ON = EXHAUSTED | sum(1 << status for status in (Status.WARP, Status.EXIT, Status.BARRIER, Status.ARRIVE))
_STOPPED = sum(1 << status for status in (Status.YIELD, Status.WARP, Status.EXIT, Status.BARRIER, Status.ARRIVE))
PATIENCE = 64
"""Times that threads may sleep, or go ``FUEL`` rounds of a loop, while others of their warp wait for them, before those are let
past: a quarter of a million rounds, some milliseconds. Rounds of a loop that they stop in take longer, and count four times."""


def _build_run_warp(
    module: ir.Module,
    choose: ir.Function,
    settle: ir.Function,
    arrive_together: ir.Function,
    arrive_as_a_whole: ir.Function,
    resolve: ir.Function,
) -> ir.Function:
    """Run a warp until all its threads wait for other warps, have ended or spin, or for some time.

    Returns 1 if any thread got on, 0 if none did, 2 if those that ran only spun, and with 4 added if there was a fault.
    """
    function, b = define(module, "run_warp", I32, PTR, PTR, PTR, PTR)
    context, block, warp, info = function.args
    stride = b.get(LAUNCH, b.get(CONTEXT, context, "launch"), "thread_stride")
    result, rounds = b.variable(I32, 0), b.variable(I32, FUEL)
    is_random = b.is_("!=", b.get(CONTEXT, context, "random"), 0)
    mark(b, info, runnable=b.get(WARP, info, "yielded"))
    b.put(WARP, info, yielded=0)
    again = b.append_basic_block("again")
    b.branch(again)
    b.position_at_end(again)
    ready = b.get(WARP, info, "runnable")
    with b.when(b.is_("==", ready, 0)):
        _resolve_or_return(b, context, warp, info, resolve, result, again)
    mask, limit = b.variable(I32), b.variable(I32)
    b.store(ready, mask)
    b.store(i32(-1), limit)
    with b.when(b.or_(b.is_("==", b.get(WARP, info, "together"), 0), is_random), likely=False):
        chosen = b.call(choose, [context, warp, ready])
        b.store(b.trunc(chosen, I32), mask)
        b.store(b.trunc(b.lshr(chosen, const(I64, 32)), I32), limit)
    group = b.load(mask, typ=I32)
    with b.when(b.is_("==", group, ready)):
        b.put(WARP, info, waited=0)
    leader = thread_of(b, warp, stride, lowest(b, group))
    code = b.load_as(GROUP_FUNCTION.as_pointer(), b.field(THREAD, leader, "function"))
    point = b.get(FRAME, b.get(THREAD, leader, "frame"), "resume")
    returned = b.call(code, [context, warp, group, point, b.load(limit, typ=I32)])
    with b.when(b.bits(returned, 1 << Status.FAULT), likely=False):
        b.ret(i32(4))
    remaining = b.sub(b.load(rounds, typ=I32), i32(1))
    b.store(remaining, rounds)
    seen = b.or_(returned, b.select(b.is_("==", remaining, 0), i32(EXHAUSTED), i32(0)))
    got_on = b.zext(b.bits(seen, _GOT_ON), I32)
    spun = b.select(b.bits(seen, 1 << Status.YIELD | 1 << Status.PAUSE), i32(2), i32(0))
    b.store(b.or_(b.load(result, typ=I32), b.or_(got_on, spun)), result)
    united = b.and_(b.bits(seen, UNITED), b.is_("==", group, b.get(WARP, info, "present")))
    b.put(WARP, info, together=b.zext(united, I32))
    with b.when(b.bits(seen, _STOPPED)):
        end = b.append_basic_block("stopped")
        each = b.append_basic_block("each")
        switch = b.switch(b.and_(seen, i32(0xFFFF)), each)
        for status in (Status.WARP, Status.BARRIER):
            body = b.append_basic_block(status.name.lower())
            switch.add_case(i32(1 << status), body)
            b.position_at_end(body)
            if status is Status.WARP:
                clear(b, info, runnable=group)
                mark(b, info, waiting=group)
            else:
                with b.if_else(b.bits(seen, WHOLE)) as (whole, otherwise):
                    with whole:
                        b.call(arrive_as_a_whole, [context, block, leader, info])
                    with otherwise:
                        b.call(arrive_together, [context, block, warp, info, group])
            b.branch(end)
        b.position_at_end(each)
        b.call(settle, [context, block, warp, info, group])
        b.branch(end)
        b.position_at_end(end)
        # At once, so that no other thread of the warp gets past them: who was to come to an operation without a mask has come.
        others = b.is_("!=", b.get(WARP, info, "runnable"), 0)
        with b.when(b.and_(b.bits(seen, 1 << Status.WARP), others), likely=False):
            _resolve(b, context, warp, info, resolve, b.not_(is_random))
    with b.when(b.bits(seen, EXHAUSTED | 1 << Status.PAUSE), likely=False):
        _let_others_past(b, warp, info, stride, seen, group, ready, again)
        b.ret(b.load(result, typ=I32))
    b.branch(again)
    return function


def _let_others_past(
    b: Builder,
    warp: ir.Value,
    info: ir.Value,
    stride: ir.Value,
    seen: ir.Value,
    group: ir.Value,
    ready: ir.Value,
    again: ir.Block,
) -> None:
    """Let the others of a warp run next if they have waited too long: what this group waits for may be theirs to do."""
    with b.when(b.is_("!=", group, ready)):
        by = b.select(b.bits(seen, EXHAUSTED), i32(4), i32(1))
        with b.when(b.is_(">=", b.bump(WARP, info, "waited", by), PATIENCE)):
            left = b.variable(I32)
            moved = b.and_(group, b.get(WARP, info, "runnable"))
            b.store(moved, left)
            b.put(WARP, info, waited=0)
            clear(b, info, runnable=moved)
            mark(b, info, yielded=moved)
            with b.while_(lambda: b.is_("!=", b.load(left, typ=I32), 0)):
                b.put(THREAD, next_thread(b, warp, stride, left)[1], state=ThreadState.YIELDED)
            b.branch(again)


def _resolve(b: Builder, context: ir.Value, warp: ir.Value, info: ir.Value, resolve: ir.Function, whoever: ir.Value) -> ir.Value:
    """Complete warp operations, and return the mask of the threads that can run on."""
    resumed = b.call(resolve, [context, warp, b.get(WARP, info, "waiting"), b.get(WARP, info, "present"), whoever])
    clear(b, info, waiting=resumed)
    mark(b, info, runnable=resumed)
    return resumed


def _resolve_or_return(
    b: Builder, context: ir.Value, warp: ir.Value, info: ir.Value, resolve: ir.Function, result: ir.Value, again: ir.Block
) -> None:
    """Where no thread of the warp can run: complete warp operations, or leave it to the other warps."""
    waiting = b.get(WARP, info, "waiting")
    with b.when(b.is_("!=", waiting, 0)):
        for whoever in (0, 1):
            resumed = _resolve(b, context, warp, info, resolve, const(ir.IntType(1), whoever))
            with b.when(b.is_("!=", resumed, 0), likely=not whoever):
                b.branch(again)
    b.ret(b.load(result, typ=I32))
