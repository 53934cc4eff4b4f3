"""A copy of the store that is made while it is used: what it holds, what it keeps, and what it leaves behind."""

from __future__ import annotations

import io
import os
import shutil
import struct
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from kaas_core.errors import CancelledError, InternalError, StoreFullError
from kaasd.store.backup import LEFT_FREE_BYTES, remove_left_copies
from kaasd.store.base import Namespace, Write
from kaasd.store.lmdb_file import LmdbFile
from kaasd.store.lmdb_store import LmdbStore
from tests.store.support import Start, kill, said, tell

FILES = {"data.mdb", "lock.mdb", "owners"}
"""Of a store; whatever else lies in its directory was left there."""


def backed_up(store: LmdbStore) -> bytes:
    with closing(store.backup()) as backup:
        backup.make()
        tar = b"".join(backup.pieces())
        assert len(tar) == backup.size_bytes
        return tar


def unpacked(tar: bytes, directory: Path) -> LmdbStore:
    with tarfile.open(fileobj=io.BytesIO(tar)) as file:
        (member,) = file.getmembers()
        assert (member.name, member.mode) == ("data.mdb", 0o600)
        file.extractall(directory, filter="data")
    return LmdbStore(directory, limit_bytes=64 << 20)


def test_it_is_the_store_as_it_was(store: LmdbStore, payload: Callable, read: Callable, tmp_path: Path) -> None:
    values = {"inline": payload(100), "chunk": payload(4000), "chunks": payload(1_000_000), "empty": b""}
    store.commit([Write(key, [value]) for key, value in values.items()]).result()
    store.commit([Write("sha256:1", [payload(9000)], namespace=Namespace.LIBRARIES)]).result()
    store.commit([Write("f", [b"function"], namespace=Namespace.FUNCTIONS)]).result()
    with store.snapshot() as snapshot:
        entries = {space: snapshot.list(namespace=space) for space in Namespace}
    tar = backed_up(store)
    store.commit([Write("inline", [b"after"]), Write("later", [b"after"])]).result()
    with unpacked(tar, tmp_path / "restored") as restored:
        assert restored.store_id == store.store_id
        with restored.snapshot() as snapshot:
            assert {space: snapshot.list(namespace=space) for space in Namespace} == entries
        assert {key: read(restored, key) for key in values} == values
        assert read(restored, "f", namespace=Namespace.FUNCTIONS) == b"function"
        version = restored.commit([Write("inline", [b"again"])]).result()["inline"].version
        assert version > max(entry.version for space in entries.values() for entry in space)


def test_it_is_one_state_while_others_write(store: LmdbStore, start: Start, read: Callable, tmp_path: Path) -> None:
    """Each commit of the other process writes the same to both keys; a mixture would differ."""
    child = start("""
for i in range(10**9):
    store.commit([Write("a", [bytes([i % 251]) * 300_000]), Write("z", [bytes([i % 251]) * 300_000])]).result()
    say(i)
""")
    for number in range(5):
        for _ in range(3):
            said(child)
        with unpacked(backed_up(store), tmp_path / str(number)) as restored:
            assert read(restored, "a") == read(restored, "z")
            assert len(set(read(restored, "a"))) == 1
    kill(child)


def test_an_upload_under_way_is_no_part_of_it(store: LmdbStore, tmp_path: Path) -> None:
    staged = store.stage()
    staged.append(bytes(50_000))
    store.commit([Write("a", [b"1"])]).result()
    with unpacked(backed_up(store), tmp_path / "restored") as restored:
        restored.sweep().result()
        restored.delete("a").result()
        assert restored.stats().used_bytes == 0
    staged.close()


def test_its_reader_holds_no_pages(store: LmdbStore, store_path: Path) -> None:
    value = bytes(4_000_000)
    store.commit([Write("a", [value])]).result()
    with closing(store.backup()) as backup:
        backup.make()
        pieces = backup.pieces()
        first = [next(pieces), next(pieces)]
        for _ in range(20):
            store.commit([Write("a", [value])]).result()
        assert (store_path / "data.mdb").stat().st_size < 10 * len(value)  # not the 20 that were written
        assert sum(map(len, [*first, *pieces])) == backup.size_bytes


def test_free_pages_are_left_out(store: LmdbStore, store_path: Path) -> None:
    store.commit([Write("a", [bytes(8_000_000)])]).result()
    store.delete("a").result()
    store.sweep().result()
    assert (store_path / "data.mdb").stat().st_size > 8_000_000
    assert len(backed_up(store)) < 1_000_000


def test_its_file_is_the_owners_alone_and_has_no_name(store: LmdbStore, store_path: Path) -> None:
    store.commit([Write("a", [bytes(100_000)])]).result()
    with closing(store.backup()) as backup:
        backup.make()
        assert os.fstat(backup._file.fileno()).st_mode & 0o777 == 0o600
        assert {path.name for path in store_path.iterdir()} == FILES


