"""A request beyond those that run has its inputs brought, and waits for one of them to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kaas.worker.v1 import worker_pb2
from kaas_core.errors import CancelledError, DeadlineExceededError
from kaasd.devices.base import Device
from kaasd.libraries.registry import Libraries, describe_library
from kaasd.store.base import DEFAULT_ACCOUNT
from kaasd.store.lmdb_store import LmdbStore
from kaasd.store.snapshot import LmdbSnapshot
from kaasd.worker.cancellation import Cancellation
from kaasd.worker.execution import Invocation, Job, Result, execute
from kaasd.worker.executor import Executor
from kaasd.worker.turns import Slots
from tests.conformance.launching import library
from tests.conformance.test_executor import LARGE, Bench, finish, numbers
from tests.worker.support import MOST_UNDER_WAY, HeldExecutor, HeldJob, Worker, reason, reasons, wait_for_jobs, wait_until
from tests.worker.support import execute as message


def test_slots_are_given_in_turn() -> None:
    slots = Slots(2)
    assert slots.take("a") and slots.take("b")
    assert not slots.has_free()
    assert not slots.take("c") and not slots.take("d")
    slots.leave("b")
    assert slots.has_free()
    assert not slots.take("d") and not slots.take("e")
    slots.leave("c")
    assert slots.take("d")
    slots.leave("a")
    slots.leave("a")
    assert slots.take("e")
    assert not slots.take("f")


def test_a_higher_priority_than_some_comes_beside_them() -> None:
    slots = Slots(2)
    assert slots.take("a", 1) and slots.take("b", 2)
    assert not slots.has_free(1) and slots.has_free(2)
    assert not slots.take("c", 1)
    assert not slots.take("d", 5)  # it is not its turn
    slots.leave("c")
    assert slots.take("d", 5)
    assert not slots.take("e", 9)
    slots.leave("b")
    assert not slots.take("e", 1)
    assert slots.take("e", 2)


def test_a_group_with_a_slot_of_its_own_waits_for_itself_only() -> None:
    slots = Slots(1)
    slots.reserve(["alerts", "others"])
    assert slots.take("a") and not slots.take("b")
    assert slots.has_free(0, "alerts")
    assert slots.take("c", 0, "alerts")
    assert not slots.has_free(0, "alerts") and not slots.take("d", 0, "alerts")
    assert slots.take("e", 0, "others")
    slots.leave("c")
    assert slots.has_free(0, "alerts") and not slots.has_free()
    assert slots.take("d", 0, "alerts"), "b, which is before it, waits for another slot"
    slots.leave("a")
    assert slots.take("b")
    slots.reserve([])
    assert not slots.take("f", 0, "alerts")
    slots.leave("d")
    slots.leave("b")
    assert slots.take("f", 0, "alerts")


class HeldStore(LmdbStore):
    """Has a commit that ends when the test says so, and counts snapshots."""

    held: Future[Any] | None = None
    snapshots = 0

    def commit(self, *arguments: Any, **options: Any) -> Future[Any]:
        held, self.held = self.held, None
        if held is None:
            return super().commit(*arguments, **options)
        return held

    def snapshot(self) -> LmdbSnapshot:
        self.snapshots += 1
        return super().snapshot()


class TestExecution:
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[HeldStore]:
        with closing(HeldStore(tmp_path / "store", limit_bytes=256 << 20)) as store:
            yield store

    @pytest.fixture
    def bench(self, store: HeldStore, device: Device) -> Iterator[Bench]:
        libraries = Libraries(store)
        libraries.put(describe_library(library("dot")), library("dot"))
        with closing(Executor(device, store, libraries, concurrency=1)) as executor:
            made = Bench(executor, store)
            for seed in range(6):
                made.put(f"v{seed}", numbers(seed, LARGE))
            yield made

    @staticmethod
    def begin(bench: Bench, seed: int, waits: list[bool], cancellation: Cancellation | None = None) -> Job[Result]:
        keys = {"a": f"v{seed}", "b": f"v{5 - seed}", "p": f"p{seed}"}
        invocation = Invocation(bench.multiply(LARGE), keys, {}, [], cancellation or Cancellation(), on_waiting=waits.append)
        return execute(bench.executor, invocation)

    def hold(self, bench: Bench, store: HeldStore) -> tuple[Job[Result], Future[Any]]:
        """Return a job that commits until its future has a result."""
        store.held = held = Future()
        first = self.begin(bench, 0, [])
        while not first.is_committing:
            assert first.poll() is None
        return first, held

    def test_its_inputs_are_brought_while_another_holds_the_slot(self, bench: Bench, store: HeldStore) -> None:
        waits: list[bool] = []
        first, held = self.hold(bench, store)
        uploads = bench.executor.uploads
        second = self.begin(bench, 1, waits)
        for _ in range(100):
            assert second.poll() is None
        assert second.awaits_slot and not second.awaits_what_is_done
        assert bench.executor.uploads == uploads + 2
        assert waits == [True]
        held.set_result({})
        finish([first])
        assert second.awaits_what_is_done
        (result,) = finish([second])
        assert waits == [True, False]
        assert result.slot_ns > 0
        assert bench.executor.uploads == uploads + 2
        assert np.array_equal(bench.get("p1"), numbers(1, LARGE) * numbers(4, LARGE))
        assert finish([self.begin(bench, 2, waits)])[0].slot_ns == 0
        assert waits == [True, False]

    def test_one_of_a_group_that_reserves_launches_beside_it(self, bench: Bench, store: HeldStore) -> None:
        first, held = self.hold(bench, store)
        bench.executor.slots.reserve([DEFAULT_ACCOUNT])
        (result,) = finish([self.begin(bench, 1, [])])
        assert result.slot_ns == 0
        assert np.array_equal(bench.get("p1"), numbers(1, LARGE) * numbers(4, LARGE))
        held.set_result({})
        finish([first])

    def test_one_that_is_cancelled_leaves_all_to_the_others(self, bench: Bench, store: HeldStore) -> None:
        first, held = self.hold(bench, store)
        cancellation = Cancellation()
        second, third = self.begin(bench, 1, [], cancellation), self.begin(bench, 2, [])
        assert (second.poll(), third.poll()) == (None, None)
        in_use = bench.executor.memory.in_use_bytes
        cancellation.reason = CancelledError("the caller went away")
        with pytest.raises(CancelledError):
            while True:
                second.poll()
        assert bench.executor.memory.in_use_bytes < in_use
        held.set_result({})
        finish([first])
        finish([third])
        assert np.array_equal(bench.get("p2"), numbers(2, LARGE) * numbers(3, LARGE))
        assert bench.executor.memory.in_use_bytes == 0

    def test_one_that_is_cancelled_as_it_gets_its_slot_launches_nothing(
        self, bench: Bench, store: HeldStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The device was not told of it, since it did not run."""
        first, held = self.hold(bench, store)
        cancellation, waits = Cancellation(), list[bool]()
        second = self.begin(bench, 1, waits, cancellation)
        assert second.poll() is None
        held.set_result({})
        finish([first])
        take = bench.executor.slots.take

        def take_and_cancel(who: Any, priority: int, group: str) -> bool:
            cancellation.reason = CancelledError("the caller went away")
            return take(who, priority, group)

        monkeypatch.setattr(bench.executor.slots, "take", take_and_cancel)
        with pytest.raises(CancelledError):
            while True:
                second.poll()
        assert bench.executor.slots.has_free()


