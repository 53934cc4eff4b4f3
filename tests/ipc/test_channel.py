"""The channel carries messages of any size, in both directions, over a real socketpair."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from kaas.v1 import executor_pb2
from kaas.worker.v1 import worker_pb2
from kaas_core.errors import InvalidRequestError, KeyNotFoundError, Violation
from kaasd.ipc.channel import FrontChannel, WorkerChannel
from kaasd.ipc.messages import error_from_failed, failed_from_error


@pytest.mark.parametrize("size", [0, 1, 1000, 300_000, 5_000_000])
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


def test_a_worker_sees_the_end_of_the_front_also_in_the_middle_of_a_message() -> None:
    ours, theirs = socket.socketpair()
    worker = WorkerChannel(theirs)
    ours.sendall(b"\x10\0\0\0abc")
    ours.close()
    assert worker.receive() is None
    worker.send(worker_pb2.FromWorker(id=1))
    worker.close()


def test_errors_cross_whole() -> None:
    error = InvalidRequestError([Violation("kernels[0].grid", "is 0"), Violation("buffers[1].size", "is 0")])
    back = error_from_failed(failed_from_error(error))
    assert isinstance(back, InvalidRequestError)
    assert back.violations == error.violations
    assert back.message == error.message
    missing = error_from_failed(failed_from_error(KeyNotFoundError("no key 'a'", {"key": "a"})))
    assert isinstance(missing, KeyNotFoundError)
    assert (missing.message, missing.metadata) == ("no key 'a'", {"key": "a"})
