"""Frees chunks that no key points at and nobody will come for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from kaasd.store.changes import Changes
from kaasd.store.environment import Environment
from kaasd.store.records import loose_key, unpack_loose_key


def sweep(environment: Environment, run: Callable[[Callable[[Changes], int]], int], *, own: bool = False) -> Iterator[int]:
    """Free loose chunks whose owner is gone (with ``own``: those of this process), in short transactions given to ``run``.

    Yields how many each transaction freed.
    """
    for owner in [environment.owner] if own else _owners(environment):
        if not own and environment.is_alive(owner):
            continue
        while freed := run(partial(_free, owner)):
            yield freed


def _free(owner: int, changes: Changes) -> int:
    return changes.free_loose(owner)


def _owners(environment: Environment) -> list[int]:
    """Return whose chunks are loose."""
    owners: list[int] = []
    txn = environment.begin()
    try:
        with txn.cursor(environment.loose) as cursor:
            while cursor.set_range(loose_key(owners[-1] + 1 if owners else 0, 0)):
                owners.append(unpack_loose_key(cursor.key())[0])
    finally:
        environment.end(txn)
    return owners
