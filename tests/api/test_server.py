"""Addresses, sockets, health, reflection, and that nothing of the protocol is missing."""

from __future__ import annotations

import logging
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import grpc
import pytest
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from kaas.v1 import admin_pb2, errors_pb2, executor_pb2, kv_pb2, library_pb2, types_pb2
from kaasd.api import listen
from kaasd.api.listen import ListenError
from kaasd.api.server import GRPC_LOGGER
from tests.api.support import WAIT_S, FakeDispatcher, Running, Stubs, running_server

FILES: tuple[FileDescriptor, ...] = tuple(
    module.DESCRIPTOR for module in (admin_pb2, errors_pb2, executor_pb2, kv_pb2, library_pb2, types_pb2)
)
METHODS = [method for file in FILES for service in file.services_by_name.values() for method in service.methods]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name.removeprefix("kaas.v1."))
def test_every_rpc_is_implemented(server: Running, method: MethodDescriptor) -> None:
    """An RPC that is there answers an empty message, if only with an error of its own."""
    server.background.loop.call_soon_threadsafe(server.dispatcher.idle.set)
    if method.name == "CompactStore":
        server.dispatcher.expect("pages_released", None)
    kinds = {
        (False, False): server.stubs.channel.unary_unary,
        (False, True): server.stubs.channel.unary_stream,
        (True, False): server.stubs.channel.stream_unary,
        (True, True): server.stubs.channel.stream_stream,
    }
    path = f"/{method.containing_service.full_name}/{method.name}"
    call = kinds[method.client_streaming, method.server_streaming](path)
    request = GetMessageClass(method.input_type)().SerializeToString()
    try:
        answer = call(iter([request]) if method.client_streaming else request, timeout=WAIT_S)
        messages = list(answer) if method.server_streaming else [answer]
        for message in messages:
            GetMessageClass(method.output_type).FromString(message)
    except grpc.RpcError as error:
        assert error.code() in (
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.FAILED_PRECONDITION,
        ), error


def test_the_protocol_has_the_rpcs_that_are_tested() -> None:
    assert len(METHODS) == 34


def test_health(server: Running) -> None:
    stub = health_pb2_grpc.HealthStub(server.stubs.channel)
    for service in ("", *(f"kaas.v1.{name}Service" for name in ("Executor", "Library", "Kv", "Admin"))):
        response = stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert response.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection(server: Running) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(server.stubs.channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="kaas.v1.KvService"),
    ]
    services, file = stub.ServerReflectionInfo(iter(requests))
    names = {service.name for service in services.list_services_response.service}
    assert names >= {"kaas.v1.ExecutorService", "kaas.v1.LibraryService", "kaas.v1.KvService", "kaas.v1.AdminService"}
    assert "grpc.health.v1.Health" in names
    assert any(b"KvService" in data for data in file.file_descriptor_response.file_descriptor_proto)


