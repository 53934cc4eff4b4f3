"""``InvokeStream`` over a real socket."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from kaas.v1 import admin_pb2, executor_pb2
from kaas_core import errors
from kaasd.api import executor
from tests.api.support import (
    WAIT_S,
    Failure,
    FakeDispatcher,
    Held,
    Running,
    failure,
    read_failure,
    running_server,
    wait_for_failure,
)
from tests.api.test_executor import RAN, register, value


class Stream:
    """A client's end of ``InvokeStream``."""

    def __init__(self, server: Running, timeout: float | None = None) -> None:
        self._requests: queue.Queue[executor_pb2.InvokeStreamRequest | None] = queue.Queue()
        self.answers = server.stubs.executor.InvokeStream(self._send(), timeout=timeout)

    def _send(self) -> Iterator[executor_pb2.InvokeStreamRequest]:
        while (request := self._requests.get(timeout=WAIT_S)) is not None:
            yield request

    def invoke(self, id: int, function: str = "f", timeout_ns: int = 0, **fields: object) -> None:
        invoke = executor_pb2.InvokeRequest(function=function, **fields)
        self._requests.put(executor_pb2.InvokeStreamRequest(id=id, invoke=invoke, timeout_ns=timeout_ns))

    def end(self) -> None:
        self._requests.put(None)


def stream_failure(answer: executor_pb2.InvokeStreamResponse) -> Failure:
    assert answer.WhichOneof("result") == "error"
    code = next(code for code in grpc.StatusCode if code.value[0] == answer.error.code)
    return read_failure(code, answer.error.message, answer.error.details)


