"""Whom calls are for, and what operators see of groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from kaas.v1 import admin_pb2, executor_pb2, kv_pb2, library_pb2
from kaas_client import Key, errors
from kaas_client.types import Group, GroupInfo, GroupUse
from tests.client.fake_server import Failure, FakeServer
from tests.client.test_calls import FUNCTION_MESSAGE, LIBRARY_ID, REQUEST, entry_message

GROUP_MESSAGE = admin_pb2.Group(
    name="research",
    share=2.5,
    priority=-1,
    max_running=2,
    max_queued=3,
    max_queued_bytes=4,
    max_device_memory_bytes=5,
    max_stored_bytes=6,
    reserved_multiprocessors=7,
    max_region_bytes=8,
    max_keys=9,
)
GROUP = Group("research", 2.5, -1, 2, 3, 4, 5, 6, 7, 8, 9)
USE_MESSAGE = admin_pb2.GroupUse(
    queued=1,
    queued_bytes=2,
    running=3,
    device_time=Duration(seconds=4),
    started=5,
    resident=6,
    queue_time=Duration(nanos=7),
    stored_bytes=8,
    keys=9,
    share_wanted=0.5,
    share_got=0.25,
)
USE = GroupUse(1, 2, 3, 4_000_000_000, 5, 6, 7, 8, 9, 0.5, 0.25)

CALLS: dict[str, tuple[Any, Callable[..., Any]]] = {
    "Submit": (executor_pb2.SubmitResponse(), lambda client, **more: client.submit(REQUEST, **more)),
    "RegisterFunction": (
        executor_pb2.RegisterFunctionResponse(function=FUNCTION_MESSAGE),
        lambda client, **more: client.register("f", REQUEST, **more),
    ),
    "GetFunction": (
        executor_pb2.GetFunctionResponse(function=FUNCTION_MESSAGE),
        lambda client, **more: client.function("f", **more),
    ),
    "ListFunctions": (executor_pb2.ListFunctionsResponse(), lambda client, **more: list(client.functions(**more))),
    "DeleteFunction": (executor_pb2.DeleteFunctionResponse(), lambda client, **more: client.delete_function("f", **more)),
    "Invoke": (executor_pb2.InvokeResponse(), lambda client, **more: client.invoke("f", **more)),
    "UploadLibrary": (
        library_pb2.UploadLibraryResponse(library=library_pb2.Library(id=LIBRARY_ID)),
        lambda client, **more: client.upload(b"ptx", **more),
    ),
    "InspectLibrary": (library_pb2.InspectLibraryResponse(), lambda client, **more: client.inspect("/x", **more)),
    "ListLibraries": (library_pb2.ListLibrariesResponse(), lambda client, **more: list(client.libraries(**more))),
    "DeleteLibrary": (library_pb2.DeleteLibraryResponse(), lambda client, **more: client.delete_library(LIBRARY_ID, **more)),
    "Put": (kv_pb2.PutResponse(entry=entry_message("k")), lambda client, **more: client.put("k", b"1", **more)),
    "Get": ([kv_pb2.GetResponse(entry=entry_message("k", 0))], lambda client, **more: client.get("k", **more)),
    "Stat": (kv_pb2.StatResponse(entry=entry_message("k")), lambda client, **more: client.stat("k", **more)),
    "List": (kv_pb2.ListResponse(), lambda client, **more: list(client.list(**more))),
    "Delete": (kv_pb2.DeleteResponse(), lambda client, **more: client.delete("k", **more)),
}


def group_of(request: Any) -> str:
    return str(request[0].header.group if isinstance(request, list) else request.group)


@pytest.mark.parametrize("rpc", CALLS)
def test_each_call_names_its_group_or_its_clients(connect: Any, server: FakeServer, rpc: str) -> None:
    answer, call = CALLS[rpc]
    plain, grouped = connect(retry=None), connect(retry=None, group="mine")
    for _ in range(4):
        server.expect(rpc, answer)
    call(plain)
    call(plain, group="its")
    call(grouped)
    call(grouped, group="its")
    assert [group_of(call.request) for call in server.calls] == ["", "its", "mine", "its"]


@pytest.mark.parametrize("rpc", ["Submit", "Invoke"])
def test_a_priority(client: Any, server: FakeServer, rpc: str) -> None:
    answer, call = CALLS[rpc]
    server.expect(rpc, answer)
    call(client, priority=-2)
    assert server.only_call(rpc).request.priority == -2


def test_a_stream(connect: Any, server: FakeServer) -> None:
    def answer(requests: Any, _: Any) -> Any:
        for request in requests:
            seen.append((request.invoke.group, request.invoke.priority))
            yield executor_pb2.InvokeStreamResponse(id=request.id, response=executor_pb2.InvokeResponse(group="g"))

    seen: list[tuple[str, int]] = []
    server.expect("InvokeStream", answer)
    with connect(retry=None, group="mine").stream() as stream:
        assert stream.submit("f").result().group == "g"
        stream.submit("f", group="its", priority=3).result()
        assert len(list(stream.map("f", [{}, {}], group="its", priority=4))) == 2
    assert seen == [("mine", 0), ("its", 3), ("its", 4), ("its", 4)]


def test_options_of_a_function(client: Any, server: FakeServer) -> None:
    server.expect("GetFunction", executor_pb2.GetFunctionResponse(function=FUNCTION_MESSAGE))
    function = client.function("f")
    server.expect("Invoke", executor_pb2.InvokeResponse())
    server.expect("Invoke", executor_pb2.InvokeResponse())
    options = {"returns": [], "device": "d", "trace": True, "request_id": "id", "group": "g", "priority": 5, "timeout": 60}
    function.options(**options)(a=Key("k"))
    function()
    first, second = server.calls[-2:]
    assert first.request == executor_pb2.InvokeRequest(
        function="f",
        bindings={"a": executor_pb2.Binding(key="k")},
        device="d",
        trace=True,
        request_id="id",
        group="g",
        priority=5,
    )
    assert first.time_remaining_s is not None and first.time_remaining_s < 90
    assert second.request == executor_pb2.InvokeRequest(function="f", return_buffers=["c"])
    assert function.options(group="g").name == "f"


def test_a_result_tells_group_and_placement(client: Any, server: FakeServer) -> None:
    for number in range(5):
        server.expect("Invoke", executor_pb2.InvokeResponse(group="g", placement=number))  # type: ignore[arg-type]
    results = [client.invoke("f") for _ in range(5)]
    assert [result.group for result in results] == ["g"] * 5
    assert [result.placement for result in results] == ["unspecified", "resident", "loaded", "replicated", "unknown (4)"]


def test_set_group(client: Any, server: FakeServer) -> None:
    server.expect("SetGroup", admin_pb2.SetGroupResponse(group=GROUP_MESSAGE))
    answer = client.set_group(
        "research",
        share=2.5,
        priority=-1,
        max_running=2,
        max_queued=3,
        max_queued_bytes=4,
        max_device_memory_bytes=5,
        max_stored_bytes=6,
        reserved_multiprocessors=7,
        max_region_bytes=8,
        max_keys=9,
    )
    assert answer == GROUP
    assert server.only_call("SetGroup").request == admin_pb2.SetGroupRequest(group=GROUP_MESSAGE)


def test_group(client: Any, server: FakeServer) -> None:
    server.expect("GetGroup", admin_pb2.GetGroupResponse(group=GROUP_MESSAGE, use=USE_MESSAGE, fixed=True))
    assert client.group("research") == GroupInfo(GROUP, USE, fixed=True)
    assert server.only_call("GetGroup").request.name == "research"
    server.expect("GetGroup", Failure("NOT_FOUND", "there is no group 'x'", "GROUP_NOT_FOUND", {"group": "x"}))
    with pytest.raises(errors.GroupNotFoundError) as raised:
        client.group("x")
    assert raised.value.metadata == {"group": "x"}


def test_groups(client: Any, server: FakeServer) -> None:
    server.expect("ListGroups", admin_pb2.ListGroupsResponse(groups=[GROUP_MESSAGE], next_page_token="t"))
    server.expect("ListGroups", admin_pb2.ListGroupsResponse(groups=[admin_pb2.Group(name="z", share=1)]))
    assert list(client.groups()) == [GROUP, Group("z")]
    assert [call.request.page_token for call in server.calls] == ["", "t"]


def test_delete_group(client: Any, server: FakeServer) -> None:
    server.expect("DeleteGroup", admin_pb2.DeleteGroupResponse())
    assert client.delete_group("research") is None
    assert server.only_call("DeleteGroup").request.name == "research"


def test_statistics_of_groups(client: Any, server: FakeServer) -> None:
    server.expect("GetStats", admin_pb2.GetStatsResponse(groups={"research": USE_MESSAGE}))
    assert client.stats().groups == {"research": USE}
