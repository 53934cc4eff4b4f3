"""A page of an earlier transaction is found also where heads are damaged."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from functools import reduce
from itertools import chain, combinations
from operator import xor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaas_core.errors import DataDamagedError, StoreForeignError
from kaasd.store.base import Durability, Write
from kaasd.store.directory import prepare
from kaasd.store.lmdb_store import LmdbStore
from kaasd.store.records import RECORD_BYTES
from kaasd.store.sums import can_make

PAGE, SECTOR = 4096, 512
NUMBERS = st.integers(0, 63)


@given(NUMBERS, st.lists(NUMBERS, max_size=8))
def test_what_some_numbers_can_make(target: int, changes: list[int]) -> None:
    subsets = chain.from_iterable(combinations(changes, count) for count in range(len(changes) + 1))
    assert can_make(target, changes) == any(reduce(xor, subset, 0) == target for subset in subsets)


def test_it_takes_no_longer_with_many() -> None:
    """2 to the power of 40 choices are too many to try, and too few to meet 64 bits by chance."""
    chance = random.Random(1)
    changes = [chance.getrandbits(64) for _ in range(40)]
    assert can_make(reduce(xor, changes[::3]), changes)
    assert not can_make(chance.getrandbits(64), changes)
    assert can_make(chance.getrandbits(64), [chance.getrandbits(64) for _ in range(10_000)])


class States:
    """A store whose values were all written again, key by key, with its file before each of the last commits, and after them."""

    def __init__(self, path: Path, payload: Callable[[int], bytes]) -> None:
        self.file = path / "data.mdb"
        self.values = {f"key {number:03}": payload(150) for number in range(300)}
        with LmdbStore(path, limit_bytes=64 << 20, durability=Durability.NONE) as store:
            store.commit([Write(key, [value]) for key, value in self.values.items()]).result()
            self.before = []
            for number, key in enumerate(self.values):
                if number >= len(self.values) - 5:
                    self.before.append(self.file.read_bytes())
                self.values[key] = payload(150)
                store.commit([Write(key, [self.values[key]])]).result()
        self.last = self.file.read_bytes()

    def head(self, raw: bytes, key: str) -> int | None:
        """Return where the head of a key's last record is."""
        found = re.search(re.escape(self.values[key]), raw)
        return found.start() - RECORD_BYTES if found else None

    def opened(self, raw: bytes) -> bool:
        self.file.write_bytes(raw)
        try:
            prepare(self.file.parent, sync=False)
        except StoreForeignError:
            return False
        return True


@pytest.fixture
def states(store_path: Path, payload: Callable[[int], bytes]) -> States:
    return States(store_path, payload)


def test_pages_of_before_beside_damaged_heads(states: States) -> None:
    """Where only the checksums of 30 heads were changed the sum still tells."""
    raw = bytearray(states.last)
    for key in [*states.values][::10]:
        place = states.head(states.last, key)
        assert place is not None
        raw[place + 41] ^= 0x10
    assert states.opened(raw)
    replaced = 0
    for before in states.before:
        for start in range(2 * PAGE, min(len(before), len(raw)), PAGE):
            if before[start : start + PAGE] == states.last[start : start + PAGE]:
                continue
            mixed = bytearray(raw)
            mixed[start : start + PAGE] = before[start : start + PAGE]
            replaced += not states.opened(mixed)
    assert replaced > 10


def test_sectors_of_before_are_never_served(states: States, read: Callable) -> None:
    """A head that two sectors share is then neither of the one transaction nor of the other; what is beside it may be whole."""
    refused = 0
    for before in states.before:
        for start in range(2 * PAGE, min(len(before), len(states.last)), SECTOR):
            if before[start : start + SECTOR] == states.last[start : start + SECTOR]:
                continue
            mixed = bytearray(states.last)
            mixed[start : start + SECTOR] = before[start : start + SECTOR]
            if not states.opened(mixed):
                refused += 1
                continue
            with LmdbStore(states.file.parent, limit_bytes=64 << 20, durability=Durability.NONE) as store:
                for key, value in states.values.items():
                    try:
                        assert read(store, key) == value
                    except DataDamagedError:
                        continue
    assert refused > 10
