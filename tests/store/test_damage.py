"""Bytes that were changed on the disk are never given out, and cost nothing but the value that they were of."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path

import lmdb
import pytest

from kaas_core.errors import DataDamagedError, KeyNotFoundError, StoreForeignError
from kaasd.store import checksums
from kaasd.store.base import Durability, Entry, Namespace, Write
from kaasd.store.environment import translate
from kaasd.store.lmdb_file import LmdbFile
from kaasd.store.lmdb_store import LmdbStore
from kaasd.store.records import (
    MIN_STATE_BYTES,
    NOBODY,
    RECORD_BYTES,
    STATE_KEY,
    STORE_ID_KEY,
    Extent,
    loose_key,
    pack_loose,
    unpack_loose,
)
from kaasd.store.write_transaction import WriteTransaction

CHUNK_BYTES = 1 << 16
SIZES = [0, 1, 40, 900, 3000, 16_000, 20_000, 150_000]
Content = Mapping[tuple[Namespace, str], bytes]


@pytest.fixture
def content(payload: Callable[[int], bytes]) -> Content:
    """Values of every layout, no two of the same bytes."""
    values = {(Namespace.VALUES, f"key/{number:03}"): payload(SIZES[number % len(SIZES)]) for number in range(60)}
    return values | {
        (Namespace.LIBRARIES, "sha256:1"): payload(90_000),
        (Namespace.FUNCTIONS, "f"): payload(300),
    }


@pytest.fixture
def file(store_path: Path, content: Content) -> Path:
    """The file of a closed store that holds ``content``."""
    with LmdbStore(store_path, limit_bytes=64 << 20, chunk_bytes=CHUNK_BYTES, durability=Durability.NONE) as store:
        for (namespace, key), value in content.items():
            store.commit([Write(key, [value], namespace=namespace)]).result()
    return store_path / "data.mdb"


@pytest.fixture
def opened(open_store: Callable[..., LmdbStore], file: Path) -> LmdbStore:
    return open_store(chunk_bytes=CHUNK_BYTES)


def get(store: LmdbStore, key: str, namespace: Namespace = Namespace.VALUES) -> bytes:
    with store.snapshot() as snapshot:
        return b"".join(snapshot.pieces(key, namespace=namespace))


def look(store: LmdbStore, content: Content) -> set[tuple[Namespace, str]]:
    """Read everything: each value is right or refused, and all keys are listed. Return what is refused."""
    refused = set()
    for (namespace, key), value in content.items():
        try:
            assert get(store, key, namespace) == value
            with store.snapshot() as snapshot:
                assert snapshot.stat(key, namespace).size_bytes == len(value)
        except DataDamagedError as error:
            assert (error.metadata["kind"], error.metadata["key"]) == (namespace.noun, key)
            assert f"the {namespace.noun} {key!r} is damaged: " in str(error)
            refused.add((namespace, key))
    for namespace in Namespace:
        with store.snapshot() as snapshot:
            entries = snapshot.list(namespace=namespace, limit=1000)
        assert [entry.key for entry in entries] == sorted(key for space, key in content if space is namespace)
        for entry in entries:
            known = entry.version > 0
            assert known or (namespace, entry.key) in refused
            assert entry.size_bytes == (len(content[namespace, entry.key]) if known else 0)
    return refused


@pytest.mark.parametrize("seed", range(8))
def test_forty_places_that_were_overwritten(file: Path, content: Content, open_store: Callable, seed: int) -> None:
    chance, raw = random.Random(seed), bytearray(file.read_bytes())
    for _ in range(40):
        place = chance.randrange(len(raw))
        raw[place : place + 16] = chance.randbytes(min(16, len(raw) - place))
    file.write_bytes(raw)
    try:
        store = open_store(chunk_bytes=CHUNK_BYTES)
    except StoreForeignError as error:
        assert "damaged" in str(error) or "not one of kaasd's" in str(error)
        assert file.read_bytes() == raw
        return
    refused = look(store, content)
    assert {(entry.namespace, entry.key) for entry in store.check()} == refused


def test_every_bit_counts(file: Path, content: Content, open_store: Callable) -> None:
    """One bit at a time, at random places: a refused store, a refused value, or a place that nothing uses."""
    chance, whole = random.Random(3), file.read_bytes()
    outcomes = {"refused": 0, "damaged": 0, "unused": 0}
    for _ in range(150):
        raw = bytearray(whole)
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        file.write_bytes(raw)
        try:
            with LmdbStore(file.parent, limit_bytes=64 << 20, chunk_bytes=CHUNK_BYTES) as store:
                refused = look(store, content)
                assert {(entry.namespace, entry.key) for entry in store.check()} == refused
        except StoreForeignError:
            outcomes["refused"] += 1
        else:
            assert len(refused) <= 1
            outcomes["damaged" if refused else "unused"] += 1
    assert outcomes["damaged"] > outcomes["refused"] + outcomes["unused"]


@pytest.mark.parametrize(
    ("place", "found"),
    [
        (lambda content: content[Namespace.VALUES, "key/003"][:32], "its bytes are not those that were written"),
        (lambda content: content[Namespace.VALUES, "key/005"][:32], "its bytes are not those that were written"),
        (lambda content: content[Namespace.VALUES, "key/007"][70_000:70_032], r"the bytes of chunk \d+ are not those that"),
    ],
    ids=["in its record", "on pages of its own", "in a chunk"],
)
def test_a_damaged_value(file: Path, content: Content, open_store: Callable, place: Callable, found: str) -> None:
    """It is refused, whole and in part; it can be stored again or deleted; and nothing else is touched."""
    (refused,) = change(file, place(content), content, open_store)
    store = open_store(chunk_bytes=CHUNK_BYTES)
    key = refused[1]
    for offset in (0, len(content[refused]) - 1):
        with pytest.raises(DataDamagedError, match=found), store.snapshot() as snapshot:
            # A value of several chunks is refused from the damaged one on.
            b"".join(snapshot.pieces(key, 0, offset + 1 if offset else len(content[refused])))
    before = store.stats().used_bytes
    assert store.commit([Write(key, [b"new"])]).result()[key].size_bytes == 3
    assert get(store, key) == b"new"
    assert store.stats().used_bytes <= before
    assert list(store.check()) == []
    store.delete(key).result()
    with pytest.raises(KeyNotFoundError):
        get(store, key)
    assert look(store, {where: value for where, value in content.items() if where != refused}) == set()


def change(file: Path, piece: bytes, content: Content, open_store: Callable) -> set[tuple[Namespace, str]]:
    """Change a piece of a value in the file; return what a store then refuses."""
    raw = file.read_bytes()
    assert raw.count(piece) == 1
    file.write_bytes(raw.replace(piece, bytes(len(piece))))
    with LmdbStore(file.parent, limit_bytes=64 << 20, chunk_bytes=CHUNK_BYTES) as store:
        return look(store, content)


def test_a_range_cannot_be_written_over_damage(file: Path, content: Content, open_store: Callable) -> None:
    """What stays of a chunk would get a new checksum, and damage would pass for what was written."""
    change(file, content[Namespace.VALUES, "key/007"][70_000:70_032], content, open_store)
    change(file, content[Namespace.VALUES, "key/003"][:32], content, open_store)
    store = open_store(chunk_bytes=CHUNK_BYTES)
    for key, offset in (("key/007", 66_000), ("key/003", 100)):
        with pytest.raises(DataDamagedError):
            store.commit([Write(key, [b"new"], offset), Write("other", [b"1"])]).result()
    with pytest.raises(KeyNotFoundError):
        get(store, "other")
    # A range that takes the place of all that is damaged, or lies elsewhere, is no such case.
    store.commit([Write("key/007", [b"new"], 5)]).result()
    store.commit([Write("key/007", [bytes(CHUNK_BYTES)], CHUNK_BYTES)]).result()
    expected = bytearray(content[Namespace.VALUES, "key/007"])
    expected[5:8] = b"new"
    expected[CHUNK_BYTES : 2 * CHUNK_BYTES] = bytes(CHUNK_BYTES)
    assert get(store, "key/007") == expected


def test_a_damaged_record_frees_no_chunk_of_others(opened: LmdbStore, content: Content) -> None:
    environment = opened._environment
    values = environment.entries[Namespace.VALUES]
    with environment.write() as txn:
        for key, other in ((b"key/007", b"key/015"), (b"key/023", b"key/031")):
            mine, others = (bytes(txn.get(name, db=values)) for name in (key, other))
            # The body is that of another value: its own checksum does not fit, or the whole record is another's.
            txn.put(key, mine[:48] + others[48:] if key == b"key/007" else others, db=values)
    for key, found in (("key/007", "the list of its chunks was changed"), ("key/023", "its record is that of another key")):
        with pytest.raises(DataDamagedError, match=found):
            get(opened, key)
    opened.commit([Write("key/007", [b"new"])]).result()
    assert opened.delete("key/023").result() == Entry("key/023", 0, 0, 0)
    left = {where: value for where, value in content.items() if where[1] not in ("key/007", "key/023")}
    assert {key for _, key in look_at_values(opened, left)} == set()


@pytest.mark.parametrize("place", [3, 43], ids=["its version", "its checksum"])
def test_damaged_records_can_be_replaced_and_the_store_opened_again(
    file: Path, content: Content, open_store: Callable, place: int
) -> None:
    """What they had counted for, where all must be of one transaction, is not known."""
    keys = ["key/002", "key/003", "key/011"]
    whole = file.read_bytes()
    raw = bytearray(whole)
    for key in keys:
        for found in re.finditer(re.escape(content[Namespace.VALUES, key]), whole):  # also in pages that are free
            raw[found.start() - RECORD_BYTES + place] ^= 0x10
    file.write_bytes(raw)
    refused = {(Namespace.VALUES, key) for key in keys}
    with open_store(chunk_bytes=CHUNK_BYTES) as store:
        assert look(store, content) == refused
        store.delete("key/003").result()
    left = {where: value for where, value in content.items() if where[1] != "key/003"}
    with open_store(chunk_bytes=CHUNK_BYTES) as store:
        assert look(store, left) == {where for where in refused if where in left}
        store.commit([Write("key/002", [b"new"])]).result()
    left[Namespace.VALUES, "key/002"] = b"new"
    with open_store(chunk_bytes=CHUNK_BYTES) as store:
        assert look(store, left) == {(Namespace.VALUES, "key/011")}


def heads(file: Path, content: Content) -> Iterator[tuple[tuple[Namespace, str], list[int]]]:
    """Yield what lies in its record, and where the heads of that are, also in pages that are free; only those within a sector."""
    whole = file.read_bytes()
    for where, value in content.items():
        places = [found.start() - RECORD_BYTES for found in re.finditer(re.escape(value), whole)] if len(value) > 1 else []
        if places and all(place // 512 == (place + RECORD_BYTES - 1) // 512 for place in places):
            yield where, places


@pytest.mark.parametrize("many", [1, 13, 200])
@pytest.mark.parametrize(
    "stretch",
    [(40, 48), (0, 40), (30, 46), (36, 52), (0, 48)],
    ids=["checksum", "fields", "end of fields and checksum", "checksum and value", "all"],
)
def test_heads_that_are_damaged_cost_their_values_and_no_others(
    file: Path, content: Content, open_store: Callable, payload: Callable, stretch: tuple[int, int], many: int
) -> None:
    """However many there are, and whether or not anything is left that tells what they counted for."""
    content = {**content, **{(Namespace.VALUES, f"more/{number:03}"): payload(20 + number) for number in range(300)}}
    with LmdbStore(file.parent, limit_bytes=64 << 20, chunk_bytes=CHUNK_BYTES, durability=Durability.NONE) as store:
        store.commit([Write(key, [value]) for (_, key), value in content.items() if key.startswith("more/")]).result()
    raw, refused = bytearray(file.read_bytes()), set()
    for where, places in islice(heads(file, content), many):
        for place in places:
            raw[place + stretch[0] : place + stretch[1]] = payload(stretch[1] - stretch[0])
        refused.add(where)
    assert len(refused) == many
    file.write_bytes(raw)
    for _ in range(2):
        with open_store(chunk_bytes=CHUNK_BYTES) as store:
            assert look(store, content) == refused
            assert {(entry.namespace, entry.key) for entry in store.check()} == refused
            store.commit([Write("key/000", [b"new"])]).result()
            content[Namespace.VALUES, "key/000"] = b"new"
    with open_store(chunk_bytes=CHUNK_BYTES) as store:
        for namespace, key in refused:
            store.delete(key, namespace).result()
    with open_store(chunk_bytes=CHUNK_BYTES) as store:
        assert look(store, {where: value for where, value in content.items() if where not in refused}) == set()


@pytest.mark.parametrize("place", [3, 20], ids=["its checksum", "what it lists"])
def test_a_damaged_list_of_garbage_keeps_no_store_from_opening(
    file: Path, content: Content, open_store: Callable, place: int
) -> None:
    raw_key = loose_key(NOBODY, 7)
    packed = pack_loose(raw_key, [Extent(1 << 40, 1, 1), Extent(1 << 41, 1, 1)])
    with LmdbStore(file.parent, limit_bytes=64 << 20) as store, store._environment.write() as txn:
        transaction = WriteTransaction(store._environment, txn)
        transaction._put_loose(raw_key, unpack_loose(raw_key, packed))
        transaction.finish()
    raw = bytearray(file.read_bytes())
    for found in re.finditer(re.escape(packed), bytes(raw)):
        raw[found.start() + place] ^= 1
    file.write_bytes(raw)
    for _ in range(2):
        with open_store(chunk_bytes=CHUNK_BYTES) as store:
            store.sweep().result()
            assert look(store, content) == set()


def look_at_values(store: LmdbStore, content: Content) -> set[tuple[Namespace, str]]:
    return {where for where, value in content.items() if get(store, where[1], where[0]) != value}


def test_a_damaged_list_of_garbage_frees_nothing(opened: LmdbStore, content: Content, caplog: pytest.LogCaptureFixture) -> None:
    environment = opened._environment
    with environment.write() as txn:
        raw_key = loose_key(NOBODY, 7)
        packed = bytearray(pack_loose(raw_key, [Extent(1, 1, 1), Extent(2, 1, 1)]))
        packed[-1] ^= 1
        txn.put(raw_key, packed, db=environment.loose)
    opened._writer._garbage_left = True
    opened.sweep().result()
    assert "a list of chunks was changed; they stay" in caplog.text
    assert look(opened, content) == set()
    with environment.write() as txn:
        assert txn.stat(environment.loose)["entries"] == 0


@pytest.mark.parametrize("key", [STATE_KEY, STORE_ID_KEY], ids=bytes.decode)
def test_what_the_store_says_of_itself(file: Path, open_store: Callable, key: bytes) -> None:
    with LmdbStore(file.parent, limit_bytes=64 << 20) as store, store._environment.write() as txn:
        raw = bytearray(txn.get(key))
        raw[9] ^= 1
        txn.put(key, raw)
    with pytest.raises(StoreForeignError, match=r"is damaged: its (counters were|id was) changed"):
        open_store()


@pytest.mark.parametrize("key", [STATE_KEY, STORE_ID_KEY], ids=bytes.decode)
def test_what_the_store_says_of_itself_is_gone(file: Path, open_store: Callable, key: bytes) -> None:
    with LmdbStore(file.parent, limit_bytes=64 << 20) as store, store._environment.write() as txn:
        txn.delete(key)
    with pytest.raises(StoreForeignError, match=f"^{file} "):
        open_store()


def test_counters_that_change_while_it_is_open(opened: LmdbStore) -> None:
    """A version that was given before would make stale bytes on a device pass for new ones."""
    with opened._environment.write() as txn:
        txn.put(STATE_KEY, bytes(MIN_STATE_BYTES))
    with pytest.raises(DataDamagedError, match="its counters were changed") as caught:
        opened.commit([Write("a", [b"1"])]).result()
    assert "key" not in caught.value.metadata
    assert len(get(opened, "key/001")) == 1


def test_a_key_that_was_changed(file: Path, open_store: Callable) -> None:
    """It is still in order; but the value of the one would be missing, and another would have appeared."""
    raw = file.read_bytes()
    file.write_bytes(raw.replace(b"key/059", b"key/05:"))
    with pytest.raises(StoreForeignError, match="has the entry of another key"):
        open_store()


def test_a_value_is_compared_once(opened: LmdbStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its chunks, that is; what lies in a record is compared each time, which is short."""
    lengths: list[int] = []
    original = checksums.checksum

    def counted(data: bytes, seed: int = 0) -> int:
        lengths.append(len(data))
        return original(data, seed)

    monkeypatch.setattr(checksums, "checksum", counted)
    for expected in ([CHUNK_BYTES, CHUNK_BYTES, 150_000 - 2 * CHUNK_BYTES], [], []):
        lengths.clear()
        get(opened, "key/007")
        assert [length for length in lengths if length > 1000] == expected
    opened.commit([Write("key/007", [bytes(70_000)])]).result()
    lengths.clear()
    get(opened, "key/007")
    assert [length for length in lengths if length > 1000] == [CHUNK_BYTES, 70_000 - CHUNK_BYTES]


