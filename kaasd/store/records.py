"""What lies in LMDB as bytes: keys, records, counters, and the pieces of values, with their checksums. Pure.

=============  ========================================  ==========================================================
database       key                                       value
=============  ========================================  ==========================================================
(main)         ``state``                                 format, last version, last id, transaction, sums of all keys and
                                                         records; the last replies, see ``recent``; checksum
(main)         ``store_id``                              128 random bits, which no other store has; checksum
one of each    the key, UTF-8                            a record: version, size, time, number of extents, checksums of
namespace                                                the key, of the body and of these fields; and then the body: the
                                                         value itself (no extents) or its extents in order. The upper 16 bits of
                                                         the size are the number of the account that it counts for. The upper
                                                         bit of the number of extents says that the body begins with the form
                                                         of an array: length, checksum, order, dimensions, dtype
``accounts``   number, big-endian; name, UTF-8           checksum; what a group has stored, and may store
``chunks``     id, big-endian                            bytes of a value, at most ``chunk_bytes``
``loose``      owner, id or version, big-endian          checksum; extents that no key points at
=============  ========================================  ==========================================================

An extent is one chunk: its id, its size and its checksum. Ids and versions are taken from counters, in the transaction that
uses them. A chunk belongs to one record, or is loose: on its way in (its owner is the id of a process), or on its way out
(``NOBODY``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kaas_core import ReadableBuffer
from kaas_core.array_form import ArrayForm
from kaas_core.errors import DataDamagedError, InvalidArgumentError
from kaas_core.validation import MAX_KEY_BYTES
from kaasd.store.base import Account, Namespace
from kaasd.store.checksums import checksum
from kaasd.store.recent import RecentReply

FORMAT = 6
"""Of what is described here. Format 5 had no forms of arrays, format 4 had all replies in their tree, format 3 no accounts,
format 2 no replies either, format 1 no checksums: see ``migration``."""
STATE_KEY = b"state"
STORE_ID_KEY = b"store_id"
STORE_ID_BYTES = 16
CHUNKS = b"chunks"
LOOSE = b"loose"
ACCOUNTS = b"accounts"
NOBODY = 0
COUNTED = frozenset((Namespace.VALUES, Namespace.LIBRARIES, Namespace.FUNCTIONS, Namespace.REPLIES))
"""Namespaces whose entries count for an account. Only values count as keys."""

_FORMAT = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<Q")
_STATE_FIELDS = struct.Struct("<QQQQQQ")
_FIELDS = struct.Struct("<QQQIIQ")
_RECORD = struct.Struct(_FIELDS.format + "Q")
_EXTENT = struct.Struct("<QQQ")
_ID = struct.Struct(">Q")
_LOOSE = struct.Struct(">QQ")
_ACCOUNT_NUMBER = struct.Struct(">H")
_ACCOUNT = struct.Struct("<qqQQ")
_FORM = struct.Struct("<HQ")
_FORM_FIELDS = struct.Struct("<BB")
_HAS_FORM = 1 << 31
"""Of the number of extents: 2^31 of them are more than a store can hold pages."""
_SIZE_BITS = 48
"""Of the size of a value: the most that a store may hold, 64 TiB, takes 46."""
_SIZE_MASK = (1 << _SIZE_BITS) - 1
MAX_ACCOUNTS = 1 << 16
_KEY_BITS = 0xFFFFFFFF
"""Of a key's checksum that stand in its record."""
RECORD_BYTES = _RECORD.size
MIN_STATE_BYTES = _STATE_FIELDS.size + _CHECKSUM.size


class Damage(Exception):
    """Something stored is not what was written; the text says what."""

    def of(self, namespace: Namespace, raw_key: bytes) -> DataDamagedError:
        """Return the error that a caller should see where this is a key's."""
        kind, key = namespace.noun, decode_key(raw_key)
        advice = "Store it again, or delete it"
        if namespace is Namespace.REPLIES:
            advice = "That request has run, but with what reply is not known; with another request_id it runs again"
        return DataDamagedError(
            f"the {kind} {key!r} is damaged: {self}. {advice}; kaasctl store check finds all that is damaged",
            {"kind": kind, "key": key},
        )


