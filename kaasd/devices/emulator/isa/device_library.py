"""The functions of CUDA's device runtime library that compiled kernels call: assertions, printing, the heap."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.llvm_builder import I1, I8, I32, I64, PTR, VOID, Builder, const, i32, i64
from kaasd.devices.emulator.codegen.structures import (
    CONTEXT,
    OFFSET_BITS,
    OFFSET_MASK,
    PRINTED,
    PRINTED_ARGUMENTS,
    SEGMENT,
    SEGMENT_COUNT,
    Fault,
    Segment,
)


def holds(name: str) -> bool:
    """Whether a function is one of these, for which a thread does not leave its code."""
    return name in _FUNCTIONS


def emit(t: Emitter, name: str, arguments: list[ir.Value]) -> ir.Value:
    """Emit a call and return its result. Raises ``Unsupported`` for a function that the emulated device has not got."""
    function = _FUNCTIONS.get(name)
    if function is None and name.startswith("cuda"):
        raise t.error(f"{name}: dynamic parallelism is not supported on the emulated device")
    if function is None:
        raise t.error(f"function {name} is not defined")
    t.image.one_core |= name != "__assertfail"
    return function(t, *arguments)


def _assert_fail(t: Emitter, message: ir.Value, file: ir.Value, line: ir.Value, function: ir.Value, size: ir.Value) -> ir.Value:
    t.b.put(CONTEXT, t.context, assert_message=message, assert_file=file, assert_line=line, assert_function=function)
    t.fault_if(const(I1, 1), Fault.ASSERT)
    return i32(0)


def _print(t: Emitter, text: ir.Value, arguments: ir.Value) -> ir.Value:
    """Note the call; Python formats it when the run is over. Returns how many conversions the format has."""
    function = t.image.helper("print", ir.FunctionType(I32, [PTR, I64, I64]), lambda b, f: _build_print(t, b, f))
    return t.b.call(function, [t.context, text, arguments])


def _entry(b: Builder, context: ir.Value, address: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Return what is known of an address's segment: host base, size, and the address's offset."""
    entry = b.item(b.get(CONTEXT, context, "table"), SEGMENT.ir, b.lshr(address, i64(OFFSET_BITS)))
    return b.get(SEGMENT, entry, "base"), b.get(SEGMENT, entry, "size"), b.and_(address, i64(OFFSET_MASK))


def _left(b: Builder, size: ir.Value, offset: ir.Value, most: int) -> ir.Value:
    """How many bytes there are from an offset on, at most ``most``."""
    rest = b.select(b.is_("<", offset, size), b.sub(size, offset), i64(0))
    return b.select(b.is_("<", rest, most), rest, i64(most))


def _build_print(t: Emitter, b: Builder, function: ir.Function) -> None:
    context, text, arguments = function.args
    base, size, offset = _entry(b, context, arguments)
    count = _left(b, size, offset, PRINTED_ARGUMENTS)
    used = b.get(CONTEXT, context, "printed_used")
    end = b.add(used, b.add(i64(PRINTED.size), count))
    with b.if_else(b.is_(">", end, b.get(CONTEXT, context, "printed_size"))) as (full, fits):
        with full:
            b.bump(CONTEXT, context, "printed_lost", 1)
        with fits:
            record = b.at(b.get(CONTEXT, context, "printed"), used)
            b.put(PRINTED, record, format=text, size=count)
            copy = t.image.declare("llvm.memcpy.p0.p0.i64", ir.FunctionType(VOID, [PTR, PTR, I64, I1]))
            b.call(copy, [b.at(record, PRINTED.size), b.at(base, offset), count, const(I1, 0)])
            b.put(CONTEXT, context, printed_used=end)
    base, size, offset = _entry(b, context, text)
    conversions, before = b.variable(I32, 0), b.variable(I8, 0)
    done = b.append_basic_block("formatted")
    with b.count(_left(b, size, offset, 1 << 16)) as index:
        letter = b.load_as(I8, b.at(base, b.add(offset, index)), "memory")
        with b.if_then(b.is_("==", letter, 0)):
            b.branch(done)
        is_percent = b.is_("==", letter, ord("%"))
        escaped = b.and_(is_percent, b.is_("==", b.load(before, typ=I8), ord("%")))
        step = b.select(escaped, i32(-1), b.zext(is_percent, I32))
        b.store(b.add(b.load(conversions, typ=I32), step), conversions)
        b.store(b.select(escaped, const(I8, 0), letter), before)
    b.branch(done)
    b.position_at_end(done)
    b.ret(b.load(conversions, typ=I32))


