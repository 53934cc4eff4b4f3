"""What a value is as an array: kept with it, in the transaction that writes it."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest

from kaas_core.array_form import MAX_DIMENSIONS, MAX_DTYPE_BYTES, ArrayForm
from kaas_core.errors import DataDamagedError, KeyNotFoundError
from kaasd.store.base import Entry, Write
from kaasd.store.lmdb_store import LmdbStore
from kaasd.store.records import RECORD_BYTES
from tests.store.conftest import LIMIT_BYTES

FORMS = [
    ArrayForm("float32"),
    ArrayForm("float32", (3, 5), fortran_order=True),
    ArrayForm("bfloat16", (0, 2**64 - 1)),
    ArrayForm('[["größe", "<f4"]]', (1,)),
    ArrayForm("x" * MAX_DTYPE_BYTES, (2**63,) * MAX_DIMENSIONS, fortran_order=True),
]
SIZES = [0, 1, 1024, 1025, 4097, 50_001]
"""In the record, in one chunk, and in several."""


def stat(store: LmdbStore, key: str = "a") -> Entry:
    with store.snapshot() as snapshot:
        entry = snapshot.stat(key)
        assert [entry] == [listed for listed in snapshot.list() if listed.key == key]
    return entry


@pytest.mark.parametrize("form", FORMS, ids=range(len(FORMS)))
@pytest.mark.parametrize("size", SIZES)
def test_it_comes_back_with_the_value(
    open_store: Callable, payload: Callable, read: Callable, size: int, form: ArrayForm
) -> None:
    value = payload(size)
    store = open_store()
    entry = store.commit([Write("a", [value], form=form)]).result()["a"]
    assert entry.form == form
    store.close()
    again = open_store()
    assert read(again, "a") == value
    assert stat(again) == entry
    assert list(again.check()) == []
    assert again.accounts()["default"].stored_bytes == size
    again.delete("a").result()
    again.sweep().result()
    assert again.stats().used_bytes == 0


@pytest.mark.parametrize("size", SIZES)
def test_a_staged_value_has_one_too(store: LmdbStore, payload: Callable, read: Callable, size: int) -> None:
    value = payload(size)
    with store.stage() as staged:
        staged.append(value)
        store.commit([Write("a", staged, form=FORMS[1])]).result()
    assert read(store, "a") == value
    assert stat(store).form == FORMS[1]


@pytest.mark.parametrize("size", SIZES)
def test_a_new_value_has_its_own_or_none(store: LmdbStore, payload: Callable, size: int) -> None:
    store.commit([Write("a", [payload(size)], form=FORMS[1])]).result()
    store.commit([Write("a", [payload(size)], form=FORMS[4])]).result()
    assert stat(store).form == FORMS[4]
    store.commit([Write("a", [payload(size)])]).result()
    assert stat(store).form is None


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("before", [None, FORMS[1]], ids=["none", "some"])
def test_a_range_keeps_what_the_value_has(
    store: LmdbStore, payload: Callable, read: Callable, size: int, before: ArrayForm | None
) -> None:
    value = payload(size)
    store.commit([Write("a", [value], form=before)]).result()
    for start in (0, size // 2, size):
        part = payload(min(size - start, 1500))
        store.commit([Write("a", [part], start, form=FORMS[0])]).result()
        value = value[:start] + part + value[start + len(part) :]
    assert read(store, "a") == value
    assert stat(store).form == before


def test_a_range_that_makes_a_value_gives_it_its_form(store: LmdbStore) -> None:
    with pytest.raises(KeyNotFoundError):
        store.commit([Write("a", [b"1234"], 0, form=FORMS[0])]).result()
    store.commit([Write("a", [b"1234"], 0, create=True, form=FORMS[0])]).result()
    assert stat(store).form == FORMS[0]


def test_all_or_nothing(store: LmdbStore) -> None:
    """A form changes only in the commit that changes the value."""
    store.commit([Write("a", [b"1234"], form=FORMS[0])]).result()
    with pytest.raises(KeyNotFoundError):
        store.commit([Write("a", [b"12"]), Write("missing", [b"x"], 4)]).result()
    assert (stat(store).form, stat(store).size_bytes) == (FORMS[0], 4)


@pytest.mark.parametrize("size", [100, 50_001])
@pytest.mark.parametrize("place", [RECORD_BYTES, RECORD_BYTES + 3, RECORD_BYTES + 10, RECORD_BYTES + 15])
def test_a_damaged_form_is_refused(store: LmdbStore, payload: Callable, read: Callable, size: int, place: int) -> None:
    """Length, checksum, order and shape: neither the entry nor the value is shown without it; it can be stored again."""
    value = payload(size)
    store.commit([Write("a", [value], form=FORMS[1])]).result()
    environment = store._environment
    with environment.write() as txn:
        raw = bytearray(txn.get(b"a", db=next(iter(environment.entries.values()))))
        raw[place] ^= 0x10
        txn.put(b"a", bytes(raw), db=next(iter(environment.entries.values())))
    with store.snapshot() as snapshot, pytest.raises(DataDamagedError, match="'a' is damaged: what it is as an array was"):
        snapshot.stat("a")
    with pytest.raises(DataDamagedError, match="'a' is damaged"):
        read(store, "a")
    with store.snapshot() as snapshot:
        assert [entry.version for entry in snapshot.list()] == [0]
    assert [damaged.key for damaged in store.check()] == ["a"]
    with pytest.raises(DataDamagedError):
        store.commit([Write("a", [b"x"], 3)]).result()
    store.commit([Write("a", [value], form=FORMS[2])]).result()
    assert stat(store).form == FORMS[2]
    assert list(store.check()) == []


def test_a_backup_has_them(store: LmdbStore, tmp_path: Path, payload: Callable) -> None:
    for number, form in enumerate(FORMS):
        store.commit([Write(f"key/{number}", [payload(number * 5000)], form=form)]).result()
    backup = store.backup()
    backup.make()
    with tarfile.open(fileobj=BytesIO(b"".join(backup.pieces()))) as tar:
        tar.extractall(tmp_path / "copy", filter="data")
    backup.close()
    with LmdbStore(next((tmp_path / "copy").rglob("data.mdb")).parent, limit_bytes=LIMIT_BYTES) as copy:
        assert [stat(copy, f"key/{number}").form for number in range(len(FORMS))] == FORMS
        assert list(copy.check()) == []


def test_a_compaction_keeps_their_chunks(store: LmdbStore, payload: Callable, read: Callable) -> None:
    value = payload(50_001)
    store.commit([Write("a", [value], form=FORMS[1])]).result()
    store.compact()
    assert read(store, "a") == value
    assert stat(store).form == FORMS[1]
