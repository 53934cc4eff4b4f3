"""Zero-copy reads that cannot outlive their transaction.

py-lmdb's views are not told when their transaction ends: they then show other data, and once the environment is unmapped they
kill the process. Releasing such a view does not end its slices or the NumPy arrays made of it either. So a caller never gets one,
but a view of a ``PickleBuffer`` of one: everything made of that keeps the one below from being released, which then fails with
``BufferError``. The transaction ends only when all are released.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pickle import PickleBuffer
from types import TracebackType

import lmdb

from kaas_core.errors import InternalError, ValueTooShortError
from kaasd.store.base import Entry, Namespace
from kaasd.store.environment import Environment, Transaction, translate
from kaasd.store.reading import entry_of, find_raw, read_chunk, read_entry, read_record, read_state
from kaasd.store.recent import unpack_recent
from kaasd.store.records import Damage, Extent, decode_key, encode_key, encode_prefix, overlap


class LmdbSnapshot:
    """One read transaction. Used by one thread at a time."""

    def __init__(self, environment: Environment, registry: Snapshots) -> None:
        self._environment = environment
        self._registry = registry
        self._views: list[tuple[memoryview, memoryview]] = []
        self._closed = False
        self._ended = False
        try:
            self._txn: Transaction = environment.begin()
        except lmdb.Error as error:
            raise translate(error, environment.path) from error

    def __enter__(self) -> LmdbSnapshot:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.close()
        except BufferError:
            # The frames of an exception on its way may be what holds the views; it says more than the leak.
            if error is None:
                raise

    @property
    def commit(self) -> int:
        self._check_open()
        return int(self._txn.id())

    def has(self, key: str, namespace: Namespace = Namespace.VALUES) -> bool:
        raw_key = encode_key(key)
        self._check_open()
        return find_raw(self._environment, self._txn, namespace, raw_key) is not None

    def stat(self, key: str, namespace: Namespace = Namespace.VALUES) -> Entry:
        raw_key = encode_key(key)
        self._check_open()
        return read_entry(self._environment, self._txn, namespace, raw_key)

    def pieces(
        self, key: str, offset_bytes: int = 0, size_bytes: int | None = None, namespace: Namespace = Namespace.VALUES
    ) -> Iterator[memoryview]:
        raw_key = encode_key(key)
        self._check_open()
        record = read_record(self._environment, self._txn, namespace, raw_key)
        end = record.size_bytes if size_bytes is None else offset_bytes + size_bytes
        if offset_bytes < 0 or end < offset_bytes or end > record.size_bytes:
            raise ValueTooShortError(
                f"the value of {key!r} has {record.size_bytes} bytes; the range from {offset_bytes} to {end} cannot be read",
                {"key": key, "size_bytes": str(record.size_bytes)},
            )
        if record.extents:
            return (
                self._lend(self._chunk(extent, namespace, raw_key)[start:stop])
                for extent, start, stop in overlap(record.extents, offset_bytes, end)
            )
        return iter([self._lend(record.inline[offset_bytes:end])] if end > offset_bytes else [])

    def list(self, prefix: str = "", after: str = "", limit: int = 100, namespace: Namespace = Namespace.VALUES) -> list[Entry]:
        raw_prefix, raw_after = encode_prefix(prefix, "prefix"), encode_prefix(after, "after")
        self._check_open()
        entries: list[Entry] = []
        try:
            with self._txn.cursor(self._environment.entries[namespace]) as cursor:
                start = max(raw_prefix, raw_after)
                found = cursor.set_range(start) if start else cursor.first()
                while found and len(entries) < limit:
                    raw_key = bytes(cursor.key())
                    if not raw_key.startswith(raw_prefix):
                        break
                    if raw_key > raw_after:
                        entries.append(entry_of(cursor.value(), namespace, raw_key))
                    found = cursor.next()
            if namespace is not Namespace.REPLIES:
                return entries
            entries += (
                Entry(decode_key(reply.raw_key), len(reply.value), reply.version, reply.update_time_ns)
                for reply in unpack_recent(read_state(self._environment, self._txn).recent)
                if reply.raw_key.startswith(raw_prefix) and reply.raw_key > raw_after
            )
        except lmdb.Error as error:
            raise translate(error, self._environment.path) from error
        return sorted(entries, key=lambda entry: entry.key.encode())[:limit]

    def close(self) -> None:
        """End the transaction. Idempotent.

        Raises ``BufferError`` where something still uses one of its views: the transaction then stays open, and the bytes stay
        right, until that is gone and ``end`` is called again.
        """
        if self._closed:
            return
        self._closed = True
        if not self.end():
            self._registry.leaked(self)
            sizes = ", ".join(str(len(guard)) for _, guard in self._views)
            raise BufferError(f"{len(self._views)} views of a closed snapshot are still used, of {sizes} bytes")

    def end(self) -> bool:
        """End the transaction of a closed snapshot, and return True, unless one of its views is still used."""
        self._views = [pair for pair in self._views if not _released(*pair)]
        if not self._views and not self._ended:
            self._ended = True
            self._environment.end(self._txn)
            self._registry.ended(self)
        return self._ended

    def _lend(self, guard: memoryview) -> memoryview:
        """Return a view of ``guard`` that, with everything made of it, keeps ``guard`` from being released."""
        self._check_open()
        exporter = PickleBuffer(guard)
        view = memoryview(exporter)
        exporter.release()
        self._views.append((view, guard))
        return view

    def _chunk(self, extent: Extent, namespace: Namespace, raw_key: bytes) -> memoryview:
        self._check_open()
        try:
            return read_chunk(self._environment, self._txn, extent, self._environment.verified)
        except Damage as damage:
            raise damage.of(namespace, raw_key) from None

    def _check_open(self) -> None:
        if self._closed:
            raise InternalError("the snapshot is closed")


class Snapshots:
    """The snapshots of a store that have not ended, which keeps them from being collected while their views are in use."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._open: set[LmdbSnapshot] = set()
        self._leaked: list[LmdbSnapshot] = []
        self._lock = threading.Lock()

    def open(self) -> LmdbSnapshot:
        """Open one. Raises ``QueueFullError``, ``InternalError``."""
        self.end_leaked()
        snapshot = LmdbSnapshot(self._environment, self)
        self._open.add(snapshot)
        return snapshot

    def end_leaked(self) -> None:
        """End those that were closed while their views were in use, and no longer are."""
        if self._leaked:
            with self._lock:
                self._leaked = [snapshot for snapshot in self._leaked if not snapshot.end()]

    def leaked(self, snapshot: LmdbSnapshot) -> None:
        """Take note of a closed snapshot that could not end."""
        with self._lock:
            self._leaked.append(snapshot)

    def ended(self, snapshot: LmdbSnapshot) -> None:
        """Take note of the end of one."""
        self._open.discard(snapshot)


def _released(view: memoryview, guard: memoryview) -> bool:
    try:
        view.release()
        guard.release()
    except BufferError:
        return False
    return True
