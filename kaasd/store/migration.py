"""Brings a store of an older format into today's.

Format 5 had no forms of arrays in its records. Format 4 had no replies in its counters. Format 3 had no accounts: no record said
whom it counts for, and all count for the first account. Format 2 had no tree for replies either. What is missing is added in the
file, in one transaction. Format 1 had no checksums: the store is copied into a new file, and the old one stays beside it.

A record of format 1 was version, size, time and number of extents, and then the value or its extents, each an id and a size; the
counters were format, version and id. Everything else was as it is now.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lmdb

from kaas_core.errors import CancelledError, StoreForeignError, StoreFullError
from kaasd.store.base import DEFAULT_ACCOUNT, Account, Namespace
from kaasd.store.checksums import checksum
from kaasd.store.directory import (
    DATA_FILE,
    DATABASES,
    LMDB_MAJOR_VERSION,
    OLD_DATABASES,
    OWNERS_FILE,
    sync_directory,
)
from kaasd.store.disk_room import new_file_prefix, room_problem, take_first_room
from kaasd.store.lmdb_file import LmdbFile
from kaasd.store.records import (
    ACCOUNTS,
    CHUNKS,
    COUNTED,
    FORMAT,
    STATE_KEY,
    STORE_ID_BYTES,
    STORE_ID_KEY,
    Damage,
    Extent,
    Head,
    StoreState,
    account_key,
    chunk_key,
    pack_account,
    pack_record,
    pack_store_id,
    unpack_format,
)
from kaasd.store.sums import NAMESPACES
from kaasd.store.trees import check_trees

_STATE = struct.Struct("<QQQ")
_RECORD = struct.Struct("<QQQQ")
_EXTENT = struct.Struct("<QQ")
_BATCH_BYTES = 64 << 20
"""Copied in one transaction."""
_PROGRESS_S = 10.0
_SPARE_BYTES = 64 << 20

_OLD_NAMESPACES = tuple(namespace for namespace in Namespace if namespace.name.lower().encode() in OLD_DATABASES)

_log = logging.getLogger(__name__)


def migrate(path: Path, is_stopped: Callable[[], bool] = lambda: False) -> None:
    """Put a new ``data.mdb`` with all of the store at ``path`` in the place of the old one, which is kept: see ``old_file``.

    Where that is a link, this is done where it leads. What is damaged already, as far as format 1 shows that, is damaged in the
    new file too; nothing is changed before the new file is whole. Raises ``StoreForeignError`` (the trees are damaged, another
    file is where the old one would be kept, another process has the store open), ``StoreFullError``, ``CancelledError``
    (stopped), ``OSError``, ``lmdb.Error``.
    """
    file = (path / DATA_FILE).resolve()
    kept = old_file(file)
    with _alone(path):
        if kept.exists() and not kept.samefile(file):
            raise StoreForeignError(f"{file} has an old format, and {kept}, where it would be kept, exists; move that away")
        with LmdbFile(file) as found:
            check_trees(found, found.meta, 0, lambda *_: _go_on(is_stopped))
        _check_room(file)
        began = time.monotonic()
        descriptor, name = tempfile.mkstemp(prefix=new_file_prefix(file), suffix=".mdb", dir=file.parent)
        os.close(descriptor)
        try:
            _log.info("%s has an old format: it is copied into today's", file)
            entries = _copy(file, Path(name), is_stopped)
            take_first_room(Path(name))
            if not kept.exists():
                os.link(file, kept)
            Path(name).replace(file)
        except (lmdb.Error, OSError) as error:
            if problem := room_problem(error, file.parent):
                raise StoreFullError(
                    f"{file} has an old format, and could not be copied into today's: {problem} ({error})"
                ) from error
            raise
        finally:
            Path(name).unlink(missing_ok=True)
        sync_directory(file.parent)
    _log.info("%d entries were copied in %.1f s; the old file is kept as %s", entries, time.monotonic() - began, kept)


def upgrade(path: Path) -> None:
    """Add to the store of format 2 to 5 at ``path``, which was looked at, what it lacks, all of it or nothing.

    All that is there in formats 2 and 3 counts for the first account; that takes some microseconds an entry. Raises
    ``StoreForeignError`` (another process has it open), ``OSError``, ``lmdb.Error``.
    """
    file = (path / DATA_FILE).resolve()
    with (
        _alone(path),
        lmdb.open(
            str(file),
            subdir=False,
            lock=False,
            max_dbs=len(DATABASES),
            map_size=file.stat().st_size + _SPARE_BYTES,
            lib_version=LMDB_MAJOR_VERSION,
        ) as environment,
        environment.begin(write=True) as txn,
    ):
        raw = txn.get(STATE_KEY, b"")
        if unpack_format(raw) == FORMAT:  # another process was faster
            return
        state = StoreState.unpack(raw)
        databases = {name: environment.open_db(name, txn=txn) for name in DATABASES}
        if unpack_format(raw) < 4:
            raw_key, account = _default_account(_count(txn, databases))
            txn.put(raw_key, account, db=databases[ACCOUNTS])
            state.count_loose(account)
        state.transaction = txn.id()
        txn.put(STATE_KEY, state.pack())
    _log.info("%s had an old format, and has today's now; earlier versions of kaasd do not open it any more", file)


def _count(txn: lmdb.Transaction[bytes], databases: Mapping[bytes, Any]) -> Account:
    """Return what all that is there counts for."""
    stored_bytes = keys = 0
    for name, namespace in NAMESPACES.items():
        if namespace in COUNTED:
            with txn.cursor(databases[name]) as cursor:
                for value in cursor.iternext(keys=False):
                    with suppress(Damage):
                        stored_bytes += Head.unpack(value).size_bytes
                        keys += namespace is Namespace.VALUES
    return Account(stored_bytes, keys)


def _default_account(account: Account) -> tuple[bytes, bytes]:
    """Return the key and the value of the account that all counts for."""
    raw_key = account_key(0, DEFAULT_ACCOUNT)
    return raw_key, pack_account(raw_key, account)


def old_file(file: Path) -> Path:
    """Return where a store's file of before is kept: ``data-format1.mdb``, beside ``data.mdb``."""
    return file.with_name(f"{file.stem}-format1{file.suffix}")


