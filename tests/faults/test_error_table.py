"""Each row of the table of errors, through the real socket: the code, the reason, and the store as it was."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from examples.local_daemon import local_daemon
from kaas.v1 import admin_pb2, admin_pb2_grpc, executor_pb2, executor_pb2_grpc, kv_pb2, kv_pb2_grpc, types_pb2
from kaas_client import Client
from kaas_core.errors import (
    CancelledError,
    DeadlineExceededError,
    DrainingError,
    FunctionNotFoundError,
    InvalidArgumentError,
    KernelFaultError,
    OutOfDeviceMemoryError,
    QueueFullError,
    StoreFullError,
    UploadIncompleteError,
)
from tests.faults.support import (
    as_kaas_error,
    begin,
    contents,
    dot_request,
    fault_request,
    literal,
    put_dot_inputs,
    spin,
    use,
    wait_until,
)

OUTPUT = types_pb2.Access.ACCESS_OUTPUT
INPUT = types_pb2.Access.ACCESS_INPUT

Submit = Callable[..., executor_pb2.SubmitResponse]


@pytest.fixture
def small_daemon(library_root: Path) -> Iterator[str]:
    """A daemon of one's own, in which only one request may wait behind the two that a worker holds."""
    with local_daemon("--device", "emulator", "--library-root", str(library_root), "--max-queue", "1") as address:
        yield address


def test_status_carries_code_and_reason(address: str, library_root: Path) -> None:
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
        executor_pb2_grpc.ExecutorServiceStub(channel).Submit(dot_request(str(library_root / "missing.ptx")))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert as_kaas_error(caught.value, address).reason == "LIBRARY_NOT_FOUND"


@pytest.mark.parametrize("call", ["GetFunction", "DeleteFunction", "Invoke"])
def test_unknown_function(call: str, address: str) -> None:
    request = {
        "GetFunction": executor_pb2.GetFunctionRequest(name="nothing"),
        "DeleteFunction": executor_pb2.DeleteFunctionRequest(name="nothing"),
        "Invoke": executor_pb2.InvokeRequest(function="nothing"),
    }[call]
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
        getattr(executor_pb2_grpc.ExecutorServiceStub(channel), call)(request)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert isinstance(as_kaas_error(caught.value, address), FunctionNotFoundError)


def test_not_enough_device_memory(kaas: Client, submit: Submit, library_root: Path) -> None:
    put_dot_inputs(kaas)
    before = contents(kaas)
    message = dot_request(str(library_root / "dot.ptx"))
    message.request.buffers[2].size_bytes = 100 << 20
    with pytest.raises(OutOfDeviceMemoryError) as caught:
        submit(message)
    assert caught.value.metadata["asked_bytes"] == str((100 << 20) + 2 * 4096 + 4)
    assert caught.value.metadata["memory_bytes"] == str(64 << 20)
    assert contents(kaas) == before
    assert submit(dot_request(str(library_root / "dot.ptx"))).versions.keys() == {"c"}


def test_a_full_store_loses_nothing_and_can_be_emptied(kaas: Client) -> None:
    kaas.put("kept", b"kept")
    filled = []
    with pytest.raises(StoreFullError):
        for index in range(100):
            kaas.put(f"fill/{index}", bytes(8 << 20))
            filled.append(f"fill/{index}")
    assert 10 < len(filled) < 32
    assert kaas.get("kept") == b"kept"
    assert [entry.key for entry in kaas.list("fill/")] == sorted(filled)
    for key in filled:
        kaas.delete(key)
    kaas.put("again", bytes(8 << 20))
    kaas.delete("again")


@pytest.mark.parametrize(
    ("kernel", "arguments", "fault"),
    [
        ("writeAtKern", [literal("Q", uint_value=1), use("out", OUTPUT)], "CUDA_ERROR_ILLEGAL_ADDRESS"),
        ("writeAtKern", [literal("Q", uint_value=2**61), use("out", OUTPUT)], "CUDA_ERROR_ILLEGAL_ADDRESS"),
        ("misalignedKern", [use("out", OUTPUT)], "CUDA_ERROR_MISALIGNED_ADDRESS"),
        ("trapKern", [use("out", OUTPUT)], "CUDA_ERROR_LAUNCH_FAILED"),
        ("writeInputKern", [use("in", INPUT)], "KAAS_ERROR_WRITE_TO_INPUT"),
    ],
)
def test_a_kernel_that_faults(
    kernel: str, arguments: list[types_pb2.Argument], fault: str, kaas: Client, submit: Submit, library_root: Path
) -> None:
    kaas.put("in", bytes(8))
    kaas.put("out", b"as it was")
    before = contents(kaas)
    with pytest.raises(KernelFaultError) as caught:
        submit(
            fault_request(str(library_root / "faults.ptx"), kernel, *arguments, size_bytes=8 if kernel == "misalignedKern" else 4)
        )
    assert caught.value.metadata["fault"] == fault
    assert caught.value.metadata["kernel"] == kernel
    assert caught.value.metadata["kernel_index"] == "0"
    assert contents(kaas) == before


