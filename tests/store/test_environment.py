"""The LMDB environment of a process: its files, its readers, its mapping, and what it does when LMDB fails."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

from kaas_core.errors import InternalError, StoreFullError
from kaasd.store import disk_room
from kaasd.store import environment as module
from kaasd.store.base import StoreMapping, Write
from kaasd.store.disk_room import keep_for_deletes
from kaasd.store.lmdb_store import LmdbStore
from tests.store.support import Start, kill, said


class LmdbThat:
    """An environment of LMDB, of which some methods are replaced."""

    def __init__(self, real: Any, **methods: Callable[..., object]) -> None:
        self._real = real
        vars(self).update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@contextmanager
def lmdb_that(store: LmdbStore, **methods: Callable[..., object]) -> Iterator[None]:
    store.sweep().result()
    real = store._environment.lmdb
    store._environment.lmdb = LmdbThat(real, **methods)
    try:
        yield
    finally:
        store._environment.lmdb = real


def fail(*_: object, **__: object) -> None:
    raise lmdb.DiskError("mdb_txn_begin")


def test_only_its_owner_can_read_the_store(store: LmdbStore, store_path: Path) -> None:
    assert store_path.stat().st_mode & 0o777 == 0o700
    assert (store_path / "data.mdb").stat().st_mode & 0o077 == 0


def test_failures_of_lmdb_are_reported_and_passed_over(store: LmdbStore, read: Callable) -> None:
    with lmdb_that(store, begin=fail):
        for attempt in (
            store.snapshot,
            store.stats,
            store.commit([Write("a", [b"1"])]).result,
            store.commit([Write("a", [b"1" * 50_000])]).result,
            store.delete("a").result,
            store.sweep().result,
        ):
            with pytest.raises(InternalError, match=r"LMDB failed on .* \(mdb_txn_begin\)"):
                attempt()
    store.commit([Write("a", [b"1"])]).result()
    assert read(store, "a") == b"1"
    store.close()


def test_commits_are_counted_over_all_processes(store: LmdbStore, start: Start) -> None:
    before = store.last_commit
    with store.snapshot() as snapshot:
        assert snapshot.commit == before
        assert said(start('store.commit([Write("a", [b"1"])]).result(); say("done")')) == "done"
        assert store.last_commit > snapshot.commit == before
    with store.snapshot() as snapshot:
        assert snapshot.commit == store.last_commit
    store.close()
    with pytest.raises(InternalError, match="is closed"):
        store.last_commit  # noqa: B018


def test_the_mapping_is_where_the_views_are(store: LmdbStore, store_path: Path, payload: Callable) -> None:
    store.commit([Write("a", [payload(1_000_000)])]).result()
    mapped = store.mapped
    assert mapped is not None
    assert mapped.path == str(store_path / "data.mdb")
    assert mapped.size_bytes == 64 << 20
    with store.snapshot() as snapshot:
        for view in snapshot.pieces("a"):
            address = np.frombuffer(view, "u1").ctypes.data
            assert mapped.address <= address < mapped.address + mapped.size_bytes
            del address


def test_a_file_that_is_not_mapped(tmp_path: Path) -> None:
    assert module.find_mapping(tmp_path / "data.mdb") is None


def test_the_mapping_of_a_file_is_told_from_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = tmp_path.resolve() / "a store" / "data.mdb"
    maps = f"""\
