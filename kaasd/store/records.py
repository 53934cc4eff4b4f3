"""What lies in LMDB as bytes: keys, records, counters, and the pieces of values. Pure.

=============  ========================================  ==========================================================
database       key                                       value
=============  ========================================  ==========================================================
(main)         ``state``                                 format, last version, last id
(main)         ``store_id``                              128 random bits, which no other store has
one of each    the key, UTF-8                            a record: version, size, time, number of extents, and then
namespace                                                the value itself (no extents) or its extents in order
``chunks``     id, big-endian                            bytes of a value, at most ``chunk_bytes``
``loose``      owner, id or version, big-endian          extents that no key points at
=============  ========================================  ==========================================================

An extent is one chunk: its id and its size. Ids and versions are taken from counters, in the transaction that uses them. A chunk
belongs to one record, or is loose: on its way in (its owner is the id of a process), or on its way out (``NOBODY``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from kaas_core import ReadableBuffer
from kaas_core.errors import InvalidArgumentError
from kaas_core.validation import MAX_KEY_BYTES

FORMAT = 1
STATE_KEY = b"state"
STORE_ID_KEY = b"store_id"
STORE_ID_BYTES = 16
CHUNKS = b"chunks"
LOOSE = b"loose"
NOBODY = 0

_STATE = struct.Struct("<QQQ")
_RECORD = struct.Struct("<QQQQ")
_EXTENT = struct.Struct("<QQ")
_ID = struct.Struct(">Q")
_LOOSE = struct.Struct(">QQ")


class Extent(NamedTuple):
    """A chunk as part of a value."""

    id: int
    size_bytes: int


@dataclass(slots=True)
class Counters:
    """The counters of a store."""

    SIZE_BYTES: ClassVar[int] = _STATE.size

    version: int = 0
    id: int = 0

    def pack(self) -> bytes:
        return _STATE.pack(FORMAT, self.version, self.id)

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> tuple[int, Counters]:
        """Return the format and the counters."""
        number, version, last_id = _STATE.unpack(raw)
        return number, cls(version, last_id)


@dataclass(frozen=True, slots=True)
class Record:
    """What a key points at."""

    version: int
    size_bytes: int
    update_time_ns: int
    extents: Sequence[Extent]
    inline: memoryview
    """The value itself where there are no extents: a view of LMDB's page, good as long as that."""

    @classmethod
    def unpack(cls, raw: memoryview) -> Record:
        version, size, time_ns, count = _RECORD.unpack_from(raw)
        body = raw[_RECORD.size :]
        return cls(version, size, time_ns, unpack_extents(body) if count else (), body[:0] if count else body)


def pack_record(
    version: int, size_bytes: int, update_time_ns: int, extents: Sequence[Extent], inline: Iterable[memoryview]
) -> bytes:
    """Return a record's bytes; ``inline`` is the value where there are no extents."""
    header = _RECORD.pack(version, size_bytes, update_time_ns, len(extents))
    return b"".join((header, pack_extents(extents))) if extents else b"".join((header, *inline))


def record_size(size_bytes: int, extents: int) -> int:
    """Return the size of a record of ``extents``, or without any of a value of ``size_bytes``."""
    return _RECORD.size + (extents * _EXTENT.size if extents else size_bytes)


def unpack_head(raw: memoryview) -> tuple[int, int, int]:
    """Return version, size and time of a record, and leave its extents alone."""
    return _RECORD.unpack_from(raw)[:3]


def pack_extents(extents: Iterable[Extent]) -> bytes:
    return b"".join(_EXTENT.pack(*extent) for extent in extents)


def unpack_extents(raw: bytes | memoryview) -> list[Extent]:
    return [Extent(*fields) for fields in _EXTENT.iter_unpack(raw)]


def chunk_key(chunk_id: int) -> bytes:
    return _ID.pack(chunk_id)


def loose_key(owner: int, number: int) -> bytes:
    return _LOOSE.pack(owner, number)


def unpack_loose_key(raw: bytes | memoryview) -> tuple[int, int]:
    """Return the owner and the id or version."""
    owner, number = _LOOSE.unpack(raw)
    return owner, number


def encode_key(key: str) -> bytes:
    """Return a key's bytes. Raises ``InvalidArgumentError``."""
    raw = encode_prefix(key, "key")
    if not raw:
        raise InvalidArgumentError("key: must not be empty", {"field": "key"})
    return raw


def encode_prefix(text: str, field: str) -> bytes:
    """Return the bytes of what may begin a key. Raises ``InvalidArgumentError`` naming ``field``."""
    try:
        raw = text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(
            f"{field}: is not valid UTF-8: {error.reason} at character {error.start}", {"field": field}
        ) from None
    if len(raw) > MAX_KEY_BYTES:
        raise InvalidArgumentError(
            f"{field}: at most {MAX_KEY_BYTES} bytes of UTF-8 are allowed, not {len(raw)}", {"field": field}
        )
    return raw


def overlap(extents: Sequence[Extent], start: int, stop: int) -> Iterator[tuple[Extent, int, int]]:
    """Yield the extents that hold bytes of ``[start, stop)`` of a value, each with the range of its own that lies within."""
    position = 0
    for extent in extents:
        if position >= stop:
            return
        end = position + extent.size_bytes
        if end > start:
            yield extent, max(start - position, 0), min(stop - position, extent.size_bytes)
        position = end


def flat(buffer: ReadableBuffer) -> memoryview:
    """Return ``buffer`` as a view of bytes. Raises ``TypeError`` where it is not contiguous."""
    view = memoryview(buffer)
    return view if view.ndim == 1 and view.format == "B" and view.contiguous else view.cast("B")


class Pieces:
    """A sequence of buffers, none copied."""

    __slots__ = ("_views", "size_bytes")

    def __init__(self, buffers: Iterable[ReadableBuffer] = ()) -> None:
        self._views = [view for view in map(flat, buffers) if len(view)]
        self.size_bytes = sum(map(len, self._views))

    def __iter__(self) -> Iterator[memoryview]:
        return iter(self._views)

    def joined(self) -> bytes | memoryview:
        """Return the bytes in one buffer, copied only where there are several."""
        return self._views[0] if len(self._views) == 1 else b"".join(self._views)

    def cut(self, size_bytes: int) -> Iterator[Pieces]:
        """Yield parts of ``size_bytes``, the last one as long as what is left."""
        part: list[memoryview] = []
        missing = size_bytes
        for view in self._views:
            start = 0
            while len(view) - start >= missing:
                part.append(view[start : start + missing])
                start += missing
                yield Pieces(part)
                part, missing = [], size_bytes
            if start < len(view):
                part.append(view[start:])
                missing -= len(view) - start
        if part:
            yield Pieces(part)
