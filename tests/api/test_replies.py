"""What replies may take in all that nobody has read: who would go over it is refused before it runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kaas.v1 import executor_pb2, kv_pb2
from kaas_core import errors
from kaasd.store.base import Write
from tests.api.support import WAIT_S, FakeDispatcher, Held, Running, failure, product_request, running_server
from tests.api.test_executor import RAN, register
from tests.api.test_invoke_stream import Stream, stream_failure

REPLY = executor_pb2.InvokeResponse(outputs={"c": b"\1\0\0\0"})
SUBMISSION = executor_pb2.SubmitRequest(request=product_request(), return_buffers=["c"])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    """One that has room for two replies of four bytes that are to come."""
    with running_server(tmp_path, FakeDispatcher(), max_queued_bytes=8) as server:
        yield server


def wait_until_nothing_is_held(server: Running) -> None:
    end = time.monotonic() + WAIT_S
    while server.server._core.replies.held_bytes:
        assert time.monotonic() < end
        time.sleep(0.001)


def test_what_finds_no_room_is_refused_and_not_run(server: Running) -> None:
    register(server)
    held = [Held(REPLY), Held(REPLY)]
    server.dispatcher.expect("execute", *held, REPLY, RAN)
    calls = [
        server.stubs.executor.Submit.future(SUBMISSION),
        server.stubs.executor.Invoke.future(executor_pb2.InvokeRequest(function="f", return_buffers=["c"])),
    ]
    assert all(execution.started.wait(WAIT_S) for execution in held)
    refused = failure(lambda: server.stubs.executor.Submit(SUBMISSION))
    assert refused.reason == "QUEUE_FULL"
    assert "replies of 8 bytes are to come, or not read yet" in refused.message
    stream = Stream(server)
    stream.invoke(1, return_buffers=["c"])
    assert stream_failure(next(stream.answers)).reason == "QUEUE_FULL"
    stream.invoke(2)  # It returns nothing.
    assert next(stream.answers).id == 2
    for execution in held:
        execution.release()
    assert [dict(call.result(WAIT_S).outputs) for call in calls] == [dict(REPLY.outputs)] * 2
    wait_until_nothing_is_held(server)
    stream.invoke(3, return_buffers=["c"])
    assert next(stream.answers).response == RAN
    stream.end()
    assert list(stream.answers) == []
    wait_until_nothing_is_held(server)


@pytest.mark.parametrize("end", ["fails", "cancelled", "deadline"])
def test_a_call_that_ends_otherwise_gives_its_room_back(server: Running, end: str) -> None:
    held = Held(REPLY)
    server.dispatcher.expect("execute", errors.KernelFaultError("it trapped") if end == "fails" else held)
    call = server.stubs.executor.Submit.future(SUBMISSION, timeout=0.2 if end == "deadline" else None)
    if end == "cancelled":
        assert held.started.wait(WAIT_S)
        call.cancel()
    else:
        assert failure(call.result).reason == ("KERNEL_FAULT" if end == "fails" else "")
    wait_until_nothing_is_held(server)
    server.dispatcher.expect("execute", REPLY)
    assert server.stubs.executor.Submit(SUBMISSION).outputs == REPLY.outputs


def test_one_alone_always_finds_room(tmp_path: Path) -> None:
    with running_server(tmp_path, FakeDispatcher(), max_queued_bytes=1) as server:
        server.dispatcher.expect("execute", REPLY)
        assert server.stubs.executor.Submit(SUBMISSION).outputs == REPLY.outputs


def test_of_a_stream_that_is_cancelled_nothing_is_held(server: Running) -> None:
    register(server)
    held = Held(REPLY)
    server.dispatcher.expect("execute", held)
    stream = Stream(server)
    stream.invoke(1, return_buffers=["c"])
    assert held.started.wait(WAIT_S)
    stream.answers.cancel()
    stream.end()
    wait_until_nothing_is_held(server)


def test_a_long_list_needs_room_too(server: Running) -> None:
    """Short ones do not: their calls take as much."""
    for number in range(400):
        server.store.commit([Write(f"{number:03}" + "x" * 300, [b""])]).result()
    held = Held(REPLY)
    server.dispatcher.expect("execute", held)
    call = server.stubs.executor.Submit.future(SUBMISSION)
    assert held.started.wait(WAIT_S)
    assert failure(lambda: server.stubs.kv.List(kv_pb2.ListRequest(page_size=400))).reason == "QUEUE_FULL"
    assert len(server.stubs.kv.List(kv_pb2.ListRequest(page_size=10)).entries) == 10
    held.release()
    call.result(WAIT_S)
    wait_until_nothing_is_held(server)
    assert len(server.stubs.kv.List(kv_pb2.ListRequest(page_size=400)).entries) == 400
    wait_until_nothing_is_held(server)
