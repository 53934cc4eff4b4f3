"""The steps of programs: single instructions, control flow, moves; and their choice."""

from __future__ import annotations

from collections.abc import Callable

from kaasd.devices.emulator.ptx.types import TYPES
from tests.fuzz import forms
from tests.fuzz.barriers import await_all, copy
from tests.fuzz.layout import Register
from tests.fuzz.matrix import multiply, transpose
from tests.fuzz.memory import common_atomics, exchange, local, memory, own_atomics, stack, vector_atomics, whereabouts
from tests.fuzz.program import Program, Step, may_read
from tests.fuzz.wmma import multiply_in_memory

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
    blocks: list[Callable[[Program], None]] = [branch, loop, switch, guarded, call, local, stack, pack, move, wide, tables]
    shared: list[Callable[[Program], None]] = [
        collective, collective, collective, exchange, own_atomics, own_atomics, vector_atomics, common_atomics, memory,
        whereabouts, multiply, multiply, transpose, multiply_in_memory, copy, await_all, await_all,
    ]  # fmt: skip
    if rng.random() < 0.6:
        rng.choice(shared)(program)
    rng.choice(blocks)(program)  # last, since recursion can leave the threads of a warp apart
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
            if forms.bound(match.mnemonic) is None and not forms.is_an_end(match.mnemonic):
                code, results = program.instruction(match)
                targets = [copy for copy in copies if copy.bits == results[0].bits and may_read(copy.kind, results[0].kind)]
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
        step.lines += [f"{program.rng.choice(('ld.global', 'ld.global.nc', 'ldu.global'))}.{kind} {half.name}, [{base.name}];"]
        step.writes += [long, half]
