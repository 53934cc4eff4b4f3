"""Reads records and chunks within a transaction, of whatever kind, and compares them with their checksums."""

from __future__ import annotations

import lmdb

from kaas_core.errors import DataDamagedError, KeyNotFoundError
from kaasd.store.base import Entry, Namespace
from kaasd.store.checksums import VerifiedChunks
from kaasd.store.environment import Environment, Transaction, translate
from kaasd.store.recent import find_recent
from kaasd.store.records import (
    STATE_KEY,
    Damage,
    Extent,
    Head,
    Record,
    StoreState,
    chunk_key,
    decode_key,
    pack_reply_record,
)


def read_state(environment: Environment, txn: Transaction) -> StoreState:
    """Return what the store says of itself. Raises ``DataDamagedError``, ``lmdb.Error``."""
    try:
        return StoreState.unpack(txn.get(STATE_KEY, b""))
    except Damage as damage:
        raise DataDamagedError(f"the store at {environment.path} is damaged: {damage}") from None


def read_entry(environment: Environment, txn: Transaction, namespace: Namespace, raw_key: bytes) -> Entry:
    """Return what a key's record says of its value. Raises ``KeyNotFoundError``, ``DataDamagedError``."""
    raw = read_raw(environment, txn, namespace, raw_key)
    try:
        return _entry(raw, namespace, raw_key)
    except Damage as damage:
        raise damage.of(namespace, raw_key) from None


def read_record(environment: Environment, txn: Transaction, namespace: Namespace, raw_key: bytes) -> Record:
    """Return a key's record. Raises ``KeyNotFoundError``, ``DataDamagedError``."""
    raw = read_raw(environment, txn, namespace, raw_key)
    try:
        return Record.of(raw, namespace, raw_key)
    except Damage as damage:
        raise damage.of(namespace, raw_key) from None


def read_raw(environment: Environment, txn: Transaction, namespace: Namespace, raw_key: bytes) -> memoryview:
    """Return a key's record as it stands there. Raises ``KeyNotFoundError``, ``DataDamagedError`` (the trees are damaged)."""
    raw = find_raw(environment, txn, namespace, raw_key)
    if raw is None:
        raise missing(raw_key)
    return raw


def find_raw(environment: Environment, txn: Transaction, namespace: Namespace, raw_key: bytes) -> memoryview | None:
    """As ``read_raw``; None where there is no such key."""
    try:
        raw = txn.get(raw_key, db=environment.entries[namespace])
        if raw is None and namespace is Namespace.REPLIES:
            reply = find_recent(read_state(environment, txn).recent, raw_key)
            raw = None if reply is None else memoryview(pack_reply_record(reply))
    except lmdb.Error as error:
        raise translate(error, environment.path) from error
    return raw


def missing(raw_key: bytes) -> KeyNotFoundError:
    """Return the error for a key that is not there."""
    key = decode_key(raw_key)
    return KeyNotFoundError(f"there is no key {key!r}", {"key": key})


def read_chunk(environment: Environment, txn: Transaction, extent: Extent, verified: VerifiedChunks) -> memoryview:
    """Return the bytes of a chunk; what is among ``verified`` is not compared again.

    Raises ``Damage``, and where the trees are damaged ``DataDamagedError``.
    """
    try:
        raw = txn.get(chunk_key(extent.id), db=environment.chunks)
    except lmdb.Error as error:
        raise translate(error, environment.path) from error
    if raw is None:
        raise Damage(f"chunk {extent.id} is missing")
    if len(raw) != extent.size_bytes:
        raise Damage(f"chunk {extent.id} has {len(raw)} of {extent.size_bytes} bytes")
    if not verified.is_intact(extent.id, raw, extent.checksum):
        raise Damage(f"the bytes of chunk {extent.id} are not those that were written")
    return raw


def count_records(environment: Environment, txn: Transaction) -> int:
    """Return ``StoreState.records`` as it must be. Takes about 1 us for each entry."""
    state = StoreState()
    for namespace in Namespace:
        with txn.cursor(environment.entries[namespace]) as cursor:
            for raw in cursor.iternext(keys=False):
                state.count_record(raw)
    for database in (environment.loose, environment.accounts):
        with txn.cursor(database) as cursor:
            for raw in cursor.iternext(keys=False):
                state.count_loose(raw)
    return state.records


def entry_of(raw: memoryview, namespace: Namespace, raw_key: bytes) -> Entry:
    """Return what a key's record says, and only the key where that is damaged."""
    try:
        return _entry(raw, namespace, raw_key)
    except Damage:
        return Entry(decode_key(raw_key), 0, 0, 0)


def _entry(raw: memoryview, namespace: Namespace, raw_key: bytes) -> Entry:
    """Read what a record says. Raises ``Damage``."""
    head = Head.of(raw, namespace, raw_key)
    return Entry(decode_key(raw_key), head.size_bytes, head.version, head.update_time_ns, head.form(raw))
