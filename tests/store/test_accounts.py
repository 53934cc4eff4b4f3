"""Whom what is stored counts for, and how much that may be."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from kaas_core.errors import GroupLimitError, KaasError
from kaasd.store.base import Account, Namespace, Write
from kaasd.store.lmdb_store import LmdbStore
from kaasd.store.records import account_key
from tests.store.support import Start, kill, said

VALUES, REPLIES = Namespace.VALUES, Namespace.REPLIES


def put(store: LmdbStore, key: str, size: int, account: str = "a", **more: object) -> None:
    store.commit([Write(key, [bytes(size)], account=account, **more)]).result()  # type: ignore[arg-type]


def has(store: LmdbStore, account: str) -> tuple[int, int]:
    found = store.accounts().get(account, Account())
    return found.stored_bytes, found.keys


def refused(call: Callable[[], object], limit: str, group: str = "a") -> None:
    with pytest.raises(GroupLimitError) as raised:
        call()
    assert raised.value.metadata == {"group": group, "limit": limit}


def test_what_is_put_counts_for_who_put_it(store: LmdbStore) -> None:
    put(store, "k", 10)
    put(store, "l", 20_000, "b")
    put(store, "m", 5)
    store.commit([Write("n", [bytes(7)])]).result()
    assert (has(store, "a"), has(store, "b"), has(store, "default")) == ((15, 2), (20_000, 1), (7, 1))


def test_what_is_overwritten_counts_for_the_new_owner(store: LmdbStore) -> None:
    put(store, "k", 20_000)
    put(store, "k", 30, "b")
    assert (has(store, "a"), has(store, "b")) == ((0, 0), (30, 1))


def test_what_is_written_in_part_too_and_all_of_it(store: LmdbStore) -> None:
    put(store, "k", 20_000)
    store.commit([Write("k", [bytes(5)], 100, account="b")]).result()
    assert (has(store, "a"), has(store, "b")) == ((0, 0), (20_000, 1))
    store.commit([Write("new", [bytes(5)], 0, create=True, account="b")]).result()
    assert has(store, "b") == (20_005, 2)


def test_what_is_deleted_counts_for_nobody(store: LmdbStore) -> None:
    put(store, "k", 20_000)
    put(store, "l", 1)
    store.delete("k").result()
    assert has(store, "a") == (1, 1)


def test_a_key_that_is_written_twice_in_one_commit_counts_once(store: LmdbStore) -> None:
    store.commit([Write("k", [bytes(10)], account="a"), Write("k", [bytes(4)], account="b")]).result()
    assert (has(store, "a"), has(store, "b")) == ((0, 0), (4, 1))


@pytest.mark.parametrize(
    ("namespace", "expected"),
    [
        (Namespace.LIBRARIES, (9, 0)),
        (Namespace.FUNCTIONS, (9, 0)),
        (Namespace.REPLIES, (9, 0)),
        (Namespace.COMPILED, (0, 0)),
        (Namespace.GROUPS, (0, 0)),
    ],
)
def test_other_things_count_as_bytes_or_not_at_all(store: LmdbStore, namespace: Namespace, expected: tuple[int, int]) -> None:
    put(store, "a/k", 9, namespace=namespace)
    assert has(store, "a") == expected
    store.delete("a/k", namespace).result()
    assert has(store, "a") == (0, 0)


def test_replies_that_expire_count_no_more(store: LmdbStore) -> None:
    put(store, "a/1", 100, namespace=REPLIES)
    with store.snapshot() as snapshot:
        version = snapshot.stat("a/1", REPLIES).version
    store.expire(version, 10, 1 << 20, 60).result()
    assert has(store, "a") == (0, 0)


class TestLimits:
    def test_bytes(self, store: LmdbStore, read: Callable) -> None:
        store.limit_account("a", 100, 0).result()
        put(store, "k", 60)
        put(store, "l", 40)
        refused(lambda: put(store, "m", 1), "max_stored_bytes")
        refused(lambda: put(store, "k", 61), "max_stored_bytes")
        assert (has(store, "a"), read(store, "k")) == ((100, 2), bytes(60))
        put(store, "k", 10)
        put(store, "m", 50)
        put(store, "m", 1000, "b")
        put(store, "n", 50)
        assert has(store, "a") == (100, 3)

    def test_keys(self, store: LmdbStore) -> None:
        store.limit_account("a", 0, 2).result()
        put(store, "k", 60)
        put(store, "l", 40)
        refused(lambda: put(store, "m", 0), "max_keys")
        put(store, "k", 1000)
        put(store, "f", 5, namespace=Namespace.FUNCTIONS)
        store.delete("l").result()
        put(store, "m", 0)
        assert has(store, "a") == (1005, 2)

    def test_of_what_is_larger_than_a_chunk(self, store: LmdbStore, payload: Callable) -> None:
        """What was written ahead is gone then."""
        store.limit_account("a", 30_000, 0).result()
        put(store, "k", 30_000)
        for call in (lambda: put(store, "l", 30_000), lambda: _staged(store, "l", 30_000)):
            before = store.stats().used_bytes
            refused(call, "max_stored_bytes")
            store.sweep().result()
            assert store.stats().used_bytes == before
        _staged(store, "k", 29_000)
        assert has(store, "a") == (29_000, 1)

    def test_of_a_commit_none_is_done(self, store: LmdbStore) -> None:
        store.limit_account("a", 100, 0).result()
        writes = [Write("k", [bytes(50)], account="a"), Write("l", [bytes(60)], account="a"), Write("m", [b"1"], account="b")]
        refused(lambda: store.commit(writes).result(), "max_stored_bytes")
        with store.snapshot() as snapshot:
            assert snapshot.list() == []

    def test_of_commits_that_share_a_transaction(self, store: LmdbStore) -> None:
        store.limit_account("a", 100, 0).result()
        with store._environment.write():  # so that all wait
            futures = [store.commit([Write(f"k{number}", [bytes(30)], account="a")]) for number in range(5)]
        errors = [future.exception() for future in futures]
        assert [type(error) for error in errors] == [type(None)] * 3 + [GroupLimitError] * 2
        assert has(store, "a") == (90, 3)

    def test_what_is_there_already_stays(self, store: LmdbStore) -> None:
        put(store, "k", 60)
        put(store, "l", 60)
        store.limit_account("a", 100, 1).result()
        assert store.accounts()["a"] == Account(120, 2, 100, 1)
        put(store, "k", 50)
        refused(lambda: put(store, "k", 51), "max_stored_bytes")
        store.delete("l").result()
        put(store, "k", 100)
        store.limit_account("a", 0, 0).result()
        put(store, "l", 1000)

    def test_are_those_of_all_processes(self, store: LmdbStore, start: Start) -> None:
        store.limit_account("a", 100, 0).result()
        child = start(
            """
