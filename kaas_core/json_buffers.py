"""The buffers of a request's JSON form, merged from every place that mentions them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from kaas_core.array_form import MAX_DIMENSIONS
from kaas_core.json_reader import ObjectReader, boolean, integer, items, text
from kaas_core.request import BufferSpec
from kaas_core.violations import Violations, shown

_SIZE = ("size", "size_bytes")
_OFFSET = ("offset", "offset_bytes")
_CONSTANT = ("const", "constant")
_FIELDS = ("name", "key", "ephemeral", "dtype", "shape", "fortran_order", *_SIZE, *_OFFSET, *_CONSTANT)

T = TypeVar("T", int, str, bool, tuple[int, ...])


@dataclass(frozen=True, slots=True)
class _Mention:
    """What one place says of a buffer; None where it says nothing."""

    path: str
    has_size: bool = False
    """It gives a size, right or wrong."""
    size: int | None = None
    offset: int | None = None
    key: str | None = None
    constant: bool | None = None
    ephemeral: bool | None = None
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    fortran_order: bool | None = None


class BufferMentions:
    """Merges the mentions of each name: what is given anywhere holds everywhere, and must be the same wherever given.

    Only ``ephemeral`` may differ: one true is enough, because the original format writes false by default.
    """

    def __init__(self, found: Violations) -> None:
        self._found = found
        self._mentions: dict[str, list[_Mention]] = {}

    def mention(self, path: str, value: object) -> str | None:
        """Note one mention, an object with attributes or the name alone, and return the name; None where it has none."""
        if isinstance(value, str):
            self._mentions.setdefault(value, []).append(_Mention(path))
            return value
        reader = ObjectReader(self._found, path, value, _FIELDS, "a buffer")
        mention = _Mention(
            path,
            has_size=any(field in reader for field in _SIZE),
            size=reader.optional(_SIZE, integer),
            offset=reader.optional(_OFFSET, integer),
            key=reader.optional(("key",), _key),
            constant=reader.optional(_CONSTANT, boolean),
            ephemeral=reader.optional(("ephemeral",), boolean),
            dtype=reader.optional(("dtype",), text),
            shape=reader.optional(("shape",), _shape),
            fortran_order=reader.optional(("fortran_order",), boolean),
        )
        name = reader.required(("name",), text)
        if name is not None:
            self._mentions.setdefault(name, []).append(mention)
        return name

    def specs(self) -> tuple[BufferSpec, ...]:
        """Return one buffer for each name, in the order of first mention."""
        return tuple(self._merge(name, mentions) for name, mentions in self._mentions.items())

    def _merge(self, name: str, mentions: list[_Mention]) -> BufferSpec:
        size = self._agreed(name, mentions, "size", lambda mention: mention.size)
        if not any(mention.has_size for mention in mentions):
            self._found.add(
                mentions[0].path, f"buffer {shown(name)} has no size: no entry of `buffers` and no argument gives one"
            )
        return BufferSpec(
            name=name,
            size_bytes=size or 0,
            key=self._agreed(name, mentions, "key", lambda mention: mention.key) or "",
            offset_bytes=self._agreed(name, mentions, "offset", lambda mention: mention.offset) or 0,
            ephemeral=any(mention.ephemeral for mention in mentions),
            constant=self._agreed(name, mentions, "const", lambda mention: mention.constant) or False,
            dtype=self._agreed(name, mentions, "dtype", lambda mention: mention.dtype) or "",
            shape=self._agreed(name, mentions, "shape", lambda mention: mention.shape) or (),
            fortran_order=self._agreed(name, mentions, "fortran_order", lambda mention: mention.fortran_order) or False,
        )

    def _agreed(self, name: str, mentions: list[_Mention], what: str, get: Callable[[_Mention], T | None]) -> T | None:
        agreed: T | None = None
        place = ""
        for mention in mentions:
            value = get(mention)
            if value is None:
                continue
            if agreed is None:
                agreed, place = value, mention.path
            elif value != agreed:
                self._found.add(
                    f"{mention.path}.{what}",
                    f"buffer {shown(name)} has {what} {_shown(value)} here, but {_shown(agreed)} at {place}",
                )
        return agreed


def _key(found: Violations, path: str, value: object) -> str | None:
    if value is None:  # in the original format the same as absent
        return None
    if value == "":
        found.add(path, "must not be empty; leave it out if the key is the buffer's name")
        return None
    return text(found, path, value)


def _shape(found: Violations, path: str, value: object) -> tuple[int, ...] | None:
    dimensions = items(found, path, value)
    if dimensions is None:
        return None
    numbers = [integer(found, f"{path}[{axis}]", dimension) for axis, dimension in enumerate(dimensions[: MAX_DIMENSIONS + 1])]
    return tuple(number for number in numbers if number is not None)


def _shown(value: int | str | bool | tuple[int, ...]) -> str:
    return f"[{', '.join(map(shown, value))}]" if isinstance(value, tuple) else shown(value)
