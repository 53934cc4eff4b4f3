"""Collects what is wrong with a request, to report everything at once."""

from __future__ import annotations

from kaas_core.errors import InvalidRequestError, Violation

MAX_VIOLATIONS = 20
"""Enough to repair a request; limits what one bad request can make the server send."""
_MAX_SHOWN = 60


class Violations:
    """The violations found so far, in the order in which they were found."""

    def __init__(self) -> None:
        self._kept: list[Violation] = []
        self._count = 0

    def __bool__(self) -> bool:
        return self._count > 0

    @property
    def full(self) -> bool:
        """Whether what is added now is only counted."""
        return self._count >= MAX_VIOLATIONS

    def add(self, path: str, description: str) -> None:
        """Note that the field at ``path`` is wrong."""
        if not self.full:
            self._kept.append(Violation(path, description))
        self._count += 1

    def raise_if_any(self) -> None:
        """Raise ``InvalidRequestError`` if anything was found."""
        if not self._count:
            return
        more = self._count - len(self._kept)
        raise InvalidRequestError([*self._kept, Violation("", f"and {more} more")] if more else self._kept)


def shown(value: object) -> str:
    """Return ``value`` for a message: short, printable and valid UTF-8, whatever it is."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        # Python refuses to print integers of more than 4300 digits.
        return str(value) if value.bit_length() <= 128 else f"an integer of {value.bit_length()} bits"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, str):
        # repr escapes what does not print, lone surrogates among it.
        return repr(value) if len(value) <= _MAX_SHOWN else repr(value[:_MAX_SHOWN]) + "…"
    return repr(value)
