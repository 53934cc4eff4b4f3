"""What a routine's operations come to for all threads of a warp at once: the code of one thread, recorded to be widened.

The functions of ``isa/`` emit each instruction for one thread, and know nothing of vectors. Here they emit into a scratch
function, in which a few calls stand for what a vector does in another way: reading and writing registers, checking an access,
taking another lane's value. What is recorded so is straight code, or it is not widened.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from llvmlite import ir

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.kernel_image import KernelImage
from kaasd.devices.emulator.codegen.liveness import targets
from kaasd.devices.emulator.codegen.llvm_builder import PTR, VOID
from kaasd.devices.emulator.codegen.nans import late_nans
from kaasd.devices.emulator.codegen.order import ControlFlow, Loop
from kaasd.devices.emulator.codegen.structures import THREAD, THREAD_FUNCTION, Fault, Status
from kaasd.devices.emulator.ptx.forms import Flow
from kaasd.devices.emulator.ptx.routine import Not, Operation, Register, Routine

MOST_OPERATIONS = 400
"""Of a routine that is compiled for whole warps as well: it makes compiling longer."""
PLACES = ("x", "y", "z", "index")
"""The fields of a thread that code for a warp can read."""
_BINARY = {"add", "sub", "mul", "udiv", "sdiv", "urem", "srem", "and", "or", "xor", "shl", "lshr", "ashr"}
_BINARY |= {"fadd", "fsub", "fmul", "fdiv", "fneg"}
_CASTS = {"trunc", "zext", "sext", "bitcast", "fptrunc", "fpext", "fptoui", "fptosi", "uitofp", "sitofp"}
_NAMES = """
    fma sqrt fabs copysign floor ceil trunc rint roundeven nearbyint minnum maxnum minimum maximum smin smax umin umax abs
    ctpop ctlz cttz bswap bitreverse fshl fshr uadd.sat usub.sat sadd.sat ssub.sat fptosi.sat fptoui.sat
"""
INTRINSICS = frozenset(f"llvm.{name}" for name in _NAMES.split())
"""Those that LLVM has for vectors under the same name."""
_STEPS = ("mov", "add", "sub")
_LINEAR = (*_STEPS, "setp", "mul", "mad", "shl", "cvt", "cvta")


class NotWidened(Exception):
    """An operation has no form for a whole warp."""


class Pseudo(NamedTuple):
    """What a call in recorded code stands for."""

    kind: str
    """``read``, ``write``, ``check``, ``require``, ``of_lane``, ``ballot``, ``suspend`` or ``end``."""
    detail: Any = None


@dataclass(frozen=True, slots=True)
class Check:
    """How an access is checked."""

    segment: int | None
    """None where the address says it."""
    size: int
    access: Fault
    alignment: int


class Recorder(Emitter):
    """Emits the code of one operation at a time, to be widened."""

    def __init__(self, image: KernelImage, routine: Routine) -> None:
        function = ir.Function(image.module, THREAD_FUNCTION, f"recorded.{routine.name}")
        super().__init__(image, routine, function)
        self._function = function
        self._module = image.module
        self._pseudo: dict[tuple[str, ir.FunctionType], ir.Function] = {}
        self._scratch = ir.Module("pseudo")
        self.meanings: dict[int, Pseudo] = {}
        """By the ``id`` of a call."""
        self.late_nans = late_nans(routine)

    def close(self) -> None:
        """Take the scratch function out of the module."""
        self._module.globals.pop(self._function.name)

    def record(self, operation: Operation) -> list[ir.Instruction]:
        """Return an operation's code, its guard apart. Raises ``NotWidened``."""
        block = self._function.append_basic_block("recorded")
        count = len(self._function.blocks)
        self.b.position_at_end(block)
        self.emit(operation)
        if self.b.block is not block or len(self._function.blocks) != count or block.is_terminated:
            raise NotWidened
        return list(block.instructions)

    def _call(self, kind: str, result: ir.Type, arguments: list[ir.Value], detail: Any = None) -> ir.Value:
        signature = ir.FunctionType(result, [argument.type for argument in arguments])
        function = self._pseudo.get((kind, signature))
        if function is None:
            function = self._pseudo[kind, signature] = ir.Function(self._scratch, signature, f"{kind}.{len(self._pseudo)}")
        call = self.b.call(function, arguments)
        self.meanings[id(call)] = Pseudo(kind, detail)
        return call

    def load_register(self, register: Register) -> ir.Value:
        return self._call("read", register.type.raw, [], register)

    def store_register(self, register: Register, bits: ir.Value) -> None:
        self._call("write", VOID, [bits], register)

    def checked(
        self,
        space: str,
        address: ir.Value,
        size: int,
        access: Fault,
        alignment: int,
        observed: bool = True,
        base: ir.Value | None = None,
    ) -> ir.Value:
        return self._call("check", PTR, [address], Check(self.segment_of(space), size, access, alignment))

    def fault_if(self, bad: ir.Value, kind: Fault, address: ir.Value | None = None, size: int = 0) -> None:
        self.require(self.b.not_(bad))

    def require(self, condition: ir.Value) -> None:
        """Leave the operation to the code for one thread unless this holds for every thread."""
        self._call("require", VOID, [condition])

    def of_lane(self, value: ir.Value, lane: ir.Value) -> ir.Value:
        return self._call("of_lane", value.type, [value, lane])

    def ballot(self, predicate: ir.Value) -> ir.Value:
        return self._call("ballot", ir.IntType(32), [predicate])

    def fault(self, kind: Fault, address: ir.Value | None = None) -> None:
        raise NotWidened

    def suspend(self, status: Status) -> None:
        if status is not Status.BARRIER:
            raise NotWidened
        self._call("suspend", VOID, [], status)

    def end(self, status: Status) -> None:
        self._call("end", VOID, [], status)

    def collective(self, build: Any, *variant: Any) -> int:
        raise NotWidened

    def wait_for_warp(self, mask: ir.Value, operands: list[ir.Value], collective: int) -> None:
        raise NotWidened


