"""What lies in a store's directory: whose it is, whether it is whole, and that it is still the one that was opened."""

from __future__ import annotations

import ctypes
import errno
import gzip
import os
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest

from kaas_core.errors import KaasError, StoreForeignError, StoreGoneError
from kaasd.store import disk_room
from kaasd.store.base import Durability, Namespace, Write
from kaasd.store.directory import DATABASES, StoreIdentity, prepare
from kaasd.store.lmdb_file import LmdbFile
from kaasd.store.lmdb_store import LmdbStore
from kaasd.store.records import STATE_KEY, STORE_ID_KEY
from tests.store.support import Start, said, writer_held_up

BEFORE_IDS = Path(__file__).parent / "data/before_ids.mdb.gz"
"""A store as kaasd made it before stores had ids."""


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def file(store_path: Path) -> Path:
    """The file of a store that is closed. Its trees lie in pages that were free again, before the end of a value."""
    with LmdbStore(store_path, limit_bytes=64 << 20, chunk_bytes=4096, durability=Durability.NONE) as store:
        for _ in range(10):
            store.commit([Write("small", [b"1"])]).result()
        store.commit([Write("large", [b"2" * 100_000])]).result()
        for _ in range(10):
            store.commit([Write("small", [b"2"])]).result()
    return store_path / "data.mdb"


class TestId:
    def test_it_is_of_the_store(self, open_store: Callable, store_path: Path, tmp_path: Path, start: Start) -> None:
        with LmdbStore(tmp_path / "other", limit_bytes=8 << 20) as other:
            other_id = other.store_id
        store = open_store()
        store_id = store.store_id
        assert re.fullmatch("[0-9a-f]{32}", store_id)
        assert store_id != other_id
        assert said(start("say(store.store_id)")) == store_id
        store.close()
        store_path.rename(tmp_path / "elsewhere")
        with LmdbStore(tmp_path / "elsewhere", limit_bytes=64 << 20) as moved:
            assert moved.store_id == store_id

    def test_a_store_of_before_gets_one_and_keeps_all(self, open_store: Callable, store_path: Path, read: Callable) -> None:
        store_path.mkdir()
        (store_path / "data.mdb").write_bytes(gzip.decompress(BEFORE_IDS.read_bytes()))
        (store_path / "owners").touch()
        with open_store() as store:
            store_id = store.store_id
            with store.snapshot() as snapshot:
                assert [(entry.key, entry.version, entry.size_bytes) for entry in snapshot.list()] == [
                    ("small", 3, 6),
                    ("ü/large", 2, 10240),
                ]
            assert read(store, "small") == b"second"
            assert read(store, "ü/large") == bytes(range(256)) * 40
            assert read(store, "sha256:1", namespace=Namespace.LIBRARIES) == b"code"
            assert read(store, "f", namespace=Namespace.FUNCTIONS) == b"function"
            assert store.commit([Write("small", [b"third"])]).result()["small"].version > 6
        with open_store() as store:
            assert store.store_id == store_id
            assert read(store, "small") == b"third"


def cut(size_bytes: int) -> Callable[[Path], object]:
    return lambda path: os.truncate(path, size_bytes)


def overwrite(offset: int, data: bytes) -> Callable[[Path], object]:
    def damage(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    return damage


def of_another_program(path: Path) -> None:
    path.unlink()
    with lmdb.open(str(path), subdir=False, max_dbs=2) as environment, environment.begin(write=True) as txn:
        txn.put(b"state", struct.pack("<QQQ", 1, 2, 3))
        environment.open_db(b"values", txn=txn)


def of_a_large_program(path: Path) -> None:
    path.unlink()
    with lmdb.open(str(path), subdir=False) as environment, environment.begin(write=True) as txn:
        for number in range(1000):
            txn.put(b"state%d" % number, bytes(24))


def of_no_entries(path: Path) -> None:
    path.unlink()
    lmdb.open(str(path), subdir=False).close()


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        (of_another_program, StoreForeignError, "not one of kaasd's stores"),
        (of_a_large_program, StoreForeignError, "not one of kaasd's stores"),
        (of_no_entries, StoreForeignError, "not one of kaasd's stores"),
        (lambda path: path.write_text("Dear friend,\n" * 1000), StoreForeignError, "is not a file of LMDB, or is damaged"),
        (lambda path: path.write_bytes(bytes(1 << 20)), StoreForeignError, "is not a file of LMDB, or is damaged"),
        (cut(0), StoreGoneError, "is empty"),
        (cut(100), StoreForeignError, "is not a file of LMDB, or is damaged"),
        (cut(4096), StoreForeignError, "no meta page of LMDB is at byte 4096"),
        (cut(8192), StoreForeignError, "is cut short|is damaged"),
        (cut(150_000), StoreForeignError, r"is cut short: it has 150000 bytes of \d+, and some"),
        (overwrite(16, b"\0\0\0\0"), StoreForeignError, "no meta page of LMDB is at byte 0"),
        (overwrite(4096 + 16, b"\0\0\0\0"), StoreForeignError, "no meta page of LMDB is at byte 4096"),
        (overwrite(0, bytes(4096)), StoreForeignError, "no meta page of LMDB is at byte 0"),
        (overwrite(20, b"\x02"), StoreForeignError, "has LMDB's format 2"),
        (Path.unlink, StoreGoneError, "is missing, but .*owners shows that a store was here"),
    ],
    ids=lambda value: "" if not isinstance(value, str) else value,
)
def test_what_is_not_a_whole_store_is_refused_and_left_alone(
    file: Path, open_store: Callable, change: Callable[[Path], object], kind: type[KaasError], says: str
) -> None:
    change(file)
    before = contents(file.parent)
    for _ in range(2):
        with pytest.raises(kind, match=says) as caught:
            open_store()
        assert str(file) in str(caught.value)
        assert contents(file.parent) == before


