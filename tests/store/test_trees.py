"""A store whose trees are damaged is not opened, wherever the damage is."""

from __future__ import annotations

import random
import re
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, pairwise
from pathlib import Path

import lmdb
import pytest

from kaas_core.errors import StoreForeignError
from kaasd.store.base import Durability, Namespace, Write
from kaasd.store.directory import DATABASES, check_store, prepare
from kaasd.store.lmdb_file import LmdbFile, Meta
from kaasd.store.lmdb_store import LmdbStore
from kaasd.store.records import CHUNKS, FORMAT, LOOSE, STATE_KEY
from kaasd.store.trees import check_trees

PAGE = 4096
BRANCH, LEAF, OVERFLOW = 1, 2, 4


@pytest.fixture
def file(store_path: Path) -> Path:
    """The file of a closed store: trees of several pages, values of all sizes, free pages."""
    with LmdbStore(store_path, limit_bytes=64 << 20, chunk_bytes=1 << 16, durability=Durability.NONE) as store:
        sizes = [0, 1, 500, 3000, 30_000, 70_000, 400_000]
        for i in range(300):
            store.commit([Write(f"key {i:04}" * 5, [bytes([i % 251]) * sizes[i % 7]])]).result()
        store.commit([Write("f", [b"{}"], namespace=Namespace.FUNCTIONS)]).result()
        for i in range(0, 300, 3):
            store.delete(f"key {i:04}" * 5).result()
    return store_path / "data.mdb"


def pages_of(file: Path) -> dict[int, list[int]]:
    """Return the pages in use of each kind, as a walk from the roots finds them."""
    found: dict[int, list[int]] = {BRANCH: [], LEAF: [], OVERFLOW: []}
    raw = file.read_bytes()
    with LmdbFile(file) as opened:
        free = {page for _, pages in opened.free_pages(opened.meta) for page in pages}
        last = opened.meta.last_page
    page = 2
    while page <= last:
        number, flags = struct.unpack_from("<Q2xH", raw, page * PAGE)
        if page in free or number != page:
            page += 1
            continue
        kind = flags & 7
        found[kind].append(page)
        page += struct.unpack_from("<I", raw, page * PAGE + 12)[0] if kind == OVERFLOW else 1
    return found


def refused(path: Path) -> bool:
    try:
        prepare(path.parent, sync=False)
    except StoreForeignError as error:
        assert str(path) in str(error)
        assert "nothing was written to it" in str(error)
        return True
    return False


