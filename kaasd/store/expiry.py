"""What is kept for a while only: deletes old entries, and the oldest of a group that has too many.

Age goes by versions, which grow with every commit, and not by the time of day: a clock that jumps does no harm.
"""

from __future__ import annotations

import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import NamedTuple, TypeVar

from kaasd.store.base import Expiry, Namespace
from kaasd.store.environment import Environment
from kaasd.store.reading import read_state
from kaasd.store.records import RECORD_BYTES, Damage, Head
from kaasd.store.write_transaction import WriteTransaction

T = TypeVar("T")

_LOOKED_AT_ONCE = 512
"""Entries that one snapshot looks at: about a millisecond."""
_DELETED_AT_ONCE = 64
"""Entries that one transaction deletes, each of them with a page or so of its own: about a millisecond too."""

Run = Callable[[Callable[[WriteTransaction], int]], int]


class _Seen(NamedTuple):
    """An entry as far as its age goes."""

    raw_key: bytes
    version: int
    """0 where it is damaged."""
    size_bytes: int = 0

    @property
    def group(self) -> bytes:
        return self.raw_key.partition(b"/")[0]


class Expirer:
    """Deletes old replies."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._damaged: dict[bytes, float] = {}
        """When damaged ones were seen first, by the monotonic clock."""

    def steps(self, run: Run, version: int, most: int, most_bytes: int, damaged_s: float) -> Iterator[Expiry]:
        """Yield behind each short step what has been done; writes are given to ``run``. See ``KeyValueStore.expire``.

        Raises ``lmdb.Error``, ``KaasError``.
        """
        versions: defaultdict[bytes, array[int]] = defaultdict(partial(array, "Q"))
        sizes = array("Q"), array("Q")  # of versions, what they take
        damaged: dict[bytes, float] = {}
        now = time.monotonic()
        deleted = last_version = 0
        if self._has_recent():
            run(WriteTransaction.settle)
        for batch in self._batches():
            gone: list[_Seen] = []
            for seen in batch:
                last_version = max(last_version, seen.version)
                if not seen.version:
                    damaged[seen.raw_key] = self._damaged.get(seen.raw_key, now)
                    if now - damaged[seen.raw_key] > damaged_s:
                        gone.append(seen)
                elif seen.version <= version:
                    gone.append(seen)
                else:
                    versions[seen.group].append(seen.version)
                    sizes[0].append(seen.version)
                    sizes[1].append(seen.size_bytes)
            yield Expiry(deleted, last_version)
            for count in self._delete(run, gone):
                deleted += count
                yield Expiry(deleted, last_version)
        self._damaged = damaged
        least = {group: sorted(found)[len(found) - most] for group, found in versions.items() if len(found) > most}
        least_of_all = _least(sizes, most_bytes)
        del versions, sizes
        if least or least_of_all:
            for batch in self._batches():
                yield Expiry(deleted, last_version)
                old = [seen for seen in batch if 0 < seen.version < max(least.get(seen.group, 0), least_of_all)]
                for count in self._delete(run, old):
                    deleted += count
                    yield Expiry(deleted, last_version)

    def _has_recent(self) -> bool:
        txn = self._environment.begin()
        try:
            return bool(read_state(self._environment, txn).recent)
        finally:
            self._environment.end(txn)

    def _batches(self) -> Iterator[list[_Seen]]:
        """Yield all entries, those of one snapshot together. None is open at a ``yield``."""
        environment, after = self._environment, b""
        while True:
            batch: list[_Seen] = []
            txn = environment.begin()
            try:
                with txn.cursor(environment.entries[Namespace.REPLIES]) as cursor:
                    found = cursor.set_range(after + b"\0") if after else cursor.first()
                    while found and len(batch) < _LOOKED_AT_ONCE:
                        seen = _Seen(bytes(cursor.key()), 0)
                        with suppress(Damage):
                            head = Head.of(cursor.value(), Namespace.REPLIES, seen.raw_key)
                            seen = _Seen(seen.raw_key, head.version, head.size_bytes + RECORD_BYTES + len(seen.raw_key))
                        batch.append(seen)
                        found = cursor.next()
            finally:
                environment.end(txn)
            yield batch
            if not found:
                return
            after = batch[-1].raw_key

    def _delete(self, run: Run, gone: list[_Seen]) -> Iterator[int]:
        for start in range(0, len(gone), _DELETED_AT_ONCE):
            versions = [(seen.raw_key, seen.version) for seen in gone[start : start + _DELETED_AT_ONCE]]
            yield run(partial(WriteTransaction.delete_versions, namespace=Namespace.REPLIES, versions=versions))


def _least(sizes: tuple[array[int], array[int]], most_bytes: int) -> int:
    """Return the first version of the last ones that take ``most_bytes`` at most; 0 where all do."""
    total = sum(sizes[1])
    if total <= most_bytes:
        return 0
    for version, size_bytes in sorted(zip(*sizes, strict=True)):
        if total <= most_bytes:
            return version
        total -= size_bytes
    return 1 << 63
