"""One routine as an LLVM function that runs all threads of a warp at once: what differs between them is in vectors.

It goes on as long as all threads take the same way. Where they part, where a check fails, or at an operation that has no form for
vectors, it saves their registers and returns the point at which the code for one thread goes on with each of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from llvmlite import ir

from kaasd.devices.emulator.codegen.kernel_image import KernelImage
from kaasd.devices.emulator.codegen.liveness import Liveness, targets
from kaasd.devices.emulator.codegen.llvm_builder import I1, I8, I32, I64, PTR, Builder, i32, i64
from kaasd.devices.emulator.codegen.structures import (
    CONTEXT,
    FRAME,
    FUEL,
    LAUNCH,
    STATUS_BITS,
    THREAD,
    THREAD_FUNCTION,
    WARP_POINTS,
    WARP_SIZE,
    Status,
)
from kaasd.devices.emulator.codegen.warp_memory import LANES, Pointers, WarpMemory, constant, holds_for_all, splat, vector_of
from kaasd.devices.emulator.codegen.warp_plan import Check, WarpPlan, intrinsic_of
from kaasd.devices.emulator.ptx.forms import Flow
from kaasd.devices.emulator.ptx.routine import Not, Operation, Register


def saved_at(registers: Iterable[Register]) -> tuple[list[tuple[Register, int]], int]:
    """Return where a warp's registers are saved, as offsets: each register of all threads in a row. And the end of all."""
    places, offset = [], 0
    for register in sorted(registers, key=lambda register: -register.type.bits):
        places.append((register, offset))
        offset += WARP_SIZE * register.type.bytes
    return places, offset


