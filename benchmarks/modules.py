"""PTX modules made to measure how long it takes to load them: many kernels, and kernels of many instructions."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

EMULATED = Path(__file__).parent / "kernels/emulated.ptx"
_HEADER = ".version 8.0\n.target sm_90\n.address_size 64\n"
_WORDS = 48
"""Registers of a straight line that are alive all along."""


def many_kernels(count: int) -> tuple[str, list[str]]:
    """Return a module of so many kernels, and their names: those of ``emulated.ptx`` again and again, no two alike."""
    text = EMULATED.read_text()
    _, *entries = re.split(r"(?m)^(?=\.visible \.entry)", text)
    parts, names = [_HEADER], []
    for number in range(count):
        entry = entries[number % len(entries)]
        name = re.search(r"\.entry (\w+)", entry)
        assert name is not None
        names.append(f"{name[1]}_{number}")
        entry = re.sub(rf"\b{name[1]}\b", names[-1], entry)
        entry = re.sub(rf"\b{name[1]}_(param|tile)", rf"{names[-1]}_\1", entry)
        parts.append(entry.replace("\n\tret;", f"\n\tadd.u32 %r1, %r1, {number};\n\tret;", 1))
    return "".join(parts), names


def straight_line(instructions: int, seed: int = 1) -> str:
    """Return a module whose kernel ``line`` has so many instructions, one after another: an eighth of them access memory."""
    random = Random(seed)
    lines = []
    for number in range(instructions):
        a, b, c = (f"%r{random.randrange(_WORDS)}" for _ in "abc")
        kind = number % 16
        if kind == 0:
            lines.append(f"ld.global.u32 {a}, [%rd1+{4 * random.randrange(64)}];")
        elif kind == 8:
            lines.append(f"st.global.u32 [%rd2+{4 * random.randrange(64)}], {a};")
        elif kind % 4 == 1:
            lines.append(f"mad.lo.s32 {a}, {b}, {c}, {a};")
        elif kind % 4 == 2:
            lines.append(f"xor.b32 {a}, {b}, {c};")
        elif kind % 4 == 3:
            lines.append(f"shf.l.wrap.b32 {a}, {b}, {b}, {random.randrange(1, 31)};")
        else:
            lines.append(f"add.s32 {a}, {a}, {b};")
    first = "\n".join(f"\tadd.s32 %r{index}, %t, {index * 7};" for index in range(_WORDS))
    last = "\n".join(f"\tst.global.u32 [%rd2+{4 * index}], %r{index};" for index in range(_WORDS))
    return f"""{_HEADER}
.visible .entry line(.param .u64 line_param_0, .param .u64 line_param_1)
{{
\t.reg .b32 %r<{_WORDS}>, %t;
\t.reg .b64 %rd<4>;
\tld.param.u64 %rd1, [line_param_0];
\tld.param.u64 %rd2, [line_param_1];
\tcvta.to.global.u64 %rd1, %rd1;
\tcvta.to.global.u64 %rd2, %rd2;
\tmov.u32 %t, %tid.x;
\tmul.wide.u32 %rd3, %t, 256;
\tadd.s64 %rd1, %rd1, %rd3;
\tadd.s64 %rd2, %rd2, %rd3;
{first}
\t{chr(10).join(lines)}
{last}
\tret;
}}
"""
