"""Uploads of unknown interleaving."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from kaas_core.errors import InternalError, InvalidArgumentError, KeyNotFoundError, StoreFullError
from kaasd.store.base import Write
from kaasd.store.lmdb_store import LmdbStore


@pytest.mark.parametrize("size", [0, 1, 1024, 4095, 4096, 4097, 8192, 50_001])
@pytest.mark.parametrize("step", [700, 4096, 5000, 100_000])
def test_staged_value(store: LmdbStore, payload: Callable, read: Callable, size: int, step: int) -> None:
    value = payload(size)
    staged = store.stage()
    for start in range(0, size, step):
        staged.append(value[start : start + step])
    assert staged.size_bytes == size
    assert store.commit([Write("a", staged)]).result()["a"].size_bytes == size
    assert read(store, "a") == value
    store.delete("a").result()
    assert store.stats().used_bytes == 0


def test_staged_bytes_may_be_reused_at_once(store: LmdbStore, read: Callable) -> None:
    staged = store.stage()
    buffer = bytearray(3000)
    for i in range(10):
        buffer[:] = bytes([i]) * 3000
        staged.append(buffer)
    store.commit([Write("a", staged)]).result()
    assert read(store, "a") == b"".join(bytes([i]) * 3000 for i in range(10))


def test_a_chunk_or_less_takes_one_transaction(store: LmdbStore, payload: Callable) -> None:
    store.sweep().result()
    info = store._environment.lmdb.info
    before = info()["last_txnid"]
    staged = store.stage()
    for _ in range(4):
        staged.append(payload(1024))
    assert info()["last_txnid"] == before
    store.commit([Write("a", staged)]).result()
    assert info()["last_txnid"] == before + 1


def test_full_chunks_are_written_as_they_come(store: LmdbStore, payload: Callable) -> None:
    with store.stage() as staged:
        staged.append(payload(100_000))
        assert store.stats().used_bytes > 90_000
        assert store.stats().keys == 0


def test_interleaved_uploads(store: LmdbStore, payload: Callable, read: Callable) -> None:
    values = [payload(30_000 + i * 1000) for i in range(5)]
    staged = [store.stage() for _ in values]
    for start in range(0, 40_000, 900):
        for value, one in zip(values, staged, strict=True):
            one.append(value[start : start + 900])
    store.commit([Write(f"k{i}", one) for i, one in enumerate(staged)]).result()
    assert [read(store, f"k{i}") for i in range(5)] == values


@pytest.mark.parametrize("offset", [0, 5, 4096, 30_000])
@pytest.mark.parametrize("size", [100, 20_000])
def test_staged_range(store: LmdbStore, payload: Callable, read: Callable, offset: int, size: int) -> None:
    value, patch = payload(50_000), payload(size)
    store.commit([Write("a", [value])]).result()
    staged = store.stage()
    staged.append(patch)
    store.commit([Write("a", staged, offset)]).result()
    assert read(store, "a") == value[:offset] + patch + value[offset + size :]
    store.delete("a").result()
    assert store.stats().used_bytes == 0


def test_what_is_staged_is_not_swept(store: LmdbStore, payload: Callable, read: Callable) -> None:
    value = payload(50_000)
    staged = store.stage()
    staged.append(value)
    assert store.sweep().result() == 0
    assert store.sweep().result() == 0
    store.commit([Write("a", staged)]).result()
    assert read(store, "a") == value


def test_closed_without_a_commit_nothing_is_left(store: LmdbStore, payload: Callable) -> None:
    staged = store.stage()
    staged.append(payload(1_000_000))
    staged.close()
    staged.close()
    store.sweep().result()
    assert (store.stats().keys, store.stats().used_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("others", "error"),
    [([Write("none", [b"1"], 0)], KeyNotFoundError), ([Write("", [b"1"])], InvalidArgumentError)],
    ids=["refused by the writer", "refused at once"],
)
def test_of_a_failed_commit_nothing_is_left(store: LmdbStore, payload: Callable, others: list, error: type) -> None:
    with store.stage() as staged:
        staged.append(payload(100_000))
        with pytest.raises(error):
            store.commit([Write("a", staged), *others]).result()
    store.sweep().result()
    assert (store.stats().keys, store.stats().used_bytes) == (0, 0)


def test_used_up(store: LmdbStore, payload: Callable, tmp_path: Path) -> None:
    staged = store.stage()
    staged.append(payload(10_000))
    store.commit([Write("a", staged)]).result()
    with pytest.raises(InternalError, match="after its commit"):
        staged.append(b"1")
    with pytest.raises(InternalError, match="after its commit"):
        store.commit([Write("b", staged)]).result()
    staged.close()
    with (
        LmdbStore(tmp_path / "other", limit_bytes=8 << 20) as other,
        other.stage() as stranger,
        pytest.raises(InternalError, match="another"),
    ):
        store.commit([Write("b", stranger)]).result()
    with store.snapshot() as snapshot:
        assert [(entry.key, entry.size_bytes) for entry in snapshot.list()] == [("a", 10_000)]


def test_too_large_for_the_store(open_store: Callable, payload: Callable, read: Callable) -> None:
    store = open_store(limit_bytes=4 << 20, chunk_bytes=64 << 10)
    store.commit([Write("a", [b"1" * 10_000])]).result()
    with store.stage() as staged:
        with pytest.raises(
            StoreFullError, match=r"the store is full: 65536 bytes are needed, .* of 4194304 \(--store-limit\) are in use"
        ):
            for _ in range(100):
                staged.append(payload(50_000))
        with pytest.raises(InternalError, match="after its commit, failure"):
            staged.append(b"1")
    # What it had written is given back at once.
    store.commit([Write("b", [payload(3 << 20)])]).result()
    assert read(store, "a") == b"1" * 10_000


def test_what_is_staged_ends_with_the_store(open_store: Callable, store_path: Path, payload: Callable) -> None:
    store = open_store()
    staged = store.stage()
    staged.append(payload(500_000))
    store.close()
    staged.close()
    with lmdb.open(str(store_path), max_dbs=8, readonly=True) as environment:
        for name in (b"chunks", b"loose"):
            database = environment.open_db(name, create=False)
            with environment.begin() as txn:
                assert txn.stat(database)["entries"] == 0
