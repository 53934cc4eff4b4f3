"""PTX text to tokens, and the cursor that reads them one after another."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from enum import Enum


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


@dataclass(frozen=True, slots=True)
class Token:
    kind: Kind
    text: str
    line: int


_PATTERN = re.compile(
    r"""
      (?P<space> [ \t\r\n\f\v]+ | //[^\n]* | /\*.*?\*/ )
    | (?P<directive> (?:(?<=\n)|\A) (?:\#|@@)[^\n]* )
    | (?P<float> 0[fF][0-9a-fA-F]{8}\b | 0[dD][0-9a-fA-F]{16}\b | [0-9]+\.[0-9]*(?:[eE][+-]?[0-9]+)?
              | [0-9]+[eE][+-]?[0-9]+ | \.[0-9]+(?:[eE][+-]?[0-9]+)?(?![A-Za-z0-9_:]) )
    | (?P<integer> (?: 0[xX][0-9a-fA-F]+ | 0[bB][01]+ | [0-9]+ ) U? (?![A-Za-z0-9_$]) )
    | (?P<dot> \.[A-Za-z0-9_]+ (?: ::[A-Za-z0-9_]+ )* )
    | (?P<identifier> [_$][A-Za-z0-9_$]* | %[A-Za-z0-9_$]+ | [A-Za-z][A-Za-z0-9_$]* )
    | (?P<string> "(?:[^"\\\n]|\\[^\n])*" )
    | (?P<punctuation> << | >> | <= | >= | == | != | && | \|\| | [-+*/%&|^~!<>=?:;,(){}\[\]@] )
    """,
    re.VERBOSE | re.DOTALL,
)


def tokenize(text: str) -> list[Token]:
    """Return the tokens of ``text``, the last of kind ``END``. Raises ``PtxSyntaxError``."""
    newlines = [match.start() for match in re.finditer("\n", text)]
    tokens = []
    position = 0
    while position < len(text):
        match = _PATTERN.match(text, position)
        line = bisect_right(newlines, position - 1) + 1 if position else 1
        if match is None:
            unterminated = {"/*": "comment has no end", '"': "string has no end"}
            for start, message in unterminated.items():
                if text.startswith(start, position):
                    raise PtxSyntaxError(line, message)
            raise PtxSyntaxError(line, f"unexpected {text[position : position + 12].split(chr(10))[0]!r}")
        position = match.end()
        group = match.lastgroup or ""
        if group not in ("space", "directive"):
            tokens.append(Token(Kind(group), match.group().removeprefix(".") if group == "dot" else match.group(), line))
    tokens.append(Token(Kind.END, "end of the text", len(newlines) + 1))
    return tokens


class Cursor:
    """Reads tokens one after another; the last, of kind ``END``, is never passed."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._position = 0

    @property
    def line(self) -> int:
        return self.peek().line

    def peek(self, ahead: int = 0) -> Token:
        return self._tokens[min(self._position + ahead, len(self._tokens) - 1)]

    def advance(self) -> Token:
        token = self._tokens[self._position]
        if token.kind is not Kind.END:
            self._position += 1
        return token

    def at(self, text: str) -> bool:
        """Whether the next token is the punctuation ``text``."""
        token = self.peek()
        return token.kind is Kind.PUNCTUATION and token.text == text

    def accept(self, text: str) -> bool:
        """Pass the punctuation ``text`` if it is next."""
        if not self.at(text):
            return False
        self.advance()
        return True

    def expect(self, text: str) -> None:
        """Pass the punctuation ``text``. Raises ``PtxSyntaxError`` if something else is next."""
        if not self.accept(text):
            raise PtxSyntaxError(self.line, f"expected {text!r}, found {self.peek().text!r}")

    def accept_dot(self, *words: str) -> Token | None:
        """Pass a dotted word that is one of ``words`` (any, if none is given) if it is next."""
        token = self.peek()
        if token.kind is not Kind.DOT or (words and token.text not in words):
            return None
        return self.advance()

    def take(self, kind: Kind, what: str) -> str:
        """Pass a token of ``kind`` and return its text. Raises ``PtxSyntaxError``, naming ``what`` was needed."""
        token = self.peek()
        if token.kind is not kind:
            raise PtxSyntaxError(token.line, f"{what} is needed, not {token.text!r}")
        return self.advance().text
