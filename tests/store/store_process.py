"""A process that has a store open, does what it is told, and can be killed at any point of what its writer does.

It is forked from a server that holds no store, which takes some milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from contextlib import closing
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from kaas_core.errors import KaasError
from kaasd.store.base import DamagedEntry, Durability, Entry, Namespace, Write
from kaasd.store.checksums import VerifiedChunks
from kaasd.store.lmdb_store import LmdbStore
from kaasd.store.records import RECORD_BYTES, Record, chunk_key
from kaasd.store.snapshot import LmdbSnapshot

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])
RECORD_DAMAGE = ("head", "body", "cut")
CHUNK_DAMAGE = ("changed", "short", "missing")

Where: TypeAlias = tuple[Namespace, str]


class Put(NamedTuple):
    """One key's part of a commit."""

    where: Where
    pieces: Sequence[bytes]
    offset: int | None = None
    create: bool = False
    stage: bool = False
    """Written ahead of the commit."""


class Seen(NamedTuple):
    """What a process finds at a key: as it is listed, and its bytes, or those that came before an error."""

    entry: Entry
    data: bytes
    error: KaasError | None


class Killed(Exception):
    """The process has ended before it answered."""


class Settings(NamedTuple):
    """Of the store in each process."""

    path: Path
    durability: Durability
    limit_bytes: int
    chunk_bytes: int


