"""PTX text to tokens, and the cursor that reads them one after another.

What a token is follows from how it is written. So one pass of one pattern finds them, and each text is looked at once.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple


class PtxSyntaxError(Exception):
    """The text is not PTX."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line


class Kind(Enum):
    """What a token is; the values name the groups of the pattern below."""

    IDENTIFIER = "identifier"
    DOT = "dot"
    """A dotted word such as ``.global``, ``.f32`` or ``.L1::no_allocate``; its text has no leading dot."""
    INTEGER = "integer"
    FLOAT = "float"
    STRING = "string"
    PUNCTUATION = "punctuation"
    END = "end"


class Token(NamedTuple):
    kind: Kind
    text: str
    line: int


_TOKEN = r"""
      (?P<float> 0[fF][0-9a-fA-F]{8}\b | 0[dD][0-9a-fA-F]{16}\b | [0-9]+\.[0-9]*(?:[eE][+-]?[0-9]+)?
              | [0-9]+[eE][+-]?[0-9]+ | \.[0-9]+(?:[eE][+-]?[0-9]+)?(?![A-Za-z0-9_:]) )
    | (?P<integer> (?: 0[xX][0-9a-fA-F]+ | 0[bB][01]+ | [0-9]+ ) U? (?![A-Za-z0-9_$]) )
    | (?P<dot> \.[A-Za-z0-9_]+ (?: ::[A-Za-z0-9_]+ )* )
    | (?P<identifier> [_$][A-Za-z0-9_$]* | %[A-Za-z0-9_$]+ | [A-Za-z][A-Za-z0-9_$]* )
    | (?P<string> "(?:[^"\\\n]|\\[^\n])*" )
    | (?P<punctuation> << | >> | <= | >= | == | != | && | \|\| | [-+*/%&|^~!<>=?:;,(){}\[\]@] )
"""
_KIND = re.compile(_TOKEN, re.VERBOSE)
_SPLIT = re.compile(
    r"(?: [ \t\r\f\v]+ | //[^\n]* | ^(?:\#|@@)[^\n]* )*+ ( \n+ | /\*.*?\*/ | "
    + re.sub(r"\?P<\w+>", "?:", _TOKEN)
    + r"| \Z | .+ )",  # what is no token takes all that is left
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
_STRUCTURE = re.compile(
    r"""//[^\n]* | /\*.*?\*/ | (?P<comment>/\*) | "(?:[^"\\\n]|\\[^\n])*" | (?P<string>") | ^(?:\#|@@)[^\n]* | [{}]""",
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
_END = "end of the text"


class Piece(NamedTuple):
    """A part of a text."""

    text: str
    start: int
    end: int
    line: int
    """Where it begins."""

    @property
    def last_line(self) -> int:
        return self.line + self.text.count("\n", self.start, self.end)

    @property
    def content(self) -> str:
        return self.text[self.start : self.end]


def cut(text: str) -> list[Piece]:
    """Cut a text at its outermost braces: in turns what is outside of them, with the opening one, and what is inside.

    The closing one belongs to what is inside. Raises ``PtxSyntaxError``.
    """
    pieces: list[Piece] = []
    start, line, depth = 0, 1, 0

    def add(end: int) -> None:
        nonlocal start, line
        pieces.append(Piece(text, start, end, line))
        start, line = end, pieces[-1].last_line

    for match in _STRUCTURE.finditer(text):
        if match.lastgroup:
            raise PtxSyntaxError(text.count("\n", 0, match.start()) + 1, f"{match.lastgroup} has no end")
        if match[0] == "{":
            depth += 1
            if depth == 1:
                add(match.end())
        elif match[0] == "}" and depth:
            depth -= 1
            if depth == 0:
                add(match.end())
    add(len(text))
    return pieces


class Cursor:
    """Reads tokens one after another; the last, of kind ``END``, is never passed."""

    def __init__(self, piece: Piece | None = None) -> None:
        """``piece`` is all there is; without one, pieces are to be added. Raises ``PtxSyntaxError``."""
        self.texts: list[str] = []
        """As they are written, with the dots of dotted words."""
        self.lines: list[int] = []
        self.kinds = {_END: Kind.END}
        self.position = 0
        if piece is not None:
            self.add(piece)
            self.end(piece.last_line)

    def add(self, piece: Piece) -> None:
        """Add the tokens of a piece. Raises ``PtxSyntaxError``."""
        texts, lines, line = self.texts, self.lines, piece.line
        for text in _SPLIT.findall(piece.text, piece.start, piece.end):
            if text[:1] == "\n":
                line += len(text)
            elif text[:2] == "/*":
                line += text.count("\n")
            elif text:
                texts.append(text)
                lines.append(line)
        for text in set(texts).difference(self.kinds):
            match = _KIND.fullmatch(text)
            if match is None:  # it is the last one
                shown = text[:12].split("\n")[0]
                raise PtxSyntaxError(lines[-1], "string has no end" if text[0] == '"' else f"unexpected {shown!r}")
            self.kinds[text] = Kind(match.lastgroup)

    def end(self, line: int) -> None:
        """Add what stands for the end of the text."""
        self.texts.append(_END)
        self.lines.append(line)

    @property
    def line(self) -> int:
        return self.lines[self.position]

    @property
    def kind(self) -> Kind:
        """What the next token is."""
        return self.kinds[self.texts[self.position]]

    def peek(self, ahead: int = 0) -> Token:
        place = min(self.position + ahead, len(self.texts) - 1)
        text = self.texts[place]
        kind = self.kinds[text]
        return Token(kind, text[1:] if kind is Kind.DOT else text, self.lines[place])

    def advance(self) -> Token:
        token = self.peek()
        if token.kind is not Kind.END:
            self.position += 1
        return token

    def at(self, text: str) -> bool:
        """Whether the next token is the punctuation ``text``."""
        return self.texts[self.position] == text

    def accept(self, text: str) -> bool:
        """Pass the punctuation ``text`` if it is next."""
        if self.texts[self.position] != text:
            return False
        self.position += 1
        return True

    def expect(self, text: str) -> None:
        """Pass the punctuation ``text``. Raises ``PtxSyntaxError`` if something else is next."""
        if not self.accept(text):
            raise PtxSyntaxError(self.line, f"expected {text!r}, found {self.peek().text!r}")

    def accept_dot(self, *words: str) -> Token | None:
        """Pass a dotted word that is one of ``words`` (any, if none is given) if it is next."""
        text = self.texts[self.position]
        if text[0] != "." or (words and text[1:] not in words) or self.kinds[text] is not Kind.DOT:
            return None
        return self.advance()

    def take(self, kind: Kind, what: str) -> str:
        """Pass a token of ``kind`` and return its text. Raises ``PtxSyntaxError``, naming ``what`` was needed."""
        text = self.texts[self.position]
        if self.kinds[text] is not kind:
            raise PtxSyntaxError(self.line, f"{what} is needed, not {self.peek().text!r}")
        self.position += 1
        return text[1:] if kind is Kind.DOT else text
