"""Groups over real sockets: making them, whom a call is for, and sockets that are for one group."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from kaas.v1 import admin_pb2, executor_pb2, kv_pb2, library_pb2
from kaas_core.errors import GroupNotFoundError
from kaasd.front.grants import check
from tests.api.support import PTX, WAIT_S, FakeDispatcher, Running, Stubs, failure, inspected, product_request, running_server

GIB = 1 << 30
DONE = executor_pb2.InvokeResponse(device="emulator")


def set_group(server: Running, name: str, **more: Any) -> admin_pb2.Group:
    return server.stubs.admin.SetGroup(admin_pb2.SetGroupRequest(group=admin_pb2.Group(name=name, **more))).group


def names(server: Running) -> list[str]:
    return [group.name for group in server.stubs.admin.ListGroups(admin_pb2.ListGroupsRequest()).groups]


class TestRpcs:
    def test_a_group_is_made_changed_and_deleted(self, server: Running) -> None:
        expected = admin_pb2.Group(name="a", share=2, max_running=3, max_region_bytes=4 * GIB)
        assert set_group(server, "a", share=2, max_running=3) == expected
        found = server.stubs.admin.GetGroup(admin_pb2.GetGroupRequest(name="a"))
        assert (found.group, found.fixed) == (expected, False)
        assert set_group(server, "a") == admin_pb2.Group(name="a", share=1, max_region_bytes=4 * GIB)
        assert names(server) == ["a", "default"]
        server.stubs.admin.DeleteGroup(admin_pb2.DeleteGroupRequest(name="a"))
        assert names(server) == ["default"]
        for call in (
            lambda: server.stubs.admin.GetGroup(admin_pb2.GetGroupRequest(name="a")),
            lambda: server.stubs.admin.DeleteGroup(admin_pb2.DeleteGroupRequest(name="a")),
        ):
            failed = failure(call)
            assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "GROUP_NOT_FOUND")
            assert failed.metadata == {"group": "a"}

    def test_pages(self, server: Running) -> None:
        for name in ("c", "a", "b"):
            set_group(server, name)
        first = server.stubs.admin.ListGroups(admin_pb2.ListGroupsRequest(page_size=3))
        assert [group.name for group in first.groups] == ["a", "b", "c"]
        second = server.stubs.admin.ListGroups(admin_pb2.ListGroupsRequest(page_size=3, page_token=first.next_page_token))
        assert [group.name for group in second.groups] == ["default"]
        assert second.next_page_token == ""

    def test_what_cannot_be_is_named(self, server: Running) -> None:
        failed = failure(lambda: set_group(server, "a b", share=-1))
        assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
        assert failed.fields == ["group.name", "group.share"]
        failed = failure(lambda: set_group(server, "a", reserved_multiprocessors=8))
        assert failed.fields == ["group.reserved_multiprocessors"]
        failed = failure(lambda: server.stubs.admin.DeleteGroup(admin_pb2.DeleteGroupRequest(name="default")))
        assert (failed.code, failed.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["name"])

    def test_one_of_the_settings_file_cannot_be_changed(self, tmp_path: Path) -> None:
        fixed = check(admin_pb2.Group(name="a", share=3), fixed=True)
        with running_server(tmp_path, FakeDispatcher(), groups=(fixed,)) as server:
            found = server.stubs.admin.GetGroup(admin_pb2.GetGroupRequest(name="a"))
            assert (found.group.share, found.fixed) == (3, True)
            for call in (
                lambda: set_group(server, "a"),
                lambda: server.stubs.admin.DeleteGroup(admin_pb2.DeleteGroupRequest(name="a")),
            ):
                failed = failure(call)
                assert (failed.code, failed.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_ENABLED")
                assert "settings file" in failed.message

    def test_statistics_have_all_groups(self, server: Running) -> None:
        set_group(server, "a")
        assert set(server.stubs.admin.GetStats(admin_pb2.GetStatsRequest()).groups) == {"a", "default"}

    def test_only_over_unix_sockets(self, tmp_path: Path) -> None:
        with running_server(tmp_path, FakeDispatcher(), listen=("127.0.0.1:0",)) as server:
            for call in (
                lambda: set_group(server, "a"),
                lambda: names(server),
                lambda: server.stubs.admin.GetGroup(admin_pb2.GetGroupRequest(name="default")),
                lambda: server.stubs.admin.DeleteGroup(admin_pb2.DeleteGroupRequest(name="a")),
            ):
                assert failure(call).reason == "NOT_ENABLED"


def read_all(stream: Any) -> list[Any]:
    return list(stream)


def invoke_in_stream(stubs: Stubs, group: str) -> Any:
    message = executor_pb2.InvokeStreamRequest(id=1, invoke=executor_pb2.InvokeRequest(function="f", group=group))
    (answer,) = stubs.executor.InvokeStream(iter([message]))
    return answer


UNARY: dict[str, Callable[[Stubs, str], Any]] = {
    "Submit": lambda s, g: s.executor.Submit(executor_pb2.SubmitRequest(request=product_request(), group=g)),
    "RegisterFunction": lambda s, g: s.executor.RegisterFunction(
        executor_pb2.RegisterFunctionRequest(name="f", request=product_request(), group=g)
    ),
    "GetFunction": lambda s, g: s.executor.GetFunction(executor_pb2.GetFunctionRequest(name="f", group=g)),
    "ListFunctions": lambda s, g: s.executor.ListFunctions(executor_pb2.ListFunctionsRequest(group=g)),
    "Invoke": lambda s, g: s.executor.Invoke(executor_pb2.InvokeRequest(function="f", group=g)),
    "DeleteFunction": lambda s, g: s.executor.DeleteFunction(executor_pb2.DeleteFunctionRequest(name="f", group=g)),
    "Put": lambda s, g: s.kv.Put(iter([kv_pb2.PutRequest(header=kv_pb2.PutHeader(key="k", group=g))])),
    "Get": lambda s, g: read_all(s.kv.Get(kv_pb2.GetRequest(key="k", group=g))),
    "Stat": lambda s, g: s.kv.Stat(kv_pb2.StatRequest(key="k", group=g)),
    "List": lambda s, g: s.kv.List(kv_pb2.ListRequest(group=g)),
    "Delete": lambda s, g: s.kv.Delete(kv_pb2.DeleteRequest(key="k", group=g)),
    "UploadLibrary": lambda s, g: s.library.UploadLibrary(
        iter(
            [
                library_pb2.UploadLibraryRequest(header=library_pb2.UploadLibraryHeader(size_bytes=len(PTX), group=g)),
                library_pb2.UploadLibraryRequest(chunk=PTX),
            ]
        )
    ),
    "InspectLibrary": lambda s, g: s.library.InspectLibrary(library_pb2.InspectLibraryRequest(library="/x", group=g)),
    "ListLibraries": lambda s, g: s.library.ListLibraries(library_pb2.ListLibrariesRequest(group=g)),
    "DeleteLibrary": lambda s, g: s.library.DeleteLibrary(
        library_pb2.DeleteLibraryRequest(id=s.library.ListLibraries(library_pb2.ListLibrariesRequest()).libraries[0].id, group=g)
    ),
}
"""Every call that says whom it is for, in an order in which all can be made."""


def expect_all(dispatcher: FakeDispatcher) -> None:
    dispatcher.expect("execute", DONE, DONE, DONE)
    dispatcher.expect("prepare", None)
    dispatcher.expect("inspect", inspected(), inspected())


def test_every_message_that_has_a_group_is_in_the_table() -> None:
    files = (executor_pb2, kv_pb2, library_pb2)
    having = {
        name
        for file in files
        for name, message in file.DESCRIPTOR.message_types_by_name.items()
        if name.endswith(("Request", "Header")) and "group" in message.fields_by_name
    }
    known = {"PutHeader" if name == "Put" else f"{name}{'Header' if name == 'UploadLibrary' else 'Request'}" for name in UNARY}
    assert having == known


class TestCalls:
    @pytest.mark.parametrize("group", ["", "default", "a"])
    def test_all_are_made_for_a_group_that_is_there(self, server: Running, group: str) -> None:
        set_group(server, "a")
        expect_all(server.dispatcher)
        for call in UNARY.values():
            call(server.stubs, group)
            if call is UNARY["Invoke"]:
                assert invoke_in_stream(server.stubs, group).response == DONE
        executed = [call.arguments.get("group", "default") for call in server.dispatcher.calls if call.method == "execute"]
        assert executed == [group or "default"] * 3

    def test_all_are_refused_for_one_that_is_not(self, server: Running) -> None:
        expect_all(server.dispatcher)
        server.dispatcher._expected["execute"].clear()
        UNARY["RegisterFunction"](server.stubs, "")
        UNARY["Put"](server.stubs, "")
        UNARY["UploadLibrary"](server.stubs, "")
        server.dispatcher._expected["inspect"].clear()
        for name, call in UNARY.items():
            failed = failure(lambda call=call: call(server.stubs, "x"))  # type: ignore[misc]
            assert (name, failed.code, failed.reason) == (name, grpc.StatusCode.NOT_FOUND, "GROUP_NOT_FOUND")
            assert failed.metadata == {"group": "x"}
        assert "GROUP_NOT_FOUND" in str(invoke_in_stream(server.stubs, "x").error.details)

    def test_a_priority_is_passed_on(self, server: Running) -> None:
        server.dispatcher.expect("execute", DONE)
        server.stubs.executor.Submit(executor_pb2.SubmitRequest(request=product_request(), priority=-3))
        assert server.dispatcher.calls[-1].arguments["priority"] == -3

    def test_an_id_is_one_within_its_group(self, server: Running) -> None:
        """With another priority it is the same call, for another group another one."""
        set_group(server, "a")
        server.dispatcher.expect("execute", executor_pb2.InvokeResponse(device="1"), executor_pb2.InvokeResponse(device="2"))
        devices = [
            server.stubs.executor.Submit(
                executor_pb2.SubmitRequest(request=product_request(), request_id="id", group=group, priority=priority)
            ).device
            for group, priority in (("", 0), ("default", 5), ("a", 0), ("a", 1), ("", 1))
        ]
        assert devices == ["1", "1", "2", "2", "1"]
        keys = [call.arguments["reply_key"].key for call in server.dispatcher.calls if call.method == "execute"]
        assert keys == ["default/id", "a/id"]


class TestSockets:
    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[Running]:
        """A server with a socket for all, two for group ``a``, and one for ``b``."""
        dispatcher = FakeDispatcher()
        listen = tuple(
            f"unix:{tmp_path}/{name}" for name in ("a.sock,group=a", "all.sock", "b.sock,group=b", "again.sock,group=a")
        )
        groups = [check(admin_pb2.Group(name="a"), fixed=True), check(admin_pb2.Group(name="b"), fixed=True)]
        with running_server(tmp_path, dispatcher, listen=listen, groups=groups) as running:
            yield running
        dispatcher.assert_all_used()

    @staticmethod
    def on(tmp_path: Path, name: str) -> grpc.Channel:
        return grpc.insecure_channel(f"unix:{tmp_path}/{name}.sock")

    def test_addresses_are_told_in_order_and_without_groups(self, server: Running, tmp_path: Path) -> None:
        expected = [f"unix:{tmp_path}/{name}.sock" for name in ("a", "all", "b", "again")]
        assert list(server.server.addresses) == expected
        with self.on(tmp_path, "b") as channel:
            assert list(Stubs(channel).admin.GetServerInfo(admin_pb2.GetServerInfoRequest()).addresses) == expected

    def test_calls_are_for_the_group_of_their_socket(self, server: Running, tmp_path: Path) -> None:
        for name, group in (("a", "a"), ("b", "b"), ("again", "a"), ("all", "default")):
            with self.on(tmp_path, name) as channel:
                for named in ("", group):
                    server.dispatcher.expect("execute", DONE)
                    UNARY["Submit"](Stubs(channel), named)
                    assert server.dispatcher.calls[-1].arguments.get("group", "default") == group

    def test_another_group_is_not_found_there(self, server: Running, tmp_path: Path) -> None:
        with self.on(tmp_path, "a") as channel:
            for named in ("b", "default"):
                for name, call in UNARY.items():
                    if name != "DeleteLibrary":
                        failed = failure(lambda call=call, named=named: call(Stubs(channel), named))  # type: ignore[misc]
                        assert (name, failed.reason, failed.metadata) == (name, "GROUP_NOT_FOUND", {"group": named})

    def test_invocations_of_a_stream(self, server: Running, tmp_path: Path) -> None:
        server.dispatcher.expect("prepare", None)
        with self.on(tmp_path, "a") as channel:
            stubs = Stubs(channel)
            UNARY["RegisterFunction"](stubs, "")
            server.dispatcher.expect("execute", DONE)
            assert invoke_in_stream(stubs, "").response == DONE
            assert server.dispatcher.calls[-1].arguments["group"] == "a"
            assert "GROUP_NOT_FOUND" in str(invoke_in_stream(stubs, "b").error.details)

    def test_they_share_all_else(self, server: Running, tmp_path: Path) -> None:
        with self.on(tmp_path, "a") as one, self.on(tmp_path, "b") as other:
            UNARY["Put"](Stubs(one), "")
            assert Stubs(other).kv.Stat(kv_pb2.StatRequest(key="k")).entry.key == "k"

    @pytest.mark.parametrize("name", ["a", "all", "b"])
    def test_health_and_reflection(self, server: Running, tmp_path: Path, name: str) -> None:
        with self.on(tmp_path, name) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            check = health_pb2.HealthCheckRequest(service="kaas.v1.KvService")
            assert health.Check(check).status == health_pb2.HealthCheckResponse.SERVING
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            (answer,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
            assert "kaas.v1.AdminService" in {service.name for service in answer.list_services_response.service}

    def test_a_drain_turns_the_health_of_all(self, server: Running, tmp_path: Path) -> None:
        with self.on(tmp_path, "a") as one, self.on(tmp_path, "b") as other:
            watch = health_pb2_grpc.HealthStub(other).Watch(health_pb2.HealthCheckRequest(service=""), timeout=WAIT_S)
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            server.background.loop.call_soon_threadsafe(server.dispatcher.idle.set)
            Stubs(one).admin.Drain(admin_pb2.DrainRequest())
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING

    def test_a_group_that_is_deleted_is_not_found_on_its_socket(self, tmp_path: Path) -> None:
        with running_server(tmp_path, FakeDispatcher()) as server:
            set_group(server, "a")
        listen = (f"unix:{tmp_path}/all.sock", f"unix:{tmp_path}/a.sock,group=a")
        with running_server(tmp_path, FakeDispatcher(), listen=listen) as server, self.on(tmp_path, "a") as channel:
            stubs = Stubs(channel)
            UNARY["Put"](stubs, "")
            server.stubs.admin.DeleteGroup(admin_pb2.DeleteGroupRequest(name="a"))
            failed = failure(lambda: UNARY["Stat"](stubs, ""))
            assert (failed.reason, failed.metadata) == ("GROUP_NOT_FOUND", {"group": "a"})
            set_group(server, "a")
            assert UNARY["Stat"](stubs, "").entry.key == "k"

    def test_there_must_be_such_a_group(self, tmp_path: Path) -> None:
        listen = (f"unix:{tmp_path}/all.sock", f"unix:{tmp_path}/a.sock,group=a")
        with (
            pytest.raises(GroupNotFoundError, match=r"a\.sock is for the group 'a', which there is not"),
            running_server(tmp_path, FakeDispatcher(), listen=listen),
        ):
            pass
        assert not (tmp_path / "all.sock").exists()

    def test_all_sockets_are_gone_when_the_server_stopped(self, server: Running, tmp_path: Path) -> None:
        server.background.run(server.server.stop())
        assert list(tmp_path.glob("*.sock")) == []

    def test_one_that_cannot_be_had_leaves_none(self, server: Running, tmp_path: Path) -> None:
        (tmp_path / "second").mkdir()
        listen = (f"unix:{tmp_path}/second/new.sock,group=default", f"unix:{tmp_path}/a.sock")
        with (
            pytest.raises(Exception, match="another daemon"),
            running_server(tmp_path / "second", FakeDispatcher(), listen=listen),
        ):
            pass
        assert not (tmp_path / "second" / "new.sock").exists()


def put(server: Running, key: str, size: int, group: str) -> Any:
    header = kv_pb2.PutRequest(header=kv_pb2.PutHeader(key=key, size_bytes=size, group=group))
    return server.stubs.kv.Put(iter([header, *([kv_pb2.PutRequest(chunk=bytes(size))] if size else [])]))


def use(server: Running, group: str) -> tuple[int, int]:
    found = server.stubs.admin.GetGroup(admin_pb2.GetGroupRequest(name=group)).use
    assert server.stubs.admin.GetStats(admin_pb2.GetStatsRequest()).groups[group] == found
    return found.stored_bytes, found.keys


class TestStored:
    def test_values_count_for_who_put_them(self, server: Running) -> None:
        set_group(server, "a")
        put(server, "k", 100, "a")
        put(server, "l", 2 << 20, "a")
        put(server, "m", 7, "")
        assert (use(server, "a"), use(server, "default")) == ((100 + (2 << 20), 2), (7, 1))
        put(server, "l", 5, "default")
        server.stubs.kv.Delete(kv_pb2.DeleteRequest(key="k"))
        assert (use(server, "a"), use(server, "default")) == ((0, 0), (12, 2))

    def test_functions_and_libraries_count_too(self, server: Running) -> None:
        set_group(server, "a")
        server.dispatcher.expect("prepare", None)
        server.dispatcher.expect("inspect", inspected())
        UNARY["RegisterFunction"](server.stubs, "a")
        of_function, keys = use(server, "a")
        assert of_function > 0
        UNARY["UploadLibrary"](server.stubs, "a")
        UNARY["UploadLibrary"](server.stubs, "")
        assert use(server, "a")[0] >= of_function + len(PTX)
        assert (use(server, "default"), keys) == ((0, 0), 0)

    @pytest.mark.parametrize(("limit", "most"), [("max_stored_bytes", 1000), ("max_keys", 1)])
    @pytest.mark.parametrize("size", [901, 2 << 20], ids=["small", "large"])
    def test_more_than_a_group_may_store_is_refused(self, server: Running, limit: str, most: int, size: int) -> None:
        set_group(server, "a", **{limit: most})
        put(server, "k", 100, "a")
        failed = failure(lambda: put(server, "l", size, "a"))
        assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "GROUP_LIMIT")
        assert failed.metadata == {"group": "a", "limit": limit}
        assert failed.retry_s == 1.0
        assert use(server, "a") == (100, 1)
        assert failure(lambda: server.stubs.kv.Stat(kv_pb2.StatRequest(key="l"))).reason == "KEY_NOT_FOUND"
        put(server, "k", 1000, "a")
        put(server, "l", size, "default")

    def test_before_its_bytes_have_come(self, server: Running) -> None:
        set_group(server, "a", max_stored_bytes=1000)
        server.dispatcher.calls.clear()

        def header_only() -> Iterator[kv_pb2.PutRequest]:
            yield kv_pb2.PutRequest(header=kv_pb2.PutHeader(key="k", size_bytes=1001, group="a"))
            assert refused.wait(WAIT_S)

        refused = threading.Event()
        call = server.stubs.kv.Put.future(header_only())
        call.add_done_callback(lambda _: refused.set())
        assert failure(call.result).reason == "GROUP_LIMIT"

    def test_functions_and_libraries_are_refused_too(self, server: Running) -> None:
        set_group(server, "a", max_stored_bytes=10)
        server.dispatcher.expect("prepare", None)
        server.dispatcher.expect("inspect", inspected())
        for name in ("RegisterFunction", "UploadLibrary"):
            failed = failure(lambda name=name: UNARY[name](server.stubs, "a"))  # type: ignore[misc]
            assert (failed.reason, failed.metadata["limit"]) == ("GROUP_LIMIT", "max_stored_bytes")
        assert failure(lambda: UNARY["GetFunction"](server.stubs, "")).reason == "FUNCTION_NOT_FOUND"
        assert use(server, "a") == (0, 0)

    def test_a_limit_is_there_after_a_restart_and_may_change(self, tmp_path: Path) -> None:
        with running_server(tmp_path, FakeDispatcher()) as server:
            set_group(server, "a", max_keys=1)
            put(server, "k", 5, "a")
        with running_server(tmp_path, FakeDispatcher()) as server:
            assert use(server, "a") == (5, 1)
            assert failure(lambda: put(server, "l", 5, "a")).reason == "GROUP_LIMIT"
            set_group(server, "a", max_keys=2)
            put(server, "l", 5, "a")
        fixed = check(admin_pb2.Group(name="a", max_keys=1), fixed=True)
        with running_server(tmp_path, FakeDispatcher(), groups=(fixed,)) as server:
            assert use(server, "a") == (10, 2)
            assert failure(lambda: put(server, "m", 5, "a")).reason == "GROUP_LIMIT"
        with running_server(tmp_path, FakeDispatcher()) as server:
            assert failure(lambda: put(server, "m", 5, "a")).reason == "GROUP_LIMIT"
            set_group(server, "a")
            put(server, "m", 5, "a")

    def test_what_a_deleted_group_has_stored_stays(self, server: Running) -> None:
        set_group(server, "a", max_keys=1)
        put(server, "k", 5, "a")
        server.stubs.admin.DeleteGroup(admin_pb2.DeleteGroupRequest(name="a"))
        assert server.stubs.kv.Stat(kv_pb2.StatRequest(key="k")).entry.size_bytes == 5
        set_group(server, "a")
        assert use(server, "a") == (5, 1)