class StoreProcess:
    """The process, as who tells it what to do sees it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection: Connection
        self._process: ForkServerProcess
        self.start()

    def start(self) -> None:
        """Start it, with no store open."""
        self._connection, other = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(other, self._settings), daemon=True)
        self._process.start()
        other.close()

    def do(self, command: str, *arguments: Any, die_at: int = 0) -> Any:
        """Have a method of ``Served`` called; return what it returns, raise what it raises, or ``Killed``.

        ``die_at``: which of the calls that the store's threads do from then on, of Python and of C, LMDB's included, it is before
        which the process is killed.
        """
        self.tell(command, *arguments, die_at=die_at)
        return self.answer()

    def tell(self, command: str, *arguments: Any, die_at: int = 0) -> None:
        """Do not wait for the answer."""
        self._connection.send((command, arguments, die_at))

    def answer(self) -> Any:
        try:
            result = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            assert self._process.exitcode == -signal.SIGKILL, f"it ended by itself: {self._process.exitcode}"
            raise Killed from None
        if isinstance(result, Exception):
            raise result
        return result

    def kill(self) -> None:
        """End it as ``kill -9`` does, if it has not ended that way already."""
        self._process.kill()
        self._process.join()
        self._connection.close()


class Served:
    """What is done in the process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store: LmdbStore
        self._snapshots: dict[int, LmdbSnapshot] = {}
        self._uploads: list[Any] = []
        self.calls_to_live = 0
        # In the threads of the store, which do not run yet.
        threading.setprofile(self._count)

    def open(self) -> None:
        path, durability, limit_bytes, chunk_bytes = self._settings
        self._store = LmdbStore(path, limit_bytes=limit_bytes, chunk_bytes=chunk_bytes, durability=durability)

    def close(self) -> None:
        self._store.close()

    def commit(self, puts: Sequence[Put]) -> dict[str, Entry]:
        writes = []
        for put in puts:
            pieces: Any = put.pieces
            if put.stage:
                pieces = self._store.stage()
                for piece in put.pieces:
                    pieces.append(piece)
            writes.append(Write(put.where[1], pieces, put.offset, put.where[0], put.create))
        return self._store.commit(writes).result()

    def delete(self, where: Where) -> Entry:
        return self._store.delete(where[1], where[0]).result()

    def begin_upload(self, pieces: Sequence[bytes], give_up: bool) -> None:
        upload = self._store.stage()
        for piece in pieces:
            upload.append(piece)
        if give_up:
            upload.close()
        else:
            self._uploads.append(upload)

    def open_snapshot(self, number: int) -> None:
        self._snapshots[number] = self._store.snapshot()

    def close_snapshot(self, number: int) -> None:
        self._snapshots.pop(number).close()

    def look(self, number: int | None = None) -> dict[Namespace, list[Seen]]:
        """Read all there is, in one snapshot: a new one, or one that was opened before."""
        if number is not None:
            return _look(self._snapshots[number])
        with self._store.snapshot() as snapshot:
            return _look(snapshot)

    def read(self, where: Where, offset: int, size: int) -> bytes:
        with self._store.snapshot() as snapshot:
            return b"".join(snapshot.pieces(where[1], offset, size, where[0]))

    def stat(self, where: Where) -> Entry:
        with self._store.snapshot() as snapshot:
            return snapshot.stat(where[1], where[0])

    def check(self) -> list[DamagedEntry]:
        return list(self._store.check())

    def sweep(self) -> None:
        self._store.sweep().result()

    def compact(self) -> None:
        self._store.compact()

    def backup(self, file: Path) -> None:
        with closing(self._store.backup()) as backup, file.open("wb") as target:
            backup.make()
            target.writelines(backup.pieces())

    def used_bytes(self) -> int:
        return self._store.stats().used_bytes

    def damage(self, where: Where, kind: str, at: float) -> bool:
        """Change what is stored for a key, at a point of it from 0 to 1; return whether it has a part of this kind."""
        namespace, raw_key = where[0], where[1].encode()
        environment = self._store._environment
        values = environment.entries[namespace]
        with environment.write() as txn:
            raw = bytes(txn.get(raw_key, db=values))
            head, body = raw[:RECORD_BYTES], raw[RECORD_BYTES:]
            extents = Record.of(memoryview(raw), namespace, raw_key).extents
            if kind in CHUNK_DAMAGE and extents:
                name = chunk_key(extents[int(at * len(extents))].id)
                chunk = bytes(txn.get(name, db=environment.chunks))
                txn.delete(name, db=environment.chunks)
                if kind != "missing":
                    txn.put(name, _flip(chunk, at) if kind == "changed" else chunk[: int(at * len(chunk))], db=environment.chunks)
            elif kind == "head":
                txn.put(raw_key, _flip(head, at) + body, db=values)
            elif kind == "body" and body:
                txn.put(raw_key, head + _flip(body, at), db=values)
            elif kind == "cut" and body:
                txn.put(raw_key, head + body[: int(at * len(body))], db=values)
            else:
                return False
        return True

    def forget(self) -> None:
        """Forget which chunks were compared, as a process that has just opened the store knows of none."""
        self._store._environment.verified = VerifiedChunks()

    def _count(self, frame: object, event: str, argument: object) -> None:
        if self.calls_to_live and event in ("call", "c_call"):
            self.calls_to_live -= 1
            if not self.calls_to_live:
                os.kill(os.getpid(), signal.SIGKILL)


def _serve(connection: Connection, settings: Settings) -> None:
    served = Served(settings)
    while True:
        try:
            command, arguments, served.calls_to_live = connection.recv()
        except EOFError:
            return
        try:
            result = getattr(served, command)(*arguments)
        except KaasError as error:
            result = error
        connection.send(result)


def _look(snapshot: LmdbSnapshot) -> dict[Namespace, list[Seen]]:
    return {
        namespace: [_read(snapshot, entry, namespace) for entry in snapshot.list(namespace=namespace)] for namespace in Namespace
    }


def _read(snapshot: LmdbSnapshot, entry: Entry, namespace: Namespace) -> Seen:
    data = bytearray()
    try:
        for piece in snapshot.pieces(entry.key, namespace=namespace):
            data += piece
    except KaasError as error:
        return Seen(entry, bytes(data), error)
    return Seen(entry, bytes(data), None)


def _flip(data: bytes, at: float) -> bytes:
    place = int(at * len(data))
    return data[:place] + bytes([data[place] ^ 1 << int(at * 997) % 8]) + data[place + 1 :]
