"""Compiled code in files of a directory, for all processes of one user that have it.

A file is written beside its place and then moved there, so that nobody ever sees a part of it, and two that write the same file
do not meet. It begins with a checksum of its key and content: what is damaged is dropped, and made again.
"""

from __future__ import annotations

import logging
import os
import tempfile
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from stat import S_ISREG

LIMIT_BYTES = 256 << 20
"""Of all files: some thousand kernels."""
KEPT = 0.75
"""Of the limit, after those have gone that nobody has used for longest."""
_SUM_BYTES = 32

_log = logging.getLogger(__name__)


class CodeDirectoryError(Exception):
    """A directory is not to be used; the message says why."""


class CodeDirectory:
    """Code by its key, a name for a file that says all that the code was made from. For any thread.

    Nothing fails once it is open: what cannot be kept or read is made again.
    """

    def __init__(self, path: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        """Make the directory where there is none. Raises ``CodeDirectoryError``: who may write there could run code here."""
        self._path = path
        self._limit_bytes = limit_bytes
        try:
            if not path.is_dir():
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
                path.chmod(0o700)  # whatever the umask is
            status = path.stat()
        except OSError as error:
            raise CodeDirectoryError(f"{path}: {error.strerror}") from error
        if status.st_uid != os.geteuid():
            raise CodeDirectoryError(f"{path} belongs to user {status.st_uid}, who could change the code in it")
        if status.st_mode & 0o022:
            raise CodeDirectoryError(f"{path}: other users may write there, and could change the code in it; chmod go-w it")

    def get(self, key: str) -> bytes | None:
        """Return what is kept under a key, whole, or None."""
        path = self._path / key
        try:
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        if content[:_SUM_BYTES] == _sum(key, content[_SUM_BYTES:]):
            return content[_SUM_BYTES:]
        _log.warning("the compiled code %s is damaged; it is dropped, and compiled again", path)
        _drop(path)
        return None

    def put(self, key: str, content: bytes) -> None:
        """Keep something; what nobody has used for longest goes where there is no room for it."""
        if len(content) + _SUM_BYTES > self._limit_bytes * KEPT:
            return
        try:
            self._make_room(len(content) + _SUM_BYTES)
            descriptor, name = tempfile.mkstemp(dir=self._path)
            new = Path(name)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    os.fchmod(descriptor, 0o600)
                    file.write(_sum(key, content) + content)
                new.replace(self._path / key)
            except BaseException:
                _drop(new)
                raise
        except OSError as error:
            _log.warning("compiled code cannot be kept: %s", error)

    def _make_room(self, size_bytes: int) -> None:
        entries = []
        with os.scandir(self._path) as found:
            for entry in found:
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    if S_ISREG(status.st_mode) and status.st_size:  # others may keep empty ones here, to lock them
                        entries.append((status.st_mtime_ns, status.st_size, entry.path))
        held = sum(size for _, size, _ in entries)
        if held + size_bytes <= self._limit_bytes:
            return
        for _, size, path in sorted(entries):
            if held + size_bytes <= self._limit_bytes * KEPT:
                break
            _drop(Path(path))
            held -= size


def _sum(key: str, content: bytes) -> bytes:
    return sha256(key.encode() + b"\0" + content).digest()


def _drop(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)
