"""Steps of programs that use memory: loads, stores, atomics, and values that pass between threads.

Every thread has SLOT bytes of each area of its own, new ones for each step.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from kaasd.devices.emulator.ptx.forms import Match
from kaasd.devices.emulator.ptx.types import TYPES
from tests.fuzz import forms
from tests.fuzz.program import CONVERGE, Program, Step
from tests.fuzz.values import THREADS

SLOT = 16
BASES = {"shared": "area", "global": "%scratch"}
"""Where the memory of a program begins."""
_ORDERS = ("", ".volatile", ".relaxed.cta", ".relaxed.gpu", ".weak")
_LOADS = (".ca", ".cg", ".cs", ".lu", ".cv", ".L1::evict_first", ".L2::128B", *_ORDERS)
_STORES = (".wb", ".cg", ".cs", ".wt", ".L1::no_allocate", *_ORDERS)


def area(program: Program, step: Step, space: str, generic: bool | None = None) -> tuple[str, str]:
    """Return the space to name, empty for a generic address, and a register that points to this thread's slot."""
    pointer = program.fresh(64, "u64").name
    if space == "local":
        step.lines += [f"mov.u64 {pointer}, stack;", f"add.u64 {pointer}, {pointer}, {program.take('local', SLOT)};"]
    else:
        step.lines += point("%thread", BASES[space], program.take(space, SLOT * THREADS), pointer=pointer)
    if program.rng.random() < 0.3 if generic is None else generic:
        step.lines.append(f"cvta.{space}.u64 {pointer}, {pointer};")
        return "", pointer
    return f".{space}", pointer


def local(program: Program) -> None:
    """A store and loads of local memory."""
    _store_and_load(program, "local")


def stack(program: Program) -> None:
    """Local memory of a size that differs between threads, given back in the end."""
    with program.step("alloca") as step:
        mark, size, room = (program.fresh(64, "u64").name for _ in range(3))
        alignment, lowest = program.rng.choice((8, 16, 64)), program.fresh(64, "u64")
        step.lines += [f"stacksave.u64 {mark};", f"and.b64 {size}, {program.source(TYPES['u64'], False)}, 0x38;"]
        step.lines += [f"add.u64 {size}, {size}, 8;", f"alloca.u64 {room}, {size}, {alignment};"]
        step.lines += [f"and.b64 {lowest.name}, {room}, {alignment - 1};", f"add.u64 {size}, {size}, {room};"]
        step.lines += [f"st.local.b64 [{size}+-8], {program.source(TYPES['u64'], False)};", f"st.local.b32 [{room}], %thread;"]
        first, last = (program.fresh(64, "u64") for _ in range(2))
        step.lines += [f"ld.local.b64 {last.name}, [{size}+-8];", f"ld.local.u32 {first.name}, [{room}];"]
        step.lines.append(f"stackrestore.u64 {mark};")
        step.writes += [lowest, first, last]


def memory(program: Program) -> None:
    """A store and loads of a thread's own shared or global memory."""
    _store_and_load(program, program.rng.choice(("shared", "global")))


def _modifier(rng: random.Random, space: str, choices: tuple[str, ...]) -> str:
    """Caching and ordering, which PTX has for global memory."""
    return rng.choice(choices) if space == ".global" else ""


def _ordered(opcode: str, modifier: str, space: str) -> str:
    return f"{opcode}{modifier}{space}" if modifier in _ORDERS else f"{opcode}{space}{modifier}"


