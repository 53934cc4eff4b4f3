"""From a resolved kernel to native code, one LLVM function for each routine. Knows nothing of single instructions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llvmlite import ir

from kaasd.devices.emulator.codegen.checks import begin_block, begin_thread
from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.frames import return_from
from kaasd.devices.emulator.codegen.kernel_image import KernelImage
from kaasd.devices.emulator.codegen.liveness import Liveness, targets
from kaasd.devices.emulator.codegen.llvm_builder import I32, PTR, Builder, i32, i64
from kaasd.devices.emulator.codegen.structures import (
    CONTEXT,
    FRAME,
    FUEL,
    FUNCTION,
    LAUNCH,
    RUN,
    THREAD,
    THREAD_FUNCTION,
    Fault,
    Status,
    enter_block,
    enter_thread,
    record_thread,
    stopped,
)
from kaasd.devices.emulator.ptx.forms import Flow
from kaasd.devices.emulator.ptx.routine import Register, Routine, Signature
from kaasd.devices.emulator.ptx.types import PRED, align

STACK_SIZE = 64 << 10
"""Bytes of saved registers, and as many of local memory, for each thread of a kernel with recursion or indirect calls; and bytes
of local memory for each function with ``alloca``."""


class CompiledKernel:
    """A kernel's LLVM module, with the routines that it can reach (itself among them). Raises ``Unsupported``."""

    def __init__(
        self,
        entry: Routine,
        routines: Sequence[Routine],
        function_addresses: Mapping[str, int],
        declared: Mapping[str, Signature],
        checks: frozenset[str] = frozenset(),
    ) -> None:
        self.image = KernelImage(entry, routines, function_addresses, declared, checks)
        module = self.image.module
        self.frame_sizes: dict[str, int] = {}
        functions = {}
        for routine in routines:
            function = ir.Function(module, THREAD_FUNCTION, f"routine.{routine.name}")
            function.linkage = "internal"
            functions[routine.name] = function
        self.waits = False
        """Whether a thread can return before its end, so that the scheduler is needed."""
        for routine in routines:
            compiler = _RoutineCompiler(self.image, routine, functions[routine.name])
            self.frame_sizes[routine.name] = size = compiler.compile()
            self.image.frame_sizes[routine.name].initializer = i64(size)
            self.waits |= compiler.waits
        self.frame_stride, self.local_stride = self._stack_sizes()
        """Bytes of saved registers, and of local memory, for a thread."""
        _define(self.image.function_table, self._function_entries(functions))
        self.image.define_address_table()
        collectives = ir.GlobalVariable(module, ir.ArrayType(PTR, max(1, len(self.image.collectives))), "collectives")
        _define(collectives, list(self.image.collectives))
        pointer = ir.GlobalVariable(module, PTR, "thread_function")
        pointer.initializer = functions[entry.name]
        pointer.global_constant = True
        if not self.waits:
            functions[entry.name].attributes.add("alwaysinline")
            _emit_simple_run(module, functions[entry.name], checked=bool(checks))

    def _stack_sizes(self) -> tuple[int, int]:
        """Return the largest stack that calls can need, or the default where that is not known before they run."""
        by_name = {routine.name: routine for routine in self.image.routines}

        def depth(name: str, above: frozenset[str]) -> tuple[int, int] | None:
            routine = by_name[name]
            if name in above or routine.calls_indirectly:
                return None
            inner = [depth(callee, above | {name}) for callee in routine.callees if callee in by_name]
            if None in inner:
                return None
            known = [sizes for sizes in inner if sizes is not None]
            frame, local = (max((sizes[i] for sizes in known), default=0) for i in (0, 1))
            own = routine.local_size + (STACK_SIZE if routine.allocates else 0)
            return self.frame_sizes[name] + frame, own + local

        return depth(self.image.entry.name, frozenset()) or (STACK_SIZE, STACK_SIZE)

    def _function_entries(self, functions: Mapping[str, ir.Function]) -> list[ir.Constant]:
        """The table of functions, in the order of their device addresses; those out of reach have no code."""
        by_name = {routine.name: routine for routine in self.image.routines}
        entries = []
        for name in self.image.function_addresses:
            routine = by_name.get(name)
            if routine is None:
                entries.append(ir.Constant(FUNCTION.ir, [ir.Constant(PTR, None), i64(0), i64(0), i64(0), i64(0)]))
                continue
            signature = routine.signature
            results = max((place.offset + place.size for place in signature.results), default=0)
            sizes = (self.frame_sizes[name], routine.local_size, signature.size, results)
            entries.append(ir.Constant(FUNCTION.ir, [functions[name], *map(i64, sizes)]))
        return entries


def _define(table: ir.GlobalVariable, entries: list[ir.Constant]) -> None:
    table.global_constant = True
    table.initializer = ir.Constant(table.value_type, entries or None)


