"""A kernel that never ends, on a GPU that no other process can take from it, and the requests beside it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from kaas.v1 import executor_pb2, executor_pb2_grpc
from kaas_client import Client, Kernel, Request, inp, out, u64
from kaas_client.errors import DeadlineExceededError
from kaas_core.protobuf import request_to_proto
from tests.faults.conftest import KERNELS
from tests.faults.support import dot_request, own_daemon, put_dot_inputs, spin, wait_until

pytestmark = pytest.mark.gpu


@pytest.fixture
def address(library_root: Path) -> Iterator[str]:
    with own_daemon("cuda:0", library_root) as address:
        yield address


def test_its_end_costs_its_neighbours_no_error(address: str, library_root: Path) -> None:
    with Client(address) as kaas, grpc.insecure_channel(address) as channel:
        stub = executor_pb2_grpc.ExecutorServiceStub(channel)
        expected = put_dot_inputs(kaas)
        stuck = stub.Submit.future(spin(library_root), timeout=0.5)
        neighbour = stub.Submit.future(spin(library_root), timeout=8)
        wait_until(lambda: kaas.stats().devices[0].running == 2)
        assert stuck.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until(lambda: kaas.devices()[0].restarts == 1 and kaas.stats().devices[0].running == 1)
        assert not neighbour.done()
        assert "c" in stub.Submit(dot_request(str(library_root / "dot.ptx")), timeout=600).versions
        assert neighbour.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert kaas.get("c", dtype="u4")[0] == expected
        assert kaas.devices()[0].restarts == 2


def test_those_whose_code_is_there_go_on_beside_it(address: str, library_root: Path) -> None:
    with Client(address) as kaas, grpc.insecure_channel(address) as channel, ThreadPoolExecutor() as threads:
        stub = executor_pb2_grpc.ExecutorServiceStub(channel)
        put_dot_inputs(kaas)
        dot = dot_request(str(library_root / "dot.ptx"))
        stub.Submit(dot, timeout=600)
        stub.RegisterFunction(executor_pb2.RegisterFunctionRequest(name="spin", request=spin(library_root).request), timeout=600)
        endless = stub.Invoke.future(executor_pb2.InvokeRequest(function="spin"), timeout=6)
        wait_until(lambda: kaas.stats().devices[0].running == 1)
        upload = threads.submit(kaas.upload, KERNELS / "histogram.ptx")
        wait_until(lambda: kaas.stats().devices[0].running == 2)
        for _ in range(50):
            assert "c" in stub.Submit(dot, timeout=5).versions
        assert not endless.done()
        assert not upload.done()
        assert endless.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert [kernel.name for kernel in kaas.inspect(upload.result()).kernels] == ["histogramKern"]


def test_many_launches_end_at_their_deadline_and_cost_nobody_anything(address: str, library_root: Path) -> None:
    """Of which each ends soon, though all together take some seconds."""
    n = 1024
    with Client(address, retry=None) as kaas, grpc.insecure_channel(address) as channel:
        stub = executor_pb2_grpc.ExecutorServiceStub(channel)
        expected = put_dot_inputs(kaas)
        dot = dot_request(str(library_root / "dot.ptx"))
        stub.Submit(dot, timeout=600)
        arguments = [u64(n), inp("x", 4 * n), inp("x"), out("y", 4 * n, ephemeral=True)]
        kernel = Kernel(str(library_root / "dot.ptx"), "prodKern", 1, n, arguments)
        kaas.put("x", np.ones(n, np.uint32))
        kaas.submit(Request([kernel], iterations=100_000))
        for _ in range(2):
            with pytest.raises(DeadlineExceededError):
                kaas.submit(Request([kernel], iterations=10_000_000), timeout=0.5)
            assert "c" in stub.Submit(dot, timeout=600).versions
            assert kaas.get("c", dtype="u4")[0] == expected
        message = executor_pb2.SubmitRequest(request=request_to_proto(Request([kernel], iterations=10_000_000).spec))
        abandoned = stub.Submit.future(message, timeout=600)
        wait_until(lambda: kaas.stats().devices[0].running == 1)
        assert abandoned.cancel()
        wait_until(lambda: kaas.stats().devices[0].running == 0)
        assert kaas.devices()[0].restarts == 0
