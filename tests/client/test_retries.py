"""Calls that are made again: which, when, how often, and with what id."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from kaas.v1 import executor_pb2, kv_pb2, library_pb2
from kaas_client import RetryPolicy, errors
from kaas_client._retry import Repeat, Tries, new_request_id
from kaas_core.protobuf import request_to_proto
from tests.client.fake_server import Failure, FakeServer
from tests.client.test_calls import REQUEST, entry_message

SOON = RetryPolicy(max_attempts=4, initial_backoff=0.001, max_backoff=0.002)
AWAY = Failure("UNAVAILABLE", "not now", "NOT_KNOWN_HERE")


@pytest.fixture(autouse=True)
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that do not say when to come again mean at once."""
    monkeypatch.setattr(errors.UnavailableError, "retry_after_s", None)


def lose(request: Any, context: grpc.ServicerContext) -> Any:
    """What a client sees of a server that is killed."""
    context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")


CALLS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "Stat": (lambda client: client.stat("k"), kv_pb2.StatResponse(entry=entry_message("k"))),
    "Get": (lambda client: client.get("k"), [kv_pb2.GetResponse(entry=entry_message("k", 3)), kv_pb2.GetResponse(chunk=b"abc")]),
    "List": (lambda client: list(client.list()), kv_pb2.ListResponse()),
    "Submit": (lambda client: client.submit(REQUEST), executor_pb2.SubmitResponse()),
    "Invoke": (lambda client: client.invoke("f"), executor_pb2.InvokeResponse()),
}
WRITES: dict[str, Callable[[Any], Any]] = {
    "Put": lambda client: client.put("k", b"abc"),
    "Delete": lambda client: client.delete("k"),
    "UploadLibrary": lambda client: client.upload(b"ptx"),
}


@pytest.mark.parametrize("rpc", CALLS)
@pytest.mark.parametrize("failure", [AWAY, lose], ids=["refused", "lost"])
def test_what_may_be_made_again_is(connect: Any, server: FakeServer, rpc: str, failure: Any) -> None:
    call, answer = CALLS[rpc]
    for planned in (failure, failure, failure, answer):
        server.expect(rpc, planned)
    result = call(connect(retry=SOON))
    assert len(server.calls) == 4
    if rpc in ("Submit", "Invoke"):
        assert result.attempts == 4
        assert len({recorded.request.request_id for recorded in server.calls}) == 1
        assert len(server.calls[0].request.request_id) == 31


@pytest.mark.parametrize("rpc", CALLS)
def test_no_oftener_than_the_policy_says(connect: Any, server: FakeServer, rpc: str) -> None:
    for number in range(2):
        server.expect(rpc, Failure("UNAVAILABLE", f"failure {number}", "NOT_KNOWN_HERE"))
    with pytest.raises(errors.UnavailableError, match="failure 1"):
        CALLS[rpc][0](connect(retry=RetryPolicy(2, 0.001, 0.001)))


@pytest.mark.parametrize("rpc", [*CALLS, *WRITES])
def test_without_a_policy_once(connect: Any, server: FakeServer, rpc: str) -> None:
    server.expect(rpc, AWAY)
    with pytest.raises(errors.UnavailableError):
        (WRITES.get(rpc) or CALLS[rpc][0])(connect(retry=None))
    assert len(server.calls) == 1
    if rpc in ("Submit", "Invoke"):
        assert server.calls[0].request.request_id == ""


@pytest.mark.parametrize("rpc", WRITES)
@pytest.mark.parametrize("failure", [AWAY, lose], ids=["refused", "lost"])
def test_a_write_that_was_sent_is_not_made_again(connect: Any, server: FakeServer, rpc: str, failure: Any) -> None:
    server.expect(rpc, failure)
    with pytest.raises(errors.UnavailableError):
        WRITES[rpc](connect(retry=SOON))
    assert len(server.calls) == 1


def test_registering_is_made_again_only_where_the_server_refused(connect: Any, server: FakeServer) -> None:
    function = executor_pb2.Function(name="f", request=request_to_proto(REQUEST.spec))
    server.expect("RegisterFunction", AWAY)
    server.expect("RegisterFunction", executor_pb2.RegisterFunctionResponse(function=function))
    client = connect(retry=SOON)
    assert client.register("f", REQUEST).name == "f"
    server.expect("RegisterFunction", lose)
    with pytest.raises(errors.ConnectionLostError):
        client.register("f", REQUEST)


