"""``Durability.NONE``, and a power loss after which the disk has any of what was written since the last sync.

What is promised of such a file: no process that opens it or uses it is killed, and

* it is refused at start, and not written to, or
* it shows one state, whole: none that is older than what was synced last, and none of a step half done;
  but values of it may be refused as damaged.

``load`` and ``check`` are processes of their own, as in ``power_loss``.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from kaas_core.errors import DataDamagedError, StoreForeignError, StoreGoneError
from kaasd.store.base import Durability, Write
from kaasd.store.lmdb_store import LmdbStore
from tests.store.power_loss import PAGE_BYTES, SECTOR_BYTES, Disk, State, cut, data_file

SETTINGS = {"limit_bytes": 4 << 20, "chunk_bytes": 16 << 10, "sweep_interval_s": 3600.0}
STEPS = 60
KEYS, SMALL_BYTES = 40, 150
"""Two pages of values of one size, so that what a page is written over is often like it."""
ANY = 0.1
"""Of the files have any of what was not synced; the others lack some of what was written last, which is harder to notice."""
USED = 0.1
"""Of the stores that open: they are written to, and opened again."""


def states() -> list[State]:
    """Return what the store holds at first and after each step: one of many keys, and then some of them with new values."""
    dice = random.Random(3)
    load: list[State] = [{}, {f"key {number}": dice.randbytes(SMALL_BYTES) for number in range(KEYS)}]
    for number in range(1, STEPS):
        values = {f"key {key}": dice.randbytes(SMALL_BYTES) for key in dice.sample(range(KEYS), dice.randint(1, 2))}
        if number % 4 == 0:
            values[dice.choice("ab")] = dice.randbytes(dice.choice([3000, 40_000]))
        load.append(load[-1] | values)
    return load


def load(path: Path) -> None:
    """Do all steps, and say a line after each that was acknowledged; in the middle have all of them synced, by closing it."""
    store = LmdbStore(path, durability=Durability.NONE, **SETTINGS)
    for number, (before, after) in enumerate(zip(states(), states()[1:], strict=False)):
        if number == STEPS // 2:
            store.close()
            os.write(1, b"synced\n")
            store = LmdbStore(path, durability=Durability.NONE, **SETTINGS)
        new = {key: value for key, value in after.items() if before.get(key) != value}
        store.commit([Write(key, [value]) for key, value in new.items()]).result()
        os.write(1, b"done\n")
    store.close()


def images(disk: Disk, dice: random.Random) -> Iterator[bytearray]:
    """Yield some files of those that the disk may hold."""
    if not disk.unsynced:
        return
    if dice.random() < ANY:
        yield from disk.images(dice)
        return
    recent = disk.unsynced[-dice.choice([5, 10, 20]) :]
    parts = list(cut(recent, dice.choice([PAGE_BYTES, PAGE_BYTES, PAGE_BYTES, SECTOR_BYTES])))
    lost = dice.sample(range(len(parts)), min(len(parts), dice.choice([1, 1, 1, 3])))
    written = [part for number, part in enumerate(parts) if number not in lost]
    yield disk.image([*disk.unsynced[: -len(recent)], *written])


class Check:
    """Opens files, and counts what they are."""

    def __init__(self, path: Path) -> None:
        self.acknowledged = 0
        self.synced = 0
        """So many steps at least must be there."""
        self.found: Counter[str] = Counter()
        self._path = path
        self._states = states()
        self._dice = random.Random(4)

    def images(self, disk: Disk, where: str) -> None:
        """Open some of the files that ``disk`` may be now. Raises ``AssertionError`` where one is not as it was promised."""
        if self.acknowledged:
            for content in images(disk, self._dice):
                self.found[self._open(content, f"{where}, {self.acknowledged} steps acknowledged")] += 1

    def _open(self, content: bytearray, where: str) -> str:
        shutil.rmtree(self._path, ignore_errors=True)
        self._path.mkdir()
        (self._path / "data.mdb").write_bytes(content)
        try:
            state, damaged = read(self._path)
        except (StoreForeignError, StoreGoneError):
            assert (self._path / "data.mdb").read_bytes() == content
            return "refused"
        steps = [
            number
            for number in range(self.synced, min(self.acknowledged + 2, len(self._states)))
            if state.items() <= self._states[number].items() and self._states[number].keys() == state.keys() | damaged
        ]
        assert steps, f"{where}: it is not as after any step from {self.synced} on"
        if self._dice.random() < USED:
            use(self._path, state, damaged)
        return "damaged" if damaged else "older" if steps[-1] < self.acknowledged else "whole"


def read(path: Path) -> tuple[State, set[str]]:
    """Return what a store holds, and which of its values are refused."""
    state, damaged = {}, set()
    with LmdbStore(path, durability=Durability.NONE, **SETTINGS) as store, store.snapshot() as snapshot:
        for entry in snapshot.list(limit=1000):
            try:
                state[entry.key] = b"".join(snapshot.pieces(entry.key))
            except DataDamagedError:
                damaged.add(entry.key)
    return state, damaged


def use(path: Path, state: State, damaged: set[str]) -> None:
    """See that a store can be written to and emptied, and forgets nothing that is not changed."""
    with LmdbStore(path, durability=Durability.NONE, **SETTINGS) as store:
        store.sweep().result()
        for number in range(0, KEYS, 3):
            store.commit([Write(f"key {number}", [b"%d" % number]), Write(f"new {number}", [bytes(number * 100)])]).result()
    changed = {f"key {number}": b"%d" % number for number in range(0, KEYS, 3)}
    changed |= {f"new {number}": bytes(number * 100) for number in range(0, KEYS, 3)}
    found, still_damaged = read(path)
    assert still_damaged == damaged - changed.keys()
    assert found == state | changed
    with LmdbStore(path, durability=Durability.NONE, **SETTINGS) as store:
        for key in [*found, *still_damaged]:
            store.delete(key).result()
        assert list(store.check()) == []


def check(log: Path, path: Path) -> dict[str, int]:
    """Open many of the files that the disk may hold, at ``path``; return how many were what. Raises ``AssertionError``."""
    events = [tuple(event) for event in pickle.loads(log.read_bytes())]
    inode = data_file(events)
    disk, checked = Disk(), Check(path)
    for position, (kind, *what) in enumerate(events):
        if kind == "Said":
            checked.acknowledged += what[0] == "done\n"
            if what[0] == "synced\n":
                checked.synced = checked.acknowledged
        elif what[0] != inode:
            continue
        elif kind == "Sync":
            disk.sync()
        elif kind == "Extend":
            disk.write(what[1], b"", synced=False)
        elif kind == "Write":
            # One that waits for the disk is on its way like any other, until it has returned.
            disk.write(*what[1:3], synced=False)
            checked.images(disk, f"after event {position}")
            if what[3]:
                disk.unsynced.pop()
                disk.write(*what[1:3], synced=True)
    assert (checked.acknowledged, checked.synced) == (STEPS, STEPS // 2)
    return dict(checked.found)


if __name__ == "__main__":
    command, *paths = sys.argv[1:]
    if command == "load":
        load(Path(paths[0]))
    else:
        print(json.dumps(check(Path(paths[0]), Path(paths[1]))))
