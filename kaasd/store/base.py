"""What a worker and the API ask of a store.

Keys live in namespaces, so that values, libraries and functions share one store, one writer and one limit. Versions grow over the
whole store and are never used twice, even after a delete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from kaas_core import ReadableBuffer
from kaas_core.array_form import ArrayForm
from kaas_core.errors import KaasError

_NOUNS = {"v": "value", "l": "library", "f": "function", "r": "reply", "c": "compiled code", "g": "group"}


class Namespace(Enum):
    """Who a key belongs to."""

    VALUES = "v"
    """What users put and requests read and write."""
    LIBRARIES = "l"
    """Uploaded libraries, by content id."""
    FUNCTIONS = "f"
    """Registered functions, by name."""
    REPLIES = "r"
    """Replies of requests that may be sent again, by group and id: ``GROUP/ID``."""
    COMPILED = "c"
    """Code that was compiled, by what it was made from: a cache, which goes where others need its room."""

    GROUPS = "g"
    """What each group is granted, by its name."""

    def __init__(self, letter: str) -> None:
        self.number = ord(letter)
        """For checksums."""
        self.noun = _NOUNS[letter]
        """What one entry is, in words and on the wire."""

    __hash__ = object.__hash__  # of an Enum it is that of its name, in Python: 0.2 us more at each look into a dict


DEFAULT_ACCOUNT = "default"
"""Whom an entry counts for where nothing is said."""


class KeyExistsError(KaasError):
    """A write that must be its key's first has found one there. For who writes; no caller gets it."""


class Durability(Enum):
    """What a crash of the machine may lose; a crash of the daemon loses nothing in any mode."""

    FULL = "full"
    """Nothing that was answered."""
    META = "meta"
    """The last transaction, which may hold the outputs of several requests; the store stays whole."""
    NONE = "none"
    """The last transactions; where the file system reorders writes also values, or the whole store, which are then refused."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the store knows of a key."""

    key: str
    size_bytes: int
    version: int
    """0 where the entry is damaged, so that only its key is known."""
    update_time_ns: int
    """Of the commit, since the epoch."""
    form: ArrayForm | None = None
    """What the value is to its users, where its writer has said so."""


@dataclass(frozen=True, slots=True)
class Write:
    """One key's part of a commit."""

    key: str
    pieces: Sequence[ReadableBuffer] | Staged
    """The new bytes: their concatenation, or what was staged."""
    offset_bytes: int | None = None
    """None: they become the value. A number: they replace that range of the value, which must reach to its end."""
    namespace: Namespace = Namespace.VALUES
    create: bool = False
    """Where the key is missing and ``offset_bytes`` is 0, the new bytes become its value."""
    must_be_new: bool = False
    """Where the key is there, damaged or not, nothing of the commit is done."""
    account: str = DEFAULT_ACCOUNT
    """Whom the value counts for from then on, all of it: a group."""
    form: ArrayForm | None = None
    """What the value is to its users, where these bytes become it; the rest of a value whose range is replaced keeps its own."""


class Account(NamedTuple):
    """What counts for a group, and how much that may be."""

    stored_bytes: int = 0
    """Of its values, libraries, functions and replies."""
    keys: int = 0
    """In ``Namespace.VALUES``."""
    max_stored_bytes: int = 0
    """0: no limit."""
    max_keys: int = 0
    """0: no limit."""


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Gauges of now."""

    keys: int
    """In ``Namespace.VALUES``."""
    used_bytes: int
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class StoreMapping:
    """The store's file in this process's memory."""

    path: str
    address: int
    size_bytes: int
    """Of the mapping."""
    grows: bool = True
    """The file may be shorter than the mapping, and becomes longer; False where it is as long."""


@dataclass(frozen=True, slots=True)
class DamagedEntry:
    """Something stored that cannot be read as it was written."""

    namespace: Namespace | None
    """None for the trees that find all entries."""
    key: str
    problem: str


@dataclass(slots=True)
class CheckProgress:
    """How far a check is; any thread may look."""

    entries: int = 0
    checked_bytes: int = 0
    """Sizes of their values."""
    stopped: bool = False
    """Set by who wants it to end soon."""


@dataclass(frozen=True, slots=True)
class Compaction:
    """What a compaction has changed of the store's file."""

    file_before_bytes: int
    file_after_bytes: int
    disk_before_bytes: int
    """That the disk holds of it."""
    disk_after_bytes: int
    only_end: bool
    """The file system cannot give back blocks from within a file, so at most the end was cut off."""


