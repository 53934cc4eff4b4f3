"""Whether all that is stored is there: each kind of damage is found, and nothing is held up meanwhile."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import lmdb
import pytest

from kaas_core.errors import InternalError
from kaasd.store import check
from kaasd.store.base import CheckProgress, Namespace, Write
from kaasd.store.environment import Environment
from kaasd.store.lmdb_store import LmdbStore
from kaasd.store.records import Record, chunk_key
from tests.store.support import Start, kill, said


def put(store: LmdbStore, key: str, value: bytes, namespace: Namespace = Namespace.VALUES) -> None:
    store.commit([Write(key, [value], namespace=namespace)]).result()


def damage_chunk(store: LmdbStore, key: str, number: int, left: bytes | None, namespace: Namespace = Namespace.VALUES) -> None:
    """Replace a chunk of a value, or delete it where nothing is to be left."""
    environment = store._environment
    with environment.write() as txn:
        record = Record.of(txn.get(key.encode(), db=environment.entries[namespace]), namespace, key.encode())
        name = chunk_key(record.extents[number].id)
        if left is None:
            txn.delete(name, db=environment.chunks)
        else:
            txn.put(name, left, db=environment.chunks)


def overwrite_record(store: LmdbStore, key: str, change: Callable[[bytes], bytes]) -> None:
    environment = store._environment
    with environment.write() as txn:
        database = environment.entries[Namespace.VALUES]
        txn.put(key.encode(), change(bytes(txn.get(key.encode(), db=database))), db=database)


@pytest.fixture
def filled(store: LmdbStore, payload: Callable) -> LmdbStore:
    for number in range(5):
        put(store, f"inline/{number}", payload(100))
        put(store, f"chunks/{number}", payload(20_000))
    put(store, "empty", b"")
    put(store, "sha256:1", payload(9000), Namespace.LIBRARIES)
    put(store, "f", payload(50), Namespace.FUNCTIONS)
    return store


def test_a_store_that_is_whole(filled: LmdbStore) -> None:
    progress = CheckProgress()
    assert list(filled.check(progress)) == []
    assert (progress.entries, progress.checked_bytes) == (13, 5 * 20_100 + 9050)


def test_an_empty_store(store: LmdbStore) -> None:
    assert list(store.check()) == []


def test_each_kind_of_damage_is_found_and_the_rest_goes_on(filled: LmdbStore, read: Callable) -> None:
    damage_chunk(filled, "chunks/1", 2, None)
    damage_chunk(filled, "chunks/3", 0, b"short")
    damage_chunk(filled, "sha256:1", 1, bytes(4096), Namespace.LIBRARIES)
    overwrite_record(filled, "inline/4", lambda record: b"\xff" + record[1:])
    overwrite_record(filled, "inline/0", lambda record: record[:40] + bytes(8) + record[48:])
    overwrite_record(filled, "inline/2", lambda record: record[:-1])
    overwrite_record(filled, "chunks/4", lambda record: record[:-16])
    progress = CheckProgress()
    assert [(entry.namespace, entry.key, re.sub(r"\d+", "N", entry.problem, count=1)) for entry in filled.check(progress)] == [
        (Namespace.VALUES, "chunks/1", "chunk N is missing"),
        (Namespace.VALUES, "chunks/3", "chunk N has 5 of 4096 bytes"),
        (Namespace.VALUES, "chunks/4", "the list of its chunks was changed"),
        (Namespace.VALUES, "inline/0", "its record was changed"),
        (Namespace.VALUES, "inline/2", "its bytes are not those that were written"),
        (Namespace.VALUES, "inline/4", "its record was changed"),
        (Namespace.LIBRARIES, "sha256:1", "the bytes of chunk N are not those that were written"),
    ]
    assert progress.entries == 13
    assert len(read(filled, "chunks/2")) == 20_000


def test_a_key_that_is_no_text(store: LmdbStore) -> None:
    environment = store._environment
    with environment.write() as txn:
        txn.put(b"\xff\xfe", b"broken", db=environment.entries[Namespace.VALUES])
    trees, found = store.check()
    assert "not all of its entries are those of the last transaction" in trees.problem
    assert (found.key, found.problem) == ("\\xff\\xfe", "its record is cut short")


def test_it_holds_no_snapshot_while_its_caller_takes_its_time(filled: LmdbStore, monkeypatch: pytest.MonkeyPatch) -> None:
    damage_chunk(filled, "chunks/1", 2, None)
    damage_chunk(filled, "chunks/3", 2, None)
    found = filled.check()
    assert next(found).key == "chunks/1"
    put(filled, "later", b"1")
    assert not filled._environment.is_held()
    assert next(found).key == "chunks/3"


def test_steps_are_short_and_none_is_left_out(filled: LmdbStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each entry may be a snapshot of its own; what others write in between is looked at as it is then."""
    monkeypatch.setattr(check, "STEP_S", 0.0)
    damage_chunk(filled, "chunks/0", 0, None)
    damage_chunk(filled, "chunks/4", 0, None)
    progress = CheckProgress()
    found = filled.check(progress)
    assert next(found).key == "chunks/0"
    put(filled, "chunks/4", b"whole again")
    filled.delete("inline/0").result()
    put(filled, "z", b"behind all others")
    assert list(found) == []
    assert progress.entries == 13


def test_one_that_is_stopped_ends(filled: LmdbStore) -> None:
    progress = CheckProgress()
    damage_chunk(filled, "chunks/0", 0, None)
    found = filled.check(progress)
    next(found)
    before = progress.entries
    progress.stopped = True
    assert list(found) == []
    assert progress.entries <= before + 1


def test_another_process_writes_meanwhile(store: LmdbStore, start: Start) -> None:
    child = start("""
for i in range(10**9):
    store.commit([Write(f"k{i % 10}", [bytes([i % 251]) * (i % 7 * 10_000)])]).result()
    if i % 3 == 0:
        store.delete(f"k{i % 10}").result()
    say(i)
""")
    for _ in range(20):
        said(child)
        assert list(store.check()) == []
    kill(child)
    assert list(store.check()) == []


def test_trees_that_cannot_be_read(filled: LmdbStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """LMDB notices some kinds of damage; the other namespaces are looked at all the same."""

    def fail(*_: object) -> memoryview:
        raise lmdb.PageNotFoundError("mdb_get")

    monkeypatch.setattr(check, "read_chunk", fail)
    found = list(filled.check())
    assert [(entry.namespace, entry.key) for entry in found] == [(None, ""), (None, "")]
    assert "what follows the value 'chunks/0' cannot be found" in found[0].problem
    assert "what follows the library 'sha256:1' cannot be found" in found[1].problem


def test_a_chunk_that_cannot_be_found(filled: LmdbStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def get(key: bytes, db: object = None) -> memoryview:
        raise lmdb.CorruptedError("mdb_get")

    read_chunk = check.read_chunk

    def fail(environment: Environment, txn: object, *more: Any) -> memoryview:
        return read_chunk(environment, SimpleNamespace(get=get), *more)  # type: ignore[arg-type]

    monkeypatch.setattr(check, "read_chunk", fail)
    progress = CheckProgress()
    found = list(filled.check(progress))
    assert {(entry.namespace, entry.key) for entry in found} == {(None, "")}
    assert len(found) == 6
    assert "value 'chunks/0': the trees of" in found[0].problem
    assert progress.entries == 13


def test_a_store_that_is_closed(open_store: Callable) -> None:
    store = open_store()
    store.close()
    with pytest.raises(InternalError, match="is closed"):
        list(store.check())
