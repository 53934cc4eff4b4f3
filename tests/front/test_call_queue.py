"""The state machines of a worker's calls: events in, decisions out."""

from __future__ import annotations

from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kaas_core.errors import CancelledError, DeadlineExceededError, DrainingError, QueueFullError, WorkerRestartingError
from kaasd.front.call_queue import Blame, CallQueue, Cancel, CancelReason, Fail, Isolate, Kill, SeenRequests, Send
from kaasd.front.quarantine import MOST_WORKERS
from kaasd.ipc.channel import Stage

RUNNING, COMMITTING = Stage


def ready_queue(max_queued: int = 10) -> CallQueue:
    queue = CallQueue(max_queued)
    assert queue.worker_ready() == []
    return queue


def test_calls_wait_for_the_worker_and_are_sent_in_order() -> None:
    queue = CallQueue(max_queued=10)
    assert [queue.submit(call) for call in (1, 2, 3)] == [[], [], []]
    assert queue.worker_ready() == [Send(1), Send(2)]
    assert queue.answered(1) == [Send(3)]


def test_one_runs_and_the_others_count_as_queued() -> None:
    queue = ready_queue()
    for call in (1, 2, 3):
        queue.submit(call)
    assert (queue.running, queue.queued, queue.load) == (1, 2, 3)


def test_a_full_queue_refuses() -> None:
    queue = ready_queue(max_queued=1)
    for call in (1, 2, 3):
        queue.submit(call)
    with pytest.raises(QueueFullError, match="1 calls are waiting"):
        queue.submit(4)
    assert queue.answered(1) == [Send(3)]
    assert queue.submit(4) == []


class TestCompiling:
    """Calls that wait for their code at the worker."""

    def test_they_leave_their_places_to_others(self) -> None:
        queue = ready_queue()
        for call in (1, 2, 3, 4, 5):
            queue.submit(call)
        assert queue.compiling(1, begins=True) == [Send(3)]
        assert queue.compiling(2, begins=True) == [Send(4)]
        assert (queue.running, queue.queued) == (1, 4)
        assert queue.answered(3) == [Send(5)]
        assert queue.compiling(1, begins=False) == []
        assert queue.answered(4) == []  # The first has its place again.
        assert queue.answered(1) == []
        assert queue.answered(2) == []
        assert (queue.running, queue.load) == (1, 1)

    def test_they_are_answered_at_once_and_never_cost_the_worker(self) -> None:
        queue = ready_queue()
        queue.submit(1)
        queue.compiling(1, begins=True)
        (failed, cancelled) = queue.cancel(1, CancelReason.DEADLINE)
        assert isinstance(failed, Fail)
        assert isinstance(failed.error, DeadlineExceededError)
        assert "waiting for its code to be compiled" in failed.error.message
        assert cancelled == Cancel(1, CancelReason.DEADLINE)
        assert queue.grace_over(1) == []
        assert queue.answered(1) == []
        assert queue.load == 0

    def test_one_that_has_its_code_is_served_as_others_are(self) -> None:
        queue = ready_queue()
        queue.submit(1)
        queue.compiling(1, begins=True)
        queue.compiling(1, begins=False)
        assert queue.cancel(1, CancelReason.DEADLINE) == [Cancel(1, CancelReason.DEADLINE)]
        assert queue.grace_over(1) == [Kill()]

    def test_they_take_no_place_at_the_next_worker_before_they_are_compiling_there(self) -> None:
        queue = ready_queue()
        for call in (1, 2, 3, 4):
            queue.submit(call)
        queue.compiling(1, begins=True)
        assert queue.worker_lost({2: RUNNING}) == [Blame(2), Isolate(2, 1)]
        assert queue.worker_ready() == [Send(1), Send(3)]
        assert queue.compiling(1, begins=True) == [Send(4)]

    def test_what_is_no_call_of_the_worker_changes_nothing(self) -> None:
        queue = ready_queue()
        assert queue.compiling(7, begins=True) == queue.compiling(7, begins=False) == []
        assert [queue.submit(call) for call in (1, 2, 3)] == [[Send(1)], [Send(2)], []]


class TestWithdrawn:
    """Calls that wait for a worker and go elsewhere."""

    def test_it_is_sent_no_more(self) -> None:
        queue = CallQueue(max_queued=10)
        for call in (1, 2, 3):
            queue.submit(call)
        queue.withdraw(2)
        assert (list(queue.waiting), queue.load) == ([1, 3], 2)
        assert queue.worker_ready() == [Send(1), Send(3)]

    def test_what_a_worker_had_not_begun_is_among_those_that_may_go(self) -> None:
        queue = CallQueue(max_queued=10, concurrency=2)
        queue.worker_ready()
        for call in (1, 2, 3):
            queue.submit(call)
        queue.admit(4, losses=1, alone=True)
        queue.worker_lost({1: RUNNING})
        assert list(queue.waiting) == [2, 3, 4]
        assert [queue.is_alone(call) for call in queue.waiting] == [False, False, True]


