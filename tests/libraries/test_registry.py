"""Libraries: uploaded ones on a real store, and those below the allowed roots."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kaas.v1 import library_pb2
from kaas_core.errors import InvalidArgumentError, InvalidLibraryError, LibraryNotFoundError
from kaasd.libraries import registry as module
from kaasd.libraries.registry import Libraries, describe_library
from kaasd.store.base import Namespace
from kaasd.store.lmdb_store import LmdbStore

PTX = b"""//
.version 8.0
.target sm_90
.address_size 64
.visible .entry nothing()
{
    ret;
}
"""
ID = f"sha256:{hashlib.sha256(PTX).hexdigest()}"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LmdbStore]:
    with LmdbStore(tmp_path / "store", limit_bytes=64 << 20, chunk_bytes=4096) as opened:
        yield opened


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "root" / "lib.ptx").write_bytes(PTX)
    (tmp_path / "root" / "sub" / "lib.ptx").write_bytes(PTX + b"// sub\n")
    (tmp_path / "outside.ptx").write_bytes(PTX)
    return tmp_path / "root"


def keep(libraries: Libraries, content: bytes, file_name: str = "") -> library_pb2.Library:
    library = describe_library(content, file_name)
    libraries.put(library, content)
    return library


class TestUploaded:
    def test_what_was_put_resolves(self, store: LmdbStore) -> None:
        libraries = Libraries(store)
        library = keep(libraries, PTX, "n.ptx")
        assert (library.id, library.size_bytes, library.kind) == (ID, len(PTX), library_pb2.LIBRARY_KIND_PTX)
        resolved = Libraries(store).resolve(ID)
        assert (resolved.content_id, resolved.data) == (ID, PTX)
        assert libraries.find(ID) == library

    @pytest.mark.parametrize("size", [4096 - 512, 4096, 50_000])
    def test_one_of_many_chunks(self, store: LmdbStore, size: int) -> None:
        content = PTX.ljust(size, b"\n")
        libraries = Libraries(store)
        library = keep(libraries, content)
        assert libraries.resolve(library.id).data == content
        assert libraries.list() == [library]

    def test_the_longest_name_fits_the_header(self, store: LmdbStore) -> None:
        libraries = Libraries(store)
        library = keep(libraries, PTX, "n" * 255)
        library.size_bytes = 2**64 - 1
        library.create_time.nanos = 999_999_999
        assert 2 + library.ByteSize() <= module.HEADER_BYTES
        assert libraries.find(ID).file_name == "n" * 255
        assert libraries.resolve(ID).data == PTX

    def test_it_is_current_until_deleted(self, store: LmdbStore) -> None:
        libraries = Libraries(store)
        keep(libraries, PTX)
        resolved = libraries.resolve(ID)
        assert libraries.is_current(resolved)
        libraries.delete(ID)
        assert not libraries.is_current(resolved)
        for call in (libraries.resolve, libraries.find, libraries.delete):
            with pytest.raises(LibraryNotFoundError, match=ID):
                call(ID)
        with store.snapshot() as snapshot:
            assert snapshot.list(namespace=Namespace.LIBRARIES) == []

    @pytest.mark.parametrize("limit", [len(PTX) - 1, len(PTX)])
    def test_one_that_is_larger_than_the_cache_is_read_each_time(
        self, store: LmdbStore, monkeypatch: pytest.MonkeyPatch, limit: int
    ) -> None:
        monkeypatch.setattr(module, "CACHE_BYTES", limit)
        libraries = Libraries(store)
        keep(libraries, PTX)
        first, second = libraries.resolve(ID), libraries.resolve(ID)
        assert first == second
        assert (first is second) == (limit == len(PTX))

    def test_listing(self, store: LmdbStore) -> None:
        libraries = Libraries(store)
        kept = sorted((keep(libraries, PTX + b"\n" * n, str(n)) for n in range(5)), key=lambda library: library.id)
        assert libraries.list() == kept
        assert libraries.list(after=kept[1].id, limit=2) == kept[2:4]

    @pytest.mark.parametrize("content", [b"", b"hello", b"\x7fELF", bytes(100)])
    def test_what_is_no_gpu_code(self, store: LmdbStore, content: bytes) -> None:
        with pytest.raises(InvalidLibraryError, match=r"^x\.so: "):
            describe_library(content, "x.so")

    @pytest.mark.parametrize("reference", ["", "lib.ptx", "sha256:", "sha256:" + "A" * 64, ID + "0", "../lib.ptx"])
    def test_what_is_no_reference(self, store: LmdbStore, reference: str) -> None:
        with pytest.raises(InvalidArgumentError):
            Libraries(store).resolve(reference)

    @pytest.mark.parametrize("library_id", ["", "lib.ptx", "sha256:", "sha256:" + "A" * 64, ID + "0"])
    def test_what_is_not_an_id(self, store: LmdbStore, library_id: str) -> None:
        for call in (Libraries(store).find, Libraries(store).delete):
            with pytest.raises(InvalidArgumentError, match="is not a content id"):
                call(library_id)


class TestFiles:
    def test_a_file_below_a_root(self, store: LmdbStore, root: Path) -> None:
        libraries = Libraries(store, [root])
        assert libraries.resolve(f"{root}/lib.ptx").data == PTX
        resolved = libraries.resolve(f"{root}/sub/lib.ptx")
        assert resolved.content_id == f"sha256:{hashlib.sha256(PTX + b'// sub' + bytes([10])).hexdigest()}"

    def test_the_second_root(self, store: LmdbStore, root: Path) -> None:
        libraries = Libraries(store, [root / "sub", root])
        assert libraries.resolve(f"{root}/lib.ptx").content_id == ID

    def test_a_root_that_is_a_link(self, store: LmdbStore, root: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(root)
        libraries = Libraries(store, [tmp_path / "link"])
        assert libraries.resolve(f"{tmp_path}/link/lib.ptx").data == PTX
        assert libraries.resolve(f"{root}/lib.ptx").data == PTX

    def test_a_link_within_a_root(self, store: LmdbStore, root: Path) -> None:
        (root / "current.ptx").symlink_to("sub/lib.ptx")
        assert Libraries(store, [root]).resolve(f"{root}/current.ptx").data == PTX + b"// sub\n"

    def test_everything_else_looks_like_a_missing_file(self, store: LmdbStore, root: Path, tmp_path: Path) -> None:
        (root / "out.ptx").symlink_to(tmp_path / "outside.ptx")
        (root / "out").symlink_to(tmp_path)
        (root / "dangling.ptx").symlink_to(tmp_path / "absent.ptx")
        (root / "loop").symlink_to("loop")
        (tmp_path / "in.ptx").symlink_to(root / "lib.ptx")
        (tmp_path / "root2").mkdir()
        (tmp_path / "root2" / "lib.ptx").write_bytes(PTX)
        os.mkfifo(root / "fifo")
        (root / "device").symlink_to("/dev/zero")
        libraries = Libraries(store, [root])
        messages = set()
        for name in [
            "root/absent.ptx",
            "outside.ptx",
            "absent.ptx",
            "root/../outside.ptx",
            "root/sub/../lib.ptx",
            "root/out.ptx",
            "root/out/outside.ptx",
            "root/dangling.ptx",
            "root/loop",
            "in.ptx",
            "root2/lib.ptx",
            "root",
            "root/sub",
            "root/fifo",
            "root/device",
            "root/lib.ptx/x",
            "root/" + "n" * 300,
            "root/nul\0.ptx",
        ]:
            reference = f"{tmp_path}/{name}"
            with pytest.raises(LibraryNotFoundError) as raised:
                libraries.resolve(reference)
            messages.add(raised.value.message.split(": ")[1])
        assert messages == {"there is no such file below a library root"}

    @pytest.mark.parametrize("swapped", ["sub", "sub/lib.ptx"])
    def test_a_link_swapped_in_while_a_file_is_opened(
        self, store: LmdbStore, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swapped: str
    ) -> None:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "lib.ptx").write_bytes(PTX)
        real_open = os.open

        def open_after_swap(path: Path, flags: int) -> int:
            (root / swapped).rename(tmp_path / "moved")
            (root / swapped).symlink_to(tmp_path / "elsewhere" / swapped[4:])
            return real_open(path, flags)

        monkeypatch.setattr(os, "open", open_after_swap)
        with pytest.raises(LibraryNotFoundError, match="no such file below a library root"):
            Libraries(store, [root]).resolve(f"{root}/sub/lib.ptx")

    def test_a_file_outside_is_not_even_opened(
        self, store: LmdbStore, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (root / "out.ptx").symlink_to(tmp_path / "outside.ptx")
        monkeypatch.setattr(os, "open", lambda *_: pytest.fail("the file was opened"))
        with pytest.raises(LibraryNotFoundError):
            Libraries(store, [root]).resolve(f"{root}/out.ptx")

    def test_without_roots_no_file_is_a_library(self, store: LmdbStore, root: Path) -> None:
        with pytest.raises(LibraryNotFoundError):
            Libraries(store).resolve(f"{root}/lib.ptx")

    def test_a_file_that_did_not_change_is_not_read_again(
        self, store: LmdbStore, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "SETTLED_NS", 0)  # Else the test would have to wait until the file is old enough.
        libraries = Libraries(store, [root])
        first = libraries.resolve(f"{root}/lib.ptx")
        monkeypatch.setattr(os, "open", lambda *_: pytest.fail("the file was opened"))
        assert libraries.resolve(f"{root}/lib.ptx") is first
        assert libraries.is_current(first)

    def test_a_file_that_is_too_young_is_never_current(
        self, store: LmdbStore, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "SETTLED_NS", 10**18)
        libraries = Libraries(store, [root])
        first = libraries.resolve(f"{root}/lib.ptx")
        assert not libraries.is_current(first)
        assert libraries.resolve(f"{root}/lib.ptx") is not first

    def test_a_file_that_changed_just_now_is_read_again(self, store: LmdbStore, root: Path) -> None:
        libraries = Libraries(store, [root])
        for number in range(100):
            content = PTX.replace(b"nothing", b"numb%03d" % number)
            (root / "lib.ptx").write_bytes(content)
            assert libraries.resolve(f"{root}/lib.ptx").data == content

    @pytest.mark.parametrize("change", ["written", "replaced", "touched back", "removed", "link moved"])
    def test_a_file_that_changed(self, store: LmdbStore, root: Path, change: str) -> None:
        path, other = root / "lib.ptx", PTX.replace(b"nothing", b"changed")
        if change == "link moved":
            path = root / "link.ptx"
            path.symlink_to("lib.ptx")
            (root / "other.ptx").write_bytes(other)
        libraries = Libraries(store, [root])
        first = libraries.resolve(str(path))
        assert first.data == PTX
        before = path.stat()
        match change:
            case "written":
                path.write_bytes(other)
            case "replaced":
                (root / "new").write_bytes(other)
                (root / "new").rename(path)
            case "touched back":
                path.write_bytes(other)
                os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            case "removed":
                path.unlink()
            case "link moved":
                path.unlink()
                path.symlink_to("other.ptx")
        assert not libraries.is_current(first)
        if change == "removed":
            with pytest.raises(LibraryNotFoundError):
                libraries.resolve(str(path))
        else:
            assert libraries.resolve(str(path)).data == other

    def test_a_file_that_changes_while_it_is_read(self, store: LmdbStore, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        libraries, path = Libraries(store, [root]), root / "lib.ptx"
        status = os.fstat

        def fstat_and_write(descriptor: int) -> os.stat_result:
            seen = status(descriptor)
            path.write_bytes(PTX * 2)
            return seen

        with monkeypatch.context() as patched:
            patched.setattr(os, "fstat", fstat_and_write)
            with pytest.raises(InvalidLibraryError, match="changed while it was read"):
                libraries.resolve(str(path))
        assert libraries.resolve(str(path)).data == PTX * 2

    def test_a_file_that_is_too_large(self, store: LmdbStore, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MAX_LIBRARY_BYTES", len(PTX))
        libraries = Libraries(store, [root])
        assert libraries.resolve(f"{root}/lib.ptx").data == PTX
        with pytest.raises(InvalidLibraryError, match="is larger than"):
            libraries.resolve(f"{root}/sub/lib.ptx")
