"""Failures of calls, as kaasd reports them and as gRPC itself does, become exceptions of one tree."""

from __future__ import annotations

import pickle
import socket
import threading
from typing import Any

import grpc.aio
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import code_pb2, status_pb2
from grpc_status import rpc_status

from kaas.v1 import executor_pb2, kv_pb2
from kaas_client import errors
from kaas_client._status import from_rpc_error, from_stream_error
from kaas_core.errors import BY_REASON, KaasError, Violation, from_reason
from tests.client.fake_server import Failure, FakeServer
from tests.client.test_calls import REQUEST, entry_message


@pytest.mark.parametrize("reason", BY_REASON)
def test_every_reason_has_its_exception(client: Any, server: FakeServer, reason: str) -> None:
    kind = BY_REASON[reason]
    server.expect("Stat", Failure(kind.code, "why", reason, {"a": "b"}))
    with pytest.raises(errors.KaasError) as caught:
        client.stat("k")
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.metadata) == ("why", {"a": "b"})


def test_the_client_exports_the_whole_tree() -> None:
    assert {kind.__name__ for kind in BY_REASON.values()} <= set(errors.__all__)
    assert all(hasattr(errors, name) for name in errors.__all__)


def test_violations(client: Any, server: FakeServer) -> None:
    violations = [("kernels[1].arguments[0]", "is not a buffer"), ("iterations", "must be at least 1")]
    server.expect("Submit", Failure("INVALID_ARGUMENT", "two things", "INVALID_REQUEST", violations=violations))
    with pytest.raises(errors.InvalidRequestError) as caught:
        client.submit(REQUEST)
    assert [(v.field, v.description) for v in caught.value.violations] == violations


def test_the_server_says_when_to_retry(client: Any, server: FakeServer) -> None:
    server.expect("Stat", Failure("UNAVAILABLE", "draining", "DRAINING", retry_after_s=7))
    with pytest.raises(errors.DrainingError) as caught:
        client.stat("k")
    assert caught.value.retry_after_s == 7.0


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("NOT_FOUND", errors.NotFoundError),
        ("FAILED_PRECONDITION", errors.FailedPreconditionError),
        ("UNAVAILABLE", errors.UnavailableError),
        ("DATA_LOSS", errors.InternalError),
    ],
)
def test_a_reason_of_a_newer_server_goes_by_its_code(client: Any, server: FakeServer, code: str, kind: type) -> None:
    server.expect("Stat", Failure(code, "new", "INVENTED_LATER", {"a": "b"}))
    with pytest.raises(errors.KaasError) as caught:
        client.stat("k")
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.metadata) == ("new", {"a": "b"})


def test_a_status_without_details_is_no_word_of_kaasd(client: Any, server: FakeServer) -> None:
    server.expect("Stat", Failure("PERMISSION_DENIED", "says a proxy"))
    with pytest.raises(errors.InternalError, match="PERMISSION_DENIED: says a proxy"):
        client.stat("k")


def test_details_that_are_not_messages_leave_the_code_and_the_text(client: Any, server: FakeServer) -> None:
    def answer(request: Any, context: Any) -> None:
        detail = AnyMessage(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")
        status = status_pb2.Status(code=code_pb2.NOT_FOUND, message="no key", details=[detail])
        context.abort_with_status(rpc_status.to_status(status))

    server.expect("Stat", answer)
    with pytest.raises(errors.InternalError, match="NOT_FOUND: no key"):
        client.stat("k")


def test_no_server(connect: Any, address: str) -> None:
    client = connect()
    with pytest.raises(errors.ConnectionFailedError) as caught:
        client.stat("k")
    assert str(caught.value) == f"cannot reach a server at {address}: No such file or directory; is kaasd running?"
    assert caught.value.metadata == {"address": address}


def test_nobody_listens_on_a_port(connect: Any) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(errors.ConnectionFailedError) as caught:
            connect(address=address).stat("k")
    assert str(caught.value) == f"cannot reach a server at {address}: Connection refused; is kaasd running?"


def test_a_server_that_goes_away_during_a_call(connect: Any, address: str) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hang(request: Any, context: Any) -> kv_pb2.StatResponse:
        entered.set()
        leave.wait(30)
        return kv_pb2.StatResponse()

    server = FakeServer(address)
    with server:
        client = connect(retry=None)
        server.expect("Stat", hang)
        stopper = threading.Thread(target=lambda: entered.wait(30) and server.stop())
        stopper.start()
        with pytest.raises(errors.ConnectionFailedError, match=f"^lost the connection to the server at {address}: "):
            client.stat("k")
        leave.set()
        stopper.join()


def test_a_message_that_could_not_be_written_is_a_lost_connection() -> None:
    """gRPC for asyncio calls it an error of its own, where that comes before the status."""
    error = grpc.aio.AioRpcError(
        grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(), details="Internal error from Core"
    )
    assert type(from_rpc_error(error, "unix:/s")) is errors.ConnectionLostError
    error = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(), details="another one")
    assert type(from_rpc_error(error, "unix:/s")) is errors.InternalError