@pytest.mark.parametrize("awaits", ["awaits_slot", "awaits_memory"])
@pytest.mark.parametrize("overdue", [False, True])
def test_a_call_that_waits_for_others_ends_at_once_and_costs_no_device(
    serve: Callable[[HeldExecutor], Worker], overdue: bool, awaits: str
) -> None:
    executor = HeldExecutor(HeldJob, HeldJob)
    worker = serve(executor)
    for call_id in (1, 2):
        worker.send(message(call_id))
    wait_for_jobs(executor, 2)
    setattr(executor.jobs[1], awaits, True)
    if overdue:
        error = DeadlineExceededError("late")
        wait_until(lambda: 2 in worker.serving.calls._under_way)
        worker.serving.calls.cancel(2, error, overdue=True)
    else:
        worker.cancel(2)
    assert reasons([worker.answer()]) == {2: (reason(DeadlineExceededError), False)}
    assert executor.device.asked == 0
    assert not executor.device_lost
    executor.jobs[0].ended.set()
    assert worker.answer().id == 1


def test_a_call_that_waits_for_a_slot_counts_as_not_begun(serve: Callable[[HeldExecutor], Worker]) -> None:
    executor = HeldExecutor(HeldJob, HeldJob)
    worker = serve(executor)
    for call_id in (1, 2):
        worker.send(message(call_id))
    wait_for_jobs(executor, 2)
    on_waiting = executor.invocations[1].on_waiting
    on_waiting(True)
    assert worker.progress.begun().keys() == {1}
    on_waiting(False)
    assert worker.progress.begun().keys() == {1, 2}
    for job in executor.jobs:
        job.ended.set()
    assert {worker.answer().id, worker.answer().id} == {1, 2}


def test_each_group_that_reserves_lets_one_call_more_come(serve: Callable[[HeldExecutor], Worker]) -> None:
    executor = HeldExecutor(*[HeldJob] * (MOST_UNDER_WAY + 3))
    worker = serve(executor)
    for call_id in range(1, MOST_UNDER_WAY + 1):
        worker.send(message(call_id))
    wait_for_jobs(executor, MOST_UNDER_WAY)
    executor.jobs[0].ended.set()
    assert worker.answer().id == 1
    worker.send(worker_pb2.ToWorker(reserve=worker_pb2.Reserve(multiprocessors={"a": 8, "b": 8})))
    for call_id in range(MOST_UNDER_WAY + 1, MOST_UNDER_WAY + 4):
        worker.send(message(call_id))
    wait_for_jobs(executor, MOST_UNDER_WAY + 3)
    for job in executor.jobs:
        job.ended.set()
    assert {worker.answer().id for _ in range(MOST_UNDER_WAY + 2)} == {*range(2, MOST_UNDER_WAY + 4)}