@pytest.mark.parametrize(
    "failure",
    [
        Failure("NOT_FOUND", "no", "KEY_NOT_FOUND"),
        Failure("ABORTED", "fault", "KERNEL_FAULT"),
        Failure("RESOURCE_EXHAUSTED", "full", "STORE_FULL"),
        Failure("RESOURCE_EXHAUSTED", "too large", "MESSAGE_TOO_LARGE"),
        Failure("INTERNAL", "defect", "INTERNAL"),
        Failure("INVALID_ARGUMENT", "again", "REQUEST_ID_REUSED"),
    ],
    ids=lambda failure: failure.reason,
)
def test_what_would_fail_again_is_not_tried_again(connect: Any, server: FakeServer, failure: Failure) -> None:
    server.expect("Submit", failure)
    with pytest.raises(errors.KaasError) as caught:
        connect(retry=SOON).submit(REQUEST)
    assert caught.value.reason == failure.reason


def test_a_full_queue(connect: Any, server: FakeServer) -> None:
    server.expect("Submit", Failure("RESOURCE_EXHAUSTED", "full", "QUEUE_FULL"))
    server.expect("Submit", executor_pb2.SubmitResponse(attempts=3))
    assert connect(retry=SOON).submit(REQUEST).attempts == 4


def test_an_id_of_the_callers_own(connect: Any, server: FakeServer) -> None:
    server.expect("Submit", AWAY)
    server.expect("Submit", executor_pb2.SubmitResponse())
    server.expect("Invoke", executor_pb2.InvokeResponse())
    client = connect(retry=SOON)
    client.submit(REQUEST, request_id="mine")
    client.invoke("f", request_id="mine too")
    assert [recorded.request.request_id for recorded in server.calls] == ["mine", "mine", "mine too"]


def test_an_id_on_a_stream(connect: Any, server: FakeServer) -> None:
    server.expect("InvokeStream", [])
    with connect().stream() as stream:
        for id in ("mine", ""):
            with_id = stream.submit("f", request_id=id)
    with pytest.raises(errors.CancelledError):
        with_id.result(30)
    ids = [message.invoke.request_id for message in server.only_call("InvokeStream").request]
    assert (ids[0], len(ids[1])) == ("mine", 31)


def test_nobody_there_fails_at_once(connect: Any, address: str) -> None:
    """A wrong address is not hidden behind waiting."""
    client = connect(retry=RetryPolicy(100, 3600, 3600))
    with pytest.raises(errors.ConnectionFailedError, match="is kaasd running") as caught:
        client.stat("k")
    assert not isinstance(caught.value, errors.ConnectionLostError)


@pytest.mark.parametrize("rpc", [*CALLS, *WRITES])
def test_a_server_that_was_there_may_come_back(connect: Any, address: str, rpc: str) -> None:
    """Nothing was sent meanwhile, so that any call may wait for it."""
    client = connect(retry=RetryPolicy(10_000, 0.02, 0.02), timeout=60)
    with FakeServer(address) as first:
        first.expect("Stat", kv_pb2.StatResponse(entry=entry_message("k")))
        client.stat("k")
    answers = {
        "Put": kv_pb2.PutResponse(entry=entry_message("k")),
        "Delete": kv_pb2.DeleteResponse(),
        "UploadLibrary": library_pb2.UploadLibraryResponse(library=library_pb2.Library(id="sha256:1")),
    }
    second = FakeServer(address)
    second.expect(rpc, answers[rpc] if rpc in WRITES else CALLS[rpc][1])
    tried = itertools.count(1)
    wait = RetryPolicy.wait

    def start_at_the_third(policy: RetryPolicy, failures: int, error: errors.KaasError) -> float:
        if next(tried) == 3:
            second.__enter__()
        return wait(policy, failures, error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RetryPolicy, "wait", start_at_the_third)
        (WRITES.get(rpc) or CALLS[rpc][0])(client)
    second.__exit__(None, None, None)
    assert next(tried) > 3


def test_a_value_that_came_in_part_is_not_asked_for_again(connect: Any, server: FakeServer) -> None:
    def break_off(request: Any, context: grpc.ServicerContext) -> Iterator[kv_pb2.GetResponse]:
        yield kv_pb2.GetResponse(entry=entry_message("k"))
        context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    server.expect("Get", break_off)
    with pytest.raises(errors.ConnectionLostError):
        connect(retry=SOON).get("k", into=io.BytesIO())


