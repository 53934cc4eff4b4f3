"""The directory of a store: what lies in it, making a new one, and whether it is still the one that was opened."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import lmdb

from kaas_core.errors import StoreForeignError, StoreGoneError
from kaasd.store.base import Namespace
from kaasd.store.disk_room import NEW_FILE_PREFIX, take_first_room
from kaasd.store.lmdb_file import LmdbFile, Meta
from kaasd.store.records import (
    ACCOUNTS,
    CHUNKS,
    FORMAT,
    LOOSE,
    MIN_STATE_BYTES,
    STATE_KEY,
    STORE_ID_BYTES,
    STORE_ID_KEY,
    Damage,
    StoreState,
    pack_store_id,
    unpack_format,
    unpack_store_id,
)
from kaasd.store.sums import NAMESPACES, START_BYTES, EntrySums
from kaasd.store.trees import check_trees

DATA_FILE = "data.mdb"
OWNERS_FILE = "owners"
"""Its bytes are locked by the processes that have the store open. Made last: where it is, a store was opened."""
LMDB_LOCK_FILE = "lock.mdb"
LOCK_FILE = "kaasd.lock"
"""Locked by the daemon."""
OLD_STATE_BYTES = 24
"""Of format 1: see ``migration``."""
MIN_LIMIT_BYTES = 1 << 20
LMDB_MAJOR_VERSION = 0
"""Of the engine. Without it an environment variable chooses, and the next start may not read what this one wrote."""
DATABASES = (*NAMESPACES, CHUNKS, LOOSE, ACCOUNTS)
ADDED_DATABASES = frozenset(namespace.name.lower().encode() for namespace in (Namespace.COMPILED, Namespace.GROUPS))
"""Those that a store may lack: opening it makes them."""
OLD_DATABASES = tuple(
    name for name in DATABASES if name not in (*ADDED_DATABASES, ACCOUNTS) and NAMESPACES.get(name) is not Namespace.REPLIES
)
"""Of the formats 1 and 2."""
_DATABASES_OF = {
    FORMAT: DATABASES,
    5: DATABASES,
    4: DATABASES,
    3: tuple(name for name in DATABASES if name != ACCOUNTS),
    2: OLD_DATABASES,
}
"""By the format."""
_FILES = ("", DATA_FILE, LMDB_LOCK_FILE, OWNERS_FILE, LOCK_FILE)
"""What a store needs: with another ``lock.mdb`` processes write at once, with other ``owners`` they take each other for dead."""


@dataclass(frozen=True, slots=True)
class StoreIdentity:
    """A store that is open, told from all others at its path."""

    path: Path
    store_id: str
    """128 random bits, in hexadecimal."""
    files: Mapping[str, tuple[int, int]]
    """Device and inode of the directory (named by nothing) and of the files in it, which nobody gets while they are open."""

    @classmethod
    def of(cls, path: Path, store_id: str) -> StoreIdentity:
        """Return the identity of the store that this process has opened at ``path``."""
        files = {}
        for name in _FILES:
            with suppress(FileNotFoundError):  # The daemon's lock is not there where a store is used without it.
                stat = (path / name).stat()
                files[name] = (stat.st_dev, stat.st_ino)
        return cls(path, store_id, files)

    def check(self) -> None:
        """Raises ``StoreGoneError`` where the path does not lead to this store any more."""
        for name, expected in self.files.items():
            file = f"{self.path}/{name}" if name else str(self.path)
            try:
                stat = os.stat(file)  # noqa: PTH116 (a Path would take twice as long, at every Put)
            except OSError as error:
                raise StoreGoneError(f"{file} is no longer there ({error.strerror})") from None
            if (stat.st_dev, stat.st_ino) != expected:
                raise StoreGoneError(f"{file} was replaced: it is not the one that kaasd opened")

    def open_file(self) -> str:
        """Return where the data are that this process has open, in words."""
        for link in Path("/proc/self/fd").iterdir():
            with suppress(OSError):  # The one that lists them is closed already.
                stat = link.stat()
                if (stat.st_dev, stat.st_ino) == self.files[DATA_FILE]:
                    if stat.st_nlink:
                        return f"its data are in {link.readlink()}"
                    return (
                        "its data file was deleted, and is lost when this process ends; until then it can be copied from"
                        f" /proc/{os.getpid()}/fd/{link.name}"
                    )
        return "its data are not open any more"


def prepare(path: Path, *, sync: bool) -> int:
    """Make a store at ``path`` where nothing is, or see that what is there is one; return its format.

    ``sync``: commits wait for the disk, so that none may be missing.

    Raises ``StoreForeignError`` (it is not, or is damaged), ``StoreGoneError`` (one was there), ``OSError``; nothing is changed.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = path / DATA_FILE
    try:
        size = file.stat().st_size
    except FileNotFoundError:
        if file.is_symlink():
            raise StoreGoneError(
                f"{file} is a link to {file.readlink()}, which is missing. Put that back; to begin an empty store there instead,"
                " let kaasd make it, and then move it and link to it"
            ) from None
        if (path / OWNERS_FILE).exists():
            raise StoreGoneError(
                f"{file} is missing, but {path / OWNERS_FILE} shows that a store was here. Put {DATA_FILE} back; to"
                " begin an empty store instead, empty the directory"
            ) from None
        _create(path, sync=sync)
        return FORMAT
    if size == 0:
        raise StoreGoneError(
            f"{file} is empty: what it held was cut off or is not copied yet. Put back a copy of it; to begin an empty store"
            " instead, empty the directory"
        )
    with LmdbFile(file) as found:
        if sync:
            _check_last(found)
        number = _format_of(found)
        if number > 1:
            try:
                check_store(found, found.meta, _DATABASES_OF[number])
            except StoreForeignError:
                # A process that has the store open may rewrite pages meanwhile; it has looked at them when it opened it.
                if found.latest_meta() == found.meta:
                    raise
        return number


