"""Whether all entries of a store's file are those of its last transaction, as far as that can be told where some are damaged.

A store says what the checksums of all its entries add up to, without carry. Where a page is in its place that was written before,
because a disk has lost a write, they add up to something else: whole values, but not those that were stored last. Damage must not
pass for that, nor hide it:

* Of a damaged head either its checksum was changed, or what that is of. So what it counts for is one of two numbers, and
  whether any choice among all of them gives the sum is a question for Gaussian elimination. Each damaged head makes the sum one
  bit easier to meet by chance; with 64 of them and more it says nothing any more.
* Where both were changed, any sum is right, and it says nothing either. A stretch that was overwritten, and goes over the end of
  a head's fields, takes in the last of them, the checksum of the body, which does not fit that any more. Only where all of the
  head is in one sector is that taken for damage: a disk writes whole sectors, and a head in two of them may be half of one
  transaction and half of another, with whole ones of before beside it.

Where the sum says nothing the store is opened. What is damaged is refused by its own checksum, one by one.
"""

from __future__ import annotations

from collections.abc import Iterable

from kaasd.store.base import Namespace
from kaasd.store.lmdb_file import LmdbFile
from kaasd.store.records import (
    ACCOUNTS,
    CHUNKS,
    LOOSE,
    RECORD_BYTES,
    Damage,
    Head,
    StoreState,
    body_is_intact,
    chunk_key,
    head_change,
    loose_change,
    loose_key,
)

NAMESPACES = {namespace.name.lower().encode(): namespace for namespace in Namespace}
"""By the names of their trees."""
START_BYTES = RECORD_BYTES
"""Of each value that are looked at."""
_KEY_BYTES = {CHUNKS: len(chunk_key(0)), LOOSE: len(loose_key(0, 0))}
_SECTOR_BYTES = 512
"""That a disk writes at once, or more."""


class EntrySums:
    """What the entries of one state of a file add up to."""

    def __init__(self, file: LmdbFile) -> None:
        self._file = file
        self._sums = StoreState()
        self._changes: list[int] = []
        """For each damaged head or list, what the sum changes by if its checksum was changed, and not what it is of."""
        self._says_nothing = False

    def add(self, tree: bytes, raw_key: bytes, start: bytes, where: range) -> bool:
        """Count an entry; return whether one that begins with ``start``, and lies at ``where`` of the file, may have this key."""
        namespace = NAMESPACES.get(tree)
        if namespace is None:
            if tree in (LOOSE, ACCOUNTS):
                self._add_loose(raw_key, start, where)
            return len(raw_key) == _KEY_BYTES.get(tree, len(raw_key))
        self._sums.count_key(namespace, raw_key)
        self._sums.count_record(start)
        try:
            return Head.unpack(start).is_of(namespace, raw_key)
        except Damage:
            self._add_damaged(start, where)
            return True

    def check(self, state: StoreState) -> None:
        """Raises ``Damage`` where not all is as the last transaction has left it: a page of before is in the place of another."""
        if self._sums.keys != state.keys or not (
            self._says_nothing or can_make(self._sums.records ^ state.records, self._changes)
        ):
            raise Damage("not all of its entries are those of the last transaction")

    def _add_damaged(self, start: bytes, where: range) -> None:
        if len(start) < RECORD_BYTES:
            return
        self._changes.append(head_change(start))
        self._says_nothing |= _is_in_a_sector(where[:RECORD_BYTES]) and not body_is_intact(self._read(where))

    def _add_loose(self, raw_key: bytes, start: bytes, where: range) -> None:
        self._sums.count_loose(start)
        if change := loose_change(raw_key, self._read(where)):
            self._changes.append(change)
            self._says_nothing |= _is_in_a_sector(where)

    def _read(self, where: range) -> bytes:
        return self._file.read(where.start, len(where))


def can_make(target: int, changes: Iterable[int]) -> bool:
    """Whether some of ``changes`` add up to ``target`` without carry, by Gaussian elimination."""
    rows: list[int] = []
    for change in changes:
        if rest := _reduced(change, rows):
            rows.append(rest)
    return not _reduced(target, rows)


def _reduced(number: int, rows: Iterable[int]) -> int:
    """Return ``number`` less those of ``rows`` whose highest bit it has; none of them has that of one before it."""
    for row in rows:
        number = min(number, number ^ row)
    return number


def _is_in_a_sector(where: range) -> bool:
    return where[0] // _SECTOR_BYTES == where[-1] // _SECTOR_BYTES
