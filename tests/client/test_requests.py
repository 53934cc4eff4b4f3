"""What operators see of requests: those that wait, run, or are refused."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from kaas.v1 import admin_pb2
from kaas_client import errors
from kaas_client.types import QuarantinedRequest, RequestInfo
from tests.client.fake_server import Failure, FakeServer
from tests.client.test_calls import NOON, NOON_MESSAGE

LISTED = [
    admin_pb2.RequestInfo(
        id="7",
        function="dot",
        device="cuda:1",
        state=admin_pb2.REQUEST_STATE_RUNNING,
        age=Duration(seconds=2, nanos=3),
        input_bytes=4096,
        group="research",
    ),
    admin_pb2.RequestInfo(id="12", device="cuda:0", state=admin_pb2.REQUEST_STATE_QUEUED, age=Duration(nanos=5)),
]


def test_requests(client: Any, server: FakeServer) -> None:
    server.expect("ListRequests", admin_pb2.ListRequestsResponse(requests=LISTED[:1], next_page_token="t"))
    server.expect("ListRequests", admin_pb2.ListRequestsResponse(requests=LISTED[1:]))
    assert list(client.requests()) == [
        RequestInfo("7", "dot", "cuda:1", "running", 2_000_000_003, 4096, "research"),
        RequestInfo("12", "", "cuda:0", "queued", 5, 0),
    ]
    assert [call.request.page_token for call in server.calls] == ["", "t"]


def test_cancel_request(client: Any, server: FakeServer) -> None:
    server.expect("CancelRequest", admin_pb2.CancelRequestResponse())
    assert client.cancel_request("7") is None
    assert server.only_call("CancelRequest").request.id == "7"
    server.expect("CancelRequest", Failure("NOT_FOUND", "it has ended", "REQUEST_NOT_FOUND"))
    with pytest.raises(errors.RequestNotFoundError, match="it has ended"):
        client.cancel_request("7")


QUARANTINED = [
    admin_pb2.QuarantinedRequest(
        id="0a" * 32, workers=3, last_fault="an illegal address", last_time=NOON_MESSAGE, functions=["dot", "sum"]
    ),
    admin_pb2.QuarantinedRequest(id="b1" * 32, workers=4, last_fault="the worker's process ended", last_time=NOON_MESSAGE),
]


def test_quarantine(client: Any, server: FakeServer) -> None:
    server.expect("ListQuarantine", admin_pb2.ListQuarantineResponse(requests=QUARANTINED[:1], next_page_token="t"))
    server.expect("ListQuarantine", admin_pb2.ListQuarantineResponse(requests=QUARANTINED[1:]))
    assert list(client.quarantine()) == [
        QuarantinedRequest("0a" * 32, 3, "an illegal address", NOON, ("dot", "sum")),
        QuarantinedRequest("b1" * 32, 4, "the worker's process ended", NOON, ()),
    ]
    assert [call.request.page_token for call in server.calls] == ["", "t"]


def test_release_quarantine(client: Any, server: FakeServer) -> None:
    server.expect("ReleaseQuarantine", admin_pb2.ReleaseQuarantineResponse())
    assert client.release_quarantine("0a" * 32) is None
    assert server.only_call("ReleaseQuarantine").request.id == "0a" * 32
    server.expect("ReleaseQuarantine", Failure("NOT_FOUND", "it is not refused", "REQUEST_NOT_FOUND"))
    with pytest.raises(errors.RequestNotFoundError, match="it is not refused"):
        client.release_quarantine("0a" * 32)