store.commit([Write("k", [bytes(90)], account="a")]).result()
try:
    store.commit([Write("l", [bytes(11)], account="a")]).result()
except Exception as error:
    say(type(error).__name__)
store.commit([Write("m", [bytes(1)], account="new")]).result()
say("done")
wait()
"""
        )
        assert said(child) == "GroupLimitError"
        assert said(child) == "done"
        refused(lambda: put(store, "l", 11), "max_stored_bytes")
        put(store, "n", 2, "new")
        assert (has(store, "a"), has(store, "new")) == ((90, 1), (3, 2))
        kill(child)

    def test_a_look_ahead(self, store: LmdbStore) -> None:
        store.limit_account("a", 100, 1).result()
        store.check_account("a", "k", 100)
        refused(lambda: store.check_account("a", "k", 101), "max_stored_bytes")
        put(store, "k", 60)
        store.check_account("a", "k", 100)
        refused(lambda: store.check_account("a", "l", 1), "max_keys")
        store.check_account("b", "k", 1000)
        store.check_account("unknown", "k", 1000)
        assert store.accounts().keys() == {"a"}

    def test_can_be_set_when_the_store_is_full(self, open_store: Callable) -> None:
        store = open_store(limit_bytes=2 << 20)
        with pytest.raises(KaasError):
            for number in range(10_000):
                put(store, f"k{number}", 10_000)
        store.limit_account("b", 1, 1).result()
        assert store.accounts()["b"] == Account(0, 0, 1, 1)


def _staged(store: LmdbStore, key: str, size: int) -> None:
    with store.stage() as staged:
        staged.append(bytes(size))
        store.commit([Write(key, staged, account="a")]).result()


def test_after_a_restart(open_store: Callable) -> None:
    store = open_store()
    put(store, "k", 10)
    put(store, "l", 20_000, "b")
    store.limit_account("a", 11, 2).result()
    store.close()
    again = open_store()
    assert again.accounts() == {"a": Account(10, 1, 11, 2), "b": Account(20_000, 1)}
    put(again, "l", 1)
    assert (has(again, "a"), has(again, "b")) == ((11, 2), (0, 0))
    assert list(again.check()) == []


def test_after_a_process_was_killed(open_store: Callable, start: Start) -> None:
    """Each commit of the process is there and counts, or it is not and does not."""
    child = start(
        """
number = 0
while True:
    store.commit([Write(f"k{number}", [bytes(number % 9000)], account=f"g{number % 7}")])
    number += 1
    if number == 200:
        say("go")
