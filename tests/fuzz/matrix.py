"""Steps of programs for a whole warp: matrices in registers, and their ways to and from memory."""

from __future__ import annotations

import re

from kaasd.devices.emulator.ptx.types import TYPES
from tests.fuzz import forms
from tests.fuzz.elements import NUMBERS, width_of
from tests.fuzz.layout import Register
from tests.fuzz.memory import area
from tests.fuzz.program import CONVERGE, Program, Step


def multiply(program: Program) -> None:
    """A product of matrices in registers."""
    match = forms.draw_product(program.rng)
    d, a, b, c = [word for word in match.mnemonic.split(".") if word in TYPES]
    numbers = re.search(r"\.m(\d+)n(\d+)k(\d+)\.", match.mnemonic)
    assert numbers is not None
    m, n, k = map(int, numbers.groups())
    blocks = 4 if (a, k) == ("f16", 4) else 1
    with program.step(match.mnemonic) as step:
        step.together = True
        held = m * k // 2 if "sp" in match else m * k
        sizes = ((a, held * blocks), (b, k * n * blocks), (c, m * n * blocks))
        fragments = [_fragment(program, step, kind, size) for kind, size in sizes]
        results = [program.fresh(64 if d == "f64" else 32, _kind(d)) for _ in range(_registers(d, m * n * blocks))]
        operands = [f"{{{', '.join(register.name for register in some)}}}" for some in (results, *fragments)]
        operands += _places(program, step, a, k) if "sp" in match else []
        step.lines.append(f"{match.mnemonic} {', '.join(operands)};")
        step.writes += results


_PAIRS = (0x4, 0x8, 0x9, 0xC, 0xD, 0xE)
"""Two places of four, the lower first, two bits each."""


def _places(program: Program, step: Step, kind: str, depth: int) -> list[str]:
    """The metadata of a sparse matrix, one of two for each thread, and which threads' counts."""
    choices = (0x4, 0xE) if kind == "tf32" else _PAIRS
    words = [sum(program.rng.choice(choices) << place for place in range(0, 32, 4)) for _ in range(2)]
    metadata = program.fresh(32, "u32").name
    step.lines.append(f"selp.b32 {metadata}, {words[0]:#x}, {words[1]:#x}, {program.use(program.register(TYPES['pred']))};")
    chunk = {"tf32": 2, "s4": 8, "u4": 8}.get(kind, 4)
    return [metadata, str(program.rng.randrange(16 * chunk // depth))]


def _kind(name: str) -> str:
    return "f16x2" if name == "f16" else name


def _registers(kind: str, elements: int) -> int:
    """How many registers of each thread hold so many elements of a warp."""
    return elements * width_of(kind) // 32 // (64 if kind == "f64" else 32)


def _fragment(program: Program, step: Step, kind: str, elements: int) -> list[Register]:
    bits = 64 if kind == "f64" else 32
    keep, add = (number & (1 << bits) - 1 for number in NUMBERS.get(kind, ((1 << bits) - 1, 0)))
    registers = []
    for _ in range(_registers(kind, elements)):
        register = program.fresh(bits, f"u{bits}")
        name, source = register.name, program.source(TYPES[f"u{bits}"], False)
        if kind in _EIGHTS:
            step.lines.append(f"mad.lo.u32 {name}, %thread, 0x01010101, {source};")
            source = name
        step.lines += [f"and.b{bits} {name}, {source}, {keep:#x};", f"or.b{bits} {name}, {name}, {add:#x};"]
        registers.append(register)
    return registers


_EIGHTS = ("e4m3", "e5m2")
"""The compiler of NVIDIA's driver converts these wrongly where it knows them, so every byte must differ between threads."""


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
