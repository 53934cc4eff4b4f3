"""The variables that live as long as a module: numbered, and with their initial values."""

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from kaas.worker.v1 import compiler_pb2
from kaasd.devices.emulator.ptx import ast
from kaasd.devices.emulator.ptx.lexer import PtxSyntaxError
from kaasd.devices.emulator.ptx.routine import Storage, Unsupported, storage_of

_MASK = (1 << 64) - 1
_DECLARED_INSIDE = re.compile(r"(?<![\w$%.:\]])\.(?:global|const)(?![\w:])")
"""What a declaration inside a function begins with; an instruction may be written like that, too."""


class ModuleVariables:
    """Those of one PTX text. Raises ``Unsupported``."""

    def __init__(
        self,
        variables: Sequence[ast.Variable],
        functions: Collection[ast.FunctionDeclaration],
        names: Mapping[str, str],
        addresses: Mapping[str, int],
    ) -> None:
        """``names`` says what functions' names mean, and ``addresses`` where functions are."""
        self._described: list[compiler_pb2.EmulatedVariable] = []
        placed = self._place_variables(variables)
        self.symbols = {storage.name: storage for _, storages in placed for storage in storages}
        """Those at module scope, by name."""
        inner = self._place_variables(_statics(functions))
        self._initialise([*placed, *inner], {name: addresses[target] for name, target in names.items() if target in addresses})
        self.statics = {id(variable): storages for variable, storages in inner}
        """Those inside functions, by the ``id`` of their declarations."""
        self._initial = [element for variable, _ in (*placed, *inner) for element in variable.initial]

    def described(self, written: Collection[str]) -> list[compiler_pb2.EmulatedVariable]:
        """Return what loading needs. ``written`` are the names of those that kernels may write."""
        for variable in self._described:
            variable.written = variable.name in written and not variable.constant
        return self._described

    def pointed_at(self, aliases: Mapping[str, str]) -> list[str]:
        """Return the names of what initial values have addresses of."""
        return list(dict.fromkeys(aliases.get(element.symbol, element.symbol) for element in self._initial if element.symbol))

    def _place_variables(self, variables: Iterable[ast.Variable]) -> list[tuple[ast.Variable, list[Storage]]]:
        """Number the variables that live as long as the module."""
        return [(variable, [self._place(variable, name) for name in variable.names]) for variable in variables]

    def _place(self, variable: ast.Variable, name: str) -> Storage:
        storage = storage_of(variable)
        storage.name = name
        if variable.space in ("global", "const"):
            if variable.linkage == "extern":
                raise Unsupported(variable.line, f"{name} is defined in another module, which is not linked")
            storage.number = len(self._described)
            constant = variable.space == "const"
            self._described.append(compiler_pb2.EmulatedVariable(name=name, size_bytes=storage.size, constant=constant))
        elif variable.space != "shared":
            raise Unsupported(
                variable.line, f".{variable.space} variables at module scope are not supported on the emulated device"
            )
        return storage

    def _initialise(self, placed: Sequence[tuple[ast.Variable, list[Storage]]], functions: Mapping[str, int]) -> None:
        """Work out initial values. ``functions`` says where functions are."""
        for variable, storages in placed:
            for storage in storages if variable.initial else ():
                if storage.number is None:
                    raise Unsupported(variable.line, f"{variable.name}: shared memory cannot be initialised")
                described = self._described[storage.number]
                data = bytearray()
                for element in variable.initial:
                    if element.value is None and element.symbol not in functions:
                        described.addresses.append(_address(element, storage, variable.line, self.symbols, len(data)))
                    data += _element_bytes(element, storage, variable.line, functions)
                if len(data) > storage.size:
                    raise Unsupported(variable.line, f"{variable.name} has more values than places")
                described.initial = bytes(data)


def _statics(functions: Iterable[ast.FunctionDeclaration]) -> Iterator[ast.Variable]:
    """Return the variables inside functions that live as long as the module."""
    for function in functions:
        if function.content is None or not _DECLARED_INSIDE.search(function.content.text):
            continue
        try:
            statements = function.content.statements
        except PtxSyntaxError:
            continue  # nothing that reaches it is ever compiled
        for statement in statements:
            if isinstance(statement, ast.Variable) and statement.space in ("global", "const"):
                yield statement


def _address(
    element: ast.Initial, storage: Storage, line: int, symbols: Mapping[str, Storage], offset: int
) -> compiler_pb2.EmulatedAddress:
    """Describe one value of an initialiser that is a variable's address, which only loading knows."""
    pointed_at = symbols.get(element.symbol)
    if pointed_at is None or pointed_at.number is None:
        raise Unsupported(line, f"{element.symbol} is not a variable or function whose address is known")
    return compiler_pb2.EmulatedAddress(
        offset_bytes=offset,
        size_bytes=storage.type.bytes,
        variable=pointed_at.number,
        addend=element.offset & _MASK,
        shift=element.shift,
    )


def _element_bytes(element: ast.Initial, storage: Storage, line: int, functions: Mapping[str, int]) -> bytes:
    """Return one value of an initialiser as the bytes of the variable's type: zeros for an address that is not known yet."""
    size, kind = storage.type.bytes, storage.type
    if element.value is None:
        value = (functions[element.symbol] + element.offset) >> element.shift if element.symbol in functions else 0
    elif isinstance(element.value, ast.Integer):
        value = element.value.value
        if kind.floating:
            return struct.pack("<f" if kind.bits == 32 else "<d", float(value))
    else:
        value = _float_bits(element.value, kind.bits, line)
    return (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def _float_bits(value: ast.Float, width: int, line: int) -> int:
    if value.width == width:
        return value.bits
    if (value.width, width) == (64, 32):
        number = struct.unpack("<d", struct.pack("<Q", value.bits))[0]
        return int.from_bytes(struct.pack("<f", number), "little")
    raise Unsupported(line, f"a floating-point constant of {value.width} bits does not fit {width} bits")