class Expiry(NamedTuple):
    """What was deleted because it was old."""

    deleted: int
    """Keys."""
    last_version: int
    """The greatest that was there, 0 where nothing was: what comes later has a greater one."""


class Staged(Protocol):
    """A value on its way in: chunks that no key points at yet. Closing it without a commit drops them.

    A commit uses it up, whether it succeeds or not. Used by one thread at a time.
    """

    @property
    def size_bytes(self) -> int: ...

    def append(self, data: ReadableBuffer) -> None:
        """Add bytes; blocks while a full chunk is written. Raises ``StoreFullError``."""

    def close(self) -> None:
        """Drop what was not committed. Idempotent."""


class ValueSnapshot(Protocol):
    """One consistent view. Everything it hands out is dead when it closes, so it is held shortly: LMDB cannot reuse the
    pages that a reader may still see."""

    @property
    def commit(self) -> int:
        """The ``last_commit`` of the store that it sees."""

    def stat(self, key: str, namespace: Namespace = Namespace.VALUES) -> Entry:
        """Raises ``KeyNotFoundError``, ``DataDamagedError``."""

    def pieces(
        self, key: str, offset_bytes: int = 0, size_bytes: int | None = None, namespace: Namespace = Namespace.VALUES
    ) -> Iterator[memoryview]:
        """Yield the bytes of a range as read-only views of the store's own pages, in order, none copied.

        What is yielded was compared with its checksum, in each process once for a version.

        Each view is released when the snapshot closes, and what is made of one (a slice, a NumPy array) must be gone before:
        closing raises ``BufferError`` otherwise. Raises ``KeyNotFoundError``, ``ValueTooShortError``, ``DataDamagedError``.
        """

    def close(self) -> None:
        """End it. Idempotent. Raises ``BufferError`` while something uses one of its views."""


class Snapshot(ValueSnapshot, Protocol):
    """One consistent view, which also knows what there is."""

    def has(self, key: str, namespace: Namespace = Namespace.VALUES) -> bool:
        """Return whether a key is there, damaged or not: cheaper than ``stat`` where it mostly is not."""

    def list(self, prefix: str = "", after: str = "", limit: int = 100, namespace: Namespace = Namespace.VALUES) -> list[Entry]:
        """Return at most ``limit`` entries whose key starts with ``prefix`` and is greater than ``after``, by bytes.

        Of a damaged one only the key is known: see ``Entry.version``.
        """


class Backup(Protocol):
    """A copy of the whole store, as it is at one moment, beside it; it goes when this is closed, or with the process."""

    size_bytes: int
    """Of the tar file, once the copy is made."""

    def make(self) -> None:
        """Copy the store, which takes a second for each GiB or so; meanwhile, and only then, a snapshot is held.

        Raises ``StoreFullError`` (the disk has no room for it), ``CancelledError`` (stopped), ``InternalError``.
        """

    def stop(self) -> None:
        """Have ``make`` fail soon. From any thread; idempotent."""

    def pieces(self) -> Iterator[bytes]:
        """Yield the copy as a tar file, in pieces of at most 1 MiB. Each is read from the disk when it is asked for."""

    def close(self) -> None:
        """Remove the copy; not while it is made. Idempotent."""


