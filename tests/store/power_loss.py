"""A scripted load on a store, and what a disk may hold of it when the power fails at any moment.

``load`` writes, and says what was acknowledged. ``check`` takes the recording of that (``tests/store/recorder.py``), makes the
files that the disk may hold at each of its events, and opens each of them. Both are processes of their own: a broken file could
kill one.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from kaas_core.errors import KaasError
from kaasd.store import base
from kaasd.store.base import Durability
from kaasd.store.lmdb_store import LmdbStore

CHUNK_BYTES = 4096
SETTINGS = {"limit_bytes": 4 << 20, "chunk_bytes": CHUNK_BYTES, "sweep_interval_s": 3600.0}
SECTOR_BYTES, PAGE_BYTES = 512, 4096
"""What a disk writes whole, and what most do."""
SIZES = [30, 900, 3000, 20_000]
"""In the record, in one chunk, in some, and in more than one transaction."""
LARGEST = 70 * CHUNK_BYTES
"""More chunks than are freed by the transaction that overwrites them."""
STEPS = 20
SHARE = 0.4
"""Of the syncs, before which the disk is looked at in any order of writes, and of the stores, which are also written to."""

State = dict[str, bytes]


class Step(NamedTuple):
    """What is written in one commit, or deleted; and what the store holds afterwards."""

    values: dict[str, bytes]
    offsets: dict[str, int]
    """Where a value replaces a range only."""
    deleted: str | None
    state: State


def steps() -> list[Step]:
    """Return the load: outputs of several keys in one commit, ranges, large values, deletes."""
    dice = random.Random(1)
    state: State = {}
    load = []
    for number in range(STEPS):
        values: dict[str, bytes] = {}
        offsets: dict[str, int] = {}
        deleted = None
        if number % 6 == 5:
            deleted = dice.choice(sorted(state))
            state = {key: value for key, value in state.items() if key != deleted}
        elif number % 6 == 3:
            key = max(state, key=lambda key: len(state[key]))
            offsets[key] = dice.randrange(len(state[key]) // 2)
            values[key] = dice.randbytes(len(state[key]) // 3)
            start, end = offsets[key], offsets[key] + len(values[key])
            state = state | {key: state[key][:start] + values[key] + state[key][end:]}
        else:
            keys = dice.sample("abcdefg", dice.randint(1, 4))
            values = {key: dice.randbytes(LARGEST if number == 10 and key == keys[0] else dice.choice(SIZES)) for key in keys}
            state = state | values
        load.append(Step(values, offsets, deleted, state))
    return load


def load(path: Path, durability: Durability) -> None:
    """Do all steps; say a line when the store is open, and after each step that was acknowledged."""
    store = LmdbStore(path, durability=durability, **SETTINGS)
    os.write(1, b"open\n")
    for step in steps():
        future: Future[Any]
        if step.deleted is not None:
            future = store.delete(step.deleted)
        else:
            future = store.commit([base.Write(key, [value], step.offsets.get(key)) for key, value in step.values.items()])
        future.result()
        os.write(1, b"done\n")
    store.close()
    os.write(1, b"closed\n")


class Disk:
    """One file as a disk may hold it: what was synced, and any of what was written since."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.unsynced: list[tuple[int, bytes]] = []
        """Offset and bytes; none where the file only became longer up to there."""

    def write(self, offset: int, data: bytes, *, synced: bool) -> None:
        if synced:
            assert not self.unsynced  # which would come before it or behind it, nobody knows
            apply(self.content, offset, data)
        else:
            self.unsynced.append((offset, data))

    def sync(self) -> None:
        self.content = self.image(self.unsynced)
        self.unsynced = []

    def image(self, chosen: Sequence[tuple[int, bytes]]) -> bytearray:
        """Return the file with some of what was not synced."""
        content = bytearray(self.content)
        for offset, data in chosen:
            apply(content, offset, data)
        return content

    def ordered_images(self, dice: random.Random) -> Iterator[bytearray]:
        """Yield what the file may be where the disk keeps the order of writes: with all of them, or the last one torn."""
        yield self.image(self.unsynced)
        if self.unsynced and dice.random() < 0.5:
            *before, last = self.unsynced
            parts = list(cut([last], SECTOR_BYTES))
            yield self.image([*before, *parts[: dice.randrange(len(parts))]])

    def images(self, dice: random.Random) -> Iterator[bytearray]:
        """Yield what the file may be where it does not: with none of what was not synced, or any of it."""
        if not self.unsynced:
            return
        last = self.unsynced[-1]
        yield self.image([])
        yield self.image([last])
        for size in (SECTOR_BYTES, PAGE_BYTES, PAGE_BYTES, 1 << 30):
            share = dice.choice([0.1, 0.5, 0.9])
            yield self.image([part for part in cut(self.unsynced, size) if dice.random() < share])


def apply(content: bytearray, offset: int, data: bytes) -> None:
    end = offset + len(data)
    content.extend(bytes(max(0, end - len(content))))
    content[offset:end] = data


