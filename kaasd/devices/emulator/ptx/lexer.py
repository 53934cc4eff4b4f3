"""PTX text to tokens."""

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
