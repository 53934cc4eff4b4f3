"""Atomic operations. What is a block's own needs no care, since the threads of a block take turns on one core."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.llvm_builder import i64
from kaasd.devices.emulator.codegen.structures import OFFSET_BITS, Fault, Segment
from kaasd.devices.emulator.isa.integer import maximum, minimum
from kaasd.devices.emulator.isa.load_store import EVICTION, SCOPE, access, count_change, is_of_one_core, load, space_of, store
from kaasd.devices.emulator.isa.narrow import base_of, each, from_double, sum_to_odd, to_double
from kaasd.devices.emulator.isa.rounding import canonical, flush
from kaasd.devices.emulator.isa.table import instruction
from kaasd.devices.emulator.ptx.forms import Match
from kaasd.devices.emulator.ptx.routine import Memory
from kaasd.devices.emulator.ptx.types import F32, F64, Type

ORDER = "relaxed acquire release acq_rel"
SPACE = "global shared shared::cta shared::cluster"
OPERATIONS = "and or xor exch add inc dec min max"
INTEGERS = "b32 b64 u32 u64 s32 s64"
WORDS: dict[str, Any] = {"order": ORDER, "scope": SCOPE, "space": SPACE}


def atomic(form: str, operands: str, reduces: bool = True, **groups: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter an ``atom`` and, where it ``reduces``, a ``red``."""

    def register(emit: Callable[..., Any]) -> Callable[..., Any]:
        words = WORDS | {"hint": EVICTION} | groups
        instruction(f"atom{{.order}}{{.scope}}{{.space}}.{form} d, {operands}{{, *policy}}", **words)(emit)
        if reduces:
            instruction(f"red{{.order}}{{.scope}}{{.space}}.{form} {operands}{{, *policy}}", **words)(emit)
        return emit

    return register


def combine_integers(t: Emitter, m: Match, old: Any, value: Any) -> Any:
    """Return what an operation on integers leaves."""
    b = t.b
    match m["op"]:
        case "and":
            return b.and_(old, value)
        case "or":
            return b.or_(old, value)
        case "xor":
            return b.xor(old, value)
        case "exch":
            return value
        case "add":
            return b.add(old, value)
        case "min":
            return minimum(t, old, value, m.type)
        case "max":
            return maximum(t, old, value, m.type)
        case "inc":
            return b.select(b.is_(">=", old, value), m.type.constant(0), b.add(old, m.type.constant(1)))
    low = b.or_(b.is_("==", old, 0), b.is_(">", old, value))
    return b.select(low, value, b.sub(old, m.type.constant(1)))


_BY_PROCESSOR = {"exch": "xchg", "inc": "uinc_wrap", "dec": "udec_wrap"}
_SIGNLESS = ("and", "or", "xor", "exch", "add", "inc", "dec")


def _ordering(m: Match) -> str:
    return "monotonic" if m["order"] in (None, "relaxed") else m.text("order")


def _exchange(t: Emitter, pointer: Any, kind: Type, expected: Any, value: Any, ordering: str) -> tuple[Any, Any]:
    """Compare and swap; return the bits that were there, and whether it did."""
    after_failure = {"acquire": "acquire", "acq_rel": "acquire"}.get(ordering, "monotonic")
    pair = t.b.cmpxchg(pointer, t.raw(expected), t.raw(value), ordering, after_failure)
    return t.b.extract_value(pair, 0), t.b.extract_value(pair, 1)


def _update(t: Emitter, m: Match, is_own: bool, pointer: Any, combine: Callable[[Any], Any]) -> Any:
    """Replace what is at ``pointer`` by what ``combine`` makes of it, at once for all cores, and return what was there."""
    b, kind = t.b, m.type
    if is_own:
        old = load(t, pointer, kind)
        store(t, combine(old), pointer, kind)
        return old
    first = b.load_strong(kind.raw, pointer, "monotonic", kind.bytes)
    before, again, done = b.block, b.append_basic_block("again"), b.append_basic_block("updated")
    b.branch(again)
    b.position_at_end(again)
    bits = b.phi(kind.raw)
    new = combine(t.cast(bits, kind))
    found, is_done = _exchange(t, pointer, kind, bits, new, _ordering(m))
    bits.add_incoming(first, before)
    bits.add_incoming(found, b.block)
    b.cbranch(is_done, done, again)
    b.position_at_end(done)
    t.go_on()
    if t.watches_stores:
        count_change(t, b.is_("!=", bits, t.raw(new)))
    return t.cast(bits, kind)


