"""How much shared memory kernels always have, told from the text of functions that are not read otherwise.

A variable counts where its name is mentioned. So one that is hidden by another of its name, and not used, may count as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from kaas_core.ptx_text import NAME, OUTSIDE_CODE
from kaasd.devices.emulator.codegen.kernel_image import lay_out_shared
from kaasd.devices.emulator.ptx import ast
from kaasd.devices.emulator.ptx.declarations import parse_variables
from kaasd.devices.emulator.ptx.lexer import Cursor, Piece, PtxSyntaxError
from kaasd.devices.emulator.ptx.routine import Storage, Unsupported, storage_of
from kaasd.devices.emulator.translation.module_variables import ModuleVariables

_DECLARED_INSIDE = re.compile(r"(?<![\w$%.:\]])\.shared(?![\w:])")


@dataclass(frozen=True, slots=True)
class _Mentioned:
    """What the text of a function says."""

    names: frozenset[str]
    own: Mapping[str, list[Storage]]
    """The shared variables that it declares, by name."""


class SharedMemory:
    """That of the kernels of one PTX text."""

    def __init__(
        self, syntax: ast.SyntaxTree, functions: Mapping[str, ast.FunctionDeclaration], variables: ModuleVariables
    ) -> None:
        self._functions = functions
        self._aliases = syntax.aliases
        self._shared = {name: storage for name, storage in variables.symbols.items() if storage.space == "shared"}
        self._pointed_at = variables.pointed_at(syntax.aliases)
        self._callable = {name for name, function in functions.items() if not function.is_entry} | set(syntax.aliases)
        self._is_declared = bool(self._shared) or any(
            ".shared" in function.content.text for function in functions.values() if function.content
        )
        self._mentioned = cache(self._look)

    def static_bytes(self, kernel: str) -> int:
        """Return how much a kernel has, with all that it can call."""
        if not self._is_declared:
            return 0
        used: list[Storage] = []
        found, waiting = {kernel}, [kernel, *self._pointed_at]
        while waiting:
            name = waiting.pop()
            if name not in self._functions:
                continue
            mentioned = self._mentioned(name)
            for each in mentioned.names:
                used += mentioned.own.get(each, ())
            used += [self._shared[each] for each in mentioned.names & self._shared.keys()]
            called = {self._aliases.get(each, each) for each in mentioned.names & self._callable} - found
            found |= called
            waiting += called
        return lay_out_shared(used)[1]

    def _look(self, name: str) -> _Mentioned:
        content = self._functions[name].content
        assert content is not None
        code = OUTSIDE_CODE.sub(lambda match: "\n" * match[0].count("\n") or " ", content.text)
        own: dict[str, list[Storage]] = {}
        rest, start = [], 0
        for match in _DECLARED_INSIDE.finditer(code):
            if (end := code.find(";", match.end())) < 0:
                break
            line = content.line + code.count("\n", 0, match.start())
            try:
                for variable in parse_variables(Cursor(Piece(code, match.start(), end + 1, line)), ""):
                    for each in variable.names:
                        own.setdefault(each, []).append(storage := storage_of(variable))
                        storage.name = each
            except (PtxSyntaxError, Unsupported):
                continue  # it is an instruction, or an error that is found when a kernel is compiled
            rest.append(code[start : match.start()])
            start = end
        return _Mentioned(frozenset(NAME.findall("".join([*rest, code[start:]]))), own)
