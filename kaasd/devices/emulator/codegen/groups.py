"""Threads of a warp that run together: one after another up to the next point, then on from there, as long as none parts."""

from __future__ import annotations

from llvmlite import ir

from kaasd.devices.emulator.codegen.checks import RACES, begin_round
from kaasd.devices.emulator.codegen.kernel_image import KernelImage
from kaasd.devices.emulator.codegen.llvm_builder import I1, I32, I64, Builder, const, i32
from kaasd.devices.emulator.codegen.structures import (
    CONTEXT,
    EXHAUSTED,
    FUEL,
    GROUP_FUNCTION,
    LAUNCH,
    STATUS_BITS,
    THREAD,
    UNITED,
    WARP_POINTS,
    WARP_SIZE,
    WHOLE,
    Status,
    enter_thread,
    record_thread,
)


def build_group(
    image: KernelImage, thread_function: ir.Function, name: str, inlined: bool, warp_function: ir.Function | None = None
) -> ir.Function:
    """Return the ``GROUP_FUNCTION`` of a routine whose code for one thread is ``thread_function``.

    ``warp_function`` is code for whole warps, if there is some. If ``thread_function`` is ``inlined`` it becomes part of the loop
    over threads: a fifth faster, and twice as long to compile.
    """
    function = ir.Function(image.module, GROUP_FUNCTION, name)
    function.linkage = "internal"
    context, warp, mask, resume, limit = function.args
    b = Builder(function.append_basic_block("entry"))
    stride = b.get(LAUNCH, b.get(CONTEXT, context, "launch"), "thread_stride")
    has_locals = b.is_("!=", b.load(image.local_size, typ=I64), 0)
    point, seen, low, high, left, rounds = (b.variable(I32) for _ in range(6))
    b.store(resume, point)
    b.store(i32(FUEL), rounds)
    again = b.append_basic_block("round")
    b.branch(again)
    b.position_at_end(again)
    if RACES in image.checks:
        begin_round(b, context)
    if warp_function is not None:
        _run_as_a_whole(b, warp_function, context, warp, mask, point)
    here = b.load(point, typ=I32)
    for variable, value in ((seen, i32(0)), (low, i32(-1)), (high, i32(0)), (left, mask)):
        b.store(value, variable)
    with b.while_(lambda: b.is_("!=", b.load(left, typ=I32), 0)):
        lanes = b.load(left, typ=I32)
        b.store(b.and_(lanes, b.sub(lanes, i32(1))), left)
        thread = b.at(warp, b.mul(b.zext(b.cttz(lanes, const(I1, 1)), I64), stride))
        with b.when(has_locals):
            enter_thread(b, context, b.get(THREAD, thread, "locals"))
        returned = b.call(thread_function, [context, thread, here], attrs=() if inlined else ("noinline",))
        status, following = b.and_(returned, i32((1 << STATUS_BITS) - 1)), b.lshr(returned, i32(STATUS_BITS))
        gone_on = b.or_(b.is_("==", status, Status.CALL), b.is_("==", status, Status.PAUSE))
        b.put(THREAD, thread, state=b.select(gone_on, i32(0), status))
        b.store(b.or_(b.load(seen, typ=I32), b.shl(i32(1), status)), seen)
        for variable, operator in ((low, "<"), (high, ">")):
            other = b.load(variable, typ=I32)
            b.store(b.select(b.is_(operator, following, other), following, other), variable)
        with b.when(b.is_("==", status, Status.FAULT), likely=False):
            record_thread(b, context, thread)
            b.ret(i32(1 << Status.FAULT))
    result, first, last = (b.load(variable, typ=I32) for variable in (seen, low, high))
    parted = b.or_(b.is_("!=", first, last), b.is_(">=", first, limit))
    with b.when(b.or_(parted, b.is_("!=", result, 1 << Status.GO_ON))):
        united = b.and_(b.is_("==", first, last), b.not_(b.bits(result, 1 << Status.CALL)))
        b.ret(b.or_(result, b.select(united, i32(UNITED), i32(0))))
    b.store(first, point)
    remaining = b.sub(b.load(rounds, typ=I32), i32(1))
    b.store(remaining, rounds)
    with b.when(b.is_("==", remaining, 0), likely=False):
        b.ret(i32(1 << Status.GO_ON | EXHAUSTED | UNITED))
    b.branch(again)
    return function


def _run_as_a_whole(
    b: Builder, warp_function: ir.Function, context: ir.Value, warp: ir.Value, mask: ir.Value, point: ir.Value
) -> None:
    """Where all threads of a full warp begin, or go on, as a whole: run them so. What they leave is done one by one."""
    here = b.load(point, typ=I32)
    begins = b.and_(b.is_("==", here, 0), b.is_("==", b.get(CONTEXT, context, "random"), 0))
    whole = b.and_(b.is_("==", mask, -1), b.or_(begins, b.is_(">=", here, WARP_POINTS)))
    with b.when(whole):
        launch = b.get(CONTEXT, context, "launch")
        number = b.udiv(b.get(THREAD, warp, "index"), i32(WARP_SIZE))
        offset = b.mul(b.zext(number, I64), b.get(LAUNCH, launch, "saved_stride"))
        offset = b.add(offset, b.get(LAUNCH, launch, "saved_offset"))
        b.put(CONTEXT, context, saved=b.at(b.get(CONTEXT, context, "block"), offset))
        returned = b.call(warp_function, [context, warp, here])
        status = b.and_(returned, i32((1 << STATUS_BITS) - 1))
        with b.when(b.is_("!=", status, Status.GO_ON), likely=True):
            b.ret(b.or_(b.shl(i32(1), status), i32(UNITED | WHOLE)))
        b.store(b.lshr(returned, i32(STATUS_BITS)), point)
