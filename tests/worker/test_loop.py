"""The loop of a worker over real socketpairs, with jobs that end when the test says so."""

from __future__ import annotations

from collections.abc import Callable

from kaas.worker.v1 import worker_pb2
from kaas_core.errors import DeadlineExceededError, WorkerRestartingError
from kaasd.devices.base import DeviceLost
from kaasd.worker.execution import Result
from kaasd.worker.programs import UnknownRequest
from tests.worker.support import (
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


def test_a_commit_past_its_deadline_costs_no_device(serve: Callable[[HeldExecutor], Worker]) -> None:
    """Nor does a call that has ended since it was overdue."""
    executor = HeldExecutor(DeafJob, HeldJob, HeldJob)
    worker = serve(executor)
    for call_id in (1, 2):
        worker.send(execute(call_id))
    wait_for_jobs(executor, 2)
    executor.jobs[0].is_committing = True
    worker.cancel(1)
    worker.wait_until_overdue(1)
    for call_id in (2, 1):
        executor.jobs[call_id - 1].ended.set()
        worker.notify_of_commit()
        answer = worker.answer()
        assert (answer.id, answer.WhichOneof("answer")) == (call_id, "executed")
    worker.send(execute(3))
    wait_for_jobs(executor, 3)
    executor.jobs[2].ended.set()
    assert worker.answer().executed.kernels_launched == 1
    assert not executor.device_lost


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
