"""Which pages of a mapped file are registered, and where copies are cut; the driver is replaced by a strict recorder."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cuda.bindings import driver

from kaasd.devices.cuda import mapped
from kaasd.devices.cuda.driver import check
from kaasd.devices.cuda.mapped import RegisteredFile

PAGE = 4096
PIECE = 16 * PAGE
BASE = 0x7F00_0000_0000


@dataclass(frozen=True)
class File:
    path: str
    address: int = BASE
    size_bytes: int = 100 * PIECE
    grows: bool = True


class Driver:
    """Registers as the driver does: never beyond the file's end, and no page twice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ranges: dict[int, int] = {}
        self.refuses = False
        self.waits = 0

    def cuMemHostRegister(self, address: int, size: int, flags: int) -> tuple[Any, ...]:
        assert flags == driver.CU_MEMHOSTREGISTER_READ_ONLY
        if self.refuses:
            return (driver.CUresult.CUDA_ERROR_NOT_SUPPORTED,)
        assert address % PAGE == 0
        assert 0 < size <= self.path.stat().st_size - (address - BASE)
        assert all(address + size <= start or end <= address for start, end in self.ranges.items())
        self.ranges[address] = address + size
        return (driver.CUresult.CUDA_SUCCESS,)

    def release(self, function: Any, address: int) -> None:
        assert function is driver.cuMemHostUnregister
        del self.ranges[address]

    def wait(self) -> None:
        self.waits += 1

    def holds(self, address: int, size: int) -> bool:
        """Whether one registered range holds all of it."""
        return any(start <= address and address + size <= end for start, end in self.ranges.items())


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    path = tmp_path / "data"
    path.touch()
    fake = Driver(path)
    monkeypatch.setattr(mapped, "PIECE_BYTES", PIECE)
    monkeypatch.setattr(driver, "cuMemHostRegister", fake.cuMemHostRegister)
    monkeypatch.setattr(driver, "cuGetErrorString", lambda _: (driver.CUresult.CUDA_SUCCESS, b""))
    return fake


def test_every_part_lies_in_one_registered_range_while_the_file_grows(fake: Driver) -> None:
    rng = random.Random(1)
    file, pages = File(str(fake.path)), 0
    registered = RegisteredFile(check, fake.release, fake.wait, limit_bytes=1 << 40)
    for _ in range(300):
        if pages < 900:
            pages += rng.choice((0, 1, 7, 40))
            os.truncate(fake.path, pages * PAGE)
        if not pages:
            continue
        start = rng.randrange(pages * PAGE)
        size = rng.randint(1, pages * PAGE - start)
        position = start
        for address, length in registered.parts(file, BASE + start, size):
            assert address == BASE + position
            assert length > 0
            assert fake.holds(address, length)
            position += length
        assert position == start + size
    assert sum(end - start for start, end in fake.ranges.items()) <= pages * PAGE
    registered.close()
    assert fake.ranges == {}


def test_only_pieces_that_are_touched_are_registered(fake: Driver) -> None:
    os.truncate(fake.path, 10 * PIECE)
    registered = RegisteredFile(check, fake.release, fake.wait, limit_bytes=1 << 40)
    parts = list(registered.parts(File(str(fake.path)), BASE + 3 * PIECE + 5, PIECE))
    assert parts == [(BASE + 3 * PIECE + 5, PIECE - 5), (BASE + 4 * PIECE, 5)]
    assert fake.ranges == {BASE + 3 * PIECE: BASE + 4 * PIECE, BASE + 4 * PIECE: BASE + 5 * PIECE}


def test_a_file_that_does_not_grow_needs_no_name_any_more(fake: Driver) -> None:
    os.truncate(fake.path, 3 * PIECE)
    registered = RegisteredFile(check, fake.release, fake.wait, limit_bytes=1 << 40)
    file = File("/memory/without a name", size_bytes=3 * PIECE, grows=False)
    assert list(registered.parts(file, BASE + 2 * PIECE, PIECE)) == [(BASE + 2 * PIECE, PIECE)]
    assert fake.ranges == {BASE + 2 * PIECE: BASE + 3 * PIECE}


def test_the_limit_holds_and_nothing_is_unregistered_under_a_copy(fake: Driver) -> None:
    os.truncate(fake.path, 10 * PIECE)
    registered = RegisteredFile(check, fake.release, fake.wait, limit_bytes=3 * PIECE)
    file = File(str(fake.path))
    for address, length in registered.parts(file, BASE, 10 * PIECE):
        assert fake.holds(address, length)
        assert len(fake.ranges) <= 3
    assert fake.waits == 3


def test_another_mapping_forgets_the_first(fake: Driver) -> None:
    os.truncate(fake.path, PIECE)
    registered = RegisteredFile(check, fake.release, fake.wait, limit_bytes=1 << 40)
    list(registered.parts(File(str(fake.path)), BASE, 10))
    list(registered.parts(File(str(fake.path)), BASE, 10))
    assert fake.waits == 1
    assert fake.ranges == {BASE: BASE + PIECE}


def test_memory_that_is_not_of_the_file_is_left_alone(fake: Driver) -> None:
    os.truncate(fake.path, PIECE)
    registered = RegisteredFile(check, fake.release, fake.wait, limit_bytes=1 << 40)
    file = File(str(fake.path))
    for address in (BASE - PIECE, BASE + file.size_bytes, 0x5000):
        assert list(registered.parts(file, address, 3 * PAGE)) == [(address, 3 * PAGE)]
    assert fake.ranges == {}


def test_a_file_is_let_go_as_soon_as_another_is_named(fake: Driver) -> None:
    os.truncate(fake.path, PIECE)
    registered = RegisteredFile(check, fake.release, fake.wait, limit_bytes=1 << 40)
    list(registered.parts(File(str(fake.path)), BASE, 10))
    registered.follow(None)
    assert fake.ranges == {}


def test_where_the_driver_refuses_copies_go_all_the_same(fake: Driver, caplog: pytest.LogCaptureFixture) -> None:
    os.truncate(fake.path, 4 * PIECE)
    registered = RegisteredFile(check, fake.release, fake.wait, limit_bytes=1 << 40)
    file = File(str(fake.path))
    list(registered.parts(file, BASE, PIECE))
    fake.refuses = True
    parts = list(registered.parts(file, BASE + 10, 4 * PIECE - 10))
    assert sum(size for _, size in parts) == 4 * PIECE - 10
    assert parts[0] == (BASE + 10, PIECE - 10)
    assert all(fake.holds(*part) or part[0] >= BASE + PIECE for part in parts)
    list(registered.parts(file, BASE + PIECE, PIECE))
    assert len(caplog.records) == 1
