"""The last replies stand in the store's counters, and go into their tree together; nobody sees a difference."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from kaas_core.errors import (
    DataDamagedError,
    GroupLimitError,
    InternalError,
    InvalidArgumentError,
    KeyNotFoundError,
    StoreForeignError,
)
from kaasd.store.base import Account, KeyExistsError, Namespace, Write
from kaasd.store.lmdb_store import LmdbStore
from kaasd.store.recent import MAX_RECENT_BYTES, MAX_RECENT_REPLY_BYTES, RecentReply, find_recent, unpack_recent
from kaasd.store.records import STATE_KEY, StoreState
from tests.store.support import Start, kill, said

reply = partial(Write, namespace=Namespace.REPLIES, must_be_new=True)


def in_tree(store: LmdbStore) -> int:
    with store._environment.write() as txn:
        return txn.stat(store._environment.entries[Namespace.REPLIES])["entries"]


def recent(store: LmdbStore) -> list[str]:
    with store._environment.write() as txn:
        state = StoreState.unpack(txn.get(STATE_KEY))
    return [found.raw_key.decode() for found in unpack_recent(state.recent)]


def keys(store: LmdbStore, **arguments: object) -> list[str]:
    with store.snapshot() as snapshot:
        return [entry.key for entry in snapshot.list(namespace=Namespace.REPLIES, **arguments)]


def put(store: LmdbStore, *numbers: int) -> None:
    for number in numbers:
        store.commit([Write("k", [b"v"]), reply(f"g/{number:03}", [b"%d" % number * 20], account="g")]).result()


def test_they_are_packed_and_found() -> None:
    replies = [
        RecentReply(b"g/1", b"", 0, 1, 2),
        RecentReply(b"g/12", b"g/123", 65535, 2**64 - 1, 3),
        RecentReply(b"3", b"x", 1, 2, 3),
    ]
    packed = b"".join(one.pack() for one in replies)
    assert list(unpack_recent(packed)) == replies
    assert [find_recent(packed, one.raw_key) for one in replies] == replies
    assert find_recent(packed, b"g/123") is None  # it is in a value only
    assert list(unpack_recent(b"")) == []


def test_a_commit_moves_all_of_them_when_there_is_no_room(store: LmdbStore) -> None:
    number = 0
    while not in_tree(store):
        put(store, number)
        number += 1
        assert len(recent(store)) + in_tree(store) == number
    assert number > 15
    assert recent(store) == [f"g/{number - 1:03}"]


@pytest.mark.parametrize("count", [3, 60])
def test_all_are_found_wherever_they_are(open_store: Callable, read: Callable, count: int) -> None:
    store = open_store()
    put(store, *range(count))
    for _ in range(2):
        for number in range(count):
            assert read(store, f"g/{number:03}", namespace=Namespace.REPLIES) == b"%d" % number * 20
        assert keys(store) == [f"g/{number:03}" for number in range(count)]
        assert keys(store, prefix="g/00", after="g/000", limit=2) == ["g/001", "g/002"]
        assert list(store.check()) == []
        with store.snapshot() as snapshot:
            versions = [snapshot.stat(key, Namespace.REPLIES).version for key in keys(store)]
        assert versions == list(range(2, 2 * count + 1, 2))
        store.close()
        store = open_store()


def test_whether_one_is_there(store: LmdbStore) -> None:
    put(store, *range(60))
    with store.snapshot() as snapshot:
        assert all(snapshot.has(f"g/{number:03}", Namespace.REPLIES) for number in range(60))
        assert not any(snapshot.has(key, Namespace.REPLIES) for key in ("g/060", "g/00", "k"))
        assert snapshot.has("k")
        assert not snapshot.has("g/001")
        with pytest.raises(InvalidArgumentError):
            snapshot.has("")
    with pytest.raises(InternalError, match="the snapshot is closed"):
        snapshot.has("k")


def test_one_id_is_refused_before_and_behind_the_move(store: LmdbStore) -> None:
    put(store, *range(60))
    assert recent(store)
    assert in_tree(store)
    for number in range(60):
        with pytest.raises(KeyExistsError):
            put(store, number)
    with pytest.raises(KeyExistsError):
        store.commit([reply("g/new", [b"1"]), reply("g/new", [b"2"])]).result()
    assert len(keys(store)) == 60


def test_another_process_sees_and_moves_them(store: LmdbStore, start: Start) -> None:
    put(store, 0)
    child = start("""
from kaasd.store.base import KeyExistsError, Namespace, Write
def put(number):
    store.commit([Write(f"g/{number:03}", [b"x" * 40], namespace=Namespace.REPLIES, must_be_new=True, account="g")]).result()
try:
    put(0)
except KeyExistsError:
    for number in range(1, 40):
        put(number)
    say("refused, and put others")