def test_what_a_process_remembers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "MAX_VERIFIED", 3)
    verified = checksums.VerifiedChunks()
    for chunk_id in range(10):
        assert not verified.is_intact(chunk_id, b"a", 0)
        assert verified.is_intact(chunk_id, b"a", checksums.checksum(b"a"))
        assert verified.is_intact(chunk_id, b"not looked at", 0)
        assert len(verified._ids) <= 3


def test_checksums_that_are_made_aside(open_store: Callable, payload: Callable, read: Callable) -> None:
    store = open_store(chunk_bytes=2 << 20)
    value = payload(5 << 20)
    store.commit([Write("a", [value])]).result()
    assert read(store, "a") == value
    assert list(store.check()) == []


def test_chunks_that_are_written_again_have_new_ids(opened: LmdbStore) -> None:
    """Else what was compared once would be taken for compared."""
    environment = opened._environment

    def ids() -> Iterator[int]:
        with environment.write() as txn, txn.cursor(environment.chunks) as cursor:
            for raw_key, _ in cursor:
                yield int.from_bytes(raw_key, "big")

    before = max(ids())
    opened.commit([Write("key/007", [bytes(150_000)])]).result()
    assert sorted(ids())[-3:] == [before + 1, before + 2, before + 3]


def test_tree_damage_is_an_error_of_the_store(opened: LmdbStore) -> None:
    """LMDB notices some of it itself."""
    for error in (lmdb.CorruptedError("mdb_get"), lmdb.PageNotFoundError("mdb_get")):
        translated = translate(error, opened._environment.path)
        assert isinstance(translated, DataDamagedError)
        assert dict(translated.metadata) == {}
    assert isinstance(translate(lmdb.InvalidError("open"), opened._environment.path), StoreForeignError)