@atomic("op{.hint}.type", "[a], b", op=OPERATIONS, type=INTEGERS)
def atom(t: Emitter, m: Match, a: Memory, b: Any, policy: Any) -> Any:
    (pointer,) = access(t, m, a, Fault.ATOMIC)
    if is_of_one_core(t, m, a):
        return _update(t, m, True, pointer, lambda old: combine_integers(t, m, old, b))
    name = m.text("op")
    operation = _BY_PROCESSOR.get(name, name) if name in _SIGNLESS or m.type.signed else f"u{name}"
    old = t.b.atomic_rmw(operation, pointer, b, _ordering(m))
    if t.watches_stores:
        count_change(t, t.b.is_("!=", old, combine_integers(t, m, old, b)))
    return old


@atomic("cas{.hint}.type", "[a], b, c", reduces=False, type="b16 b32 b64 b128 u32 u64")
def cas(t: Emitter, m: Match, a: Memory, b: Any, c: Any, policy: Any) -> Any:
    (pointer,) = access(t, m, a, Fault.ATOMIC)
    if is_of_one_core(t, m, a):
        return _update(t, m, True, pointer, lambda old: t.b.select(t.b.is_("==", old, b), c, old))
    old, is_done = _exchange(t, pointer, m.type, b, c, _ordering(m))
    if t.watches_stores:
        count_change(t, t.b.and_(is_done, t.b.is_("!=", b, c)))
    return old


@atomic("exch{.hint}.b128", "[a], b", reduces=False)
def exchange_wide(t: Emitter, m: Match, a: Memory, b: Any, policy: Any) -> Any:
    (pointer,) = access(t, m, a, Fault.ATOMIC)
    return _update(t, m, is_of_one_core(t, m, a), pointer, lambda old: b)


def _add_floats(t: Emitter, m: Match, memory: Memory, value: Any) -> Callable[[Any], Any]:
    """The sum, to nearest; single precision in global memory flushes subnormals, as the hardware does."""
    space, address = t.address(space_of(m), memory)
    is_shared = None if space else t.b.is_("<", t.b.lshr(address, i64(OFFSET_BITS)), Segment.FIRST_FREE)

    def combine(old: Any) -> Any:
        total = canonical(t, t.b.fadd(old, value))
        if m.type is not F32 or space == "shared":
            return total
        flushed = flush(t, canonical(t, t.b.fadd(flush(t, old), flush(t, value))))
        return flushed if is_shared is None else t.b.select(is_shared, total, flushed)

    return combine


@atomic("add{.hint}.type", "[a], b", type="f32 f64")
def atom_add_float(t: Emitter, m: Match, a: Memory, b: Any, policy: Any) -> Any:
    (pointer,) = access(t, m, a, Fault.ATOMIC)
    return _update(t, m, is_of_one_core(t, m, a), pointer, _add_floats(t, m, a, b))


HALVES = "f16 f16x2 bf16 bf16x2"


def combine_halves(t: Emitter, m: Match, old: Any, value: Any) -> Any:
    """Return what one on f16 or bf16 leaves: sums are rounded to nearest and keep subnormals, the others ignore a NaN."""
    name = base_of(m.type)

    def element(x: Any, y: Any) -> Any:
        p, q = to_double(t, x, name), to_double(t, y, name)
        if m["op"] == "add":
            return from_double(t, sum_to_odd(t, p, q), name)
        return from_double(t, t.call(f"llvm.{m.text('op')}imumnum.f64", F64.ir, p, q), name)

    return each(t, m.type, element, old, value)


@atomic("op.noftz{.hint}.type", "[a], b", op="add", type=HALVES)
def atom_half(t: Emitter, m: Match, a: Memory, b: Any, policy: Any) -> Any:
    (pointer,) = access(t, m, a, Fault.ATOMIC)
    return _update(t, m, is_of_one_core(t, m, a), pointer, lambda old: combine_halves(t, m, old, b))


def _each_element(t: Emitter, m: Match, a: Memory, values: Any, combine: Callable[[Any], Callable[[Any], Any]]) -> list[Any]:
    """Combine a vector element by element, each atomic by itself. ``combine`` makes of a value what combines it with another."""
    count = int(m.text("vec")[1:])
    if not isinstance(values, list) or len(values) != count:
        raise t.error(f"a vector of {count} is needed")
    is_own, pointers = is_of_one_core(t, m, a), access(t, m, a, Fault.ATOMIC, count)
    return [_update(t, m, is_own, pointer, combine(value)) for pointer, value in zip(pointers, values, strict=True)]


@atomic("add{.hint}.vec.type", "[a], b", type="f32", space="global", vec="v2 v4 v8")
def atom_vector(t: Emitter, m: Match, a: Memory, b: Any, policy: Any) -> Any:
    return _each_element(t, m, a, b, partial(_add_floats, t, m, a))


@atomic("op.noftz{.hint}.vec.type", "[a], b", op="add min max", type=HALVES, space="global", vec="v2 v4 v8")
def atom_half_vector(t: Emitter, m: Match, a: Memory, b: Any, policy: Any) -> Any:
    return _each_element(t, m, a, b, lambda value: lambda old: combine_halves(t, m, old, value))