class ValueStore(Protocol):
    """What requests read and write."""

    @property
    def mapped(self) -> StoreMapping | None:
        """Where the views of the snapshots lie that are open now; None where that is not known."""

    @property
    def last_commit(self) -> int:
        """A number that every commit of any process raises; cheap."""

    def snapshot(self) -> AbstractContextManager[ValueSnapshot]:
        """Open a read transaction."""

    def commit(self, writes: Sequence[Write]) -> Future[dict[str, Entry]]:
        """Commit all writes in one transaction, in order, or none; the future has the new entries by key, the last one of each.

        A store of several processes gives the writes of one commit versions that follow each other.

        Thread-safe. The one writer thread may put several callers' commits into one transaction; a future is done only when its
        transaction is. The pieces must stay valid until then. Fails with ``StoreFullError``, ``ValueTooShortError``,
        ``KeyNotFoundError``, ``DataDamagedError`` (a range of a missing or damaged value), ``KeyExistsError``,
        ``GroupLimitError`` (an account would have more than it may), ``InvalidArgumentError`` (bad key).
        """


class KeyValueStore(ValueStore, Protocol):
    """A store that several threads and processes use at once."""

    @property
    def store_id(self) -> str:
        """128 random bits in hexadecimal, the same as long as the store lives."""

    def snapshot(self) -> AbstractContextManager[Snapshot]:
        """Open a read transaction."""

    def stage(self) -> Staged:
        """Begin a value whose bytes come bit by bit."""

    def delete(self, key: str, namespace: Namespace = Namespace.VALUES, version: int | None = None) -> Future[Entry]:
        """Delete a key. Works when the store is full, and where it is damaged. Fails with ``KeyNotFoundError``.

        With ``version`` only that one, which 0 is where it is damaged; it fails likewise where the key has another.
        """

    def expire(self, version: int, most: int, most_bytes: int, damaged_s: float) -> Future[Expiry]:
        """Delete the replies of at most this version, and the oldest of each group of keys that has more than ``most``.

        Also the oldest where all together take more than ``most_bytes``. A group is what keys have before their first ``/``. Done
        between other writes, in transactions of a millisecond or so. What is damaged, so that its version is not known, is
        deleted when it was seen so for ``damaged_s``.
        """

    def accounts(self) -> Mapping[str, Account]:
        """Return what counts for each group that has ever stored anything or been limited, by name."""

    def limit_account(self, name: str, max_stored_bytes: int, max_keys: int) -> Future[None]:
        """Have commits that would give an account more than this fail, from now on, of all processes; 0 is no limit.

        What it has stays, also where it is more. Works when the store is full.
        """

    def check_account(self, name: str, key: str, size_bytes: int) -> None:
        """Raise ``GroupLimitError`` where a value of this size would be more than an account may have now."""

    def stats(self) -> StoreStats: ...

    def check(self, progress: CheckProgress | None = None) -> Iterator[DamagedEntry]:
        """Look at all that is stored, in short steps while others read and write; yield what is damaged.

        No snapshot is open when it yields. ``progress`` is kept up to date. Raises ``InternalError``, ``QueueFullError``.
        """

    def backup(self) -> Backup:
        """Begin a copy of the whole store. Raises ``StoreFullError``, ``InternalError``."""

    def compact(self, is_stopped: Callable[[], bool] = lambda: False) -> Compaction:
        """Give the disk back the blocks of what is free, while the store is used; blocks meanwhile. May be repeated.

        Chunks that nothing names, as damage may leave them, are freed first, unless something is damaged that may name them.
        What snapshots see stays, and so does some room for deletes. ``is_stopped`` is asked before each short step. Nobody may
        hold on to pages of the map other than by a snapshot: a driver that has registered them would go on seeing what they were.
        Raises ``StoreFullError``, ``QueueFullError``, ``DataDamagedError`` (the trees), ``InternalError``.
        """

    def close(self) -> None:
        """Finish what is being written, then close. Idempotent. Open snapshots must be closed before."""
