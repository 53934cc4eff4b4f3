"""One connection of the local channel, for asyncio; ``kaas_client._local_threads`` has the same for threads."""

from __future__ import annotations

import asyncio
import itertools
from functools import partial
from typing import cast

from google.protobuf.message import Message

from kaas.v1 import local_pb2
from kaas_client import _local, errors
from kaas_client._status import from_stream_error
from kaas_core.frames import FrameReader, FrameTooLarge, to_frame

Answer = local_pb2.LocalFrame | errors.KaasError


class LocalChannel(asyncio.Protocol):
    """See the module's text. Used by one event loop."""

    def __init__(self, address: str, max_message_bytes: int) -> None:
        self.max_sent_bytes = max_message_bytes
        self._address = address
        self._max_bytes = max_message_bytes
        self._loop = asyncio.get_running_loop()
        self._frames = FrameReader(max_message_bytes)
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._begun: asyncio.Queue[Answer] | None = None
        """The answers to what ``begin`` has sent; None until it has."""
        self._failure: _local.Failure | None = None
        self._transport: asyncio.Transport

    @property
    def is_open(self) -> bool:
        """Whether calls can still be made, as far as is known."""
        return self._failure is None

    def close(self) -> None:
        """End the connection; calls under way are cancelled. Idempotent."""
        self._end(lambda: errors.CancelledError("the client is closed"))

    async def call(self, message: Message, timeout: float | None) -> Message:
        """Make a call, and return its answer. Raises ``kaas_client.errors``."""
        if timeout is not None and timeout <= 0:
            raise _local.late()
        if self._failure is not None:
            raise _local.unsent(self._address, "the connection has ended")
        id = next(self._ids)
        timeout_ns = 0 if timeout is None else max(1, int(timeout * 1e9))
        frame = _local.frame_of(id, message, timeout_ns, self.max_sent_bytes)
        answer: asyncio.Future[Message] = self._loop.create_future()
        self._waiting[id] = answer
        timer = None if timeout is None else self._loop.call_later(timeout, self._settle, id, None)
        self._transport.writelines(frame)
        try:
            return await answer
        except asyncio.CancelledError:
            if id in self._waiting and self._failure is None:
                self._transport.writelines(to_frame(id, "cancel", local_pb2.Cancel()))
            raise
        finally:
            self._waiting.pop(id, None)
            if timer is not None:
                timer.cancel()

    # For those who match answers to calls themselves.

    async def begin(self, id: int, message: Message, timeout_ns: int) -> None:
        """Send a call, whose answer ``receive`` returns."""
        frame = _local.frame_of(id, message, timeout_ns, self.max_sent_bytes)
        if self._failure is not None:
            raise _local.unsent(self._address, "the connection has ended")
        self._transport.writelines(frame)

    async def receive(self, timeout: float | None) -> local_pb2.LocalFrame:
        """Return the next answer. Raises ``kaas_client.errors``."""
        if self._begun is None:
            self._begun = asyncio.Queue()
            if self._failure is not None:
                raise self._failure()
        try:
            answer = await asyncio.wait_for(self._begun.get(), timeout)
        except TimeoutError:
            raise _local.late() from None
        if isinstance(answer, errors.KaasError):
            raise answer
        return answer

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._frames.feed(data)
        while True:
            try:
                frame = self._frames.next()
                if frame is None:
                    return
                self._take(_local.parse(frame))
            except FrameTooLarge as error:
                self._settle(error.id, _local.too_large(error.size_bytes, self._max_bytes))
            except errors.InternalError as error:
                self._end(partial(errors.InternalError, error.message))
                return

    def connection_lost(self, error: Exception | None) -> None:
        why = "the server has closed it" if error is None else getattr(error, "strerror", None) or str(error)
        self._end(lambda: _local.lost(self._address, why))

    def _take(self, frame: local_pb2.LocalFrame) -> None:
        if frame.id:
            self._settle(frame.id, frame)
        elif frame.WhichOneof("body") == "error":
            self._end(partial(from_stream_error, frame.error))

    def _settle(self, id: int, answer: Answer | None) -> None:
        """Hand an answer to who waits for it; None where none came in time."""
        waiting = self._waiting.pop(id, None)
        if waiting is None:
            if self._begun is not None and answer is not None:
                self._begun.put_nowait(answer)
        elif not waiting.done():
            try:
                if answer is None:
                    raise _local.late()
                if isinstance(answer, errors.KaasError):
                    raise answer
                waiting.set_result(_local.read(answer))
            except errors.KaasError as error:
                waiting.set_exception(error)

    def _end(self, failure: _local.Failure) -> None:
        """Fail all calls, and those to come."""
        if self._failure is not None:
            return
        self._failure = failure
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(failure())
        if self._begun is not None:
            self._begun.put_nowait(failure())
        self._transport.abort()


async def open_local(path: str, address: str, max_message_bytes: int, timeout: float) -> LocalChannel:
    """Connect to a local channel. Raises ``OSError``."""
    loop = asyncio.get_running_loop()
    connecting = loop.create_unix_connection(lambda: LocalChannel(address, max_message_bytes), path)
    _, channel = await asyncio.wait_for(connecting, timeout)
    return channel
