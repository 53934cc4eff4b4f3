"""One routine as an LLVM function that runs a thread until it waits, ends, or comes to where its warp comes together."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from llvmlite import ir

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.frames import return_from
from kaasd.devices.emulator.codegen.homes import homes_of
from kaasd.devices.emulator.codegen.kernel_image import KernelImage
from kaasd.devices.emulator.codegen.liveness import Liveness, targets
from kaasd.devices.emulator.codegen.llvm_builder import I32, I64, Builder, i32, i64
from kaasd.devices.emulator.codegen.nans import late_nans
from kaasd.devices.emulator.codegen.order import ControlFlow, Place
from kaasd.devices.emulator.codegen.structures import (
    CONTEXT,
    FRAME,
    FUEL,
    STATUS_BITS,
    THREAD,
    THREAD_FUNCTION,
    WARP_SIZE,
    Status,
)
from kaasd.devices.emulator.codegen.warp_code import saved_at
from kaasd.devices.emulator.ptx.forms import Flow
from kaasd.devices.emulator.ptx.routine import Register, Routine
from kaasd.devices.emulator.ptx.types import PRED, align

LEAST_WITH_HOMES = 400
"""Operations; below, LLVM keeps registers itself."""
PATIENCE = 16
"""Rounds of a loop in which neither a thread nor memory changes, after which others of its warp go first."""
_MIX = 0x9E37_79B9_7F4A_7C15


@dataclass(frozen=True, slots=True)
class Meetings:
    """Where the threads of a warp come together in a routine, besides where they wait for one another."""

    before: frozenset[int] = frozenset()
    """Operations that none begins before all that can come there have."""
    heads: frozenset[int] = frozenset()
    """Those that none begins before all are done with a round of the loop around it: most are where that loop begins."""
    after: frozenset[int] = frozenset()
    """Operations that none goes on from before all that can come there have."""


@dataclass(frozen=True, slots=True)
class KernelMeetings:
    """The same in general and, of a kernel that calls nothing, where the threads of a warp differ by their lane only."""

    general: Meetings
    by_lane: Meetings | None = None
    """None where that makes no difference."""
    pointers: frozenset[int] = frozenset()
    """Offsets of parameters that ``by_lane`` takes to be buffers."""


PART = 500
"""Operations of a function in LLVM, where a routine is made of several: what LLVM does grows faster than they do."""
LONG = 1000
"""Most operations of a routine that is one function."""


class _Point:
    """A place where a thread can leave its code and go on later. Its number is known when all are: earlier places have less."""

    def __init__(self, place: tuple[int, int, int, int], resume: ir.Block) -> None:
        self.place = place
        self.resume = resume
        self.number = i32(0)
        self.returned: list[tuple[ir.Constant, Status]] = []

    def give(self, status: Status) -> ir.Constant:
        """Return what the function returns to stop here."""
        constant = i32(0)
        self.returned.append((constant, status))
        return constant

    def settle(self, number: int) -> None:
        self.number.constant = number
        for constant, status in self.returned:
            constant.constant = number << STATUS_BITS | status


@dataclass(slots=True)
class _Part:
    """Operations that are one function in LLVM."""

    function: ir.Function
    start: int
    end: int
    """One past the last one."""
    emitter: Emitter
    entry: ir.Block
    """Where it is entered; ends when all is known."""
    points: list[_Point] = field(default_factory=list)


class _Blocks(dict[int, ir.Block]):
    """The blocks of a part by their first operations; those of other parts are made when they are first asked for."""

    def __init__(self, leave_for: Callable[[int], ir.Block]) -> None:
        super().__init__()
        self._leave_for = leave_for

    def __missing__(self, index: int) -> ir.Block:
        self[index] = self._leave_for(index)
        return self[index]


class RoutineCompiler:
    """Emits a routine into ``function``, a ``THREAD_FUNCTION``; a long one into several, between which it goes."""

    def __init__(
        self, image: KernelImage, routine: Routine, function: ir.Function, meetings: Meetings, entered: Collection[int] = ()
    ) -> None:
        """``entered`` are operations at which a thread may come from code for its whole warp."""
        self._entered = entered
        self.entries: dict[int, ir.Constant] = {}
        """By such an operation, what says that the thread is to go on there."""
        self._image = image
        self._routine = routine
        self._meetings = meetings
        self._function = function
        self._flow = ControlFlow.of(routine)
        self._homes: dict[int, int] = {}
        """Places of registers in the frame, by their numbers, where saving them at each point would take longer."""
        self._homes_end = align(FRAME.size)
        self._frame_size = FRAME.size
        self._points: list[_Point] = []
        self._asked_for: dict[int, list[ir.Constant]] = {}
        """Operations that other parts go to, with the numbers that say so."""
        self._fuel_offset = 0
        self._place = 0
        """Of the block at hand, in the order of blocks."""
        self._late_nans = late_nans(routine)
        self._starts = self._part_starts()
        self._give_homes()
        self._parts = [self._new_part(*bounds) for bounds in pairwise([*self._starts, len(routine.operations)])]
        self._part = self._parts[0]
        self._emitter = self._part.emitter

    @property
    def waits(self) -> bool:
        """Whether a thread can return before its end, or needs a frame."""
        return len(self._points) > len(self.entries) or len(self._parts) > 1

    def compile(self) -> int:
        """Emit the routine and return the size of its frame."""
        for part in self._parts:
            self._part, self._emitter = part, part.emitter
            self._emit_part()
        self._settle()
        for part in self._parts:
            self._dispatch(part)
        if len(self._parts) > 1:
            self._choose_part()
        return align(self._frame_size)

    def _part_starts(self) -> list[int]:
        """Return the operations with which parts begin: at blocks, where these are not too far."""
        count = len(self._routine.operations)
        starts = [0]
        while count > LONG and count - starts[-1] > PART * 3 // 2:
            wanted = starts[-1] + PART
            block = self._flow.starts[bisect_left(self._flow.starts, wanted)]
            starts.append(block if block < min(wanted + PART // 2, count) else wanted)
        return starts

    def _new_part(self, start: int, end: int) -> _Part:
        function = self._function
        if len(self._starts) > 1:
            function = ir.Function(self._image.module, THREAD_FUNCTION, f"{function.name}.{start}")
            function.linkage = "internal"
            function.attributes.add("noinline")
        emitter = Emitter(self._image, self._routine, function)
        emitter.watches_stores = bool(self._meetings.heads)
        emitter.late_nans = self._late_nans
        emitter.suspend = self._suspend
        return _Part(function, start, end, emitter, emitter.b.block)

    def _part_of(self, index: int) -> int:
        """Return the number of the part that an operation belongs to."""
        return bisect_right(self._starts, index) - 1

    def _stops(self) -> Iterator[int]:
        """Yield the operations at which a thread may leave its code."""
        yield from self._meetings.before | self._meetings.heads
        yield from (index + 1 for index in self._meetings.after)
        for operation in self._routine.operations:
            if operation.match.form.suspends or self._goes_back(operation.index):
                yield operation.index

    def _give_homes(self) -> None:
        """Give those registers a place of their own for which that is less work than to save them wherever a thread may leave."""
        count, flow = len(self._routine.operations), self._flow
        if count <= LEAST_WITH_HOMES:
            return
        live = self._live
        stops = [stop for stop in self._stops() if stop < count]
        saved = [*(live.before(stop) for stop in stops), *(live.across(stop) for stop in stops)]
        if len(self._starts) > 1:
            self._fuel_offset, self._homes_end = self._homes_end, self._homes_end + 4
            ends = ((max(block, flow.ends[block] - 1), block) for block in flow.starts)
            entered = {
                each for last, block in ends for each in flow.successors[block] if self._part_of(each) != self._part_of(last)
            }
            saved += [live.before(index) for index in (*self._starts, *entered)]
        elif sum(map(len, saved)) <= sum(map(len, (*live.reads, *live.writes))):
            return
        registers = {register for each in saved for register in each}
        self._homes, self._homes_end = homes_of(registers, live, flow.ends, self._homes_end)
        self._frame_size = self._homes_end

    def _emit_part(self) -> None:
        part, t = self._part, self._emitter
        b = t.b
        self._frame = b.get(THREAD, t.thread, "frame")
        t.homes, t.frame = self._homes, self._frame
        several = len(self._parts) > 1
        self._fuel = b.at(self._frame, self._fuel_offset) if several else b.variable(I32, FUEL)
        t.blocks = _Blocks(self._leave_for)
        is_last = part is self._parts[-1]
        for index in {part.start, *self._flow.starts}:
            if part.start <= index < part.end + is_last:
                t.blocks[index] = b.append_basic_block(f"op{index}")
        self._begin()
        for operation in self._routine.operations[part.start : part.end]:
            t.operation = operation
            if operation.index in t.blocks:
                self._continue_at(operation.index)
            if operation.index in self._meetings.before or operation.index in self._meetings.heads:
                self._meet(operation.index)
            if operation.index in self._entered:
                self._enter(operation.index)
            self._emit()
            if operation.index in self._meetings.after:
                self._meet(operation.index + 1)
        if is_last:
            self._continue_at(part.end)
            return_from(t)  # past the last instruction: the same as `ret`
        elif not b.block.is_terminated:
            t.store_needed(self._live.needed(part.end))
            b.branch(t.blocks[part.end])

    def _begin(self) -> None:
        """Enter at the start: read formal parameters that are registers."""
        t, part = self._emitter, self._part
        b = t.b
        if part.start == 0:
            self._first = b.append_basic_block("first")
            b.position_at_end(self._first)
            for register in self._live.before(0) if self._homes else ():
                if register.index in self._homes:
                    t.store_register(register, ir.Constant(register.type.raw, 0))
            for offset, register in self._routine.formals_of(self._routine.signature.parameters):
                t.store_register(register, b.load_as(register.type.raw, t.local_pointer(offset), "memory"))
            b.branch(t.blocks[0])
        b.position_at_end(t.blocks[part.start])

    def _leave_for(self, index: int) -> ir.Block:
        """Return a block that goes on in another part."""
        t = self._emitter
        block = t.b.append_basic_block(f"to{index}")
        with t.b.goto_block(block):
            number = i32(0)
            self._asked_for.setdefault(index, []).append(number)
            function = self._parts[self._part_of(index)].function
            t.b.ret(t.b.call(function, [t.context, t.thread, number], tail="musttail"))
        return block

    def _settle(self) -> None:
        """Number all points in the order of their places, and what parts ask each other for behind them."""
        for number, point in enumerate(sorted(self._points, key=lambda point: point.place), 1):
            point.settle(number)
        for number, numbers in enumerate(self._asked_for.values(), len(self._points) + 1):
            for constant in numbers:
                constant.constant = number

    def _dispatch(self, part: _Part) -> None:
        """End the entry of a part: to the start, or to where the thread left off or comes from."""
        b = part.emitter.b
        b.position_at_end(part.entry)
        entered = [index for index in self._asked_for if self._parts[self._part_of(index)] is part]
        start = self._first if part.start == 0 else part.emitter.blocks[part.start]
        if not part.points and not entered:
            b.branch(start)
            return
        switch = b.switch(part.emitter.resume, start)
        for point in part.points:
            switch.add_case(point.number, point.resume)
        for index in entered:
            switch.add_case(self._asked_for[index][0], part.emitter.blocks[index])

    def _choose_part(self) -> None:
        """Emit the function itself: it goes to the part in which the thread begins, or left off."""
        context, thread, resume = self._function.args
        b = Builder(self._function.append_basic_block("entry"))
        b.store_as(i32(FUEL), b.at(b.get(THREAD, thread, "frame"), self._fuel_offset))
        entry = b.block
        blocks = []
        for part in self._parts:
            blocks.append(b.append_basic_block(f"part{part.start}"))
            b.position_at_end(blocks[-1])
            b.ret(b.call(part.function, [context, thread, resume], tail=True))
        b.position_at_end(entry)
        switch = b.switch(resume, blocks[0])
        for part, block in zip(self._parts, blocks, strict=True):
            for point in part.points:
                switch.add_case(point.number, block)

    def _goes_back(self, index: int) -> bool:
        return any(target <= index for target in targets(self._routine, self._routine.operations[index]))

    def _continue_at(self, index: int) -> None:
        b, block = self._emitter.b, self._emitter.blocks[index]
        if b.block is not block and not b.block.is_terminated:
            self._emitter.store_needed(self._live.needed(index))
            b.branch(block)
        b.position_at_end(block)
        self._emitter.go_on(forget=True)
        self._place = self._flow.order.get(index, self._place)

    def _emit(self) -> None:
        t = self._emitter
        b, operation = t.b, t.operation
        index, form = operation.index, operation.match.form
        if form.flow is not Flow.NEXT or form.suspends:
            t.store_needed(self._live.needed(index))
        elif operation.guard is not None:
            t.store_needed({register.index for register in operation.writes})
            if index + 1 in t.blocks:
                t.store_needed(self._live.needed(index + 1))
        if operation.guard is None:
            self._emit_unguarded()
            return
        then = b.append_basic_block("then")
        follows = (
            None if index in self._meetings.after else t.blocks.get(index + 1)
        )  # where threads meet first, that comes between
        after = follows or b.append_basic_block("after")
        b.cbranch(t.read(operation.guard, PRED), then, after)
        b.position_at_end(then)
        t.go_on()
        with t.may_be_passed():
            self._emit_unguarded()
        if not b.block.is_terminated:
            b.branch(after)
        b.position_at_end(after)
        t.go_on()

    def _emit_unguarded(self) -> None:
        t = self._emitter
        if self._goes_back(t.operation.index):
            self._pay(t.operation.index)
        t.emit(t.operation)
        t.go_on()

    def _pay(self, index: int) -> None:
        """Before a jump back: let other threads run now and then. The jump is redone when the thread goes on."""
        t = self._emitter
        b = t.b
        left = b.sub(b.load(self._fuel, typ=I32), i32(1))
        b.store(left, self._fuel)
        cold, go_on = b.append_basic_block("tired"), b.append_basic_block("go_on")
        b.cbranch(b.is_("==", left, 0), cold, go_on).set_weights([1, FUEL])
        b.position_at_end(cold)
        self._leave(Status.PAUSE, self._live.before(index), go_on, patience=1)
        b.position_at_end(go_on)

    def _meet(self, index: int) -> None:
        """Before an operation: let all threads of the warp come that can."""
        b = self._emitter.b
        go_on = b.append_basic_block("together")
        patience = PATIENCE if index in self._meetings.heads else None
        place = self._flow.round_ends.get(index) if patience else None
        self._leave(Status.GO_ON, self._live.before(index), go_on, patience, place)
        b.position_at_end(go_on)
        self._emitter.go_on()

    def _enter(self, index: int) -> None:
        """Before an operation: let the thread come from code for its whole warp, with the registers that this has saved."""
        t = self._emitter
        b, live = t.b, self._live.before(index)
        go_on, resume = b.append_basic_block("entered"), b.append_basic_block("from_warp")
        t.store_needed({register.index for register in live})
        b.branch(go_on)
        point = _Point((self._place, 0, index, len(self._points)), resume)
        self._points.append(point)
        self._part.points.append(point)
        self.entries[index] = point.give(Status.GO_ON)
        t.go_on(forget=True)
        b.position_at_end(resume)
        area = b.get(CONTEXT, t.context, "saved")
        lane = b.zext(b.and_(b.get(THREAD, t.thread, "index"), i32(WARP_SIZE - 1)), I64)
        for register, offset in saved_at(live)[0]:
            kind = ir.IntType(8 * register.type.bytes)
            value = b.load_as(kind, b.at(b.item(area, kind, lane), offset))
            t.store_register(register, b.resize(value, register.type.raw))
        b.branch(go_on)
        b.position_at_end(go_on)
        t.go_on()

    @property
    def liveness(self) -> Liveness:
        """Which registers are live where."""
        return self._live

    def _suspend(self, status: Status) -> None:
        """Leave as ``status`` says. Who pauses at a place again and again is taken to spin."""
        b = self._emitter.b
        go_on = b.append_basic_block("resumed")
        live = self._live.across(self._emitter.operation.index)
        self._leave(status, live, go_on, patience=1 if status is Status.PAUSE else None)
        b.position_at_end(go_on)

    @cached_property
    def _live(self) -> Liveness:
        ends = {max(end - 1, 0) for end in self._flow.ends.values()}
        stops = {*self._stops(), *self._starts, *self._flow.starts, *ends}
        return Liveness(self._routine, self._flow.starts, self._flow.ends, stops)

    def _leave(
        self, status: Status, registers: list[Register], go_on: ir.Block, patience: int | None = None, place: Place | None = None
    ) -> None:
        """Save registers, return to the scheduler, and load them before going on to ``go_on``.

        A thread that comes here ``patience`` times in the same state yields instead. ``place`` is where the point is in the order
        of points, if not where the operation at hand is.
        """
        t = self._emitter
        b = t.b
        resume = b.append_basic_block("resume")
        point = _Point((*(place or (self._place, 0, t.operation.index)), len(self._points)), resume)
        self._points.append(point)
        self._part.points.append(point)
        saved, offset = [], align(self._homes_end)
        for register in sorted(registers, key=lambda register: -register.type.bits):
            if register.index not in self._homes:
                saved.append((register, offset))
                offset += register.type.bytes
        self._frame_size = max(self._frame_size, offset)
        t.store_needed(self._homes)
        for register, offset in saved:
            b.store_as(t.load_register(register), b.at(self._frame, offset))
        b.put(FRAME, self._frame, resume=point.number)
        if patience is not None:
            self._yield_if_unchanged(point, registers, patience)
        b.ret(point.give(status))
        t.go_on(forget=True)
        b.position_at_end(resume)
        for register, offset in saved:
            t.store_register(register, b.load_as(register.type.raw, b.at(self._frame, offset)))
        b.branch(go_on)

    def _yield_if_unchanged(self, point: _Point, registers: list[Register], patience: int) -> None:
        """Let others run first if nothing has changed since the thread was here last, several times over."""
        t = self._emitter
        b = t.b
        trace = b.zext(b.xor(b.get(CONTEXT, t.context, "changes"), b.shl(point.number, i32(20))), I64)
        for register in registers:
            bits = t.load_register(register)
            for shift in range(0, bits.type.width, 64):
                word = b.resize(b.lshr(bits, ir.Constant(bits.type, shift)) if shift else bits, I64)
                trace = b.mul(b.xor(trace, word), i64(_MIX))
                trace = b.xor(trace, b.lshr(trace, i64(29)))
        same = b.is_("==", trace, b.get(THREAD, t.thread, "trace"))
        spins = b.select(same, b.add(b.get(THREAD, t.thread, "spins"), i32(1)), i32(0))
        b.put(THREAD, t.thread, trace=trace, spins=spins)
        with b.when(b.is_(">=", spins, patience), likely=False):
            b.put(THREAD, t.thread, spins=0)
            b.ret(point.give(Status.YIELD))
