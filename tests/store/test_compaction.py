"""Giving back the blocks of free pages while the store is used: what is in use stays right, whoever reads, writes or dies."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from kaas_core.errors import InternalError, StoreForeignError
from kaasd.store import compaction
from kaasd.store.base import Namespace, Write
from kaasd.store.disk_room import DiskRoom, runs
from kaasd.store.lmdb_file import LmdbFile
from kaasd.store.lmdb_store import LmdbStore
from tests.store.support import Start, kill, said, tell

MIB = 1 << 20
KEPT_BYTES = 2 * MIB
"""More than what a small store keeps for deletes, beside what its trees take."""


CHUNK_BYTES = 16 * 4096 - 16
"""They fill whole pages."""


@pytest.fixture
def store(open_store: Callable) -> LmdbStore:
    return open_store(chunk_bytes=CHUNK_BYTES)


def on_disk(path: Path) -> int:
    return (path / "data.mdb").stat().st_blocks * 512


def put(store: LmdbStore, key: str, value: bytes) -> None:
    store.commit([Write(key, [value])]).result()


def test_blocks_of_free_pages_are_given_back(store: LmdbStore, store_path: Path, payload: Callable, read: Callable) -> None:
    values = {f"k{i}": payload(2 * MIB) for i in range(10)}
    for key, value in values.items():
        put(store, key, value)
    store.commit([Write("sha256:1", [payload(9000)], namespace=Namespace.LIBRARIES)]).result()
    for key in list(values)[1:9]:
        store.delete(key).result()
        del values[key]
    done = store.compact()
    assert done.disk_before_bytes > 20 * MIB
    assert done.disk_after_bytes < 4 * MIB + KEPT_BYTES
    assert done.disk_after_bytes == on_disk(store_path)
    assert done.file_after_bytes == (store_path / "data.mdb").stat().st_size <= done.file_before_bytes
    assert not done.only_end
    assert {key: read(store, key) for key in values} == values
    assert len(read(store, "sha256:1", namespace=Namespace.LIBRARIES)) == 9000


def test_what_comes_into_the_holes_is_right(open_store: Callable, store_path: Path, read: Callable) -> None:
    """Any order of writes and compactions, in a store that is opened anew now and then."""
    rng = random.Random(1)
    values: dict[str, bytes] = {}
    store = open_store(limit_bytes=32 * MIB, chunk_bytes=CHUNK_BYTES)
    for number in range(200):
        key, size = f"k{rng.randrange(20)}", rng.choice((10, 3000, 50_000, 1_000_000))
        if rng.random() < 0.3 and key in values:
            store.delete(key).result()
            del values[key]
        else:
            values[key] = rng.randbytes(size)
            put(store, key, values[key])
        if number % 7 == 0:
            store.compact()
        if number % 50 == 49:
            assert {key: read(store, key) for key in values} == values
            store.close()
            LmdbFile(store_path / "data.mdb").close()  # it lacks nothing that is in use
            store = open_store(limit_bytes=32 * MIB, chunk_bytes=CHUNK_BYTES)
    assert {key: read(store, key) for key in values} == values
    for key in values:
        store.delete(key).result()
    store.sweep().result()
    assert store.stats().used_bytes == 0


def test_an_open_snapshot_keeps_its_bytes(store: LmdbStore, store_path: Path, payload: Callable, read: Callable) -> None:
    old, new = payload(4 * MIB), payload(4 * MIB)
    put(store, "a", old)
    with store.snapshot() as snapshot:
        views = list(snapshot.pieces("a"))
        for _ in range(3):
            put(store, "a", new)
        store.delete("a").result()
        assert store.compact().disk_after_bytes > 4 * MIB
        put(store, "b", new)
        store.compact()
        assert b"".join(views) == old
        assert b"".join(snapshot.pieces("a")) == old
        del views
    store.delete("b").result()
    assert store.compact().disk_after_bytes < KEPT_BYTES


def test_a_snapshot_of_another_process_keeps_its_bytes(store: LmdbStore, start: Start, payload: Callable) -> None:
    value = payload(2 * MIB)
    put(store, "a", value)
    child = start("""
with store.snapshot() as snapshot:
    say("open")
    sys.stdin.readline()
    say(b"".join(snapshot.pieces("a"))[::4096].hex())
say("closed")
sys.stdin.readline()
""")
    assert said(child) == "open"
    store.delete("a").result()
    store.compact()
    tell(child)
    assert said(child) == value[::4096].hex()
    assert said(child) == "closed"
    assert store.compact().disk_after_bytes < KEPT_BYTES
    tell(child)


def test_another_process_writes_meanwhile(
    store: LmdbStore, start: Start, read: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "STEP_S", 0.0)
    child = start("""
