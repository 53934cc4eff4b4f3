"""The store on LMDB."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import lmdb

from kaas_core.errors import InvalidArgumentError, KaasError
from kaasd.store.accounts import Accounts, NewEntry
from kaasd.store.backup import StoreBackup
from kaasd.store.base import (
    Account,
    CheckProgress,
    Compaction,
    DamagedEntry,
    Durability,
    Entry,
    Expiry,
    Namespace,
    StoreMapping,
    StoreStats,
    Write,
)
from kaasd.store.check import check, length_problem, tree_problem
from kaasd.store.directory import StoreIdentity
from kaasd.store.environment import Environment, translate
from kaasd.store.expiry import Expirer
from kaasd.store.orphans import find_orphans
from kaasd.store.reading import read_state
from kaasd.store.records import Extent, Pieces, encode_key
from kaasd.store.snapshot import LmdbSnapshot, Snapshots
from kaasd.store.staged import StagedValue
from kaasd.store.write_transaction import Change, PendingCommit, PendingDelete, PendingLimit
from kaasd.store.writer import Writer

CHUNK_BYTES = 16 << 20
"""LMDB has one write lock and writes about 1 GB/s, so a chunk holds it for some 20 ms; copied to a device, one runs at the bus's
speed."""
MIN_CHUNK_BYTES = 4096

T = TypeVar("T")
_log = logging.getLogger(__name__)


class LmdbStore:
    """A ``KeyValueStore`` in an LMDB environment at ``path``, which several processes may open, each once, none across a fork.

    What a crash of the machine can lose (a crash of processes loses nothing that was answered):

    * ``Durability.FULL``: nothing. Each commit waits for the data and for LMDB's root page.
    * ``Durability.META`` (``MDB_NOMETASYNC``): the last transaction before the crash, which may hold several commits
      and is undone; the store stays whole.
    * ``Durability.NONE`` (``MDB_NOSYNC``): what was committed since the store was closed last, which writes everything. Where the
      file system writes pages back in another order than they were written, also values, which are then damaged, or the whole
      store, which is then refused when it is opened. What is there is as it was after one transaction, all of it.

    ``limit_bytes`` is LMDB's map size: address space, and at most so much disk. Values may take all of it but a hundredth (at
    least 256 KiB), which is kept for deletes. ``chunk_bytes`` is the most that one transaction writes.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        limit_bytes: int,
        durability: Durability = Durability.META,
        chunk_bytes: int = CHUNK_BYTES,
        max_readers: int = 1024,
        held_timeout_s: float = 1.0,
        sweep_interval_s: float = 60.0,
        identity: StoreIdentity | None = None,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Open the store, or create it where nothing is. With an ``identity`` only that store is opened, and none is created.

        ``max_readers`` bounds the snapshots open at once, over all processes; ``held_timeout_s`` is how long a full store waits
        for snapshots to close whose pages it could use. ``is_stopped`` is asked while a store of an older format is copied.

        Raises ``InvalidArgumentError`` (a setting), ``CancelledError`` (stopped; the store is as it was), ``StoreFullError``,
        ``InternalError`` (open in this process already, or damaged),
        ``StoreForeignError`` (another program's, or damaged), ``StoreGoneError`` (not the one of ``identity``; or no store, where
        one was), ``OSError``.
        """
        if chunk_bytes < MIN_CHUNK_BYTES:
            raise InvalidArgumentError(
                f"chunk_bytes: must be at least {MIN_CHUNK_BYTES}, not {chunk_bytes}", {"field": "chunk_bytes"}
            )
        self._chunk_bytes = chunk_bytes
        self._environment = Environment(
            Path(path),
            limit_bytes=limit_bytes,
            durability=durability,
            max_readers=max_readers,
            identity=identity,
            is_stopped=is_stopped,
        )
        self._writer = Writer(
            self._environment, chunk_bytes=chunk_bytes, held_timeout_s=held_timeout_s, sweep_interval_s=sweep_interval_s
        )
        self._snapshots = Snapshots(self._environment)
        self._expirer = Expirer(self._environment)

    def __enter__(self) -> LmdbStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def identity(self) -> StoreIdentity:
        """What tells this store from all others."""
        return self._environment.identity

    @property
    def store_id(self) -> str:
        return self.identity.store_id

    @property
    def mapped(self) -> StoreMapping | None:
        return self._environment.mapped

    @property
    def last_commit(self) -> int:
        return self._environment.last_transaction()

    def snapshot(self) -> LmdbSnapshot:
        """Open a read transaction. Raises ``QueueFullError`` where too many are open.

        Closing it raises ``BufferError`` while something uses one of its views; the bytes then stay right until that is gone.
        """
        return self._snapshots.open()

    def commit(self, writes: Sequence[Write]) -> Future[dict[str, Entry]]:
        """See ``KeyValueStore.commit``. A ``Staged`` is used up by it, whether it succeeds or not."""
        changes: list[Change] = []
        try:
            for write in writes:
                changes.append(self._change(write))  # noqa: PERF401 (what was taken before an error must be dropped)
        except KaasError as error:
            self._writer.drop_loose([extent for change in changes for extent in change.extents])
            failed: Future[dict[str, Entry]] = Future()
            failed.set_exception(error)
            return failed
        pending = PendingCommit(changes)
        if pending.size_bytes > self._chunk_bytes:
            return self._writer.submit_ahead(pending)
        return self._writer.submit(pending)

    def stage(self) -> StagedValue:
        return StagedValue(self._writer, self._chunk_bytes)

    def delete(self, key: str, namespace: Namespace = Namespace.VALUES, version: int | None = None) -> Future[Entry]:
        try:
            pending = PendingDelete(namespace, encode_key(key), version)
        except KaasError as error:
            failed: Future[Entry] = Future()
            failed.set_exception(error)
            return failed
        return self._writer.submit(pending)

    def expire(self, version: int, most: int, most_bytes: int, damaged_s: float) -> Future[Expiry]:
        return self._writer.work_off(self._expirer.steps(self._writer.run, version, most, most_bytes, damaged_s))

    def sweep(self) -> Future[int]:
        """Free chunks of uploads whose process is gone, now; the future has their number. Happens by itself now and then."""
        return self._writer.sweep()

    def accounts(self) -> Mapping[str, Account]:
        return self._look(Accounts.all)

    def limit_account(self, name: str, max_stored_bytes: int, max_keys: int) -> Future[None]:
        return self._writer.submit(PendingLimit(name, max_stored_bytes, max_keys))

    def check_account(self, name: str, key: str, size_bytes: int) -> None:
        entry = {(Namespace.VALUES, encode_key(key)): NewEntry(size_bytes, name)}
        self._look(lambda accounts: accounts.check(entry))

    def _look(self, look: Callable[[Accounts], T]) -> T:
        """Look at the accounts as they are now."""
        environment = self._environment
        try:
            txn = environment.begin()
            try:
                return look(Accounts(environment, txn, read_state(environment, txn)))
            finally:
                environment.end(txn)
        except lmdb.Error as error:
            raise translate(error, environment.path) from error

    def stats(self) -> StoreStats:
        environment = self._environment
        try:
            txn = environment.begin()
            try:
                keys = txn.stat(environment.entries[Namespace.VALUES])["entries"]
                return StoreStats(keys, environment.used_bytes(txn), environment.limit_bytes)
            finally:
                environment.end(txn)
        except lmdb.Error as error:
            raise translate(error, environment.path) from error

    def check(self, progress: CheckProgress | None = None) -> Iterator[DamagedEntry]:
        for damaged in check(self._environment, progress or CheckProgress()):
            if damaged.namespace is Namespace.COMPILED:
                self.delete(damaged.key, damaged.namespace)
                damaged = replace(damaged, problem=f"{damaged.problem}; it is dropped, and compiled again when it is needed")
            yield damaged

    def length_problem(self) -> str:
        """Return what is wrong where the file was cut short, or nothing. What it lacks kills a process that reads it."""
        return length_problem(self._environment)

    def tree_problem(self) -> str:
        """Return what is wrong with the trees that find everything, or nothing. Blocks for about 4 us an entry."""
        return tree_problem(self._environment)

    def backup(self) -> StoreBackup:
        return StoreBackup(self._environment)

    def compact(self, is_stopped: Callable[[], bool] = lambda: False) -> Compaction:
        environment = self._environment
        try:
            environment.sync()  # here, so that the writer need not wait for all of it
            before = environment.disk.size
            orphans = find_orphans(environment, is_stopped)
            if orphans:
                _log.info("%s: %d chunks that nothing names are freed", environment.path, len(orphans))
            can_punch = self._writer.compact(orphans, is_stopped).result()
            after = environment.disk.size
        except (lmdb.Error, OSError) as error:
            raise translate(error, environment.path) from error
        return Compaction(before.file_bytes, after.file_bytes, before.disk_bytes, after.disk_bytes, only_end=not can_punch)

    def abandon(self) -> None:
        """Have ``close`` write nothing, as the file is damaged or gone."""
        self._writer.abandon()

    def close(self) -> None:
        """Finish what was asked for, drop what is staged, close. Idempotent.

        Raises ``InternalError`` while a snapshot, or something that uses a view of one, is left; it can then be called again.
        """
        self._writer.close()
        self._snapshots.end_leaked()
        self._environment.close()

    def _change(self, write: Write) -> Change:
        extents: list[Extent] = []
        raw_key = encode_key(write.key)
        if write.offset_bytes is not None and write.offset_bytes < 0:
            raise InvalidArgumentError(
                f"offset_bytes: must not be negative, as {write.offset_bytes} is", {"field": "offset_bytes"}
            )
        if isinstance(write.pieces, StagedValue):
            extents, pieces = write.pieces.take(self._writer)
        elif isinstance(write.pieces, Sequence):
            pieces = Pieces(write.pieces)
        else:
            raise TypeError("the staged value belongs to another kind of store")
        return Change(
            write.key,
            raw_key,
            write.namespace,
            write.offset_bytes,
            pieces,
            extents,
            write.create,
            write.must_be_new,
            write.account,
            write.form,
        )
