"""One PTX text: parsed, its names resolved, its variables numbered, and each kernel lowered when it is first asked for."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from math import prod

from kaas.worker.v1 import compiler_pb2
from kaasd.devices.emulator.codegen.checks import RACES
from kaasd.devices.emulator.codegen.compiler import CompiledKernel
from kaasd.devices.emulator.codegen.frames import function_address
from kaasd.devices.emulator.codegen.kernel_image import Site
from kaasd.devices.emulator.codegen.machine_code import to_object
from kaasd.devices.emulator.codegen.routine_code import KernelMeetings, Meetings
from kaasd.devices.emulator.isa.instruction_set import INSTRUCTION_SET
from kaasd.devices.emulator.isa.meetings import meetings_of
from kaasd.devices.emulator.ptx import ast
from kaasd.devices.emulator.ptx.architecture import PtxSupport
from kaasd.devices.emulator.ptx.lexer import PtxSyntaxError
from kaasd.devices.emulator.ptx.parser import parse
from kaasd.devices.emulator.ptx.requirements import Declared, check_declarations
from kaasd.devices.emulator.ptx.resolver import Resolver
from kaasd.devices.emulator.ptx.routine import Routine, Storage, Unsupported, signature_of, storage_of
from kaasd.libraries import UnsupportedLibrary
from kaasd.libraries.variables import writable_in_ptx

MAX_THREADS = 1024
_CLUSTER = ("explicitcluster", "reqnctapercluster", "blocksareclusters")
_MASK = (1 << 64) - 1


class PtxUnit:
    """One PTX text. Raises ``UnsupportedLibrary``."""

    def __init__(self, text: str, support: PtxSupport, checks: frozenset[str]) -> None:
        self._checks = checks
        try:
            self._syntax = parse(text)
        except PtxSyntaxError as error:
            raise UnsupportedLibrary(f"PTX {error}") from None
        support.check(self._syntax.version, self._syntax.targets)
        if self._syntax.address_size != 64:
            raise UnsupportedLibrary("PTX with 32-bit addresses is not supported on the emulated device")
        declared = Declared(self._syntax.version, self._syntax.targets)
        check_declarations(self._syntax, declared)
        self._variables: list[compiler_pb2.EmulatedVariable] = []
        self._link(declared)
        written = writable_in_ptx(text)
        for variable in self._variables:
            variable.written = variable.name in written and not variable.constant

    @property
    def kernels(self) -> list[str]:
        """The names of its entry points."""
        return [name for name, routine in self._routines.items() if routine.is_entry]

    def routine(self, name: str) -> Routine:
        """Return a function or entry point with everything in it resolved."""
        return self._routines[name]

    def lowered(self, name: str, as_it_runs: bool = True) -> CompiledKernel:
        """Return the LLVM module of a kernel; or one that only shows whether the kernel can run. Raises ``Unsupported``."""
        routine = self._routines[name]
        reachable = self._reachable(routine)
        find = partial(meetings_of, alone=len(reachable) == 1, everywhere=RACES in self._checks) if as_it_runs else _no_meetings
        return CompiledKernel(routine, reachable, self._addresses, self._signatures, find, self._checks)

    def describe(self) -> compiler_pb2.EmulatedUnit:
        """Return what loading needs. All kernels are lowered for it: what cannot run is refused. Raises ``Unsupported``."""
        return compiler_pb2.EmulatedUnit(
            variables=self._variables,
            kernels=[_describe_kernel(self.lowered(name, as_it_runs=False)) for name in self.kernels],
            files={number & _MASK: name for number, name in self._syntax.files.items()},
        )

    def compile(self, name: str) -> compiler_pb2.EmulatedCode:
        """Return a kernel's machine code. Raises ``Unsupported``."""
        lowered = self.lowered(name)
        words: dict[str, int] = {}
        return compiler_pb2.EmulatedCode(
            object=to_object(lowered.image.module),
            variables=lowered.image.variables,
            waits=lowered.waits,
            by_lane=lowered.by_lane,
            by_lane_waits=lowered.by_lane_waits,
            pointers=lowered.pointers,
            frame_stride=lowered.frame_stride,
            local_stride=lowered.local_stride,
            exchange_bytes=lowered.image.exchange_size,
            sites=[_describe_site(site, words) for site in lowered.image.sites],
            words=words,  # in the order of their numbers
        )

    def _link(self, declared: Declared) -> None:
        functions = _by_name([function for function in self._syntax.functions if function.body is not None])
        self._addresses = {
            name: function_address(index) for index, name in enumerate(n for n, f in functions.items() if not f.is_entry)
        }
        names = {f.name: "" if f.is_entry else f.name for f in self._syntax.functions} | self._syntax.aliases
        placed = self._place_variables(self._syntax.variables)
        symbols = {storage.name: storage for _, storages in placed for storage in storages}
        inner = self._place_variables(_statics(functions.values()))
        self._initialise([*placed, *inner], symbols, names)
        statics = {id(variable): storages for variable, storages in inner}
        self._routines = {
            name: Resolver(function, symbols, names, statics, INSTRUCTION_SET, declared).resolve()
            for name, function in functions.items()
        }
        self._signatures = {f.name: signature_of(f.results, f.parameters) for f in self._syntax.functions if f.body is None}
        for routine in self._routines.values():
            if routine.is_entry:
                _check_cluster(routine)

    def _reachable(self, entry: Routine) -> list[Routine]:
        """Return the routines that a kernel can call: those named in it, and those whose address a variable holds."""
        aliases = self._syntax.aliases
        variables = [*self._syntax.variables, *_statics(self._syntax.functions)]
        pointed_at = {aliases.get(element.symbol, element.symbol) for variable in variables for element in variable.initial}
        found, waiting = {entry.name: entry}, [*entry.callees, *pointed_at]
        while waiting:
            routine = self._routines.get(waiting.pop())
            if routine is not None and not routine.is_entry and routine.name not in found:
                found[routine.name] = routine
                waiting += routine.callees
        return list(found.values())

    def _place_variables(self, variables: Iterable[ast.Variable]) -> list[tuple[ast.Variable, list[Storage]]]:
        """Number the variables that live as long as the module."""
        return [(variable, [self._place(variable, name) for name in variable.names]) for variable in variables]

    def _place(self, variable: ast.Variable, name: str) -> Storage:
        storage = storage_of(variable)
        storage.name = name
        if variable.space in ("global", "const"):
            if variable.linkage == "extern":
                raise Unsupported(variable.line, f"{name} is defined in another module, which is not linked")
            storage.number = len(self._variables)
            constant = variable.space == "const"
            self._variables.append(compiler_pb2.EmulatedVariable(name=name, size_bytes=storage.size, constant=constant))
        elif variable.space != "shared":
            raise Unsupported(
                variable.line, f".{variable.space} variables at module scope are not supported on the emulated device"
            )
        return storage

    def _initialise(
        self, placed: Sequence[tuple[ast.Variable, list[Storage]]], symbols: Mapping[str, Storage], names: Mapping[str, str]
    ) -> None:
        """Work out initial values. ``names`` says what functions' names mean."""
        functions = {name: self._addresses[target] for name, target in names.items() if target in self._addresses}
        for variable, storages in placed:
            for storage in storages if variable.initial else ():
                if storage.number is None:
                    raise Unsupported(variable.line, f"{variable.name}: shared memory cannot be initialised")
                described = self._variables[storage.number]
                data = bytearray()
                for element in variable.initial:
                    if element.value is None and element.symbol not in functions:
                        described.addresses.append(_address(element, storage, variable.line, symbols, len(data)))
                    data += _element_bytes(element, storage, variable.line, functions)
                if len(data) > storage.size:
                    raise Unsupported(variable.line, f"{variable.name} has more values than places")
                described.initial = bytes(data)


