"""Chunks that nothing names any more, as the list that did was damaged when its value went."""

from __future__ import annotations

from collections.abc import Callable

import lmdb

from kaasd.store.base import Namespace
from kaasd.store.check import tree_problem
from kaasd.store.environment import Environment, Transaction, translate
from kaasd.store.records import (
    STATE_KEY,
    Damage,
    Head,
    Record,
    StoreState,
    unpack_chunk_key,
    unpack_loose,
)


def find_orphans(environment: Environment, is_stopped: Callable[[], bool]) -> list[int]:
    """Return the ids of the chunks that nothing names, and so nothing will: a chunk is written by the transaction that names it.

    None while something is damaged that may name them. Looks at all entries in one snapshot. Raises ``InternalError``,
    ``QueueFullError``, ``DataDamagedError`` (the trees).
    """
    try:
        txn = environment.begin()
        try:
            named = _named(environment, txn, is_stopped)
            last_id = StoreState.unpack(txn.get(STATE_KEY, b"")).id  # a greater one is damaged, and will be given to another
            with txn.cursor(environment.chunks) as cursor:
                ids = map(unpack_chunk_key, cursor.iternext(values=False))
                orphans = [chunk_id for chunk_id in ids if chunk_id <= last_id and chunk_id not in named]
        finally:
            environment.end(txn)
    except Damage:
        return []
    except lmdb.Error as error:
        raise translate(error, environment.path) from error
    # A damaged tree may have hidden who names them.
    return [] if is_stopped() or not orphans or tree_problem(environment) else orphans


def _named(environment: Environment, txn: Transaction, is_stopped: Callable[[], bool]) -> set[int]:
    """Return the ids of all chunks that a record or a list of loose chunks names. Raises ``Damage``."""
    named: set[int] = set()
    for namespace in Namespace:
        with txn.cursor(environment.entries[namespace]) as cursor:
            for raw_key, raw in cursor:
                head = Head.of(raw, namespace, bytes(raw_key))
                if head.extents:
                    named.update(extent.id for extent in Record.below(head, raw).extents)
                if is_stopped():
                    return named
    with txn.cursor(environment.loose) as cursor:
        for raw_key, raw in cursor:
            named.update(extent.id for extent in unpack_loose(bytes(raw_key), bytes(raw)))
    return named
