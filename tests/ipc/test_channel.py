"""The channel carries messages of any size, in both directions, over a real socketpair."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from kaas.v1 import executor_pb2
from kaas.worker.v1 import worker_pb2
from kaas_core.errors import InvalidRequestError, KeyNotFoundError, Violation
from kaasd.ipc.channel import WorkerChannel
from kaasd.ipc.front_channel import FrontChannel
from kaasd.ipc.messages import error_from_failed, failed_from_error


@pytest.mark.parametrize("size", [0, 1, 1000, 300_000, 1_000_000])
def test_messages_of_any_size_come_back(size: int) -> None:
    ours, theirs = socket.socketpair()
    worker = WorkerChannel(theirs)

    def serve() -> None:
        while (message := worker.receive()) is not None:
            reply = executor_pb2.InvokeResponse(outputs={"x": message.execute.inputs["x"]})
            worker.send(worker_pb2.FromWorker(id=message.id, executed=worker_pb2.Executed(reply=reply)))
        worker.close()

    thread = threading.Thread(target=serve)
    thread.start()
    payload = bytes(range(256)) * (size // 256 + 1)
    payload = payload[:size]

    async def talk() -> list[worker_pb2.FromWorker]:
        received: list[worker_pb2.FromWorker] = []
        three = asyncio.Event()
        lost = asyncio.Event()

        def note(message: worker_pb2.FromWorker) -> None:
            received.append(message)
            if len(received) == 3:
                three.set()

        channel = await FrontChannel.open(ours, note, lost.set)
        for call in (1, 2, 3):
            channel.send(worker_pb2.ToWorker(id=call, execute=worker_pb2.Execute(inputs={"x": payload})))
        await three.wait()
        channel.close()
        await lost.wait()
        return received

    received = asyncio.run(talk())
    thread.join()
    assert [message.id for message in received] == [1, 2, 3]
    assert all(message.executed.reply.outputs["x"] == payload for message in received)


def test_what_is_no_message_counts_as_the_loss_of_the_worker() -> None:
    ours, theirs = socket.socketpair()

    async def talk() -> list[worker_pb2.FromWorker]:
        received: list[worker_pb2.FromWorker] = []
        lost = asyncio.Event()
        await FrontChannel.open(ours, received.append, lost.set)
        theirs.sendall(b"\x03\0\0\0\xff\xff\xff")
        await lost.wait()
        return received

    assert asyncio.run(talk()) == []
    theirs.close()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("answers", [1, 3])
def test_what_a_worker_said_before_it_ended_is_heard_though_nothing_can_be_sent(run: Callable[..., Any], answers: int) -> None:
    async def talk() -> list[int]:
        ours, theirs = socket.socketpair()
        heard: list[int] = []
        lost = asyncio.Event()
        channel = await FrontChannel.open(ours, lambda message: heard.append(message.id), lost.set)
        with theirs:
            for number in range(answers):
                WorkerChannel(theirs).send(worker_pb2.FromWorker(id=number))
        channel.send(worker_pb2.ToWorker(id=7))  # Before the loop sees that something came, it sees that this fails.
        channel.send(worker_pb2.ToWorker(id=8))
        await lost.wait()
        return heard

    assert run(talk()) == list(range(answers))


def test_a_worker_sees_the_end_of_the_front_also_in_the_middle_of_a_message() -> None:
    ours, theirs = socket.socketpair()
    worker = WorkerChannel(theirs)
    ours.sendall(b"\x10\0\0\0abc")
    ours.close()
    assert worker.receive() is None
    worker.send(worker_pb2.FromWorker(id=1))
    worker.close()


def test_a_worker_sees_the_end_of_a_front_that_left_messages_unread() -> None:
    ours, theirs = socket.socketpair()
    worker = WorkerChannel(theirs)
    worker.send(worker_pb2.FromWorker(id=1))
    ours.close()
    assert worker.receive() is None
    worker.close()
    assert theirs.fileno() == -1
    worker.close()


def test_a_message_in_two_pieces_and_two_in_one() -> None:
    ours, theirs = socket.socketpair()
    worker = WorkerChannel(theirs)
    assert worker.fileno() == theirs.fileno()
    data = b"".join(len(body).to_bytes(4, "little") + body for body in (b"\x08\x01", b"\x08\x02"))
    ours.sendall(data[:9])
    first = worker.receive()
    assert first is not None and first.id == 1
    assert worker.has_begun
    ours.sendall(data[9:])
    second = worker.receive()
    assert second is not None and second.id == 2
    assert not worker.has_begun
    ours.close()
    worker.close()


def test_what_comes_to_the_front_in_pieces_is_put_together() -> None:
    received: list[worker_pb2.FromWorker] = []
    channel = FrontChannel(received.append)
    data = b"".join(len(body).to_bytes(4, "little") + body for body in (b"\x08\x01", b"", b"\x08\x03"))
    for index in range(len(data)):
        channel.data_received(data[index : index + 1])
    channel.data_received(data)
    assert [message.id for message in received] == [1, 0, 3] * 2


def test_nothing_is_sent_before_there_is_a_connection_or_after_its_end() -> None:
    FrontChannel().send(worker_pb2.ToWorker(id=1))
    FrontChannel().close()
    ours, theirs = socket.socketpair()

    async def talk() -> None:
        lost = asyncio.Event()
        channel = await FrontChannel.open(ours, lambda message: None, lost.set)
        channel.close()
        channel.send(worker_pb2.ToWorker(id=1))
        await lost.wait()

    asyncio.run(talk())
    assert theirs.recv(100) == b""
    theirs.close()


def test_errors_cross_whole() -> None:
    error = InvalidRequestError([Violation("kernels[0].grid", "is 0"), Violation("buffers[1].size", "is 0")])
    back = error_from_failed(failed_from_error(error))
    assert isinstance(back, InvalidRequestError)
    assert back.violations == error.violations
    assert back.message == error.message
    assert not failed_from_error(error).device_lost
    assert failed_from_error(error, device_lost=True).device_lost
    missing = error_from_failed(failed_from_error(KeyNotFoundError("no key 'a'", {"key": "a"})))
    assert isinstance(missing, KeyNotFoundError)
    assert (missing.message, missing.metadata) == ("no key 'a'", {"key": "a"})
