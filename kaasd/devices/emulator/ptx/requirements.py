"""What parts of PTX need: the first version of PTX that has them, and the first target. ptxas refuses them in older modules.

``requirement_table.py`` says what was measured; this module looks things up in it, and compares them with what a module declares.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from kaasd.devices.emulator.ptx.ast import FunctionDeclaration, SyntaxTree, Variable
from kaasd.devices.emulator.ptx.forms import Match
from kaasd.devices.emulator.ptx.requirement_table import TABLE
from kaasd.devices.emulator.ptx.routine import Unsupported, signature_of
from kaasd.libraries import UnsupportedLibrary

_TARGET = re.compile(r"sm_(\d+)([af]?)")
_RENAMED = {"101": 110}
"""Architectures that are now named otherwise."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """The first version, and the first target; ``(0, 0)`` and empty where any will do."""

    version: tuple[int, int] = (0, 0)
    target: str = ""
    """With a letter, as in ``sm_90a``: this and later ones with a letter."""


@dataclass(frozen=True, slots=True)
class _Rule:
    words: tuple[str, ...]
    requirement: Requirement


def _read(table: str) -> dict[str, list[_Rule]]:
    rules: dict[str, list[_Rule]] = {}
    for line in table.strip().splitlines():
        needs, _, names = line.partition(":")
        version, target = needs.split()
        major, _, minor = version.partition(".")
        requirement = Requirement((int(major), int(minor)) if minor else (0, 0), target.strip("-"))
        for name in names.split(","):
            words = tuple(name.split())
            rules.setdefault(words[0], []).append(_Rule(words, requirement))
    return rules


_RULES = _read(TABLE)
_WITH_OPERANDS = {
    opcode for opcode, rules in _RULES.items() for rule in rules if any(word[0] in "#_" or word == "pred" for word in rule.words)
}
"""Opcodes of which the operands count, too."""


def _number(target: str) -> tuple[int, bool]:
    """Return a target's number, and whether it has a letter: what it compiles is for it or its family alone."""
    match = _TARGET.fullmatch(target)
    return (_RENAMED.get(match[1], int(match[1])), bool(match[2])) if match else (0, False)


def _applies(rule: Sequence[str], words: Sequence[str]) -> bool:
    """Whether a rule's words stand in a mnemonic in their order, and none of those with a ``!`` does; the opcode is the first."""
    if rule[-1][0] == "!":
        return rule[-1][1:] not in words and _applies(rule[:-1], words)
    left = iter(words)
    return all(word in left for word in rule)


def _largest(requirements: Iterable[Requirement]) -> Requirement:
    needed = list(requirements)
    version = max((each.version for each in needed), default=(0, 0))
    return Requirement(version, max((each.target for each in needed), key=_number, default=""))


@cache
def _of(opcode: str, words: tuple[str, ...]) -> Requirement:
    return _largest(rule.requirement for rule in _RULES.get(opcode, ()) if _applies(rule.words, (opcode, *words)))


def of_instruction(match: Match, operands: Sequence[str]) -> Requirement:
    """Return what an instruction needs. ``operands`` are words for what it has beside its mnemonic, such as ``#3``."""
    return _of(match.mnemonic.partition(".")[0], (*match.words, *operands))


def of_words(words: tuple[str, ...]) -> Requirement:
    """Return what an opcode with these words, or a special register, needs."""
    return of_name(words[0]) if words[0][0] in ".%" else _of(words[0], words[1:])


def of_name(name: str) -> Requirement:
    """Return what a special register or a directive needs, by its name with its percent sign or dot."""
    name = re.sub(r"\.[xyzw]$", "", name) if name.startswith("%") else name
    return _largest(rule.requirement for rule in _RULES.get(name.split()[0], ()) if " ".join(rule.words) == name)


class Declared:
    """What a module declares, and what it therefore may not use."""

    def __init__(self, version: tuple[int, int], targets: Iterable[str]) -> None:
        self._version = version
        self._target = next((target for target in targets if _TARGET.fullmatch(target)), "")
        self._number, self._has_letter = _number(self._target)
        self._known: dict[str, str] = {}
        """By mnemonic or name: what :meth:`lacks` says."""

    def lacks(self, requirement: Requirement) -> str:
        """Return why a module may not use what has a requirement; empty if it may. Without a target known any will do."""
        needs, has = [], []
        if requirement.version > self._version:
            needs.append("PTX ISA {}.{}".format(*requirement.version))
            has.append(".version {}.{}".format(*self._version))
        number, has_letter = _number(requirement.target)
        if self._target and (number > self._number or (has_letter and not self._has_letter)):
            needs.append(requirement.target)
            has.append(f".target {self._target}")
        return f"needs {' and '.join(needs)}, the module declares {' and '.join(has)}" if needs else ""

    def lacks_for(self, match: Match, operands: Sequence[str]) -> str:
        """Return the same of an instruction."""
        key = " ".join((match.mnemonic, *operands))
        if (known := self._known.get(key)) is None:
            known = self._known[key] = self.lacks(of_instruction(match, operands))
        return known

    def lacks_name(self, name: str) -> str:
        """Return the same of a special register or a directive."""
        if (known := self._known.get(name)) is None:
            known = self._known[name] = self.lacks(of_name(name))
        return known


def counts_operands(opcode: str) -> bool:
    """Whether what an instruction needs depends on its operands."""
    return opcode in _WITH_OPERANDS


_MOST_PARAMETERS = 4352
"""Bytes that the parameters of a kernel take together; more of them are a feature of their own."""


def check_declarations(module: SyntaxTree, declared: Declared) -> None:
    """Raise ``UnsupportedLibrary`` if a module declares what its own version or target has not."""
    for target in module.targets:
        if lack := declared.lacks_name(f".target {target}"):
            raise UnsupportedLibrary(f"PTX .target {target}: {lack}")
    lines = {function.name: function.line for function in module.functions}
    for alias in module.aliases:
        _check(declared, ".alias", alias, lines.get(alias, 1))
    for variable in module.variables:
        check_variable(variable, declared)
    for function in module.functions:
        _check_function(function, declared)


def check_variable(variable: Variable, declared: Declared) -> None:
    """Raise ``Unsupported`` if a module may not declare a variable of this type, linkage or initial value."""
    _check(declared, f".{variable.type}", variable.name, variable.line)
    if variable.linkage:
        _check(declared, f".{variable.linkage}", variable.name, variable.line)
    for element in variable.initial:
        if element.generic:
            _check(declared, ".generic", variable.name, variable.line)
        if element.is_masked:
            _check(declared, ".mask", variable.name, variable.line)


def _check_function(function: FunctionDeclaration, declared: Declared) -> None:
    for directive in (*function.directives, *filter(None, [function.linkage])):
        _check(declared, f".{directive}", function.name, function.line)
    for variable in (*function.results, *function.parameters):
        check_variable(variable, declared)
    if function.is_entry and signature_of((), function.parameters).size > _MOST_PARAMETERS:
        _check(declared, ".param 4353", function.name, function.line)


def _check(declared: Declared, directive: str, name: str, line: int) -> None:
    if lack := declared.lacks_name(directive):
        raise Unsupported(line, f"{_SHOWN.get(directive, directive)} {name}: {lack}")


_SHOWN = {
    ".generic": "generic() in the initial value of",
    ".mask": "one byte of an address in the initial value of",
    ".param 4353": f"more than {_MOST_PARAMETERS} bytes of parameters of",
}
