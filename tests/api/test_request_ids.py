"""``request_id`` over a real socket: who runs, who waits, and who is answered with what another call got."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from kaas.v1 import executor_pb2
from kaas_core import errors
from kaasd.ipc.replies import pack_reply
from kaasd.store.base import Namespace, Write
from tests.api.support import WAIT_S, FakeDispatcher, Held, Running, failure, product_request, running_server
from tests.api.test_executor import A, key, register, value
from tests.api.test_invoke_stream import Stream, stream_failure

NOTHING_STORED = executor_pb2.InvokeResponse(outputs={"c": b"\1\0\0\0"}, device="cuda:1", printed="hello")
STORED = executor_pb2.InvokeResponse(outputs={"c": b"\2\0\0\0"}, versions={"c": 12})


def submission(request_id: str = "id", **fields: object) -> executor_pb2.SubmitRequest:
    return executor_pb2.SubmitRequest(request=product_request(), request_id=request_id, **fields)


def executed(server: Running) -> int:
    return sum(call.method == "execute" for call in server.dispatcher.calls)


def keep(server: Running, reply: executor_pb2.InvokeResponse, request_id: str, content: bytes, *keys: str) -> int:
    """Store a reply as a worker does, behind the values of ``keys``; return its version."""
    writes = [Write(name, [b"value"]) for name in keys]
    packed = pack_reply(content, keys, lambda message: message.MergeFrom(reply))
    writes.append(Write(f"default/{request_id}", [packed], namespace=Namespace.REPLIES, must_be_new=True))
    return server.store.commit(writes).result(WAIT_S)[writes[-1].key].version


def content_of(server: Running, request: executor_pb2.SubmitRequest) -> bytes:
    """Return the fingerprint of a request, which fails meanwhile."""
    server.dispatcher.expect("execute", errors.QueueFullError("not now"))
    assert failure(lambda: server.stubs.executor.Submit(request)).reason == "QUEUE_FULL"
    return server.dispatcher.calls[-1].arguments["reply_key"].fingerprint


def test_without_an_id_each_call_runs(server: Running) -> None:
    server.dispatcher.expect("execute", NOTHING_STORED, NOTHING_STORED)
    for _ in range(2):
        server.stubs.executor.Submit(executor_pb2.SubmitRequest(request=product_request()))
    assert all("reply_key" not in call.arguments for call in server.dispatcher.calls)


def test_one_that_stored_nothing_is_answered_from_memory(server: Running) -> None:
    register(server)
    server.dispatcher.expect("execute", NOTHING_STORED)
    request = executor_pb2.InvokeRequest(function="f", request_id="id", return_buffers=["c"])
    first = server.stubs.executor.Invoke(request)
    assert first == NOTHING_STORED
    assert server.stubs.executor.Invoke(request) == first
    assert executed(server) == 1
    assert server.store.stats().used_bytes == 4096  # the function


def test_one_that_is_stored_is_answered_from_there(server: Running) -> None:
    """Whoever stored it: another worker, below another front."""
    request = submission(return_buffers=["c"])
    content = content_of(server, request)
    reply = executor_pb2.InvokeResponse(outputs={"c": b"kept"}, device="cuda:1")
    version = keep(server, reply, "id", content, "c", "b", "c")
    answer = server.stubs.executor.Submit(request)
    assert dict(answer.outputs) == {"c": b"kept"}
    assert dict(answer.versions) == {"c": version - 1, "b": version - 2}
    assert (answer.device, answer.attempts, answer.outputs_dropped) == ("cuda:1", 1, False)


def test_while_the_server_drains_too(server: Running) -> None:
    content = content_of(server, submission())
    keep(server, STORED, "id", content, "c")
    server.dispatcher.draining = True
    assert server.stubs.executor.Submit(submission()).outputs["c"] == b"\2\0\0\0"
    assert failure(lambda: server.stubs.executor.Submit(submission("another"))).reason == "DRAINING"


@pytest.mark.parametrize("where", ["memory", "store"])
def test_other_content_is_refused(server: Running, where: str) -> None:
    if where == "memory":
        server.dispatcher.expect("execute", NOTHING_STORED)
        server.stubs.executor.Submit(submission())
    else:
        keep(server, STORED, "id", content_of(server, submission()), "c")
    refused = failure(lambda: server.stubs.executor.Submit(submission(return_buffers=["c"])))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
    assert refused.message == "request_id: 'id' was used for a call with other content; make a new one for each call"
    assert server.stubs.executor.Submit(submission()).attempts in (0, 1)


def test_what_content_is(server: Running) -> None:
    """Everything that decides what happens; and not how long it may take, or what is noted meanwhile."""
    register(server)
    register(server, "same")
    fields = [
        {},
        {"bindings": {"a": value(A)}},
        {"bindings": {"a": value(bytes(16))}},
        {"bindings": {"a": key("a")}},
        {"bindings": {"c": key("a")}},
        {"bindings": {"a": key("b"), "c": key("a")}},
        {"return_buffers": ["c"]},
        {"return_buffers": ["a", "c"]},
        {"device": "cuda:1"},
    ]
    for one in fields:
        server.dispatcher.expect("execute", errors.QueueFullError(""))
        failure(lambda one=one: server.stubs.executor.Invoke(executor_pb2.InvokeRequest(function="f", request_id="id", **one)))
    contents = [call.arguments["reply_key"].fingerprint for call in server.dispatcher.calls if call.method == "execute"]
    assert len(set(contents)) == len(fields)
    for same in ({"trace": True}, {"function": "same"}, {"return_buffers": ["c", "a", "c"]}):
        server.dispatcher.expect("execute", errors.QueueFullError(""))
        request = executor_pb2.InvokeRequest(**{"function": "f", "request_id": "id", **same})
        failure(lambda request=request: server.stubs.executor.Invoke(request, timeout=50))
        expected = contents[7] if "return_buffers" in same else contents[0]
        assert server.dispatcher.calls[-1].arguments["reply_key"].fingerprint == expected


def test_failures_are_not_kept(server: Running) -> None:
    server.dispatcher.expect("execute", errors.KernelFaultError("fault"), NOTHING_STORED)
    assert failure(lambda: server.stubs.executor.Submit(submission())).reason == "KERNEL_FAULT"
    # What failed may come again as something else.
    assert server.stubs.executor.Submit(submission(return_buffers=["c"])).printed == "hello"


def test_an_id_of_too_many_bytes(server: Running) -> None:
    refused = failure(lambda: server.stubs.executor.Submit(submission("ä" * 64 + "b")))
    assert (refused.code, refused.metadata["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, "request_id")
    server.dispatcher.expect("execute", NOTHING_STORED)
    server.stubs.executor.Submit(submission("ä" * 64))


class TestWhileOneRuns:
    """A second call of its id."""

    def start(self, server: Running, *first: object) -> tuple[Held, Future[executor_pb2.InvokeResponse]]:
        """Start a call, and a second one behind it; return what runs, and the second one's answer."""
        register(server)
        held = Held(NOTHING_STORED)
        server.dispatcher.expect("execute", held, *first)
        self.request = executor_pb2.InvokeRequest(function="f", request_id="id", return_buffers=["c"])
        self.first = server.stubs.executor.Invoke.future(self.request)
        assert held.started.wait(WAIT_S)
        second = ThreadPoolExecutor(1).submit(server.stubs.executor.Invoke, self.request)
        self.until_waiting(server, 1)
        return held, second

    def until_waiting(self, server: Running, calls: int) -> None:
        """Return when so many calls wait; each brings no bytes, so it is their future that shows them."""
        end = time.monotonic() + WAIT_S
        while True:
            ends = server.server._core.request_ids._ends.values()
            # Each waiter shields the future, which adds a callback to it.
            if sum(len(future._callbacks or ()) for future in ends) >= calls:
                return
            assert time.monotonic() < end
            time.sleep(0.002)

    def test_it_gets_the_same_answer(self, server: Running) -> None:
        held, second = self.start(server)
        held.release()
        assert second.result(WAIT_S) == self.first.result(WAIT_S) == NOTHING_STORED
        assert executed(server) == 1

    def test_it_runs_where_that_fails(self, server: Running) -> None:
        held, second = self.start(server, NOTHING_STORED)
        held.result = None  # what the servicer makes of that is a defect, and an error of the first alone
        held.release()
        assert failure(lambda: self.first.result(WAIT_S)).reason == "INTERNAL"
        assert second.result(WAIT_S) == NOTHING_STORED
        assert executed(server) == 2

    def test_it_runs_where_that_is_cancelled(self, server: Running) -> None:
        held, second = self.start(server, NOTHING_STORED)
        self.first.cancel()
        assert second.result(WAIT_S) == NOTHING_STORED
        assert held.cancelled.is_set()
        assert executed(server) == 2

    def test_with_other_content_it_is_refused(self, server: Running) -> None:
        held, second = self.start(server)
        other = executor_pb2.InvokeRequest(function="f", request_id="id")
        assert failure(lambda: server.stubs.executor.Invoke(other)).reason == "REQUEST_ID_REUSED"
        held.release()
        second.result(WAIT_S)

    def test_its_own_deadline_ends_its_wait(self, server: Running) -> None:
        held, second = self.start(server)
        stream = Stream(server)
        stream.invoke(1, request_id="id", return_buffers=["c"], timeout_ns=1)
        assert stream_failure(next(stream.answers)).reason == "DEADLINE_EXCEEDED"
        stream.end()
        held.release()
        assert second.result(WAIT_S) == NOTHING_STORED

    def test_its_inputs_wait_for_room(self, tmp_path: Path) -> None:
        with running_server(tmp_path, FakeDispatcher(), max_queued_bytes=15) as server:
            held, second = self.start(server)
            stream = Stream(server)
            server.dispatcher.expect("execute", inputs := Held(NOTHING_STORED))
            for number in (1, 2):
                stream.invoke(number, request_id="large", bindings={"a": value(A)})
            assert inputs.started.wait(WAIT_S)
            refused = next(stream.answers)
            assert (refused.id, stream_failure(refused).reason) == (2, "QUEUE_FULL")
            inputs.release()
            assert next(stream.answers).response == NOTHING_STORED
            stream.end()
            held.release()
            second.result(WAIT_S)


