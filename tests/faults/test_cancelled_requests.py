"""An operator sees what waits and runs, and ends it: its caller is told so, and nobody else notices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from kaas.v1 import executor_pb2, executor_pb2_grpc
from kaas_client import Client
from kaas_core.errors import CancelledError, RequestNotFoundError
from tests.faults.support import as_kaas_error, contents, dot_request, put_dot_inputs, spin, wait_until


@pytest.fixture
def executor(address: str) -> Iterator[executor_pb2_grpc.ExecutorServiceStub]:
    with grpc.insecure_channel(address) as channel:
        yield executor_pb2_grpc.ExecutorServiceStub(channel)


def test_requests_that_wait_and_run(
    kaas: Client, address: str, executor: executor_pb2_grpc.ExecutorServiceStub, library_root: Path
) -> None:
    expected = put_dot_inputs(kaas)
    before = contents(kaas)
    executor.RegisterFunction(executor_pb2.RegisterFunctionRequest(name="spin", request=spin(library_root).request))
    assert list(kaas.requests()) == []

    invoke = executor_pb2.InvokeRequest(function="spin")
    running = executor.Invoke.future(invoke, timeout=600)
    wait_until(lambda: [request.state for request in kaas.requests()] == ["running"])
    stream = executor.InvokeStream(iter([executor_pb2.InvokeStreamRequest(id=5, invoke=invoke)]), timeout=600)
    wait_until(lambda: len(list(kaas.requests())) == 2)
    dot = dot_request(str(library_root / "dot.ptx"))
    dot.inputs["a"] = bytes(4096)
    cancelled = executor.Submit.future(dot, timeout=600)
    wait_until(lambda: len(list(kaas.requests())) == 3)
    kept = executor.Submit.future(dot_request(str(library_root / "dot.ptx")), timeout=600)
    wait_until(lambda: len(list(kaas.requests())) == 4)

    first, second, third, last = kaas.requests()
    assert [request.state for request in (first, second, third, last)] == ["running", "queued", "queued", "queued"]
    assert [request.function for request in (first, second, third, last)] == ["spin", "spin", "", ""]
    assert {request.device for request in kaas.requests()} == {"emulator"}
    assert [request.input_bytes for request in (first, second, third, last)] == [0, 0, 4096, 0]
    assert first.age_ns > second.age_ns > third.age_ns > last.age_ns > 0

    kaas.cancel_request(third.id)
    assert "an operator cancelled it while the request was queued" in error_of(cancelled, address).message
    kaas.cancel_request(first.id)
    assert "an operator cancelled it while the request was running" in error_of(running, address).message
    wait_until(lambda: [(r.id, r.state) for r in kaas.requests()][:1] == [(second.id, "running")])
    kaas.cancel_request(second.id)
    (answer,) = stream
    assert (answer.id, answer.error.code) == (5, grpc.StatusCode.CANCELLED.value[0])
    assert "an operator cancelled it" in answer.error.message

    assert kept.result().versions["c"]
    assert kaas.get("c", dtype="u4")[0] == expected
    assert {**contents(kaas), "c": None} == {**before, "c": None}
    assert kaas.devices()[0].restarts == 0
    for request in (first, second, third, last):
        with pytest.raises(RequestNotFoundError):
            kaas.cancel_request(request.id)


def error_of(call: grpc.Future, address: str) -> CancelledError:
    """Return how a call failed that an operator cancelled."""
    error = as_kaas_error(call.exception(), address)
    assert call.code() is grpc.StatusCode.CANCELLED
    assert isinstance(error, CancelledError)
    return error
