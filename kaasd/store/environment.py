"""A process's LMDB environment: opening it, beginning transactions in company of other processes, and its errors as ours."""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeAlias, TypeVar

import lmdb

from kaas_core.errors import (
    DataDamagedError,
    InternalError,
    InvalidArgumentError,
    KaasError,
    QueueFullError,
    StoreForeignError,
    StoreFullError,
    StoreGoneError,
)
from kaasd.store.base import Account, Durability, Namespace, StoreMapping
from kaasd.store.checksums import ChecksumThread, VerifiedChunks
from kaasd.store.directory import (
    DATA_FILE,
    DATABASES,
    LMDB_LOCK_FILE,
    LMDB_MAJOR_VERSION,
    MIN_LIMIT_BYTES,
    OWNERS_FILE,
    StoreIdentity,
    prepare,
)
from kaasd.store.disk_room import DiskRoom, fill_lock_file, is_full, keep_for_deletes, room_problem, take_lock_file
from kaasd.store.lmdb_file import LmdbFile, Meta
from kaasd.store.migration import migrate, upgrade
from kaasd.store.records import ACCOUNTS, CHUNKS, FORMAT, LOOSE, STORE_ID_KEY, Damage, unpack_store_id

Transaction: TypeAlias = "lmdb.Transaction[memoryview]"
T = TypeVar("T")

_MAX_OWNER = 2**62
"""Bytes of a file can be locked up to 2^63. Nobody meets another's number by chance."""
_RESIZE_TIMEOUT_S = 10.0
"""Snapshots are held for milliseconds; one that blocks a resize for so long will not end."""


