"""Every command of ``kaasctl``: what it asks of the server, what it prints, and in which files it leaves what."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from kaas.v1 import admin_pb2, executor_pb2, kv_pb2, library_pb2, trace_pb2, types_pb2
from kaas_client import Kernel, Request, inp, out
from tests.cli.conftest import Done, succeed
from tests.client.fake_server import FakeServer
from tests.client.test_calls import (
    CHECKED,
    COMPACTED,
    FUNCTION_MESSAGE,
    LIBRARY_ID,
    NOON_MESSAGE,
    REQUEST,
    REQUEST_MESSAGE,
    TIMING_MESSAGE,
    entry_message,
)
from tests.client.test_transfers import backup_reply

Kaasctl = Callable[..., Done]

RESULT_JSON = {
    "device": "emulator",
    "versions": {"result": 12},
    "timing": {"queue_ns": 1, "plan_ns": 2, "load_ns": 3, "run_ns": 4, "commit_ns": 5, "total_ns": 6},
}


def get_reply(content: bytes) -> list[kv_pb2.GetResponse]:
    header = kv_pb2.GetResponse(entry=entry_message("k", size_bytes=len(content)))
    return [header, kv_pb2.GetResponse(chunk=content)] if content else [header]


# kv


def test_kv_put_a_file(kaasctl: Kaasctl, server: FakeServer) -> None:
    Path("value").write_bytes(b"abc")
    server.expect("Put", kv_pb2.PutResponse(entry=entry_message("k")))
    done = succeed(kaasctl("kv", "put", "k", "value"))
    assert done.text.split() == ["key", "k", "size", "3", "B", "version", "9", "update", "time", "2026-01-02", "12:00:00"]
    header, chunk = server.only_call("Put").request
    assert (header.header.key, chunk.chunk) == ("k", b"abc")


def test_kv_put_standard_input(kaasctl: Kaasctl, server: FakeServer) -> None:
    server.expect("Put", kv_pb2.PutResponse(entry=entry_message("k")))
    done = succeed(kaasctl("-o", "json", "kv", "put", "k", "-", stdin=b"\0\xffabc"))
    assert json.loads(done.text) == {"key": "k", "size_bytes": 3, "version": 9, "update_time": "2026-01-02T12:00:00+00:00"}
    assert [message.chunk for message in server.only_call("Put").request[1:]] == [b"\0\xffabc"]


@pytest.mark.parametrize("target", [[], ["-"]])
def test_kv_get_to_standard_output_is_raw(kaasctl: Kaasctl, server: FakeServer, target: list[str]) -> None:
    server.expect("Get", get_reply(b"\0\xff\n"))
    assert succeed(kaasctl("kv", "get", "k", *target)).stdout == b"\0\xff\n"


def test_kv_get_to_a_file(kaasctl: Kaasctl, server: FakeServer) -> None:
    server.expect("Get", get_reply(b"new"))
    assert succeed(kaasctl("kv", "get", "k", "out")).stdout == b""
    assert Path("out").read_bytes() == b"new"
    assert [path.name for path in Path().iterdir()] == ["out"]


def test_kv_get_a_range(kaasctl: Kaasctl, server: FakeServer) -> None:
    server.expect("Get", get_reply(b"cd"))
    assert succeed(kaasctl("kv", "get", "k", "--offset", "2", "--size", "2")).stdout == b"cd"
    assert (server.calls[0].request.offset_bytes, server.calls[0].request.size_bytes) == (2, 2)


def test_kv_ls(kaasctl: Kaasctl, server: FakeServer) -> None:
    for _ in range(2):
        server.expect("List", kv_pb2.ListResponse(entries=[entry_message("a/1", 1536), entry_message("a/2", 3 << 30, 10)]))
    assert succeed(kaasctl("kv", "ls", "a/")).text.splitlines() == [
        "KEY  SIZE     VERSION  UPDATE TIME",
        "a/1  1.5 KiB  9        2026-01-02 12:00:00",
        "a/2  3.0 GiB  10       2026-01-02 12:00:00",
    ]
    listed = json.loads(succeed(kaasctl("-o", "json", "kv", "ls")).text)
    assert [(entry["key"], entry["size_bytes"]) for entry in listed] == [("a/1", 1536), ("a/2", 3 << 30)]
    assert [call.request.prefix for call in server.calls] == ["a/", ""]


def test_kv_ls_of_nothing(kaasctl: Kaasctl, server: FakeServer) -> None:
    server.expect("List", kv_pb2.ListResponse())
    assert succeed(kaasctl("kv", "ls")).text.split() == ["KEY", "SIZE", "VERSION", "UPDATE", "TIME"]
    server.expect("List", kv_pb2.ListResponse())
    assert json.loads(succeed(kaasctl("-o", "json", "kv", "ls")).text) == []


def test_kv_ls_shows_what_is_damaged(kaasctl: Kaasctl, server: FakeServer) -> None:
    for _ in range(2):
        server.expect("List", kv_pb2.ListResponse(entries=[entry_message("a", 1536), kv_pb2.Entry(key="b")]))
    assert succeed(kaasctl("kv", "ls")).text.splitlines() == [
        "KEY  SIZE     VERSION  UPDATE TIME          DAMAGED",
        "a    1.5 KiB  9        2026-01-02 12:00:00  no",
        "b    -        -        -                    yes",
    ]
    good, bad = json.loads(succeed(kaasctl("-o", "json", "kv", "ls")).text)
    assert (good["key"], good["size_bytes"], good["damaged"]) == ("a", 1536, False)
    assert bad == {"key": "b", "size_bytes": None, "version": None, "update_time": None, "damaged": True}


def test_keys_cannot_steer_the_terminal(kaasctl: Kaasctl, server: FakeServer) -> None:
    for _ in range(2):
        server.expect("List", kv_pb2.ListResponse(entries=[entry_message("\x1b[2Jé\n[bold]")]))
    assert succeed(kaasctl("kv", "ls")).text.splitlines()[1].startswith("\\x1b[2Jé\\n[bold]  3 B")
    assert json.loads(succeed(kaasctl("-o", "json", "kv", "ls")).text)[0]["key"] == "\x1b[2Jé\n[bold]"


def test_a_long_key_is_not_cut(kaasctl: Kaasctl, server: FakeServer) -> None:
    server.expect("List", kv_pb2.ListResponse(entries=[entry_message("k" * 400)]))
    assert "k" * 400 in succeed(kaasctl("kv", "ls")).text


def test_kv_stat_and_rm(kaasctl: Kaasctl, server: FakeServer) -> None:
    server.expect("Stat", kv_pb2.StatResponse(entry=entry_message("k")))
    assert json.loads(succeed(kaasctl("-o", "json", "kv", "stat", "k")).text)["version"] == 9
    for _ in range(2):
        server.expect("Delete", kv_pb2.DeleteResponse())
    assert succeed(kaasctl("kv", "rm", "a", "b")).text == ""
    assert [call.request.key for call in server.calls if call.rpc == "Delete"] == ["a", "b"]


# library


def test_library_upload_prints_the_id(kaasctl: Kaasctl, server: FakeServer) -> None:
    Path("dot.ptx").write_bytes(b".version")
    for arguments, printed in (([], f"{LIBRARY_ID}\n"), (["-o", "json"], {"id": LIBRARY_ID})):
        server.expect("UploadLibrary", library_pb2.UploadLibraryResponse(library=library_pb2.Library(id=LIBRARY_ID)))
        text = succeed(kaasctl(*arguments, "library", "upload", "./dot.ptx")).text
        assert (text if isinstance(printed, str) else json.loads(text)) == printed
    header, chunk = server.calls[0].request
    assert (header.header.file_name, chunk.chunk) == ("dot.ptx", b".version")


def test_library_inspect(kaasctl: Kaasctl, server: FakeServer) -> None:
    kernel = library_pb2.KernelInfo(
        name="prodKern",
        parameter_size_bytes=[8, 4],
        static_shared_memory_bytes=2048,
        max_threads_per_block=1024,
        parameter_alignment_bytes=[8, 4],
        parameter_names=["x", "n"],
        cluster=types_pb2.Dim3(x=2, y=1, z=1),
    )
    reply = library_pb2.InspectLibraryResponse(
        id=LIBRARY_ID, kind=library_pb2.LIBRARY_KIND_PTX, kernels=[kernel], device="emulator"
    )
    for _ in range(2):
        server.expect("InspectLibrary", reply)
    lines = succeed(kaasctl("library", "inspect", LIBRARY_ID)).text.splitlines()
    assert [line.split() for line in lines[:3]] == [["id", LIBRARY_ID], ["kind", "ptx"], ["device", "emulator"]]
    assert lines[4:] == [
        "NAME      PARAMETER SIZE  STATIC SHARED MEMORY  MAX THREADS PER BLOCK  PARAMETER ALIGNMENT  PARAMETER NAMES  "
        "REQUIRED BLOCK  CLUSTER",
        "prodKern  8, 4            2.0 KiB               1024                   8, 4                 x, n             "
        "-               2, 1, 1",
    ]
    assert json.loads(succeed(kaasctl("-o", "json", "library", "inspect", LIBRARY_ID)).text) == {
        "id": LIBRARY_ID,
        "kind": "ptx",
        "kernels": [
            {
                "name": "prodKern",
                "parameter_size_bytes": [8, 4],
                "static_shared_memory_bytes": 2048,
                "max_threads_per_block": 1024,
                "parameter_alignment_bytes": [8, 4],
                "parameter_names": ["x", "n"],
                "required_block": None,
                "cluster": [2, 1, 1],
            }
        ],
        "device": "emulator",
    }


def test_library_ls_and_rm(kaasctl: Kaasctl, server: FakeServer) -> None:
    library = library_pb2.Library(
        id=LIBRARY_ID, file_name="dot.ptx", size_bytes=5, kind=library_pb2.LIBRARY_KIND_PTX, create_time=NOON_MESSAGE
    )
    server.expect("ListLibraries", library_pb2.ListLibrariesResponse(libraries=[library]))
    assert succeed(kaasctl("library", "ls")).text.splitlines()[1].split()[:3] == [LIBRARY_ID, "dot.ptx", "ptx"]
    server.expect("DeleteLibrary", library_pb2.DeleteLibraryResponse())
    succeed(kaasctl("library", "rm", LIBRARY_ID))
    assert server.only_call("DeleteLibrary").request.id == LIBRARY_ID


def test_library_ls_shows_what_is_damaged(kaasctl: Kaasctl, server: FakeServer) -> None:
    for _ in range(2):
        server.expect(
            "ListLibraries",
            library_pb2.ListLibrariesResponse(libraries=[library_pb2.Library(id=LIBRARY_ID, damaged=True)]),
        )
    heading, row = succeed(kaasctl("library", "ls")).text.splitlines()
    assert (heading.split()[-1], row.split()) == ("DAMAGED", [LIBRARY_ID, "-", "-", "-", "-", "yes"])
    (listed,) = json.loads(succeed(kaasctl("-o", "json", "library", "ls")).text)
    assert listed == {
        "id": LIBRARY_ID,
        "file_name": None,
        "size_bytes": None,
        "kind": None,
        "create_time": None,
        "damaged": True,
    }


# submit and function


def submit_reply() -> executor_pb2.SubmitResponse:
    return executor_pb2.SubmitResponse(versions={"result": 12}, device="emulator", timing=TIMING_MESSAGE)


@pytest.mark.parametrize("source", ["request.json", "-"])
def test_submit(kaasctl: Kaasctl, server: FakeServer, source: str) -> None:
    Path("request.json").write_text(REQUEST.to_json())
    server.expect("Submit", submit_reply())
    done = succeed(kaasctl("-o", "json", "submit", source, "--device", "emulator", stdin=REQUEST.to_json().encode()))
    sent = server.only_call("Submit").request
    assert sent.request_id
    assert sent == executor_pb2.SubmitRequest(request=REQUEST_MESSAGE, device="emulator", request_id=sent.request_id)
    assert json.loads(done.text) == RESULT_JSON


def test_submit_prints_a_table(kaasctl: Kaasctl, server: FakeServer) -> None:
    Path("request.json").write_text(REQUEST.to_json())
    server.expect("Submit", submit_reply())
    lines = [line.split() for line in succeed(kaasctl("submit", "request.json")).text.splitlines()]
    assert lines[:3] == [["device", "emulator"], ["versions", "result", "12"], ["timing", "queue", "1", "ns"]]


def test_submit_puts_inputs_first_and_gets_outputs_last(kaasctl: Kaasctl, server: FakeServer) -> None:
    arguments = [inp("a", 16), inp("b", 2), out("c", 4, key="result")]
    Path("request.json").write_text(Request([Kernel(LIBRARY_ID, "add", grid=1, block=1, args=arguments)]).to_json())
    Path("a.bin").write_bytes(bytes(16))
    server.expect("Put", kv_pb2.PutResponse(entry=entry_message("a")))
    server.expect("Put", kv_pb2.PutResponse(entry=entry_message("b")))
    server.expect("Submit", submit_reply())
    server.expect("Get", get_reply(b"\x01\0\0\0"))
    succeed(kaasctl("submit", "request.json", "--input", "a=a.bin", "--input", "b=-", "--output", "result=c.bin", stdin=b"in"))
    assert [call.rpc for call in server.calls] == ["Put", "Put", "Submit", "Get"]
    assert [(call.request[0].header.key, call.request[1].chunk) for call in server.calls[:2]] == [("a", bytes(16)), ("b", b"in")]
    assert Path("c.bin").read_bytes() == b"\x01\0\0\0"


def test_an_output_on_standard_output_is_alone(kaasctl: Kaasctl, server: FakeServer) -> None:
    Path("request.json").write_text(REQUEST.to_json())
    server.expect("Submit", submit_reply())
    server.expect("Get", get_reply(b"\x01\0\0\0"))
    assert succeed(kaasctl("submit", "request.json", "--output", "result=-")).stdout == b"\x01\0\0\0"


def traced(left_out: int = 0) -> trace_pb2.Trace:
    span = trace_pb2.Span(kind=trace_pb2.SPAN_KIND_STAGE, name="request", duration_ns=6)
    return trace_pb2.Trace(spans=[span], launches_left_out=left_out)


def test_a_trace_goes_to_its_file(kaasctl: Kaasctl, server: FakeServer) -> None:
    Path("request.json").write_text(REQUEST.to_json())
    server.expect("Submit", executor_pb2.SubmitResponse(trace=traced()))
    server.expect("Invoke", executor_pb2.InvokeResponse(trace=traced()))
    for command in (["submit", "request.json"], ["function", "invoke", "f"]):
        done = succeed(kaasctl(*command, "--trace", "trace.json"))
        assert done.text.startswith("device")
        events = json.loads(Path("trace.json").read_text())["traceEvents"]
        assert [event["name"] for event in events if event["ph"] == "X"] == ["request"]
        Path("trace.json").unlink()
    assert server.only_call("Submit").request.trace
    assert server.only_call("Invoke").request.trace


def test_a_trace_on_standard_output_is_alone(kaasctl: Kaasctl, server: FakeServer) -> None:
    server.expect("Invoke", executor_pb2.InvokeResponse(trace=traced()))
    assert json.loads(succeed(kaasctl("function", "invoke", "f", "--trace", "-")).text)["displayTimeUnit"] == "ns"


def test_what_a_trace_lacks_is_said(kaasctl: Kaasctl, server: FakeServer) -> None:
    server.expect("Invoke", executor_pb2.InvokeResponse(trace=traced(left_out=17)))
    done = kaasctl("function", "invoke", "f", "--trace", "trace.json")
    assert (done.code, done.stderr) == (0, "the trace lacks the last 17 launches\n")


def test_function_register(kaasctl: Kaasctl, server: FakeServer) -> None:
    Path("request.json").write_text(REQUEST.to_json())
    server.expect("RegisterFunction", executor_pb2.RegisterFunctionResponse(function=FUNCTION_MESSAGE))
    assert succeed(kaasctl("function", "register", "f", "request.json")).text == ""
    assert server.calls[0].request == executor_pb2.RegisterFunctionRequest(name="f", request=REQUEST_MESSAGE)


def test_function_invoke(kaasctl: Kaasctl, server: FakeServer) -> None:
    Path("a.bin").write_bytes(b"sixteen bytes ..")
    server.expect(
        "Invoke",
        executor_pb2.InvokeResponse(outputs={"c": b"done"}, versions={"result": 12}, device="emulator", timing=TIMING_MESSAGE),
    )
    options = ["--input", "a=a.bin", "--key", "c=elsewhere=x", "--output", "c=c.bin"]
    assert json.loads(succeed(kaasctl("-o", "json", "function", "invoke", "f", *options)).text) == RESULT_JSON
    sent = server.only_call("Invoke").request
    assert sent.request_id
    assert sent == executor_pb2.InvokeRequest(
        function="f",
        bindings={"a": executor_pb2.Binding(value=b"sixteen bytes .."), "c": executor_pb2.Binding(key="elsewhere=x")},
        return_buffers=["c"],
        request_id=sent.request_id,
    )
    assert Path("c.bin").read_bytes() == b"done"


def test_function_ls_and_rm(kaasctl: Kaasctl, server: FakeServer) -> None:
    for _ in range(2):
        server.expect("ListFunctions", executor_pb2.ListFunctionsResponse(functions=[FUNCTION_MESSAGE]))
    assert succeed(kaasctl("function", "ls", "f")).text.splitlines() == [
        "NAME  KERNELS  ITERATIONS  CREATE TIME",
        "f     copy     1           2026-01-02 12:00:00",
    ]
    (listed,) = json.loads(succeed(kaasctl("-o", "json", "function", "ls")).text)
    assert (listed["name"], listed["request"]) == ("f", json.loads(REQUEST.to_json()))
    server.expect("DeleteFunction", executor_pb2.DeleteFunctionResponse())
    succeed(kaasctl("function", "rm", "f"))
    assert server.only_call("DeleteFunction").request.name == "f"


def test_function_ls_shows_what_is_damaged(kaasctl: Kaasctl, server: FakeServer) -> None:
    for _ in range(2):
        reply = executor_pb2.ListFunctionsResponse(functions=[FUNCTION_MESSAGE], damaged_names=["a", "g"])
        server.expect("ListFunctions", reply)
    assert succeed(kaasctl("function", "ls")).text.splitlines() == [
        "NAME  KERNELS  ITERATIONS  CREATE TIME          DAMAGED",
        "a     -        -           -                    yes",
        "f     copy     1           2026-01-02 12:00:00  no",
        "g     -        -           -                    yes",
    ]
    listed = json.loads(succeed(kaasctl("-o", "json", "function", "ls")).text)
    assert [(function["name"], function["damaged"], function["request"] is None) for function in listed] == [
        ("a", True, True),
        ("f", False, False),
        ("g", True, True),
    ]


# the server


def test_device_ls(kaasctl: Kaasctl, server: FakeServer) -> None:
    device = admin_pb2.Device(
        name="cuda:0", model="NVIDIA H100", compute_capability="9.0", memory_bytes=80 << 30, state=admin_pb2.WORKER_STATE_READY
    )
    for _ in range(2):
        server.expect("ListDevices", admin_pb2.ListDevicesResponse(devices=[device]))
    row = succeed(kaasctl("device", "ls")).text.splitlines()[1]
    assert row.split() == ["cuda:0", "NVIDIA", "H100", "9.0", "ready", "0", "B", "80.0", "GiB", "0", "0"]
    (listed,) = json.loads(succeed(kaasctl("-o", "json", "device", "ls")).text)
    assert (listed["memory_bytes"], listed["max_grid"]) == (80 << 30, [0, 0, 0])


def test_stats(kaasctl: Kaasctl, server: FakeServer) -> None:
    reply = admin_pb2.GetStatsResponse(
        uptime=Duration(seconds=3725),
        devices=[admin_pb2.DeviceStats(device="emulator", requests_succeeded=5, run_time=Duration(nanos=1_500_000))],
        store_keys=2,
        failures_by_reason={"KERNEL_FAULT": 3},
    )
    for _ in range(2):
        server.expect("GetStats", reply)
    lines = succeed(kaasctl("stats")).text.splitlines()
    assert ["uptime", "1", "h", "2", "min"] in [line.split() for line in lines]
    assert ["failures", "by", "reason", "KERNEL_FAULT", "3"] in [line.split() for line in lines]
    assert lines[-1].split() == ["emulator", "5", "0", "0", "0", "0", "1.5", "ms"]
    printed = json.loads(succeed(kaasctl("-o", "json", "stats")).text)
    assert printed["uptime_ns"] == 3725 * 10**9
    assert printed["devices"][0]["requests_succeeded"] == 5
    assert printed["failures_by_reason"] == {"KERNEL_FAULT": 3}


# store


def test_store_backup(kaasctl: Kaasctl, server: FakeServer) -> None:
    for _ in range(2):
        server.expect("BackupStore", backup_reply(b"a tar ", b"file"))
    assert succeed(kaasctl("store", "backup", "all.tar")).stdout == b""
    assert Path("all.tar").read_bytes() == b"a tar file"
    assert Path("all.tar").stat().st_mode & 0o777 == 0o600
    assert succeed(kaasctl("store", "backup", "-")).stdout == b"a tar file"


def test_store_check_of_a_store_that_is_whole(kaasctl: Kaasctl, server: FakeServer) -> None:
    server.expect("CheckStore", CHECKED[2:])
    assert succeed(kaasctl("store", "check")).text.splitlines() == ["entries  3", "size     3.0 KiB", "damaged  -"]


def test_store_check_of_a_store_that_is_damaged(kaasctl: Kaasctl, server: FakeServer) -> None:
    for _ in range(2):
        server.expect("CheckStore", CHECKED)
    done = kaasctl("store", "check")
    assert (done.code, done.stderr) == (1, "")
    assert done.text.splitlines() == [
        "entries  3",
        "size     3.0 KiB",
        "",
        "KIND   KEY  PROBLEM",
        "value  a    chunk 1 of 4 is missing",
    ]
    done = kaasctl("-o", "json", "store", "check")
    assert done.code == 1
    assert json.loads(done.text) == {
        "entries": 3,
        "size_bytes": 3072,
        "damaged": [{"kind": "value", "key": "a", "problem": "chunk 1 of 4 is missing"}],
    }


def test_store_compact(kaasctl: Kaasctl, server: FakeServer) -> None:
    for _ in range(2):
        server.expect("CompactStore", COMPACTED)
    assert succeed(kaasctl("store", "compact")).text.splitlines() == [
        "file before  5.0 MiB",
        "file after   4.0 MiB",
        "disk before  3.0 MiB",
        "disk after   2.0 MiB",
        "only end     yes",
    ]
    assert json.loads(succeed(kaasctl("-o", "json", "store", "compact")).text)["disk_after_bytes"] == 2 << 20


# how things are asked for


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(kaasctl: Kaasctl, shell: str) -> None:
    script = succeed(kaasctl("completion", shell)).text
    assert "_KAASCTL_COMPLETE" in script and "kaasctl" in script


def test_the_output_may_be_a_variable(kaasctl: Kaasctl, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAAS_OUTPUT", "json")
    server.expect("List", kv_pb2.ListResponse())
    assert json.loads(succeed(kaasctl("kv", "ls")).text) == []


def test_the_timeout_is_for_each_call(kaasctl: Kaasctl, server: FakeServer) -> None:
    server.expect("List", kv_pb2.ListResponse())
    succeed(kaasctl("--timeout", "100", "kv", "ls"))
    remaining: Any = server.calls[0].time_remaining_s
    assert remaining is not None and remaining < 200
