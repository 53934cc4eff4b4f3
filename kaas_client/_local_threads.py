"""One connection of the local channel, for threads; ``kaas_client._local_asyncio`` has the same for asyncio.

No thread of its own reads: of the threads that wait for an answer one does, for all. A lone call so wakes nobody.
"""

from __future__ import annotations

import itertools
import os
import select
import socket
import time
from contextlib import suppress
from functools import partial
from threading import Lock

from google.protobuf.message import Message

from kaas.v1 import local_pb2
from kaas_client import _local, errors
from kaas_client._status import from_stream_error
from kaas_core.frames import FrameReader, FrameTooLarge, to_frame

_READ_BYTES = 256 << 10
_MOST_BUFFERS = 64


class _Waiter:
    """A call that waits for its answer."""

    def __init__(self) -> None:
        self.answer: local_pb2.LocalFrame | errors.KaasError | None = None
        self._asleep = Lock()
        self._asleep.acquire()

    def is_answered(self) -> bool:
        return self.answer is not None

    def wake(self) -> None:
        """Have ``sleep`` return, also one that begins later."""
        if self._asleep.locked():
            self._asleep.release()

    def sleep(self, timeout: float | None) -> bool:
        """Return whether it was woken in time."""
        return self._asleep.acquire(timeout=-1 if timeout is None else max(timeout, 0.0))


