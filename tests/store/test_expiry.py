"""Replies are new or refused, and go with their age and their number."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import pytest

from kaas_core.errors import DataDamagedError, KeyNotFoundError
from kaasd.store import expiry
from kaasd.store.base import KeyExistsError, Namespace, Write
from kaasd.store.lmdb_store import LmdbStore

reply = partial(Write, namespace=Namespace.REPLIES, must_be_new=True)


def keys(store: LmdbStore) -> list[str]:
    with store.snapshot() as snapshot:
        return [entry.key for entry in snapshot.list(namespace=Namespace.REPLIES, limit=10_000)]


def test_one_that_is_there_refuses_the_whole_commit(store: LmdbStore, read: Callable) -> None:
    first = store.commit([Write("a", [b"1"]), reply("g/1", [b"first"])]).result()
    assert first["g/1"].version == first["a"].version + 1
    with pytest.raises(KeyExistsError):
        store.commit([Write("a", [b"2"]), reply("g/1", [b"second"])]).result()
    assert read(store, "a") == b"1"
    assert read(store, "g/1", namespace=Namespace.REPLIES) == b"first"


def test_of_two_in_one_transaction_the_first_stays(store: LmdbStore, read: Callable) -> None:
    with store._environment.write():  # the writer waits, and takes both
        commits = [store.commit([Write("a", [bytes([n])]), reply("g/1", [bytes([n])])]) for n in (1, 2)]
    assert sum(commit.exception() is None for commit in commits) == 1
    assert read(store, "a") == read(store, "g/1", namespace=Namespace.REPLIES) == b"\1"


def test_a_large_commit_is_refused_and_leaves_nothing(store: LmdbStore, payload: Callable) -> None:
    store.commit([reply("g/1", [b"first"])]).result()
    used = store.stats().used_bytes
    with pytest.raises(KeyExistsError):
        store.commit([Write("a", [payload(100_000)]), reply("g/1", [b"second"])]).result()
    store.sweep().result()
    assert store.stats().used_bytes == used


def test_versions_follow_each_other(store: LmdbStore) -> None:
    entries = store.commit([Write("a", [b"1"]), Write("b", [b"2"]), Write("a", [b"3"], 0), reply("g/1", [b""])]).result()
    last = entries["g/1"].version
    assert (entries["b"].version, entries["a"].version) == (last - 2, last - 1)


def test_old_ones_go(store: LmdbStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "_LOOKED_AT_ONCE", 7)
    monkeypatch.setattr(expiry, "_DELETED_AT_ONCE", 3)
    assert store.expire(0, 100, 1 << 30, 600).result() == (0, 0)
    for number in range(20):
        last = store.commit([reply(f"g/{number:02}", [b"old"])]).result()[f"g/{number:02}"].version
    assert store.expire(0, 100, 1 << 30, 600).result() == (0, last)
    new = store.commit([Write("a", [b"a value stays"]), reply("h/1", [b"new"])]).result()["h/1"].version
    assert store.expire(last, 100, 1 << 30, 600).result() == (20, new)
    assert keys(store) == ["h/1"]
    assert store.stats().keys == 1
    assert store.expire(last, 100, 1 << 30, 600).result() == (0, new)


def test_the_oldest_of_each_group_go(store: LmdbStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "_LOOKED_AT_ONCE", 4)
    for number in (5, 3, 9, 1, 7):  # the last ones written are 9, 1 and 7
        store.commit([reply(f"g/{number}", [b""]), reply(f"h/{number}", [b""])]).result()
    store.commit([reply(f"i/{number}", [b""]) for number in range(3)]).result()
    assert store.expire(0, 3, 1 << 30, 600).result().deleted == 4
    assert keys(store) == ["g/1", "g/7", "g/9", "h/1", "h/7", "h/9", "i/0", "i/1", "i/2"]


def damage(store: LmdbStore, key: bytes) -> None:
    store.expire(0, 10, 1 << 30, 600).result()  # moves them into their tree
    database = store._environment.entries[Namespace.REPLIES]
    with store._environment.write() as txn:
        raw = bytearray(txn.get(key, db=database))
        raw[0] ^= 1
        txn.put(key, bytes(raw), db=database)


def test_damaged_ones_stay_as_long_as_others_would(store: LmdbStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing tells how old they are. As long as they are there, nothing is stored under their key."""
    store.commit([reply("g/1", [b"reply"]), reply("g/2", [b"reply"])]).result()
    damage(store, b"g/1")
    assert store.expire(0, 10, 1 << 30, 600).result().deleted == 0
    with pytest.raises(KeyExistsError):
        store.commit([reply("g/1", [b"again"])]).result()
    with store.snapshot() as snapshot, pytest.raises(DataDamagedError, match="the reply 'g/1' is damaged"):
        snapshot.stat("g/1", Namespace.REPLIES)
    assert [(entry.namespace, entry.key) for entry in store.check()] == [(Namespace.REPLIES, "g/1")]
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 601)
    assert store.expire(0, 10, 1 << 30, 600).result().deleted == 1
    assert keys(store) == ["g/2"]
    store.commit([reply("g/1", [b"again"])]).result()
    assert list(store.check()) == []


def test_delete_of_one_version(store: LmdbStore) -> None:
    version = store.commit([reply("g/1", [b"reply"])]).result()["g/1"].version
    with pytest.raises(KeyNotFoundError):
        store.delete("g/1", Namespace.REPLIES, version - 1).result()
    store.delete("g/1", Namespace.REPLIES, version).result()
    assert keys(store) == []


def test_what_was_written_meanwhile_stays(store: LmdbStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was old when it was looked at, and is new when it would be deleted."""
    old = store.commit([reply("g/1", [b"old"])]).result()["g/1"].version
    steps = store._expirer.steps(store._writer.run, old, 10, 1 << 30, 600)
    assert next(steps) == (0, old)
    version = store.delete("g/1", Namespace.REPLIES).result().version
    assert store.commit([reply("g/1", [b"new"])]).result()["g/1"].version > version
    store._writer.work_off(steps).result()
    assert keys(store) == ["g/1"]


def test_one_commit_cannot_write_two_of_a_key(store: LmdbStore) -> None:
    with pytest.raises(KeyExistsError):
        store.commit([reply("g/1", [b"first"]), reply("g/1", [b"second"])]).result()
    assert keys(store) == []
    assert list(store.check()) == []


def test_the_oldest_of_all_go_where_they_take_too_much(store: LmdbStore, payload: Callable) -> None:
    for number in range(10):
        store.commit([reply(f"{'gh'[number % 2]}/{number}", [payload(5000)])]).result()
    assert store.expire(0, 100, 60_000, 600).result().deleted == 0
    assert store.expire(0, 100, 20_500, 600).result().deleted == 6
    assert keys(store) == ["g/6", "g/8", "h/7", "h/9"]
    assert store.expire(0, 100, 1000, 600).result().deleted == 4
    assert list(store.check()) == []
