"""Faults of all kinds, each beside eight clients that run a known workload: they notice at most a short pause.

After each of them the same is looked at: see ``tests.faults.neighbours``.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest

from kaas.v1 import executor_pb2, executor_pb2_grpc, kv_pb2, kv_pb2_grpc, library_pb2, library_pb2_grpc, types_pb2
from kaas_client import Client
from kaas_client.errors import DeadlineExceededError, InvalidRequestError, KernelFaultError
from tests.faults.doomed_client import ENDLESS, LARGE_KEY, SHORT
from tests.faults.neighbours import (
    Caller,
    Daemon,
    Resources,
    advance,
    assert_nothing_is_left,
    callers_of,
    children,
    running,
    started,
)
from tests.faults.support import as_kaas_error, dot_request, fault_request, literal, spin, use, wait_until

NEIGHBOURS = 8
MORE_THREADS = 8
"""Than before, at most, when all is over: gRPC keeps some of its own for a while."""
MOST_BYTES = 600 << 20
"""That the front has in memory at any moment, with what it maps of the store."""
THREADS_OF_WORKER = 3
"""At least: the main one, the store's writer, and the one for cancellations."""
STORM = 200
"""Calls, of which a part is under way at a time."""
FRONT_STOPS_S = 2.0
CLOCK_THAT_JUMPS = """
import pathlib, runpy, sys, time
right_ns, wrong_by = time.time_ns, pathlib.Path(sys.argv.pop(1))
time.time_ns = lambda: right_ns() + int(wrong_by.read_text())
runpy.run_module("kaasd", run_name="__main__")
"""
"""All that kaasd asks what time of day it is. What waits for something does not ask: see ``tests/test_architecture.py``."""


@dataclass
class Beside:
    """What a fault needs."""

    daemon: Daemon
    kaas: Client
    channel: grpc.Channel
    library_root: Path
    clock: Path
    """Holds by how many nanoseconds the front's clock is wrong."""
    callers: list[Caller] = field(default_factory=list)

    @property
    def executor(self) -> executor_pb2_grpc.ExecutorServiceStub:
        return executor_pb2_grpc.ExecutorServiceStub(self.channel)


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory, library_root: Path) -> Iterator[Beside]:
    """A daemon with a spare, and what its faults need. At the end it drains, and its store holds what was acknowledged."""
    folder = tmp_path_factory.mktemp("neighbours")
    clock = folder / "clock"
    clock.write_text("0")
    program = ("-c", CLOCK_THAT_JUMPS, str(clock))
    with started(folder, library_root, "--spare", "1", chunk_bytes=64 << 10, program=program) as daemon:
        with Client(daemon.address) as kaas, grpc.insecure_channel(daemon.address) as channel:
            beside = Beside(daemon, kaas, channel, library_root, clock, callers_of(library_root, NEIGHBOURS))
            kaas.put(LARGE_KEY, bytes(32 << 20))
            dot = dot_request(str(library_root / "dot.ptx")).request
            for key in "ab":
                kaas.put(key, np.arange(1024, dtype=np.uint32))
            for name, request in ((ENDLESS, spin(library_root).request), (SHORT, dot)):
                beside.executor.RegisterFunction(executor_pb2.RegisterFunctionRequest(name=name, request=request))
            kaas.invoke(SHORT)  # so that its connection of the local channel is there before, and not left over
            with running(beside.callers, daemon) as check:  # so that every pool of threads has them
                advance(beside.callers, check)
            yield beside
            for function in kaas.functions():
                kaas.delete_function(function.name)
            for library in kaas.libraries():
                kaas.delete_library(library.id)
            kaas.delete(LARGE_KEY)
            seen = children(daemon.pid)
        assert daemon.end(signal.SIGTERM) == 0
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in seen))
        assert_nothing_is_left(daemon)


def spare_is_ready(beside: Beside) -> bool:
    """Whether the spare has its threads: the one that answers is the last, when its device is open."""
    spares = children(beside.daemon.pid) - {beside.kaas.devices()[0].worker_pid}
    return len(spares) == 1 and all(Resources.of(pid).threads >= THREADS_OF_WORKER for pid in spares)


@contextmanager
def neighbours(beside: Beside) -> Iterator[None]:
    """The eight run meanwhile. Afterwards their values are right, no error is unexplained, and nothing is left over."""
    daemon = beside.daemon
    wait_until(lambda: beside.kaas.health() == "SERVING" and spare_is_ready(beside))
    before = Resources.of(daemon.pid)
    Path(f"/proc/{daemon.pid}/clear_refs").write_text("5")  # its peak begins anew
    errors = [len(caller.errors) for caller in beside.callers]
    with running(beside.callers, daemon) as check:
        advance(beside.callers, check)
        yield
        advance(beside.callers, check)
    unexplained = [error for caller, known in zip(beside.callers, errors, strict=True) for error in caller.errors[known:]]
    assert not unexplained
    assert beside.kaas.health() == "SERVING"
    wait_until(lambda: not list(beside.kaas.requests()))
    assert beside.kaas.stats().failures_by_reason.get("INTERNAL", 0) == 0

    def nothing_is_left() -> bool:
        after = Resources.of(daemon.pid)
        same = (after.processes, after.descriptors, after.shared_memory) == (
            before.processes,
            before.descriptors,
            before.shared_memory,
        )
        return same and after.threads <= before.threads + MORE_THREADS

    wait_until(nothing_is_left)
    (peak,) = [line.split()[1] for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines() if "VmHWM" in line]
    assert int(peak) << 10 < MOST_BYTES


def test_a_worker_and_a_spare_that_are_stopped(beside: Beside) -> None:
    with neighbours(beside):
        stopped = children(beside.daemon.pid)
        assert len(stopped) == 2
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in stopped))