7f0000000000-7f0000001000 r--s 00000000 fe:00 11 {wanted}.old
7f0000010000-7f0000012000 r--s 00001000 fe:00 12 {wanted}
7f0000020000-7f0000021000 rw-p 00000000 00:00 0
7f0000030000-7f0000034000 r--s 00000000 fe:00 12         {wanted}
7f0000040000-7f0000048000 r--s 00000000 fe:00 12 {wanted}
"""
    monkeypatch.setattr(Path, "read_text", lambda path: {Path("/proc/self/maps"): maps}[path])
    assert module.find_mapping(wanted) == StoreMapping(str(wanted), 0x7F0000030000, 0x4000)
    assert module.find_mapping(wanted.with_name("other.mdb")) is None


def test_the_map_is_as_large_as_the_limit_or_has_room_for_deletes(open_store: Callable, store_path: Path) -> None:
    for size_bytes, limit_bytes in ((0, 16 << 20), (8 << 20, 8 << 20), (9 << 20, 8 << 20)):
        with open_store(limit_bytes=16 << 20):
            pass
        if size_bytes:
            os.truncate(store_path / "data.mdb", size_bytes)
        with open_store(limit_bytes=limit_bytes) as store:
            more = size_bytes + keep_for_deletes(size_bytes) if size_bytes > limit_bytes else 0
            assert store._environment.lmdb.info()["map_size"] == max(limit_bytes, more)


def test_the_mapping_grows_with_the_store(open_store: Callable, start: Start, payload: Callable) -> None:
    store = open_store(limit_bytes=2 << 20)
    child = start('store.commit([Write("a", [b"x" * 3_000_000])]).result(); say("done")', LIMIT_BYTES=str(64 << 20))
    assert said(child) == "done"
    with store.snapshot() as snapshot:
        assert store.mapped.size_bytes == 64 << 20
        last = list(snapshot.pieces("a"))[-1]
        end = np.frombuffer(last, "u1").ctypes.data + len(last)
        assert store.mapped.address < end <= store.mapped.address + store.mapped.size_bytes
        del last


def test_a_snapshot_that_stays_open_keeps_others_from_a_store_that_grew(
    open_store: Callable, start: Start, read: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RESIZE_TIMEOUT_S", 0.1)
    store = open_store(limit_bytes=2 << 20)
    store.commit([Write("a", [b"1"])]).result()
    store.sweep().result()
    snapshot = store.snapshot()
    child = start('store.commit([Write("b", [b"x" * 3_000_000])]).result(); say("done")', LIMIT_BYTES=str(64 << 20))
    assert said(child) == "done"
    with ThreadPoolExecutor(3) as threads:  # those that wait for each other do not wait for ever
        attempts = [store.delete("a"), *(threads.submit(store.snapshot) for _ in range(3))]
    for attempt in attempts:
        with pytest.raises(InternalError, match="has grown, and this process cannot see it while 1 snapshots are open"):
            attempt.result()
    assert b"".join(snapshot.pieces("a")) == b"1"
    snapshot.close()
    assert read(store, "b") == b"x" * 3_000_000


def test_who_is_alive(store: LmdbStore, start: Start) -> None:
    nobody = 10_000
    owner = store._environment.owner
    assert store._environment.is_alive(owner)
    assert not store._environment.is_alive(nobody)
    ask = f"say(store._environment.owner, *(store._environment.is_alive(each) for each in ({owner}, {nobody})))"
    child = start(ask + "; sys.stdin.readline()")
    other, *answers = said(child).split()
    assert answers == ["True", "False"]
    assert store._environment.is_alive(int(other))
    kill(child)
    assert not store._environment.is_alive(int(other))


def test_what_is_used_is_the_pages_of_all_trees(store: LmdbStore, payload: Callable) -> None:
    """Those of chunks, of what finds them, and of values that lie in their records."""
    store.commit([Write("a", [payload(10 * 4096)])]).result()
    assert store.stats().used_bytes == (10 * 2 + 1 + 1) * 4096  # with its header a chunk takes two pages
    store.commit([Write(f"b{i:03}", [payload(1000)]) for i in range(300)]).result()
    assert store.stats().used_bytes > 10 * 2 * 4096 + 300 * 1000


def test_a_store_that_was_closed_has_no_file_open(open_store: Callable, store_path: Path) -> None:
    """Neither a new one, nor one that was there."""
    for _ in range(2):
        open_store().close()
        links = []
        for link in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):  # The one that lists them is closed already.
                links.append(link.readlink())
        assert [link for link in links if link.is_relative_to(store_path)] == []


def test_the_lock_file_is_on_the_disk_before_lmdb_maps_it(
    open_store: Callable, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMDB writes to the map, which kills the process where there is no block for it any more."""
    lock_file, open_, sizes = store_path / "lock.mdb", lmdb.open, []

    def look(path: str, **settings: Any) -> lmdb.Environment:
        if settings.get("lock", True):
            status = lock_file.stat()
            assert status.st_blocks * 512 >= status.st_size
            sizes.append(status.st_size)
        return open_(path, **settings)

    monkeypatch.setattr(lmdb, "open", look)
    open_store(max_readers=500).close()
    size = lock_file.stat().st_size
    for left in (0, size):  # as others than kaasd may have left it
        os.truncate(lock_file, 0)
        os.truncate(lock_file, left)
        open_store(max_readers=500).close()
    assert sizes == [502 * 64] * 3


def test_a_disk_that_is_full_is_named_with_what_the_system_says(
    open_store: Callable, store_path: Path, payload: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        monkeypatch.setattr(disk_room, "_fallocate", lambda *_: ctypes.set_errno(errno.ENOSPC) or -1)

    with monkeypatch.context():
        full()
        with pytest.raises(
            StoreFullError,
            match=rf"^the file system that holds the store is full: {store_path} \(\[Errno 28\] No space left on device\)$",
        ):
            open_store()
    assert list(store_path.iterdir()) == []
    monkeypatch.undo()
    store = open_store()
    full()
    with pytest.raises(
        StoreFullError, match=rf"{store_path}/data.mdb has \d+ bytes and cannot grow \(No space left on device\)$"
    ):
        store.commit([Write("a", [payload(1_000_000)])]).result()


def test_pages_that_a_dead_process_read_are_free_again(store: LmdbStore, start: Start) -> None:
    child = start("""
snapshot = store.snapshot()
say("open")
sys.stdin.readline()
""")
    assert said(child) == "open"
    store.commit([Write("a", [b"1"])]).result()
    assert store._environment.is_held()
    kill(child)
    store.sweep().result()
    assert not store._environment.is_held()


def test_a_snapshot_of_the_last_commit_holds_no_pages(store: LmdbStore) -> None:
    store.commit([Write("a", [b"1"])]).result()
    store.sweep().result()
    with store.snapshot():
        assert not store._environment.is_held()
        store.commit([Write("a", [b"2"])]).result()
        assert store._environment.is_held()
    assert not store._environment.is_held()
