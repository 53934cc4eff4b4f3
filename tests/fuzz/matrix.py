"""Steps of programs for a whole warp: matrices in registers, and their ways to and from memory."""

from __future__ import annotations

import re

from kaasd.devices.emulator.types import TYPES
from tests.fuzz import forms
from tests.fuzz.elements import NUMBERS, width_of
from tests.fuzz.layout import Register
from tests.fuzz.memory import area
from tests.fuzz.program import CONVERGE, Program, Step


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
    return elements * width_of(kind) // 32 // (64 if kind == "f64" else 32)


def _fragment(program: Program, step: Step, kind: str, elements: int) -> list[Register]:
    bits = 64 if kind == "f64" else 32
    registers = []
    for _ in range(_registers(kind, elements)):
        register = program.fresh(bits, f"u{bits}")
        source = program.source(TYPES[f"u{bits}"], False)
        keep, add = (number & (1 << bits) - 1 for number in NUMBERS.get(kind, ((1 << bits) - 1, 0)))
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