@dataclass
class WarpPlan:
    """A routine's operations as they are done by all threads of a warp at once."""

    routine: Routine
    flow: ControlFlow
    meanings: dict[int, Pseudo]
    thread: ir.Value
    context: ir.Value
    recorded: dict[int, list[ir.Instruction]] = field(default_factory=dict)
    """By operation; branches have none, nor has what is left to the code for one thread."""
    left: set[int] = field(default_factory=set)
    """Operations that are left to the code for one thread."""
    varying: set[int] = field(default_factory=set)
    """The registers that need not be the same in all threads."""
    places: set[str] = field(default_factory=set)
    """The fields of a thread that are read."""

    @staticmethod
    def of(image: KernelImage, routine: Routine) -> WarpPlan | None:
        """Return how a routine is done by whole warps, or None where that does not pay."""
        count = len(routine.operations)
        if image.checks or not routine.is_entry or routine.local_size or routine.callees or not 0 < count <= MOST_OPERATIONS:
            return None
        if any(register.type.bits > 64 for register in routine.registers) or routine.allocates:
            return None
        recorder = Recorder(image, routine)
        plan = WarpPlan(routine, ControlFlow.of(routine), recorder.meanings, recorder.thread, recorder.context)
        try:
            for operation in routine.operations:
                plan._record(recorder, operation)
        finally:
            recorder.close()
        plan._find_varying()
        plan._leave_varying_barriers()
        plan._leave_varying_places()
        return plan if plan._pays() else None

    def _record(self, recorder: Recorder, operation: Operation) -> None:
        if operation.match.form.flow is Flow.BRANCH:
            if operation.source.opcode != "bra" or len(targets(self.routine, operation)) != 1:
                self.left.add(operation.index)
            return
        try:
            code = recorder.record(operation)
            places = self._places_in(code)
            self._check(code, operation)
        except NotWidened:
            self.left.add(operation.index)
            return
        self.recorded[operation.index] = code
        self.places |= places

    def place(self, instruction: ir.Value) -> str | None:
        """Return the field of the thread that an instruction loads, if it does."""
        if not isinstance(instruction, ir.LoadInstr):
            return None
        pointer = instruction.operands[0]
        if isinstance(pointer, ir.GEPInstr) and pointer.pointer is self.thread and pointer.source_etype == THREAD.ir:
            return str(THREAD.names[pointer.indices[1].constant])
        return None

    def _places_in(self, code: list[ir.Instruction]) -> set[str]:
        found = {place for instruction in code if (place := self.place(instruction)) is not None}
        if not found <= set(PLACES):
            raise NotWidened
        return found

    def is_own(self, pointer: ir.Value) -> bool:
        """Whether a pointer leads into the structure of the thread."""
        return isinstance(pointer, ir.GEPInstr) and (pointer.pointer is self.thread or self.is_own(pointer.pointer))

    def _check(self, code: list[ir.Instruction], operation: Operation) -> None:
        """Raise ``NotWidened`` where something in the code cannot be widened."""
        has_effect = False
        for instruction in code:
            meaning = self.meanings.get(id(instruction))
            if meaning is not None:
                if meaning.kind in ("check", "require") and has_effect:
                    raise NotWidened  # it could not be done again from the start
                if meaning.kind == "check" and meaning.detail.access is Fault.ATOMIC:
                    raise NotWidened
                if meaning.kind == "suspend" and (instruction is not code[-1] or operation.guard is not None):
                    raise NotWidened
                has_effect |= meaning.kind == "write"
            elif isinstance(instruction, ir.StoreInstr):
                has_effect = True
            elif isinstance(instruction, ir.CallInstr):
                if intrinsic_of(instruction) is None:
                    raise NotWidened
            elif isinstance(instruction, ir.LoadInstr):
                if self.is_own(instruction.operands[0]) and self.place(instruction) is None:
                    raise NotWidened
            elif isinstance(instruction, ir.CastInstr):
                if instruction.opname not in _CASTS or not all(map(_is_scalar, (instruction.type, instruction.operands[0].type))):
                    raise NotWidened
            elif isinstance(instruction, ir.GEPInstr):
                if any(not isinstance(index, ir.Constant) for index in instruction.indices) and self._is_checked(instruction):
                    raise NotWidened
            else:
                is_known = isinstance(instruction, ir.instructions.CompareInstr | ir.SelectInstr) or instruction.opname in _BINARY
                if not is_known or not all(_is_scalar(operand.type) for operand in instruction.operands):
                    raise NotWidened

    def _is_checked(self, pointer: ir.Value) -> bool:
        meaning = self.meanings.get(id(pointer))
        return meaning is not None or (isinstance(pointer, ir.GEPInstr) and self._is_checked(pointer.pointer))

    def varies(self, value: ir.Value, known: dict[int, bool]) -> bool:
        """Whether a value need not be the same in all threads; ``known`` has what is known of others."""
        if not isinstance(value, ir.Instruction):
            return False
        if id(value) not in known:
            meaning = self.meanings.get(id(value))
            if meaning is not None and meaning.kind == "read":
                result = meaning.detail.index in self.varying
            elif meaning is not None and meaning.kind in ("of_lane", "ballot"):
                result = meaning.kind == "of_lane"
            else:
                result = self.place(value) is not None or any(self.varies(operand, known) for operand in value.operands)
            known[id(value)] = result
        return known[id(value)]

    def _find_varying(self) -> None:
        before = -1
        while before != len(self.varying):
            before = len(self.varying)
            for code in self.recorded.values():
                known: dict[int, bool] = {}
                for instruction in code:
                    meaning = self.meanings.get(id(instruction))
                    if meaning is not None and meaning.kind == "write" and self.varies(instruction.operands[1], known):
                        self.varying.add(meaning.detail.index)

    def _leave_varying_barriers(self) -> None:
        """Leave those to the code for one thread at which threads may differ in what they wait for."""
        for index, code in list(self.recorded.items()):
            known: dict[int, bool] = {}
            own = [each for each in code if isinstance(each, ir.StoreInstr) and self.is_own(each.operands[1])]
            if any(self.varies(each.operands[0], known) for each in own):
                self.left.add(index)
                del self.recorded[index]

    def _leave_varying_places(self) -> None:
        """Leave to the code for one thread what looks into a table of ours at a place that threads may differ in."""
        for index, code in list(self.recorded.items()):
            known: dict[int, bool] = {}
            if any(self._is_varying_place(instruction, known) for instruction in code):
                self.left.add(index)
                del self.recorded[index]

    def _is_varying_place(self, instruction: ir.Instruction, known: dict[int, bool]) -> bool:
        if isinstance(instruction, ir.GEPInstr):
            return not (self._is_checked(instruction) or self.is_own(instruction)) and self.varies(instruction, known)
        if isinstance(instruction, ir.LoadInstr | ir.StoreInstr):
            pointer = instruction.operands[-1]
            is_plain = isinstance(pointer, ir.Instruction) and not (self._is_checked(pointer) or self.is_own(pointer))
            return is_plain and self.varies(pointer, known)
        return False

    @property
    def exits(self) -> set[int]:
        """The operations at which a warp may be left to the code for one thread."""
        operations = self.routine.operations
        found = self.left | {operation.index for operation in operations if self.parts(operation)}
        for index, code in self.recorded.items():
            kinds = {meaning.kind for each in code if (meaning := self.meanings.get(id(each))) is not None}
            if kinds & {"check", "require"}:
                found.add(index)
        return found

    def parts(self, operation: Operation) -> bool:
        """Whether the threads may differ in whether they do an operation."""
        guard = _guard_of(operation)
        return guard is not None and guard.index in self.varying

    def _pays(self) -> bool:
        """Whether a warp gets far before it has to be left to the code for one thread."""
        if not self.varying:
            return False
        for loop in self.flow.loops:
            inside = {index for block in loop.blocks for index in range(block, self.flow.ends[block])}
            if inside & self.left or not all(self._counts(loop, operation) for operation in self._branches(inside)):
                return False
        done, waiting, seen = 0, [0], {0}
        while waiting:
            block = waiting.pop()
            indices = range(block, self.flow.ends[block])
            stop = next((index for index in indices if index in self.left), None)
            done += (stop if stop is not None else self.flow.ends[block]) - block
            if stop is None:
                new = set(self.flow.successors[block]) - seen
                seen |= new
                waiting += new
        return 2 * done >= len(self.routine.operations)

    def _branches(self, inside: set[int]) -> Iterator[Operation]:
        for index in inside:
            operation = self.routine.operations[index]
            if operation.match.form.flow is Flow.BRANCH and self.parts(operation):
                yield operation

    def _counts(self, loop: Loop, operation: Operation) -> bool:
        """Whether a branch in a loop depends on the thread's place and on equal steps only, so that warps stay together."""
        writers: dict[int, list[Operation]] = {}
        for block in loop.blocks:
            for other in self.routine.operations[block : self.flow.ends[block]]:
                for register in other.writes:
                    writers.setdefault(register.index, []).append(other)
        guard = _guard_of(operation)
        assert guard is not None

        def counts(index: int, path: tuple[tuple[int, str], ...]) -> bool:
            on_the_way = [step for step, _ in path]
            if index in on_the_way:
                return all(opcode in _STEPS for _, opcode in path[on_the_way.index(index) :])
            for writer in writers.get(index, []):
                opcode = writer.source.opcode
                if opcode not in _LINEAR or writer.match.type.floating or writer.guard is not None or len(path) > 8:
                    return False
                if not all(counts(register.index, (*path, (index, opcode))) for register in writer.reads):
                    return False
            return True

        return counts(guard.index, ())


def _guard_of(operation: Operation) -> Register | None:
    return operation.guard.register if isinstance(operation.guard, Not) else operation.guard


def intrinsic_of(call: ir.CallInstr) -> str | None:
    """Return the name, without types, of the intrinsic that is called, if there is one for vectors."""
    name = call.callee.name
    while name not in INTRINSICS:
        name, dot, _ = name.rpartition(".")
        if not dot:
            return None
    return str(name)


def _is_scalar(kind: ir.Type) -> bool:
    return isinstance(kind, ir.FloatType | ir.DoubleType) or (isinstance(kind, ir.IntType) and kind.width <= 64)