def _malloc(t: Emitter, size: ir.Value) -> ir.Value:
    function = t.image.helper("heap.malloc", ir.FunctionType(I64, [PTR, I64]), lambda b, f: _build_malloc(t, b, f))
    return t.b.call(function, [t.context, size])


def _aligned_malloc(t: Emitter, size: ir.Value, alignment: ir.Value) -> ir.Value:
    """What ``malloc`` returns is aligned to anything, since a segment starts there. An alignment must be a power of two."""
    b = t.b
    wrong = b.or_(b.is_("==", alignment, 0), b.is_("!=", b.and_(alignment, b.sub(alignment, i64(1))), 0))
    return _malloc(t, b.select(wrong, i64(0), size))


def _build_malloc(t: Emitter, b: Builder, function: ir.Function) -> None:
    """Take the next free segment. One just freed comes last, so that a use after it faults."""
    context, size = function.args
    limit = b.sub(b.get(CONTEXT, context, "heap_limit"), b.get(CONTEXT, context, "heap_used"))
    with b.when(b.or_(b.is_("==", size, 0), b.is_(">", size, limit))):
        b.ret(i64(0))
    first, count = int(Segment.HEAP), SEGMENT_COUNT - int(Segment.HEAP)
    with b.count(i64(count)):
        place = b.get(CONTEXT, context, "heap_next")
        b.put(CONTEXT, context, heap_next=b.urem(b.add(place, i64(1)), i64(count)))
        segment = b.add(place, i64(first))
        entry = b.item(b.get(CONTEXT, context, "table"), SEGMENT.ir, segment)
        with b.when(b.is_("==", b.get(SEGMENT, entry, "size"), 0)):
            memory = b.call(t.image.declare("calloc", ir.FunctionType(PTR, [I64, I64])), [i64(1), b.add(size, i64(16))])
            with b.when(b.icmp_unsigned("==", memory, ir.Constant(PTR, None))):
                b.ret(i64(0))
            b.put(SEGMENT, entry, base=memory, size=size, writable_size=size, flags=0)
            b.bump(CONTEXT, context, "heap_used", size)
            b.ret(b.shl(segment, i64(OFFSET_BITS)))
    b.ret(i64(0))


def _free(t: Emitter, address: ir.Value) -> ir.Value:
    b = t.b
    segment = b.lshr(address, i64(OFFSET_BITS))
    entry = b.item(b.get(CONTEXT, t.context, "table"), SEGMENT.ir, segment)
    foreign = b.or_(b.is_("<", segment, Segment.HEAP), b.bits(address, OFFSET_MASK))
    foreign = b.or_(foreign, b.is_("==", b.get(SEGMENT, entry, "size"), 0))
    t.fault_if(b.and_(b.is_("!=", address, 0), foreign), Fault.FREE, address)
    with b.when(b.is_("!=", address, 0)):
        b.bump(CONTEXT, t.context, "heap_used", b.neg(b.get(SEGMENT, entry, "size")))
        t.call("free", VOID, b.get(SEGMENT, entry, "base"))
        b.put(SEGMENT, entry, size=0, writable_size=0)
    return i32(0)


_FUNCTIONS: dict[str, Callable[..., ir.Value]] = {
    "__assertfail": _assert_fail,
    "vprintf": _print,
    "malloc": _malloc,
    "__cuda_syscall_aligned_malloc": _aligned_malloc,
    "free": _free,
}