def test_one_that_is_stopped(store: LmdbStore, store_path: Path) -> None:
    store.commit([Write("a", [bytes(4_000_000)])]).result()
    with closing(store.backup()) as backup:
        backup.stop()
        with pytest.raises(CancelledError):
            backup.make()
    backup.stop()
    assert {path.name for path in store_path.iterdir()} == FILES
    assert len(backed_up(store)) > 4_000_000


def test_one_that_is_stopped_on_its_way(store: LmdbStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """LMDB has written a part of it, and goes on until a write fails."""
    store.commit([Write("a", [bytes(30_000_000)])]).result()
    with closing(store.backup()) as backup, ThreadPoolExecutor(1) as threads:
        making = threads.submit(backup.make)
        while not os.fstat(backup._file.fileno()).st_size and not making.done():
            pass
        backup.stop()
        assert making.exception() is None or isinstance(making.exception(), CancelledError)
    store.delete("a").result()
    assert not store._environment.is_held()


def test_a_disk_with_too_little_room(store: LmdbStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.commit([Write("a", [bytes(4_000_000)])]).result()
    used = store.stats().used_bytes
    for missing, kind in ((1, StoreFullError), (0, None)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=used + LEFT_FREE_BYTES - missing: SimpleNamespace(free=free))
        with closing(store.backup()) as backup:
            if kind is None:
                backup.make()
                continue
            with pytest.raises(kind, match="no room for a copy of the store") as caught:
                backup.make()
            assert caught.value.metadata == {"asked_bytes": str(used), "free_bytes": str(used + LEFT_FREE_BYTES - 1)}


def test_a_disk_that_gets_full_meanwhile(store: LmdbStore, store_path: Path, start: Start) -> None:
    """The system cuts the copy's file short; the store itself is not touched."""
    store.commit([Write("a", [bytes(4_000_000)])]).result()
    child = start("""
import resource
import struct
from contextlib import closing
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
for _ in range(2):
    with closing(store.backup()) as backup:
        try:
            backup.make()
        except Exception as error:
            say(error.code, error)
say(*sorted(os.listdir(store._environment.path)))
store.close()
""")
    for _ in range(2):
        assert said(child).startswith("RESOURCE_EXHAUSTED there is no room for a copy of the store: ")
    assert set(said(child).split()) == FILES
    assert child.wait() == 0


def test_a_process_that_is_killed_leaves_nothing(store: LmdbStore, store_path: Path, start: Start) -> None:
    store.commit([Write("a", [bytes(4_000_000)])]).result()
    child = start("""
backup = store.backup()
backup.make()
say("made")
sys.stdin.readline()
""")
    assert said(child) == "made"
    kill(child)
    assert {path.name for path in store_path.iterdir()} == FILES


def test_copies_that_have_names_are_removed(store: LmdbStore, store_path: Path) -> None:
    """Some file systems know no file without a name: there it has one for a moment."""
    (store_path / ".kaasd-backup-k2jh3").write_bytes(b"half a copy")
    (store_path / ".kaasd-new-k2jh3.mdb").write_bytes(b"half a store")
    # What a user puts there is left alone.
    for name in ("backup-monday.tar", "new-copy.mdb"):
        (store_path / name).write_bytes(b"a whole copy")
    remove_left_copies(store_path)
    assert {path.name for path in store_path.iterdir()} == {*FILES, "backup-monday.tar", "new-copy.mdb"}


def test_a_store_that_is_closed_has_none(open_store: Callable, start: Start) -> None:
    store = open_store()
    store.close()
    with closing(store.backup()) as backup, pytest.raises(InternalError, match="is closed"):
        backup.make()


def test_the_store_is_not_closed_while_it_is_copied(store: LmdbStore) -> None:
    store._environment._enter()
    with pytest.raises(InternalError, match="snapshots are open"):
        store.close()
    store._environment._leave()


def test_a_map_that_has_grown_elsewhere(open_store: Callable, start: Start, tmp_path: Path, read: Callable) -> None:
    store = open_store(limit_bytes=2 << 20)
    child = start('store.commit([Write("big", [b"x" * 3_000_000])]).result()\nsay("written")\nsys.stdin.readline()')
    assert said(child) == "written"
    with unpacked(backed_up(store), tmp_path / "restored") as restored:
        assert read(restored, "big") == b"x" * 3_000_000
    tell(child)


def test_pages_that_are_lost_do_not_keep_it_from_being_made(
    open_store: Callable, store_path: Path, tmp_path: Path, read: Callable
) -> None:
    """LMDB does not leave out what is free where a page is neither free nor in use: then the copy has the size of the file."""
    with open_store() as store:
        for number in range(20):
            store.commit([Write("a", [b"%d" % number * 10_000])]).result()
    file = store_path / "data.mdb"
    with LmdbFile(file) as found:
        last_page, start = found.meta.last_page, found.meta.transaction % 2 * 4096
    content = bytearray(file.read_bytes())
    struct.pack_into("<Q", content, content.index(struct.pack("<Q", last_page), start), last_page + 1)
    file.write_bytes(content)
    store = open_store()
    with unpacked(backed_up(store), tmp_path / "restored") as restored:
        assert read(restored, "a") == b"19" * 10_000
