"""The local channel over a real socket."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from kaas.v1 import admin_pb2, admin_pb2_grpc, executor_pb2, local_pb2
from kaas_core import errors
from kaasd.api import local, local_connection
from kaasd.api.listen import ListenError
from kaasd.front.grants import check
from tests.api.local import Caller, failure_of, local_socket, packed
from tests.api.support import WAIT_S, FakeDispatcher, Held, Running, product_request, running_server, wait_for_failure
from tests.api.test_executor import RAN, register, value

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def invoke(function: str = "f", **fields: object) -> executor_pb2.InvokeRequest:
    return executor_pb2.InvokeRequest(function=function, **fields)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have connections close soon where nothing moves, those that are opened after."""
    monkeypatch.setattr(local_connection, "STALLED_S", 0.3)


@pytest.fixture
def caller(server: Running) -> Iterator[Caller]:
    register(server)
    with Caller(local_socket(server)) as caller:
        yield caller


class TestSocket:
    def test_it_is_as_private_as_the_socket_beside_it(self, server: Running) -> None:
        path = Path(local_socket(server))
        assert f"unix:{path}" == f"{server.server.addresses[0]}.local"
        status = path.stat()
        assert stat.S_ISSOCK(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o600 and status.st_uid == os.getuid()

    def test_it_is_named_only_to_callers_of_its_listener(self, tmp_path: Path) -> None:
        listen = (f"unix:{tmp_path}/a.sock", f"unix:{tmp_path}/b.sock", "127.0.0.1:0")
        with running_server(tmp_path, FakeDispatcher(), listen=listen) as server:
            named = []
            for address in server.server.addresses:
                with grpc.insecure_channel(address) as channel:
                    stub = admin_pb2_grpc.AdminServiceStub(channel)
                    named.append(stub.GetServerInfo(admin_pb2.GetServerInfoRequest()).local_socket)
        assert named == [f"{tmp_path}/a.sock.local", f"{tmp_path}/b.sock.local", ""]

    def test_one_that_a_dead_daemon_left_is_replaced(self, tmp_path: Path) -> None:
        left = socket.socket(socket.AF_UNIX)
        left.bind(f"{tmp_path}/kaasd.sock.local")
        left.close()
        with running_server(tmp_path, FakeDispatcher()) as server, Caller(local_socket(server)) as caller:
            assert caller.hello.store_id == server.store.store_id
        assert not Path(f"{tmp_path}/kaasd.sock.local").exists()

    def test_where_something_else_is_nothing_listens(self, tmp_path: Path) -> None:
        Path(f"{tmp_path}/kaasd.sock.local").write_text("mine")
        starting = running_server(tmp_path, FakeDispatcher())
        with pytest.raises(ListenError, match=r"kaasd\.sock\.local: exists and is not a socket"), starting:
            pass
        assert Path(f"{tmp_path}/kaasd.sock.local").read_text() == "mine"
        assert not Path(f"{tmp_path}/kaasd.sock").exists()

    def test_that_of_another_daemon_stays(self, tmp_path: Path) -> None:
        path = Path(f"{tmp_path}/kaasd.sock.local")
        with running_server(tmp_path, FakeDispatcher()):
            path.unlink()
            other = socket.socket(socket.AF_UNIX)
            other.bind(str(path))
        assert path.is_socket()
        other.close()

    def test_a_path_with_no_room_for_it_has_none(self, tmp_path: Path) -> None:
        directory = Path(f"/tmp/kaas-test-{os.getpid()}-long")
        directory.mkdir(mode=0o700)
        name = "x" * (107 - len(f"{directory}/"))
        try:
            with running_server(tmp_path, FakeDispatcher(), listen=(f"unix:{directory}/{name}",)) as server:
                assert local_socket(server) == ""
        finally:
            directory.rmdir()

    def test_callers_wait_where_no_descriptor_is_left_for_them(
        self, server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(local, "ACCEPT_AGAIN_S", 0.01)
        accept = socket.socket.accept
        refusals = [OSError(24, "Too many open files")] * 2

        def refusing(listening: socket.socket) -> tuple[socket.socket, object]:
            if refusals:
                raise refusals.pop()
            return accept(listening)

        path = local_socket(server)
        monkeypatch.setattr(socket.socket, "accept", refusing)
        with Caller(path) as caller:
            assert caller.hello.store_id == server.store.store_id
        assert "no further caller can be taken up: Too many open files" in caplog.text


class TestCalls:
    def test_an_invocation(self, server: Running, caller: Caller) -> None:
        server.dispatcher.expect("execute", executor_pb2.InvokeResponse(outputs={"c": b"4444"}, device="emulator"))
        answer = caller.call(id=7, invoke=invoke(bindings={"a": value(bytes(16))}, return_buffers=["c"], priority=3))
        assert answer == executor_pb2.InvokeResponse(outputs={"c": b"4444"}, device="emulator")
        arguments = server.dispatcher.calls[-1].arguments
        assert (arguments["inputs"], arguments["function"], arguments["priority"]) == ({"a": bytes(16)}, "f", 3)
        assert arguments["remaining"] is None

    def test_a_request(self, server: Running, caller: Caller) -> None:
        server.dispatcher.expect("execute", executor_pb2.InvokeResponse(outputs={"c": b"4444"}))
        request = executor_pb2.SubmitRequest(request=product_request(), inputs={"a": bytes(16)}, return_buffers=["c"])
        assert caller.call(id=7, submit=request) == executor_pb2.SubmitResponse(outputs={"c": b"4444"})
        assert server.dispatcher.calls[-1].arguments["inputs"] == {"a": bytes(16)}

    def test_many_are_in_flight(self, server: Running, caller: Caller) -> None:
        slow = Held(executor_pb2.InvokeResponse(device="slow"))
        server.dispatcher.expect("execute", slow, executor_pb2.InvokeResponse(device="fast"))
        caller.send(id=1, invoke=invoke())
        caller.send(id=2, invoke=invoke())
        first = caller.receive()
        slow.release()
        second = caller.receive()
        assert [(first.id, first.invoked.device), (second.id, second.invoked.device)] == [(2, "fast"), (1, "slow")]

    def test_errors_are_those_of_streams(self, server: Running, caller: Caller) -> None:
        server.dispatcher.expect("execute", errors.QueueFullError("too many"), RuntimeError("secret"))
        full = failure_of(caller.call(id=1, invoke=invoke()))
        assert (full.code, full.reason, full.message) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", "too many")
        assert full.retry_s is not None
        assert failure_of(caller.call(id=2, invoke=invoke("absent"))).reason == "FUNCTION_NOT_FOUND"
        assert failure_of(caller.call(id=3, invoke=invoke(bindings={"a": value(b"s")}))).fields == ['bindings["a"]']
        assert failure_of(caller.call(id=4, submit=executor_pb2.SubmitRequest())).code is INVALID
        defect = failure_of(caller.call(id=5, invoke=invoke()))
        assert defect.reason == "INTERNAL" and "secret" not in defect.message
        counted = server.stubs.admin.GetStats(admin_pb2.GetStatsRequest()).failures_by_reason
        assert counted == {"QUEUE_FULL": 1, "FUNCTION_NOT_FOUND": 1, "INVALID_REQUEST": 2, "INTERNAL": 1}

    def test_deadlines(self, server: Running, caller: Caller) -> None:
        server.dispatcher.expect("execute", RAN)
        caller.call(id=1, timeout_ns=50 * 10**9, invoke=invoke())
        assert 0 < server.dispatcher.calls[-1].arguments["remaining"] <= 50

    def test_a_call_is_cancelled(self, server: Running, caller: Caller) -> None:
        held, other = Held(), Held()
        server.dispatcher.expect("execute", held, other)
        caller.send(id=1, invoke=invoke())
        caller.send(id=2, invoke=invoke())
        assert held.started.wait(WAIT_S)
        caller.send(id=9, cancel=local_pb2.Cancel())  # of no call: nothing comes of it
        caller.send(id=1, cancel=local_pb2.Cancel())
        answer = caller.receive()
        assert answer.id == 1 and failure_of(answer.error).reason == "CANCELLED"
        assert held.cancelled.is_set() and not other.cancelled.is_set()
        other.release()
        assert caller.receive().id == 2

    def test_a_call_is_cancelled_by_what_comes_with_it(self, server: Running, caller: Caller) -> None:
        server.dispatcher.expect("execute", Held())
        frames = [local_pb2.LocalFrame(id=1, invoke=invoke()), local_pb2.LocalFrame(id=1, cancel=local_pb2.Cancel())]
        caller.socket.sendall(b"".join(packed(frame.SerializeToString()) for frame in frames))
        assert caller.failure().reason == "CANCELLED"

    def test_who_closes_cancels(self, server: Running, caller: Caller) -> None:
        held = Held()
        server.dispatcher.expect("execute", held)
        caller.send(id=1, invoke=invoke())
        assert held.started.wait(WAIT_S)
        caller.socket.close()
        assert held.cancelled.wait(WAIT_S)
        wait_for_failure(server, "CANCELLED")

    def test_a_large_call(self, server: Running, caller: Caller) -> None:
        request = product_request()
        request.buffers[0].size_bytes = 8 << 20
        server.dispatcher.expect("execute", RAN)
        sent = executor_pb2.SubmitRequest(request=request, inputs={"a": bytes(range(256)) * (8 << 12)})
        assert isinstance(caller.call(id=7, submit=sent), executor_pb2.SubmitResponse)
        assert server.dispatcher.calls[-1].arguments["inputs"]["a"] == bytes(range(256)) * (8 << 12)

    def test_the_group_of_a_socket(self, tmp_path: Path) -> None:
        dispatcher = FakeDispatcher()
        listen = (f"unix:{tmp_path}/kaasd.sock,group=g",)
        with running_server(
            tmp_path, dispatcher, listen=listen, groups=(check(admin_pb2.Group(name="g"), fixed=True),)
        ) as server:
            register(server)
            dispatcher.expect("execute", RAN)
            with Caller(local_socket(server)) as caller:
                caller.call(id=1, invoke=invoke())
                assert dispatcher.calls[-1].arguments["group"] == "g"
                assert failure_of(caller.call(id=2, invoke=invoke(group="default"))).reason == "GROUP_NOT_FOUND"

    def test_a_connection_is_one_sender(self, server: Running, caller: Caller) -> None:
        server.dispatcher.expect("execute", RAN, RAN, RAN)
        for id in (1, 2):
            caller.call(id=id, invoke=invoke())
        with Caller(local_socket(server)) as other:
            other.call(id=1, invoke=invoke())
        first, second, others = server.dispatcher.senders
        assert first == second != others

    def test_a_draining_server_refuses(self, server: Running, caller: Caller) -> None:
        server.dispatcher.draining = True
        assert failure_of(caller.call(id=1, invoke=invoke())).reason == "DRAINING"

    def test_a_server_that_stops_lets_calls_end(self, server: Running, caller: Caller) -> None:
        held = Held(executor_pb2.InvokeResponse(device="emulator"))
        server.dispatcher.expect("execute", held)
        caller.send(id=1, invoke=invoke())
        assert held.started.wait(WAIT_S)
        stopping = asyncio.run_coroutine_threadsafe(server.server.stop(WAIT_S), server.background.loop)
        held.release()
        assert caller.receive().invoked.device == "emulator"
        assert caller.is_closed()
        stopping.result(WAIT_S)

    def test_a_server_that_stops_at_once_cancels(self, server: Running, caller: Caller) -> None:
        held = Held()
        server.dispatcher.expect("execute", held)
        caller.send(id=1, invoke=invoke())
        assert held.started.wait(WAIT_S)
        server.background.run(server.server.stop())
        assert held.cancelled.is_set()
        assert caller.is_closed()


class TestLimits:
    def test_no_more_are_in_flight_than_allowed(self, tmp_path: Path) -> None:
        dispatcher = FakeDispatcher()
        with running_server(tmp_path, dispatcher, max_in_flight=2) as server:
            register(server)
            held = [Held() for _ in range(3)]
            dispatcher.expect("execute", *held)
            with Caller(local_socket(server)) as caller:
                for id in (1, 2, 4):
                    caller.send(id=id, invoke=invoke())
                # One that waits can be cancelled.
                caller.send(id=4, cancel=local_pb2.Cancel())
                cancelled = caller.receive()
                assert (cancelled.id, failure_of(cancelled.error).reason) == (4, "CANCELLED")
                caller.send(id=3, invoke=invoke())
                local_socket(server)  # Another call's round trip gives the server every chance to read on.
                assert held[0].started.wait(WAIT_S) and held[1].started.wait(WAIT_S)
                assert not held[2].started.is_set()
                held[1].release()
                assert caller.receive().id == 2
                assert held[2].started.wait(WAIT_S)
                held[0].release()
                held[2].release()
                assert {caller.receive().id for _ in range(2)} == {1, 3}

    def test_no_more_is_read_than_may_wait(self, tmp_path: Path) -> None:
        dispatcher = FakeDispatcher()
        with running_server(tmp_path, dispatcher, max_in_flight=1) as server:
            register(server)
            held = Held()
            dispatcher.expect("execute", held, *[RAN] * 20_000)
            with Caller(local_socket(server)) as caller:
                frame = packed(local_pb2.LocalFrame(id=1, invoke=invoke()).SerializeToString())
                caller.send(id=1, invoke=invoke())
                assert held.started.wait(WAIT_S)
                caller.socket.setblocking(False)
                sent, id = 0, 2
                with pytest.raises(BlockingIOError):
                    while sent < 64 << 20:
                        frame = packed(local_pb2.LocalFrame(id=id, invoke=invoke("f" * 3000)).SerializeToString())
                        sent += caller.socket.send(frame)
                        id += 1
                assert sent < 8 << 20
                # Others are served meanwhile.
                with Caller(local_socket(server)) as other:
                    assert failure_of(other.call(id=1, invoke=invoke("absent"))).reason == "FUNCTION_NOT_FOUND"
                held.release()

    def test_no_more_is_begun_than_its_reader_may_leave_unread(
        self, server: Running, caller: Caller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(local_connection, "UNREAD_BYTES", 8)
        held = [Held(RAN) for _ in range(3)]
        server.dispatcher.expect("execute", *held)
        for id in (1, 2, 3):
            caller.send(id=id, invoke=invoke(return_buffers=["c"]))
        assert all(one.started.wait(WAIT_S) for one in held[:2])
        local_socket(server)  # Another call's round trip gives the server every chance to read on.
        assert not held[2].started.is_set()
        held[0].release()
        assert caller.receive().id == 1
        assert held[2].started.wait(WAIT_S)
        held[1].release()
        held[2].release()
        assert {caller.receive().id for _ in range(2)} == {2, 3}

    def test_a_caller_that_never_reads_is_closed(self, server: Running, impatient: None, caller: Caller) -> None:
        server.dispatcher.expect("execute", executor_pb2.InvokeResponse(outputs={"c": bytes(3 << 20)}))
        caller.send(id=1, invoke=invoke(return_buffers=["c"]))
        wait_for_failure(server, "DEADLINE_EXCEEDED")
        assert caller.is_closed()
        assert server.background.run(held_bytes(server)) == 0

    def test_a_caller_that_only_greets_is_not_answered_without_end(self, server: Running, caller: Caller) -> None:
        caller.socket.setblocking(False)
        hello = packed(local_pb2.LocalFrame(id=1, hello=local_pb2.Hello()).SerializeToString()) * 1000
        sent = 0
        with pytest.raises(BlockingIOError):
            while sent < 64 << 20:
                sent += caller.socket.send(hello)
        with Caller(local_socket(server)) as other:
            assert failure_of(other.call(id=1, invoke=invoke("absent"))).reason == "FUNCTION_NOT_FOUND"

    @pytest.mark.parametrize("begin", [b"\x09", struct.pack("<I", 100), struct.pack("<I", 100) + b"\x08\x01"])
    def test_half_a_frame(self, server: Running, impatient: None, caller: Caller, begin: bytes) -> None:
        caller.socket.sendall(begin)
        failed = caller.failure()
        assert (failed.reason, failed.message) == (
            "DEADLINE_EXCEEDED",
            "the caller sent nothing more of a frame, or no Hello, for 0.3 s",
        )
        assert caller.is_closed()

    def test_half_a_frame_and_the_end(self, server: Running, caller: Caller) -> None:
        caller.socket.sendall(struct.pack("<I", 100) + b"\x08\x01")
        caller.socket.shutdown(socket.SHUT_WR)
        assert caller.is_closed()

    def test_who_does_not_greet_is_closed_and_who_is_idle_is_not(self, server: Running, impatient: None, caller: Caller) -> None:
        with Caller(local_socket(server), greets=False) as silent:
            assert silent.failure().reason == "DEADLINE_EXCEEDED"
            assert silent.is_closed()
        server.dispatcher.expect("execute", RAN)
        assert caller.call(id=1, invoke=invoke()) == RAN

    def test_a_frame_that_is_too_large(self, tmp_path: Path) -> None:
        running = running_server(tmp_path, FakeDispatcher(), max_message_bytes=1 << 20)
        with running as server, Caller(local_socket(server)) as caller:
            caller.socket.sendall(struct.pack("<I", (1 << 20) + 1) + bytes(20))
            failed = caller.failure()
            assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")
            assert failed.message == "a frame of 1048577 bytes; at most 1048576 (--max-message-size) are allowed"
            assert caller.is_closed()


class TestGarbage:
    @pytest.mark.parametrize(
        ("frame", "field", "message"),
        [
            (b"\xff\xff", "", "not a valid kaas.v1.LocalFrame message"),
            (b"", "body", "neither"),
            (local_pb2.LocalFrame(id=1).SerializeToString(), "body", "neither"),
            (local_pb2.LocalFrame(id=1, invoked=RAN).SerializeToString(), "body", "neither"),
            (local_pb2.LocalFrame(invoke=invoke()).SerializeToString(), "id", "at least 1"),
            (bytes([0x22, 3, 0x0A, 1, 0xFF]), "", "UTF-8"),
        ],
    )
    def test_what_is_no_frame(self, server: Running, caller: Caller, frame: bytes, field: str, message: str) -> None:
        caller.socket.sendall(packed(frame))
        failed = caller.failure()
        assert (failed.code, failed.reason, failed.fields) == (INVALID, "INVALID_REQUEST", [field])
        assert message in failed.message
        assert caller.is_closed()

    def test_what_speaks_http(self, server: Running) -> None:
        with Caller(local_socket(server), greets=False) as caller:
            caller.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            assert caller.failure().reason == "MESSAGE_TOO_LARGE"
            assert caller.is_closed()

    def test_who_does_not_greet(self, server: Running) -> None:
        with Caller(local_socket(server), greets=False) as caller:
            caller.send(id=1, invoke=invoke())
            assert caller.failure().fields == ["hello"]
            assert caller.is_closed()

    def test_an_id_that_is_in_flight(self, server: Running, caller: Caller) -> None:
        held = Held()
        server.dispatcher.expect("execute", held)
        caller.send(id=1, invoke=invoke())
        assert held.started.wait(WAIT_S)
        caller.send(id=1, invoke=invoke())
        failed = caller.failure()
        assert (failed.fields, failed.message) == (["id"], "id: a call with the id 1 is in flight already")
        assert held.cancelled.wait(WAIT_S)

    def test_more_than_a_message_may_hold(self, server: Running, caller: Caller) -> None:
        buffers = executor_pb2.SubmitRequest(request=product_request())
        for number in range(50_000):
            buffers.request.buffers.add(name=f"b{number}", size_bytes=4)
        caller.send(id=1, submit=buffers)
        assert caller.failure().fields == ["buffers"]
        assert caller.is_closed()

    def test_descriptors_that_nobody_asked_for_are_not_kept(self, server: Running, caller: Caller) -> None:
        descriptors = Path("/proc/self/fd")
        before = len(list(descriptors.iterdir()))
        server.dispatcher.expect("execute", *[RAN] * 5)
        reader, writer = os.pipe()
        for id in range(1, 6):
            frame = packed(local_pb2.LocalFrame(id=id, invoke=invoke()).SerializeToString())
            socket.send_fds(caller.socket, [frame], [writer])
            assert caller.receive().id == id
        os.close(reader)
        os.close(writer)
        assert len(list(descriptors.iterdir())) == before


async def held_bytes(server: Running) -> int:
    return server.server._core.replies.held_bytes
