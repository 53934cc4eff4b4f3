"""The small changes that are made to a source file, and which lines must run for a test to notice one."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import libcst as cst
import libcst.matchers as m
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators, operator_arg_removal, operator_string

_TEXT = m.SimpleString() | m.FormattedString() | m.ConcatenatedString()
_LOGGING = m.Call(func=m.Attribute(value=m.Name("_log") | m.Name("logging")))
_NOT_CODE = m.AssignTarget(target=m.Name("_log") | m.Name("__all__") | m.Name("__slots__"))
_ERROR = m.Call(func=m.Name(m.MatchRegex(r".*(Error|Exception)$")))
_EXCLUDED = (
    m.Annotation()
    | m.FormattedString()  # The text of a message.
    | m.Import()
    | m.ImportFrom()
    | m.Assert()  # For the type checker.
    | m.Expr(value=_TEXT | _LOGGING)  # A docstring, a line of the log.
    | m.Assign(targets=[_NOT_CODE])
    | m.FunctionDef(name=m.Name("__repr__"))
    | m.Decorator(decorator=m.Call(func=m.Name("dataclass")) | m.Name("dataclass"))
    | m.If(test=m.Name("TYPE_CHECKING") | m.Comparison(left=m.Name("__name__")))
    | m.Call(func=m.Name("cast") | m.Name("TypeVar") | m.Name("ParamSpec"))
)
"""What is left as it is, with all that is in it."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one file."""

    path: str
    """Relative to the root of the tree."""
    line: int
    removed: str
    """The lines that the change touches, without indentation; these and ``added`` name the mutant where line numbers move."""
    added: str
    source: str
    """The whole file with the change."""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.path, self.removed, self.added

    @property
    def diff(self) -> str:
        return "\n".join([*(f"- {line}" for line in self.removed.split("\n")), *(f"+ {line}" for line in self.added.split("\n"))])


@dataclass(frozen=True, slots=True)
class Candidate:
    """A change that has not been made yet."""

    identity: str
    """The same for as long as what it changes stays the same, wherever it stands."""
    line: int
    node: cst.CSTNode
    replacement: cst.CSTNode


def _left_out(_: cst.CSTNode) -> Iterable[cst.CSTNode]:
    yield cst.Pass()


def _inverted(node: cst.If | cst.While) -> Iterable[cst.CSTNode]:
    test = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    yield node.with_changes(test=cst.UnaryOperation(cst.Not(), test))


def _returns_none(node: cst.Return) -> Iterable[cst.CSTNode]:
    if node.value is not None and not m.matches(node.value, m.Name("None")):
        yield node.with_changes(value=cst.Name("None"))


def _one_string(node: cst.BaseString) -> Iterable[cst.CSTNode]:
    """Return the first of three changes of a string; the others are its letters in upper and in lower case."""
    return list(operator_string(node))[:1]


def _arguments(node: cst.Call) -> Iterable[cst.CSTNode]:
    """Make an argument None, or leave it out if it is named. Other changes are errors that every test sees."""
    if m.matches(node.func, m.Name("isinstance") | m.Name("len")):
        return
    is_error = m.matches(node, _ERROR)
    for replacement in operator_arg_removal(node):
        gone = [argument for argument in node.args if not any(argument is kept for kept in replacement.args)]
        is_left_out = len(replacement.args) < len(node.args)
        if (is_left_out and gone[0].keyword is None) or (is_error and m.matches(gone[0].value, _TEXT)):
            continue
        yield replacement


_Operator = Callable[[Any], Iterable[cst.CSTNode]]
_OWN: dict[_Operator, _Operator] = {operator_string: _one_string, operator_arg_removal: _arguments}
_OPERATORS: list[tuple[type[cst.CSTNode], _Operator]] = [
    (kind, _OWN.get(operator, operator)) for kind, operator in mutation_operators
] + [
    (cst.Expr, _left_out),
    (cst.Raise, _left_out),
    (cst.If, _inverted),
    (cst.While, _inverted),
    (cst.Return, _returns_none),
]
"""mutmut's, and what it lacks: statements left out, conditions the other way round, nothing returned."""


