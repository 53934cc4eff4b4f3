"""A routine with everything in it resolved: its operations, and what their operands can be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from kaasd.devices.emulator.ptx import ast
from kaasd.devices.emulator.ptx.forms import Match
from kaasd.devices.emulator.ptx.types import TYPES, Type, align
from kaasd.libraries import UnsupportedLibrary


class Unsupported(UnsupportedLibrary):
    """Something in a module cannot run here; the message starts with its line."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"PTX line {line}: {message}")


@dataclass(frozen=True, slots=True, eq=False)
class Register:
    name: str
    type: Type
    index: int
    """In its routine."""


@dataclass(slots=True, eq=False)
class Storage:
    """A variable in memory."""

    name: str
    space: str
    type: Type
    size: int
    align: int
    offset: int = 0
    """In its space's area; not meaningful in ``shared``, laid out by kernel, and where it has a ``number``."""
    external: bool = False
    """``.extern .shared``: where dynamic shared memory starts."""
    by_address: bool = False
    """A parameter of any size, the last one of a function: what lies here is where its caller has it, in local memory."""
    line: int = 0
    """Where it is declared."""
    number: int | None = None
    """Of a global or constant: its place among the module's variables, whose addresses only loading knows."""


@dataclass(frozen=True, slots=True)
class Not:
    """A negated predicate."""

    register: Register


@dataclass(frozen=True, slots=True)
class Negative:
    """A register, negated."""

    operand: Register | Part


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes or half words of a register, as a video instruction names them: ``b3``, ``h10``."""

    register: Register
    selector: str
    """``b`` or ``h``, and the numbers of bytes or half words, highest place first."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """The address of a variable, as a value."""

    storage: Storage
    offset: int


@dataclass(frozen=True, slots=True)
class Special:
    """A special register."""

    name: str
    read: Callable[[Any], Any]
    """Given the emitter, emits code that reads it."""


@dataclass(frozen=True, slots=True)
class Memory:
    """``[base+offset]``, or ``[base+offset, rest]``."""

    base: Register | Storage | None
    offset: int
    rest: tuple[Operand, ...] = ()
    """What follows a comma inside the brackets: coordinates."""


@dataclass(frozen=True, slots=True)
class Elements:
    """A vector, or the list of a call."""

    items: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class LabelName:
    """A label, list of labels, prototype or function, looked up where it is used."""

    name: str


class Sink:
    """``_``: a result that nobody needs."""


Operand: TypeAlias = (
    Register | Not | Negative | Part | Symbol | Special | Memory | Elements | LabelName | Sink | ast.Integer | ast.Float
)


@dataclass(slots=True, eq=False)
class Operation:
    """One instruction of a routine."""

    source: ast.Instruction
    match: Match
    operands: tuple[Operand | None, ...]
    """One for each of the form; None where an optional one is missing."""
    guard: Register | Not | None
    index: int
    carry: Register | None = None
    """The carry flag, where the form reads or writes it."""
    _reads: list[Register] | None = None
    _writes: list[Register] | None = None

    @property
    def carry_in(self) -> Register | None:
        return self.carry if "in" in self.match.form.carry else None

    @property
    def carry_out(self) -> Register | None:
        return self.carry if "out" in self.match.form.carry else None

    @property
    def line(self) -> int:
        return self.source.line

    def _registers(self, results: bool) -> Iterator[Register]:
        for formal, operand in zip(self.match.form.operands, self.operands, strict=True):
            is_read = not formal.name.startswith("d") or formal.name.startswith("d_") or isinstance(operand, Memory)
            if formal.name.startswith("d") if results else is_read:
                yield from _registers_of(operand)

    @property
    def writes(self) -> list[Register]:
        if self._writes is None:
            self._writes = [*self._registers(True), *_registers_of(self.carry_out)]
        return self._writes

    @property
    def reads(self) -> list[Register]:
        if self._reads is None:
            self._reads = [*self._registers(False), *_registers_of(self.carry_in), *_registers_of(self.guard)]
        return self._reads


def _registers_of(operand: Operand | None) -> Iterator[Register]:
    if isinstance(operand, Register):
        yield operand
    elif isinstance(operand, Not | Part):
        yield operand.register
    elif isinstance(operand, Negative):
        yield from _registers_of(operand.operand)
    elif isinstance(operand, Memory):
        if isinstance(operand.base, Register):
            yield operand.base
        for item in operand.rest:
            yield from _registers_of(item)
    elif isinstance(operand, Elements):
        for item in operand.items:
            yield from _registers_of(item)


@dataclass(slots=True, eq=False)
class Signature:
    """Results and parameters of a function that is called: their places in the callee's local memory, results first."""

    results: tuple[Storage, ...]
    parameters: tuple[Storage, ...]
    size: int


