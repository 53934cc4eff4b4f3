"""The arguments of a kernel in the JSON form: each a value with a letter that says what it is."""

from __future__ import annotations

import binascii
import math
from base64 import b64decode, b64encode
from collections.abc import Mapping
from enum import Enum
from typing import TypeVar

from kaas_core.json_buffers import BufferMentions
from kaas_core.json_reader import ObjectReader, boolean, integer, items, text
from kaas_core.request import INTEGER_TYPES, Access, Argument, BufferArgument, Literal, Packed, PackedBuffer, TextureArgument
from kaas_core.texture import AddressMode, FilterMode, Texture
from kaas_core.violations import Violations, shown

E = TypeVar("E", bound=Enum)
_LITERAL_FIELDS = ("type", "val")
_PACKED_FIELDS = ("packed", "buffers")
_TEXTURE = "texture"
_TEXTURE_FIELDS = (_TEXTURE, "dtype", "channels", "extent", "layers", "address_mode", "filter_mode", "normalized_coordinates")
_ACCESS_LETTERS: Mapping[object, Access] = {access.value: access for access in Access}
_LITERAL_LETTER, _PACKED_LETTER = "l", "p"
_LETTERS = "i, o, io, t, l for a literal, or p for packed bytes"
_FLOAT_NAMES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""JSON has no such numbers; these strings stand for them, as in the JSON form of protobuf."""


def paired_argument(found: Violations, path: str, pair: object, mentions: BufferMentions) -> Argument | None:
    """Read a pair of a value and its letter; None where it is wrong, which is noted."""
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        found.add(path, f"must be a pair of a buffer, literal or packed bytes and one of {_LETTERS}")
        return None
    value, letter = pair
    return read_argument(found, path, value, letter, mentions)


def read_argument(found: Violations, path: str, value: object, letter: object, mentions: BufferMentions) -> Argument | None:
    """Read a value by its letter; None where it is wrong, which is noted."""
    if letter == _LITERAL_LETTER:
        return read_literal(found, path, value)
    if letter == _PACKED_LETTER:
        return _packed(found, path, value, mentions)
    if isinstance(value, dict) and _TEXTURE in value:
        return _texture(found, path, value, letter, mentions)
    return _use(found, path, value, letter, mentions, _LETTERS)


def argument_to_json(argument: Argument) -> list[object]:
    """Return the pair of a valid argument."""
    if isinstance(argument, BufferArgument):
        return [argument.buffer, argument.access.value]
    if isinstance(argument, Packed):
        fields: dict[str, object] = {"packed": b64encode(argument.data).decode()}
        if argument.buffers:
            fields["buffers"] = [
                [each.offset_bytes, each.argument.buffer, each.argument.access.value] for each in argument.buffers
            ]
        return [fields, _PACKED_LETTER]
    if isinstance(argument, TextureArgument):
        return [_texture_to_json(argument), argument.access.value]
    value: object = argument.value
    if isinstance(value, float) and not math.isfinite(value):
        value = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return [{"type": argument.type, "val": value}, _LITERAL_LETTER]


def _use(
    found: Violations, path: str, value: object, letter: object, mentions: BufferMentions, expected: str
) -> BufferArgument | None:
    access = _ACCESS_LETTERS.get(letter) if isinstance(letter, str) else None
    if access is None:
        found.add(path, f"unknown access {shown(letter)}; expected {expected}")
        return None
    name = mentions.mention(path, value)
    return None if name is None else BufferArgument(name, access)


def read_literal(found: Violations, path: str, value: object) -> Literal:
    """Read a literal; what is wrong is noted."""
    reader = ObjectReader(found, path, value, _LITERAL_FIELDS, "a literal")
    letter = reader.required(("type",), text) or ""

    def number(found: Violations, path: str, value: object) -> int | float | None:
        return integer(found, path, value) if letter in INTEGER_TYPES else _float(found, path, value)

    given = reader.required(("val",), number)
    return Literal(letter, 0 if given is None else given)


def _float(found: Violations, path: str, value: object) -> float | None:
    if isinstance(value, str) and value in _FLOAT_NAMES:
        return _FLOAT_NAMES[value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        found.add(path, f"must be a number, not {shown(value)}")
        return None
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        found.add(path, f"must be finite; NaN and infinities are written as the strings {', '.join(map(repr, _FLOAT_NAMES))}")
        return None
    return number


def _packed(found: Violations, path: str, value: object, mentions: BufferMentions) -> Packed:
    reader = ObjectReader(found, path, value, _PACKED_FIELDS, "a packed argument")
    data = reader.required(("packed",), _bytes)
    buffers: list[PackedBuffer] = []
    for index, triple in enumerate(reader.optional(("buffers",), items) or ()):
        place = f"{path}.buffers[{index}]"
        if not isinstance(triple, (list, tuple)) or len(triple) != 3:
            found.add(place, "must be an offset in bytes, a buffer, and one of i, o, io, t")
            continue
        offset, buffer, letter = triple
        offset_bytes = integer(found, f"{place}.offset_bytes", offset)
        use = _use(found, place, buffer, letter, mentions, "i, o, io, t")
        if offset_bytes is not None and use is not None:
            buffers.append(PackedBuffer(offset_bytes, use))
    return Packed(data or b"", tuple(buffers))


def _bytes(found: Violations, path: str, value: object) -> bytes | None:
    encoded = text(found, path, value)
    if encoded is None:
        return None
    try:
        return b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        found.add(path, f"is not base64: {error}")
        return None


def _texture(found: Violations, path: str, value: object, letter: object, mentions: BufferMentions) -> TextureArgument | None:
    reader = ObjectReader(found, path, value, _TEXTURE_FIELDS, "a texture")

    def use(found: Violations, _: str, buffer: object) -> BufferArgument | None:
        return _use(found, path, buffer, letter, mentions, "i, o, io, t")

    named = reader.required((_TEXTURE,), use)
    texture = Texture(
        dtype=reader.required(("dtype",), text) or "",
        channels=1 if (channels := reader.optional(("channels",), integer)) is None else channels,
        extent=reader.required(("extent",), _extent) or (),
        layers=reader.optional(("layers",), integer) or 0,
        address_mode=reader.optional(("address_mode",), _address_mode) or AddressMode.CLAMP,
        filter_mode=reader.optional(("filter_mode",), _filter_mode) or FilterMode.POINT,
        normalized_coordinates=reader.optional(("normalized_coordinates",), boolean) or False,
    )
    return None if named is None else TextureArgument(named.buffer, named.access, texture)


def _texture_to_json(argument: TextureArgument) -> dict[str, object]:
    texture = argument.texture
    fields: dict[str, object] = {_TEXTURE: argument.buffer, "dtype": texture.dtype}
    if texture.channels != 1:
        fields["channels"] = texture.channels
    fields["extent"] = list(texture.extent)
    if texture.layers:
        fields["layers"] = texture.layers
    if texture.address_mode is not AddressMode.CLAMP:
        fields["address_mode"] = texture.address_mode.value
    if texture.filter_mode is not FilterMode.POINT:
        fields["filter_mode"] = texture.filter_mode.value
    if texture.normalized_coordinates:
        fields["normalized_coordinates"] = True
    return fields


def _extent(found: Violations, path: str, value: object) -> tuple[int, ...] | None:
    if not isinstance(value, (list, tuple)):
        width = integer(found, path, value)
        return None if width is None else (width,)
    if not 1 <= len(value) <= 3:
        found.add(path, f"must have one to three numbers, not {len(value)}")
        return None
    numbers = [integer(found, f"{path}[{axis}]", number) for axis, number in enumerate(value)]
    return tuple(number for number in numbers if number is not None)


def _address_mode(found: Violations, path: str, value: object) -> AddressMode | None:
    return _word(found, path, value, AddressMode)


def _filter_mode(found: Violations, path: str, value: object) -> FilterMode | None:
    return _word(found, path, value, FilterMode)


def _word(found: Violations, path: str, value: object, kind: type[E]) -> E | None:
    words = {each.value: each for each in kind}
    if isinstance(value, str) and value in words:
        return words[value]
    found.add(path, f"must be one of {', '.join(words)}, not {shown(value)}")
    return None
