"""Files of GPU code: those uploaded, kept in the store by their content's hash, and those below the allowed roots.

An uploaded library is one value of the store: a header of fixed size with what is known of it, then the file's bytes. So both
come and go in one commit.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeAlias

from cachetools import LRUCache

from kaas.v1 import library_pb2
from kaas_core.errors import (
    DataDamagedError,
    InvalidArgumentError,
    InvalidLibraryError,
    KeyNotFoundError,
    LibraryNotFoundError,
)
from kaas_core.validation import is_content_id
from kaas_core.violations import shown
from kaasd.libraries import UnsupportedLibrary
from kaasd.libraries.image import ImageKind, read_image
from kaasd.store.base import DEFAULT_ACCOUNT, KeyValueStore, Namespace, Snapshot, Write

MAX_LIBRARY_BYTES = 1 << 30
"""A library is read into memory as a whole; the largest of CUDA's own are about half of this."""
MAX_FILE_NAME_BYTES = 255
CACHE_BYTES = 256 << 20
SETTLED_NS = 100_000_000
"""Linux stamps files by a clock that ticks every 4 or 10 ms, so a file that changed just before it was read may change again
and keep its stamp."""
HEADER_BYTES = 512
"""Two bytes of length, then a ``kaas.v1.Library`` of at most 371 bytes, then zeros."""

_KINDS = {
    ImageKind.PTX: library_pb2.LIBRARY_KIND_PTX,
    ImageKind.CUBIN: library_pb2.LIBRARY_KIND_CUBIN,
    ImageKind.FATBIN: library_pb2.LIBRARY_KIND_FATBIN,
    ImageKind.SHARED_OBJECT: library_pb2.LIBRARY_KIND_SHARED_OBJECT,
    ImageKind.WRAPPER: library_pb2.LIBRARY_KIND_WRAPPER,
}

Stamp: TypeAlias = tuple[int, ...]
"""Device, inode, size, and times of change in ns: while they are the same, so is the file."""


@dataclass(frozen=True, slots=True)
class ResolvedLibrary:
    """A library's bytes."""

    reference: str
    """What it was asked for as."""
    content_id: str
    """``sha256:`` and 64 hex digits."""
    data: bytes
    stamp: Stamp | None
    """Of the file, empty where it changed just before it was read; None for an uploaded library, whose bytes cannot change."""


class LibrarySource(Protocol):
    """What has the bytes of the libraries that requests name. Used by one thread."""

    def resolve(self, reference: str) -> ResolvedLibrary:
        """Return a library. Raises ``LibraryNotFoundError``, ``InvalidArgumentError``, ``InvalidLibraryError``."""

    def is_current(self, resolved: ResolvedLibrary) -> bool:
        """Return whether resolving the same reference would give the same bytes."""