def _emit_simple_run(module: ir.Module, thread_function: ir.Function, checked: bool) -> None:
    """Emit ``run`` for a kernel whose threads never wait: plain loops over blocks and threads."""
    function = ir.Function(module, RUN, "run")
    (context,) = function.args
    b = Builder(function.append_basic_block("entry"))
    launch, arena = b.get(CONTEXT, context, "launch"), b.get(CONTEXT, context, "arena")
    grid = [b.get(LAUNCH, launch, f"grid_{axis}") for axis in "xyz"]
    block = [b.get(LAUNCH, launch, f"block_{axis}") for axis in "xyz"]
    shared = b.at(arena, b.get(LAUNCH, launch, "shared_offset"))
    thread = b.alloca(THREAD.ir)
    local = b.at(arena, b.get(LAUNCH, launch, "locals_offset"))
    b.put(THREAD, thread, locals=local, local=0)
    enter_thread(b, context, local)
    with b.count(grid[2]) as block_z, b.count(grid[1]) as block_y, b.count(grid[0]) as block_x:
        with b.when(stopped(b, context), likely=False):
            b.ret(i32(Fault.STOPPED))
        enter_block(b, context, block_x, block_y, block_z, shared)
        if checked:
            b.put(CONTEXT, context, block=arena)
            number = b.add(block_x, b.mul(grid[0], b.add(block_y, b.mul(grid[1], block_z))))
            begin_block(b, context, arena, number)
        index = b.variable(I32, 0)
        with b.count(block[2]) as z, b.count(block[1]) as y, b.count(block[0]) as x:
            number = b.load(index, typ=I32)
            b.store(b.add(number, i32(1)), index)
            b.put(THREAD, thread, x=x, y=y, z=z, index=number, allocated=0)
            if checked:
                begin_thread(b, context, arena)
            with b.when(b.is_("!=", b.call(thread_function, [context, thread]), Status.EXIT), likely=False):
                record_thread(b, context, thread)
                b.ret(b.get(CONTEXT, context, "fault"))
    b.ret(i32(Fault.NONE))


class _RoutineCompiler:
    def __init__(self, image: KernelImage, routine: Routine, function: ir.Function) -> None:
        self._routine = routine
        self._function = function
        self._emitter = Emitter(image, routine, function)
        self._liveness: Liveness | None = None
        self._frame_size = FRAME.size
        self._emitter.suspend = self._suspend
        self._resumes: list[ir.Block] = []

    @property
    def waits(self) -> bool:
        """Whether a thread can return before its end."""
        return bool(self._resumes)

    def compile(self) -> int:
        """Emit the routine and return the size of its frame."""
        t, routine = self._emitter, self._routine
        b = t.b
        operations = routine.operations
        starts = {0, len(operations), *routine.labels.values()}
        starts |= {op.index + 1 for op in operations if op.match.form.flow is not Flow.NEXT}
        t.blocks = {index: b.append_basic_block(f"op{index}") for index in sorted(starts)}
        self._fuel = b.variable(I32, FUEL)
        self._start()
        for operation in operations:
            t.operation = operation
            if operation.index in t.blocks:
                self._continue_at(operation.index)
            self._emit()
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
        if not self._resumes:
            b.branch(self._first)
            return
        switch = b.switch(b.get(FRAME, self._frame, "resume"), self._first)
        for number, block in enumerate(self._resumes, 1):
            switch.add_case(i32(number), block)

    def _goes_back(self, index: int) -> bool:
        return any(target <= index for target in targets(self._routine, self._routine.operations[index]))

    def _continue_at(self, index: int) -> None:
        b, block = self._emitter.b, self._emitter.blocks[index]
        if b.block is not block and not b.block.is_terminated:
            b.branch(block)
        b.position_at_end(block)

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
        self._leave(Status.YIELD, self._live().before(index), go_on)
        b.position_at_end(go_on)

    def _suspend(self, status: Status) -> None:
        b = self._emitter.b
        go_on = b.append_basic_block("resumed")
        self._leave(status, self._live().across(self._emitter.operation.index), go_on)
        b.position_at_end(go_on)

    def _live(self) -> Liveness:
        if self._liveness is None:
            self._liveness = Liveness(self._routine)
        return self._liveness

    def _leave(self, status: Status, registers: list[Register], go_on: ir.Block) -> None:
        """Save registers, return to the scheduler, and load them before going on to ``go_on``."""
        t = self._emitter
        b = t.b
        resume = b.append_basic_block("resume")
        self._resumes.append(resume)
        places, offset = [], align(FRAME.size)
        for register in sorted(registers, key=lambda register: -register.type.bits):
            places.append((register, offset))
            offset += register.type.bytes
        self._frame_size = max(self._frame_size, offset)
        for register, place in places:
            b.store_as(t.load_register(register), b.at(self._frame, place))
        b.put(FRAME, self._frame, resume=len(self._resumes))
        b.ret(i32(status))
        b.position_at_end(resume)
        for register, place in places:
            t.store_register(register, b.load_as(register.type.raw, b.at(self._frame, place)))
        b.branch(go_on)
