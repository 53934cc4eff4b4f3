# Generated from kaas_client/_async/stream.py by `make generate`; do not edit.
"""Many invocations over one call, pipelined: the low-latency way. For threads."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Self

import grpc

from kaas.v1 import executor_pb2
from kaas_client import _rpcs, errors
from kaas_client._rpcs import Binding
from kaas_client._status import from_rpc_error
from kaas_client._sync.connection import Connection
from kaas_client._threads import (
    CALL_CANCELLED,
    Future,
    Lock,
    Queue,
    Semaphore,
    is_cancelled,
    join,
    new_future,
    result_of,
    start,
    until_none,
)
from kaas_client.types import Result


class InvokeStream:
    """A stream of invocations, for any number of threads, open inside its ``with`` block.

    Leaving the block waits for what is in flight; leaving it by an exception cancels that.
    """

    def __init__(self, connection: Connection, timeout: float | None, max_in_flight: int) -> None:
        if max_in_flight < 1:
            raise ValueError("max_in_flight must be at least 1")
        self._connection = connection
        self._timeout = timeout
        self._max_in_flight = max_in_flight
        self._permits = Semaphore(max_in_flight)
        self._ids = itertools.count(1)
        self._lock = Lock()
        self._pending: dict[int, Future[Result]] = {}
        self._ended: errors.KaasError | None = errors.CancelledError("the stream is not open")
        self._outgoing: Queue[executor_pb2.InvokeStreamRequest | None] = Queue()

    def __enter__(self) -> Self:
        connection = self._connection
        self._call = connection.stubs.executor.InvokeStream(until_none(self._outgoing), **connection.options(self._timeout))
        self._ended = None
        self._reader = start(self._read, "kaas-invoke-stream")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self._call.cancel()
        self._outgoing.put_nowait(None)
        join(self._reader)

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

        A stream makes no call again by itself, and so no ``request_id``. Who does, on this stream or another, gives one: the
        invocation then has its effect once.

        Waits while ``max_in_flight`` are unanswered. Cancelling the future does not stop the invocation. Raises the stream's
        failure once it has failed.
        """
        id, group = next(self._ids), self._connection.group(group)
        message = _rpcs.stream_message(
            id, _rpcs.invoke_message(name, bindings or {}, returns, device, trace, request_id, group, priority), timeout
        )
        self._permits.acquire()
        with self._lock:
            if self._ended is not None:
                self._permits.release()
                raise self._ended
            future = self._pending[id] = new_future()
            self._outgoing.put_nowait(message)
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

    def _read(self) -> None:
        """Hand each answer to its future until the stream ends, then fail what is left."""
        ended: errors.KaasError = errors.CancelledError("the stream is closed")
        try:
            for answer in self._call:
                with self._lock:
                    future = self._pending.pop(answer.id, None)
                if future is not None:
                    self._permits.release()
                    _settle(future, _rpcs.read_stream_answer(answer))
        except grpc.RpcError as error:
            ended = from_rpc_error(error, self._connection.address)
        except CALL_CANCELLED:
            if is_cancelled():
                raise
        except Exception as error:
            ended = _rpcs.unreadable(error)
            self._call.cancel()
        finally:
            with self._lock:
                self._ended = ended
                left = list(self._pending.values())
                self._pending.clear()
            for future in left:
                self._permits.release()
                _settle(future, ended)


def _settle(future: Future[Result], outcome: Result | errors.KaasError) -> None:
    if future.done():  # cancelled by its owner
        return
    if isinstance(outcome, errors.KaasError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
