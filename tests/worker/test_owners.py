"""Device memory that counts for an owner, which may have a limit of its own; and what requests that wait for it do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kaas_core.errors import GroupLimitError
from kaasd.devices.base import Device
from kaasd.devices.emulator.options import EmulatorOptions
from kaasd.devices.emulator.runtime.device import EmulatedDevice
from kaasd.libraries.registry import Libraries, describe_library
from kaasd.store.lmdb_store import LmdbStore
from kaasd.worker.cancellation import Cancellation
from kaasd.worker.device_memory import DeviceMemory, Holding
from kaasd.worker.execution import Invocation, Job, Result, execute
from kaasd.worker.executor import Executor
from kaasd.worker.inputs import BoundRequest
from kaasd.worker.residency import Owner, OwnerLimitError, Residency
from kaasd.worker.turns import MemoryTurns
from tests.conformance.launching import library
from tests.conformance.test_executor import LARGE, Bench, finish, numbers

A, B = Owner("a", 300), Owner("b")
VALUE = 4 * LARGE


def residency(*held: tuple[str, Owner], limit: int = 1000) -> Residency[str]:
    made: Residency[str] = Residency(limit)
    for key, owner in held:
        assert made.make_room(100, owner) == []
        made.add(key, 100, 1.0, owner.name)
        made.release(key, owner.name)
    return made


def test_over_its_limit_an_owner_loses_its_own_and_no_other() -> None:
    held = residency(("b1", B), ("a1", A), ("a2", A), ("a3", A), ("b2", B))
    assert held.held_of("a") == 300
    assert held.make_room(200, A) == ["a3", "a2"]
    assert (held.held_of("a"), held.held_of("b"), held.held_bytes) == (100, 200, 300)


def test_a_device_is_full_where_its_own_limit_is_reached_and_not_an_owners() -> None:
    held = residency(("a1", A), ("a2", A), ("a3", A), ("b1", B), limit=500)
    assert held.make_room(100, A) == ["a3"]
    assert not held.was_full
    held.add("a4", 100, 1.0, A.name)
    held.release("a4", A.name)
    assert len(held.make_room(200, B)) == 1
    assert held.was_full


def test_the_memory_of_a_device_says_once_that_it_was_full() -> None:
    with closing(EmulatedDevice(EmulatorOptions(memory_bytes=1 << 20))) as device:
        memory = DeviceMemory(device, 500)
        for key, owner in (("a1", A), ("a2", A), ("a3", A), ("a4", A), ("b1", B), ("b2", B)):
            memory.release(memory.make(key, [100], 1.0, lambda buffers, key=key: Holding(key, buffers), owner=owner), owner)
            assert (memory.take_gone(), memory.take_was_full()) == ((["a3"], False) if key == "a4" else ([], False))
        memory.release(memory.make("b3", [100], 1.0, lambda buffers: Holding("b3", buffers), owner=B), B)
        assert (len(memory.take_gone()), memory.take_was_full(), memory.take_was_full()) == (1, True, False)
        memory.close()


def test_what_an_owner_uses_leaves_too_little_of_its_limit() -> None:
    held = residency(("a1", A), ("b1", B), ("a2", A))
    held.use("a1", A.name)
    with pytest.raises(OwnerLimitError) as error:
        held.make_room(201, A)
    assert (error.value.asked_bytes, error.value.in_use_bytes, error.value.limit_bytes) == (201, 100, 300)
    assert held.make_room(201, B) == []
    assert held.held_bytes == 300
    held.release("a1", A.name)
    assert held.in_use_of("a") == 0
    assert held.make_room(201, A) == ["a2", "a1"]


def test_room_for_an_owner_counts_as_room_for_all() -> None:
    held = residency(("a1", A), ("a2", A), ("a3", A), ("b1", B), limit=400)
    assert held.make_room(100, A) == ["a3"]
    assert held.held_bytes == 300


def test_what_another_takes_over_counts_for_it() -> None:
    held = residency(("a1", A), ("a2", A), ("a3", A), ("b1", B))
    assert held.give("a1", A) == []
    assert held.give("b1", A) == ["a3"]
    assert (held.held_of("a"), held.held_of("b")) == (300, 0)
    for key in ("a1", "a2", "b1"):
        held.use(key, A.name)
    held.add("b2", 100, 1.0, B.name)
    held.release("b2", B.name)
    with pytest.raises(OwnerLimitError):
        held.give("b2", A)
    assert held.make_room(1, B) == []
    assert held.evict(1000) == ["b2"]


def test_what_only_others_use_counts_for_nobody_once_its_owner_needs_the_room() -> None:
    held = residency(("a1", A), ("a2", A), ("a3", A))
    held.use("a1", B.name)
    held.use("a2", B.name)
    held.use("a2", A.name)
    assert held.make_room(100, A) == ["a3"]
    assert (held.held_of("a"), held.in_use_of("a")) == (200, 100)
    with pytest.raises(OwnerLimitError) as error:
        held.make_room(201, A)
    assert error.value.in_use_bytes == 100
    assert held.make_room(200, A) == []
    assert (held.held_of("a"), held.in_use_of("a"), held.held_bytes, held.in_use_bytes) == (100, 100, 200, 200)
    held.release("a1", B.name)
    held.release("a2", A.name)
    assert (held.held_of("a"), held.in_use_of("a"), held.in_use_bytes) == (100, 0, 100)
    held.remove("a2")
    assert held.evict(1) == ["a1"]
    assert (held.held_of("a"), held.held_of(""), held.held_bytes, held.in_use_bytes) == (0, 0, 0, 0)


class TestTurns:
    @pytest.fixture
    def turns(self, bench: Bench) -> MemoryTurns:
        return bench.executor.memory_turns

    def test_who_waits_for_its_owner_holds_up_only_those_of_that(self, turns: MemoryTurns) -> None:
        turns.wait("1", A, (), for_owner=True)
        assert turns.may_try("1", A)
        assert not turns.may_try("2", A)
        assert turns.may_try("3", B)
        turns.wait_behind("2", A, tuple)
        turns.leave("1", A)
        assert turns.may_try("2", A)
        assert len(turns) == 1
        turns.leave("2", A)
        turns.leave("2", A)
        assert len(turns) == 0

    def test_who_waits_for_the_device_holds_up_all(self, turns: MemoryTurns) -> None:
        turns.wait("1", A, (), for_owner=True)
        turns.wait("2", A, (), for_owner=False)
        assert [turns.may_try(who, owner) for who, owner in (("1", A), ("2", A), ("3", B))] == [False, True, False]
        turns.wait_behind("3", B, tuple)
        turns.wait("2", A, (), for_owner=True)  # it has tried, and now lacks only what its owner may have
        assert [turns.may_try(who, owner) for who, owner in (("1", A), ("2", A), ("3", B))] == [False, False, True]
        turns.leave("3", B)
        assert [turns.may_try(who, owner) for who, owner in (("1", A), ("2", A), ("3", B))] == [True, False, True]
        turns.leave("1", A)
        assert turns.may_try("2", A)


class TestRequests:
    @pytest.fixture
    def bench(self, tmp_path: Path, device: Device) -> Iterator[Bench]:
        with closing(LmdbStore(tmp_path / "store", limit_bytes=256 << 20)) as store:
            libraries = Libraries(store)
            libraries.put(describe_library(library("dot")), library("dot"))
            with closing(Executor(device, store, libraries, memory_limit_bytes=40 * VALUE)) as executor:
                made = Bench(executor, store)
                for seed in range(6):
                    made.put(f"v{seed}", numbers(seed, LARGE))
                yield made

    @staticmethod
    def begin(
        bench: Bench, seed: int, group: str = "a", limit: int = 0, on_waiting: Callable[[bool], object] = lambda begins: None
    ) -> Job[Result]:
        keys = {"a": f"v{seed}", "b": f"v{5 - seed}", "p": f"p{seed}"}
        request = bench.multiply(LARGE)
        invocation = Invocation(
            request, keys, {}, [], Cancellation(), on_waiting=on_waiting, group=group, max_device_memory_bytes=limit
        )
        return execute(bench.executor, invocation)

    def test_a_group_keeps_to_its_limit_and_others_keep_theirs(self, bench: Bench) -> None:
        memory, loaded = bench.executor.memory, []
        finish([self.begin(bench, 0, "b")])
        of_b = memory.held_bytes
        for seed in (1, 2, 1, 2):
            uploads = bench.executor.uploads
            finish([self.begin(bench, seed, "a", limit=7 * VALUE // 2)])
            loaded.append(bench.executor.uploads - uploads)
            assert memory.held_bytes - of_b <= 7 * VALUE // 2
        assert loaded == [2, 2, 2, 2]  # there is room for two values beside the output, and for four without the limit
        uploads = bench.executor.uploads
        finish([self.begin(bench, 0, "b")])
        assert bench.executor.uploads == uploads
        for seed in (0, 1, 2):
            assert np.array_equal(bench.get(f"p{seed}"), numbers(seed, LARGE) * numbers(5 - seed, LARGE))

    def test_a_request_that_needs_more_alone_is_refused(self, bench: Bench) -> None:
        with pytest.raises(GroupLimitError) as error:
            finish([self.begin(bench, 0, "a", limit=2 * VALUE)])
        assert error.value.metadata == {"group": "a", "limit": "max_device_memory_bytes"}
        assert bench.executor.memory.in_use_bytes == 0
        assert len(bench.executor.memory_turns) == 0
        finish([self.begin(bench, 0, "a", limit=4 * VALUE)])

    def test_one_waits_for_those_of_its_group_and_for_no_other(self, bench: Bench) -> None:
        executor, limit = bench.executor, 4 * VALUE
        program = executor.programs.get(bench.multiply(LARGE))
        plan = program.with_keys({"a": "v0", "b": "v5", "p": "p0"})
        with closing(BoundRequest(executor, program, plan, {}, owner=Owner("a", limit))):
            waiting = self.begin(bench, 1, "a", limit)
            assert waiting.poll() is None
            assert len(executor.memory_turns) == 1
            finish([self.begin(bench, 2, "b")])
            assert waiting.poll() is None
        finish([waiting])
        assert len(executor.memory_turns) == 0
        assert np.array_equal(bench.get("p1"), numbers(1, LARGE) * numbers(4, LARGE))

    def test_what_only_others_use_keeps_no_room_from_its_owner(self, bench: Bench) -> None:
        """Else the requests of a group would wait for as long as others use what it has brought."""
        executor, limit = bench.executor, 4 * VALUE
        finish([self.begin(bench, 0, "a", limit)])
        program = executor.programs.get(bench.multiply(LARGE))
        plan = program.with_keys({"a": "v0", "b": "v5", "p": "p0"})
        uploads = executor.uploads
        with closing(BoundRequest(executor, program, plan, {}, owner=B)):
            assert executor.uploads == uploads
            job = self.begin(bench, 1, "a", limit)
            job.poll()
            assert len(executor.memory_turns) == 0
            finish([job])
            finish([self.begin(bench, 0, "b")])
            assert executor.uploads == uploads + 2
        assert executor.memory.in_use_bytes == executor.memory.in_use_of("a") == executor.memory.in_use_of("b") == 0
        assert np.array_equal(bench.get("p1"), numbers(1, LARGE) * numbers(4, LARGE))

    def test_what_its_owner_and_others_use_counts_until_the_owner_is_done(self, bench: Bench) -> None:
        executor, limit = bench.executor, 4 * VALUE
        program = executor.programs.get(bench.multiply(LARGE))
        plan = program.with_keys({"a": "v0", "b": "v5", "p": "p0"})
        of_a = BoundRequest(executor, program, plan, {}, owner=Owner("a", limit))
        with closing(of_a), closing(BoundRequest(executor, program, plan, {}, owner=B)):
            waiting = self.begin(bench, 1, "a", limit)
            assert waiting.poll() is None
            assert len(executor.memory_turns) == 1
            of_a.close()
            assert executor.memory.in_use_of("a") == 0
            finish([waiting])
        assert executor.memory.in_use_bytes == 0

    def test_who_waits_for_memory_has_nothing_on_the_device(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """So its cancellation stops no kernel, which would be another's, and it is no suspect where the worker dies."""
        executor, limit, waits, seen = bench.executor, 4 * VALUE, list[bool](), list[tuple[bool, bool]]()
        program = executor.programs.get(bench.multiply(LARGE))
        plan = program.with_keys({"a": "v0", "b": "v5", "p": "p0"})
        with closing(BoundRequest(executor, program, plan, {}, owner=Owner("a", limit))):
            first, second = (self.begin(bench, seed, "a", limit, waits.append) for seed in (1, 2))
            for job in (first, second):
                assert not job.awaits_memory
                for _ in range(3):
                    assert job.poll() is None
                    assert job.awaits_memory
                    assert waits[-1]
        take = executor.slots.take

        def look_and_take(who: Any, priority: int, group: str) -> bool:
            seen.append((first.awaits_memory, waits[-1]))
            return take(who, priority, group)

        monkeypatch.setattr(executor.slots, "take", look_and_take)
        finish([first])
        assert seen == [(False, False)]
        finish([second])
        assert waits.count(True) == waits.count(False)