def test_on_a_stream(server: Running) -> None:
    register(server)
    server.dispatcher.expect("execute", NOTHING_STORED)
    stream = Stream(server)
    for number in range(5):
        stream.invoke(number, request_id="id", return_buffers=["c"])
    stream.end()
    answers = list(stream.answers)
    assert sorted(answer.id for answer in answers) == [0, 1, 2, 3, 4]
    assert all(answer.response == NOTHING_STORED for answer in answers)
    assert executed(server) == 1


def test_an_answer_that_is_too_old_is_as_if_not_there(server: Running) -> None:
    """It may be there still, between two sweeps."""
    version = keep(server, STORED, "id", content_of(server, submission()), "c")
    server.server._core.request_ids._too_old = version
    server.dispatcher.expect("execute", NOTHING_STORED)
    assert server.stubs.executor.Submit(submission(return_buffers=["c"])).printed == "hello"
    with server.store.snapshot() as snapshot:
        assert snapshot.list(namespace=Namespace.REPLIES) == []


def test_a_clock_that_jumps_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_server(tmp_path, FakeDispatcher()) as server:
        content = content_of(server, submission())
        keep(server, STORED, "before", content, "c")
        for jump_s in (86_400, -86_400):
            now = time.time_ns()
            monkeypatch.setattr(time, "time_ns", lambda now=now, jump_s=jump_s: now + jump_s * 10**9)
            keep(server, STORED, f"at {jump_s}", content, "c")
    with running_server(tmp_path, FakeDispatcher()) as server:
        for request_id in ("before", "at 86400", "at -86400"):
            assert server.stubs.executor.Submit(submission(request_id)).outputs["c"] == b"\2\0\0\0"


