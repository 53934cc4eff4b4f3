"""Calls, and the local memory that functions take as they run: frames are pushed and popped by the emitted code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from llvmlite import ir

from kaasd.devices.emulator.codegen import checks
from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.frames import FUNCTION_SPACING, function_address, stack_end
from kaasd.devices.emulator.codegen.llvm_builder import I64, PTR, const, i64
from kaasd.devices.emulator.codegen.structures import CONTEXT, FRAME, FUNCTION, LAUNCH, THREAD, Fault, Status
from kaasd.devices.emulator.isa import device_library
from kaasd.devices.emulator.isa.table import instruction
from kaasd.devices.emulator.ptx import ast
from kaasd.devices.emulator.ptx.forms import Match
from kaasd.devices.emulator.ptx.routine import Elements, LabelName, Operand, Signature, Storage, Symbol
from kaasd.devices.emulator.ptx.types import U64

DEFAULT_ALIGNMENT = 8
"""Of ``alloca``, in bytes."""


@instruction("call{.uni} *dresults, *target, *arguments, *prototype", suspends=True)
def call(
    t: Emitter, m: Match, results: Elements | None, target: Operand, arguments: Elements | None, prototype: Operand | None
) -> None:
    """Push the callee's frame, let it run, and take its results."""
    b = t.b
    if isinstance(target, LabelName) and target.name in t.image.declared and target.name not in t.image.signatures:
        _call_library(t, target.name, results, arguments)
        return
    signature, entry = _callee(t, target, prototype)
    own_frame = b.load(t.image.frame_sizes[t.routine.name], typ=I64)
    frame, local = b.get(THREAD, t.thread, "frame"), b.get(THREAD, t.thread, "local")
    inner_frame, inner_local = b.at(frame, own_frame), stack_end(t)
    limit = b.get(LAUNCH, b.get(CONTEXT, t.context, "launch"), "local_stride")
    t.fault_if(b.is_(">", b.add(inner_local, b.get(FUNCTION, entry, "local_size")), limit), Fault.STACK)
    end = b.at(inner_frame, b.get(FUNCTION, entry, "frame_size"))
    beyond = b.is_(">", b.ptrtoint(end, I64), b.ptrtoint(b.get(THREAD, t.thread, "frame_end"), I64))
    t.fault_if(beyond, Fault.STACK)
    places = _pair(t, signature.parameters, arguments, "arguments")
    for place, operand in places:
        _pass(t, place, operand)
    allocated = b.get(THREAD, t.thread, "allocated")
    function = b.get(THREAD, t.thread, "function")
    b.put(FRAME, inner_frame, resume=0, function=function, frame=frame, local=local, allocated=allocated)
    b.put(THREAD, t.thread, function=b.get(FUNCTION, entry, "code"), frame=inner_frame, local=inner_local, allocated=0)
    t.suspend(Status.CALL)
    for place, operand in _pair(t, signature.results, results, "results"):
        _take(t, place, operand)


def _call_library(t: Emitter, name: str, results: Elements | None, arguments: Elements | None) -> None:
    """Emit a call of a function of the device's runtime library."""
    signature = t.image.declared[name]
    values = []
    for place, operand in _pair(t, signature.parameters, arguments, "arguments"):
        if isinstance(operand, Symbol) and operand.storage.space == "local":
            values.append(t.b.load_as(place.type.raw, t.local_pointer(operand.storage.offset), "memory"))
        else:
            values.append(t.raw(t.read(operand, place.type)))
    value = device_library.emit(t, name, values)
    for place, operand in _pair(t, signature.results, results, "results"):
        if isinstance(operand, Symbol):
            t.b.store_as(t.b.resize(value, place.type.raw), t.local_pointer(operand.storage.offset), "memory")
        else:
            t.write(operand, t.b.resize(value, place.type.raw), place.type)


def _callee(t: Emitter, target: Operand, prototype: Operand | None) -> tuple[Signature, ir.Value]:
    """Return the signature called and the address of the callee's entry in the table of functions."""
    b, image = t.b, t.image
    if isinstance(target, LabelName):
        if target.name not in image.signatures:
            raise t.error(f"function {target.name} is not defined")
        index = list(image.function_addresses).index(target.name)
        return image.signatures[target.name], b.item(image.function_table, FUNCTION.ir, index)
    signature = t.routine.prototypes.get(prototype.name) if isinstance(prototype, LabelName) else None
    if signature is None:
        if not isinstance(prototype, LabelName) or prototype.name not in t.routine.lists:
            raise t.error("an indirect call needs a .callprototype or .calltargets")
        signature = image.signatures[t.routine.lists[prototype.name][0]]
    address = t.read(target, U64)
    offset = b.sub(address, i64(function_address(0)))
    index = b.lshr(offset, i64(FUNCTION_SPACING.bit_length() - 1))
    wrong = b.or_(b.is_(">=", index, len(image.function_addresses)), b.bits(offset, FUNCTION_SPACING - 1))
    t.fault_if(wrong, Fault.CALL, address)
    entry = b.item(image.function_table, FUNCTION.ir, index)
    results = max((place.offset + place.size for place in signature.results), default=0)
    unlike = b.or_(
        b.is_("!=", b.get(FUNCTION, entry, "parameter_size"), signature.size),
        b.is_("!=", b.get(FUNCTION, entry, "result_size"), results),
    )
    missing = b.icmp_unsigned("==", b.get(FUNCTION, entry, "code"), ir.Constant(PTR, None))
    t.fault_if(b.or_(unlike, missing), Fault.CALL, address)
    return signature, entry


