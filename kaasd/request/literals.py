"""Scalars passed to kernels by value: their types, sizes and bytes."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from kaasd.request.types import Literal

INTEGER_TYPES = frozenset("bBhHiIqQ")
"""8 to 64 bits; lower case is signed."""
FLOAT_TYPES = frozenset("efd")
"""Half, single, double."""

_PACKERS: Mapping[str, struct.Struct] = {letter: struct.Struct(f"<{letter}") for letter in INTEGER_TYPES | FLOAT_TYPES}


def literal_problem(literal: Literal) -> str | None:
    """Return what is wrong with a literal, or None. Infinities and NaN are right for every floating-point type."""
    letter, value = literal.type, literal.value
    if letter not in _PACKERS:
        return f"unknown literal type {letter!r:.20}; it is one of b B h H i I q Q e f d"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"a literal's value must be a number, not {type(value).__name__}"
    if letter in INTEGER_TYPES and not isinstance(value, int):
        return f"a literal of type '{letter}' must be an integer, not {value!r}"
    try:
        _PACKERS[letter].pack(value)
    except (struct.error, OverflowError):
        return f"the value is out of range for type '{letter}'{_range(letter)}"
    return None


def literal_size(letter: str) -> int:
    """Return the size in bytes of a literal of this type."""
    return _PACKERS[letter].size


def pack_literal(literal: Literal) -> bytes:
    """Return the bytes of a valid literal, little-endian as on every device."""
    return _PACKERS[literal.type].pack(literal.value)


def _range(letter: str) -> str:
    if letter in FLOAT_TYPES:
        return f" ({8 * literal_size(letter)} bits)"
    bits = 8 * literal_size(letter)
    low, high = (0, 2**bits - 1) if letter.isupper() else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return f" ({low} to {high})"
