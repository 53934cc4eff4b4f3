"""From syntax to a routine: names become registers, variables, labels and functions, and mnemonics become matches of forms."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from kaasd.devices.emulator.ptx import ast
from kaasd.devices.emulator.ptx.forms import FormOperand, InstructionSet
from kaasd.devices.emulator.ptx.requirements import Declared, check_variable, counts_operands
from kaasd.devices.emulator.ptx.routine import (
    Elements,
    LabelName,
    Memory,
    Negative,
    Not,
    Operand,
    Operation,
    Part,
    Register,
    Routine,
    Sink,
    Special,
    Storage,
    Symbol,
    Unsupported,
    signature_of,
    storage_of,
    type_named,
)
from kaasd.devices.emulator.ptx.types import TYPES, Type, align


class Resolver:
    """Resolves one function of a module."""

    def __init__(
        self,
        function: ast.FunctionDeclaration,
        names: Mapping[str, Storage],
        functions: Mapping[str, str],
        statics: Mapping[int, Sequence[Storage]],
        instruction_set: InstructionSet,
        declared: Declared,
    ) -> None:
        """``functions`` gives what each name of a function means, since it may be an alias; of a kernel, nothing.

        ``statics`` are the places of variables of the function that live as long as the module, by the declaration's ``id``.
        """
        self._function = function
        self._functions = functions
        self._statics = statics
        self._instruction_set = instruction_set
        self._declared = declared
        signature = signature_of(function.results, function.parameters)
        self.routine = Routine(function.name, function.line, function.is_entry, signature, directives=function.directives)
        self._scopes: list[dict[str, Register | Storage | Elements]] = [dict(names), {}]
        self._used_shared: dict[int, Storage] = {}
        self._carry: Register | None = None
        for variable, storage in zip(
            (*function.results, *function.parameters), (*signature.results, *signature.parameters), strict=True
        ):
            if variable.space == "reg":
                self._declare(variable)
                found = self._lookup(variable.name)
                items = found.items if isinstance(found, Elements) else (found,)
                for index, item in enumerate(items):
                    assert isinstance(item, Register)
                    self.routine.formals[storage.offset + index * storage.type.bytes] = item
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
        check_variable(variable, self._declared)
        if variable.space == "reg":
            kind = type_named(variable.type, variable.line)
            for name in variable.names:
                if variable.vector > 1:
                    self._vector(name, kind, variable.vector)
                else:
                    self._register(name, kind)
            return
        if id(variable) in self._statics:
            self._scopes[-1] |= {storage.name: storage for storage in self._statics[id(variable)]}
            return
        for name in variable.names:
            storage = storage_of(variable)
            storage.name = name
            if variable.space in ("local", "param"):
                storage.space = "local"
                storage.offset = align(self._local_end, max(storage.align, 1))
                self._local_end = storage.offset + storage.size
            elif variable.space != "shared":
                raise Unsupported(
                    variable.line, f".{variable.space} variables inside a function are not supported on the emulated device"
                )
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
        self._source = source
        match = self._instruction_set.find(source.opcode, source.modifiers)
        if isinstance(match, str):
            raise Unsupported(source.line, match)  # names the instruction itself
        guard: Operand | None = self._operand(source.guard) if source.guard else None
        if guard is not None and not isinstance(guard, Register | Not):
            raise self._error("the guard is not a predicate")
        operands = self._assign(match.form.operands, source, match.form.parts)
        if lack := self._declared.lacks_for(match, _beside(source, operands)):
            raise self._error(lack)
        carry = self._carry_flag() if match.form.carry else None
        self.routine.operations.append(Operation(source, match, operands, guard, len(self.routine.operations), carry))

    def _error(self, message: str) -> Unsupported:
        """Return the error that the instruction being resolved cannot run."""
        return Unsupported(self._source.line, f"{self._source.mnemonic}: {message}")

    def _carry_flag(self) -> Register:
        """Return the register that stands for the carry flag."""
        if self._carry is None:
            self._carry = Register("the carry flag", TYPES["pred"], len(self.routine.registers))
            self.routine.registers.append(self._carry)
        return self._carry

    def _assign(self, formals: tuple[FormOperand, ...], source: ast.Instruction, parts: bool) -> tuple[Operand | None, ...]:
        """Give each operand of the form its own. Optional ones are filled from the left."""
        spare = len(source.operands) - sum(not formal.optional for formal in formals if not formal.paired)
        taken = iter(source.operands)
        result: list[Operand | None] = []
        second: ast.Operand | None = None
        for position, formal in enumerate(formals):
            if formal.paired:
                if second is None and not formal.optional:
                    raise self._error("needs a second result, as in d|p")
                result.append(None if second is None else self._operand(second))
                second = None
                continue
            if formal.optional:
                if spare <= 0:
                    result.append(None)
                    continue
                spare -= 1
            operand = next(taken, None)
            if operand is None:
                raise self._error("has too few operands")
            if isinstance(operand, ast.Pair):
                if not (position + 1 < len(formals) and formals[position + 1].paired):
                    raise self._error("has no second result")
                second = operand.second
                operand = operand.first
            if isinstance(operand, ast.Vector) and len(operand.elements) == 1 and formal.kind in ("d", "value"):
                operand = operand.elements[0]  # Triton loads and stores single elements so
            if isinstance(operand, ast.Indexed):
                operand = self._element(operand, address=formal.kind == "address")
            elif isinstance(operand, ast.Identifier) and operand.offset and not formal.name.startswith("d"):
                operand = self._sum(operand)
            if (formal.kind == "address") != isinstance(operand, ast.Address) and formal.kind != "raw":
                raise self._error(f"does not take an operand like its operand {formal.name}")
            if isinstance(operand, ast.Address) and bool(operand.rest) != (formal.name in ("map", "texel")):
                raise self._error(f"{'takes no' if operand.rest else 'needs'} coordinates in its operand {formal.name}")
            result.append(self._operand(operand))
            if isinstance(result[-1], Part | Negative) and not parts:
                raise self._error("takes neither parts of registers nor negated ones")
        if next(taken, None) is not None:
            raise self._error("has too many operands")
        return tuple(result)

    def _element(self, operand: ast.Indexed, address: bool) -> ast.Operand:
        """Return the address of an array's element as an operand like ``array+8`` or ``[array+8]``; compute it where need be."""
        array = self._lookup(operand.array)
        if not isinstance(array, Storage):
            raise self._error(f"{operand.array} is not an array")
        name, offset = operand.array, operand.offset * array.type.bytes
        if operand.index is not None:
            index = self._lookup(operand.index)
            form = ("lo", "s64") if isinstance(index, Register) and index.type.bits == 64 else ("wide", "s32")
            factors = (ast.Identifier(operand.index), ast.Integer(array.type.bytes), ast.Identifier(name, offset))
            name, offset = f"{operand.array}[{operand.index}]", 0
            self._register(name, TYPES["b64"])
            source = self._source
            self._instruction(ast.Instruction(source.line, "mad", form, (ast.Identifier(name), *factors)))
            self._source = source
        return ast.Address(name, offset) if address else ast.Identifier(name, offset)

    def _sum(self, operand: ast.Identifier) -> ast.Identifier:
        """Compute a register plus a constant; return the operand as it is where it is something else."""
        register = self._lookup(operand.name)
        if not isinstance(register, Register) or register.type.kind not in "usb":
            return operand
        total, source = f"{operand.name}{operand.offset:+}", self._source
        self._register(total, register.type)
        addends = (ast.Identifier(operand.name), ast.Integer(operand.offset))
        self._instruction(ast.Instruction(source.line, "add", (f"s{register.type.bits}",), (ast.Identifier(total), *addends)))
        self._source = source
        return ast.Identifier(total)

    def _operand(self, operand: ast.Operand) -> Operand:
        if isinstance(operand, ast.Integer | ast.Float):
            return operand
        if isinstance(operand, ast.Identifier):
            return self._identifier(operand)
        if isinstance(operand, ast.Negated):
            register = self._identifier(operand.operand)
            if not isinstance(register, Register):
                raise self._error(f"{operand.operand.name} is not a predicate")
            return Not(register)
        if isinstance(operand, ast.Minus):
            negated = self._identifier(operand.operand)
            if not isinstance(negated, Register | Part):
                raise self._error(f"{operand.operand.name} cannot be negated here")
            return Negative(negated)
        if isinstance(operand, ast.Vector | ast.Group):
            return Elements(tuple(self._operand(element) for element in operand.elements))
        if isinstance(operand, ast.Address):
            if len(operand.rest) > 1:
                raise self._error("samplers apart from their textures are not supported on the emulated device")
            rest = tuple(self._operand(each) for each in operand.rest)
            if operand.base is None:
                return Memory(None, operand.offset, rest)
            base = self._lookup(operand.base)
            if base is None:
                raise self._error(f"{operand.base} is not declared")
            if isinstance(base, Elements):
                raise self._error(f"vector register {operand.base} cannot hold an address")
            return Memory(self._storage(base) if isinstance(base, Storage) else base, operand.offset, rest)
        raise self._error("a pair d|p cannot stand here")

    def _identifier(self, operand: ast.Identifier) -> Operand:
        if operand.name == "_":
            return Sink()
        found = self._lookup(operand.name)
        if isinstance(found, Storage):
            return Symbol(self._storage(found), operand.offset)
        if operand.offset:
            raise self._error(f"{operand.name} plus a constant cannot be an operand")
        if found is not None:
            return found
        if label := self._label(operand.name):
            return LabelName(label)
        if operand.name in self._functions:
            return self._function_named(operand.name)
        owner, _, selector = operand.name.rpartition(".")
        if isinstance(register := self._lookup(owner), Register):
            if register.type.bits != 32 or not re.fullmatch("b[0-7]{1,4}|h[0-3]{1,2}", selector):
                raise self._error(f"{operand.name} is not a part of a register")
            return Part(register, selector)
        if operand.name.startswith("%"):
            read = self._instruction_set.special_register(operand.name)
            if read is None:
                raise self._error(f"{operand.name} is neither declared nor a special register of the emulated device")
            if lack := self._declared.lacks_name(operand.name):
                raise self._error(f"{operand.name} {lack}")
            return Special(operand.name, read)
        raise self._error(f"{operand.name} is not declared")

    def _function_named(self, name: str) -> LabelName:
        function = self._functions[name]
        if not function:
            raise self._error(
                f"{name} is a kernel: its address is for dynamic parallelism, which is not supported on the emulated device"
            )
        self.routine.callees[function] = None
        return LabelName(function)


def _beside(source: ast.Instruction, operands: Sequence[Operand | None]) -> tuple[str, ...]:
    """Words for what an instruction has beside its mnemonic, where that matters to what it needs."""
    if not counts_operands(source.opcode):
        return ()
    words = [f"#{len(source.operands)}"]
    if source.operands and source.operands[0] == ast.Identifier("_"):
        words.append("_")
    if any(isinstance(operand, Register) and operand.type is TYPES["pred"] for operand in operands[1:]):
        words.append("pred")
    return tuple(words)
