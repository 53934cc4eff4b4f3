"""Constant expressions of PTX: 64-bit integers and double-precision numbers."""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable
from typing import Any

from kaasd.devices.emulator.ptx.ast import Float, Integer
from kaasd.devices.emulator.ptx.lexer import Cursor, Kind, PtxSyntaxError, Token

_MASK = 2**64 - 1
_MAX_DEPTH = 32
_MAX_DIGITS = 100

_LEVELS: tuple[tuple[str, ...], ...] = (
    ("||",), ("&&",), ("|",), ("^",), ("&",), ("==", "!="), ("<", "<=", ">", ">="), ("<<", ">>"), ("+", "-"), ("*", "/", "%"),
)  # fmt: skip
"""Binary operators, weakest first."""

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


class Unsigned(int):
    """A value of type ``.u64``: with a ``U``, too large for ``.s64``, or made of such. All others are ``.s64``."""


Number = int | float


def _integer(value: int, *, unsigned: bool) -> int:
    """Return the low 64 bits of a value as one of a type."""
    bits = value & _MASK
    return Unsigned(bits) if unsigned else bits - 2**64 if bits >> 63 else bits


def _literal(value: int, *, unsigned: bool = False) -> int:
    return _integer(value, unsigned=unsigned or value >= 2**63)


def _divide(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": _divide,
    "|": operator.or_, "^": operator.xor, "&": operator.and_,
}  # fmt: skip
_OF_FLOATS: dict[str, Callable[[float, float], float]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
}  # fmt: skip


def _evaluate(operation: str, a: Number, b: Number) -> Number:
    """Return ``a operation b`` as ptxas has it. Raises ``ZeroDivisionError``, ``TypeError`` (types that do not go together)."""
    if isinstance(a, float) and isinstance(b, float):
        if operation in _COMPARISONS:
            return int(_COMPARISONS[operation](a, b))
        if operation not in _OF_FLOATS:
            raise TypeError
        return _OF_FLOATS[operation](a, b)
    if isinstance(a, float) or isinstance(b, float):
        raise TypeError
    match operation:
        case "||":
            return int(bool(a or b))
        case "&&":
            return int(bool(a and b))
        case "<<" | ">>":
            shifted = a << (b & 63) if operation == "<<" else a >> (b & 63)
            return _integer(shifted, unsigned=isinstance(a, Unsigned))
    # The remainder is unsigned whatever its operands are: -7 % 3 is 0.
    unsigned = operation == "%" or isinstance(a, Unsigned) or isinstance(b, Unsigned)
    a, b = int(_integer(a, unsigned=unsigned)), int(_integer(b, unsigned=unsigned))
    if operation in _COMPARISONS:
        return int(_COMPARISONS[operation](a, b))
    return _integer(a % b if operation == "%" else _ARITHMETIC[operation](a, b), unsigned=unsigned)


def parse_integer_token(token: Token) -> int:
    """Return the value of an integer token: decimal, hexadecimal, octal or binary, with or without ``U``."""
    text = token.text.removesuffix("U")
    if len(text) > _MAX_DIGITS:
        raise PtxSyntaxError(token.line, "an integer is too long")
    if text.startswith("0") and text.isdigit() and not set(text) <= set("01234567"):
        raise PtxSyntaxError(token.line, f"{text} is not an octal number")
    if text[:2] in ("0x", "0X"):
        return int(text, 16)
    if text[:2] in ("0b", "0B"):
        return int(text, 2)
    return int(text, 8) if text.startswith("0") and len(text) > 1 else int(text)


def parse_float_token(text: str) -> Float:
    """Return the bits of a floating-point token."""
    if text[:2] in ("0f", "0F"):
        return Float(int(text[2:], 16), 32)
    if text[:2] in ("0d", "0D"):
        return Float(int(text[2:], 16), 64)
    return float_constant(float(text))


def float_constant(value: float) -> Float:
    """Return the 64-bit constant of ``value``."""
    return Float(struct.unpack("<Q", struct.pack("<d", value))[0], 64)


