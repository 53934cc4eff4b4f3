"""Requests and invocations over the local channel, beside the same by gRPC: both kinds of client, one behaviour."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kaas.v1 import executor_pb2, types_pb2
from kaas_client import Client, Key, RetryPolicy, _local, errors
from tests.client.conftest import Blocking
from tests.client.fake_local import FakeLocal
from tests.client.fake_server import Failure, FakeServer
from tests.client.test_calls import REQUEST, REQUEST_MESSAGE
from tests.client.test_retries import lose

WAIT_S = 30.0
SOON = RetryPolicy(max_attempts=4, initial_backoff=0.001, max_backoff=0.002)
FULL = Failure("RESOURCE_EXHAUSTED", "full", "QUEUE_FULL", {"limit": "7"}, retry_after_s=3)
INVALID = Failure("INVALID_ARGUMENT", "a: bad", "INVALID_REQUEST", violations=[("a", "bad")])


@pytest.fixture(params=["grpc", "local"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestBoth:
    def test_an_invocation(self, client: Any, server: FakeServer) -> None:
        sent = executor_pb2.InvokeResponse(outputs={"c": b"1234"}, versions={"r": 7}, device="cuda:1", group="g", attempts=1)
        server.expect("Invoke", sent)
        result = client.invoke(
            "f", {"a": b"16 bytes of data", "b": Key("k")}, returns=["c"], device="cuda:1", group="g", priority=4, timeout=50
        )
        assert (result.outputs, result.versions, result.device, result.group) == ({"c": b"1234"}, {"r": 7}, "cuda:1", "g")
        call = server.only_call("Invoke")
        assert call.request.bindings["a"].value == b"16 bytes of data" and call.request.bindings["b"].key == "k"
        assert (call.request.function, call.request.priority, call.request.group) == ("f", 4, "g")
        assert call.time_remaining_s is not None and 0 < call.time_remaining_s < 51

    def test_a_request(self, client: Any, server: FakeServer) -> None:
        server.expect("Submit", executor_pb2.SubmitResponse(outputs={"c": b"1234"}, timing=types_pb2.Timing(run_ns=4)))
        result = client.submit(REQUEST, inputs={"a": bytes(16)}, returns=["c"])
        assert (result.outputs, result.timing.run_ns) == ({"c": b"1234"}, 4)
        call = server.only_call("Submit")
        assert (call.request.request, dict(call.request.inputs)) == (REQUEST_MESSAGE, {"a": bytes(16)})
        assert call.time_remaining_s is None or call.time_remaining_s > 1e6

    @pytest.mark.parametrize("failure", [FULL, INVALID, Failure("NOT_FOUND", "no f", "FUNCTION_NOT_FOUND")])
    def test_failures(self, client: Any, server: FakeServer, failure: Failure) -> None:
        server.expect("Invoke", failure)
        with pytest.raises(errors.KaasError) as raised:
            client.invoke("f")
        error = raised.value
        assert (error.reason, error.code, dict(error.metadata)) == (failure.reason, failure.code, failure.metadata)
        assert error.retry_after_s == (failure.retry_after_s or None)
        assert [(v.field, v.description) for v in getattr(error, "violations", ())] == failure.violations

    @pytest.mark.parametrize("failure", [Failure("UNAVAILABLE", "not now", "NOT_KNOWN_HERE"), lose], ids=["refused", "lost"])
    def test_what_is_made_again_has_the_same_id(
        self, connect: Any, server: FakeServer, failure: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(errors.UnavailableError, "retry_after_s", None)
        for planned in (failure, failure, executor_pb2.InvokeResponse()):
            server.expect("Invoke", planned)
        assert connect(retry=SOON).invoke("f").attempts == 3
        assert len({call.request.request_id for call in server.calls}) == 1 and server.calls[0].request.request_id

    def test_a_lost_call_without_retries(self, client: Any, server: FakeServer) -> None:
        server.expect("Invoke", lose)
        with pytest.raises(errors.ConnectionLostError, match=f"lost the connection to the server at {server.address}"):
            client.invoke("f")

    def test_a_deadline_without_an_answer(self, client: Any, server: FakeServer) -> None:
        ended = threading.Event()
        server.expect("Invoke", lambda request, context: ended.wait(WAIT_S) and executor_pb2.InvokeResponse())
        with pytest.raises(errors.DeadlineExceededError, match="no answer came before the deadline of the call"):
            client.invoke("f", timeout=0.3)
        server.expect("Invoke", executor_pb2.InvokeResponse(device="next"))
        assert client.invoke("f", timeout=WAIT_S).device == "next"
        ended.set()

    def test_what_is_too_large_to_send(self, connect: Any, server: FakeServer) -> None:
        client = connect(retry=None, max_message_bytes=100_000)
        with pytest.raises(errors.MessageTooLargeError, match="use put and get for large values"):
            client.invoke("f", {"a": bytes(100_001)})
        server.expect("Invoke", executor_pb2.InvokeResponse(device="next"))
        assert client.invoke("f").device == "next"

    def test_an_answer_that_is_too_large(self, connect: Any, server: FakeServer) -> None:
        client = connect(retry=None, max_message_bytes=100_000)
        server.expect("Invoke", executor_pb2.InvokeResponse(outputs={"c": bytes(300_000)}))
        with pytest.raises(errors.MessageTooLargeError, match="use put and get for large values"):
            client.invoke("f")
        server.expect("Invoke", executor_pb2.InvokeResponse(device="next"))
        assert client.invoke("f").device == "next"

    def test_where_no_server_is(self, connect: Any) -> None:
        with pytest.raises(errors.ConnectionFailedError, match="is kaasd running"):
            connect().invoke("f")

    def test_threads_share_a_client(self, server: FakeServer, address: str, transport: str, monkeypatch: Any) -> None:
        monkeypatch.setenv("KAAS_TRANSPORT", transport)

        def echo(request: Any, context: Any) -> executor_pb2.InvokeResponse:
            return executor_pb2.InvokeResponse(outputs={"c": request.bindings["a"].value})

        for _ in range(400):
            server.expect("Invoke", echo)
        with Client(address, retry=None) as client, ThreadPoolExecutor(8) as threads:
            sent = [f"{number}".encode() * (1 + number % 7 * 1000) for number in range(400)]
            results = threads.map(lambda data: client.invoke("f", {"a": data}, returns=["c"]), sent)
            assert [result.outputs["c"] for result in results] == sent


def see_the_end(client: Any) -> None:
    """Return when an event loop knows that the connection has ended. Threads find that out when they next send."""
    end = time.monotonic() + WAIT_S
    while isinstance(client, Blocking) and client._connection._local._channel.is_open:
        assert time.monotonic() < end
        time.sleep(0.001)


class TestChoice:
    """Which way is taken."""

    @pytest.fixture
    def transport(self) -> str:
        return "auto"

    @pytest.fixture
    def local(self, server: FakeServer) -> Iterator[FakeLocal]:
        with FakeLocal(server) as local:
            yield local

    def test_the_local_channel_where_there_is_one(self, client: Any, server: FakeServer, local: FakeLocal) -> None:
        for _ in range(2):
            server.expect("Invoke", executor_pb2.InvokeResponse())
            client.invoke("f")
        assert [frame.WhichOneof("body") for frame in local.frames] == ["hello", "invoke", "invoke"]

    def test_grpc_where_the_channel_is_of_another_server(self, client: Any, server: FakeServer) -> None:
        with FakeLocal(server, store_id="of another") as local:
            server.expect("Invoke", executor_pb2.InvokeResponse())
            client.invoke("f")
        assert {frame.WhichOneof("body") for frame in local.frames} == {"hello"}

    def test_grpc_where_it_cannot_be_reached(self, client: Any, server: FakeServer) -> None:
        FakeLocal(server)
        server.expect("Invoke", executor_pb2.InvokeResponse(device="by gRPC"))
        assert client.invoke("f").device == "by gRPC"

    def test_the_local_channel_once_it_is_there(self, client: Any, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_local, "AGAIN_S", 0.0)
        local = FakeLocal(server)
        for _ in range(2):
            server.expect("Invoke", executor_pb2.InvokeResponse())
        client.invoke("f")
        with local:
            client.invoke("f")
        assert [frame.WhichOneof("body") for frame in local.frames] == ["hello", "invoke"]

    def test_beside_the_socket_where_that_is_mounted_elsewhere(self, client: Any, server: FakeServer, local: FakeLocal) -> None:
        server.info.local_socket = f"/nowhere/{Path(local.path).name}"
        server.expect("Invoke", executor_pb2.InvokeResponse())
        client.invoke("f")
        assert [frame.WhichOneof("body") for frame in local.frames] == ["hello", "invoke"]

    def test_a_connection_that_has_ended_is_made_anew(self, client: Any, server: FakeServer, local: FakeLocal) -> None:
        """With no retries: nothing was sent on the old one."""
        for _ in range(2):
            server.expect("Invoke", executor_pb2.InvokeResponse())
            client.invoke("f")
            local.lose()
            see_the_end(client)
        assert [frame.WhichOneof("body") for frame in local.frames] == ["hello", "invoke"] * 2

    def test_grpc_once_it_is_gone(self, client: Any, server: FakeServer, local: FakeLocal) -> None:
        server.expect("Invoke", executor_pb2.InvokeResponse())
        client.invoke("f")
        local.stop()
        see_the_end(client)
        server.expect("Invoke", executor_pb2.InvokeResponse(device="by gRPC"))
        assert client.invoke("f").device == "by gRPC"

    @pytest.mark.parametrize("junk", [b"\x02\x00\x00\x00\xff\xff", b"HTTP/1.1 400 Bad Request\r\n", b"\x00\x00\x00\x00"])
    def test_what_is_no_answer(self, client: Any, server: FakeServer, local: FakeLocal, junk: bytes) -> None:
        server.expect("Invoke", lambda request, context: local.connections[-1].sendall(junk) or local.lose() or lose(0, context))
        with pytest.raises((errors.InternalError, errors.ConnectionLostError, errors.MessageTooLargeError)):
            client.invoke("f", timeout=WAIT_S)
        server.expect("Invoke", executor_pb2.InvokeResponse(device="next"))
        assert client.invoke("f").device == "next"

    def test_a_client_that_is_closed_ends_its_calls(self, connect: Any, server: FakeServer, local: FakeLocal) -> None:
        client, begun, ended = connect(retry=None), threading.Event(), threading.Event()

        def wait(request: Any, context: Any) -> executor_pb2.InvokeResponse:
            begun.set()
            ended.wait(WAIT_S)
            return executor_pb2.InvokeResponse()

        server.expect("Invoke", wait)
        with ThreadPoolExecutor(1) as thread:
            calling = thread.submit(client.invoke, "f")
            assert begun.wait(WAIT_S)
            client.close()
            with pytest.raises(errors.CancelledError):
                calling.result(WAIT_S)
        ended.set()


class TestSetting:
    def test_local_where_there_is_none(self, connect: Any, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
        FakeLocal(server)
        client = connect(retry=None)
        monkeypatch.setenv("KAAS_TRANSPORT", "local")
        client = connect(retry=None)
        with pytest.raises(errors.NotEnabledError, match=r"KAAS_TRANSPORT is local, and the server at .* has no local channel"):
            client.invoke("f")

    @pytest.fixture
    def transport(self) -> str:
        return "auto"

    def test_over_tcp(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KAAS_TRANSPORT", "local")
        with pytest.raises(ValueError, match=r"KAAS_TRANSPORT: 127\.0\.0\.1:1 is not a unix socket"):
            Client("127.0.0.1:1")

    def test_one_that_there_is_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KAAS_TRANSPORT", "pigeon")
        with pytest.raises(ValueError, match="KAAS_TRANSPORT: 'pigeon' is not one of auto, grpc, local"):
            Client("/nowhere")