class TestUnixSocket:
    def test_only_its_user_may_connect(self, server: Running) -> None:
        path = Path(server.server.addresses[0].removeprefix("unix:"))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_it_is_gone_when_the_server_stopped(self, tmp_path: Path) -> None:
        with running_server(tmp_path, FakeDispatcher()):
            assert (tmp_path / "kaasd.sock").is_socket()
        assert not (tmp_path / "kaasd.sock").exists()

    def test_one_left_by_a_dead_daemon_is_replaced(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / "kaasd.sock"))
            dead.listen()
        assert (tmp_path / "kaasd.sock").is_socket()
        with running_server(tmp_path, FakeDispatcher()) as server:
            assert server.stubs.admin.GetServerInfo(admin_pb2.GetServerInfoRequest()).version

    def test_one_of_a_living_daemon_is_not(self, server: Running, tmp_path: Path) -> None:
        (tmp_path / "second").mkdir()
        with (
            pytest.raises(ListenError, match="another daemon listens there"),
            running_server(tmp_path / "second", FakeDispatcher(), listen=server.server.addresses),
        ):
            pass
        assert server.stubs.admin.GetServerInfo(admin_pb2.GetServerInfoRequest()).version

    def test_a_daemon_whose_backlog_is_full_is_alive_too(self, tmp_path: Path) -> None:
        path = tmp_path / "kaasd.sock"
        with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
            busy.bind(str(path))
            busy.listen(0)
            waiting.connect(str(path))
            with pytest.raises(ListenError, match="another daemon"), running_server(tmp_path, FakeDispatcher()):
                pass
        assert path.is_socket()

    def test_a_file_in_its_place_stays(self, tmp_path: Path) -> None:
        (tmp_path / "kaasd.sock").write_text("precious")
        with pytest.raises(ListenError, match="exists and is not a socket"), running_server(tmp_path, FakeDispatcher()):
            pass
        assert (tmp_path / "kaasd.sock").read_text() == "precious"

    def test_a_missing_directory_is_made_for_this_user_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "kaasd-7" / "kaasd.sock"
        with running_server(tmp_path, FakeDispatcher(), listen=(f"unix:{path}",)):
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            assert path.is_socket()

    def test_a_directory_open_to_others_is_refused(self, tmp_path: Path) -> None:
        directory = tmp_path / "open"
        directory.mkdir()
        directory.chmod(0o777)
        with (
            pytest.raises(ListenError, match="another user may replace"),
            running_server(tmp_path, FakeDispatcher(), listen=(f"unix:{directory}/kaasd.sock",)),
        ):
            pass

    @pytest.mark.parametrize(
        ("owner", "mode", "safe"),
        [
            ("me", 0o700, True),
            ("root", 0o755, True),
            ("root", 0o1777, True),
            ("another", 0o700, False),
            ("me", 0o707, False),
            ("root", 0o777, False),
        ],
    )
    def test_a_directory_is_safe_where_only_its_owner_or_root_replaces_files(self, owner: str, mode: int, safe: bool) -> None:
        owners = {"me": os.getuid(), "root": 0, "another": os.getuid() + 1}
        directory = cast("Path", SimpleNamespace(stat=lambda: SimpleNamespace(st_uid=owners[owner], st_mode=stat.S_IFDIR | mode)))
        with nullcontext() if safe else pytest.raises(ListenError, match="another user may replace"):
            listen._check_directory(directory)

    def test_one_that_another_daemon_removes_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "kaasd.sock"

        class Late(socket.socket):
            def connect(self, address: object) -> None:
                path.unlink()
                raise ConnectionRefusedError

        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        monkeypatch.setattr(listen.socket, "socket", Late)
        listen._make_way(path)
        assert not path.exists()

    def test_a_path_that_is_too_long(self, tmp_path: Path) -> None:
        with (
            pytest.raises(ListenError, match="at most 107 bytes"),
            running_server(tmp_path, FakeDispatcher(), listen=(f"unix:{tmp_path}/{'x' * 100}",)),
        ):
            pass

    def test_the_umask_is_as_before(self, server: Running) -> None:
        now = os.umask(0o022)
        os.umask(now)
        assert now != 0o177


class TestTcp:
    @pytest.fixture
    def both(self, tmp_path: Path) -> Iterator[Running]:
        listen = (f"unix:{tmp_path}/kaasd.sock", "127.0.0.1:0")
        with running_server(tmp_path, FakeDispatcher(), listen=listen) as running:
            yield running

    def test_both_addresses_serve(self, both: Running, tmp_path: Path) -> None:
        unix, tcp = both.server.addresses
        assert unix == f"unix:{tmp_path}/kaasd.sock"
        assert int(tcp.removeprefix("127.0.0.1:")) > 0
        with grpc.insecure_channel(tcp) as channel:
            info = Stubs(channel).admin.GetServerInfo(admin_pb2.GetServerInfoRequest())
        assert tuple(info.addresses) == (unix, tcp)

    def test_a_port_that_is_taken(self, both: Running, tmp_path: Path) -> None:
        listen = (f"unix:{tmp_path}/second.sock", both.server.addresses[1])
        (tmp_path / "second").mkdir()
        with (
            pytest.raises(ListenError, match="cannot listen on"),
            running_server(tmp_path / "second", FakeDispatcher(), listen=listen),
        ):
            pass
        assert not (tmp_path / "second.sock").exists()


def test_stopping_cancels_what_still_runs(tmp_path: Path) -> None:
    dispatcher = FakeDispatcher()
    with running_server(tmp_path, dispatcher) as server:
        drained = server.stubs.admin.Drain.future(admin_pb2.DrainRequest())
        ended = threading.Event()
        drained.add_done_callback(lambda _: ended.set())
    assert ended.wait(WAIT_S)


def test_a_caller_that_left_is_no_line_of_the_log(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger(GRPC_LOGGER)
    for error in (grpc.aio.InternalError("the caller has gone"), ValueError("a defect")):
        logger.error("raised by a method", exc_info=error)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)