class _Collector(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self, module: cst.Module) -> None:
        super().__init__()
        self.candidates: list[Candidate] = []
        self._module = module
        self._count: dict[str, int] = {}
        self._error: cst.CSTNode | None = None

    def on_visit(self, node: cst.CSTNode) -> bool:
        if m.matches(node, _EXCLUDED) or (self._error is not None and m.matches(node, m.Arg(value=_TEXT))):
            return False
        if self._error is None and m.matches(node, _ERROR):
            self._error = node
        for kind, operator in _OPERATORS:
            if isinstance(node, kind):
                for replacement in operator(node):
                    self._add(node, replacement)
        return True

    def on_leave(self, node: cst.CSTNode) -> None:
        if node is self._error:
            self._error = None

    def _add(self, node: cst.CSTNode, replacement: cst.CSTNode) -> None:
        name = f"{self._module.code_for_node(node)}\n{self._module.code_for_node(replacement)}"
        self._count[name] = self._count.get(name, 0) + 1
        line = self.get_metadata(PositionProvider, node).start.line
        self.candidates.append(Candidate(f"{name}\n{self._count[name]}", line, node, replacement))


class Source:
    """A source file, as mutation testing sees it. ``path`` is relative to ``root``."""

    def __init__(self, root: Path, path: str) -> None:
        self.path = path
        self.text = (root / path).read_text()
        self._tree = ast.parse(self.text)
        self._functions = [node for node in ast.walk(self._tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        self._body = {line for function in self._functions for line in range(function.body[0].lineno, _end(function) + 1)}

    @cached_property
    def _wrapper(self) -> MetadataWrapper:
        return MetadataWrapper(cst.parse_module(self.text))

    def candidates(self) -> list[Candidate]:
        """Return every change that could be made."""
        collector = _Collector(self._wrapper.module)
        self._wrapper.visit(collector)
        return collector.candidates

    def mutant(self, candidate: Candidate) -> Mutant | None:
        """Make a change. None when Python takes the result for the same program, or for none."""
        source = cst.ensure_type(self._wrapper.module.deep_replace(candidate.node, candidate.replacement), cst.Module).code
        try:
            compile(source, self.path, "exec")
        except SyntaxError:
            return None
        if ast.dump(ast.parse(source)) == ast.dump(self._tree):
            return None
        lines = list(difflib.ndiff(self.text.splitlines(), source.splitlines()))
        removed, added = ("\n".join(line[2:].strip() for line in lines if line.startswith(sign)) for sign in ("- ", "+ "))
        return Mutant(self.path, candidate.line, removed, added, source)

    def lines_to_run(self, line: int) -> tuple[set[int], set[str]]:
        """Return which lines of the file a test must run to notice a change at ``line``, or which names it must use.

        Within a function these are the lines of the statement. What runs at import is noticed where its function or the names
        that it sets are used.
        """
        if line in self._body:
            return self._statement(line), set()
        for function in self._functions:
            first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
            if first <= line <= _end(function):
                return set(range(function.body[0].lineno, _end(function) + 1)), set()
        within = [n for n in ast.walk(self._tree) if isinstance(n, ast.Assign | ast.AnnAssign) and n.lineno <= line <= _end(n)]
        targets = [target for n in within for target in (n.targets if isinstance(n, ast.Assign) else [n.target])]
        return {line}, {target.id for target in targets if isinstance(target, ast.Name)}

    def lines_with(self, names: Iterable[str]) -> set[int]:
        """Return the lines within functions that use one of these names."""
        pattern = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")
        return {number for number, line in enumerate(self.text.splitlines(), 1) if number in self._body and pattern.search(line)}

    def _statement(self, line: int) -> set[int]:
        """Return the lines of the innermost statement at ``line``: all of a simple one, the head of one that has a body."""
        found = {line}
        for node in ast.walk(self._tree):  # Outer nodes come before inner ones.
            if isinstance(node, ast.stmt) and node.lineno <= line <= _end(node):
                body = next(_bodies(node), None)
                end = _end(node) if body is None else max(node.lineno, body.lineno - 1)
                found = set(range(node.lineno, end + 1)) if line <= end else {line}
        return found


def _bodies(node: ast.stmt) -> Iterator[ast.stmt | ast.pattern]:
    yield from getattr(node, "body", [])[:1]
    yield from (case.pattern for case in getattr(node, "cases", []))


def _end(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno
