"""The steps of programs: single instructions, control flow, memory, atomics, and work of several threads."""

from __future__ import annotations

import random
from collections.abc import Callable

from kaasd.devices.emulator.types import TYPES
from tests.fuzz import forms
from tests.fuzz.layout import Register
from tests.fuzz.program import Program, Step
from tests.fuzz.values import THREADS

FUNCTIONS = """
.func (.param .b32 result) twist(.param .b32 a, .param .b64 b)
{
.reg .b32 %a, %c; .reg .b64 %b; .reg .pred %q;
ld.param.b32 %a, [a]; ld.param.b64 %b, [b];
cvt.u32.u64 %c, %b; setp.lt.s32 %q, %a, %c;
@%q bra less;
mad.lo.u32 %a, %a, 3, %c; bra end;
less: xor.b32 %a, %a, %c;
end: st.param.b32 [result], %a;
ret;
}
.func (.param .b32 result) count(.param .b32 a, .param .b64 b)
{
.reg .b32 %a, %c; .reg .b64 %b; .reg .pred %q;
ld.param.b32 %a, [a]; ld.param.b64 %b, [b];
and.b32 %a, %a, 7; setp.eq.u32 %q, %a, 0;
mov.b32 %c, 1;
@%q bra end;
sub.u32 %a, %a, 1;
{ .param .b32 x; .param .b64 y; .param .b32 z;
st.param.b32 [x], %a; st.param.b64 [y], %b; call.uni (z), count, (x, y); ld.param.b32 %c, [z]; }
cvt.u32.u64 %a, %b; mad.lo.u32 %c, %c, 5, %a;
end: st.param.b32 [result], %c;
ret;
}
.const .align 8 .b64 numbers[8] = {1, -1, 0x123456789ABCDEF0, 0x8000000000000000, 3, 5, 7, 11};
.global .align 8 .u16 halves[8] = {0, 1, 0x7FFF, 0x8000, 0xFFFF, 0x3C00, 0x7C00, 0xFE00};
"""
"""What the programs of a module call and read. ``count`` calls itself."""

_SPECIAL = "%tid.x %ntid.x %ctaid.x %nctaid.x %laneid %lanemask_eq %lanemask_lt %lanemask_le %lanemask_gt %lanemask_ge %tid.y"


def make(seed: str) -> Program:
    """Return the program of a seed."""
    program = Program(seed)
    rng = program.rng
    for _ in range(rng.randrange(5, 9)):
        single(program)
    blocks: list[Callable[[Program], None]] = [branch, loop, switch, guarded, call, local, pack, move, wide, tables]
    shared: list[Callable[[Program], None]] = [collective, exchange, own_atomics, common_atomics, memory]
    rng.choice(blocks)(program)
    if rng.random() < 0.6:
        rng.choice(shared)(program)
    return program


def single(program: Program) -> None:
    """One instruction of the table."""
    match = forms.draw(program.rng)
    with program.step(match.mnemonic) as step:
        step.lines, step.writes = program.instruction(match)
        step.bound = forms.bound(match.mnemonic)


def collective(program: Program) -> None:
    """A shuffle, vote, match or reduction of whole warps or of the block."""
    match = forms.draw(program.rng, collective=True)
    with program.step(match.mnemonic) as step:
        step.together = True
        step.lines, step.writes = program.instruction(match)


def _copies(program: Program, step: Step) -> list[Register]:
    """Begin a block: copy some registers, so that the block may change the copies."""
    copies = []
    for kind in program.rng.sample(["u32", "f32", "s64", "f64", "u16", "s32", "u64", "pred"], 3):
        source = program.register(TYPES[kind])
        copy = program.fresh(source.bits, source.kind)
        step.lines.append(f"mov.{_move(copy.bits)} {copy.name}, {program.use(source)};")
        copies.append(copy)
    for copy in copies:
        program.keep(copy)
    step.writes += copies
    return copies


def _move(bits: int) -> str:
    return "pred" if bits == 1 else f"b{bits}"