def test_a_lost_worker_fails_what_it_committed_and_the_rest_goes_to_its_successor() -> None:
    queue = ready_queue()
    for call in (1, 2, 3):
        queue.submit(call)
    (failed,) = queue.worker_lost({1: COMMITTING})
    assert isinstance(failed, Fail)
    assert failed.call == 1
    assert isinstance(failed.error, WorkerRestartingError)
    assert failed.error.retry_after_s is not None
    assert queue.worker_ready() == [Send(2), Send(3)]


def test_what_a_worker_had_not_begun_is_run_again_with_nothing_said() -> None:
    queue = CallQueue(max_queued=10, concurrency=2)
    queue.worker_ready()
    for call in (1, 2, 3):
        queue.submit(call)
    assert queue.worker_lost({}) == []
    assert queue.worker_ready() == [Send(1), Send(2), Send(3)]


def test_what_a_worker_ran_is_run_elsewhere_and_its_successor_goes_on_at_once() -> None:
    queue = CallQueue(max_queued=10, concurrency=2)
    queue.worker_ready()
    for call in (1, 2, 3):
        queue.submit(call)
    assert queue.worker_lost({1: RUNNING, 2: RUNNING}) == [Isolate(1, 1), Isolate(2, 1)]
    queue.submit(4)
    assert queue.worker_ready() == [Send(3), Send(4)]
    assert queue.load == 2


def test_a_call_that_cannot_run_elsewhere_comes_back_and_runs_alone() -> None:
    queue = CallQueue(max_queued=10, concurrency=2)
    queue.worker_ready()
    for call in (1, 2, 3):
        queue.submit(call)
    assert queue.admit(4, 1, alone=True) == []
    queue.submit(5)
    assert [queue.answered(call) for call in (1, 2)] == [[], []]
    assert queue.answered(3) == [Send(4)]
    assert queue.worker_lost({4: RUNNING}) == [Blame(4), Isolate(4, 2)]
    assert queue.worker_ready() == [Send(5)]


def test_a_call_that_costs_several_workers_is_given_up() -> None:
    queue = ready_queue()
    assert queue.admit(1, losses=1) == [Send(1)]
    for _ in range(MOST_WORKERS - 2):
        blamed, (call, losses) = queue.worker_lost({1: RUNNING})
        assert (blamed, call) == (Blame(1), 1)
        queue.admit(call, losses)
        assert queue.worker_ready() == [Send(1)]
    blamed, failed = queue.worker_lost({1: RUNNING})
    assert blamed == Blame(1)
    assert isinstance(failed, Fail)
    assert (failed.error.reason, failed.error.metadata["workers"]) == ("QUARANTINED", str(MOST_WORKERS))
    assert queue.worker_ready() == []


def test_what_ran_beside_a_call_that_the_worker_is_killed_for_is_no_suspect() -> None:
    queue = CallQueue(max_queued=10, concurrency=2)
    queue.worker_ready()
    queue.submit(1)
    queue.submit(2)
    queue.cancel(1, CancelReason.DEADLINE)
    assert queue.grace_over(1) == [Kill()]
    (failed,) = queue.worker_lost({1: RUNNING, 2: RUNNING})
    assert isinstance(failed, Fail)
    assert failed.call == 1
    queue.submit(3)
    assert queue.worker_ready() == [Send(2), Send(3)]


def test_a_call_answered_before_the_loss_is_not_failed() -> None:
    queue = ready_queue()
    queue.submit(1)
    queue.submit(2)
    assert queue.answered(1) == []
    (failed,) = queue.worker_lost({2: COMMITTING})
    assert isinstance(failed, Fail)
    assert failed.call == 2


@pytest.mark.parametrize(
    ("reason", "kind", "why"),
    [
        (CancelReason.DEADLINE, DeadlineExceededError, "the deadline passed"),
        (CancelReason.CANCELLED, CancelledError, "the caller went away"),
        (CancelReason.OPERATOR, CancelledError, "an operator cancelled it"),
    ],
)
def test_a_queued_call_is_cancelled_at_once(reason: CancelReason, kind: type[Exception], why: str) -> None:
    queue = CallQueue(max_queued=10)
    queue.submit(1)
    (failed,) = queue.cancel(1, reason)
    assert isinstance(failed, Fail)
    assert isinstance(failed.error, kind)
    assert failed.error.message == f"{why} while the request was queued"
    assert queue.worker_ready() == []


