"""Calls that wait for their code leave their places to others, and come back to one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kaas.worker.v1 import worker_pb2
from kaas_core.errors import CancelledError, DeadlineExceededError
from kaasd.worker import loop
from kaasd.worker.cancellation import Cancellation
from kaasd.worker.execution import Result
from tests.worker.support import MOST_UNDER_WAY, HeldExecutor, HeldJob, Worker, execute, reason, wait_for_jobs

Serve = Callable[[HeldExecutor], Worker]


class CompilingJob(HeldJob):
    """Waits for its code at first, until ``awaits_what_is_done``."""

    def __init__(self, cancellation: Cancellation) -> None:
        super().__init__(cancellation, is_compiling=True, awaits_what_is_done=False)

    def poll(self) -> Result | None:
        if self.begun and self.awaits_what_is_done:
            self.is_compiling = False
        return super().poll()


def compilings(worker: Worker, count: int) -> list[tuple[int, bool]]:
    """Receive so many messages, which say that calls are compiling now, or no longer."""
    messages: list[worker_pb2.FromWorker] = [worker.answer() for _ in range(count)]
    assert all(message.HasField("compiling") for message in messages), messages
    return [(message.id, message.compiling.begins) for message in messages]


def finish(executor: HeldExecutor) -> None:
    """Let all jobs end that have begun."""
    for job in executor.jobs:
        job.awaits_what_is_done = True
        job.ended.set()


def executed(worker: Worker, count: int) -> set[int]:
    """Receive until so many calls are answered; return which. Others come back meanwhile."""
    answered: list[int] = []
    while len(answered) < count:
        message = worker.answer()
        if not message.HasField("compiling"):
            assert message.HasField("executed")
            answered.append(message.id)
    return set(answered)


def test_others_are_served_meanwhile(serve: Serve) -> None:
    executor = HeldExecutor(*[CompilingJob] * 5, *[HeldJob] * 6)
    worker = serve(executor)
    for call_id in range(1, 12):
        worker.send(execute(call_id))
    assert compilings(worker, 5) == [(call_id, True) for call_id in range(1, 6)]
    wait_for_jobs(executor, 5 + MOST_UNDER_WAY)
    executor.jobs[0].awaits_what_is_done = True
    worker.cancel(99)
    worker.wait_for_early_cancellation(99)
    assert executor.jobs[0].is_compiling  # There is no place for it.
    assert worker.progress.begun().keys() == {6, 7, 8, 9, 10}
    executor.jobs[5].ended.set()
    assert worker.answer().id == 6
    assert compilings(worker, 1) == [(1, False)]  # It comes before the last one.
    assert len(executor.jobs) == 10
    assert worker.progress.begun().keys() == {1, 7, 8, 9, 10}
    finish(executor)
    wait_for_jobs(executor, 11)
    finish(executor)
    assert executed(worker, 10) == {1, 2, 3, 4, 5, 7, 8, 9, 10, 11}


@pytest.mark.parametrize(("by_deadline", "error"), [(True, DeadlineExceededError), (False, CancelledError)])
def test_one_that_is_cancelled_ends_at_once_and_stops_no_other(serve: Serve, by_deadline: bool, error: Any) -> None:
    executor = HeldExecutor(CompilingJob, *[HeldJob] * 4)
    worker = serve(executor)
    for call_id in range(1, 6):
        worker.send(execute(call_id))
    assert compilings(worker, 1) == [(1, True)]
    wait_for_jobs(executor, 5)
    worker.cancel(1, deadline_exceeded=by_deadline)
    assert compilings(worker, 1) == [(1, False)]
    failed = worker.answer()
    assert (failed.id, failed.failed.reason) == (1, reason(error))
    assert executor.device.asked == 0
    assert not executor.device_lost
    for job in executor.jobs[1:]:
        job.ended.set()
    assert {worker.answer().id for _ in range(4)} == {2, 3, 4, 5}


def test_no_more_are_compiling_than_there_is_room_for(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "MAX_COMPILING", 2)
    executor = HeldExecutor(*[CompilingJob] * 8)
    worker = serve(executor)
    for call_id in range(1, 9):
        worker.send(execute(call_id))
    assert compilings(worker, 2) == [(1, True), (2, True)]
    wait_for_jobs(executor, 2 + MOST_UNDER_WAY)
    worker.cancel(99)
    worker.wait_for_early_cancellation(99)
    assert len(executor.jobs) == 7
    finish(executor)
    wait_for_jobs(executor, 8)
    finish(executor)
    assert executed(worker, 8) == set(range(1, 9))