def test_a_front_that_is_stopped_for_a_while(beside: Beside) -> None:
    with neighbours(beside):
        os.kill(beside.daemon.pid, signal.SIGSTOP)
        try:
            with pytest.raises(DeadlineExceededError):
                beside.kaas.stats(timeout=FRONT_STOPS_S)
        finally:
            os.kill(beside.daemon.pid, signal.SIGCONT)


def test_a_clock_that_jumps(beside: Beside) -> None:
    """Times that are shown follow it, and nothing else does."""
    years_ns, years = 365 * 24 * 3600 * 10**9, []
    with neighbours(beside):
        for jump in (30, -40, 0):
            new = beside.clock.with_name("new")
            new.write_text(str(jump * years_ns))
            new.replace(beside.clock)  # the daemon reads it at any moment
            entry = beside.kaas.put("timed", b"")
            years.append((entry.update_time.year, entry.version))
            with pytest.raises(DeadlineExceededError):
                beside.kaas.invoke(ENDLESS, timeout=0.2)
    (future, first), (past, second), (_, third) = years
    assert future - past in (69, 70)
    assert first < second < third


def test_kernels_that_fault(beside: Beside) -> None:
    output = use("out", types_pb2.ACCESS_OUTPUT)
    faults = str(beside.library_root / "faults.ptx")
    with neighbours(beside):
        calls = [
            beside.executor.Submit.future(request, timeout=600)
            for request in (
                fault_request(faults, "writeAtKern", literal("Q", uint_value=2**61), output),
                fault_request(faults, "trapKern", output),
            )
            for _ in range(10)
        ]
        for call in calls:
            assert isinstance(as_kaas_error(call.exception(), beside.daemon.address), KernelFaultError)


def test_kernels_that_never_end(beside: Beside) -> None:
    with neighbours(beside):
        calls = [beside.executor.Submit.future(spin(beside.library_root), timeout=0.5) for _ in range(4)]
        assert [call.code() for call in calls] == [grpc.StatusCode.DEADLINE_EXCEEDED] * len(calls)


def test_a_message_of_a_million_buffers(beside: Beside) -> None:
    request = executor_pb2.SubmitRequest(request=types_pb2.Request(buffers=[types_pb2.BufferSpec(name="x")] * 10**6))
    with neighbours(beside), pytest.raises(grpc.RpcError) as caught:
        beside.executor.Submit(request, timeout=600)
    assert isinstance(as_kaas_error(caught.value, beside.daemon.address), InvalidRequestError)


def test_clients_that_are_killed_in_the_middle_of_everything(beside: Beside) -> None:
    with neighbours(beside):
        command = [sys.executable, "-m", "tests.faults.doomed_client", beside.daemon.address]
        clients = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        try:
            for client in clients:
                assert client.stdout is not None
                assert client.stdout.readline() == "in the middle\n"
        finally:
            for client in clients:
                client.kill()
                client.communicate()
        wait_until(lambda: not [request for request in beside.kaas.requests() if request.function])


def calls_of_all_kinds(beside: Beside) -> list[Callable[[float], grpc.Future]]:
    """Return what makes a call, each of another kind, given its timeout."""
    executor, kv = beside.executor, kv_pb2_grpc.KvServiceStub(beside.channel)
    libraries = library_pb2_grpc.LibraryServiceStub(beside.channel)
    library = str(beside.library_root / "dot.ptx")
    dot = dot_request(library)
    value = [kv_pb2.PutRequest(header=kv_pb2.PutHeader(key="storm", size_bytes=1 << 20)), kv_pb2.PutRequest(chunk=bytes(1 << 20))]
    content = Path(library).read_bytes() + b"// another\n"
    header = library_pb2.UploadLibraryHeader(file_name="storm.ptx", size_bytes=len(content))
    uploads = [library_pb2.UploadLibraryRequest(header=header), library_pb2.UploadLibraryRequest(chunk=content)]
    register = executor_pb2.RegisterFunctionRequest(name="storm", request=dot.request)
    return [
        lambda timeout: executor.Submit.future(dot, timeout=timeout),
        lambda timeout: executor.Submit.future(spin(beside.library_root), timeout=timeout),
        lambda timeout: executor.Invoke.future(executor_pb2.InvokeRequest(function=SHORT), timeout=timeout),
        lambda timeout: executor.RegisterFunction.future(register, timeout=timeout),
        lambda timeout: kv.Put.future(iter(value), timeout=timeout),
        lambda timeout: kv.Stat.future(kv_pb2.StatRequest(key=LARGE_KEY), timeout=timeout),
        lambda timeout: libraries.UploadLibrary.future(iter(uploads), timeout=timeout),
        lambda timeout: libraries.InspectLibrary.future(library_pb2.InspectLibraryRequest(library=library), timeout=timeout),
    ]


def test_a_storm_of_cancellations(beside: Beside) -> None:
    kinds, moments = calls_of_all_kinds(beside), random.Random()
    with neighbours(beside):
        for _ in range(STORM // 40):
            calls = [kinds[number % len(kinds)](60) for number in range(40)]
            for call in moments.sample(calls, len(calls)):
                time.sleep(moments.uniform(0, 0.01))
                call.cancel()
            codes = {call.code() for call in calls}
            assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED}


def test_a_storm_of_deadlines(beside: Beside) -> None:
    kinds, moments = calls_of_all_kinds(beside), random.Random()
    with neighbours(beside):
        for _ in range(STORM // 40):
            calls = [kinds[number % len(kinds)](moments.uniform(0.001, 0.2)) for number in range(40)]
            codes = {call.code() for call in calls}
            assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED}
