"""Group commit: callers that wait share a transaction, and one that fails takes no other with it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from kaas_core.errors import InternalError, KeyNotFoundError, StoreFullError, ValueTooShortError
from kaasd.store.base import Durability, Write
from kaasd.store.lmdb_store import LmdbStore
from kaasd.store.write_transaction import WriteTransaction
from tests.store.support import wait_until, writer_held_up


def transactions(store: LmdbStore) -> int:
    return store._environment.lmdb.info()["last_txnid"]


def test_waiting_commits_share_a_transaction(store: LmdbStore, read: Callable) -> None:
    with ThreadPoolExecutor(64) as threads:
        with writer_held_up(store):
            before = transactions(store)
            futures = [threads.submit(store.commit, [Write(f"k{i}", [b"%d" % i])]) for i in range(64)]
            commits = [future.result() for future in futures]
        versions = {commit.result()[f"k{i}"].version for i, commit in enumerate(commits)}
    # One has met the writer idle, the others have waited for it.
    assert transactions(store) - before <= 2
    assert len(versions) == 64
    assert all(read(store, f"k{i}") == b"%d" % i for i in range(64))


def test_a_transaction_takes_no_more_than_a_chunk(store: LmdbStore, payload: Callable, read: Callable) -> None:
    values = [payload(4000) for _ in range(20)]
    with writer_held_up(store):
        before = transactions(store)
        commits = [store.commit([Write(f"k{i}", [value])]) for i, value in enumerate(values)]
    for commit in commits:
        commit.result()
    assert transactions(store) - before == 20
    assert [read(store, f"k{i}") for i in range(20)] == values


def test_a_bad_commit_fails_alone(store: LmdbStore, read: Callable) -> None:
    store.commit([Write("old", [b"12345"])]).result()
    with writer_held_up(store):
        before = transactions(store)
        store.commit([Write("first", [b"1"])])
        good = [store.commit([Write("old", [bytes([65 + i])], i)]) for i in range(3)]
        short = store.commit([Write("lost", [b"1"]), Write("old", [b"xxx"], 3)])
        missing = store.commit([Write("lost", [b"1"]), Write("none", [b"xxx"], 0)])
        gone = store.delete("none")
        deleted = store.delete("first")
        good.append(store.commit([Write("last", [b"1"])]))
    assert [future.exception() for future in good] == [None] * 4
    assert deleted.result().size_bytes == 1
    assert isinstance(short.exception(), ValueTooShortError)
    assert isinstance(missing.exception(), KeyNotFoundError)
    assert isinstance(gone.exception(), KeyNotFoundError)
    assert transactions(store) - before <= 2
    assert read(store, "old") == b"ABC45"
    with store.snapshot() as snapshot:
        assert [entry.key for entry in snapshot.list()] == ["last", "old"]


def test_a_commit_that_fills_the_map_fails_alone(open_store: Callable, payload: Callable, read: Callable) -> None:
    """LMDB's own limit, in the middle of a shared transaction: pages that a snapshot holds count for it, not for the quota."""
    store = open_store(limit_bytes=2 << 20, chunk_bytes=1 << 20, held_timeout_s=0.0)
    store.commit([Write("big", [payload(600_000)])]).result()
    snapshot = store.snapshot()
    store.commit([Write("big", [payload(600_000)])]).result()
    with writer_held_up(store):
        store.commit([Write("first", [b"1"])])
        small = [store.commit([Write("a", [b"a"])])]
        big = store.commit([Write("lost", [b"1"]), Write("big", [payload(900_000)])])
        small.append(store.commit([Write("b", [b"b"])]))
    assert [future.exception() for future in small] == [None, None]
    assert isinstance(big.exception(), StoreFullError)
    assert "snapshots" in str(big.exception())
    snapshot.close()
    value = payload(900_000)
    store.commit([Write("big", [value])]).result()
    assert read(store, "big") == value
    with store.snapshot() as now:
        assert [entry.key for entry in now.list()] == ["a", "b", "big", "first"]


def test_small_commits_pass_a_large_one(store: LmdbStore, payload: Callable, read: Callable) -> None:
    value = payload(4 << 20)
    order: list[str] = []
    with writer_held_up(store):
        large = store.commit([Write("large", [value])])
        large.add_done_callback(lambda _: order.append("large"))
        small = store.commit([Write("small", [b"1"])])
        small.add_done_callback(lambda _: order.append("small"))
    assert large.result()["large"].version > small.result()["small"].version
    assert order == ["small", "large"]
    assert read(store, "large") == value


