"""``ExecutorService`` over a real socket."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2

from kaas.v1 import admin_pb2, errors_pb2, executor_pb2, trace_pb2, types_pb2
from kaas_core import errors
from kaasd.api import shared
from kaasd.front import functions
from tests.api.support import (
    WAIT_S,
    FakeDispatcher,
    Held,
    Running,
    failure,
    product_request,
    running_server,
)

A = bytes(range(16))
RAN = executor_pb2.InvokeResponse(
    outputs={"c": b"\x07\0\0\0"},
    versions={"c": 12},
    device="cuda:1",
    timing=types_pb2.Timing(run_ns=5, total_ns=9),
    printed="hello",
)


def register(server: Running, name: str = "f") -> executor_pb2.Function:
    server.dispatcher.expect("prepare", None)
    request = executor_pb2.RegisterFunctionRequest(name=name, request=product_request())
    return server.stubs.executor.RegisterFunction(request).function


def value(data: bytes) -> executor_pb2.Binding:
    return executor_pb2.Binding(value=data)


def key(name: str) -> executor_pb2.Binding:
    return executor_pb2.Binding(key=name)


class TestSubmit:
    def test_its_reply_is_described_as_an_invocations_is(self) -> None:
        """One is read as the other."""
        described = {}
        for reply in (executor_pb2.SubmitResponse, executor_pb2.InvokeResponse):
            description = descriptor_pb2.DescriptorProto()
            reply.DESCRIPTOR.CopyToProto(description)
            described[reply] = str(description).replace(reply.DESCRIPTOR.name, "Reply")
        assert described[executor_pb2.SubmitResponse] == described[executor_pb2.InvokeResponse]

    def test_what_goes_in_and_comes_out(self, server: Running) -> None:
        server.dispatcher.expect("execute", RAN)
        response = server.stubs.executor.Submit(
            executor_pb2.SubmitRequest(request=product_request(), inputs={"a": A}, return_buffers=["c", "t"], device="cuda:1")
        )
        assert response == executor_pb2.SubmitResponse(
            outputs={"c": b"\x07\0\0\0"},
            versions={"c": 12},
            device="cuda:1",
            timing=types_pb2.Timing(run_ns=5, total_ns=9),
            printed="hello",
        )
        (call,) = server.dispatcher.calls
        assert types_pb2.Request.FromString(call.arguments["request"].content) == product_request()
        assert call.arguments["inputs"] == {"a": A}
        assert call.arguments["keys"] == {}
        assert call.arguments["return_buffers"] == ["c", "t"]
        assert call.arguments["device"] == "cuda:1"

    def test_a_trace_is_asked_for_and_comes_back(self, server: Running) -> None:
        register(server)
        trace = trace_pb2.Trace(spans=[trace_pb2.Span(name="queue", duration_ns=4)], notes=["n"])
        for asked, found in ((True, trace), (False, None)):
            server.dispatcher.expect(
                "execute", executor_pb2.InvokeResponse(trace=found), executor_pb2.InvokeResponse(trace=found)
            )
            submit = executor_pb2.SubmitRequest(request=product_request(), trace=asked)
            assert server.stubs.executor.Submit(submit) == executor_pb2.SubmitResponse(trace=found)
            invoke = executor_pb2.InvokeRequest(function="f", trace=asked)
            assert server.stubs.executor.Invoke(invoke) == executor_pb2.InvokeResponse(trace=found)
        executions = [call for call in server.dispatcher.calls if call.method == "execute"]
        assert [call.arguments["trace"] for call in executions] == [True, True, False, False]

    def test_a_trace_needs_room_in_the_reply(self, tmp_path: Path) -> None:
        request = product_request()
        request.buffers[2].size_bytes = 800 << 10
        dispatcher = FakeDispatcher()
        dispatcher.expect("execute", RAN)
        with running_server(tmp_path, dispatcher, max_message_bytes=1 << 20) as server:
            submit = executor_pb2.SubmitRequest(request=request, return_buffers=["c"])
            server.stubs.executor.Submit(submit)
            submit.trace = True
            failed = failure(lambda: server.stubs.executor.Submit(submit))
        assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")

    def test_the_deadline_of_the_call_is_that_of_the_kernels(self, server: Running) -> None:
        server.dispatcher.expect("execute", RAN, RAN)
        request = executor_pb2.SubmitRequest(request=product_request())
        server.stubs.executor.Submit(request, timeout=100)
        server.stubs.executor.Submit(request)
        limited, unlimited = (call.arguments["remaining"] for call in server.dispatcher.calls)
        assert 0 < limited <= 101  # gRPC rounds what it sends up to a unit.
        assert unlimited is None

    def test_the_deadline_of_a_registration_is_that_of_its_preparation(self, server: Running) -> None:
        server.dispatcher.expect("prepare", None)
        request = executor_pb2.RegisterFunctionRequest(name="f", request=product_request())
        server.stubs.executor.RegisterFunction(request, timeout=100)
        assert 0 < server.dispatcher.calls[0].arguments["remaining"] <= 101

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"inputs": {"x": b""}}, 'inputs["x"]'),
            ({"inputs": {"a": bytes(15)}}, 'inputs["a"]'),
            ({"inputs": {"a": bytes(17)}}, 'inputs["a"]'),
            ({"inputs": {"c": bytes(4)}}, 'inputs["c"]'),
            ({"inputs": {'"\n': b""}}, r'inputs["\"\n"]'),
            ({"return_buffers": ["c", "x"]}, "return_buffers[1]"),
        ],
    )
    def test_a_bad_field(self, server: Running, changes: dict, field: str) -> None:
        request = executor_pb2.SubmitRequest(request=product_request(), **changes)
        failed = failure(lambda: server.stubs.executor.Submit(request))
        assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
        assert failed.fields == [field]

    def test_a_bad_request_every_time_it_is_sent(self, server: Running) -> None:
        request = product_request()
        request.kernels[0].arguments[2].buffer.buffer = "nothing"
        request.kernels[0].block.x = 0
        for _ in range(2):
            failed = failure(lambda: server.stubs.executor.Submit(executor_pb2.SubmitRequest(request=request)))
            assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
            assert "kernels[0].arguments[2]" in failed.fields
            assert "kernels[0].block[0]" in failed.fields

    def test_no_request(self, server: Running) -> None:
        assert failure(lambda: server.stubs.executor.Submit(executor_pb2.SubmitRequest())).fields == ["kernels"]

    def test_every_reason_has_its_code(self, server: Running) -> None:
        """The codes are those that errors.proto writes beside its reasons."""
        expected = {
            "INVALID_NAME": "INVALID_ARGUMENT",
            "INVALID_REQUEST": "INVALID_ARGUMENT",
            "INVALID_LIBRARY": "INVALID_ARGUMENT",
            "REQUEST_ID_REUSED": "INVALID_ARGUMENT",
            "KEY_NOT_FOUND": "NOT_FOUND",
            "LIBRARY_NOT_FOUND": "NOT_FOUND",
            "KERNEL_NOT_FOUND": "NOT_FOUND",
            "FUNCTION_NOT_FOUND": "NOT_FOUND",
            "REQUEST_NOT_FOUND": "NOT_FOUND",
            "VALUE_TOO_SHORT": "FAILED_PRECONDITION",
            "UPLOAD_INCOMPLETE": "FAILED_PRECONDITION",
            "NOT_ENABLED": "FAILED_PRECONDITION",
            "STORE_FOREIGN": "FAILED_PRECONDITION",
            "STORE_GONE": "FAILED_PRECONDITION",
            "QUARANTINED": "FAILED_PRECONDITION",
            "DATA_DAMAGED": "DATA_LOSS",
            "OUT_OF_DEVICE_MEMORY": "RESOURCE_EXHAUSTED",
            "STORE_FULL": "RESOURCE_EXHAUSTED",
            "QUEUE_FULL": "RESOURCE_EXHAUSTED",
            "MESSAGE_TOO_LARGE": "RESOURCE_EXHAUSTED",
            "DEADLINE_EXCEEDED": "DEADLINE_EXCEEDED",
            "KERNEL_FAULT": "ABORTED",
            "DRAINING": "UNAVAILABLE",
            "WORKER_RESTARTING": "UNAVAILABLE",
            "WORKER_BUSY": "UNAVAILABLE",
            "GROUP_NOT_FOUND": "NOT_FOUND",
            "GROUP_LIMIT": "RESOURCE_EXHAUSTED",
            "CANCELLED": "CANCELLED",
            "INTERNAL": "INTERNAL",
        }
        assert set(expected) == {name.removeprefix("REASON_") for name, number in errors_pb2.Reason.items() if number}
        for reason, code in expected.items():
            server.dispatcher.expect("execute", errors.from_reason(reason, f"because {reason}", {"kernel": "k"}))
            failed = failure(lambda: server.stubs.executor.Submit(executor_pb2.SubmitRequest(request=product_request())))
            assert (failed.code, failed.reason) == (grpc.StatusCode[code], reason)
            assert failed.message == f"because {reason}"
            assert failed.metadata == {"kernel": "k"}
            assert (failed.retry_s is not None) == (code == "UNAVAILABLE" or reason in ("GROUP_LIMIT", "QUEUE_FULL"))
        counted = server.stubs.admin.GetStats(admin_pb2.GetStatsRequest()).failures_by_reason
        assert dict(counted) == dict.fromkeys(expected, 1)

    def test_a_defect_tells_nothing_of_itself(self, server: Running, caplog: pytest.LogCaptureFixture) -> None:
        server.dispatcher.expect("execute", RuntimeError("the secret path /home/someone"))
        failed = failure(lambda: server.stubs.executor.Submit(executor_pb2.SubmitRequest(request=product_request())))
        assert (failed.code, failed.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
        assert "secret" not in failed.message
        assert failed.metadata["incident"] in failed.message
        assert failed.metadata["incident"] in caplog.text
        assert "the secret path" in caplog.text

    def test_a_long_error_still_reaches_the_caller(self, server: Running) -> None:
        violations = [errors.Violation(f"kernels[{i}]", "ä" * 500) for i in range(100)]
        fault = errors.KernelFaultError("😀" * 5000, {"fault": "TRAP", "report": "ü\n" * 5000})
        server.dispatcher.expect("execute", errors.InvalidRequestError(violations), fault)
        failed, faulted = (
            failure(lambda: server.stubs.executor.Submit(executor_pb2.SubmitRequest(request=product_request()))) for _ in range(2)
        )
        assert failed.reason == "INVALID_REQUEST"
        assert failed.fields[0] == "kernels[0]"
        assert faulted.reason == "KERNEL_FAULT"
        assert faulted.metadata["fault"] == "TRAP"
        assert faulted.metadata["report"].startswith("ü\nü")

    def test_a_message_over_the_limit(self, tmp_path: Path) -> None:
        dispatcher = FakeDispatcher()
        with running_server(tmp_path, dispatcher, max_message_bytes=1 << 20) as server:
            request = executor_pb2.SubmitRequest(request=product_request(), inputs={"a": bytes(1 << 20)})
            assert failure(lambda: server.stubs.executor.Submit(request)).code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dispatcher.calls == []

    def test_a_reply_over_the_limit_is_refused_before_it_runs(self, tmp_path: Path) -> None:
        request = product_request()
        request.buffers[2].size_bytes = 1 << 20
        dispatcher = FakeDispatcher()
        with running_server(tmp_path, dispatcher, max_message_bytes=1 << 20) as server:
            submit = executor_pb2.SubmitRequest(request=request, return_buffers=["c"])
            failed = failure(lambda: server.stubs.executor.Submit(submit))
        assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")
        assert dispatcher.calls == []

    def test_a_caller_that_goes_away_stops_the_kernel(self, server: Running) -> None:
        held = Held()
        server.dispatcher.expect("execute", held)
        call = server.stubs.executor.Submit.future(executor_pb2.SubmitRequest(request=product_request()))
        assert held.started.wait(WAIT_S)
        call.cancel()
        assert held.cancelled.wait(WAIT_S)

    def test_a_deadline_that_passes_stops_the_kernel(self, server: Running) -> None:
        held = Held()
        server.dispatcher.expect("execute", held)
        request = executor_pb2.SubmitRequest(request=product_request())
        assert failure(lambda: server.stubs.executor.Submit(request, timeout=0.5)).code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert held.cancelled.wait(WAIT_S)


class TestFunctions:
    def test_registering_fills_in_the_defaults(self, server: Running) -> None:
        function = register(server, "math/product-1.0")
        assert function.name == "math/product-1.0"
        assert function.create_time.seconds > 0
        assert function.request.iterations == 1
        assert [(b.name, b.key) for b in function.request.buffers] == [("a", "a"), ("t", ""), ("c", "c")]
        assert function.request.kernels[0].grid == types_pb2.Dim3(x=1, y=1, z=1)
        got = server.stubs.executor.GetFunction(executor_pb2.GetFunctionRequest(name="math/product-1.0")).function
        assert got == function

    def test_a_request_that_cannot_run_is_not_registered(self, server: Running) -> None:
        server.dispatcher.expect("prepare", errors.KernelNotFoundError("no kernel product"))
        request = executor_pb2.RegisterFunctionRequest(name="f", request=product_request())
        assert failure(lambda: server.stubs.executor.RegisterFunction(request)).reason == "KERNEL_NOT_FOUND"
        get = executor_pb2.GetFunctionRequest(name="f")
        assert failure(lambda: server.stubs.executor.GetFunction(get)).reason == "FUNCTION_NOT_FOUND"

    @pytest.mark.parametrize("name", ["", "a b", "ä", "x" * 201, "f\n"])
    def test_a_bad_name(self, server: Running, name: str) -> None:
        register_ = executor_pb2.RegisterFunctionRequest(name=name, request=product_request())
        for call in (
            lambda: server.stubs.executor.RegisterFunction(register_),
            lambda: server.stubs.executor.GetFunction(executor_pb2.GetFunctionRequest(name=name)),
            lambda: server.stubs.executor.DeleteFunction(executor_pb2.DeleteFunctionRequest(name=name)),
            lambda: server.stubs.executor.Invoke(executor_pb2.InvokeRequest(function=name)),
        ):
            failed = failure(call)
            assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_NAME")

    def test_deleting(self, server: Running) -> None:
        register(server)
        delete = executor_pb2.DeleteFunctionRequest(name="f")
        server.stubs.executor.DeleteFunction(delete)
        for call in (
            lambda: server.stubs.executor.DeleteFunction(delete),
            lambda: server.stubs.executor.Invoke(executor_pb2.InvokeRequest(function="f")),
        ):
            failed = failure(call)
            assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "FUNCTION_NOT_FOUND")

    def test_pages(self, server: Running) -> None:
        for name in ["b", "a2", "a1", "a3"]:
            register(server, name)
        first = server.stubs.executor.ListFunctions(executor_pb2.ListFunctionsRequest(prefix="a", page_size=2))
        assert [function.name for function in first.functions] == ["a1", "a2"]
        second = server.stubs.executor.ListFunctions(
            executor_pb2.ListFunctionsRequest(prefix="a", page_size=2, page_token=first.next_page_token)
        )
        assert [function.name for function in second.functions] == ["a3"]
        assert second.next_page_token == ""

    def test_a_page_fits_into_a_message(self, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(functions.time, "time_ns", lambda: 1_700_000_000_123_456_789)  # of one size in every message
        (size,) = {register(server, name).ByteSize() for name in "abcde"}
        monkeypatch.setattr(shared, "MAX_PAGE_BYTES", size * 2)
        pages, token = [], None
        while token != "":
            response = server.stubs.executor.ListFunctions(executor_pb2.ListFunctionsRequest(page_token=token))
            pages.append([function.name for function in response.functions])
            token = response.next_page_token
        assert pages == [["a", "b"], ["c", "d"], ["e"]]
        monkeypatch.setattr(shared, "MAX_PAGE_BYTES", 1)
        (only,) = server.stubs.executor.ListFunctions(executor_pb2.ListFunctionsRequest()).functions
        assert only.name == "a"


class TestInvoke:
    def test_buffers_are_bound_to_keys_and_bytes(self, server: Running) -> None:
        register(server)
        server.dispatcher.expect("execute", RAN)
        response = server.stubs.executor.Invoke(
            executor_pb2.InvokeRequest(
                function="f", bindings={"a": value(A), "c": key("elsewhere")}, return_buffers=["c"], device="cuda:1"
            )
        )
        assert dict(response.outputs) == {"c": b"\x07\0\0\0"}
        assert dict(response.versions) == {"c": 12}
        assert (response.device, response.timing.run_ns) == ("cuda:1", 5)
        prepared, executed = server.dispatcher.calls
        assert executed.arguments["inputs"] == {"a": A}
        assert executed.arguments["keys"] == {"c": "elsewhere"}
        assert executed.arguments["return_buffers"] == ["c"]
        assert executed.arguments["function"] == "f"
        assert types_pb2.Request.FromString(executed.arguments["request"].content).kernels[0].name == "product"
        assert executed.arguments["request"] == prepared.arguments["request"]

    @pytest.mark.parametrize(
        ("bindings", "field"),
        [
            ({"x": value(b"")}, 'bindings["x"]'),
            ({"x": key("k")}, 'bindings["x"]'),
            ({"a": value(bytes(3))}, 'bindings["a"]'),
            ({"c": value(bytes(4))}, 'bindings["c"]'),
            ({"t": key("k")}, 'bindings["t"]'),
            ({"a": key("")}, 'bindings["a"]'),
            ({"a": key("k" * 401)}, 'bindings["a"]'),
            ({"a": executor_pb2.Binding()}, 'bindings["a"]'),
        ],
    )
    def test_a_bad_binding(self, server: Running, bindings: dict, field: str) -> None:
        register(server)
        failed = failure(lambda: server.stubs.executor.Invoke(executor_pb2.InvokeRequest(function="f", bindings=bindings)))
        assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
        assert failed.fields == [field]
