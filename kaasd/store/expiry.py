"""What is kept for a while only: deletes entries by their age, and the oldest of a group that has too many."""

from __future__ import annotations

import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from kaasd.store.base import Namespace
from kaasd.store.environment import Environment
from kaasd.store.records import Damage, Head
from kaasd.store.write_transaction import WriteTransaction

_LOOKED_AT_ONCE = 512
"""Entries that one snapshot looks at: about a millisecond."""
_DELETED_AT_ONCE = 64
"""Entries that one transaction deletes, each of them with a page or so of its own: about a millisecond too."""


class _Seen(NamedTuple):
    """An entry as far as its age goes."""

    raw_key: bytes
    version: int
    """0 where it is damaged."""
    update_time_ns: int

    @property
    def group(self) -> bytes:
        return self.raw_key.partition(b"/")[0]


def is_expired(update_time_ns: int, max_age_s: float) -> bool:
    """Whether something of this time is too old now; or too far ahead, as after the clock was set back."""
    return abs(time.time_ns() - update_time_ns) > max_age_s * 1e9


def expire(
    environment: Environment,
    run: Callable[[Callable[[WriteTransaction], int]], int],
    namespace: Namespace,
    max_age_s: float,
    most: int,
    seen_damaged: dict[bytes, float],
) -> Iterator[int]:
    """See ``KeyValueStore.expire``. Yields behind each short step how many it has deleted; writes are given to ``run``.

    ``seen_damaged`` is when damaged ones were seen first, by the monotonic clock, and is kept up to date. Raises ``lmdb.Error``,
    ``KaasError``.
    """
    versions: defaultdict[bytes, array[int]] = defaultdict(partial(array, "Q"))
    damaged: dict[bytes, float] = {}
    now = time.monotonic()
    for batch in _batches(environment, namespace):
        gone: list[_Seen] = []
        for seen in batch:
            if not seen.version:
                damaged[seen.raw_key] = seen_damaged.get(seen.raw_key, now)
                if now - damaged[seen.raw_key] > max_age_s:
                    gone.append(seen)
            elif is_expired(seen.update_time_ns, max_age_s):
                gone.append(seen)
            else:
                versions[seen.group].append(seen.version)
        yield 0
        yield from _delete(run, namespace, gone)
    seen_damaged.clear()
    seen_damaged.update(damaged)
    least = {group: sorted(found)[len(found) - most] for group, found in versions.items() if len(found) > most}
    del versions
    if least:
        for batch in _batches(environment, namespace):
            yield 0
            yield from _delete(run, namespace, [seen for seen in batch if 0 < seen.version < least.get(seen.group, 0)])


def _batches(environment: Environment, namespace: Namespace) -> Iterator[list[_Seen]]:
    """Yield all entries, those of one snapshot together. None is open at a ``yield``."""
    after: bytes | None = b""
    while after is not None:
        batch: list[_Seen] = []
        txn = environment.begin()
        try:
            with txn.cursor(environment.entries[namespace]) as cursor:
                found = cursor.set_range(after + b"\0") if after else cursor.first()
                while found and len(batch) < _LOOKED_AT_ONCE:
                    seen = _Seen(bytes(cursor.key()), 0, 0)
                    with suppress(Damage):
                        head = Head.of(cursor.value(), namespace, seen.raw_key)
                        seen = _Seen(seen.raw_key, head.version, head.update_time_ns)
                    batch.append(seen)
                    found = cursor.next()
                after = batch[-1].raw_key if found else None
        finally:
            environment.end(txn)
        yield batch


def _delete(run: Callable[[Callable[[WriteTransaction], int]], int], namespace: Namespace, gone: list[_Seen]) -> Iterator[int]:
    for start in range(0, len(gone), _DELETED_AT_ONCE):
        versions = [(seen.raw_key, seen.version) for seen in gone[start : start + _DELETED_AT_ONCE]]
        yield run(partial(WriteTransaction.delete_versions, namespace=namespace, versions=versions))
