"""``AdminService`` over a real socket."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kaas.v1 import admin_pb2, executor_pb2, kv_pb2, library_pb2
from kaas_core import __version__
from kaas_core.errors import CancelledError
from kaasd.api.admin import MOST_FUNCTIONS
from kaasd.front.quarantine import MOST_WORKERS
from kaasd.store.base import Write
from tests.api.support import WAIT_S, FakeDispatcher, Held, Running, failure, product_request, running_server, wait_for_failure
from tests.faults.support import wait_until

DEADLINE_S = 2.0
"""A call has to have reached the server by then, on a busy machine too."""


def test_server_info(tmp_path: Path) -> None:
    with running_server(tmp_path, FakeDispatcher(), max_message_bytes=5 << 20, store_limit_bytes=7 << 30) as server:
        info = server.stubs.admin.GetServerInfo(admin_pb2.GetServerInfoRequest())
    assert info.version == __version__
    assert info.start_time.seconds > 0
    assert list(info.addresses) == [f"unix:{tmp_path}/kaasd.sock"]
    assert (info.max_message_bytes, info.store_limit_bytes) == (5 << 20, 7 << 30)
    assert (info.durability, info.draining) == ("meta", False)
    assert info.store_id == server.store.store_id


def test_devices(server: Running) -> None:
    (device,) = server.stubs.admin.ListDevices(admin_pb2.ListDevicesRequest()).devices
    assert (device.name, device.warp_size, device.state) == ("emulator", 32, admin_pb2.WORKER_STATE_READY)


def test_stats(server: Running) -> None:
    server.store.commit([Write("a", [b"x" * 1000]), Write("b", [b"y"])]).result(WAIT_S)
    server.dispatcher.expect("prepare", None)
    server.stubs.executor.RegisterFunction(executor_pb2.RegisterFunctionRequest(name="f", request=product_request()))
    failure(lambda: server.stubs.kv.Stat(kv_pb2.StatRequest(key="absent")))
    stats = server.stubs.admin.GetStats(admin_pb2.GetStatsRequest())
    assert stats.uptime.ToNanoseconds() > 0
    assert [(device.device, device.requests_succeeded) for device in stats.devices] == [("emulator", 7)]
    assert (stats.store_keys, stats.functions) == (2, 1)
    assert stats.store_limit_bytes == 256 << 20
    assert 1000 < stats.store_used_bytes < 1 << 20
    assert dict(stats.failures_by_reason) == {"KEY_NOT_FOUND": 1}


def held_call(server: Running, timeout: float) -> grpc.Future:
    """Return a call that the dispatcher holds until it is cancelled."""
    held = Held()
    server.dispatcher.expect("execute", held)
    call = server.stubs.executor.Submit.future(executor_pb2.SubmitRequest(request=product_request()), timeout=timeout)
    assert held.started.wait(WAIT_S)
    return call


def test_a_call_whose_caller_went_away_is_counted_as_cancelled(server: Running) -> None:
    held_call(server, WAIT_S).cancel()
    wait_for_failure(server, "CANCELLED")
    assert failures(server) == {"CANCELLED": 1}


def test_a_call_whose_deadline_passed_is_counted_as_that(server: Running) -> None:
    """The caller may tell so long before the server's clock that it looks as if it went away, but not always."""
    counted: dict[str, int] = {}
    for attempt in range(1, 20):
        assert held_call(server, DEADLINE_S).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until(lambda: sum(failures(server).values()) == attempt)  # noqa: B023
        counted = failures(server)
        if counted.get("DEADLINE_EXCEEDED"):
            break
    assert counted["DEADLINE_EXCEEDED"] == 1


def failures(server: Running) -> dict[str, int]:
    return dict(server.stubs.admin.GetStats(admin_pb2.GetStatsRequest()).failures_by_reason)


@pytest.fixture
def health(server: Running) -> Callable[[str], str]:
    stub = health_pb2_grpc.HealthStub(server.stubs.channel)

    def status(service: str) -> str:
        response = stub.Check(health_pb2.HealthCheckRequest(service=service))
        return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)

    return status


SERVICES = ("", *(f"kaas.v1.{name}Service" for name in ("Executor", "Library", "Kv", "Admin")))


def test_health_says_whether_requests_can_run(server: Running, health: Callable[[str], str]) -> None:
    """The last service is told last: when it has changed, so have the others."""
    loop, changes = server.background.loop, server.dispatcher.ready_changes
    watch = health_pb2_grpc.HealthStub(server.stubs.channel).Watch(health_pb2.HealthCheckRequest(service=SERVICES[-1]))
    states = (health_pb2.HealthCheckResponse.ServingStatus.Name(response.status) for response in watch)
    assert next(states) == "SERVING"
    for ready, status in ((False, "NOT_SERVING"), (True, "SERVING")):
        loop.call_soon_threadsafe(changes.put_nowait, ready)
        assert next(states) == status
        assert [health(service) for service in SERVICES] == [status] * len(SERVICES)
    watch.cancel()


