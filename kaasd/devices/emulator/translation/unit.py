"""One PTX text: what stands at module scope, and each kernel read and lowered when it is first asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import prod

from kaas.worker.v1 import compiler_pb2
from kaasd.devices.emulator.codegen.checks import RACES
from kaasd.devices.emulator.codegen.compiler import CompiledKernel
from kaasd.devices.emulator.codegen.frames import function_address
from kaasd.devices.emulator.codegen.kernel_image import Site
from kaasd.devices.emulator.codegen.machine_code import to_object
from kaasd.devices.emulator.codegen.routine_code import LONG
from kaasd.devices.emulator.isa.instruction_set import INSTRUCTION_SET
from kaasd.devices.emulator.isa.meetings import meetings_of
from kaasd.devices.emulator.ptx import ast
from kaasd.devices.emulator.ptx.architecture import PtxSupport
from kaasd.devices.emulator.ptx.lexer import PtxSyntaxError
from kaasd.devices.emulator.ptx.parser import parse
from kaasd.devices.emulator.ptx.requirements import Declared, check_declarations
from kaasd.devices.emulator.ptx.resolver import Resolver
from kaasd.devices.emulator.ptx.routine import Routine, Unsupported, signature_of
from kaasd.devices.emulator.translation.module_variables import ModuleVariables
from kaasd.devices.emulator.translation.shared_memory import SharedMemory
from kaasd.libraries import UnsupportedLibrary
from kaasd.libraries.variables import writable_in_ptx

MAX_THREADS = 1024
_MASK = (1 << 64) - 1


class PtxUnit:
    """One PTX text: what stands at module scope. Functions are read when a kernel is compiled that reaches them.

    All raise ``UnsupportedLibrary``, naming the line.
    """

    def __init__(self, text: str, support: PtxSupport, checks: frozenset[str]) -> None:
        self._checks = checks
        with syntax_errors():
            self._syntax = parse(text)
        support.check(self._syntax.version, self._syntax.targets)
        if self._syntax.address_size != 64:
            raise UnsupportedLibrary("PTX with 32-bit addresses is not supported on the emulated device")
        self._declared = Declared(self._syntax.version, self._syntax.targets)
        check_declarations(self._syntax, self._declared)
        self._functions = _by_name([function for function in self._syntax.functions if function.content is not None])
        self._addresses = {
            name: function_address(index) for index, name in enumerate(n for n, f in self._functions.items() if not f.is_entry)
        }
        self._names = {f.name: "" if f.is_entry else f.name for f in self._syntax.functions} | self._syntax.aliases
        self._variables = ModuleVariables(self._syntax.variables, self._functions.values(), self._names, self._addresses)
        self._signatures = {f.name: signature_of(f.results, f.parameters) for f in self._syntax.functions if f.content is None}
        self._routines: dict[str, Routine] = {}
        self._text = text

    @property
    def kernels(self) -> list[str]:
        """The names of its entry points."""
        return [name for name, function in self._functions.items() if function.is_entry]

    def routine(self, name: str) -> Routine:
        """Return a function or entry point with everything in it resolved."""
        if name not in self._routines:
            variables = self._variables
            with syntax_errors():
                self._routines[name] = Resolver(
                    self._functions[name], variables.symbols, self._names, variables.statics, INSTRUCTION_SET, self._declared
                ).resolve()
        return self._routines[name]

    def lowered(self, name: str) -> CompiledKernel:
        """Return the LLVM module of a kernel."""
        _check_cluster(self._functions[name])
        routine = self.routine(name)
        reachable = self._reachable(routine)
        is_short = len(reachable) == 1 and len(routine.operations) <= LONG
        find = partial(meetings_of, alone=is_short, everywhere=RACES in self._checks)
        return CompiledKernel(routine, reachable, self._addresses, self._signatures, find, self._checks)

    def describe(self) -> compiler_pb2.EmulatedUnit:
        """Return what loading needs."""
        shared = SharedMemory(self._syntax, self._functions, self._variables)
        return compiler_pb2.EmulatedUnit(
            variables=self._variables.described(writable_in_ptx(self._text)),
            kernels=[_describe_kernel(self._functions[name], shared.static_bytes(name)) for name in self.kernels],
            files={number & _MASK: name for number, name in self._syntax.files.items()},
        )

    def compile(self, name: str) -> compiler_pb2.EmulatedCode:
        """Return a kernel's machine code."""
        lowered = self.lowered(name)
        words: dict[str, int] = {}
        return compiler_pb2.EmulatedCode(
            object=to_object(lowered.image.module, is_long=lowered.is_long),
            variables=lowered.image.variables,
            waits=lowered.waits,
            meets_as_grid=lowered.image.meets_as_grid,
            by_lane=lowered.by_lane,
            by_lane_waits=lowered.by_lane_waits,
            saved_stride=lowered.saved_stride,
            pointers=lowered.pointers,
            one_core=lowered.image.one_core,
            frame_stride=lowered.frame_stride,
            local_stride=lowered.local_stride,
            exchange_bytes=lowered.image.exchange_size,
            sites=[_describe_site(site, words) for site in lowered.image.sites],
            words=words,  # in the order of their numbers
        )

    def _reachable(self, entry: Routine) -> list[Routine]:
        """Return the routines that a kernel can call: those named in it, and those whose address a variable holds."""
        found, waiting = {entry.name: entry}, [*entry.callees, *self._variables.pointed_at(self._syntax.aliases)]
        while waiting:
            name = waiting.pop()
            if name not in found and name in self._addresses:
                found[name] = self.routine(name)
                waiting += found[name].callees
        return list(found.values())


@contextmanager
def syntax_errors() -> Iterator[None]:
    """Raise ``UnsupportedLibrary`` for text that is not PTX."""
    try:
        yield
    except PtxSyntaxError as error:
        raise UnsupportedLibrary(f"PTX {error}") from None


def _describe_kernel(entry: ast.FunctionDeclaration, static_shared: int) -> compiler_pb2.EmulatedKernel:
    signature = signature_of(entry.results, entry.parameters)
    required = entry.directives.get("reqntid")
    limit = entry.directives.get("maxntid") or required
    cluster = entry.directives.get("reqnctapercluster")
    return compiler_pb2.EmulatedKernel(
        name=entry.name,
        parameters=[
            compiler_pb2.EmulatedParameter(
                name=place.name, offset_bytes=place.offset, size_bytes=place.size, alignment_bytes=max(place.align, 1)
            )
            for place in signature.parameters
        ],
        parameters_size_bytes=signature.size,
        static_shared_bytes=static_shared,
        required_block=(*required, 1, 1)[:3] if required else (),
        max_threads=min(MAX_THREADS, prod(limit)) if limit else MAX_THREADS,
        cluster=(*cluster, 1, 1)[:3] if cluster else (),
        needs_cluster="explicitcluster" in entry.directives and not cluster,
        max_cluster_blocks=(*entry.directives.get("maxclusterrank", ()), 0)[0],
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


def _check_cluster(function: ast.FunctionDeclaration) -> None:
    """Refuse a kernel whose grid is given in clusters of more than one block: grids are in blocks here."""
    blocks = function.directives.get("reqnctapercluster", (1,))
    if "blocksareclusters" in function.directives and prod(blocks) > 1:
        raise Unsupported(function.line, ".blocksareclusters: grids in clusters are not supported on the emulated device")