def _change(program: Program, copies: list[Register], count: int, guard: str = "") -> list[str]:
    """Return lines that compute something and leave it in the copies."""
    lines: list[str] = []
    for _ in range(count):
        while True:
            match = forms.draw(program.rng)
            if forms.bound(match.mnemonic) is None and not forms.may_be_fused(match.mnemonic):
                code, results = program.instruction(match)
                targets = [copy for copy in copies if copy.bits == results[0].bits]
                if targets:
                    break
        target = program.rng.choice(targets)
        code.append(f"mov.{_move(target.bits)} {target.name}, {results[0].name};")
        lines += [f"{guard}{line}" for line in code] if guard and len(code) == 2 else [*code[:-1], f"{guard}{code[-1]}"]
    return lines


def branch(program: Program) -> None:
    """An if with two sides, on a condition that differs between threads."""
    with program.step("branch") as step:
        copies = _copies(program, step)
        condition = program.use(program.register(TYPES["pred"]))
        other, end = program.label(), program.label()
        negated = "!" * program.rng.getrandbits(1)
        step.lines += [f"@{negated}{condition} bra {other};", *_change(program, copies, 2), f"bra {end};", f"{other}:"]
        step.lines += [*_change(program, copies, 2), f"{end}:"]


def loop(program: Program) -> None:
    """A loop whose count differs between threads, left early by some."""
    with program.step("loop") as step:
        copies = _copies(program, step)
        count, index, left = program.fresh(32, "u32"), program.fresh(32, "u32"), program.fresh(1, "pred")
        top, end = program.label(), program.label()
        step.lines += [f"and.b32 {count.name}, {program.source(TYPES['u32'], False)}, 7;", f"mov.u32 {index.name}, 0;", f"{top}:"]
        step.lines += [f"setp.ge.u32 {left.name}, {index.name}, {count.name};", f"@{left.name} bra {end};"]
        step.lines += _change(program, copies, 2)
        if program.rng.getrandbits(1):
            condition = program.use(program.register(TYPES["pred"]))
            step.lines += [f"@{condition} bra {end};", *_change(program, copies, 1)]
        step.lines += [f"add.u32 {index.name}, {index.name}, 1;", f"bra {top};", f"{end}:"]
        step.writes.append(index)


def switch(program: Program) -> None:
    """A jump through a table."""
    with program.step("switch") as step:
        copies = _copies(program, step)
        index = program.fresh(32, "u32")
        cases = [program.label() for _ in range(program.rng.choice((2, 4)))]
        end, targets = program.label(), program.label()
        step.lines.append(f"and.b32 {index.name}, {program.source(TYPES['u32'], False)}, {len(cases) - 1};")
        step.lines += [f"{targets}: .branchtargets {', '.join(cases)};", f"brx.idx {index.name}, {targets};"]
        for case in cases:
            step.lines += [f"{case}:", *_change(program, copies, 1)]
            if program.rng.random() < 0.7:
                step.lines.append(f"bra {end};")
        step.lines.append(f"{end}:")


def guarded(program: Program) -> None:
    """Instructions under a predicate."""
    with program.step("guarded") as step:
        copies = _copies(program, step)
        condition = program.use(program.register(TYPES["pred"]))
        guard = f"@{'!' * program.rng.getrandbits(1)}{condition} "
        step.lines += [line for _ in range(3) for line in _change(program, copies, 1, guard)]


def call(program: Program) -> None:
    """A call of a function, by name."""
    with program.step("call") as step:
        result = program.fresh(32, "u32")
        name = program.rng.choice(("twist", "count"))
        a, b = program.source(TYPES["u32"]), program.source(TYPES["u64"])
        step.lines += ["{ .param .b32 x; .param .b64 y; .param .b32 z;", f"st.param.b32 [x], {a};", f"st.param.b64 [y], {b};"]
        step.lines += [f"call (z), {name}, (x, y);", f"ld.param.b32 {result.name}, [z]; }}"]
        step.writes.append(result)


