"""Compiled code in the store: a cache that is in nobody's way."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import lmdb
import pytest

from kaas_core.errors import StoreFullError
from kaasd.store.base import Namespace, Write
from kaasd.store.directory import LMDB_MAJOR_VERSION
from kaasd.store.lmdb_store import LmdbStore
from tests.store.conftest import CHUNK_BYTES, OpenStore

COMPILED = Namespace.COMPILED


def put(store: LmdbStore, key: str, content: bytes, namespace: Namespace = COMPILED) -> None:
    store.commit([Write(key, [content], namespace=namespace)]).result()


def keys(store: LmdbStore, namespace: Namespace = COMPILED) -> list[str]:
    with store.snapshot() as snapshot:
        return [entry.key for entry in snapshot.list(limit=10_000, namespace=namespace)]


@pytest.mark.parametrize("size_bytes", [100, 50_000])
def test_what_users_store_takes_its_room(open_store: OpenStore, size_bytes: int) -> None:
    store = open_store(limit_bytes=4 << 20)
    put(store, "v", b"value", Namespace.VALUES)
    for number in range(20):
        put(store, f"{number:04}", bytes(size_bytes))
    with pytest.raises(StoreFullError):
        for number in count():
            put(store, f"value {number:04}", bytes(100_000), Namespace.VALUES)
    assert keys(store) == []
    assert store.stats().used_bytes > 3 << 20
    assert "v" in keys(store, Namespace.VALUES)
    assert list(store.check()) == []


def test_a_store_of_an_earlier_version_gets_its_tree(open_store: OpenStore, store_path: Path) -> None:
    with open_store() as store:
        put(store, "v", b"value", Namespace.VALUES)
    settings = {"lock": False, "max_dbs": 10, "lib_version": LMDB_MAJOR_VERSION}
    with lmdb.open(str(store_path), **settings) as environment, environment.begin(write=True) as txn:
        txn.drop(environment.open_db(b"compiled", txn=txn), delete=True)
    with open_store() as store:
        assert keys(store) == []
        put(store, "c", b"code")
        assert (keys(store), keys(store, Namespace.VALUES)) == (["c"], ["v"])
        assert list(store.check()) == []


def test_a_check_drops_what_is_damaged(open_store: OpenStore, store_path: Path) -> None:
    content = b"this is a piece of code" * 20
    with open_store() as store:
        put(store, "whole", bytes(CHUNK_BYTES))
        put(store, "damaged", content)
    file = store_path / "data.mdb"
    raw = bytearray(file.read_bytes())
    start = -1
    while (start := raw.find(content, start + 1)) >= 0:
        raw[start] ^= 1
    file.write_bytes(raw)
    with open_store() as store:
        (found,) = store.check()
        assert (found.namespace, found.key) == (COMPILED, "damaged")
        assert "it is dropped, and compiled again when it is needed" in found.problem
        store.sweep().result()
        assert keys(store) == ["whole"]
        assert list(store.check()) == []
