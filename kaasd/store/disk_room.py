"""Room on the disk for what a store is going to write, taken before it is needed.

LMDB copies the pages that it changes, so a delete needs room too: on a full disk a store could not be emptied. So the file is
kept longer than what is in use, with blocks for all of it. A value is written only where its blocks, and those kept for deletes,
are there.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kaas_core.errors import StoreFullError

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READER_BYTES, _READERS_BEFORE = 64, 2
"""Of LMDB's lock file: one reader's slot, and how many slots' room is before the second."""
_FULL_BELOW_BYTES = 64 << 20
"""Some chunks: a full disk cuts a write short, which LMDB calls EIO, and what it had taken may be free again afterwards."""
_MIN_KEPT_BYTES, _MAX_KEPT_BYTES = 256 << 10, 8 << 20
"""The most is for freeing 1 GiB at once."""
_TREE_BYTES = 64 << 10
"""Pages that a transaction rewrites beside what it writes."""
_MIN_STEP_BYTES, _MAX_STEP_BYTES = 64 << 10, 16 << 20

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def keep_for_deletes(size_bytes: int) -> int:
    """Return how much of ``size_bytes`` only deletes may use.

    LMDB keeps the numbers of free pages in pages, at most 8 bytes for 4096 (1/512), and a delete rewrites about ten pages before
    the ones it frees can be used again.
    """
    return max(size_bytes // 128, _MIN_KEPT_BYTES)


class DiskRoom:
    """The room that LMDB's file has. Used by who holds LMDB's write lock, so that nobody else changes the file meanwhile."""

    def __init__(self, file: Path, *, page_bytes: int, limit_bytes: int, last_page: Callable[[], int]) -> None:
        """``file`` grows to ``limit_bytes`` at most. ``last_page`` returns the last one in use. Raises ``OSError``."""
        self._file = file
        self._page_bytes = page_bytes
        self._limit_bytes = limit_bytes // page_bytes * page_bytes
        self._last_page = last_page
        self._descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        self._size_bytes = 0
        """Of the file, at least: it never shrinks."""

    def close(self) -> None:
        os.close(self._descriptor)

    def take(self, used_bytes: int, size_bytes: int, asked_bytes: int) -> None:
        """Have blocks for ``size_bytes`` beside the ``used_bytes`` of all values; one transaction takes ``asked_bytes`` in all.

        Raises ``StoreFullError`` where there are none, neither on the disk nor among the pages that are free in the file.
        """
        end = (self._last_page() + 1) * self._page_bytes
        if self._wanted(end + asked_bytes) <= self._size_bytes:
            return
        status = os.fstat(self._descriptor)
        self._size_bytes = status.st_size
        wanted = self._wanted(end + asked_bytes)
        if wanted <= self._size_bytes:
            return
        step = min(max(self._size_bytes // 16, _MIN_STEP_BYTES), _MAX_STEP_BYTES)
        for size in (self._whole_pages(wanted + step), wanted):
            try:
                _take_blocks(self._descriptor, self._size_bytes, size)
            except OSError as error:
                if error.errno not in NO_SPACE:
                    raise
                refusal = error
            else:
                self._size_bytes = size
                return
        blocks = min(status.st_size, status.st_blocks * 512)  # without the holes
        if self._wanted(used_bytes + size_bytes) > blocks:
            raise StoreFullError(
                f"the file system that holds the store is full: {size_bytes} bytes are needed, {used_bytes} are in use,"
                f" and {self._file} has {blocks} bytes and cannot grow ({refusal.strerror})",
                {"asked_bytes": str(size_bytes), "used_bytes": str(used_bytes)},
            )

    def fill_holes(self) -> None:
        """Have blocks for the whole file: LMDB leaves out pages that one transaction takes and frees again.

        Where there are not enough, the holes stay. Raises ``OSError`` where something else is wrong.
        """
        status = os.fstat(self._descriptor)
        if status.st_blocks * 512 < status.st_size:
            try:
                _take_blocks(self._descriptor, 0, status.st_size)
            except OSError as error:
                if error.errno not in NO_SPACE:
                    raise

    def _wanted(self, used_bytes: int) -> int:
        """Return how long the file must be for so much, with what is kept for deletes."""
        needed = used_bytes + _TREE_BYTES
        return self._whole_pages(needed + min(keep_for_deletes(needed), _MAX_KEPT_BYTES))

    def _whole_pages(self, size_bytes: int) -> int:
        return min(-(-size_bytes // self._page_bytes) * self._page_bytes, self._limit_bytes)


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
        descriptor, name = tempfile.mkstemp(prefix="new-", suffix=".mdb", dir=path.parent)
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
    if isinstance(error, OSError):
        return error.errno in NO_SPACE
    code = getattr(error, "code", 0)  # py-lmdb's own errors, which LMDB does not know, have none
    if code != errno.EIO:
        return code in NO_SPACE
    # That is what LMDB calls a write that was cut short.
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    size = max((file.stat().st_size for file in path.glob("*.mdb")), default=0)
    return (limit != resource.RLIM_INFINITY and size + _FULL_BELOW_BYTES > limit) or (
        shutil.disk_usage(path).free < _FULL_BELOW_BYTES
    )


def _take_blocks(descriptor: int, start: int, end: int) -> None:
    """Give a range of a file blocks, and the file that length, unless the file system cannot do so. Raises ``OSError``.

    ``os.posix_fallocate`` is something else: where the file system cannot, the C library reads bytes and writes them back, which
    is not safe while another process writes.
    """
    while _fallocate(descriptor, 0, start, end - start) != 0:
        code = ctypes.get_errno()
        if code in (errno.EOPNOTSUPP, errno.ENOSYS):
            return
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