def _no_meetings(routine: Routine, place_of: Callable[[Storage], int]) -> KernelMeetings:
    return KernelMeetings(Meetings())


def _describe_kernel(lowered: CompiledKernel) -> compiler_pb2.EmulatedKernel:
    entry = lowered.image.entry
    required = entry.directives.get("reqntid")
    limit = entry.directives.get("maxntid") or required
    return compiler_pb2.EmulatedKernel(
        name=entry.name,
        parameters=[
            compiler_pb2.EmulatedParameter(name=place.name, offset_bytes=place.offset, size_bytes=place.size)
            for place in entry.signature.parameters
        ],
        parameters_size_bytes=entry.signature.size,
        static_shared_bytes=lowered.image.static_shared,
        required_block=(*required, 1, 1)[:3] if required else (),
        max_threads=min(MAX_THREADS, prod(limit)) if limit else MAX_THREADS,
    )


def _describe_site(site: Site, words: dict[str, int]) -> compiler_pb2.EmulatedSite:
    """Describe a place; ``words`` grows by those that are new."""
    source = site.operation.source
    described = compiler_pb2.EmulatedSite(
        routine=words.setdefault(site.routine, len(words)),
        mnemonic=words.setdefault(source.mnemonic, len(words)),
        line=source.line,
        size_bytes=site.size,
    )
    if source.location:
        described.location.CopyFrom(_describe_location(source.location))
        if source.location.inlined_at:
            described.inlined_at.CopyFrom(_describe_location(source.location.inlined_at))
    return described


def _describe_location(place: ast.Location | ast.Inlined) -> compiler_pb2.EmulatedLocation:
    return compiler_pb2.EmulatedLocation(file=place.file & _MASK, line=place.line & _MASK, column=place.column & _MASK)


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