import random
rng, values = random.Random(2), {}
while not os.path.exists(store._environment.path / "stop"):
    key = f"child{rng.randrange(8)}"
    if key in values and rng.random() < 0.4:
        store.delete(key).result()
        del values[key]
    else:
        values[key] = rng.randbytes(rng.choice((100, 20_000, 700_000)))
        store.commit([Write(key, [values[key]])]).result()
    say("wrote")
for key, value in values.items():
    with store.snapshot() as snapshot:
        assert b"".join(snapshot.pieces(key)) == value, key
say("right")
""")
    rng, values = random.Random(3), dict[str, bytes]()
    for number in range(30):
        said(child)
        values[f"k{number % 5}"] = rng.randbytes(300_000)
        put(store, f"k{number % 5}", values[f"k{number % 5}"])
        store.compact()
    (store._environment.path / "stop").touch()
    while (word := said(child)) == "wrote":
        pass
    assert word == "right"
    assert {key: read(store, key) for key in values} == values


def test_the_other_processes_take_room_behind_an_end_that_was_cut_off(store: LmdbStore, start: Start, read: Callable) -> None:
    """They do not count on how long the file was."""
    child = start("""
for size in (8_000_000, 100, 8_000_000):
    store.commit([Write("child", [b"x" * size])]).result()
    say("wrote")
    sys.stdin.readline()
disk = store._environment.disk
say(disk.size.file_bytes >= (store._environment.lmdb.info()["last_pgno"] + 1) * 4096 + (256 << 10))
""")
    for _ in range(3):
        said(child)
        store.compact()
        tell(child)
    assert said(child) == "True"
    assert read(store, "child") == b"x" * 8_000_000


COMPACTS = """
from kaasd.store import compaction
import random
compaction.STEP_S, compaction._PIECE_BYTES = 0.0, 64 << 10
rng = random.Random({seed})
for i in range(10**9):
    store.commit([Write(f"k{{i % 5}}", [bytes([i % 251]) * rng.choice((100, 30_000, 500_000))])]).result()
    if i == 5:
        say("begins")
    store.compact()
"""


def test_a_process_that_is_killed_in_the_middle(open_store: Callable, store_path: Path, start: Start, read: Callable) -> None:
    rng = random.Random(4)
    kept = rng.randbytes(3 * MIB)
    with open_store() as store:
        put(store, "kept", kept)
    for seed in range(5):
        child = start(COMPACTS.format(seed=seed))
        assert said(child) == "begins"
        with suppress(subprocess.TimeoutExpired):
            child.wait(rng.random() * 0.3)
        kill(child)
        with open_store() as store:
            assert read(store, "kept") == kept
            with store.snapshot() as snapshot:
                for entry in snapshot.list("k"):
                    value = b"".join(snapshot.pieces(entry.key))
                    assert entry.key == "kept" or value == value[:1] * entry.size_bytes
            assert store.compact().disk_after_bytes < store.stats().used_bytes + KEPT_BYTES
            assert read(store, "kept") == kept


def test_others_write_between_its_steps(store: LmdbStore, payload: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes while it is under way is committed before it ends, and it ends."""
    monkeypatch.setattr(compaction, "STEP_S", 0.0)
    monkeypatch.setattr(compaction, "_PIECE_BYTES", 64 << 10)
    put(store, "a", payload(8 * MIB))
    store.delete("a").result()
    order: list[str] = []

    def is_stopped() -> bool:
        if len(order) < 20:
            store.commit([Write("b", [b"1"])]).add_done_callback(lambda _: order.append("commit"))
        return False

    assert store.compact(is_stopped).disk_after_bytes < KEPT_BYTES
    assert len(order) >= 20


def test_one_that_is_stopped_has_done_a_part(store: LmdbStore, payload: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "STEP_S", 0.0)
    monkeypatch.setattr(compaction, "_PIECE_BYTES", 64 << 10)
    put(store, "a", payload(8 * MIB))
    store.delete("a").result()
    left = iter([False] * 10)
    done = store.compact(lambda: next(left, True))
    assert KEPT_BYTES < done.disk_after_bytes < done.disk_before_bytes
    assert store.compact().disk_after_bytes < KEPT_BYTES


