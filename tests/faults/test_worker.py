"""A worker that dies takes only its own request with it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from examples.local_daemon import local_daemon
from kaas.v1 import executor_pb2, executor_pb2_grpc
from kaas_client import Client
from kaas_core.errors import DeadlineExceededError, QuarantinedError, RequestNotFoundError
from tests.faults.support import (
    as_kaas_error,
    begin,
    children,
    contents,
    dot_request,
    front_of,
    own_daemon,
    put_dot_inputs,
    spin,
    wait_until,
)


@pytest.fixture
def daemon(library_root: Path) -> Iterator[str]:
    with own_daemon("emulator", library_root) as address:
        yield address


def test_what_a_killed_worker_ran_and_what_waited_there_run_on_its_successor(daemon: str, library_root: Path) -> None:
    with Client(daemon) as kaas, grpc.insecure_channel(daemon) as channel:
        stub = executor_pb2_grpc.ExecutorServiceStub(channel)
        expected = put_dot_inputs(kaas)
        before = contents(kaas)
        running = begin(stub, spin(library_root), timeout=600)
        wait_until(lambda: kaas.stats().devices[0].running == 1)
        waiting = [stub.Submit.future(dot_request(str(library_root / "dot.ptx")), timeout=600) for _ in range(3)]
        wait_until(lambda: kaas.stats().devices[0].queued == 3)
        pid = kaas.devices()[0].worker_pid
        os.kill(pid, signal.SIGKILL)

        assert all("c" in call.result().versions for call in waiting)
        assert kaas.get("c", dtype="u4")[0] == expected
        wait_until(lambda: [request.state for request in kaas.requests()] == ["running"])
        assert not running.done()
        running.cancel()
        assert {key: value for key, value in contents(kaas).items() if key != "c"} == before
        (device,) = kaas.devices()
        assert (device.worker_pid != pid, device.restarts, device.state) == (True, 1, "ready")


def test_a_request_that_costs_several_workers_is_refused_and_others_are_not(daemon: str, library_root: Path) -> None:
    with Client(daemon) as kaas, grpc.insecure_channel(daemon) as channel:
        stub = executor_pb2_grpc.ExecutorServiceStub(channel)
        put_dot_inputs(kaas)
        poison = begin(stub, spin(library_root), timeout=600)
        killed = kill_workers_of(poison, kaas)
        assert killed >= 3
        errors = [poison.exception(), stub.Submit.future(spin(library_root), timeout=600).exception()]
        for error in errors:
            assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
            refused = as_kaas_error(error, daemon)
            assert isinstance(refused, QuarantinedError)
            assert refused.metadata["workers"] == "3"
        assert "c" in stub.Submit(dot_request(str(library_root / "dot.ptx")), timeout=600).versions
        assert kaas.devices()[0].restarts == 1  # the others were its own


def test_a_refused_function_cannot_be_registered_again_and_runs_again_once_it_is_released(
    daemon: str, library_root: Path
) -> None:
    register = executor_pb2.RegisterFunctionRequest(name="spin", request=spin(library_root).request)
    invoke = executor_pb2.InvokeRequest(function="spin")
    with Client(daemon) as kaas, grpc.insecure_channel(daemon) as channel:
        stub = executor_pb2_grpc.ExecutorServiceStub(channel)
        stub.RegisterFunction(register)
        assert list(kaas.quarantine()) == []
        kill_workers_of(stub.Invoke.future(invoke, timeout=600), kaas)
        (listed,) = kaas.quarantine()
        assert (listed.workers, listed.last_fault, listed.functions) == (3, "the worker's process ended", ("spin",))
        with pytest.raises(grpc.RpcError) as caught:
            stub.RegisterFunction(register)
        refused = as_kaas_error(caught.value, daemon)
        assert isinstance(refused, QuarantinedError)
        assert refused.metadata["request"] == listed.id

        kaas.release_quarantine(listed.id)
        assert list(kaas.quarantine()) == []
        with pytest.raises(RequestNotFoundError):
            kaas.release_quarantine(listed.id)
        stub.RegisterFunction(register)
        running = stub.Invoke.future(invoke, timeout=600)
        wait_until(lambda: [request.state for request in kaas.requests()] == ["running"])
        running.cancel()


def kill_workers_of(poison: grpc.Future, kaas: Client) -> int:
    """Kill each process that runs a request, until the request is given up; return how many these were."""
    front, killed = front_of(kaas), set[int]()
    while not poison.done():
        (device,) = kaas.devices()
        if [request.state for request in kaas.requests()] == ["running"] and device.state == "ready":
            # The first time its worker, then that of suspects.
            runs = {device.worker_pid} if not killed else children(front) - {device.worker_pid}
            for pid in runs - killed:
                os.kill(pid, signal.SIGKILL)
            killed |= runs
        time.sleep(0.01)  # leaves the machine to workers that come up
    return len(killed)


def test_an_idle_worker_is_replaced_again_and_again(daemon: str, library_root: Path) -> None:
    with Client(daemon) as kaas, grpc.insecure_channel(daemon) as channel:
        stub = executor_pb2_grpc.ExecutorServiceStub(channel)
        put_dot_inputs(kaas)
        for round_ in (1, 2):
            os.kill(kaas.devices()[0].worker_pid, signal.SIGKILL)
            wait_until(lambda count=round_: kaas.devices()[0].restarts == count)
            assert "c" in stub.Submit(dot_request(str(library_root / "dot.ptx")), timeout=600).versions


def test_a_worker_that_heeds_no_stop_is_replaced_at_the_deadline(daemon: str, library_root: Path) -> None:
    with Client(daemon) as kaas, grpc.insecure_channel(daemon) as channel:
        stub = executor_pb2_grpc.ExecutorServiceStub(channel)
        expected = put_dot_inputs(kaas)
        os.kill(kaas.devices()[0].worker_pid, signal.SIGSTOP)
        stuck = stub.Submit.future(dot_request(str(library_root / "dot.ptx")), timeout=0.5)
        wait_until(lambda: kaas.stats().devices[0].running == 1)
        waiting = stub.Submit.future(dot_request(str(library_root / "dot.ptx")), timeout=600)
        assert stuck.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "c" in waiting.result().versions
        assert kaas.get("c", dtype="u4")[0] == expected
        assert kaas.devices()[0].restarts == 1


def test_a_worker_that_stands_still_is_replaced_though_nobody_waits_for_it(daemon: str, library_root: Path) -> None:
    with Client(daemon) as kaas, grpc.insecure_channel(daemon) as channel:
        put_dot_inputs(kaas)
        os.kill(kaas.devices()[0].worker_pid, signal.SIGSTOP)
        wait_until(lambda: kaas.devices()[0].restarts == 1)
        stub = executor_pb2_grpc.ExecutorServiceStub(channel)
        assert "c" in stub.Submit(dot_request(str(library_root / "dot.ptx")), timeout=600).versions


def test_a_known_request_runs_anew_when_its_library_file_has_changed(daemon: str, library_root: Path) -> None:
    """The worker has given up what it made of the request, which must come to it once more."""
    changing = library_root / "changing.ptx"
    text = (library_root / "dot.ptx").read_text()
    multiplication, addition = "mul.lo.s32", "add.s32"
    assert text.count(multiplication) == 1
    with Client(daemon) as kaas, grpc.insecure_channel(daemon) as channel:
        stub = executor_pb2_grpc.ExecutorServiceStub(channel)
        of_products = put_dot_inputs(kaas)
        of_sums = (kaas.get("a", dtype="u4") + kaas.get("b", dtype="u4")).sum(dtype="u4")
        for content, expected in ((text, of_products), (text.replace(multiplication, addition), of_sums)) * 2:
            changing.write_text(content)
            for _ in range(3):
                stub.Submit(dot_request(str(changing)), timeout=600)
                assert kaas.get("c", dtype="u4")[0] == expected


def test_the_longest_run_time_is_a_deadline_of_every_call(library_root: Path) -> None:
    options = ["--device", "emulator", "--library-root", str(library_root), "--log-level", "ERROR", "--max-run-time", "400ms"]
    with local_daemon(*options) as address, grpc.insecure_channel(address) as channel:
        stub = executor_pb2_grpc.ExecutorServiceStub(channel)
        for timeout in (None, 100):
            with pytest.raises(grpc.RpcError) as caught:
                stub.Submit(spin(library_root), timeout=timeout)
            assert isinstance(as_kaas_error(caught.value, address), DeadlineExceededError)


def test_health_is_that_of_the_worker(daemon: str, library_root: Path) -> None:
    with Client(daemon) as kaas, grpc.insecure_channel(daemon) as channel:
        answers = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="kaas.v1.ExecutorService"))
        assert next(answers).status == health_pb2.HealthCheckResponse.SERVING
        os.kill(kaas.devices()[0].worker_pid, signal.SIGKILL)
        assert next(answers).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert next(answers).status == health_pb2.HealthCheckResponse.SERVING
        put_dot_inputs(kaas)
        stub = executor_pb2_grpc.ExecutorServiceStub(channel)
        assert "c" in stub.Submit(dot_request(str(library_root / "dot.ptx")), timeout=600).versions
        answers.cancel()


def test_workers_end_with_their_daemon(library_root: Path) -> None:
    with local_daemon("--device", "emulator") as address, Client(address) as kaas:
        pid = kaas.devices()[0].worker_pid
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
