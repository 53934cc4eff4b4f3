"""PTX text to its syntax tree: what stands inside a function."""

from __future__ import annotations

from functools import cached_property

from kaasd.devices.emulator.ptx.ast import (
    Address,
    Group,
    Identifier,
    Indexed,
    Inlined,
    Instruction,
    Label,
    LabelList,
    Location,
    Minus,
    Negated,
    Operand,
    Pair,
    Prototype,
    ScopeBegin,
    ScopeEnd,
    Statement,
    Vector,
)
from kaasd.devices.emulator.ptx.declarations import SPACES, parse_count, parse_parameters, parse_variables, skip_bank, skip_pragma
from kaasd.devices.emulator.ptx.expression import parse_addend, parse_constant, parse_integer
from kaasd.devices.emulator.ptx.lexer import Cursor, Kind, Piece, PtxSyntaxError

_MAX_NESTING = 16
"""Of operands: PTX itself needs two."""
_BEHIND_OPERAND = frozenset((",", ";"))
_LONGEST_REMEMBERED = 8
"""Tokens of an operand, such as ``[%rd1+-16]``."""


class Body:
    """What is inside a function: an ``ast.Content``."""

    def __init__(self, piece: Piece) -> None:
        """``piece`` goes from after its ``{`` to its ``}``."""
        self._piece = piece

    @property
    def text(self) -> str:
        return self._piece.content

    @property
    def line(self) -> int:
        return self._piece.line

    @cached_property
    def statements(self) -> tuple[Statement, ...]:
        return _BodyParser(Cursor(self._piece)).parse()


