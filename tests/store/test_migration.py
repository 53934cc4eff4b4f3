"""Stores of an older format are brought into today's, whole or not at all, and the old file is kept."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lmdb
import pytest

from kaas_core.errors import CancelledError, DataDamagedError, StoreForeignError, StoreFullError
from kaasd.store import migration
from kaasd.store.backup import remove_left_copies
from kaasd.store.base import Account, Namespace, Write
from kaasd.store.directory import DATABASES, LMDB_MAJOR_VERSION
from tests.store.conftest import LIMIT_BYTES
from tests.store.support import Start, kill, own, said

STORE_ID = bytes(range(16))
VERSION, LAST_ID, TIME_NS = 977, 5000, 1_700_000_000_123_456_789
Values = dict[tuple[Namespace, str], bytes]


@pytest.fixture
def values(payload: Callable[[int], bytes]) -> Values:
    sizes = {"": 0, "empty": 0, "one": 1, "inline": 1000, "chunk": 4096, "chunks": 50_001}
    return {
        **{(Namespace.VALUES, name): payload(size) for name, size in sizes.items() if name},
        **{(Namespace.VALUES, f"many/{number}"): payload(number % 2000) for number in range(500)},
        (Namespace.LIBRARIES, "sha256:1"): payload(9000),
        (Namespace.FUNCTIONS, "f"): payload(50),
    }


@pytest.fixture
def old(store_path: Path, values: Values) -> Path:
    """The file of a store of the older format, without checksums; and what an upload that was cut off has left."""
    return write_old(store_path, values)


def write_old(path: Path, values: Values, *, with_id: bool = True) -> Path:
    path.mkdir(mode=0o700)
    (path / "owners").touch(0o600)
    with lmdb.open(str(path), map_size=64 << 20, max_dbs=len(DATABASES), lib_version=LMDB_MAJOR_VERSION) as environment:
        databases = {name: environment.open_db(name) for name in DATABASES}
        chunk_id = 0
        with environment.begin(write=True) as txn:
            txn.put(b"state", struct.pack("<QQQ", 1, VERSION, LAST_ID))
            if with_id:
                txn.put(b"store_id", STORE_ID)
            for version, ((namespace, key), value) in enumerate(values.items(), 1):
                extents = b""
                if len(value) > 1024:
                    for start in range(0, len(value), 4096):
                        chunk_id += 1
                        piece = value[start : start + 4096]
                        txn.put(struct.pack(">Q", chunk_id), piece, db=databases[b"chunks"])
                        extents += struct.pack("<QQ", chunk_id, len(piece))
                head = struct.pack("<QQQQ", version, len(value), TIME_NS, len(extents) // 16)
                txn.put(key.encode(), head + (extents or value), db=databases[namespace.name.lower().encode()])
            txn.put(struct.pack(">Q", LAST_ID), b"of nobody", db=databases[b"chunks"])
            txn.put(struct.pack(">QQ", 77, LAST_ID), struct.pack("<QQ", LAST_ID, 9), db=databases[b"loose"])
    return path / "data.mdb"


def test_all_that_was_stored_is_there(old: Path, values: Values, open_store: Callable, read: Callable) -> None:
    before = old.read_bytes()
    store = open_store()
    for version, ((namespace, key), value) in enumerate(values.items(), 1):
        assert read(store, key, namespace=namespace) == value
        with store.snapshot() as snapshot:
            entry = snapshot.stat(key, namespace)
        assert (entry.version, entry.size_bytes, entry.update_time_ns) == (version, len(value), TIME_NS)
    assert store.store_id == STORE_ID.hex()
    keys = sum(namespace is Namespace.VALUES for namespace, _ in values)
    assert store.accounts() == {"default": Account(sum(map(len, values.values())), keys)}
    assert list(store.check()) == []
    assert (old.parent / "data-format1.mdb").read_bytes() == before
    assert {file.name for file in old.parent.iterdir()} == {"data.mdb", "data-format1.mdb", "lock.mdb", "owners"}
    assert old.stat().st_mode & 0o777 == 0o600


def test_versions_and_chunks_go_on_where_they_were(old: Path, open_store: Callable) -> None:
    store = open_store()
    assert store.commit([Write("new", [bytes(9000)])]).result()["new"].version == VERSION + 1
    with store._environment.write() as txn, txn.cursor(store._environment.chunks) as cursor:
        assert cursor.last()
        assert struct.unpack(">Q", cursor.key()) == (LAST_ID + 3,)


def test_what_belonged_to_nobody_stays_behind(old: Path, open_store: Callable) -> None:
    environment = open_store()._environment
    with environment.write() as txn:
        assert txn.get(struct.pack(">Q", LAST_ID), db=environment.chunks) is None
        assert txn.stat(environment.loose)["entries"] == 0


def test_it_happens_once(old: Path, values: Values, open_store: Callable, read: Callable) -> None:
    open_store().close()
    (old.parent / "data-format1.mdb").unlink()
    store = open_store()
    assert read(store, "chunks") == values[Namespace.VALUES, "chunks"]
    assert not (old.parent / "data-format1.mdb").exists()


def test_a_store_that_had_no_id_gets_one(store_path: Path, values: Values, open_store: Callable) -> None:
    write_old(store_path, values, with_id=False)
    store = open_store()
    store_id = store.store_id
    assert len(store_id) == 32
    store.close()
    assert open_store().store_id == store_id


def test_what_is_damaged_stays_damaged(old: Path, values: Values, open_store: Callable, read: Callable) -> None:
    """Format 1 shows what is missing, and nothing else."""
    with lmdb.open(str(old.parent), max_dbs=len(DATABASES), lib_version=LMDB_MAJOR_VERSION) as environment:
        entries, chunks = environment.open_db(b"values"), environment.open_db(b"chunks")
        with environment.begin(write=True) as txn:
            txn.put(b"inline", bytes(txn.get(b"inline", db=entries))[:-1], db=entries)
            txn.put(b"one", b"broken", db=entries)
            (first,) = struct.unpack_from("<Q", txn.get(b"chunks", db=entries), 32)
            txn.delete(struct.pack(">Q", first + 1), db=chunks)
            (first,) = struct.unpack_from("<Q", txn.get(b"chunk", db=entries), 32)
            txn.put(struct.pack(">Q", first), b"short", db=chunks)
    store = open_store()
    for key in ("inline", "one", "chunks", "chunk"):
        with pytest.raises(DataDamagedError):
            read(store, key)
    assert sorted(entry.key for entry in store.check()) == ["chunk", "chunks", "inline", "one"]
    assert read(store, "many/499") == values[Namespace.VALUES, "many/499"]
    assert store.commit([Write("chunks", [b"again"])]).result()["chunks"].version == VERSION + 1


def refused(old: Path, open_store: Callable, kind: type, message: str) -> None:
    before, names = old.read_bytes(), {file.name for file in old.parent.iterdir()}
    with pytest.raises(kind, match=message):
        open_store()
    assert old.read_bytes() == before
    assert {file.name for file in old.parent.iterdir()} == names


def test_another_process_has_it_open(old: Path, open_store: Callable, start: Start) -> None:
    child = own(old.parent, start)
    refused(old, open_store, StoreForeignError, "another process has it open; end that first")
    kill(child)
    open_store()


def test_no_room_for_a_copy(old: Path, open_store: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    refused(old, open_store, StoreFullError, r"Copying it into today's takes \d+ bytes, but its file system has 1000")


@pytest.mark.parametrize("asked", [1, 300, 700, 1000, 1300, 1500])
def test_one_that_is_stopped_changes_nothing(
    old: Path, values: Values, open_store: Callable, read: Callable, monkeypatch: pytest.MonkeyPatch, asked: int
) -> None:
    """Whatever it does then: it looks at the trees, counts, copies."""
    monkeypatch.setattr(migration, "_BATCH_BYTES", 10_000)
    answers = iter([False] * asked + [True])
    refused(old, partial(open_store, is_stopped=lambda: next(answers)), CancelledError, "was stopped; nothing was changed")
    assert read(open_store(), "chunks") == values[Namespace.VALUES, "chunks"]


def test_a_link_stays_one(old: Path, values: Values, tmp_path: Path, open_store: Callable, read: Callable) -> None:
    """The store's file may lie on a larger disk, and so do the new one and the one that is kept."""
    large = tmp_path / "large disk"
    large.mkdir()
    before = old.read_bytes()
    target = old.replace(large / "of [this] store.mdb")
    old.symlink_to(target)
    for name in ("of [this] store.mdb-1", "of another.mdb-1", "1"):  # of a process that was killed, and of others
        (large / f".kaasd-new-{name}").touch()
    remove_left_copies(old.parent)
    store = open_store()
    assert read(store, "chunks") == values[Namespace.VALUES, "chunks"]
    assert old.readlink() == target
    assert {file.name for file in old.parent.iterdir()} == {"data.mdb", "lock.mdb", "owners"}
    assert (large / "of [this] store-format1.mdb").read_bytes() == before
    assert {file.name for file in large.iterdir()} == {
        "of [this] store.mdb",
        "of [this] store-format1.mdb",
        ".kaasd-new-of another.mdb-1",
        ".kaasd-new-1",
    }


