"""What a write transaction does to records and chunks, and what waits for one."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

from kaas_core.array_form import ArrayForm
from kaas_core.errors import KeyNotFoundError, StoreFullError, ValueTooShortError
from kaasd.store.accounts import Accounts, NewEntry
from kaasd.store.base import DEFAULT_ACCOUNT, Entry, KeyExistsError, Namespace
from kaasd.store.environment import Environment, Transaction
from kaasd.store.reading import count_records, entry_of, missing, read_chunk, read_state
from kaasd.store.recent import MAX_RECENT_BYTES, MAX_RECENT_REPLY_BYTES, RecentReply, find_recent, unpack_recent
from kaasd.store.records import (
    NOBODY,
    STATE_KEY,
    Damage,
    Extent,
    Head,
    Pieces,
    Record,
    chunk_key,
    loose_key,
    overlap,
    pack_loose,
    pack_record,
    pack_reply_record,
    record_size,
    unpack_loose,
    unpack_loose_key,
)

T = TypeVar("T")
_log = logging.getLogger(__name__)

FREED_AT_ONCE = 64
"""Chunks that one transaction frees: 1 GiB of 16 MiB chunks adds 2 MiB to LMDB's list of free pages."""
_MAX_INLINE_BYTES = 64 << 10
"""Copying a value behind its record costs less than a second tree up to about 256 KiB: 42 against 48 µs to commit 64 KiB, 4.4
against 5.8 µs to read it. Beyond 64 KiB the gain is small, and such runs of pages get hard to find in a full store."""
_PAGES_OF_A_WRITE = 8
"""Rewritten by putting one key, beyond the value's own."""
_PAGES_OF_SETTLING = 32
"""Rewritten by moving the last replies, some ten, into their tree: two for each, and those above them."""


@dataclass(slots=True)
class Change:
    """One checked ``Write``: the new bytes are ``extents``, written ahead, and after them ``pieces``."""

    key: str
    raw_key: bytes
    namespace: Namespace
    offset_bytes: int | None
    pieces: Pieces
    extents: list[Extent] = field(default_factory=list)
    create: bool = False
    """A range from 0 on becomes the value of a key that is missing."""
    must_be_new: bool = False
    account: str = DEFAULT_ACCOUNT
    form: ArrayForm | None = None

    @property
    def size_bytes(self) -> int:
        size = self.pieces.size_bytes
        return size + sum(extent.size_bytes for extent in self.extents) if self.extents else size


