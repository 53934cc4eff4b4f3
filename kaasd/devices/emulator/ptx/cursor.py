"""A place in a list of tokens."""

from __future__ import annotations

from kaasd.devices.emulator.ptx.lexer import Kind, PtxSyntaxError, Token


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
