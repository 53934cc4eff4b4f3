"""A copy of the whole store as a tar file, made while the store is used."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from glob import escape
from itertools import chain
from pathlib import Path

from kaas_core.errors import CancelledError, StoreFullError
from kaasd.store.directory import DATA_FILE
from kaasd.store.disk_room import NEW_FILE_PREFIX, new_file_prefix
from kaasd.store.environment import Environment, translate

PIECE_BYTES = 1 << 20
LEFT_FREE_BYTES = 64 << 20
"""Of the disk, for the store itself: some chunks."""
_PREFIX = ".kaasd-backup-"
"""Nobody else names a file so: what has this name is removed at a start."""
_END_BYTES = 2 * tarfile.BLOCKSIZE


class StoreBackup:
    """See ``base.Backup``. The copy is a file that has no name, so that a process takes it along however it ends."""

    def __init__(self, environment: Environment) -> None:
        """Raises ``StoreFullError``, ``InternalError``."""
        self._environment = environment
        self._lock = threading.Lock()
        self._stopped = False
        try:
            self._file = tempfile.TemporaryFile(prefix=_PREFIX, dir=environment.path)  # noqa: SIM115 (closed in ``close``)
        except OSError as error:
            raise translate(error, environment.path) from error
        self._target = os.dup(self._file.fileno())
        self._parts = b"", 0, b""
        """Of the tar file: what stands before the copy, the copy's size in bytes, what stands behind it."""
        self.size_bytes = 0

    def make(self) -> None:
        environment = self._environment
        try:
            self._check_room()
            environment.copy(self._target)
        except Exception as error:
            if self._stopped:
                raise CancelledError("the backup was stopped") from error
            translated = translate(error, environment.path)
            if isinstance(translated, StoreFullError):
                raise StoreFullError(f"there is no room for a copy of the store: {translated}", translated.metadata) from error
            raise translated from error
        copy_bytes = os.fstat(self._target).st_size
        entry = tarfile.TarInfo(DATA_FILE)
        entry.size, entry.mode, entry.mtime = copy_bytes, 0o600, int(time.time())
        header = entry.tobuf(tarfile.GNU_FORMAT)
        whole = len(header) + copy_bytes + -copy_bytes % tarfile.BLOCKSIZE + _END_BYTES
        self.size_bytes = whole + -whole % tarfile.RECORDSIZE
        self._parts = header, copy_bytes, bytes(self.size_bytes - len(header) - copy_bytes)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._target >= 0:
                # LMDB asks nobody whether it is to go on, but ends at the first write that fails.
                full = os.open("/dev/full", os.O_WRONLY | os.O_CLOEXEC)
                os.dup2(full, self._target, inheritable=False)
                os.close(full)

    def pieces(self) -> Iterator[bytes]:
        header, copy_bytes, end = self._parts
        yield header
        for offset in range(0, copy_bytes, PIECE_BYTES):
            yield os.pread(self._file.fileno(), PIECE_BYTES, offset)
        yield end

    def close(self) -> None:
        with self._lock:
            if self._target >= 0:
                os.close(self._target)
                self._target = -1
        self._file.close()

    def _check_room(self) -> None:
        environment = self._environment
        txn = environment.begin()
        try:
            needed = environment.used_bytes(txn)
        finally:
            environment.end(txn)
        free = shutil.disk_usage(environment.path).free
        if needed + LEFT_FREE_BYTES > free:
            raise StoreFullError(
                f"it takes {needed} bytes and must leave {LEFT_FREE_BYTES}, but the file system that holds the store has {free}",
                {"asked_bytes": str(needed), "free_bytes": str(free)},
            )


def remove_left_copies(path: Path) -> None:
    """Remove files that are not whole: of processes that ended before they could finish them, or take them away."""
    target = (path / DATA_FILE).resolve()  # where that is a link, others may have files beside it
    for file in chain(
        path.glob(f"{_PREFIX}*"), path.glob(f"{NEW_FILE_PREFIX}*"), target.parent.glob(f"{escape(new_file_prefix(target))}*")
    ):
        with suppress(OSError):
            file.unlink()
