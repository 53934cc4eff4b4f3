"""Counts the instructions that the threads of a kernel execute, by adding counters to its PTX."""

from __future__ import annotations

import re

_LABEL = re.compile(r"\s*[\w$%]+:\s*$")
_INSTRUCTION = re.compile(r"\s*(?:@!?[\w%$]+\s+)?(?P<opcode>[a-z][\w.:]*)[^;]*;\s*$")
_ENDS_BLOCK = re.compile(r"(?:bra|brx|ret|exit|call)\b")


def counted(ptx: str, kernel: str) -> str:
    """Return ``ptx`` with one more parameter, ``counter``, for the kernel: a pointer to a ``uint64`` that every thread adds to.

    An instruction whose guard is false counts as executed. For PTX as nvcc writes it: one instruction a line, no scopes.
    """
    head, entry, rest = re.split(rf"(\.visible \.entry {kernel}\()", ptx, maxsplit=1)
    parameters, body = rest.split(")", 1)
    end = body.index("\n}")
    lines = body[:end].splitlines()
    result: list[str] = []
    block: list[str] = []

    def close_block() -> None:
        """Count the block's instructions before its last one, so before it can leave."""
        count = sum(bool(_INSTRUCTION.match(line)) for line in block)
        if count:
            last = max(index for index, line in enumerate(block) if _INSTRUCTION.match(line))
            block.insert(last, f"add.u64 %kaas_count, %kaas_count, {count};")
            if re.search(r"\b(?:ret|exit)\b", block[last + 1]):
                guard = re.match(r"\s*(@!?[\w%$]+)?", block[last + 1])
                assert guard is not None
                block.insert(last + 1, f"{guard[1] or ''} red.global.add.u64 [%kaas_counter], %kaas_count;")
        result.extend(block)
        block.clear()

    for line in lines:
        if _LABEL.match(line):
            close_block()
        block.append(line)
        instruction = _INSTRUCTION.match(line)
        if instruction and _ENDS_BLOCK.match(instruction["opcode"]):
            close_block()
    close_block()
    opening = result.index("{") + 1
    set_up = [
        ".reg .b64 %kaas_count, %kaas_counter;",
        "ld.param.u64 %kaas_counter, [counter];",
        "mov.u64 %kaas_count, 0;",
    ]
    text = "\n".join([*result[:opening], *set_up, *result[opening:]])
    return f"{head}{entry}{parameters},\n.param .u64 counter){text}{body[end:]}"
