"""PTX text to its syntax tree: module scope."""

from __future__ import annotations

from kaasd.devices.emulator.ptx.ast import FunctionDeclaration, SyntaxTree, Variable
from kaasd.devices.emulator.ptx.body import Body
from kaasd.devices.emulator.ptx.declarations import SPACES, parse_parameters, parse_variables, skip_parentheses, skip_pragma
from kaasd.devices.emulator.ptx.expression import parse_integer
from kaasd.devices.emulator.ptx.lexer import Cursor, Kind, Piece, PtxSyntaxError, cut

LINKAGES = ("extern", "visible", "weak", "common")


def parse(text: str) -> SyntaxTree:
    """Return the syntax tree of a PTX module. Raises ``PtxSyntaxError``, and nothing else.

    What stands inside functions is read when it is asked for, which raises the same.
    """
    return _ModuleParser(cut(text.rstrip("\0"))).parse()


TEXTURES = ("tex", "surf")
"""State spaces of old versions."""


class _ModuleParser:
    def __init__(self, pieces: list[Piece]) -> None:
        self._cursor = cursor = Cursor()
        self._bodies: dict[int, Piece] = {}
        """What is inside of functions, by the number of the token behind their opening brace."""
        self._is_open = len(pieces) % 2 == 0
        """Whether the last brace is never closed."""
        for index, piece in enumerate(pieces):
            if index % 2 and _is_function(cursor.texts):
                self._bodies[len(cursor.texts)] = piece
            else:
                cursor.add(piece)
        self._last_line = pieces[-1].last_line
        cursor.end(self._last_line)
        self._files: dict[int, str] = {}
        self._variables: list[Variable] = []
        self._functions: list[FunctionDeclaration] = []
        self._aliases: dict[str, str] = {}

    def parse(self) -> SyntaxTree:
        cursor = self._cursor
        if cursor.accept_dot("version") is None:
            raise PtxSyntaxError(cursor.line, f"a PTX module starts with .version, not {cursor.peek().text!r}")
        version = self._version()
        targets: list[str] = []
        address_size = 32
        while cursor.peek().kind is not Kind.END:
            if cursor.accept_dot("target"):
                targets.append(cursor.take(Kind.IDENTIFIER, "a target"))
                while cursor.accept(","):
                    targets.append(cursor.take(Kind.IDENTIFIER, "a target"))
            elif cursor.accept_dot("address_size"):
                address_size = parse_integer(cursor)
            else:
                self._statement()
        if not targets:
            raise PtxSyntaxError(1, "the module has no .target")
        return SyntaxTree(
            version, tuple(targets), address_size, self._files, tuple(self._variables), tuple(self._functions), self._aliases
        )

    def _version(self) -> tuple[int, int]:
        line = self._cursor.line
        text = self._cursor.take(Kind.FLOAT, "a version such as 8.0")
        major, _, minor = text.partition(".")
        if not (major.isdigit() and minor.isdigit() and len(text) < 10):
            raise PtxSyntaxError(line, f"{text!r} is not a version of PTX")
        return int(major), int(minor)

    def _statement(self) -> None:
        cursor = self._cursor
        if cursor.accept(";"):
            return
        if cursor.accept_dot("file"):
            index = parse_integer(cursor)
            self._files[index] = cursor.take(Kind.STRING, "a file's name")[1:-1]
            while cursor.accept(","):
                parse_integer(cursor)
            return
        if cursor.accept_dot("section"):
            self._skip_section()
            return
        if cursor.accept_dot("pragma"):
            skip_pragma(cursor)
            return
        if cursor.accept_dot("alias"):
            name = cursor.take(Kind.IDENTIFIER, "a function's name")
            cursor.expect(",")
            self._aliases[name] = cursor.take(Kind.IDENTIFIER, "a function's name")
            cursor.expect(";")
            return
        linkage = cursor.accept_dot(*LINKAGES)
        linkage_name = linkage.text if linkage else ""
        if kind := cursor.accept_dot("entry", "func"):
            self._functions.append(self._function(kind.text == "entry", linkage_name))
        elif (token := cursor.peek()).kind is Kind.DOT and token.text in SPACES:
            self._variables += parse_variables(cursor, linkage_name)
        else:
            if token.kind is Kind.DOT and token.text in TEXTURES:
                raise PtxSyntaxError(token.line, f".{token.text}: textures and surfaces are not supported on the emulated device")
            raise PtxSyntaxError(token.line, f"{token.text!r} cannot stand at module scope")

    def _skip_section(self) -> None:
        cursor = self._cursor
        cursor.advance()
        cursor.expect("{")
        depth = 1
        while depth:
            if cursor.peek().kind is Kind.END:
                raise PtxSyntaxError(cursor.line, "a section has no end")
            depth += {"{": 1, "}": -1}.get(cursor.advance().text, 0)

    def _function(self, is_entry: bool, linkage: str) -> FunctionDeclaration:
        cursor = self._cursor
        directives: dict[str, tuple[int, ...]] = {}
        while cursor.accept_dot("attribute"):
            directives["attribute"] = ()
            skip_parentheses(cursor)
        results = parse_parameters(cursor) if cursor.at("(") else ()
        line = cursor.line
        name = cursor.take(Kind.IDENTIFIER, "a function's name")
        parameters = parse_parameters(cursor) if cursor.at("(") else ()
        while token := cursor.accept_dot():
            if token.text == "pragma":
                skip_pragma(cursor)
                continue
            numbers = []
            while cursor.peek().kind is Kind.INTEGER:
                numbers.append(parse_integer(cursor))
                cursor.accept(",")
            directives[token.text] = tuple(numbers)
        content: Body | None = None
        if not cursor.accept(";"):
            cursor.expect("{")
            piece = self._bodies.get(cursor.position)
            if piece is None:
                raise PtxSyntaxError(cursor.line, f"{cursor.peek().text!r} cannot stand here")
            if self._is_open and piece.end == len(piece.text):
                raise PtxSyntaxError(self._last_line, "a function has no end")
            content = Body(piece)
        return FunctionDeclaration(line, name, is_entry, results, parameters, content, linkage, directives)


def _is_function(before: list[str]) -> bool:
    """Whether braces behind these tokens hold a function's body, not an initial value or a section."""
    return before[-2:-1] != ["="] and before[-3:-2] != [".section"]
