"""Atomic operations. Threads take turns, so reading, computing and writing is atomic as it stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.llvm_builder import i64
from kaasd.devices.emulator.codegen.structures import OFFSET_BITS, Fault, Segment
from kaasd.devices.emulator.isa.integer import maximum, minimum
from kaasd.devices.emulator.isa.load_store import EVICTION, SCOPE, access, load, space_of, store
from kaasd.devices.emulator.isa.narrow import base_of, each, from_double, sum_to_odd, to_double
from kaasd.devices.emulator.isa.rounding import canonical, flush
from kaasd.devices.emulator.isa.table import instruction
from kaasd.devices.emulator.ptx.forms import Match
from kaasd.devices.emulator.ptx.routine import Memory
from kaasd.devices.emulator.ptx.types import F32, F64

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


@atomic("op{.hint}.type", "[a], b", op=OPERATIONS, type=INTEGERS)
def atom(t: Emitter, m: Match, a: Memory, b: Any, policy: Any) -> Any:
    (pointer,) = access(t, m, a, Fault.ATOMIC)
    old = load(t, pointer, m.type)
    store(t, combine_integers(t, m, old, b), pointer, m.type)
    return old


@atomic("cas{.hint}.type", "[a], b, c", reduces=False, type="b16 b32 b64 b128 u32 u64")
def cas(t: Emitter, m: Match, a: Memory, b: Any, c: Any, policy: Any) -> Any:
    (pointer,) = access(t, m, a, Fault.ATOMIC)
    old = load(t, pointer, m.type)
    store(t, t.b.select(t.b.is_("==", old, b), c, old), pointer, m.type)
    return old


@atomic("exch{.hint}.b128", "[a], b", reduces=False)
def exchange_wide(t: Emitter, m: Match, a: Memory, b: Any, policy: Any) -> Any:
    (pointer,) = access(t, m, a, Fault.ATOMIC)
    old = load(t, pointer, m.type)
    store(t, b, pointer, m.type)
    return old


def add_floats(t: Emitter, m: Match, memory: Memory, old: Any, value: Any) -> Any:
    """The sum, to nearest; single precision in global memory flushes subnormals, as the hardware does."""
    total = canonical(t, t.b.fadd(old, value))
    space, address = t.address(space_of(m), memory)
    if m.type is not F32 or space == "shared":
        return total
    flushed = flush(t, canonical(t, t.b.fadd(flush(t, old), flush(t, value))))
    if space:
        return flushed
    is_shared = t.b.is_("<", t.b.lshr(address, i64(OFFSET_BITS)), Segment.FIRST_FREE)
    return t.b.select(is_shared, total, flushed)


@atomic("add{.hint}.type", "[a], b", type="f32 f64")
def atom_add_float(t: Emitter, m: Match, a: Memory, b: Any, policy: Any) -> Any:
    (pointer,) = access(t, m, a, Fault.ATOMIC)
    old = load(t, pointer, m.type)
    store(t, add_floats(t, m, a, old, b), pointer, m.type)
    return old


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
    old = load(t, pointer, m.type)
    store(t, combine_halves(t, m, old, b), pointer, m.type)
    return old


def _each_element(t: Emitter, m: Match, a: Memory, values: Any, combine: Callable[..., Any]) -> list[Any]:
    """Combine a vector element by element; each is atomic by itself."""
    count = int(m.text("vec")[1:])
    if not isinstance(values, list) or len(values) != count:
        raise t.error(f"a vector of {count} is needed")
    before = []
    for pointer, value in zip(access(t, m, a, Fault.ATOMIC, count), values, strict=True):
        old = load(t, pointer, m.type)
        store(t, combine(t, m, old, value), pointer, m.type)
        before.append(old)
    return before


@atomic("add{.hint}.vec.type", "[a], b", type="f32", space="global", vec="v2 v4 v8")
def atom_vector(t: Emitter, m: Match, a: Memory, b: Any, policy: Any) -> Any:
    return _each_element(t, m, a, b, lambda t, m, old, value: add_floats(t, m, a, old, value))


@atomic("op.noftz{.hint}.vec.type", "[a], b", op="add min max", type=HALVES, space="global", vec="v2 v4 v8")
def atom_half_vector(t: Emitter, m: Match, a: Memory, b: Any, policy: Any) -> Any:
    return _each_element(t, m, a, b, combine_halves)
