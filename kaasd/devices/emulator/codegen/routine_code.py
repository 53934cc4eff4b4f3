"""One routine as an LLVM function that runs a thread until it waits, ends, or comes to where its warp comes together."""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.frames import return_from
from kaasd.devices.emulator.codegen.kernel_image import KernelImage
from kaasd.devices.emulator.codegen.liveness import Liveness, targets
from kaasd.devices.emulator.codegen.llvm_builder import I32, I64, i32, i64
from kaasd.devices.emulator.codegen.order import ControlFlow, Place
from kaasd.devices.emulator.codegen.structures import CONTEXT, FRAME, FUEL, STATUS_BITS, THREAD, Status
from kaasd.devices.emulator.ptx.routine import Register, Routine
from kaasd.devices.emulator.ptx.types import PRED, align

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


class RoutineCompiler:
    """Emits a routine into ``function``, a ``THREAD_FUNCTION``."""

    def __init__(self, image: KernelImage, routine: Routine, function: ir.Function, meetings: Meetings) -> None:
        self._routine = routine
        self._meetings = meetings
        self._emitter = Emitter(image, routine, function)
        self._emitter.watches_stores = bool(meetings.heads)
        self._resume = function.args[2]
        self._liveness: Liveness | None = None
        self._frame_size = FRAME.size
        self._emitter.suspend = self._suspend
        self._points: list[_Point] = []
        self._flow = ControlFlow.of(routine)
        self._place = 0
        """Of the block at hand, in the order of blocks."""

    @property
    def waits(self) -> bool:
        """Whether a thread can return before its end."""
        return bool(self._points)

    def compile(self) -> int:
        """Emit the routine and return the size of its frame."""
        t, routine = self._emitter, self._routine
        b = t.b
        operations = routine.operations
        t.blocks = {index: b.append_basic_block(f"op{index}") for index in self._flow.starts}
        self._fuel = b.variable(I32, FUEL)
        self._start()
        for operation in operations:
            t.operation = operation
            if operation.index in t.blocks:
                self._continue_at(operation.index)
            if operation.index in self._meetings.before or operation.index in self._meetings.heads:
                self._meet(operation.index)
            self._emit()
            if operation.index in self._meetings.after:
                self._meet(operation.index + 1)
        self._continue_at(len(operations))
        return_from(t)  # past the last instruction: the same as `ret`
        self._dispatch()
        return align(self._frame_size)

    def _start(self) -> None:
        """Enter at the start: read formal parameters that are registers."""
        t = self._emitter
        b = t.b
        self._first = b.append_basic_block("first")
        self._entry = b.block
        b.position_at_end(self._first)
        for offset, register in self._routine.formals_of(self._routine.signature.parameters):
            t.store_register(register, b.load_as(register.type.raw, t.local_pointer(offset), "memory"))
        b.branch(t.blocks[0])
        b.position_at_end(self._entry)
        self._frame = b.get(THREAD, t.thread, "frame")
        b.position_at_end(t.blocks[0])

    def _dispatch(self) -> None:
        """End the entry: to the start, or to where the thread left off."""
        b = self._emitter.b
        b.position_at_end(self._entry)
        if not self._points:
            b.branch(self._first)
            return
        switch = b.switch(self._resume, self._first)
        for number, point in enumerate(sorted(self._points, key=lambda point: point.place), 1):
            point.settle(number)
            switch.add_case(point.number, point.resume)

    def _goes_back(self, index: int) -> bool:
        return any(target <= index for target in targets(self._routine, self._routine.operations[index]))

    def _continue_at(self, index: int) -> None:
        b, block = self._emitter.b, self._emitter.blocks[index]
        if b.block is not block and not b.block.is_terminated:
            b.branch(block)
        b.position_at_end(block)
        self._place = self._flow.order[index]

    def _emit(self) -> None:
        t = self._emitter
        b, operation = t.b, t.operation
        after = None
        if operation.guard is not None:
            then = b.append_basic_block("then")
            after = t.blocks.get(operation.index + 1) or b.append_basic_block("after")
            b.cbranch(t.read(operation.guard, PRED), then, after)
            b.position_at_end(then)
        if self._goes_back(operation.index):
            self._pay(operation.index)
        t.emit(operation)
        if after is not None:
            if not b.block.is_terminated:
                b.branch(after)
            b.position_at_end(after)

    def _pay(self, index: int) -> None:
        """Before a jump back: let other threads run now and then. The jump is redone when the thread goes on."""
        t = self._emitter
        b = t.b
        left = b.sub(b.load(self._fuel, typ=I32), i32(1))
        b.store(left, self._fuel)
        cold, go_on = b.append_basic_block("tired"), b.append_basic_block("go_on")
        b.cbranch(b.is_("==", left, 0), cold, go_on).set_weights([1, FUEL])
        b.position_at_end(cold)
        self._leave(Status.PAUSE, self._live().before(index), go_on, patience=1)
        b.position_at_end(go_on)

    def _meet(self, index: int) -> None:
        """Before an operation: let all threads of the warp come that can."""
        b = self._emitter.b
        go_on = b.append_basic_block("together")
        patience = PATIENCE if index in self._meetings.heads else None
        place = self._flow.round_ends.get(index) if patience else None
        self._leave(Status.GO_ON, self._live().before(index), go_on, patience, place)
        b.position_at_end(go_on)

    def _suspend(self, status: Status) -> None:
        """Leave as ``status`` says. Who pauses at a place again and again is taken to spin."""
        b = self._emitter.b
        go_on = b.append_basic_block("resumed")
        live = self._live().across(self._emitter.operation.index)
        self._leave(status, live, go_on, patience=1 if status is Status.PAUSE else None)
        b.position_at_end(go_on)

    def _live(self) -> Liveness:
        if self._liveness is None:
            self._liveness = Liveness(self._routine)
        return self._liveness

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
        saved, offset = [], align(FRAME.size)
        for register in sorted(registers, key=lambda register: -register.type.bits):
            saved.append((register, offset))
            offset += register.type.bytes
        self._frame_size = max(self._frame_size, offset)
        for register, offset in saved:
            b.store_as(t.load_register(register), b.at(self._frame, offset))
        b.put(FRAME, self._frame, resume=point.number)
        if patience is not None:
            self._yield_if_unchanged(point, registers, patience)
        b.ret(point.give(status))
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
