"""A store whose trees are damaged is not opened, wherever the damage is."""

from __future__ import annotations

import random
import re
import struct
from array import array
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path

import pytest

from kaas_core.errors import StoreForeignError
from kaasd.store.base import Namespace, Write
from kaasd.store.directory import check_store, prepare
from kaasd.store.lmdb_file import LmdbFile
from kaasd.store.lmdb_store import LmdbStore

PAGE = 4096
BRANCH, LEAF, OVERFLOW = 1, 2, 4


@pytest.fixture
def file(store_path: Path) -> Path:
    """The file of a closed store: trees of several pages, values of all sizes, free pages."""
    with LmdbStore(store_path, limit_bytes=64 << 20, chunk_bytes=1 << 16) as store:
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


def test_a_key_out_of_order_is_found(file: Path) -> None:
    whole = file.read_bytes()
    damaged = 0
    for page in pages_of(file)[LEAF]:
        start = page * PAGE + struct.unpack_from("<H", whole, page * PAGE + 14)[0]  # of the entries; before it nothing counts
        keys = sorted(set(re.findall(rb"(?:key \d{4}){5}", whole[start : (page + 1) * PAGE])))
        if len(keys) > 2:
            at = whole.index(keys[0], start)
            file.write_bytes(whole[:at] + b"zzz" + whole[at + 3 :])
            assert refused(file)
            damaged += 1
    assert damaged > 3


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


def test_a_store_that_another_process_writes_to_is_whole(open_store: Callable, store_path: Path) -> None:
    """Whatever state of the file a look meets."""
    store = open_store(chunk_bytes=1 << 16)
    for i in range(100):
        pending = store.commit([Write(f"k{i % 7}", [bytes(i * 1000)])])
        prepare(store_path, sync=False)
        pending.result()
