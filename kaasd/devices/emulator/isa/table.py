"""The table of instructions: what forms there are, and which function emits the code of each.

An entry is a function under ``@instruction(form, …)``. The form is written much as in the PTX manual, for example::

    @instruction("add{.sat}.s32 d, a, b")
    @instruction("mul.half.type d, a, b", half="hi lo", type="u16 u32 s32")
    @instruction("setp.cmp.type d{|d2}, a, b", cmp="eq ne", type="f32")

Modifiers: a name given as a keyword stands for its alternatives, others for themselves; braces make a part optional.
Operands: names that start with ``d`` are results, which with ``d_`` are read before; ``[a]`` is an address and ``*a`` any operand
as it stands, and both reach the function unread. Others are read as values of the type after their colon (a type or a group's
name), by default that of the group ``type`` or of the last modifier that names a type. The function gets the emitter, the match
and the sources, and returns the result (or a tuple of several).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from kaasd.devices.emulator.ptx.forms import Flow, Form, FormOperand, Match, Word

MOST_REMEMBERED = 4096
"""Mnemonics, with what they match."""
_FORMS: dict[str, list[Form]] = {}

_REFUSED = {
    "sured": "reductions on surfaces are not",
    "tcgen05": "fifth-generation tensor cores are not",
    **dict.fromkeys(("cp.async.bulk", "cp.reduce", "tensormap"), "such copies are not"),
    "multimem": "memory that several devices share is not",
    "clusterlaunchcontrol": "launches that take over the clusters of others are not",
    **dict.fromkeys(("st.async", "red.async", "st.bulk"), "such stores are not"),
}
"""Why what is left out is left out, by how its mnemonic starts."""

_REFUSED_WORDS = {
    "oob": "out-of-bounds NaNs, which only tensor-map copies make, are not",
}
"""The same by a modifier."""


def instruction(
    text: str,
    *,
    flow: Flow = Flow.NEXT,
    suspends: bool = False,
    carry: str = "",
    parts: bool = False,
    nans_alike: bool = False,
    **groups: Any,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as the semantics of a form; see the module's text.

    ``groups`` gives each name's alternatives: words separated by spaces, or an iterable of them.
    """
    mnemonic, _, operands = text.partition(" ")
    alternatives = {name: words.split() if isinstance(words, str) else list(words) for name, words in groups.items()}
    opcode, pattern = _modifier_pattern(mnemonic, alternatives)
    words = _words(mnemonic, alternatives)

    def register(emit: Callable[..., Any]) -> Callable[..., Any]:
        form = Form(text, pattern, words, _operands(operands), emit, flow, suspends, carry, parts, nans_alike, alternatives)
        _FORMS.setdefault(opcode, []).append(form)
        return emit

    return register


def _modifier_pattern(mnemonic: str, groups: dict[str, list[str]]) -> tuple[str, str]:
    opcode = re.match(r"[a-z0-9]+", mnemonic)
    assert opcode is not None, mnemonic
    pattern = ""
    for token in re.findall(r"\{|\}|\.[A-Za-z0-9_:]+", mnemonic[opcode.end() :]):
        if token == "{":
            pattern += "(?:"
        elif token == "}":
            pattern += ")?"
        else:
            word = token[1:]
            choices = groups.get(word, [word])
            name = re.sub(r"\W", "_", word)
            name = f"?P<{name}>" if f"?P<{name}>" not in pattern else "?:"
            pattern += rf"\.({name}{'|'.join(map(re.escape, choices))})(?=\.|$)"
    return opcode.group(), re.sub(r"\?P<(\d)", r"?P<_\1", pattern) + "$"


def _words(mnemonic: str, groups: dict[str, list[str]]) -> tuple[Word, ...]:
    words, depth = [], 0
    for token in re.findall(r"\{|\}|\.[A-Za-z0-9_:]+", mnemonic):
        if token in "{}":
            depth += 1 if token == "{" else -1
        else:
            word = token[1:]
            words.append(Word(re.sub(r"\W", "_", word), tuple(groups.get(word, (word,))), depth > 0))
    return tuple(words)


def _operands(text: str) -> tuple[FormOperand, ...]:
    operands = []
    depth = 0
    for token in re.findall(r"\{|\}|\||\[\w+\]|\*?\w+(?::\w+)?", text):
        if token in "{}":
            depth += 1 if token == "{" else -1
        elif token == "|":
            operands.append(FormOperand("", "pair", "", False, False))
        else:
            name, _, kind = token.strip("[]*").partition(":")
            what = (
                "address"
                if token.startswith("[")
                else "raw"
                if token.startswith("*")
                else "d"
                if name.startswith("d")
                else "value"
            )
            paired = bool(operands) and operands[-1].kind == "pair"
            if paired:
                operands.pop()
            operands.append(FormOperand(name, what, kind, depth > 0, paired))
    return tuple(operands)


@lru_cache(MOST_REMEMBERED)
def find(opcode: str, modifiers: tuple[str, ...]) -> Match | str:
    """Return the match of an instruction's mnemonic, or why there is none.

    Modifiers may stand in another order than in the manual, since ptxas takes them so and nvcc's own headers make use of it.
    """
    mnemonic = "".join(f".{word}" for word in modifiers)
    forms = _FORMS.get(opcode, [])
    for form in forms:
        if (groups := form.match(mnemonic)) is not None:
            return Match(form, opcode + mnemonic, groups)
    for form in forms:
        if (groups := form.match_any_order(modifiers)) is not None:
            return Match(form, opcode + mnemonic, groups)
    for start, reason in _REFUSED.items():
        if f"{opcode}{mnemonic}.".startswith(start + "."):
            return f"{opcode}{mnemonic}: {reason} supported on the emulated device"
    for word in modifiers:
        if word in _REFUSED_WORDS:
            return f"{opcode}{mnemonic}: {_REFUSED_WORDS[word]} supported on the emulated device"
    if not forms:
        return f"{opcode}{mnemonic}: the emulated device has no instruction {opcode!r}"
    return f"{opcode}{mnemonic}: the emulated device has no form of {opcode!r} with these modifiers"


def all_forms() -> list[Form]:
    """Return every entry of the table."""
    return [form for forms in _FORMS.values() for form in forms]
