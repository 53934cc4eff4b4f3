"""Gives the disk back what is free in the store's file, while the store is used.

The file stays where it is, and so does all that is in use: blocks are taken out of its midst (holes), and what is more than is
kept for deletes is cut off its end. LMDB reads no free page before it has written it, and finds a new block for it then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import NamedTuple

from kaasd.store.disk_room import DiskRoom, runs
from kaasd.store.environment import Environment
from kaasd.store.lmdb_file import Meta

STEP_S = 0.02
"""So long, and for the time that one piece takes, nobody can write; about as long as one chunk does that."""
_PIECE_BYTES = 64 << 20
"""Given back at once: 10 ms on ext4."""


class _Place(NamedTuple):
    """How far it has come: all free pages of later transactions are done, and of this one those from ``page`` on.

    From the last transaction to the first, because LMDB takes what the first have left, and puts back the rest as theirs.
    """

    transaction: int
    page: int


_START = _Place(2**63, 0)


def give_back(environment: Environment, is_stopped: Callable[[], bool]) -> Generator[None, None, bool]:
    """Give back all that is free in steps that keep nobody from writing for long, and yield between them.

    Returns False where the file system takes nothing from within a file. Raises ``lmdb.Error``, ``OSError``, ``KaasError``.
    """
    disk, piece = environment.disk, _PIECE_BYTES // environment.page_bytes
    place: _Place | None = _START
    can_punch = True
    while place is not None and not is_stopped():
        with environment.nobody_writes() as (meta, last):
            try:
                place = _punch(disk, meta, last, place, piece)
            except _CannotPunch:
                can_punch, place = False, None
        yield
    with environment.nobody_writes() as (meta, last):
        if can_punch:
            disk.keep(meta)
        else:
            disk.cut(_end_in_use(disk, meta, last))
    return can_punch


class _CannotPunch(Exception):
    """The file system can take no blocks from within a file."""


def _punch(disk: DiskRoom, meta: Meta, last: int, place: _Place, piece: int) -> _Place | None:
    """Give back free pages of transactions up to ``last`` for about ``STEP_S``; return how far that came, None at the end."""
    until = time.monotonic() + STEP_S
    for transaction, pages in disk.pages.free_pages(meta, min(last, place.transaction), latest_first=True):
        behind = place.page if transaction == place.transaction else meta.last_page + 1
        for first, end in runs(pages):
            end = min(end, behind)
            while end > first:
                start = max(first, end - piece)
                if not disk.give_back(start, end):
                    raise _CannotPunch
                end = start
                if time.monotonic() > until:
                    return _Place(transaction, start)
    return None


def _end_in_use(disk: DiskRoom, meta: Meta, last: int) -> int:
    """Return how many pages there are up to the last one that is in use."""
    free = sorted(run for _, pages in disk.pages.free_pages(meta, last) for run in runs(pages))
    in_use = meta.last_page + 1
    while free and free[-1][1] == in_use:
        in_use, _ = free.pop()
    return in_use