def max_inline_bytes(chunk_bytes: int) -> int:
    """Return the largest value that lies in its record."""
    return min(_MAX_INLINE_BYTES, chunk_bytes // 4)


def _ids(extents: Iterable[Extent]) -> Iterator[int]:
    return (extent.id for extent in extents)


class WriteTransaction:
    """An open write transaction. ``finish`` it before it is committed."""

    def __init__(self, environment: Environment, txn: Transaction, chunk_bytes: int = 0) -> None:
        """``chunk_bytes`` is needed where values are written."""
        self._environment = environment
        self._txn = txn
        self._chunk_bytes = chunk_bytes
        self._inline_bytes = max_inline_bytes(chunk_bytes)
        self._state = read_state(environment, txn)
        self._accounts = Accounts(environment, txn, self._state)
        self._now_ns = time.time_ns()
        self._asked_bytes = 0
        self._is_uncounted = False
        """Whether something damaged is gone, so that what it had counted for is not known."""
        self.left_garbage = False
        """Whether chunks were left for ``free_loose(NOBODY)``."""

    def finish(self) -> None:
        """Store what the store says of itself."""
        if self._is_uncounted:
            self._accounts.recount()
        self._accounts.finish()
        if self._is_uncounted:
            self._state.records = count_records(self._environment, self._txn)
        self._state.transaction = self._txn.id()
        self._txn.put(STATE_KEY, self._state.pack())

    # Checks: they change nothing, so that one who fails can share a transaction.

    def check_room(self, size_bytes: int) -> None:
        """Raises ``StoreFullError`` where ``size_bytes`` more do not fit."""
        environment = self._environment
        # The pages up to the last one, free ones too, are found at once; what is in use, tree by tree.
        if environment.end_bytes() + self._asked_bytes + size_bytes > environment.quota_bytes:
            used = environment.used_bytes(self._txn)
            if used + size_bytes > environment.quota_bytes:
                limit, kept = environment.limit_bytes, environment.limit_bytes - environment.quota_bytes
                raise StoreFullError(
                    f"the store is full: {size_bytes} bytes are needed, {used} of {limit} (--store-limit) are in use,"
                    f" {kept} are kept for deletes",
                    {"asked_bytes": str(size_bytes), "used_bytes": str(used), "limit_bytes": str(limit)},
                )
        self._asked_bytes += size_bytes
        environment.take_disk_room(self._txn, size_bytes, self._asked_bytes)

    def check(self, changes: Sequence[Change]) -> None:
        """Raises ``KaasError`` where ``changes`` cannot all be applied.

        ``KeyNotFoundError``, ``DataDamagedError`` (a range of a value that is missing, or damaged), ``ValueTooShortError``,
        ``KeyExistsError``, ``GroupLimitError``, ``StoreFullError``.
        """
        sizes: dict[tuple[Namespace, bytes], int] = {}
        needed, overhead = 0, _PAGES_OF_A_WRITE * self._environment.page_bytes
        for change in changes:
            where = (change.namespace, change.raw_key)
            size = change.size_bytes
            needed += change.pieces.size_bytes + record_size(0, len(change.extents), change.form) + overhead
            if change.namespace is Namespace.REPLIES and len(self._state.recent) + size > MAX_RECENT_BYTES // 2:
                needed += _PAGES_OF_SETTLING * self._environment.page_bytes
            if change.must_be_new and (where in sizes or self._get(*where) is not None):
                raise KeyExistsError(f"the key {change.key!r} exists", {"key": change.key})
            if change.offset_bytes is None:
                sizes[where] = size
                continue
            if where not in sizes:
                if change.create and change.offset_bytes == 0 and self._get(*where) is None:
                    sizes[where] = size
                    continue
                sizes[where] = self._size_of(change.namespace, change.raw_key)
            end = change.offset_bytes + size
            if end > sizes[where]:
                raise ValueTooShortError(
                    f"the value of {change.key!r} has {sizes[where]} bytes;"
                    f" the range from {change.offset_bytes} to {end} cannot be written",
                    {"key": change.key, "size_bytes": str(sizes[where])},
                )
            needed += min(sizes[where], 2 * self._chunk_bytes)
        if any(map(self._accounts.is_limited, {change.account for change in changes})):
            accounts = {(change.namespace, change.raw_key): change.account for change in changes}  # the last one of each
            self._accounts.check({where: NewEntry(size, accounts[where]) for where, size in sizes.items()})
        self.check_room(needed)

    def _size_of(self, namespace: Namespace, raw_key: bytes) -> int:
        raw = self._get(namespace, raw_key)
        if raw is None:
            raise missing(raw_key)
        try:
            return Head.of(raw, namespace, raw_key).size_bytes
        except Damage as damage:
            raise damage.of(namespace, raw_key) from None

    def check_key(self, namespace: Namespace, raw_key: bytes, version: int | None = None) -> None:
        """Raises ``KeyNotFoundError``; also where the key has another ``version``, which 0 is where it is damaged."""
        raw = self._get(namespace, raw_key)
        if raw is None or (version is not None and entry_of(raw, namespace, raw_key).version != version):
            raise missing(raw_key)

    # Changes

    def limit_account(self, name: str, max_stored_bytes: int, max_keys: int) -> None:
        """See ``KeyValueStore.limit_account``."""
        self._accounts.limit(name, max_stored_bytes, max_keys)

    def apply(self, changes: Sequence[Change]) -> dict[str, Entry]:
        """Apply what was checked, in order; return the new entries."""
        return {change.key: self._apply(change) for change in changes}

    def drop_compiled(self) -> int:
        """Delete some of the compiled code, which can be made again; return how many entries."""
        with self._txn.cursor(self._environment.entries[Namespace.COMPILED]) as cursor:
            raw_keys = [bytes(raw_key) for raw_key in islice(cursor.iternext(values=False), FREED_AT_ONCE)]
        for raw_key in raw_keys:
            self.delete(Namespace.COMPILED, raw_key)
        return len(raw_keys)

    def delete(self, namespace: Namespace, raw_key: bytes) -> Entry:
        """Delete a key, which was checked, damaged or not; return what it was, as far as that is known."""
        if namespace is Namespace.REPLIES:
            self.settle()
        raw = self._get(namespace, raw_key)
        if raw is None:
            raise missing(raw_key)
        entry = entry_of(raw, namespace, raw_key)
        extents = self._count_out(raw, namespace, raw_key)
        self._state.count_key(namespace, raw_key)
        self._txn.delete(raw_key, db=self._environment.entries[namespace])
        self._state.version += 1
        self._retire(extents, self._state.version)
        return entry

    def delete_versions(self, namespace: Namespace, versions: Iterable[tuple[bytes, int]]) -> int:
        """Delete the keys that have these versions still; return how many."""
        deleted = 0
        for raw_key, version in versions:
            try:
                self.check_key(namespace, raw_key, version)
            except KeyNotFoundError:
                continue
            self.delete(namespace, raw_key)
            deleted += 1
        return deleted

    def put_chunks(self, pieces: Pieces) -> list[Extent]:
        """Write ``pieces`` as new chunks."""
        extents = []
        for part in pieces.cut(self._chunk_bytes):
            self._state.id += 1
            data = part.joined()
            checksum = self._environment.checksums.begin(data)
            try:
                self._txn.put(chunk_key(self._state.id), data, db=self._environment.chunks)
            finally:
                extent = Extent(self._state.id, part.size_bytes, checksum())
            extents.append(extent)
        return extents

    def put_loose(self, pieces: Pieces) -> list[Extent]:
        """Write ``pieces`` as new chunks that this process owns until a key points at them."""
        extents = self.put_chunks(pieces)
        for extent in extents:
            self._put_loose(loose_key(self._environment.owner, extent.id), [extent])
        return extents

    def drop_loose(self, extents: Sequence[Extent]) -> None:
        """Free chunks that no key has come to point at."""
        self._claim(extents)
        self.free(_ids(extents))

    def free(self, chunk_ids: Iterable[int]) -> None:
        """Delete chunks."""
        for chunk_id in chunk_ids:
            self._txn.delete(chunk_key(chunk_id), db=self._environment.chunks)

    def free_loose(self, owner: int) -> int:
        """Delete some of the chunks that ``owner`` has left; return how many, 0 at the end."""
        freed = 0
        with self._txn.cursor(self._environment.loose) as cursor:
            while freed < FREED_AT_ONCE and cursor.set_range(loose_key(owner, 0)):
                raw_key = bytes(cursor.key())
                if unpack_loose_key(raw_key)[0] != owner:
                    break
                try:
                    extents = unpack_loose(raw_key, bytes(cursor.value()))
                except Damage as damage:
                    # They may be anybody's. Nothing finds them any more but a compaction.
                    _log.warning("the store at %s is damaged: %s; they stay", self._environment.path, damage)
                    extents, self._is_uncounted = [], True
                batch, rest = extents[: FREED_AT_ONCE - freed], extents[FREED_AT_ONCE - freed :]
                self.free(_ids(batch))
                self._delete_loose(raw_key)
                if rest:
                    self._put_loose(raw_key, rest)
                freed += len(batch)
        return freed

    def _apply(self, change: Change) -> Entry:
        if change.namespace is Namespace.REPLIES:
            if change.must_be_new and not change.extents and change.pieces.size_bytes <= MAX_RECENT_REPLY_BYTES:
                return self._apply_reply(change)
            self.settle()
        database = self._environment.entries[change.namespace]
        raw = None if change.must_be_new else self._txn.get(change.raw_key, db=database)
        is_new = raw is None
        retired: Sequence[Extent] = ()
        if change.offset_bytes is None or (raw is None and change.create):
            size, form = change.size_bytes, change.form
            if raw is not None:
                retired = self._count_out(raw, change.namespace, change.raw_key)
            extents, inline = self._place(change.extents, change.pieces, Pieces())
        else:
            assert raw is not None  # checked
            try:
                old = Record.of(raw, change.namespace, change.raw_key)
                size, form = old.size_bytes, old.form
                self._count_out(raw, change.namespace, change.raw_key)
                extents, inline, retired = self._splice(old, change, change.offset_bytes)
            except Damage as damage:
                raise damage.of(change.namespace, change.raw_key) from None
        self._claim(change.extents)
        self._state.version += 1
        version = self._state.version
        account = self._accounts.number_of(change.account)
        record = pack_record(change.namespace, change.raw_key, version, size, self._now_ns, extents, inline, account, form)
        # `raw` and `old` must not be used from here on: their views are of a page that this rewrites.
        self._txn.put(change.raw_key, record, db=database)
        if is_new:
            self._state.count_key(change.namespace, change.raw_key)
        self._state.count_record(record)
        self._accounts.count(account, change.namespace, size, 1)
        self._retire(retired, version)
        return Entry(change.key, size, version, self._now_ns, form)

    def settle(self) -> int:
        """Move the last replies into their tree, and count them; return how many."""
        recent, self._state.recent = list(unpack_recent(self._state.recent)), b""
        for reply in recent:
            record = pack_reply_record(reply)
            self._txn.put(reply.raw_key, record, db=self._environment.entries[Namespace.REPLIES])
            self._state.count_key(Namespace.REPLIES, reply.raw_key)
            self._state.count_record(record)
            self._accounts.count(reply.account, Namespace.REPLIES, len(reply.value), 1)
        return len(recent)

    def _apply_reply(self, change: Change) -> Entry:
        """Put a reply to the last ones."""
        state = self._state
        state.version = version = state.version + 1
        account = self._accounts.number_of(change.account)
        packed = RecentReply(change.raw_key, b"".join(change.pieces), account, version, self._now_ns).pack()
        if len(state.recent) + len(packed) > MAX_RECENT_BYTES:
            self.settle()
        state.recent += packed
        return Entry(change.key, change.pieces.size_bytes, version, self._now_ns)

    def _splice(self, old: Record, change: Change, start: int) -> tuple[Sequence[Extent], Pieces, list[Extent]]:
        """Lay ``change`` over ``old`` from ``start`` on: return extents or inline bytes, and which old extents are not needed.

        Raises ``Damage`` where bytes that stay are not what was written.
        """
        end = start + change.size_bytes
        if not old.extents:
            whole = bytes(old.inline)
            return *self._place(change.extents, change.pieces, Pieces([whole[:start]]), Pieces([whole[end:]])), []
        touched = list(overlap(old.extents, start, end)) if end > start else []
        if not touched:
            return old.extents, Pieces(), []
        first, cut_start, _ = touched[0]
        last, _, cut_stop = touched[-1]
        before, after = self._read(first, 0, cut_start), self._read(last, cut_stop, last.size_bytes)
        at = old.extents.index(first)
        extents, _ = self._place(change.extents, change.pieces, Pieces([before]), Pieces([after]), inline=False)
        retired = [extent for extent, _, _ in touched]
        return [*old.extents[:at], *extents, *old.extents[at + len(touched) :]], Pieces(), retired

    def _place(
        self, ahead: Sequence[Extent], pieces: Pieces, before: Pieces, after: Pieces | None = None, *, inline: bool = True
    ) -> tuple[Sequence[Extent], Pieces]:
        """Store ``before``, ``ahead``, ``pieces``, ``after`` as one run of bytes: return its extents, or what goes inline."""
        rest = Pieces([*pieces, *(after or ())])
        if ahead:
            return [*self.put_chunks(before), *ahead, *self.put_chunks(rest)], Pieces()
        whole = Pieces([*before, *rest])
        if inline and whole.size_bytes <= self._inline_bytes:
            return (), whole
        return self.put_chunks(whole), Pieces()

    def _claim(self, extents: Sequence[Extent]) -> None:
        for extent in extents:
            self._delete_loose(loose_key(self._environment.owner, extent.id))

    def _count_out(self, raw: memoryview, namespace: Namespace, raw_key: bytes) -> Sequence[Extent]:
        """A record is to go. Return its chunks, which nobody will need; none where their list is damaged: they may be others'."""
        try:
            head = Head.of(raw, namespace, raw_key)
        except Damage:
            self._is_uncounted = True
            return ()
        self._state.count_record(raw)
        self._accounts.count(head.account, namespace, head.size_bytes, -1)
        try:
            return Record.below(head, raw).extents
        except Damage:
            return ()

    def _retire(self, extents: Sequence[Extent], version: int) -> None:
        """Free what a value has left behind, or leave it to the sweep where it is much."""
        if len(extents) <= FREED_AT_ONCE:
            self.free(_ids(extents))
        else:
            self._put_loose(loose_key(NOBODY, version), extents)
            self.left_garbage = True

    def _put_loose(self, raw_key: bytes, extents: Sequence[Extent]) -> None:
        packed = pack_loose(raw_key, extents)
        self._txn.put(raw_key, packed, db=self._environment.loose)
        self._state.count_loose(packed)

    def _delete_loose(self, raw_key: bytes) -> None:
        raw = self._txn.get(raw_key, db=self._environment.loose)
        if raw is not None:
            self._state.count_loose(raw)
            self._txn.delete(raw_key, db=self._environment.loose)

    def _get(self, namespace: Namespace, raw_key: bytes) -> memoryview | None:
        """Return a key's record as this transaction has it."""
        raw = self._txn.get(raw_key, db=self._environment.entries[namespace])
        if raw is None and namespace is Namespace.REPLIES and (reply := find_recent(self._state.recent, raw_key)) is not None:
            return memoryview(pack_reply_record(reply))
        return raw

    def _read(self, extent: Extent, start: int, stop: int) -> bytes:
        """Return bytes of a chunk. Raises ``Damage``."""
        return (
            bytes(read_chunk(self._environment, self._txn, extent, self._environment.verified)[start:stop])
            if start < stop
            else b""
        )


class PendingWrite(Generic[T]):
    """What waits for a transaction that it may share with others."""

    def __init__(self) -> None:
        self.future: Future[T] = Future()

    @property
    def size_bytes(self) -> int:
        """How much it writes."""
        return 0

    @property
    def loose(self) -> Sequence[Extent]:
        """Chunks that are of no use if it fails."""
        return ()

    def check(self, transaction: WriteTransaction) -> None:
        """Raises ``KaasError`` where ``apply`` cannot be done."""
        raise NotImplementedError

    def apply(self, transaction: WriteTransaction) -> T:
        """Change the store; what this raises aborts the transaction."""
        raise NotImplementedError


class PendingCommit(PendingWrite[dict[str, Entry]]):
    """New values."""

    def __init__(self, changes: Sequence[Change]) -> None:
        super().__init__()
        self.changes = changes

    @property
    def size_bytes(self) -> int:
        return sum(change.pieces.size_bytes for change in self.changes)

    @property
    def loose(self) -> Sequence[Extent]:
        return [extent for change in self.changes for extent in change.extents]

    def check(self, transaction: WriteTransaction) -> None:
        transaction.check(self.changes)

    def apply(self, transaction: WriteTransaction) -> dict[str, Entry]:
        return transaction.apply(self.changes)


class PendingDelete(PendingWrite[Entry]):
    """A key's end."""

    def __init__(self, namespace: Namespace, raw_key: bytes, version: int | None = None) -> None:
        super().__init__()
        self._what = (namespace, raw_key)
        self._version = version

    def check(self, transaction: WriteTransaction) -> None:
        transaction.check_key(*self._what, self._version)

    def apply(self, transaction: WriteTransaction) -> Entry:
        return transaction.delete(*self._what)


class PendingLimit(PendingWrite[None]):
    """How much an account may have."""

    def __init__(self, name: str, max_stored_bytes: int, max_keys: int) -> None:
        super().__init__()
        self._what = (name, max_stored_bytes, max_keys)

    def check(self, transaction: WriteTransaction) -> None:
        """Nothing is in its way."""

    def apply(self, transaction: WriteTransaction) -> None:
        transaction.limit_account(*self._what)
