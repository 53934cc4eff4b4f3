"""Steps of programs for a whole warp: matrices, asynchronous copies, barriers in memory."""

from __future__ import annotations

import re

from kaasd.devices.emulator.types import TYPES
from tests.fuzz import forms
from tests.fuzz.layout import Register
from tests.fuzz.memory import SLOT, area, point
from tests.fuzz.program import CONVERGE, Program, Step
from tests.fuzz.values import THREADS

_WIDTHS = {"s32": 32, "f32": 32, "tf32": 32, "f16": 16, "bf16": 16, "f64": 64, "b1": 1}
_NUMBERS = {
    "f16": (0x84008400, 0x38003800),
    "bf16": (0x80808080, 0x3F003F00),
    "tf32": (0x80800000, 0x3F000000),
    "f32": (0x80800000, 0x3F000000),
    "e4m3": (0x88888888, 0x30303030),
    "e5m2": (0x84848484, 0x38383838),
    "f64": (0x8010000000000000, 0x3FE0000000000000),
}
"""Bits to keep, and bits to set, that make any bits numbers of 1/2 or 1: the order of sums is open, and theirs exact in any."""


def multiply(program: Program) -> None:
    """A product of matrices in registers."""
    match = forms.draw_product(program.rng)
    words = match.mnemonic.split(".")
    numbers = re.fullmatch(r"m(\d+)n(\d+)k(\d+)", match.text("shape"))
    assert numbers is not None
    m, n, k = map(int, numbers.groups())
    d, a, b, c = [word for word in words[6:] if word in TYPES]
    with program.step(match.mnemonic) as step:
        step.together = True
        fragments = [_fragment(program, step, kind, size) for kind, size in ((a, m * k), (b, k * n), (c, m * n))]
        results = [program.fresh(64 if d == "f64" else 32, _kind(d)) for _ in range(_registers(d, m * n))]
        operands = [f"{{{', '.join(register.name for register in some)}}}" for some in (results, *fragments)]
        step.lines.append(f"{match.mnemonic} {', '.join(operands)};")
        step.writes += results


def _kind(name: str) -> str:
    return "f16x2" if name == "f16" else name


def _registers(kind: str, elements: int) -> int:
    """How many registers of each thread hold so many elements of a warp."""
    width = _WIDTHS.get(kind) or TYPES[kind].bits
    return elements * width // 32 // (64 if kind == "f64" else 32)


def _fragment(program: Program, step: Step, kind: str, elements: int) -> list[Register]:
    bits = 64 if kind == "f64" else 32
    registers = []
    for _ in range(_registers(kind, elements)):
        register = program.fresh(bits, f"u{bits}")
        source = program.source(TYPES[f"u{bits}"], False)
        keep, add = _NUMBERS.get(kind, ((1 << bits) - 1, 0))
        step.lines += [
            f"and.b{bits} {register.name}, {source}, {keep:#x};",
            f"or.b{bits} {register.name}, {register.name}, {add:#x};",
        ]
        registers.append(register)
    return registers


def transpose(program: Program) -> None:
    """Rows of 8x8 matrices in shared memory, loaded or stored by a warp."""
    rng = program.rng
    with program.step("ldmatrix" if rng.getrandbits(1) else "stmatrix") as step:
        step.together = True
        _, pointer = area(program, step, "shared", generic=False)
        words = [program.source(TYPES["u32"], False) for _ in range(4)]
        step.lines += [f"st.shared.v4.b32 [{pointer}], {{{', '.join(words)}}};", CONVERGE]
        count = rng.choice((1, 2, 4))
        form = f"{step.label}.sync.aligned.m8n8.x{count}{rng.choice(('', '.trans'))}.shared.b16"
        results = [program.fresh(32, "b32") for _ in range(count if step.label == "ldmatrix" else 4)]
        names = ", ".join(result.name for result in results)
        if step.label == "ldmatrix":
            step.lines.append(f"{form} {{{names}}}, [{pointer}];")
        else:
            sources = ", ".join(program.source(TYPES["u32"], False) for _ in range(count))
            step.lines += [f"{form} [{pointer}], {{{sources}}};", CONVERGE, f"ld.shared.v4.b32 {{{names}}}, [{pointer}];"]
        step.writes += results


def copy(program: Program) -> None:
    """An asynchronous copy from global to shared memory."""
    rng = program.rng
    with program.step("cp.async") as step:
        _, source = area(program, step, "global", generic=False)
        _, target = area(program, step, "shared", generic=False)
        size = rng.choice((4, 8, 16))
        cache = rng.choice(("ca", "cg")) if size == 16 else "ca"
        shorter = f", {rng.randrange(size + 1)}" if rng.random() < 0.3 else ""
        values = [program.source(TYPES["u64"], False) for _ in range(2)]
        step.lines += [
            f"st.global.v2.b64 [{source}], {{{', '.join(values)}}};",
            f"st.shared.v2.b64 [{target}], {{{', '.join(values[::-1])}}};",
        ]
        step.lines.append(f"cp.async.{cache}.shared.global [{target}], [{source}], {size}{shorter};")
        step.lines += rng.choice((["cp.async.wait_all;"], ["cp.async.commit_group;", "cp.async.wait_group 0;"]))
        results = [program.fresh(64, "u64") for _ in range(2)]
        step.lines.append(f"ld.shared.v2.b64 {{{', '.join(result.name for result in results)}}}, [{target}];")
        step.writes += results


def await_all(program: Program) -> None:
    """Values that pass between threads, with a barrier object in shared memory between."""
    with program.step("mbarrier") as step:
        step.together = True
        start = program.shared_bytes
        _, pointer = area(program, step, "shared", generic=False)
        barrier = program.shared_bytes
        program.shared_bytes += SLOT
        first, done, state, place, lane, result = (program.fresh(bits, f"u{bits}") for bits in (1, 1, 64, 64, 32, 64))
        step.lines += [f"mov.u64 {place.name}, area;", f"add.u64 {place.name}, {place.name}, {barrier};"]
        step.lines += [
            f"setp.eq.u32 {first.name}, %thread, 0;",
            f"@{first.name} mbarrier.init.shared.b64 [{place.name}], {THREADS};",
        ]
        step.lines += [CONVERGE, "bar.sync 0;", f"st.shared.b64 [{pointer}], {program.source(TYPES['u64'], False)};"]
        wait = program.label()
        step.lines += [f"mbarrier.arrive.shared.b64 {state.name}, [{place.name}];", f"{wait}:"]
        step.lines += [f"mbarrier.test_wait.shared.b64 {done.name}, [{place.name}], {state.name};", f"@!{done.name} bra {wait};"]
        step.lines += [
            f"xor.b32 {lane.name}, %thread, 37;",
            *point(lane.name, "area", start),
            f"ld.shared.b64 {result.name}, [%at];",
        ]
        step.writes.append(result)