def test_a_damaged_store_is_not_opened_and_says_what_to_do(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    leaf = pages_of(file)[LEAF][-1]
    raw[leaf * PAGE : leaf * PAGE + 32] = b"\xff" * 32
    file.write_bytes(raw)
    with pytest.raises(StoreForeignError, match=f"is damaged: page {leaf} is not a page of its tree.*Put back a copy"):
        LmdbStore(file.parent, limit_bytes=64 << 20)
    assert file.read_bytes() == raw


def test_every_page_that_is_overwritten_is_found(file: Path) -> None:
    whole, chance = file.read_bytes(), random.Random(5)
    kinds = pages_of(file)
    assert len(kinds[BRANCH]) >= 1
    assert len(kinds[LEAF]) > 20
    assert len(kinds[OVERFLOW]) > 50
    for page in [*kinds[BRANCH], *chance.sample(kinds[LEAF], 15), *chance.sample(kinds[OVERFLOW], 10)]:
        for junk in (chance.randbytes(64), bytes(64), b"\xff" * 64):
            file.write_bytes(whole[: page * PAGE] + junk + whole[page * PAGE + 64 :])
            assert refused(file), f"page {page} with {junk[:4]!r}"
    file.write_bytes(whole)
    assert not refused(file)


def test_pages_that_changed_places_are_found(file: Path) -> None:
    whole = file.read_bytes()
    leaves = pages_of(file)[LEAF]
    for first, second in pairwise(leaves):
        raw = bytearray(whole)
        for at, source in ((first, second), (second, first)):
            raw[at * PAGE : (at + 1) * PAGE] = whole[source * PAGE : (source + 1) * PAGE]
            struct.pack_into("<Q", raw, at * PAGE, at)  # each says that it is the other
        file.write_bytes(raw)
        assert refused(file)


def flipped(file: Path, offset: int, bits: Iterable[int]) -> Iterator[None]:
    """Flip each of these bits of the file's number of 16 bits at ``offset``, one at a time."""
    whole = file.read_bytes()
    (number,) = struct.unpack_from("<H", whole, offset)
    for bit in bits:
        raw = bytearray(whole)
        struct.pack_into("<H", raw, offset, number ^ 1 << bit)
        file.write_bytes(raw)
        yield
    file.write_bytes(whole)


def test_a_page_with_other_flags_is_found(file: Path) -> None:
    """With some of them LMDB writes to it in its place, which is read-only, or does not write it at all."""
    kinds = pages_of(file)
    for page in (kinds[BRANCH][0], kinds[LEAF][0], kinds[LEAF][-1], kinds[OVERFLOW][0]):
        for _ in flipped(file, page * PAGE + 10, range(16)):
            assert refused(file)


def test_an_entry_of_another_size_or_kind_is_found(file: Path) -> None:
    """LMDB moves entries by their sizes when it deletes one, and goes astray where one says that it has many values."""
    whole = file.read_bytes()
    for page in pages_of(file)[LEAF][::8]:
        start = page * PAGE + struct.unpack_from("<H", whole, page * PAGE + 16)[0]
        (flags,) = struct.unpack_from("<H", whole, start + 4)
        # The last bit of a size may make no difference for the places of entries. A large one lies elsewhere.
        for _ in flipped(file, start, range(1, 16) if not flags & 1 else ()):
            assert refused(file)
        for _ in flipped(file, start + 4, range(16)):
            assert refused(file)
        for _ in flipped(file, start + 6, range(16)):
            assert refused(file)


def test_a_tree_of_another_kind_is_found(file: Path) -> None:
    with LmdbFile(file) as opened:
        main, trees = opened.meta.main_root, opened.main_entries(opened.meta)
    raw = file.read_bytes()
    for name in DATABASES:
        for _ in flipped(file, raw.index(trees[name], main * PAGE) + 4, range(16)):
            assert refused(file)
        # As if it was no tree, and so nobody looks at what is in it.
        for _ in flipped(file, raw.index(name + trees[name], main * PAGE) - 4, [1]):
            assert refused(file)


def keys_in(whole: bytes, page: int) -> tuple[int, list[bytes]]:
    """Return where the entries of a leaf begin, before which nothing counts, and which of ``file``'s keys are among them."""
    start = page * PAGE + struct.unpack_from("<H", whole, page * PAGE + 14)[0]
    return start, sorted(set(re.findall(rb"(?:key \d{4}){5}", whole[start : (page + 1) * PAGE])))


def test_a_key_out_of_order_is_found(file: Path) -> None:
    whole = file.read_bytes()
    damaged = 0
    for page in pages_of(file)[LEAF]:
        start, keys = keys_in(whole, page)
        if len(keys) > 2:
            at = whole.index(keys[0], start)
            file.write_bytes(whole[:at] + b"zzz" + whole[at + 3 :])
            assert refused(file)
            damaged += 1
    assert damaged > 3


def test_a_page_of_an_earlier_transaction_is_found(store_path: Path, payload: Callable) -> None:
    """A disk may lose a write. The page is whole, and of the same tree, but its values are those of before."""
    file, chance, states = store_path / "data.mdb", random.Random(2), []
    with LmdbStore(store_path, limit_bytes=64 << 20, durability=Durability.NONE) as store:
        store.commit([Write(f"key {i}", [payload(150)]) for i in range(100)]).result()
        for _ in range(20):
            store.commit([Write(f"key {i}", [payload(150)]) for i in chance.sample(range(100), 2)]).result()
            states.append((file.read_bytes(), set(pages_of(file)[LEAF])))
    (last, leaves), problems = states.pop(), set()
    for before, leaves_before in states:
        for page in leaves & leaves_before:
            raw = bytearray(last)
            raw[page * PAGE : (page + 1) * PAGE] = before[page * PAGE : (page + 1) * PAGE]
            if raw != last:
                file.write_bytes(raw)
                with pytest.raises(StoreForeignError) as caught:
                    prepare(store_path, sync=False)
                problems.add(re.sub(r"\d+", "N", str(caught.value).split("damaged: ")[1].split(";")[0]))
    assert "not all of its entries are those of the last transaction" in problems
    file.write_bytes(last)
    assert not refused(file)


def test_a_key_beyond_the_bounds_of_its_page_is_found(file: Path) -> None:
    """It is in order among those beside it, but LMDB looks for it elsewhere, and so nobody finds it."""
    whole = file.read_bytes()
    leaves = sorted((keys, start, page) for page in pages_of(file)[LEAF] for start, keys in [keys_in(whole, page)] if keys)
    assert len(leaves) > 5
    for keys, start, page in leaves[1:-1]:  # nothing bounds the first one below and the last one above
        for key, wrong in ((keys[0], b"aaa"), (keys[-1], b"zzz")):
            at = whole.index(key, start)
            file.write_bytes(whole[:at] + wrong + whole[at + 3 :])
            with LmdbFile(file) as opened, pytest.raises(StoreForeignError, match=f"page {page} has its keys out of order"):
                check_trees(opened, opened.meta, 0, lambda *_: True)


def test_a_free_page_that_is_in_use_is_found(file: Path) -> None:
    whole = file.read_bytes()
    used = set(chain.from_iterable(pages_of(file).values()))
    with LmdbFile(file) as opened:
        lists = [value for _, value in opened.below(opened.meta.free_root, PAGE, 32)]
    damaged = 0
    for raw in lists:
        numbers = array("Q", raw)
        for i in range(2, len(numbers)):
            if between := [number for number in range(numbers[i] + 1, numbers[i - 1]) if number in used]:
                numbers[i] = between[0]
                file.write_bytes(whole.replace(raw, numbers.tobytes()))
                with LmdbFile(file) as opened, pytest.raises(StoreForeignError, match=f"page {between[0]} is used twice"):
                    check_store(opened, opened.meta)
                damaged += 1
                break
    assert damaged


def test_a_broken_list_of_free_pages_is_found(file: Path) -> None:
    """LMDB knows pages in a row by the first and the last of them, and the number of those between."""
    whole = file.read_bytes()
    with LmdbFile(file) as opened:
        raw = max((value for _, value in opened.below(opened.meta.free_root, PAGE, 32)), key=len)
    numbers = array("Q", raw)
    changed_order = numbers[:1] + numbers[2:3] + numbers[1:2] + numbers[3:]
    for change in (changed_order, *(array("Q", [numbers[0] + count]) + numbers[1:] for count in (1, -1))):
        file.write_bytes(whole.replace(raw, change.tobytes()))
        assert refused(file)


def test_keys_of_another_length_are_found(file: Path) -> None:
    for name in (CHUNKS, LOOSE):
        with LmdbStore(file.parent, limit_bytes=64 << 20) as store, store._environment.write() as txn:
            txn.put(b"1234567", b"", db=store._environment.chunks if name == CHUNKS else store._environment.loose)
        assert refused(file)
        with lmdb.open(str(file.parent), max_dbs=8) as environment, environment.begin(write=True) as txn:
            txn.delete(b"1234567", db=environment.open_db(name, txn))
        assert not refused(file)


def test_a_store_that_another_process_writes_to_is_whole(open_store: Callable, store_path: Path) -> None:
    """Whatever state of the file a look meets."""
    store = open_store(chunk_bytes=1 << 16)
    for i in range(100):
        pending = store.commit([Write(f"k{i % 7}", [bytes(i * 1000)])])
        prepare(store_path, sync=False)
        pending.result()


def test_a_store_whose_main_page_is_written_over_meanwhile_is_whole(
    open_store: Callable, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two commits later what LMDB's root led to may be anything."""
    store = open_store(chunk_bytes=1 << 16)
    original = LmdbFile.main_entries
    chance, looks = random.Random(6), list[Meta]()

    def is_main_page(file: LmdbFile, meta: Meta) -> bool:
        try:
            return STATE_KEY in original(file, meta)
        except StoreForeignError:
            return False

    def late(file: LmdbFile, meta: Meta) -> dict[bytes, bytes]:
        looks.append(meta)
        if len(looks) == 1:
            while is_main_page(file, meta):
                store.commit([Write("k", [bytes(chance.choice([0, 3000, 300_000]))])]).result()
        return original(file, meta)

    monkeypatch.setattr(LmdbFile, "main_entries", late)
    assert prepare(store_path, sync=False) == FORMAT
    assert looks[0] not in looks[1:]
    assert len(looks) > 1
