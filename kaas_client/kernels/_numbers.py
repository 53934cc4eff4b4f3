"""Numbers of Python as parameters whose type a compiler tells."""

from __future__ import annotations

import struct
from operator import index
from typing import TYPE_CHECKING, Any

from kaas_client.arguments import Literal
from kaas_core.errors import InvalidRequestError

if TYPE_CHECKING:
    import numpy as np

_INTEGERS = "bBhHiIqQ"


def literal(letter: str, value: Any, place: str) -> Literal:
    """Return a number as a parameter of the type of ``letter``, one of Python's ``struct``: ``?`` is a byte.

    ``place`` is the argument's path. Raises ``InvalidRequestError`` where it does not fit, ``TypeError`` where it is no number.
    """
    if isinstance(value, Literal):
        if struct.calcsize(value.type) != struct.calcsize(letter):
            has, takes = struct.calcsize(value.type), struct.calcsize(letter)
            raise InvalidRequestError.at(place, f"a number of {has} bytes was given, and the parameter has {takes}")
        return value
    if letter == "?":
        return Literal("B", int(bool(value)))
    try:
        number = index(value) if letter in _INTEGERS else float(value)
        struct.pack(letter, number)
    except (struct.error, OverflowError) as error:
        raise InvalidRequestError.at(place, f"{value!r:.60} does not fit: {error}") from None
    return Literal(letter, number)


def letter_of(dtype: np.dtype[Any]) -> str:
    """Return the letter of Python's ``struct``, without an order of bytes, of a dtype of numbers."""
    return dtype.char.replace("l", "q").replace("L", "Q")