def test_a_link_that_leads_nowhere_is_left_alone(store_path: Path, tmp_path: Path, open_store: Callable) -> None:
    """LMDB would make a file there, and none of ours."""
    store_path.mkdir()
    (store_path / "data.mdb").symlink_to(tmp_path / "elsewhere.mdb")
    with pytest.raises(StoreGoneError, match=r"is a link to .*/elsewhere\.mdb, which is missing"):
        open_store()
    assert [path.name for path in store_path.iterdir()] == ["data.mdb"]
    assert not (tmp_path / "elsewhere.mdb").exists()


def test_a_directory_that_was_emptied_gets_a_new_store(file: Path, open_store: Callable) -> None:
    shutil.rmtree(file.parent)
    file.parent.mkdir()
    with open_store() as store:
        assert store.stats().keys == 0


def test_every_cut_that_takes_a_page_in_use_is_found(file: Path, open_store: Callable, read: Callable) -> None:
    """A file that opens after a cut has all that it had."""
    with LmdbFile(file) as found:
        whole = file.read_bytes()[: (found.meta.last_page + 1) * found.meta.page_bytes]
    seen = []
    for size in range(0, len(whole) + 1, 4096):
        file.write_bytes(whole[:size])
        try:
            with open_store() as store:
                assert read(store, "large") == b"2" * 100_000
            seen.append("opened")
        except (StoreForeignError, StoreGoneError) as error:
            seen.append("cut short" if "is cut short" in str(error) else "refused")
    assert seen[-1] == "opened"
    assert seen.count("opened") < 5
    assert seen.count("cut short") > 50


