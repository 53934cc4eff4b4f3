"""Invocations of a stream that are sent again: on the same call and on another, in order, under their ids."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from kaas.v1 import executor_pb2, kv_pb2
from kaas.v1.errors_pb2 import StreamError
from kaas_client import RetryPolicy, errors
from kaas_core.protobuf import request_to_proto
from tests.client.fake_server import Failure, FakeServer
from tests.client.test_calls import REQUEST, entry_message
from tests.client.test_streams import answer, echo

SOON = RetryPolicy(max_attempts=4, initial_backoff=0.001, max_backoff=0.002)
BUSY = Failure("RESOURCE_EXHAUSTED", "full", "QUEUE_FULL")
AWAY = Failure("UNAVAILABLE", "the worker died", "WORKER_RESTARTING")
FAULT = Failure("ABORTED", "it trapped", "KERNEL_FAULT")
Sent = list[executor_pb2.InvokeStreamRequest]


@pytest.fixture(autouse=True)
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that do not say when to come again mean at once."""
    monkeypatch.setattr(errors.UnavailableError, "retry_after_s", None)


def refusal(id: int, failure: Failure) -> executor_pb2.InvokeStreamResponse:
    return executor_pb2.InvokeStreamResponse(id=id, error=StreamError.FromString(failure.status().SerializeToString()))


def refusing(sent: Sent, failure: Failure, times: int = 1) -> Callable[..., Iterator[executor_pb2.InvokeStreamResponse]]:
    """Refuse each invocation so often, and then answer it."""

    def serve(requests: Any, context: Any) -> Iterator[executor_pb2.InvokeStreamResponse]:
        for request in requests:
            sent.append(request)
            seen = [message.id for message in sent].count(request.id)
            yield refusal(request.id, failure) if seen <= times else answer(request)

    return serve


def losing(sent: Sent, take: int, answered: int) -> Callable[..., Iterator[executor_pb2.InvokeStreamResponse]]:
    """Take some invocations, answer the first of them, and go away as a server that is killed."""

    def serve(requests: Any, context: grpc.ServicerContext) -> Iterator[executor_pb2.InvokeStreamResponse]:
        taken = [request for _, request in zip(range(take), requests, strict=False)]
        sent.extend(taken)
        yield from map(answer, taken[:answered])
        context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    return serve


def recording(sent: Sent) -> Callable[..., Iterator[executor_pb2.InvokeStreamResponse]]:
    def serve(requests: Any, context: Any) -> Iterator[executor_pb2.InvokeStreamResponse]:
        for request in requests:
            sent.append(request)
            yield answer(request)

    return serve


@pytest.mark.parametrize("failure", [BUSY, AWAY], ids=lambda failure: failure.reason)
def test_what_is_refused_is_sent_again_on_the_same_call(connect: Any, server: FakeServer, failure: Failure) -> None:
    sent: Sent = []
    server.expect("InvokeStream", refusing(sent, failure, times=2))
    with connect(retry=SOON).stream() as stream:
        futures = [stream.submit("f", {"a": b"%d" % number}) for number in range(20)]
        results = [future.result(60) for future in futures]
    assert [result["c"] for result in results] == [b"%d%d" % (number, number) for number in range(20)]
    assert [result.attempts for result in results] == [3] * 20
    for id in range(1, 21):
        assert len({message.invoke.request_id for message in sent if message.id == id}) == 1
    assert len({message.invoke.request_id for message in sent}) == 20


def test_no_oftener_than_the_policy_says(connect: Any, server: FakeServer) -> None:
    sent: Sent = []
    server.expect("InvokeStream", refusing(sent, AWAY, times=100))
    with connect(retry=SOON).stream() as stream:
        with pytest.raises(errors.WorkerRestartingError):
            stream.submit("f").result(60)
        assert len(sent) == 4
        with pytest.raises(errors.WorkerRestartingError):
            stream.submit("f").result(60)
    assert [message.id for message in sent] == [1] * 4 + [2] * 4


def test_what_would_fail_again_is_not_sent_again(connect: Any, server: FakeServer) -> None:
    sent: Sent = []
    server.expect("InvokeStream", refusing(sent, FAULT))
    with connect(retry=SOON).stream() as stream, pytest.raises(errors.KernelFaultError):
        stream.submit("f").result(60)
    assert len(sent) == 1


def test_where_the_connection_is_lost_the_rest_comes_on_another_in_order(connect: Any, server: FakeServer) -> None:
    first: Sent = []
    second: Sent = []
    third: Sent = []
    server.expect("InvokeStream", losing(first, take=7, answered=3))
    server.expect("InvokeStream", losing(second, take=10, answered=2))
    server.expect("InvokeStream", recording(third))
    with connect(retry=SOON).stream(max_in_flight=10) as stream:
        results = list(stream.map("f", ({"a": b"%d" % number} for number in range(40))))
    assert [result["c"] for result in results] == [b"%d%d" % (number, number) for number in range(40)]
    assert [message.id for message in first] == list(range(1, 8))
    for sent in (second, third):
        assert [message.id for message in sent] == sorted(message.id for message in sent)
    ids = {message.id: message.invoke.request_id for message in (*first, *second, *third)}
    assert all(message.invoke.request_id == ids[message.id] for message in (*first, *second, *third))
    assert len(set(ids.values())) == 40
    assert results[0].attempts == 1
    assert results[39].attempts == 1
    assert max(result.attempts for result in results) == 3


