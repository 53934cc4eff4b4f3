"""Forms of instructions: which modifiers and operands one takes, and how a mnemonic is matched with a form."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import cache
from typing import Any

from kaasd.devices.emulator.ptx.types import TYPES, Type


class Flow(Enum):
    """Where control goes after an instruction."""

    NEXT = auto()
    BRANCH = auto()
    """To one of the labels among its operands, or on if it is guarded."""
    END = auto()
    """Nowhere: the thread or function ends."""


@dataclass(frozen=True, slots=True)
class FormOperand:
    """An operand of a form."""

    name: str
    kind: str
    """``d`` a result, ``value``, ``address`` or ``raw``."""
    type: str
    optional: bool
    paired: bool
    """It is the second half of ``d|p``."""


@dataclass(frozen=True, slots=True)
class Word:
    """A place for a modifier in a form."""

    name: str
    choices: tuple[str, ...]
    optional: bool


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """One form of an instruction, as the table of instructions has it."""

    text: str
    pattern: str
    """Of what follows the opcode: a regular expression."""
    words: tuple[Word, ...]
    operands: tuple[FormOperand, ...]
    emit: Callable[..., Any]
    """The function that emits its code."""
    flow: Flow
    suspends: bool
    """The thread waits for others in it, so its registers must be saved."""
    carry: str
    """``in``, ``out`` or ``in out``: whether it reads and writes the carry flag, as a last source and a last result."""
    parts: bool
    """Its operands may name parts of registers, and be negated."""
    nans_alike: bool
    """It gives the same for every NaN of single precision, or moves it; if its own result is NaN that is a GPU's."""
    groups: Mapping[str, Sequence[str]]
    """The alternatives of each name that stands for several modifiers."""

    def match(self, mnemonic: str) -> dict[str, str | None] | None:
        """Return what each group is in a mnemonic (without the opcode) with the modifiers in the form's own order."""
        match = _compiled(self.pattern).match(mnemonic)
        return match and match.groupdict()

    def match_any_order(self, modifiers: Sequence[str]) -> dict[str, str | None] | None:
        """Return the same for modifiers in any order; where two places take one, the first place has the first."""
        left, groups = list(modifiers), dict[str, str | None]()
        for word in self.words:
            found = next((modifier for modifier in left if modifier in word.choices), None)
            if found is not None:
                left.remove(found)
            elif not word.optional:
                return None
            groups.setdefault(word.name, found)
        return None if left else groups


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """Compile a pattern when it is first needed: all together take longer than the rest of the table."""
    return re.compile(pattern)


class Match:
    """A form's groups as an instruction fills them: ``m["rnd"]`` is the alternative chosen, or None; ``"ftz" in m`` for flags."""

    __slots__ = ("_groups", "form", "mnemonic", "type")

    def __init__(self, form: Form, mnemonic: str, groups: dict[str, str | None]) -> None:
        self.form = form
        self.mnemonic = mnemonic
        self._groups = groups
        name = groups.get("type")
        if name is None:
            name = next((word for word in reversed(mnemonic.split(".")) if word in TYPES), None)
        self.type: Type = TYPES[name] if name else TYPES["b32"]

    @property
    def words(self) -> tuple[str, ...]:
        """The modifiers, in the form's own order."""
        words = (self._groups.get(word.name) for word in self.form.words)
        return tuple(word for word in words if word)

    def __getitem__(self, group: str) -> str | None:
        return self._groups.get(group)

    def __contains__(self, group: str) -> bool:
        return self._groups.get(group) is not None

    def text(self, group: str) -> str:
        """The chosen alternative, which must be there."""
        return self._groups[group] or ""

    def type_of(self, name: str) -> Type:
        """The type that an operand's annotation means."""
        if not name:
            return self.type
        if name == "wide":
            return self.type.wide
        return TYPES[name] if name in TYPES else TYPES[self.text(name)]


@dataclass(frozen=True, slots=True)
class InstructionSet:
    """What a resolver asks of the instructions that there are."""

    find: Callable[[str, tuple[str, ...]], Match | str]
    """Return how an opcode with its modifiers is matched by a form, or why it is not."""
    special_register: Callable[[str], Callable[[Any], Any] | None]
    """Return what emits code that reads a special register, or None if there is none of this name."""
