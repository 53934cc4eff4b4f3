"""Many invocations over one call, pipelined: the low-latency way. For threads; ``kaas_client.aio`` has the same for asyncio."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

import grpc

from kaas.v1 import executor_pb2
from kaas_client import _calls, errors
from kaas_client._calls import Binding
from kaas_client._status import from_rpc_error
from kaas_client.types import Result


class InvokeStream:
    """A stream of invocations, open inside its ``with`` block. Thread-safe.

    Leaving the block waits for what is in flight; leaving it by an exception cancels that.
    """

    def __init__(self, stubs: _calls.Stubs, address: str, options: Mapping[str, Any], max_in_flight: int) -> None:
        if max_in_flight < 1:
            raise ValueError("max_in_flight must be at least 1")
        self._stubs = stubs
        self._address = address
        self._options = options
        self._max_in_flight = max_in_flight
        self._slots = threading.Semaphore(max_in_flight)
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._pending: dict[int, Future[Result]] = {}
        self._ended: errors.KaasError | None = errors.CancelledError("the stream is not open")
        self._outgoing: SimpleQueue[executor_pb2.InvokeStreamRequest | None] = SimpleQueue()

    def __enter__(self) -> Self:
        self._call = self._stubs.executor.InvokeStream(iter(self._outgoing.get, None), **self._options)
        self._ended = None
        self._reader = threading.Thread(target=self._read, name="kaas-invoke-stream", daemon=True)
        self._reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self._call.cancel()
        self._outgoing.put(None)
        self._reader.join()

    def submit(
        self,
        name: str,
        bindings: Mapping[str, Binding] | None = None,
        *,
        returns: Iterable[str] = (),
        device: str = "",
        trace: bool = False,
        timeout: float | None = None,
    ) -> Future[Result]:
        """Send one invocation and return its future, which cannot be cancelled. The parameters are those of ``Client.invoke``.

        Blocks while ``max_in_flight`` are unanswered. Raises the stream's failure once it has failed.
        """
        message = _calls.invoke_message(name, bindings or {}, returns, device, trace)
        self._slots.acquire()
        future: Future[Result] = Future()
        future.set_running_or_notify_cancel()
        with self._lock:
            if self._ended is not None:
                self._slots.release()
                raise self._ended
            id = next(self._ids)
            self._pending[id] = future
            self._outgoing.put(_calls.stream_message(id, message, timeout))
        return future

    def map(
        self, name: str, invocations: Iterable[Mapping[str, Binding]], *, returns: Iterable[str] = (), device: str = ""
    ) -> Iterator[Result]:
        """Run one invocation for each mapping of buffers and yield the results in that order.

        Raises the failure of an invocation where its result would come.
        """
        returns = list(returns)
        waiting: deque[Future[Result]] = deque()
        for bindings in invocations:
            if len(waiting) == self._max_in_flight:
                yield waiting.popleft().result()
            waiting.append(self.submit(name, bindings, returns=returns, device=device))
        while waiting:
            yield waiting.popleft().result()

    def _read(self) -> None:
        """Hand each answer to its future until the stream ends, then fail what is left."""
        ended: errors.KaasError = errors.CancelledError("the stream is closed")
        try:
            for answer in self._call:
                with self._lock:
                    future = self._pending.pop(answer.id, None)
                if future is not None:
                    self._slots.release()
                    _settle(future, _calls.stream_answer(answer))
        except grpc.RpcError as error:
            ended = from_rpc_error(error, self._address)
        finally:
            with self._lock:
                self._ended = ended
                left = list(self._pending.values())
                self._pending.clear()
            for future in left:
                self._slots.release()
                future.set_exception(ended)


def _settle(future: Future[Result], outcome: Result | errors.KaasError) -> None:
    if isinstance(outcome, errors.KaasError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