class Extent(NamedTuple):
    """A chunk as part of a value."""

    id: int
    size_bytes: int
    checksum: int


@dataclass(slots=True)
class StoreState:
    """What a store says of itself."""

    version: int = 0
    """The last that was given."""
    id: int = 0
    """The last that was given."""
    transaction: int = 1
    """Of LMDB, which wrote this; a compact copy counts anew."""
    keys: int = 0
    """The checksums of all keys, added without carry: so each is added, and taken away, by the same operation."""
    records: int = 0
    """The same of the heads of all records, of all loose extents and of all accounts, as they stand there: whether all are of one
    transaction."""
    recent: bytes = b""
    """The last replies, see ``recent``; they are in no tree, and so in neither sum, nor in what an account says."""

    def count_key(self, namespace: Namespace, raw_key: bytes) -> None:
        """Count a key in, or out."""
        self.keys ^= _key_checksum(namespace, raw_key)

    def count_record(self, raw: bytes | memoryview) -> None:
        """Count a record in, or out."""
        if len(raw) >= _RECORD.size:
            self.records ^= _CHECKSUM.unpack_from(raw, _FIELDS.size)[0]

    def count_loose(self, raw: bytes | memoryview) -> None:
        """Count what stands at a key of ``loose`` or ``accounts`` in, or out."""
        self.records ^= int.from_bytes(raw[: _CHECKSUM.size], "little")

    def pack(self) -> bytes:
        fields = _STATE_FIELDS.pack(FORMAT, self.version, self.id, self.transaction, self.keys, self.records) + self.recent
        return fields + _CHECKSUM.pack(checksum(fields))

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> StoreState:
        """Raises ``Damage``; the format is the caller's to look at."""
        if len(raw) < MIN_STATE_BYTES:
            raise Damage("its counters are missing")
        end = len(raw) - _CHECKSUM.size
        if checksum(raw[:end]) != _CHECKSUM.unpack_from(raw, end)[0]:
            raise Damage("its counters were changed")
        _, version, last_id, transaction, keys, records = _STATE_FIELDS.unpack_from(raw)
        return cls(version, last_id, transaction, keys, records, bytes(raw[_STATE_FIELDS.size : end]))


def head_change(raw: bytes | memoryview) -> int:
    """Return what ``StoreState.records`` changes by if a head's checksum was changed, and not what it is of; 0 if neither was."""
    return checksum(raw[: _FIELDS.size]) ^ int(_CHECKSUM.unpack_from(raw, _FIELDS.size)[0])


def loose_change(raw_key: bytes, raw: bytes) -> int:
    """Return the same for what stands at a key of ``loose`` or ``accounts``."""
    return checksum(raw_key + raw[_CHECKSUM.size :]) ^ int.from_bytes(raw[: _CHECKSUM.size], "little")


def body_is_intact(raw: bytes) -> bool:
    """Whether a record whose head is damaged has a body that fits the checksum which the head has of it."""
    return bool(checksum(raw[_RECORD.size :]) == Head._make(_RECORD.unpack_from(raw)).body_checksum)


def unpack_format(state: bytes) -> int:
    """Return a store's format, 0 where ``state`` is not one of ours."""
    return int(_FORMAT.unpack_from(state)[0]) if len(state) >= _FORMAT.size else 0


def pack_store_id(store_id: bytes) -> bytes:
    return store_id + _CHECKSUM.pack(checksum(store_id))


def unpack_store_id(raw: bytes | memoryview) -> bytes:
    """Return the id. Raises ``Damage``."""
    store_id = bytes(raw[:STORE_ID_BYTES])
    if raw != pack_store_id(store_id):
        raise Damage("its id was changed")
    return store_id


