"""Chunks that damage has left without a name are freed by a compaction, and no others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from kaasd.store import lmdb_store, orphans
from kaasd.store.base import Namespace, Write
from kaasd.store.lmdb_store import LmdbStore
from kaasd.store.records import RECORD_BYTES, chunk_key, unpack_chunk_key
from tests.store.test_check import overwrite_record

SIZE = 30_000


def put(store: LmdbStore, key: str, value: bytes, namespace: Namespace = Namespace.VALUES) -> None:
    store.commit([Write(key, [value], namespace=namespace)]).result()


def chunks(store: LmdbStore) -> list[int]:
    """Return the ids of all that there are."""
    environment = store._environment
    with environment.write() as txn, txn.cursor(environment.chunks) as cursor:
        return [unpack_chunk_key(raw_key) for raw_key in cursor.iternext(values=False)]


@pytest.fixture
def values(store: LmdbStore, payload: Callable[[int], bytes]) -> dict[str, bytes]:
    values = {f"key/{number}": payload(SIZE) for number in range(4)} | {"small": b"1"}
    for key, value in values.items():
        put(store, key, value)
    put(store, "sha256:1", payload(SIZE), Namespace.LIBRARIES)
    return values


def flipped(place: int) -> Callable[[bytes], bytes]:
    return lambda raw: raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]


@pytest.mark.parametrize("end", ["delete", "overwrite"])
@pytest.mark.parametrize("place", [3, RECORD_BYTES + 1], ids=["head", "list"])
def test_chunks_of_a_damaged_value_are_freed_once_it_is_gone(
    store: LmdbStore, values: dict[str, bytes], read: Callable, place: int, end: str
) -> None:
    before = chunks(store)
    overwrite_record(store, "key/1", flipped(place))
    store.compact()
    assert chunks(store) == before, "they may be the damaged value's"
    if end == "delete":
        store.delete("key/1").result()
        del values["key/1"]
    else:
        put(store, "key/1", b"new")
        values["key/1"] = b"new"
    assert chunks(store) == before
    used = store.stats().used_bytes
    store.compact()
    assert len(chunks(store)) == len(before) - -(-SIZE // 4096)
    assert store.stats().used_bytes <= used - SIZE
    assert {key: read(store, key) for key in values} == values
    assert len(read(store, "sha256:1", namespace=Namespace.LIBRARIES)) == SIZE
    assert list(store.check()) == []


def test_a_value_on_its_way_in_keeps_its_chunks(
    store: LmdbStore, values: dict[str, bytes], payload: Callable, read: Callable
) -> None:
    value, staged = payload(SIZE), store.stage()
    staged.append(value[:20_000])
    store.compact()
    staged.append(value[20_000:])
    store.commit([Write("late", staged)]).result()
    assert read(store, "late") == value


def test_what_is_written_while_it_looks_stays(
    store: LmdbStore, values: dict[str, bytes], payload: Callable, read: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = store._environment
    to_come = max(chunks(store)) + 2
    with environment.write() as txn:
        txn.put(chunk_key(to_come), b"of an id that was changed", db=environment.chunks)
    found: list[Sequence[int]] = []
    original = orphans.find_orphans

    def find(*arguments: object) -> list[int]:
        found.append(original(*arguments))
        put(store, "new", value)
        return found[-1]

    value = payload(SIZE)
    monkeypatch.setattr(lmdb_store, "find_orphans", find)
    store.compact()
    assert found == [[]]
    assert read(store, "new") == value


def test_nothing_is_freed_where_a_tree_may_hide_who_names_it(
    store: LmdbStore, values: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = chunks(store)
    overwrite_record(store, "key/1", flipped(3))
    store.delete("key/1").result()
    monkeypatch.setattr(orphans, "tree_problem", lambda environment: "a page is not a page of its tree")
    store.compact()
    assert chunks(store) == before


def test_one_that_is_stopped_frees_nothing(store: LmdbStore, values: dict[str, bytes]) -> None:
    overwrite_record(store, "key/1", flipped(3))
    store.delete("key/1").result()
    before = chunks(store)
    answers = iter([False] * 2)
    store.compact(lambda: next(answers, True))
    assert chunks(store) == before