""")
    assert said(child) == "refused, and put others"
    kill(child)
    assert keys(store) == [f"g/{number:03}" for number in range(40)]
    with pytest.raises(KeyExistsError):
        put(store, 39)
    assert store.accounts()["g"].stored_bytes == 20 + 39 * 40
    assert list(store.check()) == []


def test_they_count_for_their_group_at_once(store: LmdbStore) -> None:
    store.limit_account("g", 100, 0).result()
    for number in range(3):
        store.commit([reply(f"g/{number}", [bytes(30)], account="g")]).result()
        assert store.accounts()["g"] == Account(30 * (number + 1), 0, 100)
    with pytest.raises(GroupLimitError):
        store.commit([reply("g/3", [bytes(30)], account="g")]).result()
    store.commit([reply("h/3", [bytes(30)], account="h")]).result()
    store.delete("g/1", Namespace.REPLIES).result()
    store.commit([reply("g/3", [bytes(30)], account="g")]).result()
    assert store.accounts() == {"g": Account(90, 0, 100), "h": Account(30)}
    assert store.expire(0, 10, 1 << 30, 600).result().deleted == 0
    assert recent(store) == []
    assert store.accounts() == {"g": Account(90, 0, 100), "h": Account(30)}


def test_what_is_counted_anew_counts_them_once(store: LmdbStore) -> None:
    put(store, *range(30))
    before = store.accounts()
    with store._environment.write() as txn:
        database = store._environment.accounts
        for raw_key, raw in list(txn.cursor(database)):
            raw_key, damaged = bytes(raw_key), bytearray(raw)
            damaged[-1] ^= 1
            txn.put(raw_key, bytes(damaged), db=database)
    store._environment.known_accounts.clear()
    put(store, 30)
    assert store.accounts()["g"].stored_bytes == before["g"].stored_bytes + 40


def test_the_last_ones_expire_as_all_do(store: LmdbStore) -> None:
    put(store, *range(4))
    with store.snapshot() as snapshot:
        version = snapshot.stat("g/001", Namespace.REPLIES).version
    assert store.expire(version, 10, 1 << 30, 600).result() == (2, version + 4)
    assert keys(store) == ["g/002", "g/003"]
    assert store.expire(0, 1, 1 << 30, 600).result().deleted == 1
    assert keys(store) == ["g/003"]


def test_no_commit_is_made_where_there_is_none_to_move(store: LmdbStore) -> None:
    put(store, 1)
    store.expire(0, 10, 1 << 30, 600).result()
    before = store.last_commit
    store.expire(0, 10, 1 << 30, 600).result()
    assert store.last_commit == before


@pytest.mark.parametrize("more", [0, 1])
def test_a_large_one_goes_into_its_tree(store: LmdbStore, read: Callable, more: int) -> None:
    put(store, 1)
    store.commit([reply("g/large", [bytes(MAX_RECENT_REPLY_BYTES + more)])]).result()
    assert (in_tree(store), recent(store)) == ((2, []) if more else (0, ["g/001", "g/large"]))
    assert read(store, "g/large", namespace=Namespace.REPLIES) == bytes(MAX_RECENT_REPLY_BYTES + more)
    assert list(store.check()) == []


def test_the_counters_stay_in_their_page(store: LmdbStore) -> None:
    """In a page of their own they would cost each commit what this is to save."""
    most = 0
    for number in range(200):
        put(store, number)
        with store._environment.write() as txn:
            most = max(most, len(txn.get(STATE_KEY)))
            stat = txn.stat()
        assert (stat["depth"], stat["leaf_pages"], stat["overflow_pages"]) == (1, 1, 0)
    assert most > MAX_RECENT_BYTES


def test_a_change_takes_the_place_of_a_recent_one(store: LmdbStore, read: Callable) -> None:
    put(store, 1, 2)
    store.commit([Write("g/001", [b"other"], namespace=Namespace.REPLIES, account="g")]).result()
    assert read(store, "g/001", namespace=Namespace.REPLIES) == b"other"
    assert store.accounts()["g"].stored_bytes == 20 + 5
    store.delete("g/002", Namespace.REPLIES).result()
    with pytest.raises(KeyNotFoundError):
        read(store, "g/002", namespace=Namespace.REPLIES)
    assert store.accounts()["g"].stored_bytes == 5
    assert list(store.check()) == []


def test_a_damaged_one_is_not_taken_for_none(open_store: Callable) -> None:
    """Where one is missing its request would run again."""
    store = open_store()
    put(store, 1)
    with store._environment.write() as txn:
        raw = bytearray(txn.get(STATE_KEY))
        raw[raw.index(b"g/001")] ^= 1
        txn.put(STATE_KEY, bytes(raw))
    with store.snapshot() as snapshot, pytest.raises(DataDamagedError, match="its counters were changed"):
        snapshot.stat("g/001", Namespace.REPLIES)
    with pytest.raises(DataDamagedError):
        put(store, 1)
    store.abandon()
    store.close()
    with pytest.raises(StoreForeignError, match="its counters were changed"):
        open_store()
