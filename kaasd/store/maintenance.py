"""Making room: freeing chunks that nobody will come for, and waiting for pages that snapshots hold."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import lmdb

from kaasd.store.environment import Environment, is_out_of_room
from kaasd.store.records import loose_key, unpack_loose_key
from kaasd.store.write_transaction import WriteTransaction

_HELD_POLL_S = 0.002


def sweep(
    environment: Environment, run: Callable[[Callable[[WriteTransaction], int]], int], *, own: bool = False
) -> Iterator[int]:
    """Free loose chunks whose owner is gone (with ``own``: those of this process), in short transactions given to ``run``.

    Yields how many each transaction freed.
    """
    for owner in [environment.owner] if own else _owners(environment):
        if not own and environment.is_alive(owner):
            continue
        while freed := run(partial(WriteTransaction.free_loose, owner=owner)):
            yield freed


def reuse_freed_pages(environment: Environment, timeout_s: float) -> None:
    """Let pages that were freed become free: two transactions later, and when no snapshot of before is open any more.

    Waits for snapshots at most ``timeout_s``. Raises ``lmdb.Error``.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with environment.write() as txn:
                WriteTransaction(environment, txn).finish()
        except lmdb.Error as error:
            if not is_out_of_room(error, environment.path):
                raise
        if not environment.is_held() or time.monotonic() > deadline:
            return
        time.sleep(_HELD_POLL_S)


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
