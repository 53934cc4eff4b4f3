"""One connection of the local channel: frames that come, the calls that they are, and the frames that answer.

Nothing here waits for its caller: while that takes no answers, or has as many calls in flight as it may, its frames are not read.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from kaas.v1 import executor_pb2, local_pb2
from kaas_core.errors import (
    CancelledError,
    DeadlineExceededError,
    InvalidRequestError,
    KaasError,
    MessageTooLargeError,
)
from kaas_core.frames import FrameReader, FrameTooLarge, to_frame
from kaasd.api.core import Core
from kaasd.api.counting import SMALL_BYTES
from kaasd.api.errors import to_stream_error
from kaasd.api.executor import UNREAD_BYTES, ExecutorServicer
from kaasd.api.groups import Listener, listener_of_call
from kaasd.api.rpc import Parser

READ_BYTES = 256 << 10
"""At once. Linux keeps less than that of a unix socket."""
FRAMES_AT_ONCE = 128
"""Of one connection, before others have their turn."""
AHEAD_BYTES = 1 << 20
"""Of calls that wait for others of the connection to end: nothing more is read behind them."""
STALLED_S = 60.0
"""A connection on which half a frame or half an answer does not move for so long, or up to twice that, is closed."""
_MOST_BUFFERS = 64
"""That one call of the system is given; Linux takes 1024."""

FRAME = local_pb2.DESCRIPTOR.message_types_by_name["LocalFrame"]

Call = executor_pb2.InvokeRequest | executor_pb2.SubmitRequest


@dataclass(slots=True)
class _Waiting:
    """A call that waits for others of its connection to end."""

    id: int
    request: Call
    size_bytes: int
    deadline: float | None


class LocalConnection:
    """See the module's text. Used by one event loop."""

    def __init__(
        self,
        core: Core,
        executor: ExecutorServicer,
        listener: Listener,
        peer: socket.socket,
        ended: Callable[[LocalConnection], object],
    ) -> None:
        """``ended`` is called once, when it is closed."""
        self._core = core
        self._executor = executor
        self._listener = listener
        self._socket = peer
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._name = ("local", object())
        """Callers that wait take turns by this."""
        self._parser = Parser(FRAME, core)
        self._frames = FrameReader(core.settings.max_message_bytes)
        self._is_greeted = self._is_stopping = self._is_reading = self._is_closed = False
        self._parsing: asyncio.Task[None] | None = None
        self._running: dict[int, asyncio.Task[None]] = {}
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._reply_bytes = 0
        """Of the buffers in replies that the caller has not taken, or is going to have."""
        self._unsent: deque[memoryview] = deque()
        self._written_bytes = self._sent_bytes = 0
        self._taken: deque[tuple[int, asyncio.Future[None]]] = deque()
        """Who waits until so many bytes in all are sent."""
        self._moves = 0
        """Counts what has moved, so that it is seen where nothing does."""
        self._timer: asyncio.TimerHandle | None = None
        peer.setblocking(False)
        self._read_or_not()

    # What comes

    def _readable(self) -> None:
        try:
            data = self._socket.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._moves += 1
        self._frames.feed(data)
        self._take_up()

    @property
    def _may_take_up(self) -> bool:
        """Whether there is room for whatever the next frame asks."""
        return (
            not (self._unsent or self._is_closed or self._is_stopping)
            and self._parsing is None
            and self._waiting_bytes < AHEAD_BYTES
            and len(self._waiting) < self._core.settings.max_in_flight
        )

    def _take_up(self) -> None:
        """Take up the frames that have come, as far as there is room."""
        if self._is_closed:
            return
        self._begin_waiting()
        for number in itertools.count():
            if not self._may_take_up:
                break
            if number == FRAMES_AT_ONCE:
                self._loop.call_soon(self._take_up)
                break
            try:
                data = self._frames.next()
                if data is None:
                    break
                if len(data) > SMALL_BYTES:
                    self._parsing = self._loop.create_task(self._parse(data))
                else:
                    self._taken_up(self._parser.parse_small(data), len(data))
            except FrameTooLarge as error:
                self._refuse(too_large(error.size_bytes, self._core.settings.max_message_bytes))
            except KaasError as error:
                self._refuse(error)
        self._read_or_not()

    async def _parse(self, data: memoryview) -> None:
        try:
            frame = await self._parser.parse(data)
            self._parsing = None
            self._taken_up(frame, len(data))
        except Exception as error:
            self._refuse(error)
            return
        del frame, data
        self._take_up()

    def _taken_up(self, frame: local_pb2.LocalFrame, size_bytes: int) -> None:
        """Do what a frame asks. Raises ``InvalidRequestError`` where nothing can be made of it."""
        body = frame.WhichOneof("body")
        if body == "hello":
            self._is_greeted = True
            self._write(to_frame(frame.id, "hello", local_pb2.Hello(store_id=self._core.store.store_id)))
        elif not self._is_greeted:
            raise InvalidRequestError.at("hello", "the first frame must be a Hello")
        elif body == "cancel":
            self._cancel(frame.id)
        elif body in ("invoke", "submit"):
            deadline = self._loop.time() + frame.timeout_ns / 1e9 if frame.timeout_ns else None
            if frame.id == 0:
                raise InvalidRequestError.at("id", "the id of a call must be at least 1")
            if frame.id in self._running or any(waiting.id == frame.id for waiting in self._waiting):
                raise InvalidRequestError.at("id", f"a call with the id {frame.id} is in flight already")
            request: Call = frame.invoke if body == "invoke" else frame.submit
            self._waiting.append(_Waiting(frame.id, request, size_bytes, deadline))
            self._waiting_bytes += size_bytes
            self._begin_waiting()
        else:
            raise InvalidRequestError.at("body", "neither hello, invoke, submit nor cancel is set")

    def _read_or_not(self) -> None:
        """Read from the socket only while there is room for what comes."""
        should = self._may_take_up
        if should != self._is_reading:
            self._is_reading = should
            if should:
                self._moves += 1
                self._loop.add_reader(self._socket, self._readable)
            else:
                self._loop.remove_reader(self._socket)
        self._watch()

    # Calls

    def _begin_waiting(self) -> None:
        """Begin the calls that wait, in order, as far as there is room for them and their replies."""
        while self._waiting and len(self._running) < self._core.settings.max_in_flight and not self._is_closed:
            request = self._waiting[0].request
            reply_bytes = self._executor.reply_bytes(request) if isinstance(request, executor_pb2.InvokeRequest) else 0
            if self._reply_bytes and self._reply_bytes + reply_bytes > UNREAD_BYTES:
                return
            call = self._waiting.popleft()
            self._waiting_bytes -= call.size_bytes
            self._reply_bytes += reply_bytes
            self._running[call.id] = self._loop.create_task(self._call(call.id, request, call.deadline, reply_bytes))

    async def _call(self, id: int, request: Call, deadline: float | None, reply_bytes: int) -> None:
        listener_of_call.set(self._listener)  # each call is a task, and so has a context of its own
        taken_bytes = 0

        def take(size_bytes: int) -> None:
            nonlocal taken_bytes
            self._core.replies.take(size_bytes)
            taken_bytes = size_bytes

        try:
            try:
                if isinstance(request, executor_pb2.InvokeRequest):
                    execution, field = self._executor.invoke(request, deadline, lambda: self._name, take), "invoked"
                else:
                    execution, field = self._executor.submit(request, deadline, lambda: self._name, take), "submitted"
                del request
                answer = to_frame(id, field, await execution)
            except asyncio.CancelledError:
                answer = self._failed(id, CancelledError("the call was cancelled by its caller"))
            except Exception as error:
                answer = self._failed(id, error)
            self._write(answer)
            del answer
            if self._unsent:
                with suppress(asyncio.CancelledError):  # It has an answer, which is not to be told twice.
                    await self._until_taken()
        finally:
            self._core.replies.give(taken_bytes)
            self._reply_bytes -= reply_bytes
            del self._running[id]
            if not self._is_closed:
                self._take_up()

    def _cancel(self, id: int) -> None:
        running = self._running.get(id)
        if running is not None:
            self._loop.call_soon(running.cancel)  # not before it has begun: then nothing of it would run
            return
        for waiting in self._waiting:
            if waiting.id == id:
                self._waiting.remove(waiting)
                self._waiting_bytes -= waiting.size_bytes
                self._write(self._failed(id, CancelledError("the call was cancelled by its caller")))
                return

    def _failed(self, id: int, error: Exception) -> list[bytes]:
        return to_frame(id, "error", to_stream_error(self._core.failed(error)))

    def _refuse(self, error: Exception) -> None:
        """Answer what is no call with an error, and close: what would come next is not known to be a frame."""
        self._write(self._failed(0, error))
        self.close()

    # What goes

    def _write(self, frame: list[bytes]) -> None:
        if self._is_closed:
            return
        self._written_bytes += sum(map(len, frame))
        is_first = not self._unsent
        self._unsent.extend(map(memoryview, frame))
        if is_first:
            self._send()
            if self._unsent and not self._is_closed:
                self._loop.add_writer(self._socket, self._writable)
                self._read_or_not()

    def _writable(self) -> None:
        self._send()
        if not self._unsent and not self._is_closed:
            self._loop.remove_writer(self._socket)
            self._take_up()

    def _send(self) -> None:
        """Send as much as the socket takes."""
        while self._unsent:
            try:
                sent = self._socket.sendmsg([self._unsent[i] for i in range(min(len(self._unsent), _MOST_BUFFERS))])
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self.close()
                return
            self._moves += 1
            self._sent_bytes += sent
            while sent:
                first = self._unsent[0]
                if sent < len(first):
                    self._unsent[0] = first[sent:]
                    break
                sent -= len(first)
                self._unsent.popleft()
            while self._unsent and not self._unsent[0]:
                self._unsent.popleft()
            while self._taken and self._taken[0][0] <= self._sent_bytes:
                _, taken = self._taken.popleft()
                if not taken.done():
                    taken.set_result(None)

    async def _until_taken(self) -> None:
        """Return when all that is written so far is sent, or never will be."""
        taken = self._loop.create_future()
        self._taken.append((self._written_bytes, taken))
        await taken

    def _watch(self) -> None:
        """Look, in a while, whether what waits for the caller has moved."""
        if self._timer is None and not self._is_closed and self._waits_for_caller:
            self._timer = self._loop.call_later(STALLED_S, self._look, self._moves)

    @property
    def _waits_for_caller(self) -> bool:
        return bool(self._unsent) or (self._is_reading and (self._frames.is_within or not self._is_greeted))

    def _look(self, moves: int) -> None:
        self._timer = None
        if self._waits_for_caller and moves == self._moves:
            what = "took nothing of an answer" if self._unsent else "sent nothing more of a frame, or no Hello,"
            self._refuse(DeadlineExceededError(f"the caller {what} for {STALLED_S:g} s"))
        else:
            self._watch()

    # The end

    async def stop(self, grace_s: float | None) -> None:
        """Take no new call, let those that have come go on for ``grace_s``, then cancel them, close, and return."""
        self._is_stopping = True
        self._read_or_not()
        end = self._loop.time() + (grace_s or 0.0)
        while self._running and (left := end - self._loop.time()) > 0:
            await asyncio.wait(self._running.values(), timeout=left, return_when=asyncio.FIRST_COMPLETED)
        tasks = list(self._running.values())
        self.close()
        if tasks:
            await asyncio.wait(tasks)

    def close(self) -> None:
        """Cancel all that is under way, and close the socket. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        for task in self._running.values():
            task.cancel()
        if self._parsing is not None:
            self._parsing.cancel()
        if self._timer is not None:
            self._timer.cancel()
        for _, taken in self._taken:
            if not taken.done():
                taken.set_result(None)
        self._waiting.clear()
        self._unsent.clear()
        self._taken.clear()
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._ended(self)


def too_large(size_bytes: int, limit_bytes: int) -> MessageTooLargeError:
    """Return the error for a frame that is larger than a server takes."""
    return MessageTooLargeError(f"a frame of {size_bytes} bytes; at most {limit_bytes} (--max-message-size) are allowed")