def pack(program: Program) -> None:
    """Registers put together and taken apart by moves."""
    with program.step("mov pack") as step:
        whole, part, count = program.rng.choice(((32, 16, 2), (64, 32, 2), (64, 16, 4), (128, 64, 2), (128, 32, 4)))
        packed = program.fresh(whole, f"b{whole}")
        parts = ", ".join(program.source(TYPES[f"u{part}"], False) for _ in range(count))
        step.lines.append(f"mov.b{whole} {packed.name}, {{{parts}}};")
        again, small, number = program.rng.choice([split for split in _SPLITS if split[0] == whole])
        pieces = [program.fresh(small, f"u{small}") for _ in range(number)]
        step.lines.append(f"mov.b{again} {{{', '.join(piece.name for piece in pieces)}}}, {packed.name};")
        step.writes += [packed, *pieces]


_SPLITS = ((32, 16, 2), (64, 32, 2), (64, 16, 4), (128, 64, 2), (128, 32, 4))


def move(program: Program) -> None:
    """Moves of constants and special registers."""
    with program.step("mov") as step:
        name = program.rng.choice(_SPECIAL.split())
        for kind, text in (("u32", name), *((kind, program.source(TYPES[kind])) for kind in ("f32", "f64", "s16", "s64"))):
            result = program.fresh(TYPES[kind].bits, kind)
            step.lines.append(f"mov.{kind} {result.name}, {text};")
            step.writes.append(result)


def wide(program: Program) -> None:
    """Addition, subtraction or multiplication by parts, with a carry between them: where the table has it, else plain."""
    with program.step("wide") as step:
        kind = program.rng.choice(("u32", "s32", "u64", "s64"))
        first, second = program.rng.choice(_CARRIED)
        if not forms.has(first, kind):
            first, second = first.removesuffix(".cc"), first.removesuffix(".cc")
        results = [program.fresh(TYPES[kind].bits, kind) for _ in range(2)]
        for opcode, result in zip((first, second), results, strict=True):
            count = 3 if opcode.startswith("mad") else 2
            sources = ", ".join(program.source(TYPES[kind], False) for _ in range(count))
            step.lines.append(f"{opcode}.{kind} {result.name}, {sources};")
        step.writes += results


_CARRIED = [("add.cc", "addc"), ("sub.cc", "subc"), ("mad.lo.cc", "madc.hi"), ("mad.hi.cc", "madc.lo"), ("add.cc", "addc.cc")]


def tables(program: Program) -> None:
    """Loads from initialised variables of the module."""
    with program.step("ld const") as step:
        index, long, base = (program.fresh(64, "u64") for _ in range(3))
        half = program.fresh(program.rng.choice((16, 32)), "u16")
        step.lines += [
            f"and.b64 {index.name}, {program.source(TYPES['u64'], False)}, 7;",
            f"shl.b64 {index.name}, {index.name}, 3;",
        ]
        step.lines += [f"mov.u64 {base.name}, numbers;", f"add.u64 {base.name}, {base.name}, {index.name};"]
        step.lines += [f"ld.const.u64 {long.name}, [{base.name}];", f"shr.u64 {index.name}, {index.name}, 2;"]
        kind = program.rng.choice(("u16", "s16"))
        step.lines += [f"mov.u64 {base.name}, halves;", f"add.u64 {base.name}, {base.name}, {index.name};"]
        step.lines += [f"ld.global.{kind} {half.name}, [{base.name}];"]
        step.writes += [long, half]


# Memory: every thread has SLOT bytes of each area of its own, new ones for each step.

SLOT = 16
_ORDERS = ("", ".volatile", ".relaxed.cta", ".relaxed.gpu", ".weak")
_LOADS = (".ca", ".cg", ".cs", ".lu", ".cv", ".L1::evict_first", ".L2::128B", *_ORDERS)
_STORES = (".wb", ".cg", ".cs", ".wt", ".L1::no_allocate", *_ORDERS)