"""
    )
    said(child)
    kill(child)
    store = open_store()
    assert expected(store) == {name: (found.stored_bytes, found.keys) for name, found in store.accounts().items()}
    put(store, "after", 5, "g3")
    assert list(store.check()) == []


def expected(store: LmdbStore) -> dict[str, tuple[int, int]]:
    """Return what each group has put, by what the keys say of it."""
    sizes, keys = Counter[str](), Counter[str]()
    with store.snapshot() as snapshot:
        for entry in snapshot.list(limit=10**6):
            name = f"g{int(entry.key[1:]) % 7}"
            sizes[name] += entry.size_bytes
            keys[name] += 1
    return {name: (sizes[name], keys[name]) for name in keys}


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_done_the_sums_are_right(open_store: Callable, seed: int) -> None:
    """Against a table in memory: writes whole and in part, deletes, commits that fail, and restarts."""
    store, chance = open_store(), random.Random(seed)
    owners: dict[str, tuple[str, int]] = {}
    limits = {"a": (40_000, 0), "b": (0, 4)}
    for name, limit in limits.items():
        store.limit_account(name, *limit).result()
    for _ in range(300):
        key, account, size = f"k{chance.randrange(12)}", chance.choice("abc"), chance.choice([0, 5, 3000, 9000])
        action = chance.randrange(10)
        if action == 0:
            store.close()
            store = open_store()
        elif action < 3:
            if key in owners:
                store.delete(key).result()
                del owners[key]
        else:
            new = dict(owners)
            offset = None
            if action < 5 and key in owners and owners[key][1] >= size:
                offset, new[key] = 0, (account, owners[key][1])
            else:
                new[key] = (account, size)
            most_bytes, most_keys = limits.get(account, (0, 0))
            before, after = totals(owners, account), totals(new, account)
            too_much = any(
                most and now > most and now > then for most, now, then in zip((most_bytes, most_keys), after, before, strict=True)
            )
            try:
                store.commit([Write(key, [bytes(size)], offset, account=account)]).result()
            except GroupLimitError:
                assert too_much
            else:
                assert not too_much
                owners = new
        for name in "abc":
            assert has(store, name) == totals(owners, name)
    assert list(store.check()) == []


def totals(owners: dict[str, tuple[str, int]], account: str) -> tuple[int, int]:
    sizes = [size for owner, size in owners.values() if owner == account]
    return sum(sizes), len(sizes)


class TestDamage:
    def test_what_is_said_of_an_account_is_counted_anew(self, open_store: Callable) -> None:
        store = open_store()
        put(store, "k", 10)
        put(store, "l", 20, "b")
        damage(store, account_key(1, "a"))
        store.close()
        again = open_store()
        put(again, "m", 5)
        assert (has(again, "a"), has(again, "b")) == ((15, 2), (20, 1))
        again.close()
        assert has(open_store(), "a") == (15, 2)

    def test_an_entry_that_is_damaged_counts_until_it_is_gone(self, store: LmdbStore) -> None:
        put(store, "k", 10)
        put(store, "l", 20)
        database = store._environment.entries[VALUES]
        with store._environment.write() as txn:
            raw = bytearray(txn.get(b"k", db=database))
            raw[0] ^= 1
            txn.put(b"k", bytes(raw), db=database)
        assert has(store, "a") == (30, 2)
        store.delete("k").result()
        assert has(store, "a") == (20, 1)


def damage(store: LmdbStore, raw_key: bytes) -> None:
    with store._environment.write() as txn:
        raw = bytearray(txn.get(raw_key, db=store._environment.accounts))
        raw[10] ^= 1
        txn.put(raw_key, bytes(raw), db=store._environment.accounts)


def test_names_are_found_whatever_order_they_came_in(open_store: Callable) -> None:
    store = open_store()
    names = [f"group-{number}" for number in range(300)]
    for name in names:
        put(store, name, 1, name)
    store.close()
    again = open_store()
    for name in reversed(names):
        put(again, name, 2, name)
    assert {has(again, name) for name in names} == {(2, 1)}


def test_a_transaction_that_fails_makes_no_account(store: LmdbStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number is another one's then."""
    put(store, "k", 1, "first")
    with pytest.raises(KaasError), monkeypatch.context() as patched:
        patched.setattr("kaasd.store.records.StoreState.pack", lambda state: 1 / 0)
        put(store, "l", 1, "lost")
    put(store, "m", 2, "second")
    put(store, "n", 3, "lost")
    found = {name: has(store, name) for name in store.accounts()}
    assert found == {"first": (1, 1), "second": (2, 1), "lost": (3, 1)}