def cut(writes: Sequence[tuple[int, bytes]], size: int) -> Iterator[tuple[int, bytes]]:
    """Yield the parts of writes that a disk writes whole."""
    for offset, data in writes:
        start = 0
        while True:
            end = min(len(data), start + size - (offset + start) % size)
            yield offset + start, data[start:end]
            start = end
            if start >= len(data):
                break


class Check:
    """Opens every file that the disk may hold, and counts what it finds."""

    def __init__(self, path: Path, durability: Durability) -> None:
        self.durability = durability
        self.acknowledged = -1
        """Steps; -1 while the store is not open."""
        self.found: Counter[int] = Counter()
        """How often there were so many steps more than were acknowledged."""
        self._path = path
        self._states: list[State] = [{}, *(step.state for step in steps())]
        self._dice = random.Random(2)
        self._seen: set[bytes] = set()

    def images(self, disk: Disk, where: str, *, before_sync: bool) -> None:
        """Open the files that ``disk`` may be now. Raises ``AssertionError`` where one is not as it was promised."""
        if self.acknowledged < 0:
            return
        images = list(disk.ordered_images(self._dice))
        if before_sync and self.durability is not Durability.NONE and self._dice.random() < SHARE:
            images += disk.images(self._dice)
        for content in images:
            digest = hashlib.sha1(content + bytes([self.acknowledged])).digest()
            if digest not in self._seen:
                self._seen.add(digest)
                self._image(content, f"{where}, {self.acknowledged} steps acknowledged")

    def _image(self, content: bytearray, where: str) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
        self._path.mkdir()
        (self._path / "data.mdb").write_bytes(content)
        try:
            state = contents(self._path, writes=self._dice.random() < SHARE)
        except KaasError as error:
            raise AssertionError(f"{where}: {error}") from error
        # The load never comes back to a state, so that there is one number at most.
        which = [number - self.acknowledged for number, possible in enumerate(self._states) if possible == state]
        allowed = {0, 1} if self.durability is Durability.FULL else {-1, 0, 1}
        assert which and which[0] in allowed, f"{where}: {which} of them more are there"
        self.found[which[0]] += 1


def check(log: Path, path: Path, durability: Durability) -> dict[int, int]:
    """Open every file that the disk may hold, at ``path``; return how often there were how many steps beyond what was
    acknowledged. Raises ``AssertionError``."""
    events = [tuple(event) for event in pickle.loads(log.read_bytes())]
    inode = data_file(events)
    events = [(kind, *what) for kind, *what in events if kind in ("Said", "Link", "Sync") or what[0] == inode]
    disk, checked = Disk(), Check(path, durability)
    for position, ((kind, *what), (next_kind, *_)) in enumerate(zip(events, [*events[1:], ("Said",)], strict=True)):
        where = f"after event {position}"
        if kind == "Said":
            if what[0] == "open\n" and durability is not Durability.NONE:
                assert_named(events[:position])
            if what[0] == "closed\n":
                checked.durability = Durability.FULL
            else:
                checked.acknowledged += 1
        elif kind == "Sync" and what[0] == inode:
            disk.sync()
        elif kind == "Extend":
            disk.write(what[1], b"", synced=False)
        elif kind == "Write":
            offset, data, synced = what[1:]
            disk.write(offset, data, synced=False)
            if synced:  # On its way it is like any other; when the call has returned it is there.
                checked.images(disk, where, before_sync=True)
                disk.unsynced.pop()
                disk.write(offset, data, synced=True)
        checked.images(disk, where, before_sync=next_kind in ("Sync", "Said"))
    assert (checked.acknowledged, checked.durability) == (STEPS, Durability.FULL)
    return dict(checked.found)


def contents(path: Path, *, writes: bool) -> State:
    """Return what the store at ``path`` holds. ``writes``: see that it can be written to and emptied."""
    with LmdbStore(path, durability=Durability.NONE, **SETTINGS) as store:
        with store.snapshot() as snapshot:
            entries = snapshot.list()
            state = {entry.key: b"".join(snapshot.pieces(entry.key)) for entry in entries}
        if not writes:
            return state
        (entry,) = store.commit([base.Write("new", [b"1" * 10_000])]).result().values()
        assert entry.version > max((entry.version for entry in entries), default=0)
        for future in [store.delete(key) for key in [*state, "new"]]:
            future.result()
        store.sweep().result()
        assert store.stats().used_bytes == 0
        return state


def data_file(events: Sequence[tuple[Any, ...]]) -> int:
    """Return the inode of the file that holds the store: the one that was written to last."""
    return next(what[0] for kind, *what in reversed(events) if kind == "Write")


def assert_named(events: Sequence[tuple[Any, ...]]) -> None:
    """When the store is open, the name of its file is on the disk."""
    directory, linked = next(
        (what[0], position) for position, (kind, *what) in enumerate(events) if kind == "Link" and what[1].endswith("data.mdb")
    )
    assert ("Sync", directory) in events[linked:], "the directory of a new store was not synced"


if __name__ == "__main__":
    command, *arguments, mode = sys.argv[1:]
    if command == "load":
        load(Path(arguments[0]), Durability[mode])
    else:
        print(json.dumps(check(Path(arguments[0]), Path(arguments[1]), Durability[mode])))
