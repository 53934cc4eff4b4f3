"""What compilers have made, in the store or in a directory: for the next process, and for those beside this one.

A spare is asked for the same code as the worker that it is beside. So what is being compiled is claimed, by a lock on one byte of
a file that all of them open: the kernel gives it up where a process ends.
"""

from __future__ import annotations

import fcntl
import logging
import os
from abc import ABC, abstractmethod
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from kaas_core.errors import DataDamagedError, KaasError, KeyNotFoundError
from kaasd.devices.code_directory import CodeDirectory
from kaasd.store.base import KeyValueStore, Namespace, Write

LIMIT_BYTES = 256 << 20
"""Of compiled code: some thousand kernels. In a store at most ``MOST_OF_STORE`` of the store's limit."""
MOST_OF_STORE = 1 / 8
FULL = 0.75
"""Where so much of a store is in use nothing is added to it."""
KEPT = 0.75
"""Of the limit, after the oldest have gone."""
CLAIMS_FILE = "compiling"
_PAGE = 1000

_log = logging.getLogger(__name__)


class CodeCache(ABC):
    """Compiled code by a key that says what it was made from. For any thread. Nothing here fails: at worst it is made again."""

    def __init__(self, directory: Path) -> None:
        """Claims are in a file of ``directory``, which is open once in a process. Raises ``OSError``."""
        self._claims = os.open(directory / CLAIMS_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @abstractmethod
    def get(self, key: str) -> bytes | None:
        """Return what is kept under a key, whole, or None. What is damaged is dropped."""

    @abstractmethod
    def put(self, key: str, content: bytes) -> None:
        """Keep something, soon, if there is room for it. Then it is claimed no longer."""

    def claim(self, key: str) -> bool:
        """Say that this process compiles what belongs under a key; return False where another does, until it ends or gives up."""
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(key))
        except OSError:
            return False
        return True

    def give_up(self, key: str) -> None:
        """Claim it no longer. Idempotent."""
        if self._claims >= 0:
            fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, _place(key))

    def close(self) -> None:
        """Close it, and claim nothing any more. What is being stored may go on."""
        descriptor, self._claims = self._claims, -1
        os.close(descriptor)


class SharedCache(CodeCache):
    """In a directory that other daemons use too."""

    def __init__(self, directory: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        """Raises ``CodeDirectoryError``, ``OSError``."""
        self._files = CodeDirectory(directory, limit_bytes)
        super().__init__(directory)

    def get(self, key: str) -> bytes | None:
        return self._files.get(key)

    def put(self, key: str, content: bytes) -> None:
        self._files.put(key, content)
        self.give_up(key)


class StoreCache(CodeCache):
    """In the store of one daemon: the oldest goes first, and what users store needs none of its room."""

    def __init__(self, store: KeyValueStore, directory: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        """``directory`` is the store's. Raises ``OSError``."""
        super().__init__(directory)
        self._store = store
        self._limit_bytes = min(limit_bytes, int(store.stats().limit_bytes * MOST_OF_STORE))
        self._held_bytes: int | None = None
        """About, with what other processes have added since the last look left out."""

    def get(self, key: str) -> bytes | None:
        try:
            with self._store.snapshot() as snapshot:
                return b"".join(snapshot.pieces(key, namespace=Namespace.COMPILED))
        except KeyNotFoundError:
            return None
        except DataDamagedError:
            _log.warning("the compiled code %s is damaged; it is dropped, and compiled again", key)
            self._drop(key)
        except KaasError as error:
            _log.warning("compiled code cannot be read: %s", error)
        return None

    def put(self, key: str, content: bytes) -> None:
        if not self._put(key, content):
            self.give_up(key)

    def _put(self, key: str, content: bytes) -> bool:
        """Begin to store something; return whether that was begun."""
        try:
            stats = self._store.stats()
            if len(content) > self._limit_bytes * KEPT or stats.used_bytes + len(content) > stats.limit_bytes * FULL:
                return False
            if self._held_bytes is None or self._held_bytes + len(content) > self._limit_bytes:
                self._held_bytes = self._make_room(len(content))
            self._held_bytes += len(content)
            stored = self._store.commit([Write(key, [content], namespace=Namespace.COMPILED)])
        except KaasError as error:
            _log.warning("compiled code cannot be kept: %s", error)
            return False
        stored.add_done_callback(_tell_failure)
        stored.add_done_callback(lambda _: self.give_up(key))
        return True

    def _make_room(self, size_bytes: int) -> int:
        """Drop the oldest if there is no room for ``size_bytes`` more; return how many bytes are left."""
        entries = []
        with self._store.snapshot() as snapshot:
            after = ""
            while page := snapshot.list(after=after, limit=_PAGE, namespace=Namespace.COMPILED):
                entries += page
                after = page[-1].key
        held = sum(entry.size_bytes for entry in entries)
        if held + size_bytes <= self._limit_bytes:
            return held
        for entry in sorted(entries, key=lambda entry: entry.update_time_ns):
            if held + size_bytes <= self._limit_bytes * KEPT:
                break
            self._drop(entry.key)
            held -= entry.size_bytes
        return held

    def _drop(self, key: str) -> None:
        self._store.delete(key, Namespace.COMPILED).add_done_callback(_tell_failure)


def _place(key: str) -> int:
    """Return the byte of the file that stands for a key, which is in hexadecimal."""
    return int(key[:15], 16)


def _tell_failure(future: Future[Any]) -> None:
    error = future.exception()
    if error is not None and not isinstance(error, KeyNotFoundError):
        _log.info("compiled code is not kept: %s", error)
