"""Every call of both kinds of client against a fake server: what goes over the wire and what comes back."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2

import kaas_client
from kaas.v1 import admin_pb2, executor_pb2, kv_pb2, library_pb2, trace_pb2, types_pb2
from kaas_client import Kernel, Key, Request, aio, errors, inp, out, u64
from kaas_client import client as threads_module
from kaas_client.types import Compaction, DamagedEntry, Span, StoreCheck, Trace
from tests.client.fake_server import SERVICES, FakeServer, Recorded

NOON = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)
NOON_MESSAGE = Timestamp(seconds=int(NOON.timestamp()))
LIBRARY_ID = "sha256:" + "ab" * 32
REQUEST = Request([Kernel(LIBRARY_ID, "copy", grid=2, block=(32, 4), args=[u64(7), inp("a", 16), out("c", 4, key="result")])])
REQUEST_MESSAGE = types_pb2.Request(
    kernels=[
        types_pb2.KernelSpec(
            library=LIBRARY_ID,
            name="copy",
            grid=types_pb2.Dim3(x=2, y=1, z=1),
            block=types_pb2.Dim3(x=32, y=4, z=1),
            arguments=[
                types_pb2.Argument(literal=types_pb2.Literal(type="Q", uint_value=7)),
                types_pb2.Argument(buffer=types_pb2.BufferArgument(buffer="a", access=types_pb2.ACCESS_INPUT)),
                types_pb2.Argument(buffer=types_pb2.BufferArgument(buffer="c", access=types_pb2.ACCESS_OUTPUT)),
            ],
        )
    ],
    buffers=[
        types_pb2.BufferSpec(name="a", size_bytes=16),
        types_pb2.BufferSpec(name="c", size_bytes=4, key="result"),
    ],
    iterations=1,
)
FUNCTION_MESSAGE = executor_pb2.Function(name="f", request=REQUEST_MESSAGE, create_time=NOON_MESSAGE)
TIMING_MESSAGE = types_pb2.Timing(queue_ns=1, plan_ns=2, load_ns=3, run_ns=4, commit_ns=5, total_ns=6)

METHOD_OF_RPC = {
    "Submit": "submit",
    "RegisterFunction": "register",
    "GetFunction": "function",
    "ListFunctions": "functions",
    "DeleteFunction": "delete_function",
    "Invoke": "invoke",
    "InvokeStream": "stream",
    "UploadLibrary": "upload",
    "InspectLibrary": "inspect",
    "ListLibraries": "libraries",
    "DeleteLibrary": "delete_library",
    "Put": "put",
    "Get": "get",
    "Stat": "stat",
    "List": "list",
    "Delete": "delete",
    "GetServerInfo": "server_info",
    "ListDevices": "devices",
    "GetStats": "stats",
    "Drain": "drain",
    "Resume": "resume",
    "DrainDevice": "drain_device",
    "ResumeDevice": "resume_device",
    "ListRequests": "requests",
    "CancelRequest": "cancel_request",
    "ListQuarantine": "quarantine",
    "ReleaseQuarantine": "release_quarantine",
    "SetGroup": "set_group",
    "GetGroup": "group",
    "ListGroups": "groups",
    "DeleteGroup": "delete_group",
    "CheckStore": "check_store",
    "BackupStore": "backup_store",
    "CompactStore": "compact_store",
    "Check": "health",
}
OTHER_MEMBERS = {"close", "bind"}
HEALTH_RPCS_UNUSED = {"Watch", "List"}
"""Of ``grpc.health.v1``, which is not ours."""


def entry_message(key: str, size_bytes: int = 3, version: int = 9) -> kv_pb2.Entry:
    return kv_pb2.Entry(key=key, size_bytes=size_bytes, version=version, update_time=NOON_MESSAGE)


def function_members(kind: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(member)
        for name, member in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def test_every_rpc_has_a_method_and_every_method_an_rpc() -> None:
    rpcs = {
        method.name
        for service in SERVICES
        for method in service.methods
        if not (service.full_name == "grpc.health.v1.Health" and method.name in HEALTH_RPCS_UNUSED)
    }
    assert rpcs == set(METHOD_OF_RPC)
    for kind in (kaas_client.Client, aio.Client):
        assert set(function_members(kind)) == {*METHOD_OF_RPC.values(), *OTHER_MEMBERS}


@pytest.mark.parametrize(
    ("threads", "asyncio"),
    [
        (kaas_client.Client, aio.Client),
        (threads_module.InvokeStream, aio.InvokeStream),
    ],
)
def test_both_kinds_have_the_same_methods_and_parameters(threads: type, asyncio: type) -> None:
    ours, theirs = function_members(threads), function_members(asyncio)
    assert list(ours) == list(theirs)
    for name, signature in ours.items():
        assert list(signature.parameters.values()) == list(theirs[name].parameters.values()), name
    assert inspect.signature(threads).parameters == inspect.signature(asyncio).parameters


def test_stat(client: Any, server: FakeServer) -> None:
    server.expect("Stat", kv_pb2.StatResponse(entry=entry_message("k")))
    entry = client.stat("k")
    assert (entry.key, entry.size_bytes, entry.version, entry.update_time) == ("k", 3, 9, NOON)
    assert server.calls == [Recorded("Stat", kv_pb2.StatRequest(key="k"), server.calls[0].time_remaining_s)]


def test_list_reads_all_pages(client: Any, server: FakeServer) -> None:
    server.expect("List", kv_pb2.ListResponse(entries=[entry_message("a/1"), entry_message("a/2")], next_page_token="more"))
    server.expect("List", kv_pb2.ListResponse(entries=[entry_message("a/3")]))
    assert [entry.key for entry in client.list("a/")] == ["a/1", "a/2", "a/3"]
    assert [(c.request.prefix, c.request.page_token) for c in server.calls] == [("a/", ""), ("a/", "more")]


def test_delete(client: Any, server: FakeServer) -> None:
    server.expect("Delete", kv_pb2.DeleteResponse())
    assert client.delete("k") is None
    assert server.only_call("Delete").request == kv_pb2.DeleteRequest(key="k")


def test_upload_from_a_path(client: Any, server: FakeServer, tmp_path: Any) -> None:
    (tmp_path / "dot.ptx").write_bytes(b".version 8.0\n")
    for library in (str(tmp_path / "dot.ptx"), tmp_path / "dot.ptx"):
        server.expect("UploadLibrary", library_pb2.UploadLibraryResponse(library=library_pb2.Library(id=LIBRARY_ID)))
        assert client.upload(library) == LIBRARY_ID
    for call in server.calls:
        header, chunk = call.request
        assert header.header == library_pb2.UploadLibraryHeader(file_name="dot.ptx", size_bytes=13)
        assert chunk.chunk == b".version 8.0\n"


def test_upload_of_bytes(client: Any, server: FakeServer) -> None:
    server.expect("UploadLibrary", library_pb2.UploadLibraryResponse(library=library_pb2.Library(id=LIBRARY_ID)))
    assert client.upload(b"abc", file_name="x.ptx") == LIBRARY_ID
    header, chunk = server.only_call("UploadLibrary").request
    assert (header.header.file_name, header.header.size_bytes, chunk.chunk) == ("x.ptx", 3, b"abc")


def test_inspect(client: Any, server: FakeServer) -> None:
    kernel = library_pb2.KernelInfo(
        name="k", parameter_size_bytes=[8, 4], static_shared_memory_bytes=48, max_threads_per_block=1024
    )
    kind = library_pb2.LIBRARY_KIND_SHARED_OBJECT
    server.expect(
        "InspectLibrary", library_pb2.InspectLibraryResponse(id=LIBRARY_ID, kind=kind, kernels=[kernel], device="emulator")
    )
    found = client.inspect("/lib/x.so")
    assert (found.id, found.kind, found.device) == (LIBRARY_ID, "shared_object", "emulator")
    (info,) = found.kernels
    assert (info.name, info.parameter_size_bytes, info.static_shared_memory_bytes, info.max_threads_per_block) == (
        "k",
        (8, 4),
        48,
        1024,
    )
    assert server.only_call("InspectLibrary").request.library == "/lib/x.so"


def test_libraries(client: Any, server: FakeServer) -> None:
    library = library_pb2.Library(
        id=LIBRARY_ID, file_name="x.ptx", size_bytes=5, kind=library_pb2.LIBRARY_KIND_PTX, create_time=NOON_MESSAGE
    )
    server.expect("ListLibraries", library_pb2.ListLibrariesResponse(libraries=[library], next_page_token="t"))
    server.expect("ListLibraries", library_pb2.ListLibrariesResponse())
    (found,) = client.libraries()
    assert (found.id, found.file_name, found.size_bytes, found.kind, found.create_time) == (LIBRARY_ID, "x.ptx", 5, "ptx", NOON)


def test_delete_library(client: Any, server: FakeServer) -> None:
    server.expect("DeleteLibrary", library_pb2.DeleteLibraryResponse())
    client.delete_library(LIBRARY_ID)
    assert server.only_call("DeleteLibrary").request.id == LIBRARY_ID


def test_submit(client: Any, server: FakeServer) -> None:
    reply = executor_pb2.SubmitResponse(
        outputs={"c": b"\x01\x00\x00\x00"}, versions={"result": 12}, device="emulator", timing=TIMING_MESSAGE, printed="hi"
    )
    server.expect("Submit", reply)
    result = client.submit(REQUEST, inputs={"a": memoryview(bytes(range(16)))}, returns=["c"], device="emulator", timeout=60)
    call = server.only_call("Submit")
    assert call.request == executor_pb2.SubmitRequest(
        request=REQUEST_MESSAGE, inputs={"a": bytes(range(16))}, return_buffers=["c"], device="emulator"
    )
    assert call.time_remaining_s is not None and 0 < call.time_remaining_s < 90
    assert result["c"] == b"\x01\x00\x00\x00"
    assert result.array("c", "u4").tolist() == [1]
    assert (result.versions, result.device, result.printed) == ({"result": 12}, "emulator", "hi")
    timing = result.timing
    stages = (timing.queue_ns, timing.plan_ns, timing.load_ns, timing.run_ns, timing.commit_ns, timing.total_ns)
    assert stages == (1, 2, 3, 4, 5, 6)


def test_a_trace_names_its_streams_and_kernels(client: Any, server: FakeServer) -> None:
    trace = trace_pb2.Trace(
        spans=[
            trace_pb2.Span(kind="SPAN_KIND_STAGE", name="queue", start_ns=1, duration_ns=2),
            trace_pb2.Span(kind="SPAN_KIND_KERNEL", start_ns=3, duration_ns=4, stream=1, kernel_index=1, iteration=5),
            trace_pb2.Span(kind="SPAN_KIND_COPY_TO_DEVICE", name="a", start_ns=6, duration_ns=7, size_bytes=8),
        ],
        streams=["in", "kernels"],
        kernels=[
            trace_pb2.TracedKernel(name="f", grid=types_pb2.Dim3(x=1, y=1, z=1), block=types_pb2.Dim3(x=2, y=1, z=1)),
            trace_pb2.TracedKernel(name="g", grid=types_pb2.Dim3(x=3, y=2, z=1), block=types_pb2.Dim3(x=4, y=5, z=6)),
        ],
        launches_left_out=9,
        notes=["n"],
    )
    server.expect("Submit", executor_pb2.SubmitResponse(trace=trace))
    server.expect("Invoke", executor_pb2.InvokeResponse(trace=trace))
    submitted, invoked = client.submit(REQUEST, trace=True).trace, client.invoke("f", trace=True).trace
    assert server.only_call("Submit").request == executor_pb2.SubmitRequest(request=REQUEST_MESSAGE, trace=True)
    assert server.only_call("Invoke").request == executor_pb2.InvokeRequest(function="f", trace=True)
    assert (
        submitted
        == invoked
        == Trace(
            spans=(
                Span("stage", "queue", 1, 2),
                Span("kernel", "g", 3, 4, "kernels", kernel_index=1, iteration=5, grid=(3, 2, 1), block=(4, 5, 6)),
                Span("copy_to_device", "a", 6, 7, "in", size_bytes=8),
            ),
            launches_left_out=9,
            notes=("n",),
        )
    )


def test_returns_is_not_a_string(client: Any, server: FakeServer) -> None:
    with pytest.raises(TypeError, match=r"list of names of buffers: \['c'\]"):
        client.submit(REQUEST, returns="c")


def test_register_returns_a_callable(client: Any, server: FakeServer) -> None:
    server.expect("RegisterFunction", executor_pb2.RegisterFunctionResponse(function=FUNCTION_MESSAGE))
    function = client.register("f", REQUEST)
    assert server.only_call("RegisterFunction").request == executor_pb2.RegisterFunctionRequest(name="f", request=REQUEST_MESSAGE)
    assert (function.name, function.request, function.create_time, function.outputs) == ("f", REQUEST, NOON, ("c",))

    server.expect("Invoke", executor_pb2.InvokeResponse(outputs={"c": b"done"}))
    assert function(a=bytearray(16), c=Key("elsewhere"))["c"] == b"done"
    assert server.only_call("Invoke").request == executor_pb2.InvokeRequest(
        function="f",
        bindings={"a": executor_pb2.Binding(value=bytes(16)), "c": executor_pb2.Binding(key="elsewhere")},
        return_buffers=["c"],
    )


def test_a_function_takes_options(client: Any, server: FakeServer) -> None:
    server.expect("GetFunction", executor_pb2.GetFunctionResponse(function=FUNCTION_MESSAGE))
    function = client.function("f").options(returns=[], device="cuda:0")
    server.expect("Invoke", executor_pb2.InvokeResponse(outputs={}))
    assert function(a=b"x").outputs == {}
    assert server.only_call("Invoke").request == executor_pb2.InvokeRequest(
        function="f", bindings={"a": executor_pb2.Binding(value=b"x")}, device="cuda:0"
    )


def test_a_function_refuses_buffers_that_it_has_not(client: Any, server: FakeServer) -> None:
    server.expect("GetFunction", executor_pb2.GetFunctionResponse(function=FUNCTION_MESSAGE))
    with pytest.raises(TypeError, match=r"function 'f' has no buffer 'b'; it has a, c"):
        client.function("f")(b=b"")


def test_functions(client: Any, server: FakeServer) -> None:
    server.expect("ListFunctions", executor_pb2.ListFunctionsResponse(functions=[FUNCTION_MESSAGE]))
    assert [(f.name, f.request) for f in client.functions("f")] == [("f", REQUEST)]
    assert server.only_call("ListFunctions").request.prefix == "f"


def test_damaged_functions_are_listed(client: Any, server: FakeServer) -> None:
    """In their order; calling one says what is wrong, whatever buffers it is given."""
    reply = executor_pb2.ListFunctionsResponse(functions=[FUNCTION_MESSAGE], damaged_names=["a", "g"])
    server.expect("ListFunctions", reply)
    functions = list(client.functions())
    assert [(function.name, function.damaged) for function in functions] == [("a", True), ("f", False), ("g", True)]
    server.expect("Invoke", executor_pb2.InvokeResponse())
    functions[0](x=b"1")
    assert server.only_call("Invoke").request.function == "a"


def test_delete_function(client: Any, server: FakeServer) -> None:
    server.expect("DeleteFunction", executor_pb2.DeleteFunctionResponse())
    client.delete_function("f")
    assert server.only_call("DeleteFunction").request.name == "f"


def test_invoke(client: Any, server: FakeServer) -> None:
    server.expect("Invoke", executor_pb2.InvokeResponse(outputs={"c": b"1"}, device="emulator"))
    assert client.invoke("f", {"a": b"x"}, returns=("c",)).outputs == {"c": b"1"}


def test_server_info(client: Any, server: FakeServer) -> None:
    server.expect(
        "GetServerInfo",
        admin_pb2.GetServerInfoResponse(
            version="1.2.3",
            start_time=NOON_MESSAGE,
            addresses=["unix:/a", "localhost:1"],
            max_message_bytes=64,
            store_limit_bytes=128,
            durability="meta",
            draining=True,
            store_id="5" * 32,
        ),
    )
    info = client.server_info()
    assert info.store_id == "5" * 32
    assert (info.version, info.start_time, info.addresses) == ("1.2.3", NOON, ("unix:/a", "localhost:1"))
    assert (info.max_message_bytes, info.store_limit_bytes, info.durability, info.draining) == (64, 128, "meta", True)


def test_devices(client: Any, server: FakeServer) -> None:
    device = admin_pb2.Device(
        name="cuda:0",
        model="H100",
        compute_capability="9.0",
        memory_bytes=100,
        memory_used_bytes=10,
        state=admin_pb2.WORKER_STATE_READY,
        worker_pid=77,
        restarts=2,
        warp_size=32,
        max_threads_per_block=1024,
        max_shared_memory_bytes=5,
        max_block=types_pb2.Dim3(x=1, y=2, z=3),
        max_grid=types_pb2.Dim3(x=4, y=5, z=6),
        multiprocessors=132,
    )
    server.expect("ListDevices", admin_pb2.ListDevicesResponse(devices=[device]))
    (found,) = client.devices()
    assert (found.name, found.model, found.compute_capability, found.state) == ("cuda:0", "H100", "9.0", "ready")
    assert (found.memory_bytes, found.memory_used_bytes, found.worker_pid, found.restarts) == (100, 10, 77, 2)
    assert (found.warp_size, found.max_threads_per_block, found.max_shared_memory_bytes) == (32, 1024, 5)
    assert (found.max_block, found.max_grid, found.multiprocessors) == ((1, 2, 3), (4, 5, 6), 132)


def test_stats(client: Any, server: FakeServer) -> None:
    device = admin_pb2.DeviceStats(
        device="emulator",
        requests_succeeded=1,
        requests_failed=2,
        kernels_launched=3,
        queued=4,
        running=5,
        run_time=Duration(nanos=6),
    )
    server.expect(
        "GetStats",
        admin_pb2.GetStatsResponse(
            uptime=Duration(seconds=2),
            devices=[device],
            store_keys=7,
            store_used_bytes=8,
            store_limit_bytes=9,
            functions=10,
            failures_by_reason={"KERNEL_FAULT": 11},
        ),
    )
    stats = client.stats()
    assert (stats.uptime_ns, stats.store_keys, stats.store_used_bytes, stats.store_limit_bytes) == (2_000_000_000, 7, 8, 9)
    assert (stats.functions, stats.failures_by_reason) == (10, {"KERNEL_FAULT": 11})
    (d,) = stats.devices
    assert (d.device, d.requests_succeeded, d.requests_failed, d.kernels_launched, d.queued, d.running, d.run_time_ns) == (
        "emulator",
        1,
        2,
        3,
        4,
        5,
        6,
    )


def test_health_and_drain_and_resume(client: Any, server: FakeServer) -> None:
    server.expect("Check", health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING))
    assert client.health("kaas.v1.KvService") == "NOT_SERVING"
    assert server.only_call("Check").request.service == "kaas.v1.KvService"
    server.expect("Drain", admin_pb2.DrainResponse())
    assert client.drain() is None
    server.expect("Resume", admin_pb2.ResumeResponse())
    assert client.resume() is None


def test_drain_device_and_resume_device(client: Any, server: FakeServer) -> None:
    server.expect("DrainDevice", admin_pb2.DrainDeviceResponse())
    assert client.drain_device("cuda:1") is None
    assert server.only_call("DrainDevice").request.name == "cuda:1"
    server.expect("ResumeDevice", admin_pb2.ResumeDeviceResponse())
    assert client.resume_device("cuda:1") is None
    assert server.calls[-1].request.name == "cuda:1"


COMPACTED = admin_pb2.CompactStoreResponse(
    file_before_bytes=5 << 20, file_after_bytes=4 << 20, disk_before_bytes=3 << 20, disk_after_bytes=2 << 20, only_end=True
)


CHECKED = [
    admin_pb2.CheckStoreResponse(progress=admin_pb2.CheckProgress(entries=1, checked_bytes=2048, used_bytes=4096)),
    admin_pb2.CheckStoreResponse(damaged=admin_pb2.DamagedEntry(kind="value", key="a", problem="chunk 1 of 4 is missing")),
    admin_pb2.CheckStoreResponse(progress=admin_pb2.CheckProgress(entries=3, checked_bytes=3072, used_bytes=4096, finished=True)),
]


def test_check_store(client: Any, server: FakeServer) -> None:
    server.expect("CheckStore", CHECKED)
    seen: list[tuple[int, int]] = []
    found = client.check_store(progress=lambda *done: seen.append(done))
    assert found == StoreCheck(3, 3072, (DamagedEntry("value", "a", "chunk 1 of 4 is missing"),))
    assert seen == [(2048, 4096), (4096, 4096)]
    server.expect("CheckStore", CHECKED[:-1])
    with pytest.raises(errors.InternalError, match="not looked at all"):
        client.check_store()


def test_compact_store(client: Any, server: FakeServer) -> None:
    server.expect("CompactStore", COMPACTED)
    assert client.compact_store() == Compaction(5 << 20, 4 << 20, 3 << 20, 2 << 20, only_end=True)


UNKNOWN = 7
"""A number that no enum of the protocol has yet."""


def test_states_of_a_newer_server(client: Any, server: FakeServer) -> None:
    server.expect("ListDevices", admin_pb2.ListDevicesResponse(devices=[admin_pb2.Device(state=UNKNOWN)]))
    (device,) = client.devices()
    assert device.state == "unknown (7)"
    server.expect("Check", health_pb2.HealthCheckResponse(status=UNKNOWN))
    assert client.health() == "unknown (7)"


def test_kinds_of_library_of_a_newer_server(client: Any, server: FakeServer) -> None:
    server.expect("InspectLibrary", library_pb2.InspectLibraryResponse(kind=UNKNOWN))
    assert client.inspect(LIBRARY_ID).kind == "unknown (7)"
    server.expect("ListLibraries", library_pb2.ListLibrariesResponse(libraries=[library_pb2.Library(kind=UNKNOWN)]))
    assert [library.kind for library in client.libraries()] == ["unknown (7)"]


def test_spans_of_a_newer_server(client: Any, server: FakeServer) -> None:
    spans = [trace_pb2.Span(kind=UNKNOWN, name="n", duration_ns=4), trace_pb2.Span(kind=UNKNOWN, name="m", stream=3)]
    server.expect("Invoke", executor_pb2.InvokeResponse(trace=trace_pb2.Trace(spans=spans)))
    trace = client.invoke("f", trace=True).trace
    assert [(span.kind, span.name, span.stream) for span in trace.spans] == [("unknown (7)", "n", ""), ("unknown (7)", "m", "")]


def test_an_answer_that_cannot_be_read(client: Any, server: FakeServer) -> None:
    trace = trace_pb2.Trace(spans=[trace_pb2.Span(kind=trace_pb2.SPAN_KIND_KERNEL, kernel_index=1)], streams=["kernels"])
    server.expect("Invoke", executor_pb2.InvokeResponse(trace=trace))
    with pytest.raises(errors.InternalError, match="cannot read the server's answer: IndexError"):
        client.invoke("f", trace=True)
