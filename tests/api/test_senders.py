"""Who sends a call: those who wait take turns by this."""

from __future__ import annotations

import pytest

from kaas.v1 import executor_pb2
from kaas_client import Client
from tests.api.support import Running, product_request


def test_connections_of_clients_and_streams_of_others_are_told_apart(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAAS_TRANSPORT", "grpc")
    answered = executor_pb2.InvokeResponse()
    server.dispatcher.expect("prepare", None)
    server.dispatcher.expect("execute", *[answered] * 10)
    executor = server.stubs.executor
    executor.RegisterFunction(executor_pb2.RegisterFunctionRequest(name="f", request=product_request()))
    call = executor_pb2.InvokeRequest(function="f")
    for _ in range(2):
        executor.Invoke(call)
    for _ in range(2):
        assert (
            len(list(executor.InvokeStream(iter([executor_pb2.InvokeStreamRequest(id=id, invoke=call) for id in (1, 2)])))) == 2
        )
    for _ in range(2):
        with Client(server.server.addresses[0]) as kaas:
            kaas.invoke("f")
            with kaas.stream() as stream:
                stream.submit("f").result()
    senders = server.dispatcher.senders
    assert senders[0::2] == senders[1::2]
    assert len(set(senders)) == 5
