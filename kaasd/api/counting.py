"""Counts what is in a message before it is parsed: parsing cannot be interrupted, and holds up every other call.

10^6 buffers are 11 MiB, and were parsed in 64 ms. Counting all of them takes 30 times as long, but other threads go on meanwhile,
and it ends where a limit is passed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from kaas.v1 import types_pb2
from kaas_core.errors import InvalidRequestError, MessageTooLargeError
from kaasd.front.functions import RequestLimits

SMALL_BYTES = 256 << 10
"""Parsing so much took 6 ms at most, of empty messages."""
STEP_FIELDS = 1000
"""Counted in less than a millisecond."""
MAX_FIELDS = 750_000
"""Of a message, at all levels: more than the largest request has. Parsed in 8 to 38 ms, by what they are."""

_VARINT, _FIXED64, _BYTES, _GROUP, _GROUP_END, _FIXED32 = range(6)
"""Wire types."""
_REQUEST = types_pb2.Request.DESCRIPTOR.full_name
_KERNEL = types_pb2.KernelSpec.DESCRIPTOR.full_name
_PACKED = types_pb2.Packed.DESCRIPTOR.full_name


@dataclass(frozen=True, slots=True)
class _Field:
    """A field that holds more than one thing."""

    name: str
    """With the name of its message."""
    inside: Mapping[int, _Field] | None
    """What is in each, by number; None where it is numbers, packed."""


def field_limits(limits: RequestLimits) -> dict[str, tuple[str, int]]:
    """Return the path of each field that there may be so many of, by its full name."""
    return {
        f"{_REQUEST}.kernels": ("kernels", limits.kernels),
        f"{_REQUEST}.buffers": ("buffers", limits.buffers),
        f"{_KERNEL}.arguments": ("kernels[].arguments", limits.arguments),
        f"{_PACKED}.buffers": ("kernels[].arguments", limits.arguments),
    }


def count(data: bytes | memoryview, message: Descriptor, limits: Mapping[str, tuple[str, int]]) -> Iterator[None]:
    """Count the fields of a serialised message, pausing after every ``STEP_FIELDS``.

    Ends where the data are malformed, which parsing then says. Raises ``InvalidRequestError``, ``MessageTooLargeError``.
    """
    fields, pause_at, counts = 0, STEP_FIELDS, Counter[str]()
    position, end, inside = 0, len(data), _fields_of(message)
    around: list[tuple[int, Mapping[int, _Field]]] = []
    try:
        while position < len(data):
            while position >= end:
                end, inside = around.pop()
            tag, position = _varint(data, position)
            wire_type = tag & 7
            if wire_type == _VARINT:
                _, position = _varint(data, position)
            elif wire_type == _BYTES:
                size, position = _varint(data, position)
                if size > len(data) - position:
                    return
                field = inside.get(tag >> 3)
                if field is not None and field.inside is not None:
                    around.append((end, inside))
                    end, inside = position + size, field.inside
                    _count(counts, field.name, limits)
                else:
                    fields += size if field is not None else 0  # a number takes a byte at least
                    position += size
            elif wire_type in (_FIXED32, _FIXED64):
                position += 4 if wire_type == _FIXED32 else 8
            elif wire_type not in (_GROUP, _GROUP_END):
                return
            fields += 1
            if fields > MAX_FIELDS:
                raise MessageTooLargeError(f"the message has more than {MAX_FIELDS} fields, at all levels")
            if fields >= pause_at:
                pause_at = fields + STEP_FIELDS
                yield
    except IndexError:
        return


def _count(counts: Counter[str], name: str, limits: Mapping[str, tuple[str, int]]) -> None:
    if name not in limits:
        return
    counts[name] += 1
    path, most = limits[name]
    if counts[name] > most:
        raise InvalidRequestError.at(path, f"at most {most} are allowed, and there are more")


def _varint(data: bytes | memoryview, position: int) -> tuple[int, int]:
    """Return a number, and where what follows it begins. Raises ``IndexError``."""
    byte = data[position]
    if byte < 0x80:
        return byte, position + 1
    value, shift = byte & 0x7F, 7
    while True:
        position += 1
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position + 1
        shift += 7
        if shift > 63:
            raise IndexError("a number has more than ten bytes")


@cache
def _fields_of(message: Descriptor) -> Mapping[int, _Field]:
    fields: dict[int, _Field] = {}
    for field in message.fields:
        if field.message_type is not None:
            fields[field.number] = _Field(field.full_name, _fields_of(field.message_type))
        elif field.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            fields[field.number] = _Field(field.full_name, None)
    return fields
