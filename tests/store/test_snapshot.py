"""Snapshots: consistent, zero-copy, and never outlived by what they hand out."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable

import numpy as np
import pytest

from kaas_core.errors import InternalError
from kaasd.store.base import Write
from kaasd.store.lmdb_store import LmdbStore

KEEPERS: dict[str, Callable[[memoryview], object]] = {
    "slice": lambda view: view[1:3],
    "view": memoryview,
    "cast": lambda view: view.cast("b"),
    "read-only": lambda view: view.toreadonly(),
    "pickle buffer": pickle.PickleBuffer,
    "frombuffer": lambda view: np.frombuffer(view, "u1"),
    "asarray": np.asarray,
    "array of a slice": lambda view: np.frombuffer(view[2:9], "u1"),
    "slice of an array": lambda view: np.frombuffer(view, "u1")[3:5],
    "array of another type": lambda view: np.frombuffer(view, "u4").reshape(2, -1).T,
}


@pytest.mark.parametrize("size", [16, 4096, 40_960])
def test_snapshot_does_not_see_later_commits(store: LmdbStore, payload: Callable, size: int) -> None:
    value = payload(size)
    first = store.commit([Write("a", [value])]).result()["a"]
    with store.snapshot() as snapshot:
        for i in range(20):
            store.commit([Write("a", [payload(size)])]).result()
            store.commit([Write("a", [payload(size // 2)], i % (size // 2))]).result()
            store.commit([Write(f"b{i}", [payload(size)])]).result()
        store.delete("a").result()
        store.sweep().result()
        assert b"".join(snapshot.pieces("a")) == value
        assert snapshot.list() == [first]
    with store.snapshot() as snapshot:
        assert [entry.key for entry in snapshot.list("a")] == []


@pytest.mark.parametrize("size", [16, 4096, 40_960])
def test_views_are_read_only_and_dead_when_the_snapshot_closes(store: LmdbStore, payload: Callable, size: int) -> None:
    store.commit([Write("a", [payload(size)])]).result()
    with store.snapshot() as snapshot:
        views = list(snapshot.pieces("a"))
        assert all(view.readonly and view.format == "B" for view in views)
        with pytest.raises(TypeError):
            views[0][0] = 1
    for view in views:
        with pytest.raises(ValueError, match="released"):
            view[0]


@pytest.mark.parametrize("size", [16, 4096, 40_960])
@pytest.mark.parametrize("keep", KEEPERS.values(), ids=KEEPERS.keys())
def test_what_uses_a_view_keeps_the_transaction_open(
    store: LmdbStore, payload: Callable, keep: Callable[[memoryview], object], size: int
) -> None:
    value = payload(size)
    store.commit([Write("a", [value])]).result()
    snapshot = store.snapshot()
    view = next(snapshot.pieces("a"))
    kept = keep(view)
    seen = np.array(kept, copy=True).tobytes()
    view.release() if not isinstance(kept, pickle.PickleBuffer) else None
    with pytest.raises(BufferError, match=r"1 views of a closed snapshot are still used, of \d+ bytes"):
        snapshot.close()
    # Overwriting and reusing every page of the store cannot change what is still in use.
    for _ in range(20):
        store.commit([Write("a", [payload(size)])]).result()
    assert np.array(kept, copy=True).tobytes() == seen
    with pytest.raises(InternalError, match="1 snapshots are open"):
        store.close()
    assert np.array(kept, copy=True).tobytes() == seen
    del kept, view
    store.close()


def test_a_leak_ends_with_its_last_user(store: LmdbStore, payload: Callable) -> None:
    store.commit([Write("a", [payload(4096)])]).result()
    store.sweep().result()  # it reads too
    snapshot = store.snapshot()
    kept = np.frombuffer(next(snapshot.pieces("a")), "u1")
    with pytest.raises(BufferError):
        snapshot.close()
    assert _readers(store) == 1
    store.snapshot().close()
    assert _readers(store) == 1
    del kept
    store.snapshot().close()
    assert _readers(store) == 0


def test_an_exception_is_not_hidden_by_the_leak_of_its_frames(store: LmdbStore, payload: Callable) -> None:
    store.commit([Write("a", [payload(4096)])]).result()

    def fail() -> None:
        with store.snapshot() as snapshot:
            array = np.frombuffer(next(snapshot.pieces("a")), "u1")
            raise KeyError(array.size)

    with pytest.raises(KeyError) as caught:
        fail()
    del caught
    gc.collect()
    store.close()


def test_a_view_that_outlives_its_block_is_an_error(store: LmdbStore, payload: Callable) -> None:
    store.commit([Write("a", [payload(4096)])]).result()
    with pytest.raises(BufferError, match="1 views"), store.snapshot() as snapshot:
        kept = next(snapshot.pieces("a"))[1:]
    kept.release()


def test_closed_snapshot_is_refused(store: LmdbStore) -> None:
    store.commit([Write("a", [b"1" * 5000])]).result()
    snapshot = store.snapshot()
    pieces = snapshot.pieces("a")
    next(pieces)
    snapshot.close()
    snapshot.close()
    for attempt in (lambda: snapshot.stat("a"), lambda: snapshot.pieces("a"), snapshot.list, lambda: next(pieces)):
        with pytest.raises(InternalError, match="snapshot is closed"):
            attempt()


def test_nothing_is_copied(store: LmdbStore, payload: Callable) -> None:
    """Two reads of one version are of the same memory."""
    store.commit([Write("a", [payload(10_000)])]).result()
    with store.snapshot() as one, store.snapshot() as two:
        assert [_address(view) for view in one.pieces("a")] == [_address(view) for view in two.pieces("a")]


def test_snapshots_leave_no_reader_behind(store: LmdbStore) -> None:
    store.sweep().result()  # it reads too
    for _ in range(3000):  # more than there are readers' slots
        store.snapshot().close()
    assert _readers(store) == 0


def test_a_view_outlives_a_snapshot_that_nobody_closed(store: LmdbStore, payload: Callable) -> None:
    value = payload(4096)
    store.commit([Write("a", [value])]).result()
    view = next(store.snapshot().pieces("a"))
    gc.collect()
    for _ in range(20):
        store.commit([Write("a", [payload(4096)])]).result()
    assert view == value
    with pytest.raises(InternalError, match="1 snapshots are open"):
        store.close()
    for snapshot in list(store._snapshots._open):
        snapshot.close()


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, "u1").ctypes.data)


def _readers(store: LmdbStore) -> int:
    """How many transactions read, by LMDB's own table: process, thread, transaction or ``-``."""
    rows = [line.split() for line in store._environment.lmdb.readers().splitlines()[1:]]
    return sum(row[2] != "-" for row in rows if len(row) == 3)