def test_a_fault_after_a_kernel_that_wrote_changes_nothing(kaas: Client, submit: Submit, library_root: Path) -> None:
    kaas.put("out", b"as it was")
    before = contents(kaas)
    message = fault_request(str(library_root / "faults.ptx"), "writeAtKern", literal("Q", uint_value=0), use("out", OUTPUT))
    trap = message.request.kernels.add()
    trap.CopyFrom(message.request.kernels[0])
    trap.name = "trapKern"
    del trap.arguments[0]
    with pytest.raises(KernelFaultError) as caught:
        submit(message)
    assert caught.value.metadata["kernel_index"] == "1"
    assert contents(kaas) == before


def test_a_running_kernel_is_stopped_at_its_deadline(kaas: Client, submit: Submit, library_root: Path) -> None:
    before = contents(kaas)
    pid = kaas.devices()[0].worker_pid
    with pytest.raises(DeadlineExceededError):
        submit(spin(library_root), timeout=0.5)
    put_dot_inputs(kaas)
    assert submit(dot_request(str(library_root / "dot.ptx"))).versions.keys() == {"c"}
    assert kaas.devices()[0].worker_pid == pid
    for key in ("a", "b", "c"):
        kaas.delete(key)
    assert contents(kaas) == {key: value for key, value in before.items() if key not in "abc"}


def test_deadlines_of_a_stream_are_answers_that_say_where_they_fell(address: str, kaas: Client, library_root: Path) -> None:
    with grpc.insecure_channel(address) as channel:
        stub = executor_pb2_grpc.ExecutorServiceStub(channel)
        stub.RegisterFunction(executor_pb2.RegisterFunctionRequest(name="spin", request=spin(library_root).request))
        invoke = executor_pb2.InvokeRequest(function="spin")
        messages = [
            executor_pb2.InvokeStreamRequest(id=index, invoke=invoke, timeout_ns=400_000_000 if index == 1 else 200_000_000)
            for index in (1, 2, 3)
        ]
        errors = {response.id: response.error for response in stub.InvokeStream(iter(messages), timeout=600)}
    assert {error.code for error in errors.values()} == {grpc.StatusCode.DEADLINE_EXCEEDED.value[0]}
    assert "running" in errors[1].message
    assert "queued" in errors[3].message


def test_a_full_queue_refuses_and_the_waiting_ones_go_on(small_daemon: str, library_root: Path) -> None:
    with Client(small_daemon) as kaas, grpc.insecure_channel(small_daemon) as channel:
        stub = executor_pb2_grpc.ExecutorServiceStub(channel)
        expected = put_dot_inputs(kaas)
        blocker = begin(stub, spin(library_root), timeout=600)
        wait_until(lambda: kaas.stats().devices[0].running == 1)
        waiting = [stub.Submit.future(dot_request(str(library_root / "dot.ptx")), timeout=600) for _ in range(2)]
        wait_until(lambda: kaas.stats().devices[0].queued == 2)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Submit(dot_request(str(library_root / "dot.ptx")), timeout=600)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        error = as_kaas_error(caught.value, small_daemon)
        assert isinstance(error, QueueFullError)
        assert error.retry_after_s
        blocker.cancel()
        assert all(call.result().versions["c"] for call in waiting)
        assert kaas.get("c", dtype="u4")[0] == expected


def test_draining_refuses_with_a_time_to_retry(small_daemon: str, library_root: Path) -> None:
    with grpc.insecure_channel(small_daemon) as channel:
        executor, admin = executor_pb2_grpc.ExecutorServiceStub(channel), admin_pb2_grpc.AdminServiceStub(channel)
        running = begin(executor, spin(library_root), timeout=600)
        wait_until(lambda: admin.GetStats(admin_pb2.GetStatsRequest()).devices[0].running == 1)
        drain = admin.Drain.future(admin_pb2.DrainRequest(), timeout=600)
        wait_until(lambda: admin.GetServerInfo(admin_pb2.GetServerInfoRequest()).draining)
        with pytest.raises(grpc.RpcError) as caught:
            executor.Submit(dot_request(str(library_root / "dot.ptx")))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        error = as_kaas_error(caught.value, small_daemon)
        assert isinstance(error, DrainingError)
        assert error.retry_after_s
        assert not drain.done()
        running.cancel()
        drain.result()