class Head(NamedTuple):
    """What a record says of its value."""

    version: int
    size_and_account: int
    update_time_ns: int
    extents_and_form: int
    key_checksum: int
    body_checksum: int
    checksum: int

    @property
    def size_bytes(self) -> int:
        return self.size_and_account & _SIZE_MASK

    @property
    def account(self) -> int:
        """The number of the account that the value counts for; in stores of before, all are of the first one."""
        return self.size_and_account >> _SIZE_BITS

    @property
    def extents(self) -> int:
        """How many; 0: the value lies in the record."""
        return self.extents_and_form & ~_HAS_FORM

    def form(self, raw: memoryview) -> ArrayForm | None:
        """Return what the record says that its value is to its users. Raises ``Damage``."""
        return unpack_form(raw[_RECORD.size :])[0] if self.extents_and_form & _HAS_FORM else None

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Head:
        """Read a record's head, whosever it is. Raises ``Damage``."""
        if len(raw) < _RECORD.size:
            raise Damage("its record is cut short")
        head = cls._make(_RECORD.unpack_from(raw))
        if checksum(raw[: _FIELDS.size]) != head.checksum:
            raise Damage("its record was changed")
        return head

    @classmethod
    def of(cls, raw: memoryview, namespace: Namespace, raw_key: bytes) -> Head:
        """Read the head of a key's record. Raises ``Damage``."""
        head = cls.unpack(raw)
        if not head.is_of(namespace, raw_key):
            raise Damage("its record is that of another key")
        return head

    def is_of(self, namespace: Namespace, raw_key: bytes) -> bool:
        """Whether the record was written for this key."""
        return _key_checksum(namespace, raw_key) & _KEY_BITS == self.key_checksum


def _key_checksum(namespace: Namespace, raw_key: bytes) -> int:
    return checksum(raw_key, namespace.number)


@dataclass(frozen=True, slots=True)
class Record:
    """What a key points at."""

    version: int
    size_bytes: int
    update_time_ns: int
    extents: Sequence[Extent]
    inline: memoryview
    """The value itself where there are no extents: a view of LMDB's page, good as long as that."""
    form: ArrayForm | None = None

    @classmethod
    def of(cls, raw: memoryview, namespace: Namespace, raw_key: bytes) -> Record:
        """Read a key's record. Raises ``Damage``."""
        return cls.below(Head.of(raw, namespace, raw_key), raw)

    @classmethod
    def below(cls, head: Head, raw: memoryview) -> Record:
        """Read a record whose head has been read. Raises ``Damage``."""
        body = raw[_RECORD.size :]
        if checksum(body) != head.body_checksum:
            raise Damage("the list of its chunks was changed" if head.extents else "its bytes are not those that were written")
        form = None
        if head.extents_and_form & _HAS_FORM:
            form, body = unpack_form(body)
        extents = unpack_extents(body) if head.extents else ()
        return cls(head.version, head.size_bytes, head.update_time_ns, extents, body[:0] if head.extents else body, form)


def pack_record(
    namespace: Namespace,
    raw_key: bytes,
    version: int,
    size_bytes: int,
    update_time_ns: int,
    extents: Sequence[Extent],
    inline: Iterable[ReadableBuffer],
    account: int = 0,
    form: ArrayForm | None = None,
) -> bytes:
    """Return the bytes of a key's record; ``inline`` is the value where there are no extents, ``account`` a number."""
    body = pack_extents(extents) if extents else b"".join(inline)
    count = len(extents)
    if form is not None:
        body, count = pack_form(form) + body, count | _HAS_FORM
    key_checksum = _key_checksum(namespace, raw_key) & _KEY_BITS
    size_and_account = size_bytes | account << _SIZE_BITS
    fields = _FIELDS.pack(version, size_and_account, update_time_ns, count, key_checksum, checksum(body))
    return b"".join((fields, _CHECKSUM.pack(checksum(fields)), body))


def pack_reply_record(reply: RecentReply) -> bytes:
    """Return the bytes of a reply's record."""
    return pack_record(
        Namespace.REPLIES,
        reply.raw_key,
        reply.version,
        len(reply.value),
        reply.update_time_ns,
        (),
        [reply.value],
        reply.account,
    )


def record_size(size_bytes: int, extents: int, form: ArrayForm | None = None) -> int:
    """Return the size of a record of ``extents``, or without any of a value of ``size_bytes``."""
    form_bytes = 0 if form is None else len(pack_form(form))
    return _RECORD.size + form_bytes + (extents * _EXTENT.size if extents else size_bytes)


