"""Values of every layout: what goes in comes out, with the right entry."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import lmdb
import numpy as np
import pytest

from kaas_core.errors import DataDamagedError, InvalidArgumentError, KeyNotFoundError, ValueTooShortError
from kaas_core.validation import MAX_KEY_BYTES
from kaasd.store.base import Entry, Namespace, Write
from kaasd.store.lmdb_store import LmdbStore

# Inline up to a quarter of a chunk, in one chunk up to 4096, in several above.
SIZES = [0, 1, 1023, 1024, 1025, 4095, 4096, 4097, 8192, 50_001]


@pytest.mark.parametrize("size", SIZES)
def test_value_round_trip(store: LmdbStore, payload: Callable, read: Callable, size: int) -> None:
    value = payload(size)
    before = time.time_ns()
    entry = store.commit([Write("a", [value])]).result()["a"]
    assert read(store, "a") == value
    assert (entry.key, entry.size_bytes) == ("a", size)
    assert before <= entry.update_time_ns <= time.time_ns()
    with store.snapshot() as snapshot:
        assert snapshot.stat("a") == entry


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("other", SIZES)
def test_overwrite_leaves_nothing_behind(store: LmdbStore, payload: Callable, read: Callable, size: int, other: int) -> None:
    value = payload(other)
    store.commit([Write("a", [payload(size)])]).result()
    store.commit([Write("a", [value])]).result()
    assert read(store, "a") == value
    store.delete("a").result()
    store.sweep().result()
    assert (store.stats().keys, store.stats().used_bytes) == (0, 0)


def test_value_in_several_buffers_of_several_kinds(store: LmdbStore, read: Callable) -> None:
    parts = [b"abc", bytearray(b""), memoryview(b"defgh")[1:3], array("i", [1, 2]), np.arange(6, dtype="u2").reshape(2, 3)]
    store.commit([Write("a", parts)]).result()
    assert read(store, "a") == b"abcef" + np.array([1, 2], "i4").tobytes() + np.arange(6, dtype="u2").tobytes()


@pytest.mark.parametrize("size", [1000, 4096, 20_000])
@pytest.mark.parametrize(("start", "stop"), [(0, 0), (0, 1), (999, 1000), (100, 900), (0, 1000)])
def test_read_range(store: LmdbStore, payload: Callable, read: Callable, size: int, start: int, stop: int) -> None:
    value = payload(size)
    start, stop = start * size // 1000, stop * size // 1000
    store.commit([Write("a", [value])]).result()
    assert read(store, "a", start, stop - start) == value[start:stop]
    assert read(store, "a", start) == value[start:]


@pytest.mark.parametrize(("offset", "size"), [(0, 11), (10, 1), (11, 0), (-1, 2), (3, -1)])
def test_read_beyond_the_value_is_refused(store: LmdbStore, offset: int, size: int) -> None:
    store.commit([Write("a", [b"0123456789"])]).result()
    with store.snapshot() as snapshot, pytest.raises(ValueTooShortError, match=r"'a' has 10 bytes"):
        snapshot.pieces("a", offset, size)


@pytest.mark.parametrize("size", [500, 4000, 4096, 40_960, 50_001])
@pytest.mark.parametrize(("start", "length"), [(0, 1), (0.25, 10), (0.5, 0.1), (0.1, 0.8), (0, 1.0), (0.999, 1), (0.3, 0)])
def test_range_write(store: LmdbStore, payload: Callable, read: Callable, size: int, start: float, length: float) -> None:
    value = payload(size)
    offset = int(start * size)
    count = int(length * size) if isinstance(length, float) else length
    patch = payload(min(count, size - offset))
    first = store.commit([Write("a", [value])]).result()["a"]
    second = store.commit([Write("a", [patch], offset)]).result()["a"]
    assert read(store, "a") == value[:offset] + patch + value[offset + len(patch) :]
    assert second.size_bytes == size
    assert second.version > first.version
    store.delete("a").result()
    store.sweep().result()
    assert store.stats().used_bytes == 0


@pytest.mark.parametrize("size", [100, 10_000])
def test_a_range_is_created_where_nothing_is_and_lies_in_what_is_there(
    store: LmdbStore, payload: Callable, read: Callable, size: int
) -> None:
    value = payload(size)
    store.commit([Write("a", [value], 0, create=True)]).result()
    assert read(store, "a") == value
    store.commit([Write("a", [b"12345"], 0, create=True)]).result()
    store.commit([Write("a", [b"6"], 7, create=True)]).result()
    assert read(store, "a") == b"12345" + value[5:7] + b"6" + value[8:]


@pytest.mark.parametrize(
    ("start", "stop", "touched"),
    [(50 * 4096 + 5, 50 * 4096 + 15, [50]), (50 * 4096, 51 * 4096, [50]), (51 * 4096 - 1, 51 * 4096 + 1, [50, 51])],
)
def test_a_range_touches_only_its_chunks(store: LmdbStore, payload: Callable, start: int, stop: int, touched: list[int]) -> None:
    value = bytearray(payload(100 * 4096))
    store.commit([Write("a", [value])]).result()
    with store.snapshot() as snapshot:
        assert len(list(snapshot.pieces("a", start, stop - start))) == len(touched)
        addresses = [_address(view) for view in snapshot.pieces("a")]
    value[start:stop] = patch = b"x" * (stop - start)
    store.commit([Write("a", [patch], start)]).result()
    with store.snapshot() as snapshot:
        moved = [i for i, view in enumerate(snapshot.pieces("a")) if _address(view) != addresses[i]]
        assert b"".join(snapshot.pieces("a")) == value
    assert moved == touched


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, "u1").ctypes.data)


def test_many_small_range_writes_do_not_shatter_a_value(store: LmdbStore, payload: Callable, read: Callable) -> None:
    value = bytearray(payload(10 * 4096))
    store.commit([Write("a", [value])]).result()
    for offset in range(7, len(value) - 100, 1000):
        patch = payload(100)
        value[offset : offset + 100] = patch
        store.commit([Write("a", [patch], offset)]).result()
    assert read(store, "a") == value
    with store.snapshot() as snapshot:
        assert [len(view) for view in snapshot.pieces("a")] == [4096] * 10


@pytest.mark.parametrize("chunk_bytes", [4096, 5000, 16_384, 65_536])
def test_chunk_size_may_change(open_store: Callable, payload: Callable, read: Callable, chunk_bytes: int) -> None:
    values = {f"k{size}": bytearray(payload(size)) for size in (3000, 10_000, 50_000)}
    store = open_store(chunk_bytes=12_288)
    store.commit([Write(key, [value]) for key, value in values.items()]).result()
    store.close()
    store = open_store(chunk_bytes=chunk_bytes)
    for key, value in values.items():
        for offset, size in ((100, 200), (1000, 2000), (len(value) // 2, len(value) // 2)):
            value[offset : offset + size] = patch = payload(size)
            store.commit([Write(key, [patch], offset)]).result()
            assert read(store, key) == value
        store.delete(key).result()
    assert store.stats().used_bytes == 0


@pytest.mark.parametrize(("size", "chunks"), [(64 << 10, 0), ((64 << 10) + 1, 1), (1 << 20, 1), ((1 << 20) + 1, 2)])
def test_small_values_lie_in_their_record(open_store: Callable, size: int, chunks: int) -> None:
    store = open_store(chunk_bytes=1 << 20)
    store.commit([Write("a", [bytes(size)])]).result()
    assert count_chunks(store) == chunks


def count_chunks(store: LmdbStore) -> int:
    with store._environment.lmdb.begin() as txn:
        return txn.stat(store._environment.chunks)["entries"]


@pytest.mark.parametrize("damage", ["cut short", "missing"])
def test_a_damaged_value_is_an_error(store: LmdbStore, payload: Callable, read: Callable, damage: str) -> None:
    store.commit([Write("a", [payload(10_000)]), Write("b", [b"1"])]).result()
    environment = store._environment
    with environment.write() as txn, txn.cursor(environment.chunks) as cursor:
        assert cursor.first()
        if damage == "missing":
            cursor.delete()
        else:
            txn.put(bytes(cursor.key()), bytes(cursor.value())[:-1], db=environment.chunks)
    for attempt in (lambda: read(store, "a"), store.commit([Write("a", [b"new"], 5)]).result):
        with pytest.raises(DataDamagedError, match=r"the value 'a' is damaged: chunk \d+ (is missing|has 4095 of 4096 bytes)"):
            attempt()
    assert read(store, "b") == b"1"
    store.commit([Write("a", [b"new"])]).result()
    assert read(store, "a") == b"new"


def test_range_write_must_lie_within_the_value(store: LmdbStore, read: Callable) -> None:
    store.commit([Write("a", [b"0123456789"])]).result()
    with pytest.raises(ValueTooShortError, match=r"'a' has 10 bytes; the range from 8 to 11 cannot be written"):
        store.commit([Write("b", [b"new"]), Write("a", [b"xyz"], 8)]).result()
    with pytest.raises(KeyNotFoundError, match="'b'"):
        store.commit([Write("a", [b"xyz"]), Write("b", [b"xyz"], 0)]).result()
    with pytest.raises(InvalidArgumentError, match="offset_bytes"):
        store.commit([Write("a", [b"xyz"], -1)]).result()
    assert read(store, "a") == b"0123456789"
    assert store.stats().keys == 1


def test_writes_of_one_commit_are_applied_in_order(store: LmdbStore, read: Callable) -> None:
    store.commit([Write("a", [b"0" * 9000]), Write("a", [b"1" * 8], 4092), Write("a", [b"2" * 2], 4095)]).result()
    assert read(store, "a") == b"0" * 4092 + b"1" * 3 + b"2" * 2 + b"1" * 3 + b"0" * 4900


def test_commit_of_many_keys_is_one_state(store: LmdbStore, payload: Callable) -> None:
    for round_ in range(20):
        sizes = {f"k{i}": (i * 997 + round_) % 9000 for i in range(20)}
        store.commit([Write(key, [bytes([round_]) * size]) for key, size in sizes.items()])
        with store.snapshot() as snapshot:
            seen = {entry.key: b"".join(snapshot.pieces(entry.key)) for entry in snapshot.list()}
        assert len({value[:1] for value in seen.values() if value}) <= 1


def test_empty_commit(store: LmdbStore) -> None:
    assert store.commit([]).result() == {}


def test_versions_grow_over_the_whole_store_and_are_not_used_again(open_store: Callable) -> None:
    store = open_store()
    versions = []
    for _ in range(3):
        entries = store.commit([Write("a", [b"1"]), Write("b", [b"2"]), Write("a", [b"3"], 0)]).result()
        assert entries["a"].version > entries["b"].version
        versions += [entries["b"].version, entries["a"].version]
        assert store.delete("a").result() == entries["a"]
        versions += [store.commit([Write("a", [b""], namespace=Namespace.LIBRARIES)]).result()["a"].version]
    store.close()
    store = open_store()
    versions += [store.commit([Write("a", [b"1"])]).result()["a"].version]
    assert versions == sorted(set(versions))


def test_namespaces_are_apart(store: LmdbStore, read: Callable) -> None:
    for namespace in Namespace:
        store.commit([Write("a", [namespace.value.encode()], namespace=namespace)]).result()
    store.delete("a", Namespace.LIBRARIES).result()
    assert read(store, "a", namespace=Namespace.FUNCTIONS) == b"f"
    assert read(store, "a") == b"v"
    with store.snapshot() as snapshot:
        assert snapshot.list(namespace=Namespace.LIBRARIES) == []
    assert store.stats().keys == 1


def test_delete(store: LmdbStore) -> None:
    entry = store.commit([Write("a", [b"1"])]).result()["a"]
    assert store.delete("a").result() == entry
    with pytest.raises(KeyNotFoundError, match="'a'"):
        store.delete("a").result()
    with store.snapshot() as snapshot:
        with pytest.raises(KeyNotFoundError, match="'a'"):
            snapshot.stat("a")
        with pytest.raises(KeyNotFoundError, match="'a'"):
            snapshot.pieces("a")


GOOD_KEYS = ["a", " ", "\0", "é" * (MAX_KEY_BYTES // 2), "\U0010ffff" * (MAX_KEY_BYTES // 4), "x" * MAX_KEY_BYTES]
BAD_KEYS = {"": "empty", "x" * (MAX_KEY_BYTES + 1): "not 401", "é" * 201: "not 402", "a\ud800": "not valid UTF-8"}


@pytest.mark.parametrize("key", GOOD_KEYS)
def test_good_key(store: LmdbStore, read: Callable, key: str) -> None:
    store.commit([Write(key, [b"1"])]).result()
    assert read(store, key) == b"1"
    assert store.delete(key).result().key == key


@pytest.mark.parametrize("key", BAD_KEYS)
def test_bad_key_is_refused_by_name(store: LmdbStore, key: str) -> None:
    with store.snapshot() as snapshot:
        for attempt in (
            lambda: store.commit([Write("good", [b"1"]), Write(key, [b"1"])]).result(),
            lambda: store.delete(key).result(),
            lambda: snapshot.stat(key),
            lambda: snapshot.pieces(key),
        ):
            with pytest.raises(InvalidArgumentError, match=f"^key: .*{BAD_KEYS[key]}") as caught:
                attempt()
            assert (caught.value.reason, caught.value.metadata["field"]) == ("INVALID_NAME", "key")
    assert store.stats().keys == 0


def test_list(store: LmdbStore) -> None:
    keys = sorted(["a", "a/1", "a/2", "a/é", "a/\U0001f600", "a0", "b"], key=str.encode)
    entries = store.commit([Write(key, [b"x" * 2000 * i]) for i, key in enumerate(reversed(keys))]).result()

    def listed(*args: object) -> list[Entry]:
        with store.snapshot() as snapshot:
            return snapshot.list(*args)

    assert listed() == [entries[key] for key in keys]
    assert [e.key for e in listed("a/")] == [key for key in keys if key.startswith("a/")]
    assert [e.key for e in listed("a/", "a/1")] == [key for key in keys if key.startswith("a/")][1:]
    assert [e.key for e in listed("", "a/1", 2)] == keys[2:4]
    assert [e.key for e in listed("", "a/15", 2)] == keys[2:4]
    assert listed("", "b") == listed("c") == listed("a", "b") == listed("", "", 0) == []
    for field, args in {"prefix": ("\ud800",), "after": ("", "x" * 401)}.items():
        with pytest.raises(InvalidArgumentError, match=f"^{field}: ") as caught:
            listed(*args)
        assert caught.value.metadata["field"] == field


def test_a_list_has_100_entries_where_nothing_else_is_asked_for(store: LmdbStore) -> None:
    store.commit([Write(f"{i:03}", [b""]) for i in range(101)]).result()
    with store.snapshot() as snapshot:
        assert [entry.key for entry in snapshot.list()] == [f"{i:03}" for i in range(100)]


def test_a_list_that_lmdb_cannot_read_is_an_error_of_the_store(store: LmdbStore, store_path: Path) -> None:
    def fail(*_: object) -> None:
        raise lmdb.CorruptedError("mdb_cursor_open")

    snapshot = store.snapshot()
    transaction = snapshot._txn
    snapshot._txn = SimpleNamespace(cursor=fail)  # type: ignore[assignment]
    with pytest.raises(DataDamagedError, match=f"the trees of {store_path}, which find all that is stored, are damaged"):
        snapshot.list()
    snapshot._txn = transaction
    snapshot.close()


def test_settings_are_checked(open_store: Callable) -> None:
    for setting in ({"limit_bytes": (1 << 20) - 1}, {"chunk_bytes": 4095}):
        with pytest.raises(InvalidArgumentError, match=f"^{next(iter(setting))}: "):
            open_store(**setting)
    open_store(limit_bytes=1 << 20, chunk_bytes=4096)