class Libraries:
    """The libraries that requests may name. The methods block. ``resolve`` is for one thread, the others for any."""

    def __init__(self, store: KeyValueStore, roots: Sequence[Path] = ()) -> None:
        self._store = store
        # A root may be spelt through a symbolic link; both spellings are below it.
        self._real_roots = [Path(os.path.realpath(root)) for root in roots]
        self._spelt_roots = [*roots, *self._real_roots]
        self._resolved: LRUCache[str, ResolvedLibrary] = LRUCache(CACHE_BYTES, lambda library: len(library.data))

    def resolve(self, reference: str) -> ResolvedLibrary:
        """Return the library of a content id or of an absolute path below a root.

        Raises ``LibraryNotFoundError``, ``DataDamagedError`` (an uploaded one), ``InvalidArgumentError`` (neither of the two),
        ``InvalidLibraryError`` (too large).
        """
        known = self._resolved.get(reference)
        if known is not None and self.is_current(known):
            return known
        if is_content_id(reference):
            resolved = self._read_uploaded(reference)
        elif reference.startswith("/"):
            resolved = self._read_file(reference)
        else:
            raise InvalidArgumentError(f"{shown(reference)} must be an absolute path, or sha256: and 64 lower-case hex digits")
        if len(resolved.data) <= CACHE_BYTES:
            self._resolved[reference] = resolved
        return resolved

    def is_current(self, resolved: ResolvedLibrary) -> bool:
        """Return whether resolving the same reference would give the same bytes."""
        try:
            if resolved.stamp is not None:
                return _stamp(os.stat(resolved.reference)) == resolved.stamp  # noqa: PTH116  (a Path costs as much again)
            with self._store.snapshot() as snapshot:
                snapshot.stat(resolved.content_id, Namespace.LIBRARIES)
        except (OSError, KeyNotFoundError):
            return False
        return True

    def put(self, library: library_pb2.Library, content: bytes, group: str = DEFAULT_ACCOUNT) -> None:
        """Store what ``describe_library`` described; it counts for ``group``. Raises ``StoreFullError``, ``GroupLimitError``."""
        described = library.SerializeToString()
        header = (len(described).to_bytes(2, "little") + described).ljust(HEADER_BYTES, b"\0")
        staged = self._store.stage()
        try:
            staged.append(header)
            staged.append(content)
            self._store.commit([Write(library.id, staged, namespace=Namespace.LIBRARIES, account=group)]).result()
        finally:
            staged.close()

    def find(self, library_id: str) -> library_pb2.Library:
        """Return what is known of an uploaded library.

        Raises ``LibraryNotFoundError``, ``DataDamagedError``, ``InvalidArgumentError``.
        """
        _check_id(library_id)
        try:
            with self._store.snapshot() as snapshot:
                return _read_header(snapshot, library_id)
        except KeyNotFoundError:
            raise _no_such_id(library_id) from None

    def find_whole(self, library_id: str) -> library_pb2.Library:
        """Return the same, once all of it has been read. Raises as ``find``."""
        library = self.find(library_id)
        with self._store.snapshot() as snapshot:
            for piece in snapshot.pieces(library_id, namespace=Namespace.LIBRARIES):
                del piece
        return library

    def list(self, after: str = "", limit: int = 100) -> list[library_pb2.Library]:
        """Return at most ``limit`` uploaded libraries whose id is greater than ``after``, in order; of damaged ones only ids."""
        with self._store.snapshot() as snapshot:
            entries = snapshot.list(after=after, limit=limit, namespace=Namespace.LIBRARIES)
            return [_read_listed(snapshot, entry.key) for entry in entries]

    def delete(self, library_id: str) -> None:
        """Delete an uploaded library. Raises ``LibraryNotFoundError``, ``InvalidArgumentError`` (malformed id)."""
        _check_id(library_id)
        try:
            self._store.delete(library_id, Namespace.LIBRARIES).result()
        except KeyNotFoundError:
            raise _no_such_id(library_id) from None

    def _read_uploaded(self, library_id: str) -> ResolvedLibrary:
        try:
            with self._store.snapshot() as snapshot:
                content = b"".join(snapshot.pieces(library_id, HEADER_BYTES, namespace=Namespace.LIBRARIES))
        except KeyNotFoundError:
            raise _no_such_id(library_id) from None
        return ResolvedLibrary(library_id, library_id, content, None)

    def _read_file(self, reference: str) -> ResolvedLibrary:
        """Read a file whose path, links resolved, lies below a root.

        A file elsewhere and a missing one give the same error, so that nobody can ask what exists.
        """
        missing = LibraryNotFoundError(f"library {shown(reference)}: there is no such file below a library root")
        path = PurePosixPath(reference)
        if ".." in path.parts or not any(path.is_relative_to(root) for root in self._spelt_roots):
            raise missing
        try:
            real = Path(os.path.realpath(reference))
            if not self._below_root(real):
                raise missing
            # O_NONBLOCK, so that opening a FIFO returns; a link swapped in after realpath shows in the descriptor's own path.
            descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                before = os.fstat(descriptor)
                opened = Path(f"/proc/self/fd/{descriptor}").readlink()
                if not stat.S_ISREG(before.st_mode) or not self._below_root(opened):
                    raise missing
                if before.st_size > MAX_LIBRARY_BYTES:
                    raise InvalidLibraryError(f"library {shown(reference)} is larger than {MAX_LIBRARY_BYTES} bytes")
                content = file.read(before.st_size + 1)
                after = os.fstat(descriptor)
        except (OSError, ValueError):
            raise missing from None
        if _stamp(before) != _stamp(after):
            raise InvalidLibraryError(f"library {shown(reference)} changed while it was read")
        settled = time.time_ns() - max(after.st_mtime_ns, after.st_ctime_ns) > SETTLED_NS
        return ResolvedLibrary(reference, content_id(content), content, _stamp(after) if settled else ())

    def _below_root(self, real_path: Path) -> bool:
        return any(real_path.is_relative_to(root) for root in self._real_roots)


def describe_library(content: bytes, file_name: str = "") -> library_pb2.Library:
    """Return what ``content`` is. Raises ``InvalidLibraryError`` where it is not a library."""
    try:
        kind = _KINDS[read_image(content).kind]
    except UnsupportedLibrary as error:
        raise InvalidLibraryError(f"{file_name or 'the library'}: {error}") from None
    library = library_pb2.Library(id=content_id(content), file_name=file_name, size_bytes=len(content), kind=kind)
    library.create_time.FromNanoseconds(time.time_ns())
    return library


def content_id(content: bytes) -> str:
    """Return ``sha256:`` and the hash of ``content``."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read_header(snapshot: Snapshot, library_id: str) -> library_pb2.Library:
    header = b"".join(snapshot.pieces(library_id, 0, HEADER_BYTES, Namespace.LIBRARIES))
    return library_pb2.Library.FromString(header[2 : 2 + int.from_bytes(header[:2], "little")])


def _read_listed(snapshot: Snapshot, library_id: str) -> library_pb2.Library:
    try:
        return _read_header(snapshot, library_id)
    except DataDamagedError:
        return library_pb2.Library(id=library_id, damaged=True)


def _check_id(library_id: str) -> None:
    if not is_content_id(library_id):
        raise InvalidArgumentError(f"{shown(library_id)} is not a content id, which is sha256: and 64 lower-case hex digits")


def _no_such_id(library_id: str) -> LibraryNotFoundError:
    return LibraryNotFoundError(f"there is no uploaded library {library_id}")