def pack_form(form: ArrayForm) -> bytes:
    """Return what a body begins with. It has a checksum of its own, so that a look at an entry need not read its value."""
    dimensions = struct.pack(f"<{len(form.shape)}Q", *form.shape)
    packed = _FORM_FIELDS.pack(form.fortran_order, len(form.shape)) + dimensions + form.dtype.encode()
    return _FORM.pack(len(packed), checksum(packed)) + packed


def unpack_form(body: memoryview) -> tuple[ArrayForm, memoryview]:
    """Return a form, and the body without it. Raises ``Damage``."""
    try:
        size, form_checksum = _FORM.unpack_from(body)
        end = _FORM.size + size
        packed = bytes(body[_FORM.size : end])
        if len(packed) != size or checksum(packed) != form_checksum:
            raise Damage("what it is as an array was changed")
        fortran_order, count = _FORM_FIELDS.unpack_from(packed)
        shape = struct.unpack_from(f"<{count}Q", packed, _FORM_FIELDS.size)
        dtype = packed[_FORM_FIELDS.size + 8 * count :].decode()
    except (struct.error, UnicodeDecodeError):
        raise Damage("what it is as an array was cut short") from None
    return ArrayForm(dtype, shape, bool(fortran_order)), body[end:]


def pack_extents(extents: Iterable[Extent]) -> bytes:
    return b"".join(_EXTENT.pack(*extent) for extent in extents)


def unpack_extents(raw: bytes | memoryview) -> list[Extent]:
    return [Extent(*fields) for fields in _EXTENT.iter_unpack(raw)]


def pack_loose(raw_key: bytes, extents: Iterable[Extent]) -> bytes:
    """Return what stands at a key of ``loose``."""
    packed = pack_extents(extents)
    return _CHECKSUM.pack(checksum(raw_key + packed)) + packed


def unpack_loose(raw_key: bytes, raw: bytes) -> list[Extent]:
    """Return the extents. Raises ``Damage``: who frees chunks must not take others' for them."""
    packed = raw[_CHECKSUM.size :]
    if len(packed) % _EXTENT.size or raw[: _CHECKSUM.size] != _CHECKSUM.pack(checksum(raw_key + packed)):
        raise Damage("a list of chunks was changed")
    return unpack_extents(packed)


def chunk_key(chunk_id: int) -> bytes:
    return _ID.pack(chunk_id)


def unpack_chunk_key(raw: bytes | memoryview) -> int:
    """Return the id."""
    (chunk_id,) = _ID.unpack(raw)
    return int(chunk_id)


def loose_key(owner: int, number: int) -> bytes:
    return _LOOSE.pack(owner, number)


def unpack_loose_key(raw: bytes | memoryview) -> tuple[int, int]:
    """Return the owner and the id or version."""
    owner, number = _LOOSE.unpack(raw)
    return owner, number


def account_key(number: int, name: str) -> bytes:
    return _ACCOUNT_NUMBER.pack(number) + name.encode()


def unpack_account_key(raw: bytes | memoryview) -> tuple[int, str]:
    """Return the number and the name."""
    (number,) = _ACCOUNT_NUMBER.unpack_from(raw)
    return number, decode_key(bytes(raw[_ACCOUNT_NUMBER.size :]))


def pack_account(raw_key: bytes, account: Account) -> bytes:
    """Return what stands at a key of ``accounts``."""
    packed = _ACCOUNT.pack(*account)
    return _CHECKSUM.pack(checksum(raw_key + packed)) + packed


def unpack_account(raw_key: bytes, raw: bytes) -> Account:
    """Return the account. Raises ``Damage``."""
    packed = raw[_CHECKSUM.size :]
    if len(packed) != _ACCOUNT.size or raw[: _CHECKSUM.size] != _CHECKSUM.pack(checksum(raw_key + packed)):
        raise Damage("what a group has stored was changed")
    return Account(*_ACCOUNT.unpack(packed))


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


def decode_key(raw_key: bytes) -> str:
    """Return the key of these bytes; what is not UTF-8 is escaped, for a key that is damaged too."""
    return raw_key.decode(errors="backslashreplace")


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