class Environment:
    """An open LMDB environment. One a process for each path, and never used across a fork."""

    def __init__(
        self,
        path: Path,
        *,
        limit_bytes: int,
        durability: Durability,
        max_readers: int,
        identity: StoreIdentity | None = None,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """``identity``: only this store is opened, and none is made. ``is_stopped``: see ``LmdbStore``."""
        if limit_bytes < MIN_LIMIT_BYTES:
            raise InvalidArgumentError(
                f"limit_bytes: must be at least {MIN_LIMIT_BYTES}, not {limit_bytes}", {"field": "limit_bytes"}
            )
        self.path = path
        self.limit_bytes = limit_bytes
        self.quota_bytes = limit_bytes - keep_for_deletes(limit_bytes)
        self._pid = os.getpid()
        self._turn = threading.Condition()
        self._open = 0
        self._resizing = False
        self._closed = False
        self._synced = -1
        """A transaction with which all of the file was on the disk."""
        self.verified = VerifiedChunks()
        self.checksums = ChecksumThread()
        with ExitStack() as stack:
            try:
                if identity is None:
                    number = prepare(path, sync=durability is not Durability.NONE)
                    if number == 1:
                        migrate(path, is_stopped)
                    elif number != FORMAT:
                        upgrade(path)
                else:
                    identity.check()
                    LmdbFile(path / DATA_FILE).close()  # whole still: what is missing kills who maps it
                take_lock_file(path / LMDB_LOCK_FILE, max_readers)
                self.lmdb = stack.enter_context(self._open_environment(durability, max_readers))
                fill_lock_file(path / LMDB_LOCK_FILE)
                self.mapped = find_mapping(path / DATA_FILE)
                """Changes only while no transaction is open."""
                store_id = self._read_id()
                if identity is not None and store_id != identity.store_id:
                    raise StoreGoneError(f"{self.path} is not the store that kaasd opened")
                self.entries = {namespace: self.lmdb.open_db(namespace.name.lower().encode()) for namespace in Namespace}
                self.chunks = self.lmdb.open_db(CHUNKS)
                self.loose = self.lmdb.open_db(LOOSE)
                self.accounts = self.lmdb.open_db(ACCOUNTS)
                self.account_names: Mapping[int, str] = {}
                """By number, as they were found last; see ``accounts``."""
                self.known_accounts: dict[str, tuple[int, bytes, bytes, Account]] = {}
                """By name, as they were found last: number, key, value, and what the value says."""
                self.page_bytes = self.lmdb.stat()["psize"]
                self.disk = self._open_disk()
                self._room_for = -1
                """What there is room for, as far as is known: bytes up to the end of a transaction."""
                self._file_with_room = (0, 0)
                """How the file was then."""
                stack.callback(self.disk.close)
                if identity is None:
                    self._take_first_room()
            except (lmdb.Error, OSError) as error:
                if isinstance(error, OSError) and not is_full(error, path):
                    raise
                raise translate(error, path) from error
            # Opened last: closing any descriptor of this file frees the locks of the process, and a second environment of this
            # path in the process has failed before it comes here.
            self.owner = secrets.randbelow(_MAX_OWNER) + 1
            self._owners = os.open(path / OWNERS_FILE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, self._owners)
            make_private(self._owners)
            fcntl.lockf(self._owners, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self.owner)
            self.identity = StoreIdentity.of(path, store_id)
            stack.pop_all()

    def _open_environment(self, durability: Durability, max_readers: int) -> lmdb.Environment:
        file = self.path / DATA_FILE
        size = file.stat().st_size if file.exists() else 0
        return lmdb.open(
            str(self.path),
            # A limit below what is stored already must still let deletes work.
            map_size=max(self.limit_bytes, size + keep_for_deletes(size) if size > self.limit_bytes else 0),
            mode=0o600,
            max_dbs=len(DATABASES),
            max_readers=max_readers,
            sync=durability is not Durability.NONE,
            metasync=durability is Durability.FULL,
            lib_version=LMDB_MAJOR_VERSION,
        )

    def _read_id(self) -> str:
        """Return the store's id, "" where LMDB has just made a file. Raises ``StoreForeignError``."""
        with self.lmdb.begin() as txn:
            raw = txn.get(STORE_ID_KEY)
        try:
            return unpack_store_id(raw).hex() if raw is not None else ""
        except Damage as damage:
            raise StoreForeignError(f"the store at {self.path} is damaged: {damage}") from None

    def _open_disk(self) -> DiskRoom:
        return DiskRoom(
            self.path / DATA_FILE,
            page_bytes=self.page_bytes,
            limit_bytes=self.lmdb.info()["map_size"],
        )

    def _take_first_room(self) -> None:
        """Raises ``StoreFullError`` where not even a delete would have room."""
        with self.write() as txn:
            self.disk.fill_holes()
            self.take_disk_room(txn, 0, 0)

    def end_bytes(self) -> int:
        """Return where the last page ends that the last transaction has left."""
        return (self.lmdb.info()["last_pgno"] + 1) * self.page_bytes

    def take_disk_room(self, txn: Transaction, size_bytes: int, asked_bytes: int) -> None:
        """See ``DiskRoom.take``. Only within a write transaction, which is ``txn``."""
        last_page = self.lmdb.info()["last_pgno"]
        needed = last_page * self.page_bytes + asked_bytes
        if needed <= self._room_for and self._file_state() == self._file_with_room:
            return  # The file is as it was when there was room for more.
        used_bytes = self.used_bytes(txn)
        self._room_for = needed if self.disk.take(last_page, used_bytes, size_bytes, asked_bytes) else -1
        self._file_with_room = self._file_state()

    def _file_state(self) -> tuple[int, int]:
        """Return how long the file is, and how many blocks it has: another process may change that."""
        status = os.fstat(self.disk.descriptor)
        return status.st_size, status.st_blocks

    def begin(self, *, write: bool = False) -> Transaction:
        """Begin a transaction; one that reads must end in ``end``.

        Raises ``lmdb.Error``, ``InternalError`` (closed, or after a fork).
        """
        return self._entered(lambda: self.lmdb.begin(write=write, buffers=True))

    def copy(self, descriptor: int) -> None:
        """Write what the last transaction has left to a file of its own, which LMDB can open.

        Holds a snapshot until it returns, and keeps nobody from writing. Raises ``lmdb.Error``, ``InternalError``.
        """
        try:
            self._copy(descriptor, compact=True)
        except lmdb.IncompatibleError:
            # A page is neither free nor in use, as defects of LMDB have left some. A copy of all pages does not count them; it
            # keeps others from writing until it has begun.
            self._copy(descriptor, compact=False)

    def _copy(self, descriptor: int, *, compact: bool) -> None:
        def copy() -> None:
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            self.lmdb.copyfd(descriptor, compact=compact)

        self._entered(copy)
        self._leave()

    def _entered(self, begin: Callable[[], T]) -> T:
        """Do what begins a transaction, and again where the map must grow before. ``_leave`` is to be called at its end."""
        checked = False
        while True:
            self._enter()
            try:
                return begin()
            except lmdb.MapResizedError:
                # Another process has a larger limit and has used it.
                self._leave()
                self._adopt_size()
            except lmdb.ReadersFullError:
                self._leave()
                if checked:
                    raise
                # LMDB never frees the slots of dead processes by itself.
                self.lmdb.reader_check()
                checked = True
            except BaseException:
                self._leave()
                raise

    def end(self, txn: Transaction) -> None:
        """End a read transaction."""
        try:
            txn.abort()
        finally:
            self._leave()

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """A write transaction that is committed at the end and aborted by an exception. Raises ``lmdb.Error``."""
        txn = self.begin(write=True)
        try:
            with txn:
                yield txn
        finally:
            self._leave()

    def used_bytes(self, txn: Transaction) -> int:
        """Return what all values take, in pages and with the trees that find them."""
        pages = 0
        for database in (*self.entries.values(), self.chunks, self.loose):
            stat = txn.stat(database)
            pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return pages * self.page_bytes

    def last_transaction(self) -> int:
        """Return the number of the last transaction that was committed, by any process."""
        with self._turn:  # the map does not move meanwhile
            if self._closed:
                raise InternalError(f"{self.path} is closed")
            return int(self.lmdb.info()["last_txnid"])

    def is_held(self) -> bool:
        """Whether a snapshot of any process sees an older state than the last, so that pages cannot be used again."""
        with self._turn:  # the map does not move meanwhile
            last = self.lmdb.info()["last_txnid"]
            return self._oldest_snapshot(last) < last

    def _oldest_snapshot(self, last: int) -> int:
        """Return the oldest transaction that a snapshot of any process sees, at most ``last``."""
        rows = (line.split() for line in self.lmdb.readers().splitlines()[1:])
        return min([last, *(int(row[2]) for row in rows if len(row) == 3 and row[2].isdigit())])

    def sync(self) -> None:
        """Have the disk take all that is committed. Raises ``lmdb.Error``."""
        self._entered(lambda: self.lmdb.sync(True))
        self._leave()

    @contextmanager
    def nobody_writes(self) -> Iterator[tuple[Meta, int]]:
        """Keep all processes from writing. Yields the last meta page, and the last transaction whose free pages nobody sees.

        All that is committed is on the disk, and these pages are those that LMDB's next transaction might take: they are of no
        use to the last state and to the one before, nor to any snapshot, open or still to come. Raises ``lmdb.Error``.
        """
        txn = self.begin(write=True)
        try:
            meta = self.disk.pages.latest_meta()
            if self._synced != meta.transaction:
                self.lmdb.sync(True)
                self._synced = meta.transaction
            if txn.id() != meta.transaction + 1:
                raise InternalError(f"{self.path}: transaction {txn.id()} follows on {meta.transaction}, which cannot be")
            with self._turn:  # the map does not move meanwhile
                oldest = self._oldest_snapshot(meta.transaction)
            yield meta, oldest - 1
        finally:
            self.end(txn)

    def is_alive(self, owner: int) -> bool:
        """Whether the process of this id runs: it then holds a lock, which the kernel frees at its end, whatever it dies of."""
        if owner == self.owner:
            return True
        try:
            fcntl.lockf(self._owners, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, owner)
        except OSError:
            return True
        fcntl.lockf(self._owners, fcntl.LOCK_UN, 1, owner)
        return False

    def close(self) -> None:
        """Close, which unmaps the file. Idempotent. Raises ``InternalError`` while snapshots are open, and then stays open."""
        with self._turn:
            if self._closed:
                return
            if self._open:
                raise InternalError(f"{self.path}: {self._open} snapshots are open; they must be closed before the store")
            self._closed = True
        self.lmdb.sync(True)
        self.lmdb.close()
        self.checksums.close()
        self.disk.close()
        os.close(self._owners)

    def check_process(self) -> None:
        """Raises ``InternalError`` in a process forked from the one that opened this."""
        if os.getpid() != self._pid:
            raise InternalError(f"{self.path} was opened before a fork; LMDB must be opened anew in each process")

    def _enter(self) -> None:
        self.check_process()
        with self._turn:
            self._turn.wait_for(lambda: not self._resizing)
            if self._closed:
                raise InternalError(f"{self.path} is closed")
            self._open += 1

    def _leave(self) -> None:
        with self._turn:
            self._open -= 1
            self._turn.notify_all()

    def _adopt_size(self) -> None:
        """Take over the map size that another process has set. No transaction may be open in this process meanwhile."""
        with self._turn:
            if self._resizing:
                return
            self._resizing = True
            try:
                if not self._turn.wait_for(lambda: not self._open, _RESIZE_TIMEOUT_S):
                    raise InternalError(
                        f"{self.path} has grown, and this process cannot see it while {self._open} snapshots are open"
                    )
                self.lmdb.set_mapsize(0)
                self.mapped = find_mapping(self.path / DATA_FILE)
            finally:
                self._resizing = False
                self._turn.notify_all()


def make_private(descriptor: int) -> None:
    """Keep a file from everybody but its owner; one that another user owns stays as it is."""
    with suppress(PermissionError):
        os.fchmod(descriptor, 0o600)


def find_mapping(path: Path) -> StoreMapping | None:
    """Return where this process has mapped a file; None where it has not, or the system does not tell."""
    wanted = os.path.realpath(path)
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        # 7f0000000000-7f0000400000 r--s 00000000 fe:00 1234    /a/file
        span, _, offset, _, _, *name = line.split(maxsplit=5)
        if name == [wanted] and int(offset, 16) == 0:
            start, end = (int(number, 16) for number in span.split("-"))
            return StoreMapping(wanted, start, end - start)
    return None


def is_out_of_room(error: Exception, path: Path) -> bool:
    """Whether LMDB has found no page: in its map, or on the disk."""
    return isinstance(error, lmdb.MapFullError) or is_full(error, path)


def translate(error: Exception, path: Path) -> KaasError:
    """Return what a caller should see of ``error``, met in the environment at ``path``; it becomes the cause."""
    if isinstance(error, KaasError):
        return error
    kind: type[KaasError]
    match error:
        case lmdb.MapFullError():
            kind, text = StoreFullError, "the store is full: open snapshots still hold the pages that could be used again"
        case lmdb.ReadersFullError():
            kind, text = QueueFullError, "too many snapshots of the store are open"
        case _ if problem := room_problem(error, path):
            kind, text = StoreFullError, f"{problem}: {path}"
        case lmdb.CorruptedError() | lmdb.PageNotFoundError() | lmdb.BadTxnError():
            # The last one follows on an error that LMDB swallowed, where it looked up a tree in the main one.
            kind, text = DataDamagedError, f"the trees of {path}, which find all that is stored, are damaged"
        case lmdb.InvalidError() | lmdb.VersionMismatchError():
            kind, text = StoreForeignError, f"{path} is not an LMDB environment that this version can read"
        case lmdb.Error():
            kind, text = InternalError, f"LMDB failed on {path}"
        case _:
            kind, text = InternalError, f"{path}: {type(error).__name__}"
    translated = kind(f"{text} ({error})")
    translated.__cause__ = error
    return translated
