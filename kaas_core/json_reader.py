"""Reads JSON strictly: notes each error with its path, and goes on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import TypeVar

from kaas_core.errors import InvalidRequestError
from kaas_core.violations import Violations, shown

T = TypeVar("T")

Convert = Callable[[Violations, str, object], T | None]
"""Turns the value at a path into a ``T``; where it cannot, notes why and returns None."""

_MAX_NAME = 40
"""The longest field name that is shown in a path without quotes, and that gets a suggestion."""


class _Object(dict[str, object]):
    """A JSON object that remembers which of its keys are given twice."""

    duplicates: tuple[str, ...] = ()


def decode(text: str | bytes) -> object:
    """Return the value of a JSON text, bytes being UTF-8. Raises ``InvalidRequestError``.

    The constants NaN and Infinity, which are not JSON, come out as floats; no reader here takes a float that is not finite.
    """
    try:
        # A byte order mark is what editors on Windows leave behind.
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        return json.loads(decoded, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise InvalidRequestError.at("", f"not JSON: byte {error.start} is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise InvalidRequestError.at("", f"not JSON: line {error.lineno}, column {error.colno}: {error.msg}") from error
    except ValueError as error:  # an integer of more than 4300 digits
        raise InvalidRequestError.at("", "not a request: it has an integer of thousands of digits") from error
    except RecursionError as error:
        raise InvalidRequestError.at("", "not a request: it is nested too deeply") from error


def member(path: str, name: object) -> str:
    """Return the path of an object's member."""
    if isinstance(name, str) and name.isascii() and name.isidentifier() and len(name) <= _MAX_NAME:
        return f"{path}.{name}" if path else name
    return f"{path}[{shown(name)}]"


class ObjectReader:
    """Reads the fields of one JSON object, and reports unknown ones."""

    def __init__(self, found: Violations, path: str, value: object, known: Iterable[str], what: str) -> None:
        """Begin to read ``value``, which should be an object with fields among ``known``; ``what`` is its name in messages."""
        self._found = found
        self.path = path
        self.is_object = isinstance(value, dict)
        self._fields: dict[object, object] = value if isinstance(value, dict) else {}
        if not isinstance(value, dict):
            found.add(path, f"{what} must be an object, not {shown(value)}")
            return
        for name in getattr(value, "duplicates", ()):
            found.add(member(path, name), "is given twice")
        names = tuple(known)
        for name in value:
            if name not in names:
                found.add(member(path, name), f"{what} has no such field{_suggestion(found, name, names)}")

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def optional(self, names: Iterable[str], convert: Convert[T]) -> T | None:
        """Return a field that may go by any of ``names``; None where it is missing or wrong. Two that differ are wrong."""
        given = [(name, convert(self._found, member(self.path, name), self._fields[name])) for name in names if name in self]
        if not given:
            return None
        first_name, first = given[0]
        for name, value in given[1:]:
            if None not in (first, value) and value != first:
                self._found.add(member(self.path, name), f"differs from {first_name}, another name of the same field")
        return first

    def required(self, names: tuple[str, ...], convert: Convert[T]) -> T | None:
        """Return a field that must be there; None where it is missing or wrong, which is noted."""
        if self.is_object and not any(name in self for name in names):
            self._found.add(member(self.path, names[0]), "is missing")
        return self.optional(names, convert)


def _suggestion(found: Violations, name: object, names: tuple[str, ...]) -> str:
    # The search is slow for long names, and of no use where violations are only counted.
    if not isinstance(name, str) or len(name) > _MAX_NAME or found.full:
        return ""
    near = get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def text(found: Violations, path: str, value: object) -> str | None:
    """Convert a string."""
    if isinstance(value, str):
        return value
    found.add(path, f"must be a string, not {shown(value)}")
    return None


def integer(found: Violations, path: str, value: object) -> int | None:
    """Convert an integer; neither a boolean nor ``1.0`` is one."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    found.add(path, f"must be an integer, not {shown(value)}")
    return None


def boolean(found: Violations, path: str, value: object) -> bool | None:
    """Convert true or false."""
    if isinstance(value, bool):
        return value
    found.add(path, f"must be true or false, not {shown(value)}")
    return None


def items(found: Violations, path: str, value: object) -> list[object] | None:
    """Convert a list (or a tuple, where the request comes from Python)."""
    if isinstance(value, (list, tuple)):
        return list(value)
    found.add(path, f"must be a list, not {shown(value)}")
    return None


def _object(pairs: list[tuple[str, object]]) -> _Object:
    result = _Object(pairs)
    if len(result) < len(pairs):
        result.duplicates = tuple(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
    return result
