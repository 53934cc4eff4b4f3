"""Calls of a worker, one by one: how they are taken up, cancelled, answered, and waited for."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any, cast

import pytest

from kaas.v1 import executor_pb2, library_pb2, trace_pb2
from kaas.worker.v1 import worker_pb2
from kaas_core.errors import CancelledError, DeadlineExceededError, InternalError
from kaasd.ipc.channel import Progress, WorkerChannel
from kaasd.worker import loop
from kaasd.worker.cancellation import Cancellation
from kaasd.worker.commit_signal import CommitSignal
from kaasd.worker.execution import Result
from kaasd.worker.executor import NOTHING, Executor, Steps
from kaasd.worker.loop import EARLY_NS, MAX_CANCELLED_EARLY, NAP_S, ONLY_CALLS, Loop
from kaasd.worker.programs import UnknownRequest
from tests.worker.support import (
    MOST_UNDER_WAY,
    DeafJob,
    HeldExecutor,
    HeldJob,
    Worker,
    execute,
    reason,
    reasons,
    wait_for_jobs,
    wait_until,
)

Serve = Callable[[HeldExecutor], Worker]


class ClosableJob(HeldJob):
    """Notes that it was closed."""

    closed = False

    def close(self) -> None:
        self.closed = True


def test_one_more_call_is_taken_up_than_may_run(serve: Serve) -> None:
    executor = HeldExecutor(*[HeldJob] * 7)
    worker = serve(executor)
    for call_id in range(1, 8):
        worker.send(execute(call_id))
    wait_for_jobs(executor, MOST_UNDER_WAY)
    worker.cancel(99)
    worker.wait_for_early_cancellation(99)
    assert len(executor.jobs) == MOST_UNDER_WAY == 5
    executor.jobs[2].ended.set()
    assert worker.answer().id == 3
    wait_for_jobs(executor, 6)
    for job in executor.jobs:
        job.ended.set()
    assert {worker.answer().id for _ in range(5)} == {1, 2, 4, 5, 6}
    wait_for_jobs(executor, 7)
    executor.jobs[6].ended.set()
    assert worker.answer().id == 7


def test_a_call_that_was_cancelled_before_it_came_does_not_begin(serve: Serve) -> None:
    """In whatever order calls come: one that was put back may come behind a newer one."""
    executor = HeldExecutor(HeldJob, HeldJob, HeldJob)
    worker = serve(executor)
    worker.send(execute(7))
    wait_for_jobs(executor, 1)
    worker.cancel(5, deadline_exceeded=False)
    worker.wait_for_early_cancellation(5)
    worker.send(execute(5))
    answer = worker.answer()
    assert (answer.id, answer.failed.reason) == (5, reason(CancelledError))
    assert answer.failed.message == "the caller went away while the request was queued"
    assert not executor.jobs[1].begun
    worker.send(execute(6))
    wait_for_jobs(executor, 3)
    for job in executor.jobs:
        job.ended.set()
    assert {worker.answer().id, worker.answer().id} == {6, 7}


def test_early_cancellations_are_bounded_the_oldest_goes_first(serve: Serve) -> None:
    executor = HeldExecutor(HeldJob, HeldJob)
    worker = serve(executor)
    for call_id in range(1, MAX_CANCELLED_EARLY + 2):
        worker.cancel(call_id)
    worker.wait_for_early_cancellation(MAX_CANCELLED_EARLY + 1)
    worker.send(execute(2))
    assert reasons([worker.answer()]) == {2: (reason(DeadlineExceededError), False)}
    worker.send(execute(1))
    wait_until(lambda: len(executor.jobs) == 2 and executor.jobs[1].begun)
    executor.jobs[1].ended.set()
    assert worker.answer().executed.kernels_launched == 1


class Unknown(HeldJob):
    """Its request is not known, whether it was cancelled or not."""

    def poll(self) -> Result | None:
        self.begun = True
        if self.ended.is_set():
            raise UnknownRequest
        return None


def test_a_call_that_was_cancelled_while_it_ran_and_comes_again_is_cancelled_still(serve: Serve) -> None:
    executor = HeldExecutor(Unknown, HeldJob)
    worker = serve(executor)
    worker.send(execute(1))
    wait_for_jobs(executor, 1)
    worker.cancel(1)
    wait_until(lambda: executor.jobs[0].cancellation.reason is not None)
    executor.jobs[0].ended.set()
    assert worker.answer().HasField("unknown_request")
    worker.send(execute(1))
    answer = worker.answer()
    assert answer.failed.reason == reason(DeadlineExceededError)
    assert answer.failed.message.startswith("the deadline passed while the request was ")
    assert not executor.jobs[1].begun


def test_the_device_is_told_to_stop_until_the_call_has_ended(serve: Serve) -> None:
    executor = HeldExecutor(DeafJob)
    worker = serve(executor)
    worker.send(execute(1))
    wait_for_jobs(executor, 1)
    worker.cancel(1, deadline_exceeded=False)
    wait_until(lambda: executor.device.asked >= 5)
    assert not executor.device_lost
    executor.jobs[0].ended.set()
    assert worker.answer().HasField("executed")


def test_the_first_reason_stays(serve: Serve) -> None:
    executor = HeldExecutor(DeafJob)
    worker = serve(executor)
    worker.send(execute(1))
    wait_for_jobs(executor, 1)
    worker.cancel(1, deadline_exceeded=False)
    wait_until(lambda: executor.device.asked > 0)
    worker.cancel(1, deadline_exceeded=True)
    wait_until(lambda: executor.device_lost)
    answer = worker.answer()
    assert (answer.failed.reason, answer.failed.device_lost) == (reason(CancelledError), True)
    assert answer.failed.message == "the caller went away while the request was running"


def test_what_runs_when_the_front_goes_is_cancelled_and_closed(serve: Serve) -> None:
    executor = HeldExecutor(ClosableJob, ClosableJob)
    worker = serve(executor)
    worker.send(execute(1))
    worker.send(execute(2))
    wait_for_jobs(executor, 2)
    executor.jobs[0].is_committing = executor.jobs[1].is_committing = True
    worker.close()
    for job in executor.jobs:
        assert isinstance(job, ClosableJob)
        assert job.closed


def test_cancelling_all(serve: Serve) -> None:
    executor = HeldExecutor(HeldJob, HeldJob)
    worker = serve(executor)
    for call_id in (1, 2):
        worker.send(execute(call_id))
    wait_until(lambda: len(worker.serving.calls._under_way) == 2)
    worker.serving.calls.cancel_all(CancelledError("the front went away"))
    assert reasons([worker.answer(), worker.answer()]) == dict.fromkeys((1, 2), (reason(CancelledError), False))
    assert executor.device.asked == 2


class Defect(HeldJob):
    """Fails as nobody has thought of."""

    def poll(self) -> Result | None:
        raise ZeroDivisionError("secret")


def test_a_defect_is_internal_and_says_nothing_of_itself(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    worker = serve(HeldExecutor(Defect))
    worker.send(execute(1))
    answer = worker.answer()
    assert answer.failed.reason == reason(InternalError)
    assert "secret" not in answer.failed.message
    assert "ZeroDivisionError: secret" in caplog.text
    worker.send(worker_pb2.ToWorker(id=2))
    answer = worker.answer()
    assert (answer.id, answer.failed.reason) == (2, reason(InternalError))


def test_a_deleted_library_is_forgotten_without_an_answer(serve: Serve) -> None:
    executor = HeldExecutor(HeldJob)
    worker = serve(executor)
    worker.send(worker_pb2.ToWorker(forget_library=worker_pb2.ForgetLibrary(library="sha256:abc")))
    worker.send(execute(1))
    wait_for_jobs(executor, 1)
    assert executor.programs.forgotten == ["sha256:abc"]
    executor.jobs[0].ended.set()
    assert worker.answer().id == 1


class Full(HeldJob):
    """Has a result of which each part can be told apart."""

    def poll(self) -> Result | None:
        return Result({"p": b"bytes"}, {"key": 8}, "printed", 7, 1, 2, 3, 4, trace_pb2.Trace(notes=["note"]), 12, True)


def test_every_part_of_a_result_is_in_the_answer(serve: Serve) -> None:
    worker = serve(HeldExecutor(Full, Full))
    worker.send(execute(1))
    reply = executor_pb2.InvokeResponse(
        outputs={"p": b"bytes"},
        versions={"key": 8},
        device="deaf",
        printed="printed",
        timing={"plan_ns": 1, "load_ns": 2, "run_ns": 3, "commit_ns": 4},
        trace=trace_pb2.Trace(notes=["note"]),
    )
    executed = worker_pb2.Executed(
        reply=reply,
        kernels_launched=7,
        memory_used_bytes=11,
        brought_bytes=12,
        new_program=True,
        dropped=[worker_pb2.ResidentValue(key="key", offset_bytes=4, size_bytes=5)],
        device_full=True,
    )
    assert worker.answer() == worker_pb2.FromWorker(id=1, executed=executed)
    worker.send(execute(2))
    executed.ClearField("dropped")  # which is told once
    executed.ClearField("device_full")
    assert worker.answer() == worker_pb2.FromWorker(id=2, executed=executed)


class Waiting:
    """A loop that is asked how long it would wait, at times of the test's choice."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **config: Any) -> None:
        self.now_ns = 1_000_000_000
        monkeypatch.setattr(loop, "perf_counter_ns", lambda: self.now_ns)
        executor = HeldExecutor(*[HeldJob] * 20)
        monkeypatch.setattr(loop, "execute", HeldExecutor.begin)
        self.front, workers = socket.socketpair()
        config = {"device": "deaf", "concurrency": 4, "busy_poll_s": 0.001, **config}
        shared = Progress.create(4)
        settings = worker_pb2.WorkerConfig(**config)
        self._loop = Loop(WorkerChannel(workers), cast(Executor, executor), CommitSignal(), settings, Progress(shared))
        os.close(shared)

    def wait_s(self, *jobs: HeldJob, only_calls: int = ONLY_CALLS, since_event_ns: int = 0) -> float | None:
        """Return how long it sleeps with these jobs under way."""
        for call_id, job in enumerate(jobs):
            self._loop._begin(call_id, cast(Any, job), job.cancellation, loop._prepared)
        self._loop._only_calls = only_calls
        self._loop._last_event_ns = self.now_ns - since_event_ns
        return self._loop._timeout_s()


