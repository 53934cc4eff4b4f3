# Generated from kaas_client/_async/stream.py by `make generate`; do not edit.
"""Many invocations over one call, pipelined: the low-latency way. For threads."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import grpc

from kaas.v1 import executor_pb2
from kaas_client import _rpcs, errors
from kaas_client._retry import Repeat, Tries
from kaas_client._rpcs import Binding
from kaas_client._status import from_rpc_error
from kaas_client._sync.connection import Connection
from kaas_client._threads import (
    CALL_CANCELLED,
    Eventually,
    Future,
    Lock,
    Queue,
    Semaphore,
    Task,
    is_cancelled,
    join,
    new_future,
    result_of,
    sleep,
    start,
)
from kaas_client.types import Result

_POLL_S = 0.05
"""How soon a wait ends that nothing is worth waiting for any more."""

Complete = Callable[[Result, str, Mapping[str, Binding], Iterable[str], str, float | None], Eventually[Result]]
"""Brings the outputs that a reply lacks, of a function, its bindings, the buffers to return, a group, within a timeout."""


@dataclass(slots=True)
class _Invocation:
    """One that has no answer yet, or one that is not to be its last."""

    message: executor_pb2.InvokeStreamRequest
    future: Future[Result]
    tries: Tries
    deadline: float | None
    """Its own, by the monotonic clock; the stream's is the call's."""
    complete: Callable[[Result], Eventually[Result]]
    due: float | None = None
    """When it is to be sent again; None while it is sent."""


class InvokeStream:
    """A stream of invocations, for any number of threads, open inside its ``with`` block.

    What fails because a worker or the server is away, or busy, is sent again, in the order of the first time and under the same
    id, as the client's ``RetryPolicy`` has it; where the stream has ended, on another one. Leaving the block waits for what is in
    flight; leaving it by an exception cancels that.
    """

    def __init__(self, connection: Connection, timeout: float | None, max_in_flight: int, complete: Complete) -> None:
        if max_in_flight < 1:
            raise ValueError("max_in_flight must be at least 1")
        self._connection = connection
        self._timeout = timeout
        self._max_in_flight = max_in_flight
        self._complete = complete
        self._permits = Semaphore(max_in_flight)
        self._ids = itertools.count(1)
        self._lock = Lock()
        self._pending: dict[int, _Invocation] = {}
        self._ended: errors.KaasError | None = errors.CancelledError("the stream is not open")
        self._is_closing = False
        self._outgoing: Queue[executor_pb2.InvokeStreamRequest | None] | None = None
        """Of the call under way; None between two calls."""
        self._is_reading = self._is_resending = False
        self._numbers = itertools.count()
        self._tasks: dict[int, Task] = {}

    def __enter__(self) -> Self:
        timeout = self._connection.options(self._timeout)["timeout"]
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._ended = None
        with self._lock:
            self._begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            self._is_closing = True
            if kind is not None and self._ended is None:
                self._ended = errors.CancelledError("the stream is closed")
            if not self._is_reading and self._ended is None:
                self._ended = errors.CancelledError("the stream is closed")
            if self._outgoing is not None:
                self._outgoing.put_nowait(None)
        if kind is not None:
            self._call.cancel()
        while self._tasks:
            join(self._tasks.popitem()[1])

    def submit(
        self,
        name: str,
        bindings: Mapping[str, Binding] | None = None,
        *,
        returns: Iterable[str] = (),
        device: str = "",
        trace: bool = False,
        request_id: str = "",
        group: str = "",
        priority: int = 0,
        timeout: float | None = None,
    ) -> Future[Result]:
        """Send one invocation and return its future. The parameters are those of ``Client.invoke``.

        Waits while ``max_in_flight`` are unanswered. Cancelling the future does not stop the invocation. Raises the stream's
        failure once it has failed.
        """
        id, group, bindings = next(self._ids), self._connection.group(group), bindings or {}
        returns = list(returns) if not isinstance(returns, str) else returns
        request_id = self._connection.request_id(request_id)
        message = _rpcs.stream_message(
            id, _rpcs.invoke_message(name, bindings, returns, device, trace, request_id, group, priority), timeout
        )

        def complete(result: Result) -> Eventually[Result]:
            return self._complete(result, name, bindings, returns, group, timeout)

        self._permits.acquire()
        with self._lock:
            if self._ended is not None:
                self._permits.release()
                raise self._ended
            now = time.monotonic()
            deadline = None if timeout is None else now + timeout
            ends = [end for end in (deadline, self._deadline) if end is not None]
            tries = self._connection.tries(Repeat.ALWAYS if request_id else Repeat.UNSENT, min(ends) - now if ends else None)
            future = new_future()
            self._pending[id] = invocation = _Invocation(message, future, tries, deadline, complete)
            if self._outgoing is not None:
                self._outgoing.put_nowait(message)
            elif self._is_reading:
                invocation.due = now  # the next call begins with it
            else:
                self._begin()
        return future

    def map(
        self,
        name: str,
        invocations: Iterable[Mapping[str, Binding]],
        *,
        returns: Iterable[str] = (),
        device: str = "",
        group: str = "",
        priority: int = 0,
    ) -> Iterator[Result]:
        """Run one invocation for each mapping of buffers and yield the results in that order.

        Raises the failure of an invocation where its result would come.
        """
        returns = list(returns)
        waiting: deque[Future[Result]] = deque()
        for bindings in invocations:
            if len(waiting) == self._max_in_flight:
                yield result_of(waiting.popleft())
            future = self.submit(name, bindings, returns=returns, device=device, group=group, priority=priority)
            waiting.append(future)
        while waiting:
            yield result_of(waiting.popleft())

    # Calls, one at a time

    def _begin(self) -> None:
        """Begin to read, with a call. Under the lock."""
        self._open()
        self._is_reading = True
        self._start(self._read, "kaas-invoke-stream")

    def _open(self) -> None:
        """Begin a call, and send on it all that has no answer. Under the lock."""
        self._outgoing = Queue()
        for invocation in self._pending.values():
            self._send(invocation)
        if self._is_closing:
            self._outgoing.put_nowait(None)
        left = None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)
        self._call = self._connection.stream(self._outgoing, left)

    def _send(self, invocation: _Invocation) -> None:
        """Send an invocation, under the lock."""
        assert self._outgoing is not None
        if invocation.deadline is not None:
            invocation.message.timeout_ns = _rpcs.timeout_ns(invocation.deadline - time.monotonic())
        invocation.due = None
        self._outgoing.put_nowait(invocation.message)

    def _close_outgoing(self) -> None:
        """Send no more on this call, under the lock; gRPC may wait for more of a call that has ended."""
        if self._outgoing is not None:
            self._outgoing.put_nowait(None)
            self._outgoing = None

    def _read(self) -> None:
        """Hand each answer to its future until there is nothing to wait for, on as many calls as it takes."""
        failure: errors.KaasError = errors.CancelledError("the stream is closed")
        try:
            while True:
                failure = self._read_answers()
                due = self._call_ended(failure)
                if due is None:
                    return
                self._wait_until(due, lambda: self._ended is not None)
                with self._lock:
                    if self._ended is not None:
                        return
                    self._open()
        finally:
            self._give_up(failure)

    def _read_answers(self) -> errors.KaasError:
        """Read all answers of a call, and return what has ended it."""
        try:
            for answer in self._call.answers():
                self._answered(answer)
        except grpc.RpcError as error:
            return from_rpc_error(error, self._connection.address)
        except errors.KaasError as error:
            return error
        except CALL_CANCELLED:
            if is_cancelled():
                raise
        except Exception as error:
            self._call.cancel()
            return _rpcs.unreadable(error)
        return errors.CancelledError("the stream is closed")

    def _answered(self, answer: executor_pb2.InvokeStreamResponse) -> None:
        self._connection.was_reached = True
        with self._lock:
            invocation = self._pending.get(answer.id)
        if invocation is None:
            return
        outcome = _rpcs.read_stream_answer(answer, invocation.tries.count)
        if isinstance(outcome, errors.KaasError):
            wait = invocation.tries.again(outcome)
            if wait is not None:
                self._send_later(invocation, wait)
                return
        with self._lock:
            del self._pending[answer.id]
        if isinstance(outcome, Result) and outcome.outputs_dropped:
            self._fetch(invocation, outcome)
        else:
            self._settle(invocation, outcome)

    def _fetch(self, invocation: _Invocation, result: Result) -> None:
        """Answer with a reply that lacks its outputs, once these are here."""

        def fetch() -> None:
            try:
                self._settle(invocation, invocation.complete(result))
            except errors.KaasError as error:
                self._settle(invocation, error)

        self._start(fetch, "kaas-invoke-stream-outputs")

    def _call_ended(self, failure: errors.KaasError) -> float | None:
        """A call has ended. Return when the next one is to begin; None where there is none for now."""
        given_up = []
        with self._lock:
            self._close_outgoing()
            now = time.monotonic()
            for id, invocation in list(self._pending.items()):
                if invocation.due is None:
                    invocation.tries.was_reached |= self._connection.was_reached
                    wait = None if self._ended is not None else invocation.tries.again(failure)
                    if wait is None:
                        given_up.append(self._pending.pop(id))
                    else:
                        invocation.due = now + wait
            dues = [invocation.due for invocation in self._pending.values() if invocation.due is not None]
            if not dues:
                self._is_reading = False
                idle = not given_up and not self._is_closing
                if self._ended is None and not (idle and self._connection.tries(Repeat.ALWAYS, None).again(failure) is not None):
                    self._ended = failure
        for invocation in given_up:
            self._settle(invocation, failure)
        return max(dues) if dues else None

    def _give_up(self, failure: errors.KaasError) -> None:
        """Reading has ended. Fail what is left, unless it is to begin anew with the next invocation."""
        with self._lock:
            if not self._is_reading:
                return
            self._is_reading = False
            self._close_outgoing()
            self._ended = self._ended or failure
            left = list(self._pending.values())
            self._pending.clear()
        for invocation in left:
            self._settle(invocation, self._ended)

    # What is sent again on the same call

    def _send_later(self, invocation: _Invocation, wait: float) -> None:
        with self._lock:
            invocation.due = time.monotonic() + wait
            if self._is_resending or self._is_closing:
                return  # who leaves has no more to send on this call; what is due then goes on the next
            self._is_resending = True
            self._start(self._resend, "kaas-invoke-stream-again")

    def _resend(self) -> None:
        """Send again what is due, in order, until there is nothing."""
        while True:
            with self._lock:
                waiting = [invocation for invocation in self._pending.values() if invocation.due is not None]
                if self._is_closing or self._outgoing is None or not waiting:
                    self._is_resending = False
                    return
                due = max(invocation.due for invocation in waiting if invocation.due is not None)
            self._wait_until(due, lambda: self._is_closing or self._outgoing is None)
            with self._lock:
                for invocation in waiting:
                    if invocation.due is not None and self._outgoing is not None and not self._is_closing:
                        self._send(invocation)

    def _wait_until(self, due: float, is_over: Callable[[], bool]) -> None:
        while (left := due - time.monotonic()) > 0 and not is_over():
            sleep(min(left, _POLL_S))

    def _start(self, run: Callable[[], Eventually[None]], name: str) -> None:
        """Run a function beside; leaving the block waits for it."""
        number = next(self._numbers)

        def tracked() -> None:
            try:
                run()
            finally:
                self._tasks.pop(number, None)

        self._tasks[number] = start(tracked, name)

    def _settle(self, invocation: _Invocation, outcome: Result | errors.KaasError) -> None:
        self._permits.release()
        future = invocation.future
        if future.done():  # cancelled by its owner
            return
        if isinstance(outcome, errors.KaasError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
