"""From syntax to program: names become registers, variables, labels and functions, and mnemonics become entries of the table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from kaasd.devices.base import UnsupportedLibrary
from kaasd.devices.emulator import table
from kaasd.devices.emulator.layout import align
from kaasd.devices.emulator.ptx import ast
from kaasd.devices.emulator.table import Match, Slot
from kaasd.devices.emulator.types import TYPES, Type


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
    """In its space's area; the whole device address of a global or constant; not meaningful in ``shared``, laid out by kernel."""
    external: bool = False
    """``.extern .shared``: where dynamic shared memory starts."""


@dataclass(frozen=True, slots=True)
class Not:
    """A negated predicate."""

    register: Register


@dataclass(frozen=True, slots=True)
class Symbol:
    """The address of a variable, as a value."""

    storage: Storage
    offset: int


@dataclass(frozen=True, slots=True)
class Special:
    """A special register."""

    name: str


@dataclass(frozen=True, slots=True)
class Memory:
    """``[base+offset]``."""

    base: Register | Storage | None
    offset: int


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


Operand: TypeAlias = Register | Not | Symbol | Special | Memory | Elements | LabelName | Sink | ast.Integer | ast.Float


@dataclass(slots=True, eq=False)
class Operation:
    """One instruction of a routine."""

    source: ast.Instruction
    match: Match
    operands: tuple[Operand | None, ...]
    """One for each slot of the form; None where an optional one is missing."""
    guard: Register | Not | None
    index: int
    carry: Register | None = None
    """The carry flag, where the form reads or writes it."""

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
        for slot, operand in zip(self.match.form.slots, self.operands, strict=True):
            if slot.name.startswith("d") == results or (results is False and isinstance(operand, Memory)):
                yield from _registers_of(operand)

    @property
    def writes(self) -> list[Register]:
        return [*self._registers(True), *_registers_of(self.carry_out)]

    @property
    def reads(self) -> list[Register]:
        return [*self._registers(False), *_registers_of(self.carry_in), *_registers_of(self.guard)]


def _registers_of(operand: Operand | None) -> Iterator[Register]:
    if isinstance(operand, Register):
        yield operand
    elif isinstance(operand, Not):
        yield operand.register
    elif isinstance(operand, Memory) and isinstance(operand.base, Register):
        yield operand.base
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
    """Formal results and parameters that are registers, by their offset in local memory."""
    local_size: int = 0
    shared: list[Storage] = field(default_factory=list)
    """The shared variables that it names."""
    callees: set[str] = field(default_factory=set)
    """The functions that it names."""
    directives: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def calls_indirectly(self) -> bool:
        return any(op.source.opcode == "call" and isinstance(op.operands[1], Register) for op in self.operations)


def type_named(name: str, line: int) -> Type:
    if name not in TYPES:
        raise Unsupported(line, f"no type .{name} on the emulated device")
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
    return Storage(variable.name, variable.space, kind, size, variable.align or kind.bytes * variable.vector, external=external)


def lay_out(variables: tuple[ast.Variable, ...], start: int = 0) -> tuple[tuple[Storage, ...], int]:
    """Give each variable its place, one after another from ``start``; return them and the end."""
    places = []
    for variable in variables:
        storage = storage_of(variable)
        storage.offset = align(start, max(storage.align, 1))
        start = storage.offset + storage.size
        places.append(storage)
    return tuple(places), start


def signature_of(results: tuple[ast.Variable, ...], parameters: tuple[ast.Variable, ...]) -> Signature:
    result_places, end = lay_out(results)
    parameter_places, end = lay_out(parameters, end)
    return Signature(result_places, parameter_places, end)


