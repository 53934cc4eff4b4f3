"""Loaded PTX: variables with their segments, kernels emitted and, at their first launch, compiled."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from math import prod

from kaasd.devices.emulator.codegen.compiler import CompiledKernel
from kaasd.devices.emulator.codegen.frames import function_address
from kaasd.devices.emulator.codegen.machine_code import NativeCode
from kaasd.devices.emulator.isa.instruction_set import INSTRUCTION_SET
from kaasd.devices.emulator.ptx import ast
from kaasd.devices.emulator.ptx.architecture import PtxSupport
from kaasd.devices.emulator.ptx.lexer import PtxSyntaxError
from kaasd.devices.emulator.ptx.parser import parse
from kaasd.devices.emulator.ptx.requirements import Declared, check_declarations
from kaasd.devices.emulator.ptx.resolver import Resolver
from kaasd.devices.emulator.ptx.routine import Routine, Storage, Unsupported, signature_of, storage_of
from kaasd.devices.emulator.runtime.address_space import AddressSpace, Allocation
from kaasd.libraries import UnsupportedLibrary
from kaasd.libraries.variables import writable_in_ptx
from kaasd.request.device_checks import KernelAttributes

MAX_THREADS = 1024
_CLUSTER = ("explicitcluster", "reqnctapercluster", "blocksareclusters")


class EmulatedKernel:
    """One entry point."""

    is_ready = True
    """One run at a time is under way, so that all have the same variables."""

    def __init__(self, unit: PtxUnit, compiled: CompiledKernel) -> None:
        self.unit = unit
        self.compiled = compiled
        self.entry = compiled.image.entry
        directives = self.entry.directives
        required = directives.get("reqntid")
        limit = directives.get("maxntid") or required
        self.attributes = KernelAttributes(
            name=self.entry.name,
            parameter_size_bytes=tuple(place.size for place in self.entry.signature.parameters),
            static_shared_memory_bytes=compiled.image.static_shared,
            max_threads_per_block=min(MAX_THREADS, prod(limit)) if limit else MAX_THREADS,
            required_block=(*required, 1, 1)[:3] if required else None,  # type: ignore[arg-type]
        )

    @cached_property
    def code(self) -> NativeCode:
        """The machine code, made when first needed."""
        return NativeCode(self.compiled.image.module)


class PtxUnit:
    """One PTX text, loaded."""

    def __init__(self, text: str, space: AddressSpace, support: PtxSupport, checks: frozenset[str]) -> None:
        self._space = space
        self._checks = checks
        self._allocations: list[Allocation] = []
        self._initial: dict[int, bytes] = {}
        """By address: the values of the variables that have any."""
        try:
            self.syntax = parse(text)
        except PtxSyntaxError as error:
            raise UnsupportedLibrary(f"PTX {error}") from None
        support.check(self.syntax.version, self.syntax.targets)
        if self.syntax.address_size != 64:
            raise UnsupportedLibrary("PTX with 32-bit addresses is not supported on the emulated device")
        try:
            declared = Declared(self.syntax.version, self.syntax.targets)
            check_declarations(self.syntax, declared)
            self.kernels = self._link(declared)
            self.resets = self._resets(writable_in_ptx(text))
            """To be called before a run: each gives a variable that kernels may write its initial value."""
        except BaseException:
            self.close()
            raise

    def _link(self, declared: Declared) -> dict[str, EmulatedKernel]:
        functions = _by_name([function for function in self.syntax.functions if function.body is not None])
        addresses = {
            name: function_address(index) for index, name in enumerate(n for n, f in functions.items() if not f.is_entry)
        }
        names = {f.name: "" if f.is_entry else f.name for f in self.syntax.functions} | self.syntax.aliases
        placed = self._place_variables(self.syntax.variables)
        symbols = {storage.name: storage for _, storages in placed for storage in storages}
        inner = self._place_variables(_statics(functions.values()))
        self._initialise([*placed, *inner], symbols, addresses, names)
        statics = {id(variable): storages for variable, storages in inner}
        routines = {
            name: Resolver(function, symbols, names, statics, INSTRUCTION_SET, declared).resolve()
            for name, function in functions.items()
        }
        signatures = {f.name: signature_of(f.results, f.parameters) for f in self.syntax.functions if f.body is None}
        kernels = {}
        for name, routine in routines.items():
            if not routine.is_entry:
                continue
            _check_cluster(routine)
            reachable = self._reachable(routine, routines)
            kernels[name] = EmulatedKernel(self, CompiledKernel(routine, reachable, addresses, signatures, self._checks))
        return kernels

    def _reachable(self, entry: Routine, routines: dict[str, Routine]) -> list[Routine]:
        """Return the routines that a kernel can call: those named in it, and those whose address a variable holds."""
        aliases = self.syntax.aliases
        variables = [*self.syntax.variables, *_statics(self.syntax.functions)]
        pointed_at = {aliases.get(element.symbol, element.symbol) for variable in variables for element in variable.initial}
        found, waiting = {entry.name: entry}, [*entry.callees, *pointed_at]
        while waiting:
            routine = routines.get(waiting.pop())
            if routine is not None and not routine.is_entry and routine.name not in found:
                found[routine.name] = routine
                waiting += routine.callees
        return list(found.values())

    def _place_variables(self, variables: Iterable[ast.Variable]) -> list[tuple[ast.Variable, list[Storage]]]:
        """Give variables that live as long as the module their places."""
        return [(variable, [self._place(variable, name) for name in variable.names]) for variable in variables]

    def _place(self, variable: ast.Variable, name: str) -> Storage:
        storage = storage_of(variable)
        storage.name = name
        if variable.space in ("global", "const"):
            if variable.linkage == "extern":
                raise Unsupported(variable.line, f"{name} is defined in another module, which is not linked")
            allocation = self._space.allocate(storage.size, name, read_only=variable.space == "const")
            self._allocations.append(allocation)
            storage.offset = allocation.address
        elif variable.space != "shared":
            raise Unsupported(
                variable.line, f".{variable.space} variables at module scope are not supported on the emulated device"
            )
        return storage

    def _initialise(
        self,
        placed: Sequence[tuple[ast.Variable, list[Storage]]],
        symbols: Mapping[str, Storage],
        functions: Mapping[str, int],
        names: Mapping[str, str],
    ) -> None:
        """Write initial values. ``functions`` are addresses, ``names`` what functions' names mean."""
        by_address = {allocation.address: allocation for allocation in self._allocations}
        known = {name: place.offset for name, place in symbols.items()}
        known |= {name: functions[target] for name, target in names.items() if target in functions}
        for variable, storages in placed:
            for storage in storages if variable.initial else ():
                if storage.space == "shared":
                    raise Unsupported(variable.line, f"{variable.name}: shared memory cannot be initialised")
                data = b"".join(_element_bytes(element, storage, variable.line, known) for element in variable.initial)
                if len(data) > storage.size:
                    raise Unsupported(variable.line, f"{variable.name} has more values than places")
                by_address[storage.offset].write(data)
                self._initial[storage.offset] = data

    def _resets(self, written: Collection[str]) -> tuple[Callable[[], object], ...]:
        variables = [each for each in self._allocations if each.name in written and not each.read_only]
        return tuple(variable.filler(self._initial.get(variable.address, b"")) for variable in variables)

    def close(self) -> None:
        """Free the variables and the code. Idempotent."""
        for allocation in self._allocations:
            allocation.close()
        for kernel in getattr(self, "kernels", {}).values():
            if "code" in vars(kernel):
                kernel.code.close()


