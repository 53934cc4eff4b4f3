"""A store at its limit loses nothing, lets go, and takes up again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import count

import pytest

from kaas_core.errors import StoreFullError
from kaasd.store import writer
from kaasd.store.base import Write
from kaasd.store.environment import Environment
from kaasd.store.lmdb_store import LmdbStore
from kaasd.store.maintenance import reuse_freed_pages
from tests.store.support import writer_held_up

LIMIT_BYTES = 4 << 20
CHUNK_BYTES = 64 << 10
SETTINGS = {"limit_bytes": LIMIT_BYTES, "chunk_bytes": CHUNK_BYTES}


def fill(store: LmdbStore, payload: Callable[[int], bytes], size: int) -> dict[str, bytes]:
    """Put values until one fails; return those that did not."""
    values: dict[str, bytes] = {}
    for i in count():
        value = payload(size)
        try:
            store.commit([Write(f"k{i}", [value])]).result()
        except StoreFullError:
            return values
        values[f"k{i}"] = value
    raise AssertionError("unreachable")


SIZES = [600, 4000, 20_000, 100_000, 1_000_000]


@pytest.mark.parametrize("size", SIZES)
def test_full(open_store: Callable, payload: Callable, read: Callable, size: int) -> None:
    store = open_store(**SETTINGS)
    values = fill(store, payload, size)
    assert sum(map(len, values.values())) > LIMIT_BYTES * 0.5
    assert store.stats().used_bytes <= LIMIT_BYTES
    assert {key: read(store, key) for key in values} == values
    for key in values:
        store.delete(key).result()
    assert (store.stats().keys, store.stats().used_bytes) == (0, 0)
    # Nothing is lost by it: as much fits again, of any size.
    for again in SIZES:
        refilled = fill(store, payload, again)
        assert sum(map(len, refilled.values())) > LIMIT_BYTES * 0.5
        assert all(read(store, key) == value for key, value in refilled.items())
        for key in refilled:
            store.delete(key).result()


def test_error_names_the_figures(open_store: Callable, payload: Callable) -> None:
    store = open_store(**SETTINGS)
    store.commit([Write("a", [payload(1 << 20)])]).result()
    used = store.stats().used_bytes
    figures = rf"{CHUNK_BYTES} bytes are needed, \d+ of {LIMIT_BYTES} \(--store-limit\) are in use, {256 << 10} are kept"
    with pytest.raises(StoreFullError, match=figures) as caught:
        store.commit([Write("b", [payload(LIMIT_BYTES)])]).result()
    assert caught.value.metadata["limit_bytes"] == str(LIMIT_BYTES)
    assert used < int(caught.value.metadata["used_bytes"]) <= LIMIT_BYTES
    store.sweep().result()
    assert store.stats().used_bytes == used


def test_a_commit_that_does_not_fit_changes_nothing(open_store: Callable, payload: Callable, read: Callable) -> None:
    store = open_store(**SETTINGS)
    values = fill(store, payload, 100_000)
    entries = _entries(store)
    for writes in (
        [Write("k0", [b"new"]), Write("more", [payload(500_000)])],
        [Write("k0", [payload(1_000_000)])],
        [Write(f"n{i}", [payload(4000)]) for i in range(100)],
    ):
        with pytest.raises(StoreFullError):
            store.commit(writes).result()
    assert _entries(store) == entries
    assert {key: read(store, key) for key in values} == values


def test_a_range_needs_room_for_what_is_copied_around_it(open_store: Callable, payload: Callable, read: Callable) -> None:
    store = open_store(**SETTINGS)
    values = fill(store, payload, 100_000)
    with pytest.raises(StoreFullError):
        store.commit([Write("k0", [b"new"], 50_000)]).result()
    assert read(store, "k0") == values["k0"]
    store.delete("k1").result()
    store.commit([Write("k0", [b"new"], 50_000)]).result()
    assert read(store, "k0") == values["k0"][:50_000] + b"new" + values["k0"][50_003:]


def test_full_store_can_still_be_overwritten_in_place(open_store: Callable, payload: Callable, read: Callable) -> None:
    """What replaces a value needs room beside it for a moment, and so as much as it is long must be free."""
    store = open_store(**SETTINGS)
    values = fill(store, payload, 100_000)
    store.delete("k0").result()
    for key in list(values)[1:]:
        values[key] = payload(100_000)
        store.commit([Write(key, [values[key]])]).result()
        assert read(store, key) == values[key]


def test_free_pages_that_are_scattered_are_used(open_store: Callable, payload: Callable, read: Callable) -> None:
    """A chunk for which no run of free pages is long enough is cut until it fits."""
    store = open_store(**SETTINGS | {"chunk_bytes": 1 << 20})
    values = fill(store, payload, 10_000)
    for key in list(values)[::2]:
        store.delete(key).result()
        del values[key]
    values["big"] = payload(1_000_000)
    store.commit([Write("big", [values["big"]])]).result()
    staged = store.stage()
    values["staged"] = values["big"][:300_000]
    staged.append(values["staged"])
    store.commit([Write("staged", staged)]).result()
    assert {key: read(store, key) for key in values} == values
    with store.snapshot() as snapshot:
        assert len(list(snapshot.pieces("big"))) > 1
    for key in values:
        store.delete(key).result()
    store.sweep().result()
    assert store.stats().used_bytes == 0


def test_deletes_work_while_a_snapshot_holds_the_pages(open_store: Callable, payload: Callable, read: Callable) -> None:
    store = open_store(**SETTINGS, held_timeout_s=0.0)
    values = fill(store, payload, 1_000_000)
    with store.snapshot() as snapshot:
        for key in values:
            store.delete(key).result()
        assert {key: b"".join(snapshot.pieces(key)) for key in values} == values
        with pytest.raises(StoreFullError, match="snapshots"):
            store.commit([Write("a", [payload(1_000_000)])]).result()
    store.commit([Write("a", [payload(1_000_000)])]).result()


def test_a_full_store_waits_for_snapshots_to_close(
    open_store: Callable, payload: Callable, read: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(**SETTINGS, held_timeout_s=60.0)
    for key in fill(store, payload, 1_000_000):
        last = store.snapshot()
        store.delete(key).result()
        last.close()
    waits = threading.Event()
    is_held = store._environment.is_held
    monkeypatch.setattr(store._environment, "is_held", lambda: is_held() and (waits.set() or True))
    value = payload(1_000_000)
    store.commit([Write("a", [value])]).result()
    store.commit([Write("b", [value])]).result()
    assert not waits.is_set()
    snapshot = store.snapshot()
    commits = [store.delete("a"), store.delete("b"), *(store.commit([Write(f"n{i}", [value])]) for i in range(3))]
    assert waits.wait(60.0)
    assert b"".join(snapshot.pieces("a")) == value
    snapshot.close()
    for commit in commits:
        commit.result()
    assert read(store, "n2") == value


def test_commits_that_wait_together_wait_for_snapshots_once(
    open_store: Callable, payload: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each would hold up the next, and a request behind them all would miss its deadline."""
    store = open_store(**SETTINGS, held_timeout_s=0.2)
    timeouts = []

    def reuse(environment: Environment, timeout_s: float) -> None:
        timeouts.append(timeout_s)
        reuse_freed_pages(environment, timeout_s)

    monkeypatch.setattr(writer, "reuse_freed_pages", reuse)
    values = fill(store, payload, 1_000_000)
    with store.snapshot():
        for key in values:
            store.delete(key).result()
        timeouts.clear()
        with writer_held_up(store):
            commits = [store.commit([Write(f"n{i}", [payload(CHUNK_BYTES // 8)])]) for i in range(80)]
        failed = [commit for commit in commits if isinstance(commit.exception(), StoreFullError)]
    assert len(failed) >= 8
    assert len(timeouts) >= len(failed)
    assert timeouts.count(0.0) >= 6  # of those that were taken up together


def test_limit_below_what_is_stored(open_store: Callable, payload: Callable, read: Callable) -> None:
    store = open_store(**SETTINGS)
    values = fill(store, payload, 100_000)
    store.close()
    store = open_store(**SETTINGS | {"limit_bytes": LIMIT_BYTES // 2})
    assert store.stats().used_bytes > store.stats().limit_bytes
    assert {key: read(store, key) for key in values} == values
    with pytest.raises(StoreFullError):
        store.commit([Write("a", [b"1"])]).result()
    for key in list(values):
        store.delete(key).result()
    assert len(fill(store, payload, 100_000)) in range(12, 20)


def _entries(store: LmdbStore) -> list:
    with store.snapshot() as snapshot:
        return snapshot.list()