def _pair(t: Emitter, places: Sequence[Storage], operands: Elements | None, what: str) -> list[tuple[Storage, Operand]]:
    items = operands.items if operands else ()
    if len(items) != len(places):
        raise t.error(f"{len(places)} {what} are needed, not {len(items)}")
    return list(zip(places, items, strict=True))


def _inner(t: Emitter, place: Storage) -> ir.Value:
    """The host address of a place in the callee's local memory, seen from the caller."""
    return t.b.at(t.b.get(THREAD, t.thread, "locals"), t.b.add(stack_end(t), i64(place.offset)))


def _copy(t: Emitter, target: ir.Value, source: ir.Value, size: int) -> None:
    copy = t.intrinsic("llvm.memcpy.p0.p0.i64", ir.VoidType(), PTR, PTR, I64, ir.IntType(1))
    t.b.call(copy, [target, source, i64(size), const(ir.IntType(1), 0)])


def _pass(t: Emitter, place: Storage, operand: Operand) -> None:
    if place.by_address:
        if not isinstance(operand, Symbol) or operand.storage.space != "local":
            raise t.error("an argument for a parameter of any size must be a variable in .param or .local")
        t.b.store_as(t.address_of(operand.storage, operand.offset), _inner(t, place), "memory")
    elif isinstance(operand, Elements):
        for item, offset in _elements(t, place, operand):
            t.b.store_as(t.raw(t.read(item, place.type)), t.b.at(_inner(t, place), offset), "memory")
    elif isinstance(operand, Symbol) and operand.storage.space == "local":
        if operand.storage.size != place.size:
            raise t.error(f"argument {operand.storage.name} has {operand.storage.size} bytes where {place.size} are needed")
        _copy(t, _inner(t, place), t.local_pointer(operand.storage.offset), place.size)
    else:
        t.b.store_as(t.raw(t.read(operand, place.type)), _inner(t, place), "memory")
    checks.note_written(t, _inner(t, place), place.size)


def _elements(t: Emitter, place: Storage, operand: Elements) -> Iterator[tuple[Operand, int]]:
    """Yield the elements of a vector that is passed or taken, and where each lies in its place."""
    size = place.type.bytes
    if len(operand.items) * size != place.size:
        raise t.error(f"a vector of {len(operand.items)} elements does not fit {place.size // size}")
    yield from zip(operand.items, range(0, place.size, size), strict=True)


def _take(t: Emitter, place: Storage, operand: Operand) -> None:
    if isinstance(operand, Elements):
        for item, offset in _elements(t, place, operand):
            t.write(item, t.b.load_as(place.type.raw, t.b.at(_inner(t, place), offset), "memory"), place.type)
    elif isinstance(operand, Symbol) and operand.storage.space == "local":
        if operand.storage.size != place.size:
            raise t.error(f"result {operand.storage.name} has {operand.storage.size} bytes where {place.size} are returned")
        _copy(t, t.local_pointer(operand.storage.offset), _inner(t, place), place.size)
    else:
        t.write(operand, t.b.load_as(place.type.raw, _inner(t, place), "memory"), place.type)


def _move_end(t: Emitter, end: Any) -> None:
    """Let the function's local memory end elsewhere, past its variables."""
    by = t.b.sub(end, stack_end(t))
    t.b.bump(THREAD, t.thread, "allocated", by)


@instruction("alloca.type d, a{, *alignment}", type="u32 u64")
def alloca(t: Emitter, m: Match, size: Any, alignment: Any) -> Any:
    b = t.b
    multiple = DEFAULT_ALIGNMENT if alignment is None else alignment.value if isinstance(alignment, ast.Integer) else 0
    if multiple < 1 or multiple & (multiple - 1):
        raise t.error("the alignment must be a power of two")
    start = b.and_(b.add(stack_end(t), i64(multiple - 1)), i64(-multiple))
    end = t.call("llvm.uadd.sat.i64", I64, start, b.resize(size, I64))
    limit = b.get(LAUNCH, b.get(CONTEXT, t.context, "launch"), "local_stride")
    t.fault_if(b.is_(">", end, limit), Fault.STACK)
    _move_end(t, b.and_(b.add(end, i64(15)), i64(-16)))
    return b.resize(start, m.type.raw)


@instruction("stacksave.type d", type="u32 u64")
def stacksave(t: Emitter, m: Match) -> Any:
    return t.b.resize(stack_end(t), m.type.raw)


@instruction("stackrestore.type a", type="u32 u64")
def stackrestore(t: Emitter, m: Match, saved: Any) -> None:
    """Give back what was taken since ``stacksave``."""
    end = t.b.resize(saved, I64)
    start = t.b.add(t.b.get(THREAD, t.thread, "local"), i64(t.routine.local_size))
    t.fault_if(t.b.or_(t.b.is_("<", end, start), t.b.is_(">", end, stack_end(t))), Fault.STACK)
    if t.routine.allocates:
        _move_end(t, end)
