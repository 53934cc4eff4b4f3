"""Many invocations over one call, pipelined, for asyncio: the same as ``kaas_client.streams``."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import grpc

from kaas.v1 import executor_pb2
from kaas_client import _calls, errors
from kaas_client._calls import Binding
from kaas_client._status import from_rpc_error
from kaas_client.types import Result


class InvokeStream:
    """As ``kaas_client.streams.InvokeStream``, open inside its ``async with`` block."""

    def __init__(self, stubs: _calls.Stubs, address: str, options: Mapping[str, Any], max_in_flight: int) -> None:
        if max_in_flight < 1:
            raise ValueError("max_in_flight must be at least 1")
        self._stubs = stubs
        self._address = address
        self._options = options
        self._max_in_flight = max_in_flight
        self._slots = asyncio.Semaphore(max_in_flight)
        self._ids = itertools.count(1)
        self._pending: dict[int, asyncio.Future[Result]] = {}
        self._ended: errors.KaasError | None = errors.CancelledError("the stream is not open")
        self._outgoing: asyncio.Queue[executor_pb2.InvokeStreamRequest | None] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        self._call = self._stubs.executor.InvokeStream(self._messages(), **self._options)
        self._ended = None
        self._reader = asyncio.create_task(self._read(), name="kaas-invoke-stream")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self._call.cancel()
        self._outgoing.put_nowait(None)
        await self._reader

    async def submit(
        self,
        name: str,
        bindings: Mapping[str, Binding] | None = None,
        *,
        returns: Iterable[str] = (),
        device: str = "",
        trace: bool = False,
        timeout: float | None = None,
    ) -> asyncio.Future[Result]:
        """As ``kaas_client.streams.InvokeStream.submit``. Cancelling the future does not stop the invocation."""
        message = _calls.invoke_message(name, bindings or {}, returns, device, trace)
        await self._slots.acquire()
        if self._ended is not None:
            self._slots.release()
            raise self._ended
        id = next(self._ids)
        future = self._pending[id] = asyncio.get_running_loop().create_future()
        self._outgoing.put_nowait(_calls.stream_message(id, message, timeout))
        return future

    async def map(
        self, name: str, invocations: Iterable[Mapping[str, Binding]], *, returns: Iterable[str] = (), device: str = ""
    ) -> AsyncIterator[Result]:
        """As ``kaas_client.streams.InvokeStream.map``."""
        returns = list(returns)
        waiting: deque[asyncio.Future[Result]] = deque()
        for bindings in invocations:
            if len(waiting) == self._max_in_flight:
                yield await waiting.popleft()
            waiting.append(await self.submit(name, bindings, returns=returns, device=device))
        while waiting:
            yield await waiting.popleft()

    async def _messages(self) -> AsyncIterator[executor_pb2.InvokeStreamRequest]:
        while (message := await self._outgoing.get()) is not None:
            yield message

    async def _read(self) -> None:
        """Hand each answer to its future until the stream ends, then fail what is left."""
        ended: errors.KaasError = errors.CancelledError("the stream is closed")
        try:
            async for answer in self._call:
                future = self._pending.pop(answer.id, None)
                if future is not None:
                    self._slots.release()
                    _settle(future, _calls.stream_answer(answer))
        except grpc.RpcError as error:
            ended = from_rpc_error(error, self._address)
        except asyncio.CancelledError:
            # This is how grpc.aio says that the call, not this task, was cancelled; a cancelled task must end as one.
            if not self._call.cancelled():
                raise
        finally:
            self._ended = ended
            left = list(self._pending.values())
            self._pending.clear()
            for future in left:
                self._slots.release()
                _settle(future, ended)


def _settle(future: asyncio.Future[Result], outcome: Result | errors.KaasError) -> None:
    if future.done():  # cancelled by whoever waited for it
        return
    if isinstance(outcome, errors.KaasError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
