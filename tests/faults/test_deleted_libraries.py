"""A library that was deleted serves no request any more, whatever a worker has made of it before."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from kaas.v1 import executor_pb2, executor_pb2_grpc, types_pb2
from kaas_client import Client
from kaas_core.errors import LibraryNotFoundError
from tests.faults.conftest import KERNELS
from tests.faults.support import as_kaas_error, begin, dot_request, fault_request, own_daemon, put_dot_inputs, use, wait_until


class Caller:
    """A client with the dot product of a library that it uploads, submitted and as a function."""

    def __init__(self, address: str, kaas: Client, channel: grpc.Channel) -> None:
        self.address = address
        self.kaas = kaas
        self.stub = executor_pb2_grpc.ExecutorServiceStub(channel)
        self.expected = put_dot_inputs(kaas)
        self.library = self.upload()
        self.request = dot_request(self.library)
        self.stub.RegisterFunction(executor_pb2.RegisterFunctionRequest(name="dot", request=self.request.request), timeout=600)

    def upload(self) -> str:
        return self.kaas.upload(KERNELS / "dot.ptx")

    def submit(self) -> grpc.Future:
        return self.stub.Submit.future(self.request, timeout=600)

    def invoke(self) -> grpc.Future:
        return self.stub.Invoke.future(executor_pb2.InvokeRequest(function="dot"), timeout=600)

    def assert_it_runs(self) -> None:
        for call in (self.submit, self.invoke):
            self.kaas.put("c", b"old.")
            assert "c" in call().result().versions
            assert self.kaas.get("c", dtype="u4")[0] == self.expected

    def assert_it_is_not_found(self) -> None:
        for call in (self.submit(), self.invoke()):
            self.assert_not_found(call)

    def assert_not_found(self, call: grpc.Future) -> None:
        assert call.code() is grpc.StatusCode.NOT_FOUND
        assert isinstance(as_kaas_error(call.exception(), self.address), LibraryNotFoundError)


@pytest.fixture
def caller(library_root: Path) -> Iterator[Caller]:
    with (
        own_daemon("emulator", library_root) as address,
        Client(address) as kaas,
        grpc.insecure_channel(address) as channel,
    ):
        yield Caller(address, kaas, channel)


def test_it_is_not_found_until_it_is_uploaded_again(caller: Caller) -> None:
    for _ in range(3):
        caller.assert_it_runs()
        caller.kaas.delete_library(caller.library)
        caller.assert_it_is_not_found()
        assert caller.upload() == caller.library


def test_a_worker_that_is_restarted_does_not_find_it_either(caller: Caller) -> None:
    caller.assert_it_runs()
    os.kill(caller.kaas.devices()[0].worker_pid, signal.SIGKILL)
    caller.kaas.delete_library(caller.library)
    wait_until(lambda: caller.kaas.devices()[0].restarts == 1)  # Until then a call may be lost with the old one.
    caller.assert_it_is_not_found()
    caller.upload()
    caller.assert_it_runs()


def test_a_delete_while_a_request_runs(caller: Caller, library_root: Path) -> None:
    """What is sent behind it does not find the library; the request that runs goes on, though its own library is deleted."""
    caller.assert_it_runs()
    faults = caller.kaas.upload(library_root / "faults.ptx")
    endless = fault_request(faults, "spinKern", use("out", types_pb2.Access.ACCESS_OUTPUT))
    running = begin(caller.stub, endless, timeout=10)
    wait_until(lambda: caller.kaas.stats().devices[0].running == 1)
    caller.kaas.delete_library(caller.library)
    caller.kaas.delete_library(faults)
    waiting = [caller.submit(), caller.invoke(), caller.stub.Submit.future(endless, timeout=600)]
    assert not running.done()
    assert running.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    for call in waiting:
        caller.assert_not_found(call)
    caller.upload()
    caller.assert_it_runs()


def test_the_same_code_as_a_file_goes_on(caller: Caller, library_root: Path) -> None:
    file = library_root / "dot.ptx"
    request = dot_request(str(file))
    for _ in range(2):
        assert "c" in caller.stub.Submit(request, timeout=600).versions
        caller.assert_it_runs()
    caller.kaas.delete_library(caller.library)
    assert "c" in caller.stub.Submit(request, timeout=600).versions
    caller.assert_it_is_not_found()