def test_readers_of_a_large_value_see_no_mixture(store: LmdbStore) -> None:
    """One that is being replaced, whole and in ranges."""
    size = 200_000
    store.commit([Write("a", [bytes(size)])]).result()
    done = threading.Event()

    def write() -> None:
        for i in range(1, 40):
            store.commit([Write("a", [bytes([i]) * size], 0 if i % 2 else None)]).result()
        done.set()

    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(write)
        while not done.is_set() and not writing.done():
            with store.snapshot() as snapshot:
                assert len({bytes(view[:1]) + bytes(view[-1:]) for view in snapshot.pieces("a")}) == 1
        writing.result()


def test_cancelled_commit_is_not_made(store: LmdbStore) -> None:
    with writer_held_up(store):
        store.commit([Write("first", [b"1"])])
        cancelled = store.commit([Write("a", [b"1"])])
        large = store.commit([Write("b", [b"1" * 50_000])])
        assert cancelled.cancel()
        assert large.cancel()
    store.sweep().result()
    with store.snapshot() as snapshot:
        assert [entry.key for entry in snapshot.list()] == ["first"]
    store.delete("first").result()
    assert store.stats().used_bytes == 0


@pytest.mark.parametrize("more", [[], [Write("large", [bytes(50_000)])]], ids=["in one transaction", "in several"])
def test_of_a_cancelled_commit_nothing_is_left(store: LmdbStore, payload: Callable, more: list[Write]) -> None:
    staged = store.stage()
    staged.append(payload(50_000))
    with writer_held_up(store):
        assert store.commit([Write("a", staged), *more]).cancel()
    wait_until(lambda: store.stats().used_bytes == 0)


def test_two_that_fill_a_chunk_share_a_transaction(store: LmdbStore) -> None:
    with writer_held_up(store):
        before = transactions(store)
        commits = [store.commit([Write(f"k{i}", [bytes(size)])]) for i, size in enumerate((2000, 2096, 1, 4095, 1))]
    for commit in commits:
        commit.result()
    assert transactions(store) - before == 3


def test_what_an_overwritten_value_left_is_freed_unasked(open_store: Callable, payload: Callable) -> None:
    """More chunks than one transaction frees: the writer comes to the rest when nothing waits, and then sleeps."""
    store = open_store(sweep_interval_s=3600.0)
    store.sweep().result()
    for value in (payload(1_000_000), b"y"):
        store.commit([Write("a", [value])]).result()
    wait_until(lambda: not store._writer._has_work())
    assert store.stats().used_bytes < 100_000
    before = transactions(store)
    store.delete("a").result()
    assert (transactions(store) - before, store.stats().used_bytes) == (1, 0)