def _by_name(functions: Sequence[ast.FunctionDeclaration]) -> dict[str, ast.FunctionDeclaration]:
    result: dict[str, ast.FunctionDeclaration] = {}
    for function in functions:
        if function.name in result:
            raise Unsupported(function.line, f"{function.name} is defined twice")
        result[function.name] = function
    return result


def _statics(functions: Iterable[ast.FunctionDeclaration]) -> Iterator[ast.Variable]:
    """Return the variables inside functions that live as long as the module."""
    for function in functions:
        for statement in function.body or ():
            if isinstance(statement, ast.Variable) and statement.space in ("global", "const"):
                yield statement


def _check_cluster(routine: Routine) -> None:
    """Refuse a kernel that needs clusters of more than one block; one that allows them runs without."""
    blocks = routine.directives.get("reqnctapercluster")
    if blocks and prod(blocks) == 1:
        return
    for word in _CLUSTER:
        if word in routine.directives:
            raise Unsupported(routine.line, f".{word}: thread block clusters are not supported on the emulated device")


def _element_bytes(element: ast.Initial, storage: Storage, line: int, addresses: Mapping[str, int]) -> bytes:
    """Return one value of an initialiser as the bytes of the variable's type."""
    size, kind = storage.type.bytes, storage.type
    if element.value is None:
        if element.symbol not in addresses:
            raise Unsupported(line, f"{element.symbol} is not a variable or function whose address is known")
        value = (addresses[element.symbol] + element.offset) >> element.shift
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


class EmulatedModule:
    """All PTX texts of a library, loaded."""

    def __init__(
        self,
        texts: Sequence[str],
        space: AddressSpace,
        support: PtxSupport,
        checks: frozenset[str] = frozenset(),
        host_functions: Sequence[str] = (),
    ) -> None:
        """``support`` is the device's; ``checks`` are those of ``EMULATOR_CHECKS`` that its kernels make."""
        self.host_functions = host_functions
        self._units: list[PtxUnit] = []
        self.kernels: dict[str, EmulatedKernel] = {}
        try:
            for text in texts:
                unit = PtxUnit(text, space, support, checks)
                self._units.append(unit)
                self.kernels |= unit.kernels
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[PtxUnit]:
        return iter(self._units)

    def load_host_function(self, name: str) -> EmulatedKernel:
        """Raise ``UnsupportedLibrary``."""
        raise UnsupportedLibrary("host code launches its kernels on a CUDA GPU; the emulated device runs none")

    def close(self) -> None:
        """Unload. Idempotent."""
        for unit in self._units:
            unit.close()