def test_wait_for_ready_waits_for_a_server(connect: Any, address: str) -> None:
    client = connect(wait_for_ready=True, timeout=30)
    with FakeServer(address) as server:
        server.expect("Stat", kv_pb2.StatResponse(entry=entry_message("k")))
        assert client.stat("k").key == "k"


def test_wait_for_ready_ends_at_the_timeout(connect: Any) -> None:
    with pytest.raises(errors.DeadlineExceededError):
        connect(wait_for_ready=True).stat("k", timeout=0.05)


def test_the_deadline_of_a_call(client: Any, server: FakeServer) -> None:
    stopped = threading.Event()

    def slow(request: Any, context: Any) -> executor_pb2.SubmitResponse:
        context.add_callback(stopped.set)
        stopped.wait(30)
        return executor_pb2.SubmitResponse()

    server.expect("Submit", slow)
    with pytest.raises(errors.DeadlineExceededError):
        client.submit(REQUEST, timeout=2)  # which the call has reached the server in, on a busy machine too
    assert stopped.wait(30)


def test_the_clients_timeout_is_the_default(connect: Any, server: FakeServer) -> None:
    client = connect(timeout=1000)
    for timeout in (None, 50):
        server.expect("Stat", kv_pb2.StatResponse(entry=entry_message("k")))
        client.stat("k", timeout=timeout)
    default, given = (call.time_remaining_s for call in server.calls)
    assert default is not None and 500 < default < 1100
    assert given is not None and given < 100


def test_a_message_that_is_too_large_for_the_server(client: Any, server: FakeServer) -> None:
    with pytest.raises(errors.MessageTooLargeError, match="put and get"):
        client.invoke("f", {"a": bytes(5 << 20)})


def test_a_message_that_is_too_large_for_the_client(connect: Any, server: FakeServer) -> None:
    server.expect("Invoke", executor_pb2.InvokeResponse(outputs={"c": bytes(2 << 20)}))
    with pytest.raises(errors.MessageTooLargeError):
        connect(max_message_bytes=1 << 20).invoke("f", returns=["c"])


def test_an_error_inside_a_stream_is_a_status() -> None:
    failure = Failure("ABORTED", "it trapped", "KERNEL_FAULT", {"fault": "CUDA_ERROR_LAUNCH_FAILED"})
    error = from_stream_error(executor_pb2.InvokeStreamResponse.FromString(_stream_error(failure)).error)
    assert type(error) is errors.KernelFaultError
    assert (error.message, error.metadata) == ("it trapped", {"fault": "CUDA_ERROR_LAUNCH_FAILED"})


def _stream_error(failure: Failure) -> bytes:
    from kaas.v1.errors_pb2 import StreamError

    error = StreamError.FromString(failure.status().SerializeToString())
    return executor_pb2.InvokeStreamResponse(id=1, error=error).SerializeToString()


def test_a_malformed_address() -> None:
    from kaas_client import AsyncClient, Client

    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match="'nonsense' is not a valid address"):
            kind("nonsense")


@pytest.mark.parametrize("kind", BY_REASON.values())
def test_every_exception_can_be_pickled(kind: type[KaasError]) -> None:
    error = from_reason(kind.reason, "message", {"key": "value"}, [Violation("field", "description")])
    error.retry_after_s = 0.25  # type: ignore[misc]
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert vars(again) == vars(error)
    assert (str(again), again.metadata, again.retry_after_s) == ("message", {"key": "value"}, 0.25)
