"""The store beside a dictionary: any sequence of operations leaves both the same, and open snapshots as they were."""

from __future__ import annotations

import random
import shutil
import tempfile
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kaas_core.errors import KeyNotFoundError, ValueTooShortError
from kaasd.store.base import Durability, Namespace, Write
from kaasd.store.lmdb_store import LmdbStore
from kaasd.store.snapshot import LmdbSnapshot

CHUNK_BYTES = 4096

Model = dict[tuple[Namespace, str], bytes]

keys = st.tuples(st.sampled_from([Namespace.VALUES, Namespace.LIBRARIES]), st.sampled_from(["a", "b", "ä/1", "b/2"]))
# Around every edge of the layout: inline up to 1024, one chunk up to 4096, more than the 64 chunks that are freed at once.
sizes = st.one_of(
    st.integers(0, 40),
    st.sampled_from([1023, 1024, 1025, 4095, 4096, 4097, 8192, 65 * 4096 + 1]),
    st.integers(0, 5 * CHUNK_BYTES),
)


@dataclass(frozen=True)
class NewBytes:
    """Bytes that are easily told apart, as hypothesis should not have to make them."""

    size: int
    seed: int
    data: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", random.Random(self.seed).randbytes(self.size))


new_bytes = st.builds(NewBytes, sizes, st.integers(0, 2**32))
cuts = st.lists(st.floats(0, 1), max_size=3)


def cut(data: bytes, where: list[float]) -> list[bytes]:
    """Return ``data`` in several buffers."""
    edges = sorted({0, len(data), *(int(x * len(data)) for x in where)})
    return [data[start:stop] for start, stop in pairwise(edges)]


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="kaasd-store-")
        self.model: Model = {}
        self.versions: dict[tuple[Namespace, str], int] = {}
        self.last_version = 0
        self.snapshots: list[tuple[LmdbSnapshot, Model]] = []

    @initialize()
    def open(self) -> None:
        self.store = LmdbStore(self.folder, limit_bytes=64 << 20, chunk_bytes=CHUNK_BYTES, durability=Durability.NONE)

    def publish(self, writes: list[Write], changes: Model) -> None:
        if len({write.key for write in writes}) < len({(write.namespace, write.key) for write in writes}):
            entries = None  # The answer is by key, and cannot tell namespaces apart.
            self.store.commit(writes).result()
        else:
            entries = self.store.commit(writes).result()
        self.model |= changes
        with self.store.snapshot() as snapshot:
            for where, value in changes.items():
                entry = snapshot.stat(where[1], where[0])
                assert entry.size_bytes == len(value)
                assert entry.version > self.last_version
                assert entries is None or entries[where[1]] == entry
                self.versions[where] = entry.version
        self.last_version = max([self.last_version, *(self.versions[where] for where in changes)])

    @rule(values=st.lists(st.tuples(keys, new_bytes, cuts, st.booleans()), min_size=1, max_size=4))
    def put(self, values: list) -> None:
        writes, changes = [], {}
        for (namespace, key), new, where, stage in values:
            if stage:
                pieces = self.store.stage()
                for piece in cut(new.data, where):
                    pieces.append(piece)
            else:
                pieces = cut(new.data, where)
            writes.append(Write(key, pieces, namespace=namespace))
            changes[namespace, key] = new.data
        self.publish(writes, changes)

    @rule(patches=st.lists(st.tuples(keys, st.floats(0, 1), new_bytes, st.booleans()), min_size=1, max_size=3))
    def put_ranges(self, patches: list) -> None:
        writes, changes = [], {}
        for where, start, new, stage in patches:
            if where not in self.model:
                continue
            value = changes.get(where, self.model[where])
            offset = int(start * len(value))
            patch = new.data[: len(value) - offset]
            pieces = [patch]
            if stage:
                pieces = self.store.stage()
                pieces.append(patch)
            writes.append(Write(where[1], pieces, offset, where[0]))
            changes[where] = value[:offset] + patch + value[offset + len(patch) :]
        self.publish(writes, changes)

    @rule(where=keys, new=new_bytes, good=keys)
    def put_beyond_the_end(self, where: tuple[Namespace, str], new: NewBytes, good: tuple[Namespace, str]) -> None:
        value = self.model.get(where, b"")
        writes = [Write(where[1], [b"x", new.data], len(value), where[0])]
        if good != where:
            writes.insert(0, Write(good[1], [new.data], namespace=good[0]))
        with pytest.raises(ValueTooShortError if where in self.model else KeyNotFoundError):
            self.store.commit(writes).result()

    @rule(where=keys)
    def delete(self, where: tuple[Namespace, str]) -> None:
        if where not in self.model:
            with pytest.raises(KeyNotFoundError):
                self.store.delete(where[1], where[0]).result()
            return
        entry = self.store.delete(where[1], where[0]).result()
        assert (entry.version, entry.size_bytes) == (self.versions[where], len(self.model.pop(where)))

    @rule(new=new_bytes)
    def abandon_an_upload(self, new: NewBytes) -> None:
        with self.store.stage() as staged:
            staged.append(new.data)

    @precondition(lambda self: len(self.snapshots) < 3)
    @rule()
    def open_snapshot(self) -> None:
        self.snapshots.append((self.store.snapshot(), dict(self.model)))

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data())
    def close_snapshot(self, data: st.DataObject) -> None:
        snapshot, _ = self.snapshots.pop(data.draw(st.integers(0, len(self.snapshots) - 1)))
        snapshot.close()

    @precondition(lambda self: not self.snapshots)
    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.open()

    @rule(where=keys, start=st.floats(0, 1), stop=st.floats(0, 1))
    def read_range(self, where: tuple[Namespace, str], start: float, stop: float) -> None:
        for snapshot, model in self.snapshots:
            if where in model:
                value = model[where]
                offset, end = sorted((int(start * len(value)), int(stop * len(value))))
                seen = b"".join(snapshot.pieces(where[1], offset, end - offset, where[0]))
                assert seen == value[offset:end]

    @invariant()
    def every_snapshot_shows_its_state(self) -> None:
        if not hasattr(self, "store"):
            return
        with self.store.snapshot() as now:
            for snapshot, model in [*self.snapshots, (now, self.model)]:
                for namespace in Namespace:
                    expected = {key: value for (where, key), value in model.items() if where is namespace}
                    entries = snapshot.list(namespace=namespace)
                    assert [entry.key for entry in entries] == sorted(expected, key=str.encode)
                    assert all(b"".join(snapshot.pieces(e.key, namespace=namespace)) == expected[e.key] for e in entries)

    def teardown(self) -> None:
        for snapshot, _ in self.snapshots:
            snapshot.close()
        for namespace, key in self.model:
            self.store.delete(key, namespace).result()
        self.store.sweep().result()
        used = self.store.stats().used_bytes
        self.store.close()
        shutil.rmtree(self.folder)
        assert used == 0


StoreMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
test_any_sequence_of_operations = StoreMachine.TestCase
