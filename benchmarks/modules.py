"""PTX modules made to measure how long it takes to load them: many kernels, and kernels of many instructions."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

EMULATED = Path(__file__).parent / "kernels/emulated.ptx"
_HEADER = ".version 8.0\n.target sm_90\n.address_size 64\n"
_FIRST = 8
"""Registers with which a straight line begins; of its results so many are alive at a time."""
_OPERATIONS = ("add.s32", "xor.b32", "mul.lo.s32", "sub.s32", "min.s32", "or.b32")


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
    """Return a module whose kernel ``line`` has so many instructions, one after another: an eighth of them access memory.

    Each has a register of its own for its result, as in what compilers write.
    """
    random = Random(seed)
    lines = [f"add.s32 %r{index}, %t, {index * 7};" for index in range(_FIRST)]
    end = _FIRST + instructions
    for number in range(_FIRST, end):
        last, earlier = f"%r{number - 1}", f"%r{number - random.randrange(1, _FIRST)}"
        place = 4 * random.randrange(64)
        if number % 16 == 0:
            lines.append(f"ld.global.u32 %r{number}, [%rd1+{place}];")
        elif number % 16 == 8:
            lines.append(f"st.global.u32 [%rd2+{place}], {last};\nadd.s32 %r{number}, {last}, {earlier};")
        else:
            lines.append(f"{_OPERATIONS[number % len(_OPERATIONS)]} %r{number}, {last}, {earlier};")
    body = "\n".join(lines)
    return f"""{_HEADER}
.visible .entry line(.param .u64 line_param_0, .param .u64 line_param_1)
{{
.reg .b32 %r<{end}>, %t;
.reg .b64 %rd<4>;
ld.param.u64 %rd1, [line_param_0];
ld.param.u64 %rd2, [line_param_1];
cvta.to.global.u64 %rd1, %rd1;
cvta.to.global.u64 %rd2, %rd2;
mov.u32 %t, %tid.x;
mul.wide.u32 %rd3, %t, 256;
add.s64 %rd1, %rd1, %rd3;
add.s64 %rd2, %rd2, %rd3;
{body}
st.global.u32 [%rd2], %r{end - 1};
ret;
}}
"""