def test_the_main_tree_is_damaged_while_it_is_open(file: Path, opened: LmdbStore) -> None:
    """LMDB swallows that where it looks up another tree, and then says no more than that the transaction is bad."""
    with LmdbFile(file) as pages:
        meta = pages.meta
    with file.open("r+b") as raw:
        raw.seek(meta.main_root * meta.page_bytes)
        raw.write(bytes(meta.page_bytes))
    for use in (
        lambda: get(opened, "key/001"),
        lambda: look(opened, {}),
        opened.stats,
        lambda: opened.commit([Write("a", [b"1"])]).result(),
    ):
        with pytest.raises(DataDamagedError, match=r"the trees of .* are damaged") as caught:
            use()
        assert dict(caught.value.metadata) == {}


META_TRANSACTION = 16 + 24 + 2 * 48 + 8
"""Where a meta page has the number of its transaction."""


@pytest.mark.parametrize("bit", range(64))
def test_a_meta_page_that_was_changed(file: Path, open_store: Callable, bit: int) -> None:
    """LMDB would take the other one, and what was stored last would be gone without a word; or count on from anywhere."""
    raw = bytearray(file.read_bytes())
    last = max((0, 4096), key=lambda start: struct.unpack_from("<Q", raw, start + META_TRANSACTION)[0])
    raw[last + META_TRANSACTION + bit // 8] ^= 1 << bit % 8
    file.write_bytes(raw)
    with pytest.raises(StoreForeignError, match=r"is damaged: .*meta page"):
        open_store(durability=Durability.META)
    assert file.read_bytes() == raw


def test_a_store_that_does_not_wait_for_the_disk_may_lack_its_last_transactions(
    file: Path, content: Content, open_store: Callable
) -> None:
    with LmdbStore(file.parent, limit_bytes=64 << 20, durability=Durability.NONE) as store:
        before = file.read_bytes()[:8192]
        for number in range(3):
            store.commit([Write("late", [bytes([number])])]).result()
    raw = bytearray(file.read_bytes())
    older = min((0, 4096), key=lambda start: struct.unpack_from("<Q", raw, start + META_TRANSACTION)[0])
    raw[older : older + 4096] = before[older : older + 4096]
    file.write_bytes(raw)
    with pytest.raises(StoreForeignError, match="start once with --durability none"):
        open_store(durability=Durability.FULL)
    assert (
        look(open_store(durability=Durability.NONE, chunk_bytes=CHUNK_BYTES), {**content, (Namespace.VALUES, "late"): b"\2"})
        == set()
    )


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 5, 7, 1 << 40])
def test_a_format_that_was_changed_is_damage(file: Path, open_store: Callable, number: int) -> None:
    """And not a store of another version, to be brought up to date or left to a later one."""
    with LmdbStore(file.parent, limit_bytes=64 << 20) as store, store._environment.write() as txn:
        raw = bytearray(txn.get(STATE_KEY))
        struct.pack_into("<Q", raw, 0, number)
        txn.put(STATE_KEY, raw)
    with pytest.raises(StoreForeignError, match="is damaged: its counters were changed"):
        open_store()
