"""PTX as text, cut into statements: enough to follow names through a module of any form, without understanding instructions.

Pure. Any text is safe to give.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

OUTSIDE_CODE = re.compile(r'//[^\n]*|/\*.*?(?:\*/|\Z)|"(?:\\.|[^"\\])*+(?:"|\Z)|^(?:#|@@)[^\n]*', re.DOTALL | re.MULTILINE)
_LIST = re.compile(r"\{([^{};]*)\}")
"""Braces without a statement in them: a vector or an initialiser."""
NAME = re.compile(r"[\w$%]+")
_BEFORE_STATEMENT = re.compile(
    r"\s*(?:(?:\.loc\b[\s\d]*(?:,\s*(?:function_name\s+[\w$]+(?:\s*\+\s*\d+)?|inlined_at[\s\d]+)\s*)*+"
    r'|\.file\b\s+\d+\s*""(?:\s*,\s*\d+)*'
    r"|[\w$%]+\s*:(?!:))\s*)*+"
)
_INSTRUCTION = re.compile(r"(?:@!?\s*[\w$%]+\s+)?([a-z]\w*)((?:\s*\.[\w:]+)*+)(.*)", re.DOTALL)


_MAX_NESTING = 8
"""Of braces without a statement in them."""


def code_of(text: str) -> tuple[str, bool]:
    """Return a text without comments and the content of strings, with round brackets for braces that hold no statement.

    Also whether that was done in full: braces in too many others are left.
    """
    text = OUTSIDE_CODE.sub(lambda match: '""' if match[0][0] == '"' else " ", text)
    replaced = 1
    for _ in range(_MAX_NESTING):
        text, replaced = _LIST.subn(r"(\1)", text)
    return text, not replaced


def split(text: str) -> list[str]:
    """Return what stands between the commas that are outside brackets."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(r"[(\[{)\]},]", text):
        if match[0] == ",":
            if not depth:
                parts.append(text[start : match.start()])
                start = match.end()
        else:
            depth += 1 if match[0] in "([{" else -1
    return [*parts, text[start:]]


class Statement(NamedTuple):
    function: int
    """A number for each; 0 outside of all."""
    block: int
    """A number for each pair of braces."""
    opcode: str
    """Of a directive its first word, such as ``.param``; empty where it is not known."""
    modifiers: str
    text: str
    """Of an instruction, its operands; of a directive, all."""


def statements(text: str) -> Iterator[Statement]:
    """Yield all statements; a heading of a block is one too."""
    blocks, count, start = [0], 0, 0
    for match in re.finditer("[;{}]", text):
        content = text[start : match.start()]
        content = content[_BEFORE_STATEMENT.match(content).end() :]  # type: ignore[union-attr]  # it matches anything
        function, block = blocks[1] if len(blocks) > 1 else 0, blocks[-1]
        if content.startswith("."):
            yield Statement(function, block, re.match(r"\.\w*", content)[0], "", content)  # type: ignore[index]
        elif content:
            instruction = _INSTRUCTION.match(content)
            yield Statement(function, block, *(instruction.groups() if instruction else ("", "", content)))
        if match[0] == "{":
            count += 1
            blocks.append(count)
        elif match[0] == "}" and len(blocks) > 1:
            blocks.pop()
        start = match.end()
