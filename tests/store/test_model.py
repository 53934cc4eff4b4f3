"""The store beside a model, whatever is done to it: two processes that write and are killed, and damage to its file.

`make soak` does it more often, each time in other ways.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from kaas_core.errors import DataDamagedError, KeyNotFoundError, StoreForeignError, StoreGoneError, ValueTooShortError
from kaasd.store.base import Durability, Entry, Namespace
from tests.store.model import Model
from tests.store.store_process import CHUNK_DAMAGE, RECORD_DAMAGE, Killed, Put, Settings, StoreProcess, Where

CHUNK_BYTES = 4096
LIMIT_BYTES = 64 << 20
PAGE_BYTES = 4096
SEQUENCES, STEPS = 25, 30
"""That are made where the command line says nothing, always the same ones; and how long each is at most."""
MEMORY = Path("/dev/shm")
"""Where closing a store waits for no disk."""

keys = st.tuples(st.sampled_from([Namespace.VALUES, Namespace.LIBRARIES]), st.sampled_from(["a", "b", "ä/1", "b/2"]))
# Around every edge of the layout: inline up to 1024, one chunk up to 4096, more than the 64 chunks that are freed at once.
sizes = st.one_of(
    st.integers(0, 40),
    st.sampled_from([1023, 1024, 1025, 4095, 4096, 4097, 8192, 65 * 4096 + 1]),
    st.integers(0, 5 * CHUNK_BYTES),
)
fractions = st.floats(0, 1, exclude_max=True)
who = st.integers(0, 1)
calls = st.integers(1, 500)
"""Of a store's threads, before one of which their process is killed."""


@dataclass(frozen=True)
class NewBytes:
    """Bytes that are easily told apart, as hypothesis should not have to make them."""

    size: int
    seed: int
    data: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", random.Random(self.seed).randbytes(self.size))


new_bytes = st.builds(NewBytes, sizes, st.integers(0, 2**32))
cuts = st.lists(fractions, max_size=3)


def cut(data: bytes, where: Sequence[float]) -> list[bytes]:
    """Return ``data`` in several buffers."""
    edges = sorted({0, len(data), *(int(x * len(data)) for x in where)})
    return [data[start:stop] for start, stop in pairwise(edges)]


@dataclass(frozen=True)
class Part:
    """One key's part of a commit, which becomes a ``Put`` beside what is stored then."""

    where: Where
    new: NewBytes
    cuts: list[float]
    start: float | None
    """Of the range that it replaces; None for the whole value."""
    create: bool
    stage: bool
    too_long: bool

    def put(self, model: Model) -> Put:
        data, offset = self.new.data, None
        if self.start is not None:
            old = len(model.values.get(self.where, b""))
            offset = int(self.start * old)
            if not self.too_long and self.where in model.values:
                data = data[: old - offset]
        return Put(self.where, cut(data, self.cuts), offset, self.create, self.stage)


rarely = st.integers(0, 19).map(lambda n: n == 7)
whole_parts = st.builds(Part, keys, new_bytes, cuts, st.none(), st.booleans(), st.booleans(), st.just(False))
range_parts = st.builds(Part, keys, new_bytes, cuts, fractions, st.booleans(), st.booleans(), rarely)
commits = st.lists(st.one_of(whole_parts, range_parts), min_size=1, max_size=4)


