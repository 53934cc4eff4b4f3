"""Frames of the local channel, as bytes: a length of four bytes, little-endian, then a ``LocalFrame``. Does no I/O."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from google.protobuf.message import Message

from kaas.v1 import local_pb2

LENGTH = struct.Struct("<I")
MOST_IDENTITY_BYTES = 11
"""A frame's ``id`` at its beginning: a tag and a number."""

_FIELDS = local_pb2.LocalFrame.DESCRIPTOR.fields_by_name
_TAGS = {field.name: bytes([field.number << 3 | 2]) for field in _FIELDS.values() if field.message_type is not None}
_ID_TAG = _FIELDS["id"].number << 3


def to_frame(id: int, field: str, body: Message, timeout_ns: int = 0) -> list[bytes]:
    """Return a frame, in pieces, whose ``field`` is ``body``, or another message of the same fields; that is not copied."""
    content = body.SerializeToString()
    head = local_pb2.LocalFrame(id=id, timeout_ns=timeout_ns).SerializeToString() + _TAGS[field] + _varint(len(content))
    return [LENGTH.pack(len(head) + len(content)) + head, content]


def size_of(frame: Sequence[bytes]) -> int:
    """Return what a frame says that its length is."""
    return sum(map(len, frame)) - LENGTH.size


class FrameTooLarge(Exception):
    """A frame is larger than allowed. Its bytes are skipped, also those that are still to come."""

    def __init__(self, size_bytes: int, begin: bytes) -> None:
        """``begin`` are its first bytes."""
        super().__init__(f"a frame of {size_bytes} bytes")
        self.size_bytes = size_bytes
        self.id = _leading_id(begin)
        """Its id, or 0 where it does not begin with that."""


class FrameReader:
    """Cuts the bytes that come into frames."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._data = memoryview(b"")
        self._more = bytearray()
        self._skip_bytes = 0

    def feed(self, data: bytes) -> None:
        """Take what has come."""
        if self._skip_bytes:
            skipped = min(self._skip_bytes, len(data))
            self._skip_bytes -= skipped
            data = data[skipped:]
        if not self._data and not self._more:
            self._data = memoryview(data)
        else:
            self._more += data

    @property
    def is_within(self) -> bool:
        """Whether part of a frame has come that ``next`` does not return yet."""
        return bool(self._data or self._more or self._skip_bytes)

    def next(self) -> memoryview | None:
        """Return the next frame without its length; None where not all of it has come. Raises ``FrameTooLarge``."""
        available = len(self._data) + len(self._more)
        if available < LENGTH.size:
            return None
        if len(self._data) < LENGTH.size:
            self._join()
        (size_bytes,) = LENGTH.unpack_from(self._data)
        end = LENGTH.size + size_bytes
        if size_bytes > self._max_bytes:
            if available < min(end, LENGTH.size + MOST_IDENTITY_BYTES):
                return None
            self._join()
            begin = bytes(self._data[LENGTH.size : LENGTH.size + MOST_IDENTITY_BYTES])
            self._skip_bytes = max(0, end - available)
            self._data = self._data[end:]
            raise FrameTooLarge(size_bytes, begin)
        if available < end:
            return None
        if len(self._data) < end:
            self._join()
        frame, self._data = self._data[LENGTH.size : end], self._data[end:]
        return frame

    def _join(self) -> None:
        if self._more:
            self._data = memoryview(b"".join((self._data, self._more)))
            self._more = bytearray()


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _leading_id(begin: bytes) -> int:
    if not begin or begin[0] != _ID_TAG:
        return 0
    value = 0
    for index, byte in enumerate(begin[1:]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value
    return 0