def test_a_store_whose_last_pages_were_never_written_is_whole(
    open_store: Callable, store_path: Path, read: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one transaction writes and frees again stays unwritten, and the file ends before it, unless its blocks were taken."""
    monkeypatch.setattr(disk_room, "_fallocate", lambda *_: ctypes.set_errno(errno.EOPNOTSUPP) or -1)
    store = open_store(chunk_bytes=1 << 20)
    for _ in range(5):  # so that what the last transaction rewrites is not behind what it leaves out
        store.commit([Write("kept", [b"1"])]).result()
    with writer_held_up(store):
        commits = [store.commit([Write("a", [b"x" * 60_000])]), store.delete("a")]
    for commit in commits:
        commit.result()
    store.close()
    with LmdbFile(store_path / "data.mdb") as found:
        assert (found.meta.last_page + 1) * found.meta.page_bytes > (store_path / "data.mdb").stat().st_size
    with open_store() as store:
        assert read(store, "kept") == b"1"


def test_a_new_store_has_all_its_databases_before_it_is_opened(store_path: Path) -> None:
    prepare(store_path, sync=False)
    with LmdbFile(store_path / "data.mdb") as found:
        names = found.main_entries(found.meta).keys()
    assert names == {*DATABASES, STATE_KEY, STORE_ID_KEY}
    assert [path.name for path in store_path.iterdir()] == ["data.mdb"]


def test_any_tree_of_lmdb_is_read(tmp_path: Path) -> None:
    """Three levels of pages, with values in them and on pages of their own."""
    path = tmp_path / "any.mdb"
    wanted = {b"%0200d" % number: bytes([number % 251]) * size for number, size in enumerate([1, 0, 500, 3000, 70_000] * 60)}
    with lmdb.open(str(path), subdir=False, map_size=64 << 20) as environment, environment.begin(write=True) as txn:
        for key, value in wanted.items():
            txn.put(key, value)
        assert txn.stat()["depth"] == 3
    with LmdbFile(path) as found:
        root, page_bytes = found.meta.main_root, found.meta.page_bytes
        assert list(found.below(root, page_bytes)) == list(wanted.items())
        assert list(found.below(root, page_bytes, backwards=True)) == list(wanted.items())[::-1]
        assert found.main_entries(found.meta) == {}
        with pytest.raises(IndexError):
            list(found.below(root, page_bytes, 2))


def test_files_are_the_owners_whatever_the_umask(store_path: Path) -> None:
    before = os.umask(0)
    try:
        LmdbStore(store_path, limit_bytes=8 << 20).close()
    finally:
        os.umask(before)
    assert store_path.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in store_path.iterdir()}
    assert modes == dict.fromkeys(["data.mdb", "lock.mdb", "owners"], 0o600)
    (store_path / "owners").chmod(0o644)  # as it was once made
    LmdbStore(store_path, limit_bytes=8 << 20).close()
    assert (store_path / "owners").stat().st_mode & 0o777 == 0o600


def test_lmdb_of_one_version_is_used_whatever_the_environment_says(store_path: Path, start: Start) -> None:
    child = start("say(*store._environment.lmdb.lib_version())", LMDB_DEFAULT_LIB_VERSION="1")
    assert said(child).split()[0] == "0"
    with LmdbFile(store_path / "data.mdb") as found:
        assert found.meta.transaction > 0


class TestIdentity:
    """Of a store that one process has open, as another one is told it."""

    @pytest.fixture
    def identity(self, store: LmdbStore) -> Iterator[StoreIdentity]:
        assert set(store.identity.files) == {"", "data.mdb", "lock.mdb", "owners"}
        yield store.identity

    def files(self, path: Path) -> dict[str, tuple[int, int]] | None:
        """Return the files below ``path`` with their sizes and inodes; None where there is no such directory."""
        if not path.exists():
            return None
        return {file.name: (file.stat().st_size, file.stat().st_ino) for file in path.iterdir()}

    def open_there(self, identity: StoreIdentity, start: Start) -> str:
        """Have another process open the store; return its id, or the error."""
        return said(
            start(
                f"""
from pathlib import Path
from kaasd.store.directory import StoreIdentity
identity = StoreIdentity(Path({str(identity.path)!r}), {identity.store_id!r}, {dict(identity.files)!r})
try:
    say(LmdbStore(identity.path, limit_bytes={64 << 20}, identity=identity).store_id)
except Exception as error:
    say(type(error).__name__, error)
""",
                bare="yes",
            )
        )

    def test_the_same_store_is_opened(self, identity: StoreIdentity, start: Start) -> None:
        assert self.open_there(identity, start) == identity.store_id
        identity.check()

    def test_one_of_another_id_is_not(self, identity: StoreIdentity, start: Start) -> None:
        other = StoreIdentity(identity.path, "0" * 32, identity.files)
        assert self.open_there(other, start) == f"StoreGoneError {identity.path} is not the store that kaasd opened"

    @pytest.mark.parametrize("name", ["", "data.mdb", "lock.mdb", "owners"])
    @pytest.mark.parametrize("replaced", [False, True], ids=["removed", "replaced"])
    def test_where_a_file_is_gone_nothing_is_made(
        self, identity: StoreIdentity, start: Start, name: str, replaced: bool, tmp_path: Path
    ) -> None:
        path = identity.path / name
        path.rename(tmp_path / "moved")
        if replaced:
            (shutil.copytree if name == "" else shutil.copy)(tmp_path / "moved", path)
        before = self.files(identity.path)
        with pytest.raises(StoreGoneError, match="was replaced" if replaced else "is no longer there") as caught:
            identity.check()
        assert self.open_there(identity, start) == f"StoreGoneError {caught.value}"
        assert self.files(identity.path) == before

    def test_a_file_that_was_cut_short_is_not_mapped(self, file: Path, start: Start) -> None:
        """Reading what is missing would kill the process."""
        with LmdbStore(file.parent, limit_bytes=64 << 20) as store:
            identity = store.identity
        os.truncate(file, 5 * 4096)
        assert self.open_there(identity, start).startswith(f"StoreForeignError {file} is cut short: ")

    def test_where_its_data_are(self, identity: StoreIdentity, tmp_path: Path) -> None:
        identity.path.rename(tmp_path / "moved")
        assert identity.open_file() == f"its data are in {tmp_path}/moved/data.mdb"
        data = (tmp_path / "moved/data.mdb").read_bytes()
        shutil.rmtree(tmp_path / "moved")
        copy = re.search(r"copied from (/proc/\d+/fd/\d+)$", identity.open_file())
        assert copy is not None
        assert Path(copy[1]).read_bytes() == data
