"""A kernel's LLVM module while it is made: what its functions share, and what the launch must know of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from llvmlite import ir

from kaasd.devices.emulator.codegen.llvm_builder import I64, Builder
from kaasd.devices.emulator.codegen.structures import COLLECTIVE, FUNCTION
from kaasd.devices.emulator.ptx.routine import Operation, Routine, Signature, Storage
from kaasd.devices.emulator.ptx.types import align


@dataclass(frozen=True, slots=True)
class Site:
    """A place in a kernel where something can go wrong."""

    routine: str
    operation: Operation
    size: int
    """Of the access, in bytes; 0 if it is none."""


def lay_out_shared(used: Iterable[Storage]) -> tuple[dict[int, int], int]:
    """Place the shared variables that a kernel can reach: those of fixed size, as they are declared, then dynamic memory.

    Returns the offset of each, by its ``id``, and the size of all that is not dynamic.
    """
    variables = sorted({id(storage): storage for storage in used}.values(), key=lambda storage: (storage.line, storage.name))
    offsets: dict[int, int] = {}
    end = 0
    for storage in variables:
        if not storage.external:
            offset = align(end, storage.align)
            offsets[id(storage)] = offset
            end = offset + storage.size
    dynamic = [storage for storage in variables if storage.external]
    if dynamic:
        start = align(end, max(16, *(storage.align for storage in dynamic)))
        offsets |= {id(storage): start for storage in dynamic}
        end = start if end else 0
    return offsets, end


class KernelImage:
    """The module of one kernel and of all that it can call."""

    def __init__(
        self,
        entry: Routine,
        routines: Sequence[Routine],
        function_addresses: Mapping[str, int],
        declared: Mapping[str, Signature],
        checks: frozenset[str] = frozenset(),
    ) -> None:
        self.entry = entry
        self.checks = checks
        """Those of ``EMULATOR_CHECKS`` that are compiled in."""
        self.routines = routines
        self.function_addresses = function_addresses
        """Of functions that can be called, as device addresses."""
        self.declared = declared
        """Functions without a body: those of the device's runtime library."""
        self.module = ir.Module(entry.name)
        self.sites: list[Site] = []
        self.variables: dict[int, int] = {}
        """The numbers of the module's variables that the code uses, each with its place in the table of their addresses."""
        self._address_table: ir.GlobalVariable | None = None
        self.collectives: list[ir.Function] = []
        self.exchange_size = 16
        self.meets_as_grid = False
        """Whether code asks where the blocks of its grid meet."""
        self.one_core = False
        """Whether the code does what several cores cannot do at once, such as printing."""
        self._site_numbers: dict[tuple[int, int], int] = {}
        self._collective_numbers: dict[str, int] = {}
        self._collective_code: dict[Hashable, ir.Function] = {}
        self._shared, self.static_shared = lay_out_shared(storage for routine in routines for storage in routine.shared)
        self.signatures = {routine.name: routine.signature for routine in routines}
        self.function_table = ir.GlobalVariable(
            self.module, ir.ArrayType(FUNCTION.ir, max(1, len(function_addresses))), "functions"
        )
        """``FUNCTION`` entries in the order of ``function_addresses``; filled in when all frame sizes are known."""
        self.frame_sizes = {routine.name: self._constant(f"frame_size.{routine.name}") for routine in routines}

        self.local_size = self._constant("local_size")
        """Of a thread's local memory, in bytes."""

    def _constant(self, name: str) -> ir.GlobalVariable:
        """Return a number that is known only later; LLVM folds it."""
        variable = ir.GlobalVariable(self.module, I64, name)
        variable.global_constant = True
        variable.linkage = "internal"
        return variable

    def shared_offset(self, storage: Storage) -> int:
        return self._shared[id(storage)]

    def variable_address(self, b: Builder, number: int) -> ir.Value:
        """Return the device address of the module's variable of this number, which loading puts into the table ``variables``."""
        if self._address_table is None:
            self._address_table = ir.GlobalVariable(self.module, ir.ArrayType(I64, 0), "variables")
        place = self.variables.setdefault(number, len(self.variables))
        address = b.load(b.item(self._address_table, I64, place), typ=I64)
        address.set_metadata("invariant.load", self.module.add_metadata([]))
        return address

    def define_address_table(self) -> None:
        """Give the table of addresses its size, when all of them are known."""
        if self._address_table is not None:
            self._address_table.value_type = ir.ArrayType(I64, len(self.variables))
            self._address_table.initializer = ir.Constant(self._address_table.value_type, None)

    def site(self, routine: Routine, operation: Operation, size: int = 0) -> int:
        """Return the number of a place that a report may have to name."""
        key = (id(operation), size)
        if key not in self._site_numbers:
            self._site_numbers[key] = len(self.sites)
            self.sites.append(Site(routine.name, operation, size))
        return self._site_numbers[key]

    def collective(self, place: str, code: Hashable, build: Callable[[Builder, ir.Value, ir.Value, ir.Value], None]) -> int:
        """Return the number of the warp operation of a place in the program, where threads meet.

        Places of one ``code`` share what ``build(b, warp, stride, mask)`` emits.
        """
        if place not in self._collective_numbers:
            function = self._collective_code.get(code)
            if function is None:
                function = ir.Function(self.module, COLLECTIVE, f"collective.{len(self._collective_code)}")
                function.linkage = "internal"
                builder = Builder(function.append_basic_block("entry"))
                build(builder, *function.args)
                builder.ret_void()
                self._collective_code[code] = function
            self._collective_numbers[place] = len(self.collectives)
            self.collectives.append(function)
        return self._collective_numbers[place]

    def need_exchange(self, size: int) -> None:
        """Make sure that a thread's exchange has ``size`` bytes."""
        self.exchange_size = max(self.exchange_size, align(size))

    def declare(self, name: str, kind: ir.FunctionType) -> ir.Function:
        """Return a function defined elsewhere: an LLVM intrinsic, or one of the C library."""
        existing = self.module.globals.get(name)
        return existing if existing is not None else ir.Function(self.module, kind, name)

    def helper(self, name: str, kind: ir.FunctionType, build: Callable[[Builder, ir.Function], None]) -> ir.Function:
        """Return a function of the module's own, which ``build`` emits at its first use."""
        existing = self.module.globals.get(name)
        if existing is not None:
            return existing
        function = ir.Function(self.module, kind, name)
        function.linkage = "internal"
        build(Builder(function.append_basic_block("entry")), function)
        return function