def _check_last(file: LmdbFile) -> None:
    """Look whether the last transaction is there, in a file where each has waited for the disk. Raises ``StoreForeignError``.

    LMDB writes its two meta pages in turns, and takes the other one where the last was damaged.
    """
    while True:
        metas = file.metas()
        older, last = sorted(metas, key=lambda meta: meta.transaction)
        # One of two transactions earlier may not be there any more, where the power was cut before the last one's was written.
        was_last = older.transaction > 1 and _written_by(file, older) == last.transaction + 1
        if last.transaction - older.transaction <= 1 and not was_last:
            return
        if file.metas() == metas:  # else a process that has the store open has committed meanwhile
            raise StoreForeignError(
                f"{file.path} is damaged: its meta pages say that they are of the transactions {older.transaction} and"
                f" {last.transaction}, so what was stored last is missing; nothing was written to it. Put back a copy of the"
                " store's file; to go on with what is there, start once with --durability none"
            )


def _written_by(file: LmdbFile, meta: Meta) -> int:
    """Return the transaction of a meta page, as what it leads to says; 0 where that is not known."""
    try:
        return StoreState.unpack(file.main_entries(meta).get(STATE_KEY, b"")).transaction
    except (Damage, StoreForeignError):
        return 0


def check_store(file: LmdbFile, meta: Meta, databases: Sequence[bytes] = DATABASES) -> None:
    """Look at the trees of a store's file, at its keys, and at what it says of itself, and not at values.

    ``databases`` are the trees that it must have. Raises ``StoreForeignError`` where they are damaged, or change meanwhile;
    ``OSError``.
    """
    sums = EntrySums(file)
    trees = check_trees(file, meta, START_BYTES, sums.add)
    entries = file.main_entries(meta)
    if trees | ((ADDED_DATABASES & set(databases)) - entries.keys()) != set(databases):
        raise file.damaged("it has other trees than a store")
    try:
        sums.check(StoreState.unpack(entries[STATE_KEY]))
        unpack_store_id(entries.get(STORE_ID_KEY, b""))
    except (Damage, KeyError) as damage:
        raise file.damaged(str(damage)) from None


def _format_of(file: LmdbFile) -> int:
    """Return the format of a store. Raises ``StoreForeignError`` where it is none, or of a later version."""
    while True:
        meta = file.latest_meta()
        try:
            return _format_in(file, meta)
        except StoreForeignError:
            if file.latest_meta() == meta:  # else a process that has the store open has committed meanwhile
                raise


def _format_in(file: LmdbFile, meta: Meta) -> int:
    entries = file.main_entries(meta)
    state = entries.get(STATE_KEY, b"")
    number = unpack_format(state)
    if len(state) >= MIN_STATE_BYTES:
        try:
            StoreState.unpack(state)
        except Damage as damage:
            raise file.damaged(str(damage)) from None
    elif number == 1 and len(state) != OLD_STATE_BYTES:
        raise file.damaged("its counters were changed")
    if not number or not entries.keys() >= set(OLD_DATABASES):
        raise StoreForeignError(
            f"{file.path} is a file of LMDB, but not one of kaasd's stores; nothing was written to it."
            " Use another directory (--store)"
        )
    if number > FORMAT:
        raise StoreForeignError(
            f"{file.path} has format {number}, but this version of kaasd reads formats up to {FORMAT}; nothing was written to it."
            " Use a later version, or another directory (--store)"
        )
    return number


def _create(path: Path, *, sync: bool) -> None:
    """Put an empty store at ``path``, whole or not at all; none where another process is faster."""
    descriptor, name = tempfile.mkstemp(prefix=NEW_FILE_PREFIX, suffix=".mdb", dir=path)
    os.close(descriptor)
    try:
        with (
            lmdb.open(
                name,
                subdir=False,
                lock=False,
                map_size=MIN_LIMIT_BYTES,
                max_dbs=len(DATABASES),
                sync=sync,
                lib_version=LMDB_MAJOR_VERSION,
            ) as environment,
            environment.begin(write=True) as txn,
        ):
            for database in DATABASES:
                environment.open_db(database, txn=txn)
            txn.put(STATE_KEY, StoreState().pack())
            txn.put(STORE_ID_KEY, pack_store_id(os.urandom(STORE_ID_BYTES)))
        take_first_room(Path(name))
        with suppress(FileExistsError):
            os.link(name, path / DATA_FILE)
    finally:
        Path(name).unlink()
    if sync:
        sync_directory(path)
        with suppress(PermissionError):  # Who may not read it did not make the store's directory in it.
            sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Have the names in a directory on the disk. Raises ``OSError``."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
