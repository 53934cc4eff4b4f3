"""Looks whether all that is stored is there, while the store is used. Bytes that were changed are not found."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

import lmdb

from kaasd.store.base import CheckProgress, DamagedEntry, Namespace
from kaasd.store.environment import Environment, Transaction, translate
from kaasd.store.records import Record, chunk_key

STEP_S = 0.05
"""So long, and for the time that one entry takes, a snapshot is open."""


def check(environment: Environment, progress: CheckProgress) -> Iterator[DamagedEntry]:
    """Yield what is damaged, by namespace and key. Each entry is looked at in one snapshot; none is open at a ``yield``.

    Raises ``InternalError``, ``QueueFullError``.
    """
    for namespace in Namespace:
        after: bytes | None = b""
        while after is not None and not progress.stopped:
            damaged, after = _step(environment, namespace, after, progress)
            yield from damaged


def _step(
    environment: Environment, namespace: Namespace, after: bytes, progress: CheckProgress
) -> tuple[list[DamagedEntry], bytes | None]:
    """Look at some entries behind the key ``after``; return what is damaged, and the last key or at the end None."""
    until = time.monotonic() + STEP_S
    damaged = []
    try:
        txn = environment.begin()
    except lmdb.Error as error:
        raise translate(error, environment.path) from error
    try:
        with txn.cursor(environment.entries[namespace]) as cursor:
            found = cursor.set_range(after + b"\0") if after else cursor.first()
            while found:
                after = bytes(cursor.key())
                size, problem = _look_at(environment, txn, cursor.value())
                if problem:
                    damaged.append(DamagedEntry(namespace, after.decode(errors="backslashreplace"), problem))
                progress.entries += 1
                progress.checked_bytes += size
                if time.monotonic() > until or progress.stopped:
                    return damaged, after
                found = cursor.next()
    except lmdb.Error as error:
        damaged.append(DamagedEntry(None, "", f"the {namespace.name.lower()} behind {after!r} cannot be found: {error}"))
    finally:
        environment.end(txn)
    return damaged, None


def _look_at(environment: Environment, txn: Transaction, raw: memoryview) -> tuple[int, str]:
    """Return an entry's size, and what is wrong with it or nothing. Raises ``lmdb.Error``."""
    try:
        record = Record.unpack(raw)
    except struct.error:
        return 0, "its record is broken"
    stored = len(record.inline) + sum(extent.size_bytes for extent in record.extents)
    if stored != record.size_bytes:
        return record.size_bytes, f"{stored} of its {record.size_bytes} bytes are stored"
    for number, extent in enumerate(record.extents):
        chunk = txn.get(chunk_key(extent.id), db=environment.chunks)
        if chunk is None:
            return record.size_bytes, f"chunk {number} of {len(record.extents)} is missing"
        if len(chunk) != extent.size_bytes:
            return record.size_bytes, f"chunk {number} of {len(record.extents)} has {len(chunk)} of {extent.size_bytes} bytes"
    return record.size_bytes, ""