@dataclass(slots=True, eq=False)
class Routine:
    """A function or kernel with everything in it resolved."""

    name: str
    line: int
    is_entry: bool
    signature: Signature
    registers: list[Register] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    """To the index of the operation that follows it."""
    lists: dict[str, tuple[str, ...]] = field(default_factory=dict)
    prototypes: dict[str, Signature] = field(default_factory=dict)
    formals: dict[int, Register] = field(default_factory=dict)
    """Formal results and parameters that are registers, or parts of vectors, by their offset in local memory."""
    local_size: int = 0
    shared: list[Storage] = field(default_factory=list)
    """The shared variables that it names."""
    callees: dict[str, None] = field(default_factory=dict)
    """The functions that it names, in order."""
    directives: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def formals_of(self, places: Iterable[Storage]) -> Iterator[tuple[int, Register]]:
        """Yield the registers among formal results or parameters, each with its offset in local memory."""
        for place in places:
            for offset in range(place.offset, place.offset + place.size, place.type.bytes):
                if (register := self.formals.get(offset)) is not None:
                    yield offset, register

    @property
    def allocates(self) -> bool:
        """Whether it takes local memory as it runs."""
        return any(op.source.opcode == "alloca" for op in self.operations)

    @property
    def calls_indirectly(self) -> bool:
        return any(op.source.opcode == "call" and isinstance(op.operands[1], Register) for op in self.operations)


def type_named(name: str, line: int) -> Type:
    if name in ("texref", "samplerref", "surfref"):
        raise Unsupported(line, f".{name}: textures and surfaces are not supported on the emulated device")
    if name not in TYPES:
        raise Unsupported(line, f"the emulated device has no type .{name}")
    return TYPES[name]


def storage_of(variable: ast.Variable) -> Storage:
    """Return where a declared variable lives, at offset 0 for now."""
    kind = type_named(variable.type, variable.line)
    size = kind.bytes * variable.vector
    for dimension in variable.dimensions:
        size *= dimension or 0
    open_ended = any(dimension is None for dimension in variable.dimensions)
    if open_ended and variable.initial:
        size = kind.bytes * variable.vector * len(variable.initial)
    if not 0 <= size < 2**40:
        raise Unsupported(variable.line, f"{variable.name} has an impossible size")
    external = variable.space == "shared" and (variable.linkage == "extern" or open_ended)
    alignment = variable.align or kind.bytes * variable.vector
    return Storage(variable.name, variable.space, kind, size, alignment, external=external, line=variable.line)


def _formal(variable: ast.Variable) -> Storage:
    """Return the place of a formal result or parameter."""
    if variable.space == "param" and None in variable.dimensions:
        return Storage(variable.name, variable.space, TYPES["u64"], 8, 8, by_address=True)
    return storage_of(variable)


def lay_out(variables: tuple[ast.Variable, ...], start: int = 0) -> tuple[tuple[Storage, ...], int]:
    """Give each variable its place, one after another from ``start``; return them and the end."""
    places = []
    for variable in variables:
        storage = _formal(variable)
        storage.offset = align(start, max(storage.align, 1))
        start = storage.offset + storage.size
        places.append(storage)
    return tuple(places), start


def signature_of(results: tuple[ast.Variable, ...], parameters: tuple[ast.Variable, ...]) -> Signature:
    result_places, end = lay_out(results)
    parameter_places, end = lay_out(parameters, end)
    return Signature(result_places, parameter_places, end)