class TestRequests:
    def test_they_are_listed_in_pages(self, server: Running) -> None:
        listed = [
            admin_pb2.RequestInfo(id=str(number), function="f", device="emulator", state=admin_pb2.REQUEST_STATE_QUEUED)
            for number in range(1, 6)
        ]
        server.dispatcher.listed = listed
        pages, token = [], ""
        while not pages or token:
            answer = server.stubs.admin.ListRequests(admin_pb2.ListRequestsRequest(page_size=2, page_token=token))
            pages.append(list(answer.requests))
            token = answer.next_page_token
        assert pages == [listed[:2], listed[2:4], listed[4:]]
        assert list(server.stubs.admin.ListRequests(admin_pb2.ListRequestsRequest()).requests) == listed
        failed = failure(lambda: server.stubs.admin.ListRequests(admin_pb2.ListRequestsRequest(page_token="*")))
        assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_NAME")

    def test_one_is_cancelled(self, server: Running) -> None:
        server.dispatcher.listed = [admin_pb2.RequestInfo(id="7")]
        server.stubs.admin.CancelRequest(admin_pb2.CancelRequestRequest(id="7"))
        failed = failure(lambda: server.stubs.admin.CancelRequest(admin_pb2.CancelRequestRequest(id="8")))
        assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "REQUEST_NOT_FOUND")
        assert [call.arguments for call in server.dispatcher.calls] == [{"request_id": "7"}, {"request_id": "8"}]

    def test_its_caller_is_told(self, server: Running) -> None:
        server.dispatcher.expect("execute", CancelledError("an operator cancelled it"))
        failed = failure(lambda: server.stubs.executor.Submit(executor_pb2.SubmitRequest(request=product_request())))
        assert (failed.code, failed.reason) == (grpc.StatusCode.CANCELLED, "CANCELLED")
        assert failed.message == "an operator cancelled it"
        assert failures(server) == {"CANCELLED": 1}


def refuse(server: Running, digest: bytes) -> None:
    for number in range(1, MOST_WORKERS + 1):
        server.quarantine.cost(digest, f"fault {number}")


class TestQuarantine:
    def test_what_is_refused_is_listed_in_pages(self, server: Running) -> None:
        digests = [bytes([number]) * 32 for number in range(1, 6)]
        for digest in reversed(digests):
            refuse(server, digest)
        server.quarantine.cost(bytes(32), "once")
        pages, token = [], ""
        while not pages or token:
            answer = server.stubs.admin.ListQuarantine(admin_pb2.ListQuarantineRequest(page_size=2, page_token=token))
            pages.append([request.id for request in answer.requests])
            token = answer.next_page_token
        ids = [digest.hex() for digest in digests]
        assert pages == [ids[:2], ids[2:4], ids[4:]]
        assert len(server.stubs.admin.ListQuarantine(admin_pb2.ListQuarantineRequest()).requests) == 5
        failed = failure(lambda: server.stubs.admin.ListQuarantine(admin_pb2.ListQuarantineRequest(page_token="*")))
        assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_NAME")

    def test_long_faults_do_not_make_a_message_too_large(self, server: Running) -> None:
        for number in range(5):
            for _ in range(MOST_WORKERS):
                server.quarantine.cost(bytes([number]) * 32, "f" * (1 << 20))
        answer = server.stubs.admin.ListQuarantine(admin_pb2.ListQuarantineRequest())
        assert len(answer.requests) == 1 and answer.next_page_token

    def test_what_is_said_of_a_request(self, server: Running) -> None:
        server.dispatcher.expect("prepare", *[None] * (MOST_FUNCTIONS + 1))
        for number in reversed(range(MOST_FUNCTIONS + 1)):
            function = executor_pb2.RegisterFunctionRequest(name=f"f{number:02}", request=product_request())
            server.stubs.executor.RegisterFunction(function)
        digest = server.dispatcher.calls[0].arguments["request"].digest
        refuse(server, digest)
        refuse(server, bytes(32))
        before, last = server.stubs.admin.ListQuarantine(admin_pb2.ListQuarantineRequest()).requests
        assert list(before.functions) == []
        assert (last.id, last.workers, last.last_fault) == (digest.hex(), MOST_WORKERS, f"fault {MOST_WORKERS}")
        assert last.last_time.ToDatetime(tzinfo=UTC) == server.quarantine.suspected[digest].last_time
        assert list(last.functions) == [f"f{number:02}" for number in range(MOST_FUNCTIONS)]

    def test_one_is_released(self, server: Running) -> None:
        digest = b"\x07" * 32
        refuse(server, digest)
        release = admin_pb2.ReleaseQuarantineRequest(id=digest.hex())
        server.stubs.admin.ReleaseQuarantine(release)
        assert not server.quarantine.refused
        failed = failure(lambda: server.stubs.admin.ReleaseQuarantine(release))
        assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "REQUEST_NOT_FOUND")