def test_without_a_policy_nothing_is_sent_again(connect: Any, server: FakeServer) -> None:
    sent: Sent = []
    server.expect("InvokeStream", losing(sent, take=2, answered=1))
    with connect(retry=None).stream() as stream:
        first, second = stream.submit("f", {"a": b"x"}), stream.submit("f", {"a": b"y"})
        assert first.result(60)["c"] == b"xx"
        with pytest.raises(errors.ConnectionLostError):
            second.result(60)
        with pytest.raises(errors.ConnectionLostError):
            stream.submit("f")
    assert [message.invoke.request_id for message in sent] == ["", ""]


def test_a_server_that_does_not_come_back_ends_the_stream(connect: Any, server: FakeServer) -> None:
    for _ in range(4):
        server.expect("InvokeStream", losing([], take=1, answered=0))
    with connect(retry=SOON).stream() as stream:
        with pytest.raises(errors.ConnectionLostError):
            stream.submit("f").result(60)
        with pytest.raises(errors.ConnectionLostError):
            stream.submit("f")


def test_nobody_there_fails_at_once(connect: Any) -> None:
    client = connect(retry=RetryPolicy(100, 3600, 3600))
    with client.stream() as stream, pytest.raises(errors.ConnectionFailedError, match="is kaasd running"):
        stream.submit("f").result(60)


def test_a_stream_with_nothing_in_flight_goes_on_with_the_next(connect: Any, server: FakeServer) -> None:
    gone = threading.Event()

    def leave(requests: Any, context: grpc.ServicerContext) -> Iterator[executor_pb2.InvokeStreamResponse]:
        yield answer(next(requests))
        gone.wait(60)
        context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    server.expect("InvokeStream", leave)
    server.expect("InvokeStream", echo)
    with connect(retry=SOON).stream() as stream:
        assert stream.submit("f", {"a": b"x"}).result(60)["c"] == b"xx"
        gone.set()
        for number in range(50):
            assert stream.submit("f", {"a": b"%d" % number}).result(60)["c"] == b"%d%d" % (number, number)


@pytest.mark.parametrize("failure", ["refused", "lost"])
def test_who_leaves_gets_what_is_sent_again(connect: Any, server: FakeServer, failure: str) -> None:
    """The call is half closed then, so that it is sent on another."""
    sent: Sent = []

    def late(requests: Any, context: grpc.ServicerContext) -> Iterator[executor_pb2.InvokeStreamResponse]:
        taken = list(requests)  # until the client leaves
        sent.extend(taken)
        if failure == "lost":
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        yield from (refusal(request.id, AWAY) for request in taken)

    server.expect("InvokeStream", late)
    server.expect("InvokeStream", recording(sent))
    with connect(retry=SOON).stream() as stream:
        futures = [stream.submit("f", {"a": b"x"}) for _ in range(3)]
    assert [future.result(60)["c"] for future in futures] == [b"xx"] * 3
    assert [message.id for message in sent] == [1, 2, 3, 1, 2, 3]


def test_leaving_by_an_exception_ends_the_waiting(connect: Any, server: FakeServer) -> None:
    refused = threading.Event()

    def serve(requests: Any, context: Any) -> Iterator[executor_pb2.InvokeStreamResponse]:
        yield refusal(next(requests).id, AWAY)
        refused.set()
        next(requests, None)

    server.expect("InvokeStream", serve)
    with pytest.raises(ZeroDivisionError), connect(retry=RetryPolicy(100, 3600, 3600)).stream() as stream:
        future = stream.submit("f")
        assert refused.wait(60)
        raise ZeroDivisionError
    with pytest.raises(errors.CancelledError):
        future.result(60)


def test_nothing_is_sent_again_behind_its_timeout(connect: Any, server: FakeServer) -> None:
    sent: Sent = []
    server.expect("InvokeStream", refusing(sent, AWAY, times=100))
    with connect(retry=RetryPolicy(100, 3600, 3600)).stream() as stream, pytest.raises(errors.WorkerRestartingError):
        stream.submit("f", timeout=60.0).result(60)
    assert len(sent) == 1


def test_what_is_left_of_a_timeout_is_sent(connect: Any, server: FakeServer) -> None:
    sent: Sent = []
    server.expect("InvokeStream", refusing(sent, AWAY))
    with connect(retry=SOON).stream() as stream:
        stream.submit("f", timeout=60.0).result(60)
    first, second = (message.timeout_ns for message in sent)
    assert first == 60_000_000_000
    assert 0 < second < first


def test_outputs_that_were_dropped_are_fetched(connect: Any, server: FakeServer) -> None:
    """The reply was lost, and too large to be kept."""
    sent: Sent = []

    def drop(requests: Any, context: Any) -> Iterator[executor_pb2.InvokeStreamResponse]:
        for request in requests:
            response = executor_pb2.InvokeResponse(versions={"result": 12}, outputs_dropped=True)
            yield executor_pb2.InvokeStreamResponse(id=request.id, response=response)

    server.expect("InvokeStream", losing(sent, take=1, answered=0))
    server.expect("InvokeStream", drop)
    entry = entry_message("result")
    entry.version, entry.size_bytes = 12, 4

    server.expect(
        "GetFunction",
        executor_pb2.GetFunctionResponse(function=executor_pb2.Function(name="f", request=request_to_proto(REQUEST.spec))),
    )
    server.expect("Get", [kv_pb2.GetResponse(entry=entry), kv_pb2.GetResponse(chunk=b"\1\2\3\4")])
    with connect(retry=SOON).stream() as stream:
        future = stream.submit("f", returns=["c"])
    result = future.result(60)
    assert (result.outputs, result.outputs_dropped, result.attempts) == ({"c": b"\1\2\3\4"}, False, 2)