class TestWhatWasDropped:
    """A reply that was too large to be kept: its outputs are fetched."""

    REPLY = executor_pb2.SubmitResponse(versions={"result": 12, "b": 11}, outputs_dropped=True)

    def expect_value(self, server: FakeServer, version: int = 12) -> None:
        entry = entry_message("result")
        entry.version, entry.size_bytes = version, 4
        server.expect("Get", [kv_pb2.GetResponse(entry=entry), kv_pb2.GetResponse(chunk=b"\1\2\3\4")])

    def test_its_outputs_come_from_their_keys(self, connect: Any, server: FakeServer) -> None:
        server.expect("Submit", lose)
        server.expect("Submit", self.REPLY)
        self.expect_value(server)
        result = connect(retry=SOON).submit(REQUEST, returns=iter(["c"]))
        assert (result.outputs, result.outputs_dropped, result.attempts) == ({"c": b"\1\2\3\4"}, False, 2)
        asked = server.only_call("Get").request
        assert (asked.key, asked.offset_bytes, asked.size_bytes) == ("result", 0, 4)

    def test_of_a_function_too(self, connect: Any, server: FakeServer) -> None:
        function = executor_pb2.Function(name="f", request=request_to_proto(REQUEST.spec))
        for _ in range(2):
            server.expect("Invoke", executor_pb2.InvokeResponse(versions={"result": 12}, outputs_dropped=True))
            server.expect("GetFunction", executor_pb2.GetFunctionResponse(function=function))
        self.expect_value(server)
        client = connect(retry=SOON)
        assert client.invoke("f", returns=["c"]).outputs == {"c": b"\1\2\3\4"}
        assert client.invoke("f").outputs == {}

    @pytest.mark.parametrize(("returns", "why"), [(["a"], "was not stored"), (["c"], "was overwritten since")])
    def test_what_is_not_there_any_more(self, connect: Any, server: FakeServer, returns: list[str], why: str) -> None:
        server.expect("Submit", self.REPLY)
        if returns == ["c"]:
            self.expect_value(server, version=13)
        with pytest.raises(errors.OutputsDroppedError, match=why) as caught:
            connect(retry=SOON).submit(REQUEST, returns=returns)
        assert caught.value.metadata == {"buffer": returns[0]}

    def test_a_key_that_is_gone(self, connect: Any, server: FakeServer) -> None:
        server.expect("Submit", self.REPLY)
        server.expect("Get", Failure("NOT_FOUND", "no key", "KEY_NOT_FOUND"))
        with pytest.raises(errors.OutputsDroppedError, match="was overwritten or deleted since"):
            connect(retry=SOON).submit(REQUEST, returns=["c"])


class TestPolicy:
    def test_waits_grow_to_the_most(self) -> None:
        policy = RetryPolicy(initial_backoff=0.05, max_backoff=1.0, backoff_multiplier=2.0)
        error = errors.InternalError("")
        for failures, expected in [(1, 0.05), (2, 0.1), (3, 0.2), (5, 0.8), (6, 1.0), (1000, 1.0)]:
            waits = [policy.wait(failures, error) for _ in range(200)]
            assert min(waits) >= 0.8 * expected
            assert max(waits) <= 1.2 * expected
            assert max(waits) - min(waits) > 0.1 * expected, "clients that failed together do not come again together"

    def test_not_before_the_server_wants_it(self) -> None:
        error = errors.QueueFullError("")
        assert min(RetryPolicy().wait(1, error) for _ in range(50)) == error.retry_after_s == 0.1

    @pytest.mark.parametrize(
        "values",
        [{"max_attempts": 0}, {"initial_backoff": 0.0}, {"initial_backoff": 2.0}, {"backoff_multiplier": 0.5}],
    )
    def test_what_is_no_policy(self, values: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(values))):
            RetryPolicy(**values)

    def test_no_try_begins_behind_the_timeout(self) -> None:
        policy = RetryPolicy(initial_backoff=10, max_backoff=10)
        tries = Tries(policy, Repeat.ALWAYS, 5.0, was_reached=True)
        assert tries.again(errors.QueueFullError("")) is None
        tries = Tries(policy, Repeat.ALWAYS, 500.0, was_reached=True)
        wait = tries.again(errors.QueueFullError(""))
        assert wait is not None and 8 <= wait <= 12
        assert tries.timeout is not None and tries.timeout <= 500


def test_ids_are_all_different_and_grow() -> None:
    ids = [new_request_id() for _ in range(10_000)]
    assert len(set(ids)) == len(ids)
    assert ids[0][:11] <= ids[-1][:11]
    assert all(len(id) <= 128 for id in ids)


def test_a_forked_process_makes_other_ids() -> None:
    code = """
import os
from kaas_client._retry import new_request_id
new_request_id()
child = os.fork()
os.write(1, f"{new_request_id()} ".encode())
child and os.wait()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    one, other = done.stdout.split()
    assert one != other