class TestDrain:
    def test_running_requests_finish_and_new_ones_are_refused(self, server: Running, health: Callable[[str], str]) -> None:
        server.store.commit([Write("k", [b"x"])]).result(WAIT_S)
        held = Held(executor_pb2.InvokeResponse(outputs={"c": b"done"}))
        server.dispatcher.expect("execute", held)
        submit = executor_pb2.SubmitRequest(request=product_request(), return_buffers=["c"])
        running = server.stubs.executor.Submit.future(submit)
        assert held.started.wait(WAIT_S)
        assert health("") == health("kaas.v1.ExecutorService") == "SERVING"

        drained = server.stubs.admin.Drain.future(admin_pb2.DrainRequest())
        watch = health_pb2_grpc.HealthStub(server.stubs.channel).Watch(health_pb2.HealthCheckRequest())
        while next(watch).status != health_pb2.HealthCheckResponse.NOT_SERVING:
            pass
        watch.cancel()
        info = server.stubs.admin.GetServerInfo(admin_pb2.GetServerInfoRequest())
        assert info.draining
        assert health("kaas.v1.KvService") == "NOT_SERVING"

        header = kv_pb2.PutRequest(header=kv_pb2.PutHeader(key="k"))
        upload = library_pb2.UploadLibraryRequest(header=library_pb2.UploadLibraryHeader())
        register = executor_pb2.RegisterFunctionRequest(name="f", request=product_request())
        for call in (
            lambda: server.stubs.executor.Submit(submit),
            lambda: server.stubs.executor.RegisterFunction(register),
            lambda: server.stubs.executor.DeleteFunction(executor_pb2.DeleteFunctionRequest(name="f")),
            lambda: server.stubs.kv.Put(iter([header])),
            lambda: server.stubs.kv.Delete(kv_pb2.DeleteRequest(key="k")),
            lambda: server.stubs.library.UploadLibrary(iter([upload])),
            lambda: server.stubs.admin.CompactStore(admin_pb2.CompactStoreRequest()),
        ):
            failed = failure(call)
            assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
            assert failed.retry_s == 1.0
        # What was computed can still be fetched.
        assert server.stubs.kv.Stat(kv_pb2.StatRequest(key="k")).entry.size_bytes == 1

        assert not drained.done()
        held.release()
        assert running.result(WAIT_S).outputs["c"] == b"done"
        server.background.loop.call_soon_threadsafe(server.dispatcher.idle.set)
        assert drained.result(WAIT_S) == admin_pb2.DrainResponse()

    def test_a_drain_goes_on_after_its_callers_deadline(self, server: Running) -> None:
        failed = failure(lambda: server.stubs.admin.Drain(admin_pb2.DrainRequest(), timeout=0.5))
        assert failed.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert server.stubs.admin.GetServerInfo(admin_pb2.GetServerInfoRequest()).draining
        again = server.stubs.admin.Drain.future(admin_pb2.DrainRequest())
        done = threading.Event()
        again.add_done_callback(lambda _: done.set())
        server.background.loop.call_soon_threadsafe(server.dispatcher.idle.set)
        assert done.wait(WAIT_S)
        assert again.code() is grpc.StatusCode.OK

    def test_a_drain_can_be_undone(self, server: Running) -> None:
        server.background.loop.call_soon_threadsafe(server.dispatcher.idle.set)
        watch = health_pb2_grpc.HealthStub(server.stubs.channel).Watch(health_pb2.HealthCheckRequest())
        states = (health_pb2.HealthCheckResponse.ServingStatus.Name(response.status) for response in watch)
        assert next(states) == "SERVING"
        put = [kv_pb2.PutRequest(header=kv_pb2.PutHeader(key="k"))]
        for _ in range(2):
            server.stubs.admin.Drain(admin_pb2.DrainRequest())
            assert next(states) == "NOT_SERVING"
            assert failure(lambda: server.stubs.kv.Put(iter(put))).reason == "DRAINING"
            server.stubs.admin.Resume(admin_pb2.ResumeRequest())
            assert next(states) == "SERVING"
            assert not server.stubs.admin.GetServerInfo(admin_pb2.GetServerInfoRequest()).draining
            assert server.stubs.kv.Put(iter(put)).entry.key == "k"
        watch.cancel()