def test_what_cannot_be_freed_is_left_to_the_sweep(
    open_store: Callable, payload: Callable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise OSError("no")

    store = open_store(sweep_interval_s=3600.0)
    store.sweep().result()
    with monkeypatch.context() as patched:
        patched.setattr(WriteTransaction, "free_loose", fail)
        for value in (payload(1_000_000), b"y"):
            store.commit([Write("a", [value])]).result()
        wait_until(lambda: not store._writer._has_work())
    assert store.stats().used_bytes > 1_000_000
    assert "cannot free chunks" in caplog.text
    assert store.sweep().result() == 245
    store.delete("a").result()
    assert store.stats().used_bytes == 0


def test_chunks_of_a_failed_upload_that_could_not_be_freed_are_freed_by_the_next_sweep(
    open_store: Callable, payload: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only when the process has ended: it may run for months."""

    def fail(*_: object, **__: object) -> int:
        raise OSError("no")

    store = open_store(sweep_interval_s=3600.0)
    store.sweep().result()
    staged = store.stage()
    staged.append(payload(1_000_000))
    with monkeypatch.context() as patched:
        patched.setattr(WriteTransaction, "drop_loose", fail)
        staged.close()
        wait_until(lambda: not store._writer._has_work())
    assert store.stats().used_bytes > 900_000
    store.sweep().result()
    assert store.stats().used_bytes == 0


def test_chunks_left_by_an_overwrite_and_a_delete_are_told_apart(
    store: LmdbStore, payload: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.sweep().result()
    with monkeypatch.context() as patched:
        patched.setattr(store._writer, "_free_some", lambda: 0)
        for _ in range(2):
            store.commit([Write("a", [payload(400_000)])]).result()
        store.delete("a").result()
        store.commit([Write("a", [b"1"])]).result()
    store.sweep().result()
    store.delete("a").result()
    assert store.stats().used_bytes == 0


def test_close_finishes_what_was_asked_for(open_store: Callable, payload: Callable, read: Callable) -> None:
    values = {f"k{i}": payload(i * 700) for i in range(50)}
    store = open_store()
    commits = [store.commit([Write(key, [value])]) for key, value in values.items()]
    store.close()
    assert all(commit.done() and not commit.exception() for commit in commits)
    store = open_store()
    assert {key: read(store, key) for key in values} == values


def test_closed_store_is_refused(store: LmdbStore) -> None:
    staged = store.stage()
    store.close()
    store.close()
    refused: list[Callable[[], object]] = [
        store.snapshot,
        store.stats,
        store.commit([Write("a", [b"1"])]).result,
        store.commit([Write("a", [b"1" * 50_000])]).result,
        store.delete("a").result,
        store.sweep().result,
        lambda: staged.append(b"1" * 50_000),
    ]
    for attempt in refused:
        with pytest.raises(InternalError, match="is closed"):
            attempt()


def test_a_writer_that_fails_leaves_nobody_waiting(open_store: Callable, read: Callable) -> None:
    def exit_thread(_: object) -> None:
        raise SystemExit("no more")

    store = open_store()
    staged = store.stage()
    value = bytearray(b"3" * 4096)
    with ThreadPoolExecutor(1) as threads:
        with writer_held_up(store):
            store.commit([Write("second", [b"2"])]).add_done_callback(exit_thread)
            waiting: list[Future[Any]] = [
                store.commit([Write("third", [value])]),
                store.commit([Write("large", [b"4" * 50_000])]),
                store.delete("none"),
                store.sweep(),
                threads.submit(staged.append, b"5" * 50_000),
            ]
            cancelled = store.commit([Write("cancelled", [b"6"])])
            assert cancelled.cancel()
            wait_until(lambda: len(store._writer._tasks) == 3)
        for future in waiting:
            with pytest.raises(InternalError, match="its writer failed: SystemExit: no more"):
                future.result()
    value.extend(b"x")  # BufferError while something has a view of it
    later: list[Callable[[], object]] = [
        store.commit([Write("a", [b"1"])]).result,
        store.commit([Write("a", [b"1" * 50_000])]).result,
        store.delete("a").result,
        store.sweep().result,
        lambda: store.stage().append(b"1" * 50_000),
    ]
    for attempt in later:
        with pytest.raises(InternalError, match="its writer failed: SystemExit: no more"):
            attempt()
    assert read(store, "second") == b"2"
    store.close()
    assert read(open_store(), "second") == b"2"


def test_the_writer_outlives_a_sweep_that_was_cancelled(store: LmdbStore) -> None:
    with writer_held_up(store):
        assert store.sweep().cancel()
    assert store.sweep().result() == 0
    store.commit([Write("a", [b"1"])]).result()


def test_what_was_written_is_not_held_on_to(store: LmdbStore) -> None:
    value = bytearray(10)
    store.commit([Write("a", [value])]).result()
    store.sweep().result()  # the writer has come to what follows that commit
    value.extend(b"x")  # BufferError while something has a view of it
    assert len(value) == 11


def test_a_defect_fails_one_commit(store: LmdbStore, read: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(WriteTransaction, "apply", lambda *_: 1 // 0)
        with pytest.raises(InternalError, match="ZeroDivisionError"):
            store.commit([Write("a", [b"1"])]).result()
    store.commit([Write("a", [b"2"])]).result()
    assert read(store, "a") == b"2"


def test_pieces_are_checked_before_anything_is_queued(store: LmdbStore) -> None:
    with pytest.raises(TypeError):
        store.commit([Write("a", ["text"])])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="another kind of store"):
        store.commit([Write("a", object())])  # type: ignore[arg-type]
    assert store.stats().keys == 0


@pytest.mark.parametrize(
    ("durability", "sync", "metasync"),
    [("full", True, True), ("meta", True, False), ("none", False, False)],
)
def test_durability_is_lmdbs(open_store: Callable, read: Callable, durability: str, sync: bool, metasync: bool) -> None:
    store = open_store(durability=Durability(durability))
    flags = store._environment.lmdb.flags()
    assert (flags["sync"], flags["metasync"]) == (sync, metasync)
    store.commit([Write("a", [b"1" * 10_000])]).result()
    store.close()
    assert read(open_store(), "a") == b"1" * 10_000


def test_commits_of_many_threads_are_all_made(store: LmdbStore, read: Callable) -> None:
    def write(thread: int) -> list[int]:
        futures = [
            store.commit([Write(f"k{thread}", [bytes([thread, i]) * 700 * (i % 5)]), Write("all", [b"1"])]) for i in range(30)
        ]
        return [entry.version for future in futures for entry in future.result().values()]

    with ThreadPoolExecutor(16) as threads:
        versions = [version for made in threads.map(write, range(16)) for version in made]
    assert len(set(versions)) == 16 * 30 * 2
    assert all(read(store, f"k{thread}") == bytes([thread, 29]) * 700 * 4 for thread in range(16))