class LocalChannel:
    """See the module's text. Used by any number of threads."""

    def __init__(self, peer: socket.socket, address: str, max_message_bytes: int) -> None:
        self.max_sent_bytes = max_message_bytes
        self._address = address
        self._max_bytes = max_message_bytes
        self._socket = peer
        self._frames = FrameReader(max_message_bytes)
        self._ids = itertools.count(1)
        self._lock = Lock()
        self._waiters: dict[int, _Waiter] = {}
        self._has_reader = False
        self._failure: _local.Failure | None = None
        self._sending = Lock()
        self._unsent: list[memoryview] = []
        self._process = os.getpid()

    @property
    def is_open(self) -> bool:
        """Whether calls can still be made, as far as is known; not in a forked process, whose answers these are not."""
        return self._failure is None and self._process == os.getpid()

    def close(self) -> None:
        """End the connection; calls under way are cancelled. Idempotent."""
        if self._process == os.getpid():
            self._end(lambda: errors.CancelledError("the client is closed"))
        else:
            self._socket.close()  # The process that has forked goes on.

    def call(self, message: Message, timeout: float | None) -> Message:
        """Make a call, and return its answer. Raises ``kaas_client.errors``."""
        if timeout is not None and timeout <= 0:
            raise _local.late()
        deadline = None if timeout is None else time.monotonic() + timeout
        id, waiter = next(self._ids), _Waiter()
        frame = _local.frame_of(id, message, _timeout_ns(timeout), self.max_sent_bytes)
        with self._lock:
            if self._failure is not None:
                raise _local.unsent(self._address, "the connection has ended")
            self._waiters[id] = waiter
        is_sent = False
        try:
            self._send(frame, deadline)
            is_sent = True
            self._wait(waiter, deadline)
        except TimeoutError:
            raise _local.late() from None
        except errors.KaasError:
            raise
        except BaseException:
            if is_sent:
                self.cancel(id)
            raise
        finally:
            with self._lock:
                self._waiters.pop(id, None)
        if isinstance(waiter.answer, errors.KaasError):
            raise waiter.answer
        assert waiter.answer is not None
        return _local.read(waiter.answer)

    # For those who match answers to calls themselves.

    def begin(self, id: int, message: Message, timeout_ns: int) -> None:
        """Send a call, whose answer ``receive`` returns."""
        self._send(_local.frame_of(id, message, timeout_ns, self.max_sent_bytes), None)

    def receive(self, timeout: float | None) -> local_pb2.LocalFrame:
        """Return the next answer. Raises ``kaas_client.errors``."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            self._has_reader = True
        try:
            answers = self._read(deadline)
        except TimeoutError:
            raise _local.late() from None
        finally:
            with self._lock:
                self._has_reader = False
            self._close_unused()
        if not answers:
            assert self._failure is not None
            raise self._failure()
        ((_, answer),) = answers
        if isinstance(answer, errors.KaasError):
            raise answer
        return answer

    def cancel(self, id: int) -> None:
        """End a call early, if it can be told at once."""
        try:
            self._send(to_frame(id, "cancel", local_pb2.Cancel()), time.monotonic())
        except (TimeoutError, errors.KaasError):
            return

    # Sending

    def _send(self, frame: list[bytes], deadline: float | None) -> None:
        """Send a frame. Raises ``TimeoutError``; what is left of a frame then goes before the next."""
        if not self._sending.acquire(timeout=-1 if deadline is None else max(_left(deadline), 0.0)):
            raise TimeoutError
        try:
            if self._failure is not None:
                raise _local.unsent(self._address, "the connection has ended")
            earlier = len(self._unsent)
            own_bytes = sum(map(len, frame))
            self._unsent.extend(map(memoryview, frame))
            try:
                self._flush(deadline)
            except TimeoutError:
                if sum(map(len, self._unsent)) >= own_bytes:  # None of it is sent.
                    del self._unsent[-len(frame) :]
                raise
            except OSError as error:
                is_begun = not earlier and sum(map(len, self._unsent)) < own_bytes
                why = error.strerror or str(error)
                self._end(partial(_local.lost, self._address, why))
                raise (_local.lost if is_begun else _local.unsent)(self._address, why) from None
            except BaseException:  # How much was sent is not known.
                self._end(lambda: _local.lost(self._address, "a call was interrupted while it was sent"))
                raise
        finally:
            self._sending.release()
            self._close_unused()

    def _flush(self, deadline: float | None) -> None:
        while self._unsent:
            try:
                sent = self._socket.sendmsg(self._unsent[:_MOST_BUFFERS], (), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self._poll(select.POLLOUT, deadline)
                continue
            while self._unsent and sent >= len(self._unsent[0]):
                sent -= len(self._unsent.pop(0))
            if sent:
                self._unsent[0] = self._unsent[0][sent:]

    def _poll(self, event: int, deadline: float | None) -> None:
        """Wait for the socket. Raises ``TimeoutError``."""
        if self._failure is not None:
            raise ConnectionResetError("the connection has ended")
        poll = select.poll()
        poll.register(self._socket, event)
        if not poll.poll(None if deadline is None else max(0.0, _left(deadline)) * 1000):
            raise TimeoutError

    # Waiting

    def _wait(self, waiter: _Waiter, deadline: float | None) -> None:
        """Return when the answer has come; read what comes for all meanwhile, unless another thread does."""
        while not waiter.is_answered():
            with self._lock:
                if waiter.is_answered():
                    return
                leads = not self._has_reader
                self._has_reader = True
            if not leads:
                if not waiter.sleep(None if deadline is None else _left(deadline)):
                    raise TimeoutError
                continue
            try:
                while not waiter.is_answered():
                    answers = self._read(deadline)
                    with self._lock:
                        for id, answer in answers:
                            other = self._waiters.get(id)
                            if other is not None:
                                other.answer = answer
                                other.wake()
            finally:
                with self._lock:
                    self._has_reader = False
                    for other in self._waiters.values():
                        if other is not waiter and other.answer is None:
                            other.wake()  # It reads from now on.
                            break
                self._close_unused()

    def _read(self, deadline: float | None) -> list[tuple[int, local_pb2.LocalFrame | errors.KaasError]]:
        """Return the answers that have come; wait until there are some, or the connection has ended. Raises ``TimeoutError``."""
        answers: list[tuple[int, local_pb2.LocalFrame | errors.KaasError]] = []
        while not answers and self._failure is None:
            try:
                data = self._frames.next()
            except FrameTooLarge as error:
                answers.append((error.id, _local.too_large(error.size_bytes, self._max_bytes)))
                break
            if data is not None:
                self._take(data, answers)
                continue
            try:
                if deadline is not None:
                    self._poll(select.POLLIN, deadline)
                received = self._socket.recv(_READ_BYTES)
            except TimeoutError:
                raise
            except OSError as error:
                self._end(partial(_local.lost, self._address, error.strerror or str(error)))
                break
            if not received:
                self._end(lambda: _local.lost(self._address, "the server has closed it"))
                break
            self._frames.feed(received)
        return answers

    def _take(self, data: memoryview, answers: list[tuple[int, local_pb2.LocalFrame | errors.KaasError]]) -> None:
        try:
            frame = _local.parse(data)
        except errors.InternalError as error:
            self._end(partial(errors.InternalError, error.message))
            return
        if frame.id:
            answers.append((frame.id, frame))
        elif frame.WhichOneof("body") == "error":
            self._end(partial(from_stream_error, frame.error))

    def _end(self, failure: _local.Failure) -> None:
        """Fail all calls, and those to come."""
        with self._lock:
            if self._failure is not None:
                return
            self._failure = failure
            for waiter in self._waiters.values():
                if waiter.answer is None:
                    waiter.answer = failure()
                    waiter.wake()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # which wakes who reads and who sends
        self._close_unused()

    def _close_unused(self) -> None:
        """Close the socket once nobody uses it: its number may soon be another file's."""
        if self._failure is None or not self._sending.acquire(blocking=False):
            return
        try:
            with self._lock:
                if not self._has_reader:
                    self._socket.close()
        finally:
            self._sending.release()


def open_local(path: str, address: str, max_message_bytes: int, timeout: float) -> LocalChannel:
    """Connect to a local channel. Raises ``OSError``."""
    peer = socket.socket(socket.AF_UNIX)
    try:
        peer.settimeout(max(timeout, 0.001))
        peer.connect(path)
        peer.settimeout(None)
    except BaseException:
        peer.close()
        raise
    return LocalChannel(peer, address, max_message_bytes)


def _left(deadline: float) -> float:
    return deadline - time.monotonic()


def _timeout_ns(timeout: float | None) -> int:
    return 0 if timeout is None else max(1, int(timeout * 1e9))