def _go_on(is_stopped: Callable[[], bool]) -> bool:
    """Raises ``CancelledError`` where this is to end; returns True."""
    if is_stopped():
        raise CancelledError("the store has an old format, and copying it into today's was stopped; nothing was changed")
    return True


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes from opening the store. Raises ``StoreForeignError`` where one has it open."""
    descriptor = os.open(path / OWNERS_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StoreForeignError(f"{path} has an old format, and another process has it open; end that first") from None
        yield
    finally:
        os.close(descriptor)


def _check_room(file: Path) -> None:
    stored = file.stat().st_blocks * 512
    needed, free = stored + _SPARE_BYTES, shutil.disk_usage(file.parent).free
    if needed > free:
        raise StoreFullError(
            f"{file} has an old format. Copying it into today's takes {needed} bytes, but its file system has {free}",
            {"asked_bytes": str(needed), "free_bytes": str(free)},
        )


def _copy(old_path: Path, new_path: Path, is_stopped: Callable[[], bool]) -> int:
    """Copy all that keys point at, and have it on the disk; return how many keys there are."""
    size_bytes = old_path.stat().st_size
    settings: dict[str, Any] = {
        "subdir": False,
        "lock": False,
        "max_dbs": len(DATABASES),
        "lib_version": LMDB_MAJOR_VERSION,
    }
    with (
        lmdb.open(str(old_path), readonly=True, **settings) as old,
        lmdb.open(str(new_path), sync=False, map_size=2 * size_bytes + _SPARE_BYTES, **settings) as new,
        old.begin(buffers=True) as source,
    ):
        migration = _Migration(old, new, source, is_stopped)
        for namespace in _OLD_NAMESPACES:
            migration.copy(namespace)
        migration.finish()
        new.sync(True)
        return migration.entries


class _Migration:
    """One store on its way into another file."""

    def __init__(
        self,
        old: lmdb.Environment,
        new: lmdb.Environment,
        source: lmdb.Transaction[memoryview],
        is_stopped: Callable[[], bool],
    ) -> None:
        self.entries = 0
        self._is_stopped = is_stopped
        self._old = {name: old.open_db(name, txn=source) for name in OLD_DATABASES}
        self._new = {name: new.open_db(name) for name in DATABASES}
        self._environment = new
        self._source = source
        self._target = new.begin(write=True)
        self._state = StoreState()
        self._uses: Counter[int] = Counter()
        """How many records have a chunk, by its id: one, unless something is damaged."""
        self._last_version = 0
        self._stored_bytes = self._keys = 0
        self._look_ahead()
        self._batch_bytes = 0
        self._told = time.monotonic()

    def _look_ahead(self) -> None:
        """Read what all records say of chunks and versions."""
        for namespace in _OLD_NAMESPACES:
            with self._source.cursor(self._old[namespace.name.lower().encode()]) as cursor:
                for _, raw in cursor:
                    _go_on(self._is_stopped)
                    with suppress(struct.error):
                        version, _, _, count = _RECORD.unpack_from(raw)
                        self._last_version = max(self._last_version, version)
                        if count:
                            self._uses.update(number for number, _ in _EXTENT.iter_unpack(raw[_RECORD.size :]))

    def copy(self, namespace: Namespace) -> None:
        name = namespace.name.lower().encode()
        with self._source.cursor(self._old[name]) as cursor:
            for raw_key, raw in cursor:
                record = self._record(namespace, bytes(raw_key), raw)  # may begin another transaction
                self._target.put(raw_key, record, db=self._new[name])
                self._state.count_key(namespace, bytes(raw_key))
                self._state.count_record(record)
                with suppress(Damage):
                    self._stored_bytes += Head.unpack(record).size_bytes
                    self._keys += namespace is Namespace.VALUES
                self.entries += 1
                self._copied(len(raw))

    def finish(self) -> None:
        _, version, last_id = _STATE.unpack(self._source.get(STATE_KEY, b""))
        store_id = bytes(self._source.get(STORE_ID_KEY, b"")) or os.urandom(STORE_ID_BYTES)
        # Nothing shows whether these are right, and none may be given twice.
        self._state.version, self._state.id = max(version, self._last_version), max([last_id, *self._uses])
        raw_key, account = _default_account(Account(self._stored_bytes, self._keys))
        self._target.put(raw_key, account, db=self._new[ACCOUNTS])
        self._state.count_loose(account)
        self._state.transaction = self._target.id()
        self._target.put(STATE_KEY, self._state.pack())
        self._target.put(STORE_ID_KEY, pack_store_id(store_id))
        self._target.commit()

    def _record(self, namespace: Namespace, raw_key: bytes, raw: memoryview) -> bytes:
        """Copy the chunks of a record; return the new one, and a broken one as it is: it stays broken."""
        try:
            version, size, time_ns, count = _RECORD.unpack_from(raw)
            body = raw[_RECORD.size :]
            listed = list(_EXTENT.iter_unpack(body)) if count else []
        except struct.error:
            return bytes(raw)
        if any(self._uses[number] > 1 for number, _ in listed):
            return bytes(raw)  # nothing shows whose they are
        if len(listed) != count or size != (sum(part for _, part in listed) if count else len(body)):
            return bytes(raw)
        extents = [self._chunk(number, part) for number, part in listed]
        return pack_record(namespace, raw_key, version, size, time_ns, extents, [body] if not count else ())

    def _chunk(self, number: int, size_bytes: int) -> Extent:
        chunk = self._source.get(chunk_key(number), db=self._old[CHUNKS])
        if chunk is None:
            return Extent(number, size_bytes, 0)
        self._target.put(chunk_key(number), chunk, db=self._new[CHUNKS])
        self._copied(len(chunk))
        return Extent(number, size_bytes, checksum(chunk))

    def _copied(self, size_bytes: int) -> None:
        _go_on(self._is_stopped)
        self._batch_bytes += size_bytes
        if self._batch_bytes > _BATCH_BYTES:
            self._target.commit()
            self._environment.sync(True)  # so that nobody has to wait long for the end of it
            self._target = self._environment.begin(write=True)
            self._batch_bytes = 0
        if time.monotonic() > self._told + _PROGRESS_S:
            self._told = time.monotonic()
            _log.info("%d entries are copied", self.entries)
