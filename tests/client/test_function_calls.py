"""How a function is called: buffers by any name, and the keywords that were its options before."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from kaas.v1 import executor_pb2
from kaas_client import Kernel, Request, inp, out
from kaas_core.protobuf import request_to_proto
from tests.client.fake_server import FakeServer


def message_of(request: Request) -> executor_pb2.Function:
    return executor_pb2.Function(name="f", request=request_to_proto(request.spec))


FUNCTION_MESSAGE = message_of(Request([Kernel("/k.ptx", "k", args=[inp("a", 16), out("c", 4)])]))


def test_keywords_of_before_are_options_still(client: Any, server: FakeServer) -> None:
    server.expect("GetFunction", executor_pb2.GetFunctionResponse(function=FUNCTION_MESSAGE))
    function = client.function("f").options(device="emulator", group="g")
    server.expect("Invoke", executor_pb2.InvokeResponse(outputs={}))
    with pytest.warns(DeprecationWarning, match=r"with device, inputs, returns, timeout is deprecated: options go to"):
        assert function(inputs={"a": b"x"}, returns=[], device="cuda:0", timeout=None).outputs == {}
    assert server.only_call("Invoke").request == executor_pb2.InvokeRequest(
        function="f", bindings={"a": executor_pb2.Binding(value=b"x")}, device="cuda:0", group="g"
    )
    server.expect("Invoke", executor_pb2.InvokeResponse(outputs={}))
    with pytest.warns(DeprecationWarning, match="with inputs is deprecated"):
        function(inputs=None)
    request = server.calls[-1].request
    assert (request.device, dict(request.bindings), list(request.return_buffers)) == ("emulator", {}, ["c"])


def test_buffers_of_any_name_are_buffers(client: Any, server: FakeServer) -> None:
    names = ["inputs", "returns", "device", "timeout", "self", "a b"]
    request = Request([Kernel("/k.ptx", "k", args=[inp(name, 4) for name in names])])
    server.expect("GetFunction", executor_pb2.GetFunctionResponse(function=message_of(request)))
    function = client.function("f")
    server.expect("Invoke", executor_pb2.InvokeResponse(outputs={}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        function(**{name: name.encode() for name in names})
    assert {name: binding.value for name, binding in server.only_call("Invoke").request.bindings.items()} == {
        name: name.encode() for name in names
    }
