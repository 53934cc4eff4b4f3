"""The commands of ``kaasctl`` that are about the server itself, and what is under way there."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from grpc_health.v1 import health_pb2

from kaas.v1 import admin_pb2
from kaas_core import __version__
from tests.cli.conftest import Done, succeed
from tests.client.fake_server import Failure, FakeServer
from tests.client.test_requests import LISTED, QUARANTINED

Kaasctl = Callable[..., Done]

# requests


def test_request_ls(kaasctl: Kaasctl, server: FakeServer) -> None:
    for _ in range(2):
        server.expect("ListRequests", admin_pb2.ListRequestsResponse(requests=LISTED))
    assert succeed(kaasctl("request", "ls")).text.splitlines() == [
        "ID  GROUP     FUNCTION  DEVICE  STATE    AGE    INPUT",
        "7   research  dot       cuda:1  running  2.0 s  4.0 KiB",
        "12                      cuda:0  queued   5 ns   0 B",
    ]
    assert json.loads(succeed(kaasctl("-o", "json", "request", "ls")).text)[0] == {
        "id": "7",
        "function": "dot",
        "device": "cuda:1",
        "state": "running",
        "age_ns": 2_000_000_003,
        "input_bytes": 4096,
        "group": "research",
    }


def test_request_cancel(kaasctl: Kaasctl, server: FakeServer) -> None:
    for _ in range(2):
        server.expect("CancelRequest", admin_pb2.CancelRequestResponse())
    assert succeed(kaasctl("request", "cancel", "7", "12")).stdout == b""
    assert [call.request.id for call in server.calls] == ["7", "12"]
    server.expect("CancelRequest", Failure("NOT_FOUND", "it has ended", "REQUEST_NOT_FOUND"))
    done = kaasctl("request", "cancel", "7")
    assert (done.code, done.stderr) == (4, "kaasctl: it has ended\n")


# quarantine


def test_quarantine_ls(kaasctl: Kaasctl, server: FakeServer) -> None:
    for _ in range(2):
        server.expect("ListQuarantine", admin_pb2.ListQuarantineResponse(requests=QUARANTINED))
    first, second = "0a" * 32, "b1" * 32
    assert succeed(kaasctl("quarantine", "ls")).text.splitlines() == [
        f"ID{' ' * 64}FUNCTIONS  WORKERS  LAST TIME            LAST FAULT",
        f"{first}  dot, sum   3        2026-01-02 12:00:00  an illegal address",
        f"{second}  -          4        2026-01-02 12:00:00  the worker's process ended",
    ]
    assert json.loads(succeed(kaasctl("-o", "json", "quarantine", "ls")).text)[0] == {
        "id": first,
        "workers": 3,
        "last_fault": "an illegal address",
        "last_time": "2026-01-02T12:00:00+00:00",
        "functions": ["dot", "sum"],
    }


def test_quarantine_rm(kaasctl: Kaasctl, server: FakeServer) -> None:
    for _ in range(2):
        server.expect("ReleaseQuarantine", admin_pb2.ReleaseQuarantineResponse())
    assert succeed(kaasctl("quarantine", "rm", "0a", "b1")).stdout == b""
    assert [call.request.id for call in server.calls] == ["0a", "b1"]
    server.expect("ReleaseQuarantine", Failure("NOT_FOUND", "it is not refused", "REQUEST_NOT_FOUND"))
    done = kaasctl("quarantine", "rm", "0a")
    assert (done.code, done.stderr) == (4, "kaasctl: it is not refused\n")


# server


@pytest.mark.parametrize(("status", "code"), [("SERVING", 0), ("NOT_SERVING", 1)])
def test_health(kaasctl: Kaasctl, server: FakeServer, status: str, code: int) -> None:
    reply = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.ServingStatus.Value(status))
    for arguments, printed in (([], f"{status}\n"), (["-o", "json"], {"status": status})):
        server.expect("Check", reply)
        done = kaasctl(*arguments, "health")
        assert done.code == code
        assert (done.text if isinstance(printed, str) else json.loads(done.text)) == printed


def test_drain_and_resume(kaasctl: Kaasctl, server: FakeServer) -> None:
    server.expect("Drain", admin_pb2.DrainResponse())
    server.expect("Resume", admin_pb2.ResumeResponse())
    for command in ("drain", "resume"):
        assert succeed(kaasctl(command)).stdout == b""


def test_drain_and_resume_a_device(kaasctl: Kaasctl, server: FakeServer) -> None:
    server.expect("DrainDevice", admin_pb2.DrainDeviceResponse())
    server.expect("ResumeDevice", admin_pb2.ResumeDeviceResponse())
    for command in ("drain", "resume"):
        assert succeed(kaasctl("device", command, "cuda:1")).stdout == b""
    assert [call.request.name for call in server.calls] == ["cuda:1", "cuda:1"]
    server.expect("DrainDevice", Failure("DEADLINE_EXCEEDED", "past it", "DEADLINE_EXCEEDED"))
    done = kaasctl("device", "drain", "cuda:1")
    assert (done.code, done.stdout) == (6, b"")
    assert done.stderr == "kaasctl: timed out: past it; cuda:1 goes on draining, until kaasctl device resume cuda:1\n"


def test_a_drain_goes_on_past_the_timeout(kaasctl: Kaasctl, server: FakeServer) -> None:
    server.expect("Drain", Failure("DEADLINE_EXCEEDED", "past it", "DEADLINE_EXCEEDED"))
    done = kaasctl("drain")
    assert (done.code, done.stdout) == (6, b"")
    assert done.stderr == "kaasctl: timed out: past it; the server goes on draining, until kaasctl resume\n"


def test_version(kaasctl: Kaasctl, server: FakeServer) -> None:
    for _ in range(2):
        server.expect("GetServerInfo", admin_pb2.GetServerInfoResponse(version="7.8.9"))
    assert succeed(kaasctl("version")).text.split() == ["client", __version__, "server", "7.8.9"]
    assert json.loads(succeed(kaasctl("-o", "json", "version")).text) == {"client": __version__, "server": "7.8.9"}