def _store_and_load(program: Program, where: str) -> None:
    rng = program.rng
    with program.step(f"ld st {where}") as step:
        space, pointer = area(program, step, where)
        vector, bits = rng.choice((("", 64), (".v2", 32), (".v2", 64), (".v4", 32), (".v4", 16), ("", 32)))
        count = int(vector[2:] or 1)
        parts = [program.source(TYPES[f"u{bits}"], False) for _ in range(count)]
        value = f"{{{', '.join(parts)}}}" if vector else parts[0]
        step.lines += [f"st{space}.b64 [{pointer}], 0;", f"st{space}.b64 [{pointer}+8], -1;"]
        step.lines.append(f"{_ordered('st', _modifier(rng, space, _STORES), space)}{vector}.b{bits} [{pointer}], {value};")
        narrow = program.source(TYPES["u32"], False)
        step.lines.append(f"st{space}.{rng.choice(('u8', 'b16', 's8'))} [{pointer}+{2 * rng.randrange(8)}], {narrow};")
        for _ in range(3):
            kind = TYPES[rng.choice(("u8", "s8", "u16", "s16", "u32", "s32", "b64", "f32", "f64", "b16"))]
            widths = [width for width in (16, 32, 64) if width >= kind.bits and (kind.kind in "us" or width == kind.bits)]
            result = program.fresh(rng.choice(widths), kind.name if kind.bits > 8 else "u16")
            offset = kind.bytes * rng.randrange(SLOT // kind.bytes)
            opcode = _ordered("ld", _modifier(rng, space, _LOADS), space)
            step.lines.append(f"{opcode}.{kind.name} {result.name}, [{pointer}+{offset}];")
            step.writes.append(result)


def exchange(program: Program) -> None:
    """Values that pass from thread to thread through shared memory, with a barrier between."""
    rng = program.rng
    with program.step("exchange") as step:
        step.together = True
        result, lane, first = (program.fresh(bits, f"u{bits}") for bits in (64, 32, 1))
        start = program.taken["shared"]
        space, pointer = area(program, step, "shared")
        step.lines += [f"st{space}.b64 [{pointer}], {program.source(TYPES['u64'], False)};", CONVERGE]
        if rng.random() < 0.25:  # the second warp waits for the first, whose values it reads
            step.lines += [f"and.b32 {lane.name}, %thread, 31;", f"setp.lt.u32 {first.name}, %thread, 32;"]
            step.lines += [f"@{first.name} {rng.choice(_ARRIVALS)} 2, 64;", f"@!{first.name} {rng.choice(_BARRIERS)} 2, 64;"]
        else:
            step.lines.append(rng.choice(("bar.sync 0;", "barrier.sync 1;", *(f"{barrier} 3, 64;" for barrier in _BARRIERS))))
            step.lines.append(f"xor.b32 {lane.name}, %thread, {rng.choice((1, 2, 8, 32, 33, 63))};")
        step.lines += [*point(lane.name, "area", start), f"ld.shared.b64 {result.name}, [%at];"]
        step.writes.append(result)


_BARRIERS = ("bar.sync", "barrier.cta.sync", "barrier.sync.aligned")
_ARRIVALS = ("bar.arrive", "barrier.cta.arrive", "barrier.arrive.aligned")


def point(thread: str, base: str, start: int, size: int = SLOT, pointer: str = "%at") -> list[str]:
    """Lines that make a pointer to a thread's slot of a size, from ``start`` on."""
    return [
        f"mov.u64 {pointer}, {base};",
        f"mad.wide.u32 {pointer}, {thread}, {size}, {pointer};",
        f"add.u64 {pointer}, {pointer}, {start};",
    ]


def whereabouts(program: Program) -> None:
    """Generic addresses in each kind of memory, and tests for what they are in."""
    rng = program.rng
    with program.step("isspacep") as step:
        for where in rng.sample(("global", "shared", "local", "const"), 2):
            if where == "const":
                pointer = program.fresh(64, "u64").name
                step.lines += [f"mov.u64 {pointer}, numbers;", f"cvta.const.u64 {pointer}, {pointer};"]
            else:
                _, pointer = area(program, step, where, generic=True)
            for tested in ("global", "shared", "shared::cta", "local", "const"):
                result = program.fresh(1, "pred")
                step.lines.append(f"isspacep.{tested} {result.name}, {pointer};")
                step.writes.append(result)


def own_atomics(program: Program) -> None:
    """An atomic operation on memory of the thread's own: what was there before counts too."""
    rng = program.rng
    where = rng.choice(("global", "shared"))
    _on_own(program, where, forms.atomic(rng, where, rng.choice(("atom", "atom", "red"))))


def vector_atomics(program: Program) -> None:
    """The same of a vector."""
    _on_own(program, "global", forms.atomic(program.rng, "global", program.rng.choice(("atom", "red")), vector=True))


def _on_own(program: Program, where: str, match: Match) -> None:
    with program.step(match.mnemonic) as step:
        space, pointer = area(program, step, where, generic=match["space"] is None)
        bits, name = match.type.bits, match.type.name
        count = int((match["vec"] or "v1")[1:])
        old = [program.fresh(bits, name) for _ in range(count if match.mnemonic.startswith("atom") else 0)]
        new = [program.fresh(bits, name) for _ in range(count)]
        places = [f"[{pointer}+{bits // 8 * index}]" for index in range(count)]
        step.lines += [f"st{space}.b{bits} {place}, {program.source(match.type, False)};" for place in places]
        slots = [slot for slot in match.form.operands if slot.kind == "value" and not slot.optional]
        sources = [_vector(program.source(match.type, False) for _ in range(count)) for _ in slots]
        results = [_vector(result.name for result in old)] if old else []
        step.lines.append(f"{match.mnemonic} {', '.join([*results, f'[{pointer}]', *sources])};")
        step.lines += [f"ld{space}.b{bits} {result.name}, {place};" for result, place in zip(new, places, strict=True)]
        step.writes += [*old, *new]
        step.lines += [line for result in step.writes for line in program.settle_nan(match, result)]


def _vector(names: Iterable[str]) -> str:
    several = list(names)
    return several[0] if len(several) == 1 else f"{{{', '.join(several)}}}"


def common_atomics(program: Program) -> None:
    """Atomic operations of all threads on one place, such that their order does not matter."""
    rng = program.rng
    where = rng.choice(("global", "shared"))
    while True:
        match = forms.atomic(rng, where, rng.choice(("red", "atom")))
        if match["op"] in ("add", "and", "or", "xor", "min", "max") and match.type.kind in "bus" and match["space"]:
            break
    with program.step(match.mnemonic) as step:
        step.together = True
        start = program.taken[where]
        area(program, step, where)
        bits = match.type.bits
        result, first = program.fresh(bits, match.type.name), program.fresh(1, "pred")
        unused = f"{program.fresh(bits, match.type.name).name}, " if match.mnemonic.startswith("atom") else ""
        step.lines = [*point("0", BASES[where], start), f"setp.eq.u32 {first.name}, %thread, 0;"]
        step.lines.append(f"@{first.name} st.{where}.b{bits} [%at], {program.source(match.type, False)};")
        step.lines += [CONVERGE, "bar.sync 0;", f"{match.mnemonic} {unused}[%at], {program.source(match.type, False)};"]
        step.lines += ["bar.sync 0;", f"ld.{where}.b{bits} {result.name}, [%at];"]
        step.writes.append(result)