def test_a_drain_is_undone_while_requests_wait(kaas: Client, address: str, library_root: Path) -> None:
    expected = put_dot_inputs(kaas)
    with grpc.insecure_channel(address) as channel:
        executor, admin = executor_pb2_grpc.ExecutorServiceStub(channel), admin_pb2_grpc.AdminServiceStub(channel)
        running = begin(executor, spin(library_root), timeout=100)
        wait_until(lambda: kaas.stats().devices[0].running == 1)
        dot = dot_request(str(library_root / "dot.ptx"))
        dot.return_buffers.append("c")
        calls = [executor.Submit.future(dot, timeout=100)]
        wait_until(lambda: kaas.stats().devices[0].queued == 1)
        drain = admin.Drain.future(admin_pb2.DrainRequest(), timeout=100)
        wait_until(lambda: kaas.health() == "NOT_SERVING")
        kaas.resume()
        wait_until(lambda: kaas.health() == "SERVING")
        assert drain.code() is grpc.StatusCode.CANCELLED
        assert isinstance(as_kaas_error(drain, address), CancelledError)
        calls.append(executor.Submit.future(dot, timeout=100))
        wait_until(lambda: kaas.stats().devices[0].queued == 2)
        running.cancel()
        for call in calls:
            assert int.from_bytes(call.result().outputs["c"], "little") == expected


@pytest.mark.parametrize("key", ["", "k" * 401, "ü" * 201], ids=["empty", "too long", "too long in UTF-8"])
def test_a_bad_key(key: str, address: str, kaas: Client) -> None:
    before = contents(kaas)
    for call in (
        lambda: kaas.put(key, b"x"),
        lambda: kaas.get(key),
        lambda: kaas.stat(key),
        lambda: kaas.delete(key),
    ):
        with pytest.raises(InvalidArgumentError, match="key"):
            call()
    assert contents(kaas) == before


def test_the_longest_key(kaas: Client) -> None:
    kaas.put("ü" * 200, b"x")
    assert kaas.get("ü" * 200) == b"x"
    kaas.delete("ü" * 200)


def test_a_key_that_is_no_utf8(address: str, kaas: Client) -> None:
    before = contents(kaas)
    raw = kv_pb2.StatRequest(key="xy").SerializeToString().replace(b"xy", b"\xff\xfe")
    with grpc.insecure_channel(address) as channel:
        stat = channel.unary_unary("/kaas.v1.KvService/Stat")
        with pytest.raises(grpc.RpcError) as caught:
            stat(raw)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "UTF-8" in caught.value.details()
    assert contents(kaas) == before


@pytest.mark.parametrize("sent", [0, 1, 600_000, 3_000_000, 6_000_000], ids=lambda size: f"{size} of 5000000 bytes")
def test_an_upload_that_is_not_what_it_said(sent: int, address: str, kaas: Client) -> None:
    kaas.put("upload", b"as it was")
    before = contents(kaas)

    def messages() -> Iterator[kv_pb2.PutRequest]:
        yield kv_pb2.PutRequest(header=kv_pb2.PutHeader(key="upload", size_bytes=5_000_000))
        for start in range(0, sent, 500_000):
            yield kv_pb2.PutRequest(chunk=bytes(min(500_000, sent - start)))

    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
        kv_pb2_grpc.KvServiceStub(channel).Put(messages())
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert isinstance(as_kaas_error(caught.value, address), UploadIncompleteError)
    assert contents(kaas) == before


def test_an_upload_cut_off_half_way_stores_nothing(address: str, kaas: Client) -> None:
    kaas.put("upload", b"as it was")
    before = contents(kaas)
    half_sent, go_on = threading.Event(), threading.Event()

    def messages() -> Iterator[kv_pb2.PutRequest]:
        yield kv_pb2.PutRequest(header=kv_pb2.PutHeader(key="upload", size_bytes=40 << 20))
        for _ in range(40):
            yield kv_pb2.PutRequest(chunk=bytes(512 << 10))
        half_sent.set()
        go_on.wait()

    with grpc.insecure_channel(address) as channel:
        call = kv_pb2_grpc.KvServiceStub(channel).Put.future(messages())
        half_sent.wait()
        call.cancel()
        go_on.set()
    assert contents(kaas) == before
    # What had arrived is dropped, so that the same may be tried again and again in a store of 256 MiB.
    kaas.put("upload", bytes(40 << 20))
    kaas.delete("upload")