class _BodyParser:
    """Parses the statements of a function. Scopes come out as flat begin and end marks."""

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._location: Location | None = None
        self._operands_seen: dict[tuple[str, ...], Operand] = {}
        """By their tokens, since most come again and again."""

    def parse(self) -> tuple[Statement, ...]:
        cursor = self._cursor
        statements: list[Statement] = []
        depth = 0
        while True:
            line = cursor.line
            if cursor.accept("{"):
                depth += 1
                statements.append(ScopeBegin(line))
            elif cursor.accept("}"):
                if depth == 0:
                    return tuple(statements)
                depth -= 1
                statements.append(ScopeEnd(line))
            elif not cursor.accept(";"):
                self._statement(statements)

    def _statement(self, statements: list[Statement]) -> None:
        cursor = self._cursor
        kind = cursor.kind
        if kind is Kind.DOT:
            self._directive(statements)
        elif kind is Kind.IDENTIFIER and cursor.texts[cursor.position + 1] == ":":
            token = cursor.advance()
            cursor.advance()
            if what := cursor.accept_dot("branchtargets", "calltargets", "callprototype"):
                statements.append(self._named_list(token.line, token.text, what.text))
            else:
                statements.append(Label(token.line, token.text))
        else:
            statements.append(self._instruction())

    def _directive(self, statements: list[Statement]) -> None:
        cursor = self._cursor
        if cursor.accept_dot("loc"):
            self._location = self._parse_location()
        elif cursor.accept_dot("pragma"):
            skip_pragma(cursor)
        elif cursor.peek().text.split("::")[0] in SPACES:
            statements += parse_variables(cursor, "")
        elif cursor.accept_dot("file"):
            parse_integer(cursor)
            cursor.take(Kind.STRING, "a file's name")
        else:
            raise PtxSyntaxError(cursor.line, f".{cursor.peek().text} cannot stand inside a function")

    def _parse_location(self) -> Location:
        cursor = self._cursor
        file, line, column = parse_integer(cursor), parse_integer(cursor), parse_integer(cursor)
        inlined: Inlined | None = None
        while cursor.accept(","):
            attribute = cursor.take(Kind.IDENTIFIER, "function_name or inlined_at")
            if attribute == "inlined_at":
                inlined = Inlined(parse_integer(cursor), parse_integer(cursor), parse_integer(cursor))
            else:
                cursor.take(Kind.IDENTIFIER, "a label")
                parse_addend(cursor)
        return Location(file, line, column, inlined)

    def _named_list(self, line: int, name: str, kind: str) -> Statement:
        cursor = self._cursor
        if kind == "callprototype":
            results = parse_parameters(cursor) if cursor.at("(") else ()
            cursor.take(Kind.IDENTIFIER, "_")
            parameters = parse_parameters(cursor) if cursor.at("(") else ()
            while cursor.accept_dot():  # such as .noreturn
                while cursor.peek().kind is Kind.INTEGER:
                    cursor.advance()
            cursor.expect(";")
            return Prototype(line, name, results, parameters)
        targets = self._targets()
        while cursor.accept(","):
            targets += self._targets()
        cursor.expect(";")
        return LabelList(line, name, tuple(targets))

    def _targets(self) -> list[str]:
        """Parse one name of a list, or several as ``name<count>``."""
        name = self._cursor.take(Kind.IDENTIFIER, "a name")
        count = parse_count(self._cursor)
        return [name] if count is None else [f"{name}{index}" for index in range(count)]

    def _instruction(self) -> Instruction:
        cursor = self._cursor
        guard: Identifier | Negated | None = None
        if cursor.accept("@"):
            negated = cursor.accept("!")
            guard = Identifier(cursor.take(Kind.IDENTIFIER, "a predicate"))
            guard = Negated(guard) if negated else guard
        line = cursor.line
        opcode = cursor.take(Kind.IDENTIFIER, "an instruction")
        modifiers = []
        while cursor.kind is Kind.DOT:
            modifiers.append(cursor.texts[cursor.position][1:])
            cursor.position += 1
            if modifiers[-1] == "const":
                skip_bank(cursor)
        operands = self._call() if opcode == "call" else self._operands()
        cursor.expect(";")
        return Instruction(line, opcode, tuple(modifiers), tuple(operands), guard, self._location)

    def _operands(self) -> list[Operand]:
        cursor = self._cursor
        operands: list[Operand] = []
        while not cursor.at(";"):
            if operands:
                cursor.expect(",")
            operands.append(self._known_operand())
        return operands

    def _known_operand(self) -> Operand:
        """Parse an operand, or take what another one of the same tokens was."""
        cursor = self._cursor
        texts, start = cursor.texts, cursor.position
        end, limit = start + 1, min(start + _LONGEST_REMEMBERED, len(texts))
        while end < limit and texts[end] not in _BEHIND_OPERAND:
            end += 1
        key = tuple(texts[start:end])
        operand = self._operands_seen.get(key)
        if operand is not None:
            cursor.position = end
            return operand
        operand = self._operand(0)
        if cursor.position == end:
            self._operands_seen[key] = operand
        return operand

    def _call(self) -> list[Operand]:
        """Parse ``(results), function, (arguments), prototype``; what is left out comes out as an empty group."""
        cursor = self._cursor
        operands: list[Operand] = [Group(()), Group(()), Group(()), Group(())]
        if cursor.at("("):
            operands[0] = Group(self._list("(", ")", 0))
            cursor.expect(",")
        operands[1] = self._identifier()
        if cursor.accept(","):
            if cursor.at("("):
                operands[2] = Group(self._list("(", ")", 0))
                if cursor.accept(","):
                    operands[3] = self._identifier()
            else:
                operands[3] = self._identifier()
        return operands

    def _list(self, opening: str, closing: str, depth: int) -> tuple[Operand, ...]:
        cursor = self._cursor
        cursor.expect(opening)
        elements: list[Operand] = []
        while not cursor.accept(closing):
            if elements:
                cursor.expect(",")
            elements.append(self._operand(depth + 1))
        return tuple(elements)

    def _operand(self, depth: int) -> Operand:
        cursor = self._cursor
        if depth > _MAX_NESTING:
            raise PtxSyntaxError(cursor.line, f"operands are nested deeper than {_MAX_NESTING} levels")
        first = self._simple_operand(depth)
        if cursor.accept("|"):
            return Pair(first, self._simple_operand(depth))
        return first

    def _simple_operand(self, depth: int) -> Operand:
        cursor = self._cursor
        if cursor.at("{"):
            return Vector(self._list("{", "}", depth))
        if cursor.at("["):
            return self._address(depth)
        if cursor.at("!") and cursor.peek(1).kind is Kind.IDENTIFIER:
            cursor.advance()
            return Negated(self._identifier())
        if cursor.at("-") and self._at_name(1):
            cursor.advance()
            return Minus(self._identifier())
        if self._at_name():
            return self._indexed() if cursor.peek(1).text == "[" else self._identifier()
        return parse_constant(cursor)

    def _at_name(self, ahead: int = 0) -> bool:
        token = self._cursor.peek(ahead)
        return token.kind is Kind.IDENTIFIER and token.text != "WARP_SZ"

    def _indexed(self) -> Indexed:
        """Parse ``array[5]`` or ``array[%r1+5]``."""
        cursor = self._cursor
        array = cursor.take(Kind.IDENTIFIER, "an array")
        cursor.expect("[")
        index = cursor.take(Kind.IDENTIFIER, "a register") if self._at_name() else None
        offset = parse_addend(cursor) if index else parse_integer(cursor)
        cursor.expect("]")
        return Indexed(array, index, offset)

    def _identifier(self) -> Identifier:
        cursor = self._cursor
        name = cursor.take(Kind.IDENTIFIER, "a name")
        while member := cursor.accept_dot():
            name += f".{member.text}"
        return Identifier(name, parse_addend(cursor))

    def _address(self, depth: int) -> Address:
        cursor = self._cursor
        cursor.expect("[")
        if self._at_name():
            base = self._identifier()
            name, offset = base.name, base.offset
        else:
            name, offset = None, parse_integer(cursor)
        rest: list[Operand] = []
        while cursor.accept(","):
            rest.append(self._operand(depth + 1))
        cursor.expect("]")
        cursor.accept_dot("unified")
        return Address(name, offset, tuple(rest))
