"""Cancellations: from the front's message, by a thread of their own, to the calls that end by them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from kaas.worker.v1 import worker_pb2
from kaas_core.errors import CancelledError, DeadlineExceededError, KaasError
from kaasd.ipc.channel import WorkerChannel
from kaasd.worker import cancellation
from kaasd.worker.cancellation import Cancellation, Listener


class Calls:
    """Calls that go on until the test lets them end; notes how they are cancelled."""

    def __init__(self) -> None:
        self.under_way: set[int] = set()
        self.cancelled: list[tuple[int, str, type[KaasError], bool]] = []
        self.all_cancelled: list[str] = []
        self.threads: set[threading.Thread] = set()

    def cancel(self, call_id: int, error: KaasError, *, overdue: bool = False) -> bool:
        self.threads.add(threading.current_thread())
        self.cancelled.append((call_id, error.message, type(error), overdue))
        return call_id in self.under_way

    def cancel_all(self, error: KaasError) -> None:
        self.all_cancelled.append(error.message)

    def times(self, call_id: int) -> int:
        return sum(cancelled[0] == call_id for cancelled in self.cancelled)


class Front:
    """The front's end of the channel."""

    def __init__(self, calls: Calls) -> None:
        self._socket, workers = socket.socketpair()
        self.failed = threading.Event()
        self.listener = Listener(WorkerChannel(workers), on_failure=self.failed.set)
        self.listener.calls = calls

    def send(self, *calls: tuple[int, bool]) -> None:
        """Cancel calls, each by its deadline or not, in one piece."""
        self._send(*((call_id, worker_pb2.Cancel(deadline_exceeded=by_deadline)) for call_id, by_deadline in calls))

    def send_by_operator(self, call_id: int) -> None:
        """Cancel a call as an operator asks for it."""
        self._send((call_id, worker_pb2.Cancel(by_operator=True)))

    def _send(self, *cancellations: tuple[int, worker_pb2.Cancel]) -> None:
        data = b""
        for call_id, cancel in cancellations:
            message = worker_pb2.ToWorker(id=call_id, cancel=cancel).SerializeToString()
            data += len(message).to_bytes(4, "little") + message
        self._socket.sendall(data)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def front(calls: Calls) -> Iterator[Front]:
    opened = Front(calls)
    yield opened
    opened.close()


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll; the test's own time limit ends a wait in vain."""
    ticks = threading.Event()
    while not condition():
        ticks.wait(0.001)


def test_the_reason_is_raised_where_there_is_one() -> None:
    mark = Cancellation()
    mark.check()
    mark.reason = CancelledError("why")
    with pytest.raises(CancelledError, match="why"):
        mark.check()
    assert Cancellation().reason is None


def test_a_call_is_cancelled_again_until_it_has_ended(calls: Calls, front: Front) -> None:
    calls.under_way = {1}
    front.send((1, False))
    wait_until(lambda: calls.times(1) >= 5)
    calls.under_way = set()
    front.send((2, False))
    wait_until(lambda: calls.times(2) == 1)
    seen = calls.times(1)
    calls.under_way = {3}
    front.send((3, False))
    wait_until(lambda: calls.times(3) >= 5)
    assert (calls.times(1), calls.times(2)) == (seen, 1)
    assert {entry[1:] for entry in calls.cancelled} == {("the caller went away", CancelledError, False)}


def test_one_thread_cancels_however_many_calls(calls: Calls, front: Front) -> None:
    calls.under_way = set(range(1, 51))
    before = threading.active_count()
    front.send(*((call_id, call_id % 2 == 0) for call_id in sorted(calls.under_way)))
    wait_until(lambda: all(calls.times(call_id) >= 3 for call_id in calls.under_way))
    assert len(calls.threads) == 1
    assert threading.active_count() <= before  # others may end meanwhile


def test_a_call_is_overdue_some_time_after_its_deadline_and_only_then(
    calls: Calls, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(cancellation, "monotonic", lambda: now[0])
    calls.under_way = {1, 2}
    front.send((1, True), (2, False))
    wait_until(lambda: calls.times(1) >= 3 and calls.times(2) >= 3)
    assert not any(overdue for *_, overdue in calls.cancelled)
    assert ("the deadline passed", DeadlineExceededError) in {entry[1:3] for entry in calls.cancelled if entry[0] == 1}
    now[0] += cancellation.GRACE_S + 0.001
    wait_until(lambda: (1, "the deadline passed", DeadlineExceededError, True) in calls.cancelled)
    now[0] += 1e6
    seen = calls.times(2)
    wait_until(lambda: calls.times(2) >= seen + 2)
    assert not any(overdue for call_id, *_, overdue in calls.cancelled if call_id == 2)


def test_a_call_that_an_operator_cancels_is_overdue_too(calls: Calls, front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(cancellation, "monotonic", lambda: now[0])
    calls.under_way = {1}
    front.send_by_operator(1)
    wait_until(lambda: calls.times(1) >= 3)
    assert {entry[1:] for entry in calls.cancelled} == {("an operator cancelled it", CancelledError, False)}
    now[0] += cancellation.GRACE_S + 0.001
    wait_until(lambda: calls.cancelled[-1] == (1, "an operator cancelled it", CancelledError, True))


def test_messages_that_come_in_one_piece_are_taken_at_once(calls: Calls, front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancellation, "REPEAT_S", 3600.0)
    calls.under_way = {1}
    front.send((1, False), (2, False), (3, True))
    wait_until(lambda: calls.times(3) == 1)
    assert calls.times(2) == 1


def test_once_the_front_has_gone_all_calls_are_cancelled_again_and_again(calls: Calls, front: Front) -> None:
    front.close()
    wait_until(lambda: len(calls.all_cancelled) >= 3)
    assert set(calls.all_cancelled) == {"the front went away"}
    assert not calls.cancelled


def test_a_defect_of_the_thread_is_told() -> None:
    class Broken(Calls):
        def cancel(self, call_id: int, error: KaasError, *, overdue: bool = False) -> bool:
            raise RuntimeError("a defect")

    front = Front(Broken())
    front.send((1, False))
    assert front.failed.wait(30)
    front.close()