def test_a_call_that_waits_at_the_worker_fails_at_once_and_is_skipped_there() -> None:
    queue = ready_queue()
    queue.submit(1)
    queue.submit(2)
    failed, cancel = queue.cancel(2, CancelReason.DEADLINE)
    assert isinstance(failed, Fail)
    assert (failed.call, type(failed.error)) == (2, DeadlineExceededError)
    assert cancel == Cancel(2, CancelReason.DEADLINE)
    assert queue.grace_over(2) == []
    assert [decision.call for decision in queue.worker_lost({1: COMMITTING}) if isinstance(decision, Fail)] == [1]
    assert queue.worker_ready() == []


def test_as_many_run_as_the_worker_serves_at_a_time() -> None:
    queue = CallQueue(max_queued=10, concurrency=3)
    queue.worker_ready()
    assert [queue.submit(call) for call in range(1, 6)] == [[Send(1)], [Send(2)], [Send(3)], [Send(4)], []]
    assert (queue.running, queue.queued) == (3, 2)
    assert queue.answered(2) == [Send(5)]
    lost = queue.worker_lost(dict.fromkeys((1, 3, 4), COMMITTING))
    assert [decision.call for decision in lost if isinstance(decision, Fail)] == [1, 3, 4]
    assert queue.worker_ready() == [Send(5)]


def test_suspects_of_a_fault_run_elsewhere() -> None:
    queue = CallQueue(max_queued=10, concurrency=3)
    queue.worker_ready()
    for call in range(1, 4):
        queue.submit(call)
    for call in (3, 2, 1):
        assert queue.run_again(call, suspect=True) == [Isolate(call, 1)]
    assert queue.worker_lost({}) == []
    assert queue.load == 0


def test_what_another_request_took_down_runs_again_beside_others() -> None:
    queue = CallQueue(max_queued=10, concurrency=3)
    queue.worker_ready()
    for call in range(1, 4):
        queue.submit(call)
    queue.answered(1)
    for call in (3, 2):
        assert queue.run_again(call, suspect=False) == []
    assert queue.worker_ready() == [Send(2), Send(3)]


def test_a_worker_without_its_device_gets_no_other_call() -> None:
    queue = CallQueue(max_queued=10, concurrency=1)
    queue.worker_ready()
    for call in range(1, 5):
        queue.submit(call)
    assert queue.answered(1, device_lost=True) == []
    assert queue.run_again(2, suspect=False) == []
    assert queue.worker_lost({}) == []
    assert queue.worker_ready() == [Send(2), Send(3)]


def test_what_only_waited_at_a_worker_that_lost_its_device_goes_to_its_successor() -> None:
    queue = CallQueue(max_queued=10, concurrency=2)
    queue.worker_ready()
    for call in range(1, 4):
        queue.submit(call)
    assert queue.answered(2, device_lost=True) == []
    (failed,) = queue.worker_lost({1: COMMITTING})
    assert isinstance(failed, Fail)
    assert failed.call == 1
    assert queue.worker_ready() == [Send(3)]
    queue.submit(4)
    (failed, also) = queue.worker_lost({3: COMMITTING, 4: COMMITTING})
    assert isinstance(failed, Fail) and isinstance(also, Fail)
    assert (failed.call, also.call) == (3, 4)


def test_a_cancelled_call_is_not_run_again() -> None:
    queue = ready_queue()
    queue.submit(1)
    queue.cancel(1, CancelReason.DEADLINE)
    (failed,) = queue.run_again(1, suspect=True)
    assert isinstance(failed, Fail)
    assert isinstance(failed.error, DeadlineExceededError)
    assert queue.worker_ready() == []


def test_a_running_call_is_cancelled_and_its_worker_killed_when_it_goes_on() -> None:
    queue = ready_queue()
    queue.submit(1)
    queue.submit(2)
    assert queue.cancel(1, CancelReason.DEADLINE) == [Cancel(1, CancelReason.DEADLINE)]
    assert queue.cancel(1, CancelReason.DEADLINE) == []
    assert queue.grace_over(1) == [Kill()]
    (failed,) = queue.worker_lost({1: RUNNING})
    assert isinstance(failed, Fail)
    assert (failed.call, type(failed.error)) == (1, DeadlineExceededError)
    assert queue.worker_ready() == [Send(2)]


def test_a_call_that_ended_in_time_spares_the_worker() -> None:
    queue = ready_queue()
    queue.submit(1)
    queue.cancel(1, CancelReason.DEADLINE)
    queue.answered(1)
    assert queue.grace_over(1) == []


def test_a_cancelled_call_does_not_kill_the_worker() -> None:
    queue = ready_queue()
    queue.submit(1)
    assert queue.cancel(1, CancelReason.CANCELLED) == [Cancel(1, CancelReason.CANCELLED)]
    assert queue.grace_over(1) == []
    assert queue.cancel(1, CancelReason.DEADLINE) == [Cancel(1, CancelReason.DEADLINE)]
    assert queue.grace_over(1) == [Kill()]