class WarpCompiler:
    """Emits a routine for whole warps."""

    def __init__(self, image: KernelImage, plan: WarpPlan, live: Liveness, points: Mapping[int, ir.Constant], name: str) -> None:
        """``points`` has, for operations at which the code for one thread can be entered, what is returned to go on there."""
        self._image, self._plan, self._live, self._points = image, plan, live, points
        self._routine, self._flow = plan.routine, plan.flow
        self.function = ir.Function(image.module, THREAD_FUNCTION, name)
        self.function.linkage = "internal"
        self.function.attributes.add("noinline")
        self._context, self._thread, self._resume = self.function.args
        self._b = Builder(self.function.append_basic_block("entry"))
        self._registers: dict[int, ir.Value] = {}
        self._values: dict[int, ir.Value | Pointers] = {}
        """Of recorded instructions, by their ``id``."""
        self._fixed: dict[int, ir.Value] = {}
        """Those that were recorded outside of the operation at hand."""
        self._left_in_thread: list[tuple[int, ir.Value]] = []
        """What the operation at hand stores in the structure of each thread, by offset."""
        self._resumed: list[ir.Block] = []
        self.area_size = 0
        """Bytes that a warp's registers take where they are saved."""

    def compile(self) -> None:
        """Emit everything."""
        b, operations = self._b, self._routine.operations
        self._lanes = dict(self._read_places())
        self._memory = WarpMemory(self._image, b, b.get_fixed(CONTEXT, self._context, "table"))
        self._area = b.get(CONTEXT, self._context, "saved")
        self._fuel = b.variable(I32, FUEL)
        self._entry_end = b.block
        self._blocks = {start: b.append_basic_block(f"op{start}") for start in self._flow.starts}
        for start in self._flow.starts:
            b.position_at_end(self._blocks[start])
            for index in range(start, self._flow.ends[start]):
                self._emit(operations[index])
                if b.block.is_terminated:
                    break
            if not b.block.is_terminated:
                if self._flow.ends[start] < len(operations):
                    b.branch(self._blocks[self._flow.ends[start]])
                else:
                    self._end(Status.EXIT)
        b.position_at_end(self._entry_end)
        switch = b.switch(self._resume, self._blocks[0])
        for number, block in enumerate(self._resumed):
            switch.add_case(i32(WARP_POINTS + number), block)

    # Threads

    def _read_places(self) -> Iterable[tuple[str, ir.Value]]:
        """Yield the fields of all threads that are read: a block's width mostly says them."""
        b, wanted = self._b, self._plan.places
        iota = constant(I32, LANES)
        if "index" in wanted:
            yield "index", b.add(splat(self._b, b.get(THREAD, self._thread, "index")), iota)
        if not wanted - {"index"}:
            return
        launch = b.get(CONTEXT, self._context, "launch")
        width, height, threads = (b.get(LAUNCH, launch, name) for name in ("block_x", "block_y", "threads"))
        first = [b.get(THREAD, self._thread, axis) for axis in "xyz"]
        is_row = b.or_(b.is_("==", b.and_(width, i32(WARP_SIZE - 1)), 0), b.is_("==", width, threads))
        rows, other, after = (b.append_basic_block(name) for name in ("row", "rows", "placed"))
        b.cbranch(is_row, rows, other)
        b.position_at_end(rows)
        easy = [b.add(splat(self._b, first[0]), iota), splat(self._b, first[1]), splat(self._b, first[2])]
        b.branch(after)
        b.position_at_end(other)
        arrays, now = [b.variable(vector_of(I32)) for _ in "xyz"], [b.variable(I32, value) for value in (0, 0, 0)]
        for variable, value in zip(now, first, strict=True):
            b.store(value, variable)
        with b.count(i32(WARP_SIZE)) as lane:
            x, y, z = (b.load(variable, typ=I32) for variable in now)
            for array, value in zip(arrays, (x, y, z), strict=True):
                b.store(value, b.item(array, I32, b.zext(lane, I64)))
            over = b.is_("==", b.add(x, i32(1)), width)
            row = b.add(y, b.zext(over, I32))
            last = b.is_("==", row, height)
            b.store(b.select(over, i32(0), b.add(x, i32(1))), now[0])
            b.store(b.select(last, i32(0), row), now[1])
            b.store(b.add(z, b.zext(last, I32)), now[2])
        hard = [b.load(array, typ=vector_of(I32)) for array in arrays]
        end = b.block
        b.branch(after)
        b.position_at_end(after)
        for axis, one, two in zip("xyz", easy, hard, strict=True):
            phi = b.phi(vector_of(I32))
            phi.add_incoming(one, rows)
            phi.add_incoming(two, end)
            if axis in wanted:
                yield axis, phi

    def _put_in_all(self, stores: list[tuple[int, ir.Value]]) -> None:
        """Store values into the structures of all threads, at offsets."""
        b = self._b
        stride = b.get(LAUNCH, b.get(CONTEXT, self._context, "launch"), "thread_stride")
        with b.count(i64(WARP_SIZE)) as lane:
            thread = b.at(self._thread, b.mul(lane, stride))
            for offset, value in stores:
                b.store_as(value, b.at(thread, offset))

    # Registers

    def _varies(self, register: Register) -> bool:
        return register.index in self._plan.varying

    def _kind(self, register: Register) -> ir.Type:
        return vector_of(register.type.raw) if self._varies(register) else register.type.raw

    def _place_of(self, register: Register) -> ir.Value:
        if register.index not in self._registers:
            with self._b.goto_entry_block():
                place = self._b.alloca(self._kind(register))
                self._b.store(ir.Constant(self._kind(register), None), place)
            self._registers[register.index] = place
        return self._registers[register.index]

    def _load(self, register: Register) -> ir.Value:
        return self._b.load(self._place_of(register), typ=self._kind(register))

    def _store(self, register: Register, value: ir.Value) -> None:
        if self._varies(register) and not isinstance(value.type, ir.VectorType):
            value = splat(self._b, value)
        self._b.store(value, self._place_of(register))

    def _save(self, registers: list[Register]) -> None:
        b = self._b
        places, end = saved_at(registers)
        self.area_size = max(self.area_size, end)
        for register, offset in places:
            value = self._load(register)
            value = value if self._varies(register) else splat(self._b, value)
            value = b.zext(value, vector_of(I8)) if register.type.bits == 1 else value
            b.store_as(value, b.at(self._area, offset), align=register.type.bytes)

    def _restore(self, registers: list[Register]) -> None:
        b = self._b
        for register, offset in saved_at(registers)[0]:
            kind = I8 if register.type.bits == 1 else register.type.raw
            kind = vector_of(kind) if self._varies(register) else kind
            value = b.load_as(kind, b.at(self._area, offset), align=register.type.bytes)
            self._store(register, b.trunc(value, self._kind(register)) if register.type.bits == 1 else value)

    # Control

    def _end(self, status: Status) -> None:
        state = THREAD.offset("state")
        with self._b.when(self._is_scheduled()):
            self._put_in_all([(state, i32(status))])
        self._b.ret(i32(status))

    def _is_scheduled(self) -> ir.Value:
        """Whether each thread has a structure of its own."""
        b = self._b
        return b.icmp_unsigned("!=", b.get(THREAD, self._thread, "function"), ir.Constant(PTR, None))

    def _leave(self, index: int) -> None:
        """Leave an operation, and what follows, to the code for one thread."""
        self._save(self._live.before(index))
        self._b.ret(self._points[index])

    def _leave_if(self, condition: ir.Value, index: int) -> None:
        b = self._b
        cold, go_on = b.append_basic_block("alone"), b.append_basic_block("together")
        b.cbranch(condition, cold, go_on).set_weights([1, 1 << 10])
        b.position_at_end(cold)
        self._leave(index)
        b.position_at_end(go_on)

    def _suspend(self, status: Status, registers: list[Register], go_on: ir.Block) -> None:
        """Save registers, return to the scheduler, and come back to ``go_on``."""
        b = self._b
        point = i32(WARP_POINTS + len(self._resumed))
        self._save(registers)
        b.put(FRAME, b.get(THREAD, self._thread, "frame"), resume=point)  # the threads are together, so that it stands for all
        of_all = [(THREAD.offset("state"), i32(0 if status is Status.PAUSE else status))]
        for offset, value in self._left_in_thread:
            if offset == THREAD.offset("site"):
                of_all.append((offset, value))  # a report looks there
            b.store_as(value, b.at(self._thread, offset))
        self._put_in_all(of_all)
        b.ret(i32(point.constant << STATUS_BITS | status))
        resumed = b.append_basic_block("resumed")
        self._resumed.append(resumed)
        b.position_at_end(resumed)
        self._restore(registers)
        b.branch(go_on)

    def _emit(self, operation: Operation) -> None:
        b, index = self._b, operation.index
        if index in self._plan.left:
            self._leave(index)
            return
        after = None
        if operation.guard is not None:
            then, after = b.append_basic_block("then"), b.append_basic_block("after")
            guard = operation.guard.register if isinstance(operation.guard, Not) else operation.guard
            condition = self._load(guard)
            if isinstance(operation.guard, Not):
                condition = b.not_(condition) if not isinstance(condition.type, ir.VectorType) else self._not(condition)
            if isinstance(condition.type, ir.VectorType):
                mask = b.bitcast(condition, I32)
                mixed = b.append_basic_block("mixed")
                b.cbranch(b.is_("==", mask, -1), then, mixed)
                b.position_at_end(mixed)
                self._leave_if(b.is_("!=", mask, 0), index)
                b.branch(after)
            else:
                b.cbranch(condition, then, after)
            b.position_at_end(then)
        if operation.match.form.flow is Flow.BRANCH:
            self._go(operation)
        else:
            self._widen(operation)
        if after is not None:
            if not b.block.is_terminated:
                b.branch(after)
            b.position_at_end(after)

    def _go(self, operation: Operation) -> None:
        b = self._b
        (target,) = targets(self._routine, operation)
        if target <= operation.index:
            left = b.sub(b.load(self._fuel, typ=I32), i32(1))
            b.store(left, self._fuel)
            cold, go_on = b.append_basic_block("tired"), self._blocks[target]
            b.cbranch(b.is_("==", left, 0), cold, go_on).set_weights([1, FUEL])
            b.position_at_end(cold)
            self._left_in_thread = []
            self._suspend(Status.PAUSE, self._live.before(target), go_on)
        else:
            b.branch(self._blocks[target])

    # Values

    def _not(self, value: ir.Value) -> ir.Value:
        return self._b.xor(value, constant(I1, [1] * WARP_SIZE))

    def _value(self, value: ir.Value) -> ir.Value:
        """Return what a recorded value is here: a vector if it differs between threads."""
        if value is self._plan.context:
            return self._context
        if not isinstance(value, ir.Instruction):
            return value
        known = self._values.get(id(value), self._fixed.get(id(value)))
        if known is None:  # it was recorded in the entry block
            with self._b.goto_block(self._entry_end):
                known = self._fixed[id(value)] = self._widened(value)
        return known

    def _widen(self, operation: Operation) -> None:
        self._values, self._left_in_thread = {}, []
        for instruction in self._plan.recorded[operation.index]:
            if (meaning := self._plan.meanings.get(id(instruction))) is not None:
                if not self._pseudo(operation, instruction, meaning.kind, meaning.detail):
                    return
            elif isinstance(instruction, ir.StoreInstr):
                self._widen_store(instruction)
            elif self._plan.is_own(instruction):
                pass
            elif (place := self._plan.place(instruction)) is not None:
                self._values[id(instruction)] = self._lanes[place]
            else:
                self._values[id(instruction)] = self._widened(instruction)

    def _pseudo(self, operation: Operation, call: ir.Instruction, kind: str, detail: object) -> bool:
        """Emit what a call in recorded code stands for. Returns whether more follows."""
        b, arguments = self._b, [self._value(each) for each in call.operands[1:]]
        result: ir.Value | Pointers | None = None
        if kind == "read":
            assert isinstance(detail, Register)
            result = self._load(detail)
        elif kind == "write":
            assert isinstance(detail, Register)
            self._store(detail, arguments[0])
        elif kind == "require":
            holds = arguments[0]
            is_vector = isinstance(holds.type, ir.VectorType)
            self._leave_if(b.not_(holds_for_all(b, holds) if is_vector else holds), operation.index)
        elif kind == "check":
            assert isinstance(detail, Check)
            result = self._check(call.operands[1], arguments[0], detail, operation.index)
        elif kind == "of_lane":
            value, lane = (each if isinstance(each.type, ir.VectorType) else splat(b, each) for each in arguments)
            result = self._memory.of_lane(value, lane)
        elif kind == "ballot":
            (predicate,) = arguments
            is_vector = isinstance(predicate.type, ir.VectorType)
            result = b.bitcast(predicate, I32) if is_vector else b.sext(predicate, I32)
        elif kind == "suspend":
            go_on = b.append_basic_block("released")
            self._suspend(Status.BARRIER, self._live.across(operation.index), go_on)
            b.position_at_end(go_on)
        else:
            self._end(Status.EXIT)
            return False
        if result is not None:
            self._values[id(call)] = result
        return True

    def _widened(self, instruction: ir.Instruction) -> ir.Value:
        """Return an instruction's value: as it is where its operands are the same for all threads."""
        b = self._b
        if isinstance(instruction, ir.LoadInstr):
            pointer = self._pointer(instruction.operands[0])
            if isinstance(pointer, tuple):
                return self._memory.load(instruction.type, *pointer)
            load = b.load(pointer, typ=instruction.type, align=instruction.align)
            for name, metadata in instruction.metadata.items():
                load.set_metadata(name, metadata)
            return load
        if isinstance(instruction, ir.GEPInstr):
            if self._points_to_many(instruction):
                return instruction  # looked through by what accesses it
            indices = [self._value(index) for index in instruction.indices]
            return b.gep(self._value(instruction.pointer), indices, source_etype=instruction.source_etype)
        is_call = isinstance(instruction, ir.CallInstr)
        operands = [self._value(operand) for operand in (instruction.operands[1:] if is_call else instruction.operands)]
        wide = any(isinstance(operand.type, ir.VectorType) for operand in operands)
        kind = vector_of(instruction.type) if wide else instruction.type
        if is_call:
            return self._call(instruction, operands, wide)
        if isinstance(instruction, ir.SelectInstr):
            chosen = [self._wide(operand) if wide else operand for operand in operands[1:]]
            return b.select(operands[0], *chosen)
        if wide:
            operands = [self._wide(operand) for operand in operands]
        if isinstance(instruction, ir.CompareInstr):
            made: ir.Instruction = type(instruction)(b.block, instruction.op, *operands, flags=instruction.flags)
        elif isinstance(instruction, ir.CastInstr):
            made = ir.CastInstr(b.block, instruction.opname, operands[0], kind)
        else:
            made = ir.Instruction(b.block, kind, instruction.opname, operands, flags=instruction.flags)
        b._insert(made)
        return made

    def _wide(self, value: ir.Value) -> ir.Value:
        return value if isinstance(value.type, ir.VectorType) else splat(self._b, value)

    def _call(self, call: ir.CallInstr, operands: list[ir.Value], wide: bool) -> ir.Value:
        b = self._b
        if not wide:
            return b.call(call.callee, operands)
        name = intrinsic_of(call)
        assert name is not None
        suffixes = call.callee.name[len(name) :].split(".")[1:]
        immediate = name in ("llvm.ctlz", "llvm.cttz", "llvm.abs")
        operands = [operand if immediate and place == 1 else self._wide(operand) for place, operand in enumerate(operands)]
        signature = ir.FunctionType(vector_of(call.type), [operand.type for operand in operands])
        function = self._image.declare(".".join([name, *(f"v{WARP_SIZE}{suffix}" for suffix in suffixes)]), signature)
        return b.call(function, operands)

    # Memory

    def _points_to_many(self, pointer: ir.Value) -> bool:
        if isinstance(self._values.get(id(pointer)), Pointers):
            return True
        return isinstance(pointer, ir.GEPInstr) and self._points_to_many(pointer.pointer)

    def _pointer(self, pointer: ir.Value) -> ir.Value | tuple[Pointers, int]:
        """Return a pointer as it is here; or the pointers of all threads, and a distance from each."""
        offset, base = 0, pointer
        while isinstance(base, ir.GEPInstr) and self._points_to_many(base):
            offset += base.indices[0].constant
            base = base.pointer
        found = self._values.get(id(base))
        if not isinstance(found, Pointers):
            return self._value(pointer)
        return self._b.at(found.one, offset) if found.one is not None else (found, offset)

    def _check(self, address: ir.Value, value: ir.Value, check: Check, index: int) -> Pointers:
        """Check an access of all threads; where any of them may not, it is left to the code for one thread."""
        narrow = value
        if isinstance(address, ir.CastInstr) and address.opname == "zext" and address.operands[0].type == I32:
            narrow = self._value(address.operands[0])
        return self._memory.check(value, narrow, check, lambda bad: self._leave_if(bad, index))

    def _widen_store(self, store: ir.StoreInstr) -> None:
        b = self._b
        source, target = store.operands
        value = self._value(source)
        if self._plan.is_own(target):
            self._left_in_thread.append((_offset_in_thread(target), value))
            return
        pointer = self._pointer(target)
        if isinstance(pointer, tuple):
            self._memory.store(self._wide(value), *pointer)
            return
        if isinstance(value.type, ir.VectorType):  # the highest lane's value stays
            value = b.extract_element(value, i32(WARP_SIZE - 1))
        made = b.store(value, pointer, align=store.align)
        for name, metadata in store.metadata.items():
            made.set_metadata(name, metadata)


def _offset_in_thread(pointer: ir.GEPInstr) -> int:
    """Return how far into the structure of a thread a pointer leads."""
    inner = _offset_in_thread(pointer.pointer) if isinstance(pointer.pointer, ir.GEPInstr) else 0
    if pointer.source_etype == THREAD.ir:
        return inner + THREAD.offset(THREAD.names[pointer.indices[1].constant])
    return inner + int(pointer.indices[0].constant)
