"""The loop of a worker over real socketpairs, with jobs that end when the test says so."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from kaas.worker.v1 import worker_pb2
from kaas_core.errors import DeadlineExceededError, WorkerRestartingError
from kaasd.devices.base import DeviceLost
from kaasd.worker.cancellation import Cancellation
from kaasd.worker.execution import Result
from kaasd.worker.executor import Executor
from kaasd.worker.loop import Calls, CallUnderWay
from kaasd.worker.programs import UnknownRequest
from tests.worker.support import (
    RESULT,
    DeafJob,
    HeldExecutor,
    HeldJob,
    Worker,
    execute,
    first_answer,
    reason,
    reasons,
    wait_for_jobs,
    wait_until,
)


def test_a_call_that_heeds_its_deadline_leaves_the_device_to_the_others(serve: Callable[[HeldExecutor], Worker]) -> None:
    executor = HeldExecutor(HeldJob, HeldJob)
    worker = serve(executor)
    worker.send(execute(1))
    worker.send(execute(2))
    wait_for_jobs(executor, 2)
    worker.cancel(1)
    assert reasons([worker.answer()]) == {1: (reason(DeadlineExceededError), False)}
    executor.jobs[1].ended.set()
    assert worker.answer().executed.kernels_launched == 1
    assert not executor.device_lost


def test_a_device_with_a_kernel_that_cannot_be_stopped_is_lost(serve: Callable[[HeldExecutor], Worker]) -> None:
    executor = HeldExecutor(HeldJob, DeafJob, HeldJob)
    worker = serve(executor)
    for call_id in (1, 2, 3):
        worker.send(execute(call_id))
    wait_for_jobs(executor, 3)
    executor.jobs[2].is_committing = True
    worker.cancel(2)
    assert reasons([worker.answer(), worker.answer()]) == {
        1: (reason(WorkerRestartingError), True),
        2: (reason(DeadlineExceededError), True),
    }
    executor.jobs[2].ended.set()
    answer = worker.answer()
    assert (answer.id, answer.WhichOneof("answer")) == (3, "executed")
    worker.join()


def test_only_a_call_that_does_not_commit_yet_costs_the_device_when_it_is_overdue() -> None:
    executor = HeldExecutor()
    calls = Calls(cast(Executor, executor))
    jobs = {call_id: DeafJob(Cancellation()) for call_id in (1, 2)}
    told: list[tuple[int, object]] = []

    def tell(call_id: int, what: object) -> None:
        told.append((call_id, what))

    for call_id, job in jobs.items():
        calls.begin(call_id, CallUnderWay(cast(Any, job), job.cancellation, partial(tell, call_id), partial(tell, call_id)))
    late = DeadlineExceededError("the deadline passed")
    assert calls.cancel(1, late, overdue=True)
    jobs[1].is_committing = True
    calls.poll()
    assert told == []
    jobs[1].ended.set()
    for _ in range(2):
        calls.poll()
        assert told == [(1, RESULT)]
    assert not executor.device_lost

    assert calls.cancel(2, late, overdue=True)
    calls.poll()
    assert [(call_id, type(what)) for call_id, what in told[1:]] == [(2, DeadlineExceededError)]
    assert executor.device_lost


class Unknown(HeldJob):
    """Its request is not known, once the test says so."""

    def poll(self) -> Result | None:
        if self.ended.is_set():
            raise UnknownRequest
        return None


def test_a_request_that_is_not_known_is_asked_for_and_runs(serve: Callable[[HeldExecutor], Worker]) -> None:
    executor = HeldExecutor(Unknown, HeldJob)
    worker = serve(executor)
    assert first_answer(worker, executor) == worker_pb2.FromWorker(id=1, unknown_request=worker_pb2.UnknownRequest())
    worker.send(execute(1))
    wait_for_jobs(executor, 2)
    executor.jobs[1].ended.set()
    assert worker.answer().executed.kernels_launched == 1


def test_a_cancellation_that_comes_while_a_request_is_asked_for_is_heeded(serve: Callable[[HeldExecutor], Worker]) -> None:
    executor = HeldExecutor(Unknown, HeldJob)
    worker = serve(executor)
    first_answer(worker, executor)
    worker.cancel(1)
    worker.cancel(99)  # Cancellations come in order: when this has been noted, so has the other.
    worker.wait_for_early_cancellation(99)
    worker.send(execute(1))
    assert reasons([worker.answer()]) == {1: (reason(DeadlineExceededError), False)}
    assert not executor.jobs[1].begun


def hold_pages(message_id: int, *, allowed: bool) -> worker_pb2.ToWorker:
    return worker_pb2.ToWorker(id=message_id, hold_pages=worker_pb2.HoldPages(allowed=allowed))


def test_what_the_front_knows_to_be_needed_next_is_kept(serve: Callable[[HeldExecutor], Worker]) -> None:
    executor = HeldExecutor(HeldJob, HeldJob)
    worker = serve(executor)
    first = execute(1)
    first.execute.awaited.add(key="k", offset_bytes=4, size_bytes=5)
    worker.send(first)
    wait_for_jobs(executor, 1)
    assert executor.memory.awaited == [("value", "k", 4, 5)]
    worker.send(execute(2))
    wait_for_jobs(executor, 2)
    assert executor.memory.awaited == []
    for job in executor.jobs:
        job.ended.set()
    assert {worker.answer().id, worker.answer().id} == {1, 2}


def test_pages_are_let_go_of_between_the_calls(serve: Callable[[HeldExecutor], Worker]) -> None:
    executor = HeldExecutor(HeldJob)
    worker = serve(executor)
    worker.send(execute(1))
    wait_for_jobs(executor, 1)
    worker.send(hold_pages(7, allowed=False))
    assert worker.answer() == worker_pb2.FromWorker(id=7, pages_released=worker_pb2.PagesReleased())
    assert not executor.holds_pages
    worker.send(hold_pages(8, allowed=True))
    wait_until(lambda: executor.holds_pages)
    executor.jobs[0].ended.set()
    assert worker.answer().id == 1


def test_pages_that_cannot_be_let_go_of(serve: Callable[[HeldExecutor], Worker]) -> None:
    executor = HeldExecutor()
    executor.fails_to_release = RuntimeError("they are held")
    worker = serve(executor)
    worker.send(hold_pages(7, allowed=False))
    answer = worker.answer()
    assert (answer.id, answer.failed.reason, answer.failed.device_lost) == (7, "INTERNAL", False)


def test_a_device_that_is_lost_while_it_lets_go(serve: Callable[[HeldExecutor], Worker]) -> None:
    """The process ends, and its pages with it."""
    executor = HeldExecutor()
    executor.fails_to_release = DeviceLost()
    worker = serve(executor)
    worker.send(hold_pages(7, allowed=False))
    assert worker.answer().failed.device_lost
    worker.join()