class Resolver:
    """Resolves one function of a module."""

    def __init__(self, function: ast.Function, names: Mapping[str, Storage], functions: frozenset[str]) -> None:
        self._function = function
        self._functions = functions
        signature = signature_of(function.results, function.parameters)
        self.routine = Routine(function.name, function.line, function.is_entry, signature, directives=function.directives)
        self._scopes: list[dict[str, Register | Storage | Elements]] = [dict(names), {}]
        self._used_shared: dict[int, Storage] = {}
        self._carry: Register | None = None
        for variable, storage in zip(
            (*function.results, *function.parameters), (*signature.results, *signature.parameters), strict=True
        ):
            if variable.space == "reg":
                register = self._register(variable.name, storage.type)
                self.routine.formals[storage.offset] = register
            else:
                storage.space = "param" if function.is_entry else "local"
                self._scopes[-1][variable.name] = storage
        self._local_end = 0 if function.is_entry else signature.size
        self._pending: list[tuple[int, ast.Statement]] = []

    def resolve(self) -> Routine:
        """Return the routine. Raises ``Unsupported``."""
        routine = self.routine
        scope_path: list[int] = []
        scopes = 0
        body = self._function.body or ()
        # Labels first, since branches go forward. A label is known by its name and, where that is not unique, by its scope.
        self._label_scopes: dict[str, list[tuple[tuple[int, ...], str]]] = {}
        for statement in body:
            if isinstance(statement, ast.ScopeBegin):
                scopes += 1
                scope_path.append(scopes)
            elif isinstance(statement, ast.ScopeEnd):
                scope_path.pop()
            elif isinstance(statement, ast.Label | ast.LabelList | ast.Prototype):
                places = self._label_scopes.setdefault(statement.name, [])
                if any(path == tuple(scope_path) for path, _ in places):
                    raise Unsupported(statement.line, f"label {statement.name} is defined twice")
                places.append((tuple(scope_path), f"{statement.name}@{len(places)}"))
        scopes = 0
        for statement in body:
            if isinstance(statement, ast.ScopeBegin):
                scopes += 1
                scope_path.append(scopes)
                self._scopes.append({})
            elif isinstance(statement, ast.ScopeEnd):
                scope_path.pop()
                self._scopes.pop()
            else:
                self._path = tuple(scope_path)
                self._statement(statement)
        routine.shared = list(self._used_shared.values())
        routine.local_size = align(self._local_end)
        return routine

    def _statement(self, statement: ast.Statement) -> None:
        routine = self.routine
        if isinstance(statement, ast.Instruction):
            self._instruction(statement)
        elif isinstance(statement, ast.Variable):
            self._declare(statement)
        elif isinstance(statement, ast.Label):
            routine.labels[self._label(statement.name) or ""] = len(routine.operations)
        elif isinstance(statement, ast.LabelList):
            names = tuple(self._label(target) or target for target in statement.targets)
            routine.lists[self._label(statement.name) or ""] = names
        elif isinstance(statement, ast.Prototype):
            routine.prototypes[self._label(statement.name) or ""] = signature_of(statement.results, statement.parameters)

    def _label(self, name: str) -> str | None:
        """Return the unique name of the label that ``name`` means here: the one of the innermost scope around."""
        best = None
        for path, unique in self._label_scopes.get(name, ()):
            if self._path[: len(path)] == path and (best is None or len(path) > len(best[0])):
                best = (path, unique)
        return best[1] if best else None

    def _register(self, name: str, kind: Type) -> Register:
        register = Register(name, kind, len(self.routine.registers))
        self.routine.registers.append(register)
        self._scopes[-1][name] = register
        return register

    def _vector(self, name: str, kind: Type, count: int) -> None:
        """Declare a vector register: one of its own for each element, ``.x`` or ``.r`` and so on."""
        scope = self._scopes[-1]
        items = [self._register(f"{name}.{axis}", kind) for axis in "xyzw"[:count]]
        scope |= {f"{name}.{colour}": item for colour, item in zip("rgba", items, strict=False)}
        scope[name] = Elements(tuple(items))

    def _declare(self, variable: ast.Variable) -> None:
        if variable.space == "reg":
            kind = type_named(variable.type, variable.line)
            names = [variable.name] if variable.count is None else [f"{variable.name}{i}" for i in range(variable.count)]
            for name in names:
                if variable.vector > 1:
                    self._vector(name, kind, variable.vector)
                else:
                    self._register(name, kind)
            return
        names = [variable.name] if variable.count is None else [f"{variable.name}{i}" for i in range(variable.count)]
        for name in names:
            storage = storage_of(variable)
            storage.name = name
            if variable.space in ("local", "param"):
                storage.space = "local"
                storage.offset = align(self._local_end, max(storage.align, 1))
                self._local_end = storage.offset + storage.size
            elif variable.space != "shared":
                raise Unsupported(variable.line, f".{variable.space} variables inside a function are not on the emulated device")
            self._scopes[-1][name] = storage

    def _lookup(self, name: str) -> Register | Storage | Elements | None:
        for scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
        return None

    def _storage(self, storage: Storage) -> Storage:
        if storage.space == "shared":
            self._used_shared[id(storage)] = storage
        return storage

    def _instruction(self, source: ast.Instruction) -> None:
        match = table.find(source.opcode, source.modifiers)
        if isinstance(match, str):
            raise Unsupported(source.line, match)
        guard: Operand | None = self._operand(source.guard, source.line) if source.guard else None
        if guard is not None and not isinstance(guard, Register | Not):
            raise Unsupported(source.line, "the guard is no predicate")
        operands = self._assign(match.form.slots, source)
        carry = self._carry_flag() if match.form.carry else None
        self.routine.operations.append(Operation(source, match, operands, guard, len(self.routine.operations), carry))

    def _carry_flag(self) -> Register:
        """Return the register that stands for the carry flag."""
        if self._carry is None:
            self._carry = Register("the carry flag", TYPES["pred"], len(self.routine.registers))
            self.routine.registers.append(self._carry)
        return self._carry

    def _assign(self, slots: tuple[Slot, ...], source: ast.Instruction) -> tuple[Operand | None, ...]:
        """Give each operand its slot. Optional slots are filled from the left."""
        spare = len(source.operands) - sum(not slot.optional for slot in slots if not slot.paired)
        taken = iter(source.operands)
        result: list[Operand | None] = []
        second: ast.Operand | None = None
        for position, slot in enumerate(slots):
            if slot.paired:
                if second is None and not slot.optional:
                    raise Unsupported(source.line, f"{source.mnemonic} needs a second result, as in d|p")
                result.append(None if second is None else self._operand(second, source.line))
                second = None
                continue
            if slot.optional:
                if spare <= 0:
                    result.append(None)
                    continue
                spare -= 1
            operand = next(taken, None)
            if operand is None:
                raise Unsupported(source.line, f"{source.mnemonic} has too few operands")
            if isinstance(operand, ast.Pair):
                if not (position + 1 < len(slots) and slots[position + 1].paired):
                    raise Unsupported(source.line, f"{source.mnemonic} has no second result")
                second = operand.second
                operand = operand.first
            if isinstance(operand, ast.Vector) and len(operand.elements) == 1 and slot.kind in ("d", "value"):
                operand = operand.elements[0]  # Triton loads and stores single elements so
            if (slot.kind == "address") != isinstance(operand, ast.Address) and slot.kind != "raw":
                raise Unsupported(source.line, f"{source.mnemonic} does not take an operand like its operand {slot.name}")
            result.append(self._operand(operand, source.line))
        if next(taken, None) is not None:
            raise Unsupported(source.line, f"{source.mnemonic} has too many operands")
        return tuple(result)

    def _operand(self, operand: ast.Operand, line: int) -> Operand:
        if isinstance(operand, ast.Integer | ast.Float):
            return operand
        if isinstance(operand, ast.Identifier):
            return self._identifier(operand, line)
        if isinstance(operand, ast.Negated):
            register = self._identifier(operand.operand, line)
            if not isinstance(register, Register):
                raise Unsupported(line, f"{operand.operand.name} is no predicate")
            return Not(register)
        if isinstance(operand, ast.Vector | ast.Group):
            return Elements(tuple(self._operand(element, line) for element in operand.elements))
        if isinstance(operand, ast.Address):
            if operand.rest:
                raise Unsupported(line, "textures, surfaces and tensor maps are not on the emulated device")
            if operand.base is None:
                return Memory(None, operand.offset)
            base = self._lookup(operand.base)
            if base is None:
                raise Unsupported(line, f"{operand.base} is not declared")
            if isinstance(base, Elements):
                raise Unsupported(line, f"vector register {operand.base} cannot hold an address")
            return Memory(self._storage(base) if isinstance(base, Storage) else base, operand.offset)
        raise Unsupported(line, "a pair d|p cannot stand here")

    def _identifier(self, operand: ast.Identifier, line: int) -> Operand:
        if operand.name == "_":
            return Sink()
        found = self._lookup(operand.name)
        if isinstance(found, Storage):
            return Symbol(self._storage(found), operand.offset)
        if operand.offset:
            raise Unsupported(line, f"{operand.name} plus a constant is no operand")
        if found is not None:
            return found
        if label := self._label(operand.name):
            return LabelName(label)
        if operand.name in self._functions:
            self.routine.callees.add(operand.name)
            return LabelName(operand.name)
        if operand.name.startswith("%"):
            return Special(operand.name)
        raise Unsupported(line, f"{operand.name} is not declared")