def test_old_answers_go_by_themselves(tmp_path: Path) -> None:
    """One that was left by another daemon, and one that has come since."""
    with running_server(tmp_path, FakeDispatcher()) as server:
        keep(server, STORED, "first", b"", "c")
    with running_server(tmp_path, FakeDispatcher(), request_id_window_s=0.05) as server:
        keep(server, STORED, "second", b"", "c")
        end = time.monotonic() + WAIT_S
        while True:
            with server.store.snapshot() as snapshot:
                if not snapshot.list(namespace=Namespace.REPLIES):
                    break
            assert time.monotonic() < end
            time.sleep(0.01)


def test_a_damaged_answer_is_no_answer_and_nothing_runs(server: Running) -> None:
    content = content_of(server, submission())
    keep(server, STORED, "id", content, "c")
    server.store.expire(0, 10, 1 << 30, 600).result()  # moves it into its tree
    with server.store._environment.write() as txn:
        database = server.store._environment.entries[Namespace.REPLIES]
        raw = bytearray(txn.get(b"default/id", db=database))
        raw[-1] ^= 1
        txn.put(b"default/id", bytes(raw), db=database)
    refused = failure(lambda: server.stubs.executor.Submit(submission()))
    assert (refused.code, refused.reason) == (grpc.StatusCode.DATA_LOSS, "DATA_DAMAGED")
    assert "with another request_id it runs again" in refused.message


def test_replies_keep_no_values_out(tmp_path: Path) -> None:
    """They take a sixteenth of the store at most, and that is seen to long before the next sweep is due."""
    limit_bytes = 8 << 20
    with running_server(tmp_path, FakeDispatcher(), limit_bytes) as server:
        large = executor_pb2.InvokeResponse(outputs={"c": bytes(20_000)})
        for number in range(100):
            keep(server, large, f"{number:03}", b"", "c")
        for number in range(60):
            server.dispatcher.expect("execute", STORED)
            server.stubs.executor.Submit(submission(f"new {number}"))
        end = time.monotonic() + WAIT_S
        while True:
            with server.store.snapshot() as snapshot:
                replies = snapshot.list(namespace=Namespace.REPLIES)
            if sum(reply.size_bytes for reply in replies) <= limit_bytes // 16:
                break
            assert time.monotonic() < end
            time.sleep(0.01)
        assert replies[-1].key == "default/099"
        assert len(replies) > 20
