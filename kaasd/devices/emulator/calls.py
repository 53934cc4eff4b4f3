"""Calls and returns: frames are pushed and popped by the emitted code, and the scheduler runs whichever function is on top."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from kaasd.devices.emulator import checks, library
from kaasd.devices.emulator.emitter import Emitter
from kaasd.devices.emulator.layout import CONTEXT, FRAME, FUNCTION, LAUNCH, OFFSET_BITS, THREAD, Fault, Slot, Status
from kaasd.devices.emulator.native import I64, PTR, const, i64
from kaasd.devices.emulator.program import Elements, LabelName, Operand, Signature, Storage, Symbol
from kaasd.devices.emulator.types import U64

FUNCTION_SPACING = 16
"""Distance between the device addresses of functions."""


def function_address(index: int) -> int:
    """Return the device address of a module's function number ``index``."""
    return Slot.FUNCTION << OFFSET_BITS | (index + 1) * FUNCTION_SPACING


def stack_end(t: Emitter) -> ir.Value:
    """Where the current function's local memory ends, in the thread's."""
    end = t.b.add(t.b.get(THREAD, t.thread, "local"), i64(t.routine.local_size))
    return t.b.add(end, t.b.get(THREAD, t.thread, "allocated")) if t.routine.allocates else end


def return_from(t: Emitter) -> None:
    """End the routine: the thread exits, or its caller goes on."""
    b, routine = t.b, t.routine
    if routine.is_entry:
        t.end(Status.EXIT)
        return
    for place in routine.signature.results:
        if register := routine.formals.get(place.offset):
            b.store_as(t.load_register(register), t.local_pointer(place.offset), "memory")
    frame = b.get(THREAD, t.thread, "frame")
    b.put(THREAD, t.thread, **{name: b.get(FRAME, frame, name) for name in ("function", "frame", "local", "allocated")})
    t.end(Status.CONTINUE)


def call(t: Emitter, results: Elements | None, target: Operand, arguments: Elements | None, prototype: Operand | None) -> None:
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
    t.suspend(Status.CONTINUE)
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
    value = library.emit(t, name, values)
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
    if isinstance(operand, Symbol) and operand.storage.space == "local":
        if operand.storage.size != place.size:
            raise t.error(f"argument {operand.storage.name} has {operand.storage.size} bytes where {place.size} are needed")
        _copy(t, _inner(t, place), t.local_pointer(operand.storage.offset), place.size)
    else:
        t.b.store_as(t.raw(t.read(operand, place.type)), _inner(t, place), "memory")
    checks.note_written(t, _inner(t, place), place.size)


def _take(t: Emitter, place: Storage, operand: Operand) -> None:
    if isinstance(operand, Symbol) and operand.storage.space == "local":
        if operand.storage.size != place.size:
            raise t.error(f"result {operand.storage.name} has {operand.storage.size} bytes where {place.size} are returned")
        _copy(t, t.local_pointer(operand.storage.offset), _inner(t, place), place.size)
    else:
        t.write(operand, t.b.load_as(place.type.raw, _inner(t, place), "memory"), place.type)
