"""What the functions of the table use to emit code: one thread's registers, memory and meetings with other threads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from llvmlite import ir

from kaasd.devices.emulator.codegen import checks
from kaasd.devices.emulator.codegen.kernel_image import KernelImage
from kaasd.devices.emulator.codegen.llvm_builder import I32, I64, Builder, const, i32, i64
from kaasd.devices.emulator.codegen.nans import takes_nans_alike
from kaasd.devices.emulator.codegen.structures import (
    CONTEXT,
    LAUNCH,
    MOST_CLUSTER_BLOCKS,
    OFFSET_BITS,
    OFFSET_MASK,
    RANK_SHIFT,
    SEGMENT,
    THREAD,
    Fault,
    Segment,
    Status,
    exchange,
)
from kaasd.devices.emulator.ptx import ast
from kaasd.devices.emulator.ptx.forms import Match
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
)
from kaasd.devices.emulator.ptx.types import F32, F64, Type

SPACES = {"shared": Segment.SHARED, "local": Segment.LOCAL, "param": Segment.PARAM}
"""Spaces with an area of their own, whose addresses are offsets in it. Others hold whole device addresses."""


class Emitter:
    """Emits the code of one routine. ``b`` is the LLVM builder, ``operation`` the instruction at hand."""

    CANONICAL_NAN = 0x7FFF_FFFF
    """What every single-precision operation of a GPU returns for NaN."""

    operation: Operation
    b: Builder
    context: ir.Value
    thread: ir.Value

    def __init__(self, image: KernelImage, routine: Routine, function: ir.Function) -> None:
        self.image = image
        self.routine = routine
        self.context, self.thread, self.resume = function.args
        self.b = Builder(function.append_basic_block("entry"))
        b = self.b
        self._registers: dict[int, ir.Value] = {}
        """Where registers are kept, by their numbers."""
        self.homes: Mapping[int, int] = {}
        """Of some, the offsets in ``frame``, where they outlast this code. Others are kept in variables."""
        self.frame: ir.Value
        self._known: dict[int, ir.Value] = {}
        """Registers' values that an earlier instruction has loaded or stored, and that nothing has changed since."""
        self._straight: ir.Block | None = None
        """The block up to which all code at hand has been passed; others may have been passed, or not."""
        self._unstored: dict[int, ir.Value] = {}
        """Those known that are not stored yet."""
        self._learnt: list[int] | None = None
        """What was added to those known since the last ``may_be_passed``."""
        self._fault_kind, self._fault_site, self._fault_address = b.variable(I32, 0), b.variable(I32, 0), b.variable(I64, 0)
        self._fault_block = b.append_basic_block("fault")
        self.blocks: dict[int, ir.Block] = {}
        self.suspend: Callable[[Status], None]
        """Save the registers, return ``Status`` to the scheduler, and go on from here when resumed."""
        self.late_nans: frozenset[int] = frozenset()
        """Registers in which a NaN need not be a GPU's; see ``nans.py``."""
        self.watches_stores = False
        """Whether to count the stores that change memory, so that threads which only spin can be told."""
        with b.goto_block(self._fault_block):
            kind, site, address = (
                b.load(self._fault_kind, typ=I32),
                b.load(self._fault_site, typ=I32),
                b.load(self._fault_address, typ=I64),
            )
            b.put(CONTEXT, self.context, fault=kind, site=site, address=address)
            b.ret(i32(Status.FAULT))

    # Values

    def read(self, operand: Operand | None, kind: Type) -> Any:
        """Return an operand's value as ``kind``; of a vector, the list of its elements' values."""
        b = self.b
        if isinstance(operand, Elements):
            return [self.read(item, kind) for item in operand.items]
        if isinstance(operand, Negative):  # its instruction heeds the sign
            return self.read(operand.operand, kind)
        if isinstance(operand, Part):
            return self._read_part(operand, kind)
        if isinstance(operand, Register):
            bits = self.load_register(operand)
            if operand.index in self.late_nans and not takes_nans_alike(self.operation, self.late_nans):
                bits = self.b.bitcast(self.canonical(self.b.bitcast(bits, F32.ir)), I32)
            return self.cast(self._narrow(bits, kind, operand.name), kind)
        if isinstance(operand, Not):
            return b.not_(self.read(operand.register, kind))
        if isinstance(operand, ast.Integer | ast.Float):
            return self._immediate(operand, kind)
        if isinstance(operand, Special):
            return self.cast(b.resize(operand.read(self), kind.raw), kind)
        if isinstance(operand, Symbol):
            return self.cast(b.resize(self.address_of(operand.storage, operand.offset), kind.raw), kind)
        if isinstance(operand, LabelName) and operand.name in self.image.function_addresses:
            return b.resize(i64(self.image.function_addresses[operand.name]), kind.raw)
        raise self.error("an operand cannot be read")

    def write(self, operand: Operand | None, value: Any, kind: Type) -> None:
        """Store a result: to a wider register sign- or zero-extended as ``kind`` says."""
        if operand is None or isinstance(operand, Sink):
            return
        b = self.b
        if isinstance(operand, Part):  # its instruction has put the part in its place
            operand = operand.register
        if isinstance(operand, Elements):
            if not isinstance(value, list) or len(value) != len(operand.items):
                raise self.error(f"a vector of {len(operand.items)} does not fit")
            for item, element in zip(operand.items, value, strict=True):
                self.write(item, element, kind)
            return
        if not isinstance(operand, Register) or isinstance(value, list):
            raise self.error("a result needs a register")
        raw = self.raw(value)
        width = operand.type.bits
        if raw.type.width > width:
            raise self.error(f"register {operand.name} is too narrow")
        if raw.type.width < width:
            if 1 in (raw.type.width, width):
                raise self.error(f"register {operand.name} has the wrong type")
            raw = b.sext(raw, operand.type.raw) if kind.signed else b.zext(raw, operand.type.raw)
        self.store_register(operand, raw)

    def _read_part(self, part: Part, kind: Type) -> ir.Value:
        """Return a byte or half word extended as ``kind`` says; of several, the whole register."""
        value = self.read(part.register, kind)
        letter, places = part.selector[0], part.selector[1:]
        if len(places) > 1:
            return value
        width = 8 if letter == "b" else 16
        moved = self.b.shl(value, i32(32 - width - int(places) * width))
        return (self.b.ashr if kind.signed else self.b.lshr)(moved, i32(32 - width))

    @property
    def writes_late_nan(self) -> bool:
        """Whether others see to it that the NaN of this instruction's result is a GPU's."""
        return any(register.index in self.late_nans for register in self.operation.writes)

    def canonical(self, value: ir.Value) -> ir.Value:
        """Replace any NaN, of single precision, by a GPU's."""
        b = self.b
        return b.select(b.fcmp_unordered("uno", value, value), b.bitcast(i32(self.CANONICAL_NAN), value.type), value)

    def raw(self, value: ir.Value) -> ir.Value:
        """Return a value's bits as an integer."""
        if isinstance(value.type, ir.IntType):
            return value
        return self.b.bitcast(value, I64 if isinstance(value.type, ir.DoubleType) else I32)

    def cast(self, bits: ir.Value, kind: Type) -> ir.Value:
        """Return bits as the LLVM type that holds values of ``kind``."""
        return self.b.bitcast(bits, kind.ir) if kind.floating else bits

    def _narrow(self, value: ir.Value, kind: Type, name: str) -> ir.Value:
        width = value.type.width
        if width < kind.bits or (1 in (width, kind.bits) and width != kind.bits):
            raise self.error(f"register {name} does not fit .{kind.name}")
        return self.b.trunc(value, kind.raw) if width > kind.bits else value

    def _immediate(self, operand: ast.Integer | ast.Float, kind: Type) -> ir.Value:
        if isinstance(operand, ast.Integer) and kind.floating:
            raise self.error("an integer constant cannot stand for a floating-point one")
        if isinstance(operand, ast.Integer):
            return const(kind.raw, int(operand.value != 0) if kind.bits == 1 else operand.value)
        if operand.width == kind.bits:
            return self.cast(const(kind.raw, operand.bits), kind)
        if operand.width == 64 and kind is F32:
            wide = self.b.bitcast(i64(operand.bits), F64.ir)
            return self.b.fptrunc(wide, F32.ir)
        if operand.width == 32 and kind is F64:
            return self.b.fpext(self.b.bitcast(i32(operand.bits), F32.ir), F64.ir)
        raise self.error(f"a floating-point constant does not fit .{kind.name}")

    def load_register(self, register: Register) -> ir.Value:
        """Return a register's bits."""
        value = self._known.get(register.index)
        if value is None:
            value = self.b.load(self._place_of(register), typ=register.type.raw)
            self._know(register.index, value)
        return value

    def store_register(self, register: Register, bits: ir.Value) -> None:
        """Store it; where nothing but what follows has passed here, that waits for ``store_needed``."""
        index = register.index
        before = self._unstored.pop(index, None)
        if self.b.block is self._straight and self._learnt is None:
            self._unstored[index] = bits
        else:
            if before is not None and self._straight is not None:
                with self.b.goto_block(self._straight):
                    self.b.store(before, self._place_of(register))
            self.b.store(bits, self._place_of(register))
        self._know(index, bits)

    def store_needed(self, needed: Collection[int]) -> None:
        """Store those registers that are needed and not stored yet."""
        for index in [index for index in self._unstored if index in needed]:
            self.b.store(self._unstored.pop(index), self._place_of(self.routine.registers[index]))

    def _place_of(self, register: Register) -> ir.Value:
        place = self._registers.get(register.index)
        if place is None:
            with self.b.goto_entry_block():
                home = self.homes.get(register.index)
                place = self.b.variable(register.type.raw, 0) if home is None else self.b.at(self.frame, home)
            self._registers[register.index] = place
        return place

    def _know(self, index: int, value: ir.Value) -> None:
        if self.b.block is self._straight:
            self._known[index] = value
            if self._learnt is not None:
                self._learnt.append(index)
        else:
            self._known.pop(index, None)

    def go_on(self, *, forget: bool = False) -> None:
        """Say that the block at hand comes after all that was emitted so far, or, to ``forget`` that, that it may not."""
        self._straight = self.b.block
        if forget:
            self._known.clear()
            self._unstored.clear()

    @contextmanager
    def may_be_passed(self) -> Iterator[None]:
        """Emit what is done under a condition; ``go_on`` follows."""
        self._learnt = []
        yield
        for index in self._learnt:
            self._known.pop(index, None)
        self._learnt = None

    # Memory

    def local_pointer(self, offset: int | ir.Value) -> ir.Value:
        """Return the host address of a place in this function's local memory."""
        b = self.b
        start = b.at(b.get(THREAD, self.thread, "locals"), b.get(THREAD, self.thread, "local"))
        return b.at(start, offset)

    def address_of(self, storage: Storage, offset: int) -> ir.Value:
        """Return a variable's address in its own space, as 64 bits."""
        if storage.space == "shared":
            return i64(self.image.shared_offset(storage) + offset)
        if storage.by_address:
            return self.b.add(self.b.load_as(I64, self.local_pointer(storage.offset), "memory"), i64(offset))
        if storage.number is not None:
            return self.b.add(self.image.variable_address(self.b, storage.number), i64(offset))
        place = i64(storage.offset + offset)
        return self.b.add(self.b.get(THREAD, self.thread, "local"), place) if storage.space == "local" else place

    def address(self, space: str, memory: Memory) -> tuple[str, ir.Value]:
        """Return an address operand's space, as far as it is known, and its address there."""
        b = self.b
        if isinstance(memory.base, Storage):
            address = self.address_of(memory.base, memory.offset)
            if memory.base.space in SPACES:
                space = memory.base.space
        elif memory.base is None:
            address = i64(memory.offset)
        else:
            base = self.load_register(memory.base)
            if base.type.width not in (32, 64):
                raise self.error(f"register {memory.base.name} cannot hold an address")
            address = b.add(base, const(base.type, memory.offset)) if memory.offset else base
            address = b.zext(address, I64) if base.type.width == 32 else address
        if space == "shared::cluster":
            return "", self.of_cluster(address)
        return ("local" if space == "param" and not self.routine.is_entry else space), address

    def of_cluster(self, address: ir.Value) -> ir.Value:
        """Return the generic address of one in the shared memory of a cluster."""
        b = self.b
        place = b.lshr(address, i64(RANK_SHIFT))
        segment = b.select(b.is_("==", place, 0), i64(Segment.SHARED), b.add(place, i64(Segment.CLUSTER - 1)))
        segment = b.select(b.is_(">", place, MOST_CLUSTER_BLOCKS), i64(Segment.NOWHERE), segment)
        return b.or_(b.shl(segment, i64(OFFSET_BITS)), b.and_(address, i64((1 << RANK_SHIFT) - 1)))

    def pointer(self, space: str, memory: Memory, size: int, access: Fault, alignment: int | None = None) -> ir.Value:
        """Return the host address of ``size`` bytes at ``memory``, after all checks. ``access`` is LOAD, STORE or ATOMIC."""
        named = space
        space, address = self.address(space, memory)
        alignment = alignment or size
        base = None
        if isinstance(memory.base, Register) and memory.offset % alignment == 0:
            base = self.load_register(memory.base)
        return self.checked(space, address, size, access, alignment, observed=named != "param", base=base)

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
        """Return the host address of a device address: fault unless segment, bounds, alignment and permission are right.

        The checks that were asked for look at it, unless it is not to be ``observed``. A ``base`` is aligned where the address
        is: of several addresses with one base LLVM keeps one look at that.
        """
        b = self.b
        if (known := self.segment_of(space)) is not None:
            segment: ir.Value = i64(known)
            offset = address
            end = b.call(self.intrinsic("llvm.uadd.sat.i64", I64, I64, I64), [offset, i64(size)])
        else:
            segment = b.lshr(address, i64(OFFSET_BITS))
            offset = b.and_(address, i64(OFFSET_MASK))
            end = b.add(offset, i64(size))
        entry = b.item(self._table, SEGMENT.ir, segment)
        limit = b.get(SEGMENT, entry, "size" if access is Fault.LOAD else "writable_size")
        bad = b.is_(">", end, limit)
        if alignment > 1:
            bad = b.or_(bad, b.bits(offset if base is None else base, alignment - 1))
        whole = b.or_(address, i64(SPACES[space] << OFFSET_BITS)) if space in SPACES else address
        self.fault_if(bad, access, whole, size)
        pointer = b.at(b.get(SEGMENT, entry, "base"), offset)
        if observed and self.image.checks:
            checks.observe(self, segment, pointer, offset, size, access)
        return pointer

    def segment_of(self, space: str) -> int | None:
        """Return the segment of a space, or None where the address says it."""
        return SPACES.get(space)

    @cached_property
    def _table(self) -> ir.Value:
        """The table of segments."""
        with self.b.goto_entry_block():
            return self.b.get_fixed(CONTEXT, self.context, "table")

    @cached_property
    def launch(self) -> ir.Value:
        """The launch at hand."""
        with self.b.goto_entry_block():
            return self.b.get_fixed(CONTEXT, self.context, "launch")

    def parameter(self, memory: Memory, size: int) -> ir.Value | None:
        """Return the host address of ``size`` bytes of a kernel's parameters, or None where it is not known that they are so."""
        base = memory.base
        if not self.routine.is_entry or not isinstance(base, Storage) or base.space != "param" or base.by_address:
            return None
        offset = base.offset + memory.offset
        if offset < 0 or offset % size or offset + size > self.routine.signature.size:
            return None
        return self.b.at(self.b.get_fixed(LAUNCH, self.launch, "arguments"), offset)

    # Control

    def fault_if(self, bad: ir.Value, kind: Fault, address: ir.Value | None = None, size: int = 0) -> None:
        """Stop the launch if ``bad``."""
        b = self.b
        cold, go_on = b.append_basic_block("bad"), b.append_basic_block("good")
        is_straight = b.block is self._straight
        b.cbranch(bad, cold, go_on).set_weights([1, 1 << 20])
        b.position_at_end(cold)
        self._fault(kind, address, size)
        b.position_at_end(go_on)
        if is_straight:
            self.go_on()

    def fault(self, kind: Fault, address: ir.Value | None = None) -> None:
        """Stop the launch here; nothing can follow."""
        self._fault(kind, address, 0)

    def _fault(self, kind: Fault, address: ir.Value | None, size: int) -> None:
        b = self.b
        b.store(i32(kind), self._fault_kind)
        b.store(i32(self.image.site(self.routine, self.operation, size)), self._fault_site)
        if address is not None:
            b.store(address, self._fault_address)
        b.branch(self._fault_block)

    def go(self, label: Operand | None) -> ir.Block:
        """Return the block to branch to for a label."""
        if not isinstance(label, LabelName) or label.name not in self.routine.labels:
            raise self.error("a branch needs a label of this function")
        return self.blocks[self.routine.labels[label.name]]

    def end(self, status: Status) -> None:
        """Return to the scheduler for good."""
        self.b.ret(i32(status))

    @property
    def exchange(self) -> ir.Value:
        """Where this thread leaves operands for an operation of several threads and finds the results."""
        return exchange(self.b, self.thread)

    def collective(self, build: Callable[[Builder, ir.Value, ir.Value, ir.Value], None], *variant: Hashable) -> int:
        """Return the number of this instruction's warp operation, as ``wait_for_warp`` takes it.

        ``build(b, warp, stride, mask)`` emits its code, which the mnemonic must determine, and ``variant`` where it does not.
        """
        operation = self.operation
        return self.image.collective(f"{self.routine.name}:{operation.index}", (operation.source.mnemonic, *variant), build)

    def wait_for_warp(self, mask: ir.Value, operands: list[ir.Value], collective: int) -> None:
        """Leave ``operands`` in the exchange and wait for the threads of ``mask``; 0 stands for whoever gets here."""
        b = self.b
        offset = 0
        for operand in operands:
            b.store_as(operand, b.at(self.exchange, offset), align=4)
            offset += operand.type.width // 8
        self.image.need_exchange(offset)
        b.put(THREAD, self.thread, operation=collective, mask=mask, site=self.image.site(self.routine, self.operation))
        self.suspend(Status.WARP)

    def result(self, kind: ir.Type, offset: int = 0) -> ir.Value:
        """Return what an operation of several threads left for this one."""
        self.image.need_exchange(offset + 16)
        return self.b.load_as(kind, self.b.at(self.exchange, offset), align=4)

    # Other functions

    @contextmanager
    def building(self, b: Builder) -> Iterator[None]:
        """Emit elsewhere for a while: in the code of a warp operation."""
        own, self.b = self.b, b
        yield
        self.b = own

    def intrinsic(self, name: str, result: ir.Type, *arguments: ir.Type) -> ir.Function:
        """Return the declaration of an LLVM intrinsic or of a function of the C library."""
        return self.image.declare(name, ir.FunctionType(result, arguments))

    def call(self, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
        """Call an LLVM intrinsic or a function of the C library."""
        return self.b.call(self.intrinsic(name, result, *(argument.type for argument in arguments)), arguments)

    def error(self, message: str) -> Unsupported:
        """Return the error that this instruction cannot run."""
        return Unsupported(self.operation.line, f"{self.operation.source.mnemonic}: {message}")

    def emit(self, operation: Operation) -> None:
        """Emit one operation's own code: read, compute, write."""
        self.operation = operation
        match: Match = operation.match
        sources, results = [], []
        for formal, operand in zip(match.form.operands, operation.operands, strict=True):
            if formal.kind == "d":
                results.append((formal, operand))
            elif formal.kind == "value":
                sources.append(None if operand is None else self.read(operand, match.type_of(formal.type)))
            else:
                sources.append(operand)
        if operation.carry_in:
            sources.append(self.load_register(operation.carry_in))
        checks.order(self)
        value = match.form.emit(self, match, *sources)
        if operation.carry_out:
            value, carry = value
            self.store_register(operation.carry_out, carry)
        if results:
            values = value if isinstance(value, tuple) else (value,)
            for (formal, operand), one in zip(results, values, strict=False):
                self.write(operand, one, match.type_of(formal.type))