@pytest.mark.parametrize("step", ["copying", "the room behind the copy"])
def test_a_limit_on_the_size_of_files_is_named(
    old: Path, values: Values, tmp_path: Path, open_store: Callable, start: Start, step: str
) -> None:
    before, names = old.read_bytes(), {file.name for file in old.parent.iterdir()}
    limit = 60_000
    if step != "copying":
        whole = write_old(tmp_path / "another", values)
        migration.migrate(whole.parent)
        limit = whole.stat().st_size - 4096
    child = start(
        f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
try:
    LmdbStore({str(old.parent)!r}, limit_bytes={LIMIT_BYTES})
except Exception as error:
    say(type(error).__name__, error)
""",
        bare="yes",
    )
    words = said(child)
    assert words.startswith("StoreFullError ")
    assert f"this process may write files of at most {limit} bytes (ulimit -f, LimitFSIZE=)" in words
    assert child.wait() == 0
    assert old.read_bytes() == before
    assert {file.name for file in old.parent.iterdir()} == names
    open_store()


def test_an_old_file_in_the_way(old: Path, open_store: Callable) -> None:
    kept = old.parent / "data-format1.mdb"
    kept.write_bytes(b"of another time")
    refused(old, open_store, StoreForeignError, "data-format1.mdb, where it would be kept, exists; move that away")
    assert kept.read_bytes() == b"of another time"


def test_damaged_trees(old: Path, open_store: Callable) -> None:
    raw = bytearray(old.read_bytes())
    for page in range(2, len(raw) // 4096):
        if struct.unpack_from("<H", raw, page * 4096 + 10)[0] & 3:
            raw[page * 4096 + 12] ^= 0xFF
    old.write_bytes(raw)
    refused(old, open_store, StoreForeignError, "is damaged")


def test_a_copy_that_fails_changes_nothing(old: Path, open_store: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(migration, "take_first_room", fail)
    refused(old, open_store, OSError, "Input/output error")


@pytest.mark.parametrize("step", ["link", "replace"])
def test_killed_at_the_last_steps(
    old: Path, values: Values, open_store: Callable, read: Callable, start: Start, step: str
) -> None:
    """The old file or the new one is in place, and another start ends what was begun."""
    target = "os.link" if step == "link" else "Path.replace"
    child = start(
        f"""
import signal
from pathlib import Path
from kaasd.store import migration
from kaasd.store.backup import remove_left_copies
original = {target}
def last(*arguments, **more):
    original(*arguments, **more)
    os.kill(os.getpid(), signal.SIGKILL)
{target} = last
migration.migrate(Path({str(old.parent)!r}))
""",
        bare="yes",
    )
    assert child.wait() == -9
    store = open_store()
    assert read(store, "chunks") == values[Namespace.VALUES, "chunks"]
    assert list(store.check()) == []
    assert (old.parent / "data-format1.mdb").exists()


def test_long_ones_say_how_far_they_are(
    old: Path, open_store: Callable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(migration, "_PROGRESS_S", 0.0)
    monkeypatch.setattr(migration, "_BATCH_BYTES", 10_000)
    store = open_store()
    assert list(store.check()) == []
    assert "1 entries are copied" in caplog.text
    assert f"the old file is kept as {old.parent / 'data-format1.mdb'}" in caplog.text


def change_old(old: Path, change: Callable[[lmdb.Transaction[bytes], object], None]) -> None:
    with lmdb.open(str(old.parent), max_dbs=len(DATABASES), lib_version=LMDB_MAJOR_VERSION) as environment:
        entries = environment.open_db(b"values")
        with environment.begin(write=True) as txn:
            change(txn, entries)


def test_counters_that_fell_back_give_nothing_twice(old: Path, values: Values, open_store: Callable, read: Callable) -> None:
    change_old(old, lambda txn, entries: txn.put(b"state", struct.pack("<QQQ", 1, 2, 1)))
    store = open_store()
    assert read(store, "chunks") == values[Namespace.VALUES, "chunks"]
    assert store.commit([Write("new", [bytes(20_000)])]).result()["new"].version == len(values) + 1
    for (namespace, key), value in values.items():
        assert read(store, key, namespace=namespace) == value
    assert list(store.check()) == []


def test_a_chunk_of_two_values_is_neither_ones(old: Path, values: Values, open_store: Callable, read: Callable) -> None:
    def change(txn: lmdb.Transaction[bytes], entries: object) -> None:
        (wrong,) = struct.unpack_from("<Q", txn.get(b"chunk", db=entries), 32)
        record = bytearray(txn.get(b"chunks", db=entries))
        struct.pack_into("<Q", record, 32, wrong)
        txn.put(b"chunks", bytes(record), db=entries)

    change_old(old, change)
    store = open_store()
    for key in ("chunk", "chunks"):
        with pytest.raises(DataDamagedError):
            read(store, key)
        store.delete(key).result()
    assert list(store.check()) == []
    assert read(store, "many/499") == values[Namespace.VALUES, "many/499"]


@pytest.mark.parametrize("state", [struct.pack("<QQQQ", 1, 2, 3, 4), struct.pack("<Q", 1)], ids=["longer", "shorter"])
def test_counters_of_another_length(old: Path, open_store: Callable, state: bytes) -> None:
    change_old(old, lambda txn, entries: txn.put(b"state", state))
    refused(old, open_store, StoreForeignError, "is damaged: its counters were changed")
