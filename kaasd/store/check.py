"""Looks whether all that is stored is what was written, while the store is used."""

from __future__ import annotations

import time
from collections.abc import Iterator

import lmdb

from kaas_core.errors import DataDamagedError, StoreForeignError
from kaasd.store.base import CheckProgress, DamagedEntry, Namespace
from kaasd.store.checksums import VerifiedChunks
from kaasd.store.directory import check_store
from kaasd.store.environment import Environment, Transaction, translate
from kaasd.store.reading import read_chunk
from kaasd.store.records import Damage, Record, decode_key

STEP_S = 0.05
"""So long, and for the time that one entry takes, a snapshot is open."""


def check(environment: Environment, progress: CheckProgress) -> Iterator[DamagedEntry]:
    """Yield what is damaged: the trees, and then by namespace and key. Each entry is looked at in one snapshot.

    None is open at a ``yield``. Raises ``InternalError``, ``QueueFullError``.
    """
    if problem := tree_problem(environment):
        yield DamagedEntry(None, "", problem)
    verified = VerifiedChunks()  # what this process has read before may have changed since
    for namespace in Namespace:
        after: bytes | None = b""
        while after is not None and not progress.stopped:
            damaged, after = _step(environment, namespace, after, progress, verified)
            yield from damaged


def length_problem(environment: Environment) -> str:
    """Return what is wrong with the length of the file, or nothing. Takes some 10 µs, and reads nothing through the map."""
    try:
        environment.disk.pages.check_length()
    except StoreForeignError as error:
        return str(error)
    return ""


def tree_problem(environment: Environment) -> str:
    """Return what is wrong with the trees that find everything, or nothing. Raises ``InternalError``, ``QueueFullError``.

    A snapshot keeps them as they are meanwhile.
    """
    pages = environment.disk.pages
    while True:
        txn = _begin(environment)
        try:
            meta = pages.latest_meta()
            if meta.transaction == txn.id():  # else somebody has committed in between
                check_store(pages, meta)
                return ""
        except StoreForeignError as error:
            return str(error)
        finally:
            environment.end(txn)


def _step(
    environment: Environment, namespace: Namespace, after: bytes, progress: CheckProgress, verified: VerifiedChunks
) -> tuple[list[DamagedEntry], bytes | None]:
    """Look at some entries behind the key ``after``; return what is damaged, and the last key or at the end None."""
    until = time.monotonic() + STEP_S
    damaged = []
    txn = _begin(environment)
    try:
        with txn.cursor(environment.entries[namespace]) as cursor:
            found = cursor.set_range(after + b"\0") if after else cursor.first()
            while found:
                after = bytes(cursor.key())
                progress.entries += 1
                try:
                    record = Record.of(cursor.value(), namespace, after)
                    progress.checked_bytes += record.size_bytes
                    for extent in record.extents:
                        read_chunk(environment, txn, extent, verified)
                except Damage as damage:
                    damaged.append(DamagedEntry(namespace, decode_key(after), str(damage)))
                except DataDamagedError as error:
                    damaged.append(DamagedEntry(None, "", f"{namespace.noun} {decode_key(after)!r}: {error}"))
                if time.monotonic() > until or progress.stopped:
                    return damaged, after
                found = cursor.next()
    except lmdb.Error as error:
        damaged.append(
            DamagedEntry(None, "", f"what follows the {namespace.noun} {decode_key(after)!r} cannot be found: {error}")
        )
    finally:
        environment.end(txn)
    return damaged, None


def _begin(environment: Environment) -> Transaction:
    try:
        return environment.begin()
    except lmdb.Error as error:
        raise translate(error, environment.path) from error
