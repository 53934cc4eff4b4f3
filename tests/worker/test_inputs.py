"""All that a request reads is of one state of the store, whatever of it is on the device already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from kaas_core.request import BufferSpec, Request
from kaasd.devices.emulator.options import EmulatorOptions
from kaasd.devices.registry import open_device
from kaasd.libraries.registry import Libraries, describe_library
from kaasd.store.base import Write
from kaasd.store.lmdb_store import LmdbStore
from kaasd.store.snapshot import LmdbSnapshot
from kaasd.worker.executor import Executor
from tests.conformance.launching import library
from tests.conformance.test_executor import LARGE, SMALL, Bench, finish, numbers, serialize


class BusyStore(LmdbStore):
    """Somebody commits just before the next snapshot opens."""

    before_snapshot: Callable[[], object] | None = None

    def snapshot(self) -> LmdbSnapshot:
        action, self.before_snapshot = self.before_snapshot, None
        if action is not None:
            action()
        return super().snapshot()


@pytest.mark.parametrize("looked_up", ["a", "b"], ids=["first", "last"])
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_commit_in_between(tmp_path: Path, size: int, looked_up: str) -> None:
    with (
        closing(BusyStore(tmp_path / "store", limit_bytes=256 << 20)) as store,
        closing(open_device("emulator", EmulatorOptions())) as device,
    ):
        libraries = Libraries(store)
        libraries.put(describe_library(library("dot")), library("dot"))

        def put(value: int) -> None:
            array = np.full(size, value, np.uint32).tobytes()
            store.commit([Write(key, [array]) for key in ("a", "b", "c")]).result()

        def run(keys: Mapping[str, str]) -> set[int]:
            result = bench.run(request, keys, return_buffers=["p"])
            return set(np.frombuffer(result.outputs["p"], np.uint32).tolist())

        a, b, p = BufferSpec("a", 4 * size), BufferSpec("b", 4 * size), BufferSpec("p", 4 * size, ephemeral=True)
        with closing(Executor(device, store, libraries)) as executor:
            bench = Bench(executor, store)
            request = serialize(Request((bench.product(size, a, b, p),), (a, b, p)))
            put(2)
            assert run({"b": "b"}) == {4}
            store.before_snapshot = lambda: put(3)
            # The values of a and b are known to be the store's; that of c has to be looked up.
            assert run({looked_up: "c"}) == {9}
            assert store.before_snapshot is None
            assert run({"b": "b"}) == {9}
            put(5)
            assert run({"b": "b"}) == {25}


def test_small_values_are_read_once_while_nothing_is_committed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """But what a caller gives instead is taken, and what is stored comes back after it."""
    snapshots: list[LmdbSnapshot] = []
    snapshot = bench.store.snapshot
    monkeypatch.setattr(bench.store, "snapshot", lambda: snapshots.append(snapshot()) or snapshots[-1])
    a, b, p = (BufferSpec(name, 4 * SMALL, ephemeral=name == "p") for name in "abp")
    request = serialize(Request((bench.product(SMALL, a, b, p),), (a, b, p)))

    def run(**inputs: int) -> tuple[set[int], int]:
        """Return the elements of the product, and how often the store was looked at."""
        snapshots.clear()
        given = {name: np.full(SMALL, value, np.uint32).tobytes() for name, value in inputs.items()}
        result = bench.run(request, inputs=given, return_buffers=["p"])
        return set(np.frombuffer(result.outputs["p"], np.uint32).tolist()), len(snapshots)

    for key, value in (("a", 2), ("b", 3)):
        bench.put(key, np.full(SMALL, value, np.uint32))
    run()  # The library is read, too.
    assert run() == ({6}, 0)
    assert run(a=5) == ({15}, 0)
    assert run() == ({6}, 1)
    assert run() == ({6}, 0)
    bench.put("c", np.full(SMALL, 7, np.uint32))
    assert run() == ({6}, 1)


def test_a_value_that_changes_while_another_computes_with_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its own; the old one is freed with the last who uses it."""
    a, b, changed = numbers(0, LARGE), numbers(1, LARGE), numbers(2, LARGE)
    bench.put("a", a)
    bench.put("b", b)
    request, memory = bench.multiply(LARGE), bench.executor.memory
    bench.run(request)
    held_bytes = memory.held_bytes
    holding = True
    monkeypatch.setattr(bench.executor.load_gate, "holds_back", lambda now_s: holding)
    bench.executor.load_gate.enter(0.0)
    first = bench.begin(request, {"p": "q"})
    assert first.poll() is None  # all that it needs is on the device, or on its way
    bench.put("a", changed)
    second = bench.begin(request)
    assert second.poll() is None
    holding = False
    finish([first, second])
    np.testing.assert_array_equal(bench.get("q"), a * b)
    np.testing.assert_array_equal(bench.get("p"), changed * b)
    assert memory.in_use_bytes == 0
    assert memory.held_bytes == held_bytes + 4 * LARGE  # the output of the second
    bench.run(request)
    np.testing.assert_array_equal(bench.get("p"), changed * b)