def test_what_an_operator_cancels_ends_even_where_that_costs_the_worker() -> None:
    queue = ready_queue()
    for call in (1, 2):
        queue.submit(call)
    assert queue.cancel(1, CancelReason.OPERATOR) == [Cancel(1, CancelReason.OPERATOR)]
    for later in CancelReason:
        assert queue.cancel(1, later) == []
    assert queue.grace_over(1) == [Kill()]
    (failed,) = queue.worker_lost({1: Stage.RUNNING})
    assert isinstance(failed, Fail)
    assert (failed.call, failed.error.message) == (1, "an operator cancelled it while the request was running")
    assert queue.worker_ready() == [Send(2)]


def test_an_unknown_call_is_nothing_to_cancel() -> None:
    assert ready_queue().cancel(7, CancelReason.DEADLINE) == []


def test_all_calls_fail_at_the_end() -> None:
    queue = ready_queue()
    for call in (1, 2, 3):
        queue.submit(call)
    error = DrainingError("over")
    assert queue.fail_all(error) == [Fail(1, error), Fail(2, error), Fail(3, error)]
    assert queue.load == 0


@settings(max_examples=500)
@given(
    st.lists(st.sampled_from(["submit", "answer", "lost", "ready", *CancelReason]), max_size=60),
    st.lists(st.sampled_from([None, *Stage]), min_size=1, max_size=3),
)
def test_every_call_ends_once_and_none_is_sent_twice_to_one_worker(
    events: list[str | CancelReason], stages: list[Stage | None]
) -> None:
    queue = CallQueue(max_queued=1000)
    ended: list[int] = []
    at_worker: list[int] = []
    submitted = 0

    def note(decisions: list) -> None:
        for decision in decisions:
            if isinstance(decision, Send):
                assert decision.call not in at_worker
                assert decision.call not in ended
                at_worker.append(decision.call)
            elif isinstance(decision, Fail | Isolate):
                assert decision.call not in ended
                ended.append(decision.call)

    ready = False
    for event in events:
        if event == "submit":
            submitted += 1
            note(queue.submit(submitted))
        elif event == "answer" and at_worker:
            call = at_worker.pop(0)
            if call not in ended:  # Nobody waits for the answer to one that was told already.
                ended.append(call)
            note(queue.answered(call))
        elif event == "lost" and ready:
            ready = False
            begun = dict(zip(at_worker, cycle(stages), strict=False))
            at_worker.clear()
            note(queue.worker_lost({call: stage for call, stage in begun.items() if stage is not None}))
        elif event == "ready" and not ready:
            ready = True
            note(queue.worker_ready())
        elif isinstance(event, CancelReason) and submitted:
            note(queue.cancel(submitted, event))
        assert set(queue.waiting) == {*range(1, submitted + 1)} - {*ended, *at_worker}
    assert len(at_worker) <= 2
    note(queue.fail_all(DrainingError("over")))
    assert sorted(ended) == list(range(1, submitted + 1))


def test_a_request_is_new_to_a_worker_once() -> None:
    seen = SeenRequests(most=2)
    assert [seen.add(digest) for digest in (b"a", b"a", b"b", b"a")] == [True, False, True, False]
    assert [seen.add(digest) for digest in (b"c", b"a")] == [True, True]  # a third has made it forget
    seen.clear()
    assert seen.add(b"c")


def test_a_call_that_is_sent_again_comes_behind_the_others() -> None:
    """The worker asked for its content, and has begun the other meanwhile."""
    queue = ready_queue()
    queue.submit(1)
    queue.submit(2)
    queue.sent_again(1)
    assert queue.cancel(1, CancelReason.CANCELLED)[0] != Cancel(1, CancelReason.CANCELLED)
    decisions = queue.worker_lost({2: COMMITTING})
    assert [type(decision) for decision in decisions] == [Fail]
    assert decisions[0].call == 2  # it was being served
    assert queue.worker_ready() == []


def test_more_are_served_where_groups_have_slots_of_their_own() -> None:
    """One of them may be behind those that wait at the worker, and costs it as those do that are first."""
    queue = CallQueue(max_queued=10, concurrency=2)
    queue.worker_ready()
    assert [queue.submit(call) for call in (1, 2, 3)] == [[Send(1)], [Send(2)], [Send(3)]]
    assert queue.submit(4) == []
    assert queue.set_concurrency(3) == [Send(4)]
    assert queue.submit(5) == []
    assert (queue.running, queue.queued) == (3, 2)
    assert queue.answered(1) == [Send(5)]
    assert queue.cancel(4, CancelReason.DEADLINE) == [Cancel(4, CancelReason.DEADLINE)]
    assert queue.grace_over(4) == [Kill()]
    assert queue.set_concurrency(2) == []
