"""How ``kaasctl`` fails: its exit codes, what it says, and that it leaves no half-written file."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from grpc_status import rpc_status

from kaas.v1 import executor_pb2, kv_pb2
from kaas_client import Kernel, Request, inout, inp, out, tmp
from tests.cli.conftest import Done
from tests.client.fake_server import Failure, FakeServer
from tests.client.test_calls import LIBRARY_ID, REQUEST, entry_message

Kaasctl = Callable[..., Done]


def cut_short(content: bytes, failure: Failure) -> Callable[..., Any]:
    """Answer a ``Get`` with some bytes of a longer value, then a failure."""

    def answer(request: Any, context: Any) -> Iterator[kv_pb2.GetResponse]:
        yield kv_pb2.GetResponse(entry=entry_message("k", size_bytes=100))
        yield kv_pb2.GetResponse(chunk=content)
        context.abort_with_status(rpc_status.to_status(failure.status()))

    return answer


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (Failure("NOT_FOUND", "no key 'k'", "KEY_NOT_FOUND"), 4, "kaasctl: no key 'k'"),
        (Failure("DEADLINE_EXCEEDED", "past it", "DEADLINE_EXCEEDED"), 6, "kaasctl: timed out: past it"),
        (Failure("RESOURCE_EXHAUSTED", "the store is full", "STORE_FULL"), 1, "kaasctl: the store is full"),
        (Failure("INTERNAL", "a defect", "INTERNAL"), 1, "kaasctl: a defect"),
    ],
)
def test_a_failed_call(kaasctl: Kaasctl, server: FakeServer, failure: Failure, code: int, message: str) -> None:
    server.expect("Stat", failure)
    assert kaasctl("kv", "stat", "k") == Done(code, b"", f"{message}\n")


def test_a_call_that_the_server_refuses_for_now_is_made_again(kaasctl: Kaasctl, server: FakeServer) -> None:
    server.expect("Stat", Failure("RESOURCE_EXHAUSTED", "too many", "QUEUE_FULL"))
    server.expect("Stat", kv_pb2.StatResponse(entry=entry_message("k")))
    assert kaasctl("kv", "stat", "k").code == 0
    for _ in range(4):
        server.expect("Stat", Failure("RESOURCE_EXHAUSTED", "too many", "QUEUE_FULL"))
    assert kaasctl("kv", "stat", "k") == Done(1, b"", "kaasctl: too many\n")


def test_no_server(kaasctl: Kaasctl, address: str) -> None:
    done = kaasctl("kv", "ls")
    assert (done.code, done.stdout) == (3, b"")
    assert done.stderr == f"kaasctl: cannot reach a server at {address}: No such file or directory; is kaasd running?\n"


def test_the_own_version_needs_no_server(kaasctl: Kaasctl) -> None:
    done = kaasctl("version")
    assert (done.code, done.text.split()[0], done.text.split()[-1]) == (3, "client", "-")


def test_a_call_past_the_timeout(kaasctl: Kaasctl, server: FakeServer) -> None:
    def wait(request: Any, context: Any) -> executor_pb2.SubmitResponse:
        ended = threading.Event()
        context.add_callback(ended.set)
        ended.wait(60)
        return executor_pb2.SubmitResponse()

    Path("request.json").write_text(REQUEST.to_json())
    server.expect("Submit", wait)
    done = kaasctl("--timeout", "0.05", "submit", "request.json")
    assert (done.code, done.stdout) == (6, b"")
    assert done.stderr == "kaasctl: timed out: no answer came before the deadline of the call\n"


def test_violations_stand_one_a_line(kaasctl: Kaasctl, server: FakeServer) -> None:
    Path("request.json").write_text(REQUEST.to_json())
    violations = [("kernels[0].arguments[1]", "the parameter has 4 bytes"), ("kernels[0].block", "over the device's limit")]
    server.expect("Submit", Failure("INVALID_ARGUMENT", "two", "INVALID_REQUEST", violations=violations))
    assert kaasctl("submit", "request.json") == Done(
        1,
        b"",
        "kaasctl: the request is not valid:\n"
        "  kernels[0].arguments[1]: the parameter has 4 bytes\n"
        "  kernels[0].block: over the device's limit\n",
    )


def test_a_fault_is_told_with_its_report(kaasctl: Kaasctl, server: FakeServer) -> None:
    Path("request.json").write_text(REQUEST.to_json())
    metadata = {
        "fault": "CUDA_ERROR_ILLEGAL_ADDRESS",
        "kernel": "copy",
        "kernel_index": "0",
        "report": "a read of 4 bytes\nat line 17 of copy\n",
    }
    server.expect("Submit", Failure("ABORTED", "kernel copy faulted", "KERNEL_FAULT", metadata))
    assert kaasctl("submit", "request.json") == Done(
        1,
        b"",
        "kaasctl: kernel copy faulted\n"
        "  fault: CUDA_ERROR_ILLEGAL_ADDRESS\n"
        "  index in the request: 0\n"
        "  a read of 4 bytes\n"
        "  at line 17 of copy\n",
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not JSON: line 1"),
        (b"[]", "must be an object"),
        (b'{"kernels": [{"name": "k"}]}', "kernels[0].library: "),
        (REQUEST.to_json().replace('"copy"', "5").encode(), "kernels[0].name: "),
        (b'{"kernels": [{"library": "dot.ptx", "name": "k", "grid": 1, "block": 1}]}', "kernels[0].library: "),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
@pytest.mark.parametrize("command", [["submit"], ["function", "register", "f"]])
def test_a_bad_request_is_a_failure_before_any_call(
    kaasctl: Kaasctl, server: FakeServer, command: list[str], content: bytes, said: str
) -> None:
    Path("request.json").write_bytes(content)
    Path("a").write_bytes(b"x")
    done = kaasctl(*command, "request.json", *(["--input", "a=a"] if command == ["submit"] else []))
    assert (done.code, done.stdout) == (1, b"")
    assert said in done.stderr
    assert server.calls == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nonsense"],
        ["nonsense"],
        ["kv", "put", "k"],
        ["kv", "put", "k", "missing"],
        ["kv", "put", "k", "."],
        ["kv", "get", "k", "missing/out"],
        ["kv", "get", "k", "."],
        ["kv", "get", "k", "--offset", "-1"],
        ["-o", "xml", "kv", "ls"],
        ["--address", "nonsense", "kv", "ls"],
        ["--timeout", "0", "kv", "ls"],
        ["--timeout", "soon", "kv", "ls"],
        ["submit", "missing.json"],
        ["submit", "request.json", "--input", "a"],
        ["submit", "request.json", "--input", "=a"],
        ["submit", "request.json", "--input", "a="],
        ["submit", "request.json", "--input", "a=missing"],
        ["submit", "request.json", "--input", "c=request.json"],
        ["submit", "request.json", "--input", "a=request.json", "--input", "a=request.json"],
        ["submit", "-", "--input", "a=-"],
        ["submit", "request.json", "--output", "c=missing/c"],
        ["submit", "request.json", "--output", "c=-", "--output", "d=-"],
        ["submit", "request.json", "--input", "a=request.json", "--trace", "missing/trace.json"],
        ["submit", "request.json", "--trace", "."],
        ["submit", "request.json", "--trace", ""],
        ["submit", "request.json", "--output", "c=-", "--trace", "-"],
        ["function", "invoke", "f", "--trace", "missing/trace.json"],
        ["function", "invoke", "f", "--input", "a=request.json", "--key", "a=k"],
        ["function", "invoke", "f", "--input", "a=missing"],
        ["library", "upload", "missing"],
        ["completion", "csh"],
    ],
)
def test_wrong_usage_and_unreadable_files(kaasctl: Kaasctl, server: FakeServer, arguments: list[str]) -> None:
    Path("request.json").write_text(REQUEST.to_json())
    done = kaasctl(*arguments)
    assert (done.code, done.stdout) == (2, b"")
    assert done.stderr
    assert server.calls == []


def test_an_input_that_the_request_does_not_read(kaasctl: Kaasctl, server: FakeServer) -> None:
    """A key whose value the request writes into, or keeps around what it writes, is one that it reads."""
    arguments = [
        inp("a", 16),
        inout("b", 8, key="B"),
        out("c", 4),
        out("d", 4, offset=4),
        out("e", 4, ephemeral=True),
        tmp("t", 8),
    ]
    Path("request.json").write_text(Request([Kernel(LIBRARY_ID, "k", grid=1, block=1, args=arguments)]).to_json())
    Path("value").write_bytes(b"x")
    for key in ("q", "b", "c", "e", "t"):
        done = kaasctl("submit", "request.json", "--input", f"{key}=value")
        assert (done.code, done.stdout, server.calls) == (2, b"", [])
        assert f"'{key}'" in done.stderr and "a, B, d" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "form"),
    [
        (["submit", "request.json", "--input", "a"], "KEY=FILE"),
        (["submit", "request.json", "--output", "a"], "KEY=FILE"),
        (["function", "invoke", "f", "--input", "a"], "BUFFER=FILE"),
        (["function", "invoke", "f", "--key", "a"], "BUFFER=KEY"),
        (["function", "invoke", "f", "--output", "a"], "BUFFER=FILE"),
    ],
)
def test_a_value_of_another_form(kaasctl: Kaasctl, arguments: list[str], form: str) -> None:
    assert f"'a' is not of the form {form}" in kaasctl(*arguments).stderr


def test_a_request_that_fails_leaves_no_trace(kaasctl: Kaasctl, server: FakeServer) -> None:
    server.expect("Invoke", Failure("NOT_FOUND", "no function", "FUNCTION_NOT_FOUND"))
    assert kaasctl("function", "invoke", "f", "--trace", "trace.json").code == 4
    assert list(Path().iterdir()) == []


def test_a_server_without_traces(kaasctl: Kaasctl, server: FakeServer) -> None:
    server.expect("Invoke", executor_pb2.InvokeResponse(outputs={"c": b"done"}))
    done = kaasctl("function", "invoke", "f", "--output", "c=c.bin", "--trace", "trace.json")
    assert (done.code, done.stdout) == (1, b"")
    assert "sent no trace" in done.stderr
    assert [(path.name, path.read_bytes()) for path in Path().iterdir()] == [("c.bin", b"done")]


def test_a_failed_get_leaves_the_file_as_it_was(kaasctl: Kaasctl, server: FakeServer) -> None:
    Path("out").write_bytes(b"old")
    server.expect("Get", cut_short(b"new", Failure("INTERNAL", "a defect", "INTERNAL")))
    assert kaasctl("kv", "get", "k", "out").code == 1
    assert [(path.name, path.read_bytes()) for path in Path().iterdir()] == [("out", b"old")]


def test_a_failed_get_leaves_no_file(kaasctl: Kaasctl, server: FakeServer) -> None:
    server.expect("Get", Failure("NOT_FOUND", "no key", "KEY_NOT_FOUND"))
    assert kaasctl("kv", "get", "k", "out").code == 4
    assert list(Path().iterdir()) == []


def test_a_replaced_file_keeps_its_mode_and_its_link(kaasctl: Kaasctl, server: FakeServer) -> None:
    Path("real").write_bytes(b"old")
    Path("real").chmod(0o640)
    Path("link").symlink_to("real")
    server.expect("Get", [kv_pb2.GetResponse(entry=entry_message("k")), kv_pb2.GetResponse(chunk=b"new")])
    assert kaasctl("kv", "get", "k", "link").code == 0
    assert Path("link").is_symlink()
    assert (Path("real").read_bytes(), Path("real").stat().st_mode & 0o777) == (b"new", 0o640)


def test_a_device_is_written_to_as_it_is(kaasctl: Kaasctl, server: FakeServer) -> None:
    server.expect("Get", [kv_pb2.GetResponse(entry=entry_message("k")), kv_pb2.GetResponse(chunk=b"new")])
    assert kaasctl("kv", "get", "k", "/dev/null") == Done(0, b"", "")
    assert Path("/dev/null").is_char_device()


def test_a_disk_that_is_full(kaasctl: Kaasctl, server: FakeServer) -> None:
    server.expect("Get", [kv_pb2.GetResponse(entry=entry_message("k")), kv_pb2.GetResponse(chunk=b"new")])
    assert kaasctl("kv", "get", "k", "/dev/full") == Done(1, b"", "kaasctl: No space left on device\n")


def test_a_failed_backup_leaves_the_one_before(kaasctl: Kaasctl, server: FakeServer) -> None:
    Path("all.tar").write_bytes(b"the one of yesterday")
    server.expect("BackupStore", Failure("RESOURCE_EXHAUSTED", "a backup is under way already", "QUEUE_FULL"))
    assert kaasctl("store", "backup", "all.tar") == Done(1, b"", "kaasctl: a backup is under way already\n")
    assert [(path.name, path.read_bytes()) for path in Path().iterdir()] == [("all.tar", b"the one of yesterday")]


def test_a_backup_in_a_folder_that_is_missing(kaasctl: Kaasctl, server: FakeServer) -> None:
    assert kaasctl("store", "backup", "nowhere/all.tar").code == 2
