"""Room on the disk for what a store is going to write, taken before it is needed.

LMDB copies the pages that it changes, so a delete needs room too: on a full disk a store could not be emptied. So the file is
kept longer than what is in use, with blocks for all of it. A value is written only where its blocks, and those kept for deletes,
are there.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import resource
import shutil
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from kaas_core.errors import StoreFullError
from kaasd.store.lmdb_file import LmdbFile, Meta

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NEW_FILE_PREFIX = ".kaasd-new-"
"""Of a file that is not whole yet. Nobody else names one so: what has this name is removed at a start."""
_READER_BYTES, _READERS_BEFORE = 64, 2
"""Of LMDB's lock file: one reader's slot, and how many slots' room is before the second."""
_FULL_BELOW_BYTES = 64 << 20
"""Some chunks: a full disk cuts a write short, which LMDB calls EIO, and what it had taken may be free again afterwards."""
_MIN_KEPT_BYTES, _MAX_KEPT_BYTES = 256 << 10, 8 << 20
"""The most is for freeing 1 GiB at once."""
_TREE_BYTES = 64 << 10
"""Pages that a transaction rewrites beside what it writes."""
_MIN_STEP_BYTES, _MAX_STEP_BYTES = 64 << 10, 16 << 20

_MAX_FILLED_BYTES = 16 << 20
"""Of holes, when a store is opened; what makes larger ones is that they were given back."""
_FILL_BYTES, _FILL_EVERY_BYTES, _FILL_EVERY = 16 << 20, 4 << 20, 64
"""In a file with holes that much more of the free pages has blocks, and again after so many bytes, or transactions of 64 KiB
beside their values: so four processes may write at once and leave what is kept for deletes. It takes a millisecond or two."""
_BLOCK_BYTES = 512
"""Of ``st_blocks``, whatever the file system."""
_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02
"""Of ``fallocate`` in Linux."""

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def keep_for_deletes(size_bytes: int) -> int:
    """Return how much of ``size_bytes`` only deletes may use.

    LMDB keeps the numbers of free pages in pages, at most 8 bytes for 4096 (1/512), and a delete rewrites about ten pages before
    the ones it frees can be used again.
    """
    return max(size_bytes // 128, _MIN_KEPT_BYTES)


class FileSize(NamedTuple):
    """Of a file."""

    file_bytes: int
    """How long it is."""
    disk_bytes: int
    """How much the disk has of it. May be more, by what tells where it is."""

    @property
    def has_holes(self) -> bool:
        """Whether some of it is not on the disk."""
        return self.disk_bytes < self.file_bytes


class DiskRoom:
    """The room that LMDB's file has. Used by who holds LMDB's write lock, so that nobody else changes the file meanwhile.

    LMDB takes the pages that are free, and only then those behind the last. So room is kept in both places.
    """

    def __init__(self, file: Path, *, page_bytes: int, limit_bytes: int) -> None:
        """``file`` grows to ``limit_bytes`` at most. Raises ``OSError``, ``StoreForeignError``."""
        self._file = file
        self._page_bytes = page_bytes
        self._limit_bytes = limit_bytes // page_bytes * page_bytes
        self.descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        """Of the file."""
        try:
            self.pages = LmdbFile(file, self.descriptor)
            """The same file, to be read."""
        except BaseException:
            os.close(self.descriptor)
            raise
        self._filled_at = -_FILL_EVERY
        """The transaction after which the free pages that come first were given blocks, where there were holes."""
        self._asked_bytes = 0
        """Of this process since then."""

    def close(self) -> None:
        self.pages.close()
        os.close(self.descriptor)

    @property
    def size(self) -> FileSize:
        """How long the file is, and how much of it is on the disk."""
        status = os.fstat(self.descriptor)
        return FileSize(status.st_size, status.st_blocks * _BLOCK_BYTES)

    def take(self, last_page: int, used_bytes: int, size_bytes: int, asked_bytes: int) -> bool:
        """Have blocks for ``size_bytes`` beside the ``used_bytes`` of all values; one transaction takes ``asked_bytes`` in all.

        ``last_page`` is the last one in use, or free. Returns whether the file has no holes, and room behind that page for all of
        this, so that nothing need be done for less. Raises ``StoreFullError`` where there are no blocks, neither on the disk nor
        among the pages that are free in the file.
        """
        end = (last_page + 1) * self._page_bytes
        wanted = self._wanted(end + asked_bytes)
        size = self.size
        if wanted <= size.file_bytes and not size.has_holes:
            return True
        try:
            if size.has_holes:
                self._fill_before(asked_bytes, end)
            if wanted > size.file_bytes:
                self._grow(size.file_bytes, wanted)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            blocks = min(size)  # without the holes
            if self._wanted(used_bytes + size_bytes) > blocks:
                raise StoreFullError(
                    f"{room_problem(error, self._file.parent)}: {size_bytes} bytes are needed, {used_bytes} are in use,"
                    f" and {self._file} has {blocks} bytes and cannot grow ({error.strerror})",
                    {"asked_bytes": str(size_bytes), "used_bytes": str(used_bytes)},
                ) from None
            return False
        size = self.size
        return wanted <= size.file_bytes and not size.has_holes

    def fill_holes(self) -> None:
        """Have blocks for the whole file: LMDB leaves out pages that one transaction takes and frees again.

        Where there are not enough the holes stay, and so where they are what was given back. Raises ``OSError`` where something
        else is wrong.
        """
        size = self.size
        if 0 < size.file_bytes - size.disk_bytes <= _MAX_FILLED_BYTES:
            try:
                _take_blocks(self.descriptor, 0, size.file_bytes)
            except OSError as error:
                if error.errno not in NO_SPACE:
                    raise

    def give_back(self, first_page: int, end_page: int) -> bool:
        """Give the disk back the blocks of a range of pages, which read as zeros from then on.

        Returns False where the file system cannot do that. Raises ``OSError``.
        """
        start = first_page * self._page_bytes
        return _fallocated(self.descriptor, _PUNCH_HOLE | _KEEP_SIZE, start, end_page * self._page_bytes - start)

    def cut(self, end_page: int) -> None:
        """Cut off what is behind ``end_page`` pages. Raises ``OSError``."""
        if end_page * self._page_bytes < self.size.file_bytes:
            os.ftruncate(self.descriptor, end_page * self._page_bytes)

    def keep(self, meta: Meta) -> None:
        """Cut off what is more than is kept behind the last page, and have blocks for as much of what is free.

        Raises ``OSError``.
        """
        end = (meta.last_page + 1) * self._page_bytes
        # A process with a larger limit may have made it longer than this one would.
        self.cut(max(self._wanted(end) // self._page_bytes, meta.last_page + 1))
        try:
            self._fill_first(meta, _TREE_BYTES + _kept(end))
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise

    def _fill_before(self, asked_bytes: int, end: int) -> None:
        """Have blocks for the free pages that LMDB takes first, for a transaction and the next ones. Raises ``OSError``."""
        meta = self.pages.latest_meta()
        self._asked_bytes += asked_bytes
        if self._asked_bytes > _FILL_EVERY_BYTES or meta.transaction - self._filled_at > _FILL_EVERY:
            self._fill_first(meta, asked_bytes + _FILL_BYTES + _kept(end))
            self._filled_at, self._asked_bytes = meta.transaction, 0

    def _fill_first(self, meta: Meta, size_bytes: int) -> None:
        """Have blocks for so much of the free pages, those first that LMDB takes first. Raises ``OSError``."""
        missing = -(-size_bytes // self._page_bytes)
        for _, pages in self.pages.free_pages(meta):
            for first, end in runs(pages[-missing:]):
                _take_blocks(self.descriptor, first * self._page_bytes, end * self._page_bytes)
            missing -= len(pages)
            if missing <= 0:
                return

    def _grow(self, size_bytes: int, wanted: int) -> None:
        """Have blocks up to ``wanted``, or some more. Raises ``OSError``."""
        step = min(max(size_bytes // 16, _MIN_STEP_BYTES), _MAX_STEP_BYTES)
        try:
            _take_blocks(self.descriptor, size_bytes, self._whole_pages(wanted + step))
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            _take_blocks(self.descriptor, size_bytes, wanted)

    def _wanted(self, used_bytes: int) -> int:
        """Return how long the file must be for so much, with what is kept for deletes."""
        return self._whole_pages(used_bytes + _TREE_BYTES + _kept(used_bytes + _TREE_BYTES))

    def _whole_pages(self, size_bytes: int) -> int:
        return min(-(-size_bytes // self._page_bytes) * self._page_bytes, self._limit_bytes)


def runs(pages: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the runs without a gap of numbers that fall: the least of each, and one more than its greatest. They fall too."""
    at = 0
    while at < len(pages):
        sum_in_run = pages[at] + at  # along a run the number falls by one where the index grows by one
        end = bisect_right(range(len(pages)), -sum_in_run, at, key=lambda index: -pages[index] - index)
        yield pages[end - 1], pages[at] + 1
        at = end


def _kept(size_bytes: int) -> int:
    return min(keep_for_deletes(size_bytes), _MAX_KEPT_BYTES)


def new_file_prefix(file: Path) -> str:
    """Return how the name of a file begins that is to take the place of ``file``, while it is not whole."""
    return f"{NEW_FILE_PREFIX}{file.name}-"


def take_first_room(file: Path) -> None:
    """Have blocks for what a new store keeps for deletes. Raises ``OSError``."""
    with file.open("r+b") as opened:
        _take_blocks(opened.fileno(), 0, file.stat().st_size + _TREE_BYTES + _MIN_KEPT_BYTES)


def take_lock_file(path: Path, max_readers: int) -> None:
    """Have blocks for LMDB's lock file, before LMDB opens it, and make it where there is none. Raises ``OSError``.

    LMDB maps it and writes to the map, which kills the process where a page has no block yet and the disk is full. A file that is
    there stays as long as it is: another process may have mapped it, and reads no further than it was.
    """
    size = (_READERS_BEFORE + max_readers) * _READER_BYTES
    if not path.exists():
        descriptor, name = tempfile.mkstemp(prefix=NEW_FILE_PREFIX, suffix=".mdb", dir=path.parent)
        try:
            os.ftruncate(descriptor, size)
            _take_blocks(descriptor, 0, size)
            with suppress(FileExistsError):
                os.link(name, path)
        finally:
            os.close(descriptor)
            Path(name).unlink()
        return
    if fill_lock_file(path):
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        _take_blocks(descriptor, 0, os.fstat(descriptor).st_size or size)
    finally:
        os.close(descriptor)


def fill_lock_file(path: Path) -> bool:
    """Have blocks for the whole of the lock file that this process has open; return whether it has. Raises ``OSError``.

    It is not opened: closing any descriptor of it would free the locks that LMDB has on it.
    """
    wanted = path.stat()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # The one that lists them is closed already.
            found = link.stat()
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                _take_blocks(int(link.name), 0, found.st_size)
                return True
    return False


def is_full(error: Exception, path: Path) -> bool:
    """Whether ``error``, met by LMDB or the system in the directory ``path``, is that no room could be had for a file."""
    return bool(room_problem(error, path))


def room_problem(error: Exception, path: Path) -> str:
    """Return why no room could be had for a file in the directory ``path``; nothing where ``error`` is something else."""
    # py-lmdb's own errors, which LMDB does not know, have no code.
    code = error.errno if isinstance(error, OSError) else getattr(error, "code", 0)
    limit = max_file_bytes()
    if code == errno.EIO and not isinstance(error, OSError):
        # That is what LMDB calls a write that was cut short.
        size = max((file.stat().st_size for file in path.glob("*.mdb")), default=0)
        if size + _FULL_BELOW_BYTES > limit:
            code = errno.EFBIG
        elif shutil.disk_usage(path).free < _FULL_BELOW_BYTES:
            code = errno.ENOSPC
    if code == errno.EFBIG:
        if limit == math.inf:
            return "the store is full: its file system allows no longer file"
        return f"the store is full: this process may write files of at most {limit} bytes (ulimit -f, LimitFSIZE=)"
    if code == errno.EDQUOT:
        return "the disk quota of the file system that holds the store is used up"
    return "the file system that holds the store is full" if code == errno.ENOSPC else ""


def max_file_bytes() -> float:
    """Return how long this process may make a file."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return math.inf if limit == resource.RLIM_INFINITY else limit


def _take_blocks(descriptor: int, start: int, end: int) -> None:
    """Give a range of a file blocks, and the file that length, unless the file system cannot do so. Raises ``OSError``.

    ``os.posix_fallocate`` is something else: where the file system cannot, the C library reads bytes and writes them back, which
    is not safe while another process writes.
    """
    _fallocated(descriptor, 0, start, end - start)


def _fallocated(descriptor: int, mode: int, start: int, size: int) -> bool:
    """Return whether the file system can do so. Raises ``OSError``."""
    while _fallocate(descriptor, mode, start, size) != 0:
        code = ctypes.get_errno()
        if code in (errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True