def test_holes_stay_when_the_store_is_opened_again(open_store: Callable, store_path: Path, payload: Callable) -> None:
    with open_store(chunk_bytes=CHUNK_BYTES) as store:
        put(store, "a", payload(40 * MIB))
        store.delete("a").result()
        after = store.compact().disk_after_bytes
    with open_store() as store:
        put(store, "b", b"1")
        assert on_disk(store_path) < after + 24 * MIB


def test_an_upload_under_way_stays(store: LmdbStore, payload: Callable, read: Callable) -> None:
    value = payload(MIB)
    staged = store.stage()
    staged.append(value[: MIB // 2])
    store.compact()
    staged.append(value[MIB // 2 :])
    store.commit([Write("a", staged)]).result()
    assert read(store, "a") == value


def test_where_blocks_cannot_be_given_back_the_end_is_cut_off(
    open_store: Callable, store_path: Path, payload: Callable, read: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS before 4.2, which no test can mount."""
    monkeypatch.setattr(DiskRoom, "give_back", lambda *_: False)
    value = payload(MIB)
    with open_store() as store:
        put(store, "a", value)
        put(store, "b", payload(20 * MIB))
        for _ in range(5):
            put(store, "c", b"the trees move to the front")
        store.delete("b").result()
        store.sweep().result()
        for number in range(20):
            put(store, "c", b"%d" % number)
        done = store.compact()
        assert done.only_end
        assert done.file_after_bytes < done.file_before_bytes
        put(store, "d", value)
    with open_store() as store:
        assert read(store, "a") == read(store, "d") == value
        assert read(store, "c") == b"19"


def test_a_broken_list_of_free_pages_is_noticed(open_store: Callable, store_path: Path, payload: Callable) -> None:
    """Nothing is given back by such a list."""
    with open_store() as store:
        put(store, "a", payload(MIB))
        put(store, "b", payload(MIB))
        store.delete("b").result()
        store.sweep().result()
    file = store_path / "data.mdb"
    with LmdbFile(file) as found:
        numbers = max((value for _, value in found.below(found.meta.free_root, 4096, 32)), key=len)
    content = file.read_bytes()
    swapped = numbers[:8] + numbers[16:24] + numbers[8:16] + numbers[24:]
    file.write_bytes(content.replace(numbers, swapped))
    with LmdbFile(file) as found, pytest.raises(StoreForeignError, match="list of free pages is broken"):
        list(found.free_pages(found.meta))


def test_it_is_refused_when_the_store_is_closed(open_store: Callable) -> None:
    store = open_store()
    store.close()
    with pytest.raises(InternalError, match="closed"):
        store.compact()


def test_the_list_of_free_pages_from_either_end(store: LmdbStore) -> None:
    """A snapshot keeps LMDB from using it up, so that it becomes a tree of several levels."""
    with store.snapshot():
        for number in range(1500):
            put(store, "a", b"%d" % number)
    with LmdbFile(store._environment.path / "data.mdb") as file:
        meta = file.meta
        found = list(file.free_pages(meta))
        assert len(found) > 1000
        assert [transaction for transaction, _ in found] == sorted(transaction for transaction, _ in found)
        assert list(file.free_pages(meta, latest_first=True)) == found[::-1]
        for at in (0, 1, 500, len(found) - 1):
            last = found[at][0]
            assert list(file.free_pages(meta, last)) == found[: at + 1]
            assert list(file.free_pages(meta, last, latest_first=True)) == found[at::-1]
        assert list(file.free_pages(meta, found[0][0] - 1)) == []


@pytest.mark.parametrize("gap", [0.0, 0.1, 0.9])
def test_runs_are_those_of_the_numbers(gap: float) -> None:
    rng = random.Random(5)
    pages = [number for number in range(1000, 0, -1) if rng.random() >= gap]
    found = list(runs(pages))
    assert [page for first, end in found for page in range(end - 1, first - 1, -1)] == pages
    assert all(first > end for (first, _), (_, end) in pairwise(found))
    assert list(runs([])) == []


def test_what_another_process_has_stored_beyond_the_limit_of_this_one_stays(
    open_store: Callable, start: Start, read: Callable
) -> None:
    """The file is longer than this process would ever make it."""
    store = open_store(limit_bytes=2 * MIB)
    child = start(
        """
store.commit([Write("big", [bytes(range(250)) * 40_000])]).result()
say("written")
sys.stdin.readline()
with store.snapshot() as snapshot:
    say(b"".join(snapshot.pieces("big")) == bytes(range(250)) * 40_000)
""",
        LIMIT_BYTES=str(64 * MIB),
    )
    assert said(child) == "written"
    store.compact()
    assert read(store, "big") == bytes(range(250)) * 40_000
    tell(child)
    assert said(child) == "True"