@dataclass(frozen=True)
class Copy:
    """Of a store, as a user keeps one."""

    file: Path
    """A tar file of a backup, or a copy of ``data.mdb``."""
    model: Model

    def restore(self, path: Path) -> None:
        if self.file.suffix == ".tar":
            shutil.rmtree(path)
            with tarfile.open(self.file) as tar:
                tar.extractall(path, filter="data")
        else:
            shutil.copyfile(self.file, path / "data.mdb")


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="kaasd-store-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None))
        self.path = self.folder / "store"
        self.model = Model()
        self.snapshots: dict[int, tuple[int, Model]] = {}
        """By number: who holds it, and what it shows."""
        self.copies: list[Copy] = []
        self.numbers = iter(range(1 << 32))
        self.was_damaged = False

    @initialize(durability=st.sampled_from(Durability))
    def begin(self, durability: Durability) -> None:
        config = Settings(self.path, durability, LIMIT_BYTES, CHUNK_BYTES)
        self.processes = [StoreProcess(config), StoreProcess(config)]
        self.open()
        self.back_up(0)

    # What users do

    @rule(who=who, parts=commits)
    def commit(self, who: int, parts: list[Part]) -> None:
        self.committed([part.put(self.model) for part in parts], lambda puts: self.processes[who].do("commit", puts))
        self.look()

    def committed(self, puts: list[Put], commit: Any) -> None:
        new, errors = self.model.after(puts)
        try:
            entries = commit(puts)
        except tuple(errors):
            return
        assert new is not None, f"it should have failed with {errors}"
        self.acknowledged(new, puts, entries)

    def acknowledged(self, new: Model, puts: list[Put], entries: dict[str, Entry]) -> None:
        for where in {put.where for put in puts}:
            entry = entries[where[1]]
            # The answer is by key, and does not tell namespaces apart.
            if len({put.where for put in puts if put.where[1] == where[1]}) == 1:
                assert entry.size_bytes == len(new.values[where])
                assert entry.version > new.last_version
                new.versions[where] = entry.version
        self.model = new

    @rule(parts=st.tuples(st.lists(whole_parts, min_size=1, max_size=3), st.lists(whole_parts, min_size=1, max_size=3)))
    def commit_at_once(self, parts: tuple[list[Part], list[Part]]) -> None:
        """Both processes, with no order between them but that of the versions."""
        commits = [[part.put(self.model) for part in some] for some in parts]
        for process, puts in zip(self.processes, commits, strict=True):
            process.tell("commit", puts)
        answers = [process.answer() for process in self.processes]
        versions = [[entry.version for entry in entries.values()] for entries in answers]
        first, second = sorted(range(2), key=versions.__getitem__)
        assert max(versions[first]) < min(versions[second])
        for number in (first, second):
            self.committed(commits[number], lambda _, number=number: answers[number])
        self.look()

    @rule(who=who, where=keys)
    def delete(self, who: int, where: Where) -> None:
        process = self.processes[who]
        if where not in self.model.values:
            with pytest.raises(KeyNotFoundError):
                process.do("delete", where)
            return
        entry = process.do("delete", where)
        self.assert_entry(entry, where)
        self.model.delete(where)
        self.look()

    @rule(who=who, where=keys, start=fractions, stop=fractions)
    def read_range(self, who: int, where: Where, start: float, stop: float) -> None:
        process, value = self.processes[who], self.model.values.get(where)
        if value is None:
            for command in (("stat", where), ("read", where, 0, 0)):
                with pytest.raises(KeyNotFoundError):
                    process.do(*command)
            return
        offset, end = sorted((int(start * len(value)), int(stop * len(value))))
        try:
            assert process.do("read", where, offset, end - offset) == value[offset:end]
            self.assert_entry(process.do("stat", where), where)
        except DataDamagedError:
            assert where in self.model.damaged
        with pytest.raises((ValueTooShortError, DataDamagedError) if where in self.model.damaged else ValueTooShortError):
            process.do("read", where, offset, len(value) - offset + 1)

    def assert_entry(self, entry: Entry, where: Where) -> None:
        if where not in self.model.damaged or entry.version:
            assert (entry.size_bytes, entry.version) == (len(self.model.values[where]), self.model.versions[where])

    @rule(who=who, new=new_bytes, cuts=cuts, give_up=st.booleans())
    def begin_upload(self, who: int, new: NewBytes, cuts: list[float], give_up: bool) -> None:
        self.processes[who].do("begin_upload", cut(new.data, cuts), give_up)

    @precondition(lambda self: len(self.snapshots) < 3)
    @rule(who=who)
    def open_snapshot(self, who: int) -> None:
        number = next(self.numbers)
        self.processes[who].do("open_snapshot", number)
        self.snapshots[number] = who, self.model.copy()

    @rule()
    def close_snapshots(self) -> None:
        for number, (who, _) in self.snapshots.items():
            self.processes[who].do("close_snapshot", number)
        self.snapshots.clear()

    @rule(who=who)
    def back_up(self, who: int) -> None:
        file = self.folder / f"{next(self.numbers)}.tar"
        self.processes[who].do("backup", file)
        self.copies.append(Copy(file, self.model.copy()))

    @rule(who=who)
    def compact(self, who: int) -> None:
        self.processes[who].do("compact")
        self.look()

    @rule(who=who)
    def sweep(self, who: int) -> None:
        self.processes[who].do("sweep")
        self.look()

    # What else happens

    @rule(who=who, parts=commits, call=calls)
    def kill_while_committing(self, who: int, parts: list[Part], call: int) -> None:
        """All of a commit is there, or nothing; and all of it where it was acknowledged."""
        process, puts = self.processes[who], [part.put(self.model) for part in parts]
        new, _ = self.model.after(puts)
        try:
            self.committed(puts, lambda puts: process.do("commit", puts, die_at=call))
        except Killed:
            # What the other process finds, which has had the store open all the time.
            found = self.processes[1 - who].do("look")
            if any(seen.entry.version > self.model.last_version for some in found.values() for seen in some):
                assert new is not None
                self.model = new
            self.model.look(found)
        self.restart(who)

    @rule(who=who, where=keys, call=calls)
    def kill_while_deleting(self, who: int, where: Where, call: int) -> None:
        process = self.processes[who]
        try:
            process.do("delete", where, die_at=call)
            is_there = False
        except KeyNotFoundError:
            is_there = False
        except Killed:
            found = self.processes[1 - who].do("look")
            is_there = any(seen.entry.key == where[1] for seen in found[where[0]])
        if where in self.model.values and not is_there:
            self.model.delete(where)
        self.restart(who)

    def restart(self, who: int) -> None:
        self.processes[who].kill()
        self.snapshots = {number: (holder, model) for number, (holder, model) in self.snapshots.items() if holder != who}
        self.processes[who].start()
        self.processes[who].do("open")
        self.look()

    @rule(copy_file=st.booleans())
    def reopen(self, copy_file: bool) -> None:
        self.close()
        if copy_file:
            self.copy_file()
        self.open()
        self.look()

    @rule(who=who, where=keys, kind=st.sampled_from(RECORD_DAMAGE + CHUNK_DAMAGE), at=fractions)
    def damage_entry(self, who: int, where: Where, kind: str, at: float) -> None:
        """While it is open, as a page of the file is damaged and not a state of it: no snapshot shows what was before."""
        self.close_snapshots()
        is_whole = where in self.model.values and where not in self.model.damaged
        if is_whole and self.processes[who].do("damage", where, kind, at):
            self.was_damaged = True
            for process in self.processes:
                process.do("forget")
            self.model.damaged.add(where)
            self.look()

    @rule(
        places=st.lists(
            st.tuples(fractions, st.one_of(st.integers(0, 128), st.integers(0, PAGE_BYTES - 1)), st.integers(1, 16)),
            min_size=1,
            max_size=3,
        ),
        seed=st.integers(0, 2**32),
        copy_file=st.booleans(),
    )
    def overwrite_places(self, places: list[tuple[float, int, int]], seed: int, copy_file: bool) -> None:
        """Of the closed file: the damage is refused with the whole store, or with the values that it is of."""
        self.close()
        if copy_file:
            self.copy_file()
        file, dice = self.path / "data.mdb", random.Random(seed)
        raw = bytearray(file.read_bytes())
        pages = -(-len(raw.rstrip(b"\0")) // PAGE_BYTES)
        for page, offset, size in places:
            start = int(page * pages) * PAGE_BYTES + offset
            raw[start : start + size] = dice.randbytes(len(raw[start : start + size]))
        file.write_bytes(raw)
        self.was_damaged = True
        before = self.model.damaged.copy()
        self.model.damage(self.model.values)
        try:
            self.open()
        except (StoreForeignError, StoreGoneError):
            assert file.read_bytes() == raw
            copy = self.copies[-1]
            copy.restore(self.path)
            self.model = copy.model.copy()
            self.open()
        self.look()
        assert len(self.model.damaged - before) <= 2 * len(places)

    # The store

    def open(self) -> None:
        for process in self.processes:
            process.do("open")

    def close(self) -> None:
        self.close_snapshots()
        for process in self.processes:
            process.do("close")

    def copy_file(self) -> None:
        """Keep a copy of the closed store's file."""
        file = self.folder / f"{next(self.numbers)}.mdb"
        shutil.copyfile(self.path / "data.mdb", file)
        self.copies.append(Copy(file, self.model.copy()))

    def look(self) -> None:
        """Both processes see what the model says, and so do all snapshots."""
        for process in self.processes:
            self.model.look(process.do("look"))
        for number, (who, model) in self.snapshots.items():
            model.look(self.processes[who].do("look", number))

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self.end()
        finally:
            for process in self.processes:
                process.kill()
            shutil.rmtree(self.folder)

    def end(self) -> None:
        self.look()
        self.close_snapshots()
        for process in self.processes:
            assert {(entry.namespace, entry.key) for entry in process.do("check")} == self.model.damaged
        for where in list(self.model.values):
            self.processes[0].do("delete", where)
            self.model.delete(where)
        self.look()
        assert self.processes[1].do("check") == []
        # Uploads end with their process.
        self.restart(1)
        self.processes[0].do("close")
        self.processes[1].do("sweep")
        assert self.processes[1].do("used_bytes") == 0 or self.was_damaged
        self.processes[1].do("close")


def test_any_sequence_of_operations(request: pytest.FixtureRequest) -> None:
    wanted = request.config.getoption("--sequences")
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=SEQUENCES if wanted is None else wanted,
            stateful_step_count=STEPS,
            derandomize=wanted is None,
            deadline=None,
            # Shrinking takes longer than a test may; a run of one's own does it.
            phases=[Phase.reuse, Phase.generate] + ([] if wanted is None else [Phase.shrink]),
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