class TestInvokeStream:
    def test_answers_come_as_they_are_ready(self, server: Running) -> None:
        register(server)
        slow = Held(executor_pb2.InvokeResponse(outputs={"c": b"slow"}))
        server.dispatcher.expect("execute", slow, executor_pb2.InvokeResponse(outputs={"c": b"fast"}))
        stream = Stream(server)
        stream.invoke(1, return_buffers=["c"])
        stream.invoke(2, return_buffers=["c"])
        first = next(stream.answers)
        assert (first.id, first.response.outputs["c"]) == (2, b"fast")
        slow.release()
        second = next(stream.answers)
        assert (second.id, second.response.outputs["c"]) == (1, b"slow")
        stream.end()
        assert list(stream.answers) == []

    def test_the_stream_ends_when_all_is_answered(self, server: Running) -> None:
        register(server)
        held = Held()
        server.dispatcher.expect("execute", held)
        stream = Stream(server)
        stream.invoke(5)
        stream.end()
        assert held.started.wait(WAIT_S)
        held.release()
        assert [answer.id for answer in stream.answers] == [5]

    def test_a_failure_is_an_answer(self, server: Running) -> None:
        register(server)
        server.dispatcher.expect("execute", errors.QueueFullError("too many"), RAN)
        stream = Stream(server)
        stream.invoke(1)
        assert stream_failure(next(stream.answers)).reason == "QUEUE_FULL"
        stream.invoke(2, function="absent")
        assert stream_failure(next(stream.answers)).code is grpc.StatusCode.NOT_FOUND
        stream.invoke(3, bindings={"a": value(b"short")})
        assert stream_failure(next(stream.answers)).fields == ['bindings["a"]']
        stream.invoke(4)
        answer = next(stream.answers)
        assert (answer.id, answer.WhichOneof("result")) == (4, "response")
        stream.end()
        counted = server.stubs.admin.GetStats(admin_pb2.GetStatsRequest()).failures_by_reason
        assert dict(counted) == {"QUEUE_FULL": 1, "FUNCTION_NOT_FOUND": 1, "INVALID_REQUEST": 1}

    def test_a_defect_is_an_answer_too(self, server: Running) -> None:
        register(server)
        server.dispatcher.expect("execute", RuntimeError("secret"))
        stream = Stream(server)
        stream.invoke(1)
        failed = stream_failure(next(stream.answers))
        assert failed.reason == "INTERNAL"
        assert "secret" not in failed.message
        stream.end()

    def test_no_more_are_in_flight_than_allowed(self, tmp_path: Path) -> None:
        dispatcher = FakeDispatcher()
        with running_server(tmp_path, dispatcher, max_in_flight=2) as server:
            register(server)
            held = [Held() for _ in range(3)]
            dispatcher.expect("execute", *held)
            stream = Stream(server)
            for id_ in (1, 2, 3):
                stream.invoke(id_)
            assert held[0].started.wait(WAIT_S) and held[1].started.wait(WAIT_S)
            # Another call's round trip gives the server every chance to read on.
            server.stubs.admin.GetServerInfo(admin_pb2.GetServerInfoRequest())
            assert not held[2].started.is_set()
            held[1].release()
            assert next(stream.answers).id == 2
            assert held[2].started.wait(WAIT_S)
            held[0].release()
            held[2].release()
            stream.end()
            assert {answer.id for answer in stream.answers} == {1, 3}

    def test_no_more_is_begun_than_its_reader_may_leave_unread(self, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(executor, "UNREAD_BYTES", 8)
        register(server)
        held = [Held(RAN) for _ in range(4)]
        server.dispatcher.expect("execute", *held)
        stream = Stream(server)
        stream.invoke(1, return_buffers=["c"])
        stream.invoke(2, return_buffers=["c"])
        stream.invoke(3)  # It returns nothing.
        stream.invoke(4, return_buffers=["c"])
        assert all(execution.started.wait(WAIT_S) for execution in held[:3])
        # Another call's round trip gives the server every chance to read on.
        server.stubs.admin.GetServerInfo(admin_pb2.GetServerInfoRequest())
        assert not held[3].started.is_set()
        held[0].release()
        assert next(stream.answers).id == 1
        assert held[3].started.wait(WAIT_S)
        for execution in held[1:]:
            execution.release()
        stream.end()
        assert {answer.id for answer in stream.answers} == {2, 3, 4}

    def test_a_stream_whose_reader_takes_nothing_is_ended(self, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(executor, "UNREAD_S", 0.5)
        register(server)
        large = executor_pb2.InvokeResponse(outputs={"c": bytes(3 << 20)})
        server.dispatcher.expect("execute", *[large] * 12)
        stream = Stream(server)
        for id_ in range(12):
            stream.invoke(id_, return_buffers=["c"])
        assert next(stream.answers).response.outputs["c"] == bytes(3 << 20)
        wait_for_failure(server, "DEADLINE_EXCEEDED")
        failed = failure(lambda: list(stream.answers))
        assert (failed.code, failed.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
        assert "took nothing" in failed.message
        stream.end()

    def test_deadlines(self, server: Running) -> None:
        register(server)
        server.dispatcher.expect("execute", RAN, RAN, RAN)
        stream = Stream(server, timeout=100)
        stream.invoke(1)
        stream.invoke(2, timeout_ns=10**9 * 50)
        stream.invoke(3, timeout_ns=10**9 * 5000)
        stream.end()
        assert len(list(stream.answers)) == 3
        of_stream, own, later = (c.arguments["remaining"] for c in server.dispatcher.calls if c.method == "execute")
        assert 50 < of_stream <= 101
        assert 0 < own <= 50
        assert 50 < later <= 101

    def test_cancelling_the_stream_stops_what_runs(self, server: Running) -> None:
        register(server)
        held = [Held(), Held()]
        server.dispatcher.expect("execute", *held)
        stream = Stream(server)
        stream.invoke(1)
        stream.invoke(2)
        assert all(one.started.wait(WAIT_S) for one in held)
        stream.answers.cancel()
        assert all(one.cancelled.wait(WAIT_S) for one in held)
        stream.end()

    def test_a_message_that_is_none_ends_the_stream(self, server: Running) -> None:
        call = server.stubs.channel.stream_stream("/kaas.v1.ExecutorService/InvokeStream")
        failed = failure(lambda: list(call(iter([b"\xff\xff"]))))
        assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