def job(**fields: Any) -> HeldJob:
    return HeldJob(Cancellation(), **fields)


def test_what_only_commits_is_waited_for_without_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Waiting(monkeypatch).wait_s(job(is_committing=True)) is None
    assert Waiting(monkeypatch).wait_s(job(is_committing=True), job()) == 0


def test_one_caller_is_polled_for_busily(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = Waiting(monkeypatch)
    assert waiting.wait_s(job(), only_calls=ONLY_CALLS - 1) == NAP_S
    assert waiting.wait_s(job(), only_calls=ONLY_CALLS) == 0
    assert waiting.wait_s(job(), since_event_ns=999_999) == 0
    assert waiting.wait_s(job(), since_event_ns=1_000_000) == NAP_S


def test_several_callers_are_polled_for_where_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Waiting(monkeypatch, busy_poll_beside_others=True).wait_s(job(), only_calls=0) == 0
    assert Waiting(monkeypatch, busy_poll_beside_others=True, busy_poll_s=0).wait_s(job(), only_calls=0) == NAP_S


@pytest.mark.parametrize(
    ("before_end_ns", "expected"),
    [(EARLY_NS, NAP_S), (EARLY_NS - 1, 0), (0, 0), (-999_999, 0), (-1_000_000, NAP_S)],
)
def test_the_end_of_a_run_is_polled_for_around_when_it_is_due(
    monkeypatch: pytest.MonkeyPatch, before_end_ns: int, expected: float
) -> None:
    waiting = Waiting(monkeypatch)
    due = job(expected_end_ns=waiting.now_ns + before_end_ns)
    assert waiting.wait_s(due, since_event_ns=10_000_000) == expected


def test_calls_with_no_other_in_flight_are_counted_in_a_row(serve: Serve) -> None:
    executor = HeldExecutor(*[HeldJob] * 4)
    worker = serve(executor)
    for call_id, (only_call, count) in enumerate(((True, 1), (True, 2), (False, 0), (True, 1))):
        message = execute(call_id)
        message.only_call = only_call
        worker.send(message)
        wait_for_jobs(executor, call_id + 1)
        executor.jobs[call_id].ended.set()
        worker.answer()
        assert worker.serving._only_calls == count


@pytest.mark.parametrize("content", [None, b"", b"ptx"])
def test_inspecting_what_is_stored_or_what_came_along(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    def inspect(_: Executor, library: str, given: bytes | None, cancellation: Cancellation) -> Steps[Any]:
        yield NOTHING
        return library_pb2.InspectLibraryResponse(id=f"{library} {given!r}")

    monkeypatch.setattr(loop, "inspect", inspect)
    worker = serve(HeldExecutor())
    worker.send(worker_pb2.ToWorker(id=1, inspect=worker_pb2.Inspect(library="lib", content=content)))
    inspected = library_pb2.InspectLibraryResponse(id=f"lib {content!r}")
    assert worker.answer() == worker_pb2.FromWorker(id=1, inspected=inspected)
