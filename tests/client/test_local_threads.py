"""One connection of the local channel for threads, where the other side is slow or goes away in the midst of a frame."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from kaas.v1 import executor_pb2, local_pb2
from kaas_client import errors
from kaas_client._local_threads import LocalChannel
from kaas_core.frames import FrameReader, to_frame

WAIT_S = 30.0
LARGE = executor_pb2.InvokeRequest(function="f" * (4 << 20))
"""More than a socket holds."""
SMALL = executor_pb2.InvokeRequest(function="g")


@pytest.fixture
def peer() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(WAIT_S)
    with theirs:
        peer_channel[theirs] = LocalChannel(ours, "unix:/there", 64 << 20)
        yield theirs
        peer_channel.pop(theirs).close()


peer_channel: dict[socket.socket, LocalChannel] = {}


@pytest.fixture
def channel(peer: socket.socket) -> LocalChannel:
    return peer_channel[peer]


def received(peer: socket.socket, count: int) -> list[local_pb2.LocalFrame]:
    """Return so many frames that come."""
    reader, frames = FrameReader(64 << 20), []
    while len(frames) < count:
        data = peer.recv(1 << 20)
        assert data, "the connection has ended"
        reader.feed(data)
        while (frame := reader.next()) is not None:
            frames.append(local_pb2.LocalFrame.FromString(bytes(frame)))
    return frames


def answer(peer: socket.socket, frame: local_pb2.LocalFrame) -> None:
    peer.sendall(b"".join(to_frame(frame.id, "invoked", executor_pb2.InvokeResponse(device=frame.invoke.function[:1]))))


def test_what_is_left_of_a_late_call_goes_before_the_next(channel: LocalChannel, peer: socket.socket) -> None:
    with pytest.raises(errors.DeadlineExceededError):
        channel.call(LARGE, 0.2)
    with pytest.raises(errors.DeadlineExceededError):
        channel.call(SMALL, 0.2)  # nothing of it is ever sent
    with ThreadPoolExecutor(1) as thread:
        calling = thread.submit(channel.call, SMALL, WAIT_S)
        large, small = received(peer, 2)
        assert (large.invoke, small.invoke) == (LARGE, SMALL)
        answer(peer, large)  # nobody waits for it any more
        answer(peer, small)
        assert calling.result(WAIT_S) == executor_pb2.InvokeResponse(device="g")
    assert channel.is_open


def test_a_thread_that_has_its_answer_hands_the_reading_on(channel: LocalChannel, peer: socket.socket) -> None:
    with ThreadPoolExecutor(3) as threads:
        calling = [threads.submit(channel.call, executor_pb2.InvokeRequest(function=name), WAIT_S) for name in "abc"]
        for frame in received(peer, 3):
            answer(peer, frame)
        assert [call.result(WAIT_S) for call in calling] == [executor_pb2.InvokeResponse(device=name) for name in "abc"]


def test_a_peer_that_goes_away_fails_all(channel: LocalChannel, peer: socket.socket) -> None:
    with ThreadPoolExecutor(3) as threads:
        calling = [threads.submit(channel.call, SMALL, WAIT_S) for _ in range(3)]
        received(peer, 3)
        peer.close()
        for call in calling:
            with pytest.raises(errors.ConnectionLostError, match="lost the connection to the server at unix:/there"):
                call.result(WAIT_S)
    assert not channel.is_open


def test_of_a_call_on_a_dead_connection_nothing_was_sent(channel: LocalChannel, peer: socket.socket) -> None:
    peer.close()
    for _ in range(2):
        with pytest.raises(errors.ConnectionFailedError) as raised:
            channel.call(SMALL, WAIT_S)
        assert type(raised.value) is errors.ConnectionFailedError


def test_an_error_of_no_call_fails_all(channel: LocalChannel, peer: socket.socket) -> None:
    with ThreadPoolExecutor(1) as thread:
        calling = thread.submit(channel.call, SMALL, WAIT_S)
        received(peer, 1)
        peer.sendall(b"".join(to_frame(0, "error", local_pb2.LocalFrame().error.__class__(code=3, message="no frame"))))
        with pytest.raises(errors.InternalError, match="INVALID_ARGUMENT: no frame"):
            calling.result(WAIT_S)


@pytest.mark.parametrize("timeout", [0.0, -1.0])
def test_a_call_without_time_is_not_sent(channel: LocalChannel, peer: socket.socket, timeout: float) -> None:
    with pytest.raises(errors.DeadlineExceededError):
        channel.call(SMALL, timeout)
    peer.setblocking(False)
    with pytest.raises(BlockingIOError):
        peer.recv(1)