def parse_constant(cursor: Cursor) -> Integer | Float:
    """Parse a constant expression. A lone ``0f…`` keeps its 32 bits."""
    kind = cursor.kind
    if kind in (Kind.FLOAT, Kind.INTEGER) and cursor.peek(1).text in (",", ";", "}", ")", "]"):
        token = cursor.advance()
        if kind is Kind.FLOAT:
            return parse_float_token(token.text)
        return Integer(int(_literal(parse_integer_token(token), unsigned=token.text.endswith("U"))))
    value = _conditional(cursor, 0)
    return float_constant(value) if isinstance(value, float) else Integer(int(value))


def parse_integer(cursor: Cursor) -> int:
    """Parse a constant expression that must be an integer."""
    line = cursor.line
    value = parse_constant(cursor)
    if not isinstance(value, Integer):
        raise PtxSyntaxError(line, "an integer is needed here")
    return value.value


def parse_addend(cursor: Cursor) -> int:
    """Parse what may follow a symbol: ``+constant``, ``-constant`` or nothing."""
    total = 0
    while cursor.peek().text in ("+", "-") and cursor.peek().kind is Kind.PUNCTUATION:
        line, sign = cursor.line, -1 if cursor.advance().text == "-" else 1
        value = _binary(cursor, len(_LEVELS) - 1, 0)
        if isinstance(value, float):
            raise PtxSyntaxError(line, "an integer is needed here")
        total += sign * value
    return total


def _conditional(cursor: Cursor, depth: int) -> Number:
    line = cursor.line
    condition = _binary(cursor, 0, depth)
    if not cursor.accept("?"):
        return condition
    if_true = _conditional(cursor, _deeper(cursor, depth))
    cursor.expect(":")
    if_false = _conditional(cursor, _deeper(cursor, depth))
    if any(isinstance(value, float) for value in (condition, if_true, if_false)):
        raise PtxSyntaxError(line, "?: needs integers")
    return if_true if condition else if_false


def _binary(cursor: Cursor, level: int, depth: int) -> Number:
    if level == len(_LEVELS):
        return _unary(cursor, depth)
    left = _binary(cursor, level + 1, depth)
    while cursor.peek().kind is Kind.PUNCTUATION and cursor.peek().text in _LEVELS[level]:
        line, operation = cursor.line, cursor.advance().text
        right = _binary(cursor, level + 1, depth)
        try:
            left = _evaluate(operation, left, right)
        except (ZeroDivisionError, TypeError):
            raise PtxSyntaxError(line, f"{left} {operation} {right} has no value") from None
    return left


def _unary(cursor: Cursor, depth: int) -> Number:
    token = cursor.advance()
    if token.kind is Kind.INTEGER:
        return _literal(parse_integer_token(token), unsigned=token.text.endswith("U"))
    if token.kind is Kind.FLOAT:
        constant = parse_float_token(token.text)
        code = "<If" if constant.width == 32 else "<Qd"
        return float(struct.unpack(code[0] + code[2], struct.pack(code[:2], constant.bits))[0])
    if token.text == "WARP_SZ":
        return 32
    if token.text == "(":
        return _parenthesised(cursor, _deeper(cursor, depth))
    if token.text in ("-", "+", "!", "~"):
        value = _unary(cursor, _deeper(cursor, depth))
        if isinstance(value, float):
            if token.text in ("~", "!"):
                raise PtxSyntaxError(token.line, f"{token.text} needs an integer")
            return -value if token.text == "-" else value
        if token.text == "~":
            return _integer(~value, unsigned=True)
        if token.text == "!":
            return int(not value)
        return _integer(-value, unsigned=isinstance(value, Unsigned)) if token.text == "-" else value
    raise PtxSyntaxError(token.line, f"a constant is needed, not {token.text!r}")


def _parenthesised(cursor: Cursor, depth: int) -> Number:
    token = cursor.peek()
    if token.kind is Kind.DOT and token.text in ("s64", "u64"):
        cursor.advance()
        cursor.expect(")")
        value = _unary(cursor, depth)
        if isinstance(value, float):
            raise PtxSyntaxError(token.line, f"{value} is not an integer")
        return _integer(value, unsigned=token.text == "u64")
    value = _conditional(cursor, depth)
    cursor.expect(")")
    return value


def _deeper(cursor: Cursor, depth: int) -> int:
    if depth >= _MAX_DEPTH:
        raise PtxSyntaxError(cursor.line, f"a constant expression is nested deeper than {_MAX_DEPTH} levels")
    return depth + 1
