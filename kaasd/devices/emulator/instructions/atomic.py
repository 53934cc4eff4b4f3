"""Atomic operations. Threads take turns, so reading, computing and writing is atomic as it stands."""

from __future__ import annotations

from typing import Any

from kaasd.devices.emulator.emitter import Emitter
from kaasd.devices.emulator.instructions.integer import maximum, minimum
from kaasd.devices.emulator.instructions.memory import EVICTION, SCOPE, access, load, space_of, store
from kaasd.devices.emulator.instructions.rounding import canonical, flush
from kaasd.devices.emulator.layout import Fault
from kaasd.devices.emulator.program import Memory
from kaasd.devices.emulator.table import Match, instruction
from kaasd.devices.emulator.types import F32

ORDER = "relaxed acquire release acq_rel"
SPACE = "global shared shared::cta"
OPERATIONS = "and or xor exch add inc dec min max"
INTEGERS = "b32 b64 u32 u64 s32 s64"
HEAD = "{.order}{.scope}{.space}"
WORDS: dict[str, Any] = {"order": ORDER, "scope": SCOPE, "space": SPACE}


def _combine(t: Emitter, m: Match, old: Any, value: Any) -> Any:
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


@instruction(f"atom{HEAD}.op{{.hint}}.type d, [a], b{{, *policy}}", op=OPERATIONS, type=INTEGERS, hint=EVICTION, **WORDS)
@instruction(f"red{HEAD}.op{{.hint}}.type [a], b{{, *policy}}", op=OPERATIONS, type=INTEGERS, hint=EVICTION, **WORDS)
def atom(t: Emitter, m: Match, a: Memory, b: Any, policy: Any) -> Any:
    (pointer,) = access(t, m, a, Fault.ATOMIC)
    old = load(t, pointer, m.type)
    store(t, _combine(t, m, old, b), pointer, m.type)
    return old


@instruction(f"atom{HEAD}.cas{{.hint}}.type d, [a], b, c{{, *policy}}", type="b16 b32 b64 b128 u32 u64", hint=EVICTION, **WORDS)
def cas(t: Emitter, m: Match, a: Memory, b: Any, c: Any, policy: Any) -> Any:
    (pointer,) = access(t, m, a, Fault.ATOMIC)
    old = load(t, pointer, m.type)
    store(t, t.b.select(t.b.is_("==", old, b), c, old), pointer, m.type)
    return old


@instruction(f"atom{HEAD}.exch{{.hint}}.b128 d, [a], b{{, *policy}}", hint=EVICTION, **WORDS)
def exchange_wide(t: Emitter, m: Match, a: Memory, b: Any, policy: Any) -> Any:
    (pointer,) = access(t, m, a, Fault.ATOMIC)
    old = load(t, pointer, m.type)
    store(t, b, pointer, m.type)
    return old


def add_floats(t: Emitter, m: Match, old: Any, value: Any) -> Any:
    """The sum, to nearest; single precision outside shared memory flushes subnormals, as the hardware does."""
    flushes = m.type is F32 and space_of(m) != "shared"
    if flushes:
        old, value = flush(t, old), flush(t, value)
    total = canonical(t, t.b.fadd(old, value))
    return flush(t, total) if flushes else total


@instruction(f"atom{HEAD}.add{{.hint}}.type d, [a], b{{, *policy}}", type="f32 f64", hint=EVICTION, **WORDS)
@instruction(f"red{HEAD}.add{{.hint}}.type [a], b{{, *policy}}", type="f32 f64", hint=EVICTION, **WORDS)
def atom_add_float(t: Emitter, m: Match, a: Memory, b: Any, policy: Any) -> Any:
    (pointer,) = access(t, m, a, Fault.ATOMIC)
    old = load(t, pointer, m.type)
    store(t, add_floats(t, m, old, b), pointer, m.type)
    return old