def _area(program: Program, step: Step, space: str, generic: bool | None = None) -> tuple[str, str]:
    """Return the space to name, empty for a generic address, and a register that points to this thread's slot."""
    size = SLOT * THREADS
    pointer = program.fresh(64, "u64").name
    if space == "local":
        step.lines += [f"mov.u64 {pointer}, stack;", f"add.u64 {pointer}, {pointer}, {program.local_bytes};"]
        program.local_bytes += SLOT
    else:
        start = program.shared_bytes if space == "shared" else program.scratch_bytes
        step.lines += [*_point("%thread", "area" if space == "shared" else "%scratch", start), f"mov.u64 {pointer}, %at;"]
        program.shared_bytes += size * (space == "shared")
        program.scratch_bytes += size * (space == "global")
    if program.rng.random() < 0.3 if generic is None else generic:
        step.lines.append(f"cvta.{space}.u64 {pointer}, {pointer};")
        return "", pointer
    return f".{space}", pointer


def local(program: Program) -> None:
    """A store and loads of local memory."""
    _store_and_load(program, "local")


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
        space, pointer = _area(program, step, where)
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
    with program.step("exchange") as step:
        step.together = True
        result, lane = program.fresh(64, "u64"), program.fresh(32, "u32")
        start = program.shared_bytes
        space, pointer = _area(program, step, "shared")
        barrier = program.rng.choice(("bar.sync 0;", "barrier.sync 1;", "bar.sync 3, 64;"))
        step.lines += [f"st{space}.b64 [{pointer}], {program.source(TYPES['u64'], False)};", barrier]
        step.lines.append(f"xor.b32 {lane.name}, %thread, {program.rng.choice((1, 2, 8, 32, 33, 63))};")
        step.lines += _point(lane.name, "area", start)
        step.lines.append(f"ld.shared.b64 {result.name}, [%at];")
        step.writes.append(result)


def _point(thread: str, base: str, start: int) -> list[str]:
    """Lines that make ``%at`` point to a thread's slot, from ``start`` on."""
    return [f"mov.u64 %at, {base};", f"mad.wide.u32 %at, {thread}, {SLOT}, %at;", f"add.u64 %at, %at, {start};"]


def own_atomics(program: Program) -> None:
    """An atomic operation on memory of the thread's own: what was there before counts too."""
    rng = program.rng
    where = rng.choice(("global", "shared"))
    match = forms.atomic(rng, where, "atom")
    with program.step(match.mnemonic) as step:
        space, pointer = _area(program, step, where, generic=match["space"] is None)
        bits = match.type.bits
        old, new = program.fresh(bits, match.type.name), program.fresh(bits, match.type.name)
        sources = [program.source(match.type, False) for slot in match.form.slots if slot.kind == "value" and not slot.optional]
        step.lines.append(f"st{space}.b{bits} [{pointer}], {program.source(match.type, False)};")
        step.lines += [f"{match.mnemonic} {old.name}, [{pointer}], {', '.join(sources)};"]
        step.lines.append(f"ld{space}.b{bits} {new.name}, [{pointer}];")
        step.lines += [line for result in (old, new) for line in program.settle_nan(match, result)]
        step.writes += [old, new]


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
        start = program.shared_bytes if where == "shared" else program.scratch_bytes
        _area(program, step, where)
        bits = match.type.bits
        result, first = program.fresh(bits, match.type.name), program.fresh(1, "pred")
        unused = f"{program.fresh(bits, match.type.name).name}, " if match.mnemonic.startswith("atom") else ""
        step.lines = [*_point("0", "area" if where == "shared" else "%scratch", start), f"setp.eq.u32 {first.name}, %thread, 0;"]
        step.lines.append(f"@{first.name} st.{where}.b{bits} [%at], {program.source(match.type, False)};")
        step.lines += ["bar.sync 0;", f"{match.mnemonic} {unused}[%at], {program.source(match.type, False)};", "bar.sync 0;"]
        step.lines.append(f"ld.{where}.b{bits} {result.name}, [%at];")
        step.writes.append(result)
