"""More than the daemon can take: what is refused costs it nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from examples.local_daemon import local_daemon
from kaas.v1 import executor_pb2, executor_pb2_grpc, types_pb2
from kaas_client import Client, Kernel, Request, out, u64
from kaas_core.errors import QueueFullError
from tests.faults.idle_reader import FUNCTION
from tests.faults.support import as_kaas_error, begin, dot_request, fault_request, put_dot_inputs, use, wait_until

INPUT_BYTES = 8 << 20
WAITING = 4
"""As many fit into ``--max-queued-bytes``."""
FLOOD, FLOOD_CHANNELS = 3000, 2


@pytest.fixture
def daemon(library_root: Path) -> Iterator[str]:
    """A daemon in which a few large requests may wait."""
    limit = ["--max-queued-bytes", str(WAITING * INPUT_BYTES)]
    with local_daemon("--device", "emulator", "--library-root", str(library_root), *limit) as address:
        yield address


def memory_bytes(pid: int) -> int:
    """Return what a process has in memory."""
    return 1024 * int(field(pid, "VmRSS").removesuffix(" kB"))


def field(pid: int, name: str) -> str:
    """Return what the kernel says of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.removeprefix(f"{name}:").strip() for line in lines if line.startswith(f"{name}:"))


def test_refused_requests_leave_nothing_in_memory(daemon: str, library_root: Path) -> None:
    endless = fault_request(
        str(library_root / "faults.ptx"), "spinKern", use("out", types_pb2.ACCESS_INOUT), size_bytes=INPUT_BYTES
    )
    endless.inputs["out"] = bytes(INPUT_BYTES)
    with Client(daemon) as kaas, grpc.insecure_channel(daemon) as channel:
        executor = executor_pb2_grpc.ExecutorServiceStub(channel)
        submit = executor.Submit
        expected = put_dot_inputs(kaas)
        front = int(field(kaas.devices()[0].worker_pid, "PPid"))
        # One runs and one is at the worker already.
        waiting = [begin(executor, endless, timeout=600), *(submit.future(endless, timeout=600) for _ in range(1 + WAITING))]
        wait_until(lambda: (stats := kaas.stats().devices[0]).running + stats.queued == len(waiting))

        def refuse(times: int) -> None:
            for _ in range(times):
                with pytest.raises(grpc.RpcError) as caught:
                    submit(endless, timeout=600)
                error = as_kaas_error(caught.value, daemon)
                assert isinstance(error, QueueFullError)
                assert f"{WAITING * INPUT_BYTES} bytes of inputs are waiting already" in error.message
                assert error.retry_after_s

        refuse(8)
        before = memory_bytes(front)
        refuse(40)
        assert memory_bytes(front) - before < 8 * INPUT_BYTES

        small = submit.future(executor_pb2.SubmitRequest(request=dot_request(str(library_root / "dot.ptx")).request), timeout=600)
        wait_until(lambda: kaas.stats().devices[0].queued == 2 + WAITING)
        for call in waiting:
            call.cancel()
        assert small.result().versions["c"]
        assert kaas.get("c", dtype="u4")[0] == expected


def test_replies_that_nobody_reads_are_few(daemon: str, library_root: Path) -> None:
    """Whose replies would be more than fit into ``--max-queued-bytes`` is refused before it runs; the others get theirs."""
    calls = 10 * WAITING
    library = str(library_root / "faults.ptx")
    endless = fault_request(library, "spinKern", use("out", types_pb2.ACCESS_OUTPUT))
    with Client(daemon) as kaas, grpc.insecure_channel(daemon) as channel:
        executor = executor_pb2_grpc.ExecutorServiceStub(channel)
        large = Request([Kernel(library, "writeAtKern", grid=1, block=1, args=[u64(0), out("out", INPUT_BYTES, ephemeral=True)])])
        kaas.register(FUNCTION, large)
        kaas.invoke(FUNCTION)
        front = int(field(kaas.devices()[0].worker_pid, "PPid"))
        blocking = begin(executor, endless, timeout=600)
        wait_until(lambda: kaas.stats().devices[0].running == 1)
        before = memory_bytes(front)
        command = [sys.executable, "-m", "tests.faults.idle_reader", daemon, str(calls)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
            try:
                assert reader.stdout is not None
                assert reader.stdout.readline() == "sent\n"
                wait_until(lambda: kaas.stats().failures_by_reason.get("QUEUE_FULL", 0) == calls - WAITING)
                os.kill(reader.pid, signal.SIGSTOP)
                blocking.cancel()
                wait_until(lambda: (stats := kaas.stats().devices[0]).running + stats.queued == 0)
                grown = memory_bytes(front) - before
                assert WAITING * INPUT_BYTES // 2 < grown < 4 * WAITING * INPUT_BYTES
                with pytest.raises(QueueFullError, match="not read yet"):
                    kaas.invoke(FUNCTION, returns=["out"])
                kaas.invoke(FUNCTION)  # It returns nothing.
            finally:
                os.kill(reader.pid, signal.SIGCONT)
            answers = Counter(reader.communicate()[0].split())
        assert answers == {str(INPUT_BYTES): WAITING, "RESOURCE_EXHAUSTED": calls - WAITING}
        assert len(kaas.invoke(FUNCTION, returns=["out"])["out"]) == INPUT_BYTES


def test_a_flood_is_served_or_refused(library_root: Path) -> None:
    """More calls than a connection may have, and than gRPC by itself holds ready for Python before it ends some in CANCELLED."""
    refused = Counter[str]()
    limits = ("--max-queue", "8", "--log-level", "ERROR")
    with local_daemon("--device", "emulator", "--library-root", str(library_root), *limits) as address, ExitStack() as stack:
        kaas = stack.enter_context(Client(address))
        expected = put_dot_inputs(kaas)
        request = dot_request(str(library_root / "dot.ptx"))
        request.return_buffers.append("c")
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [stack.enter_context(grpc.insecure_channel(address, options)) for _ in range(FLOOD_CHANNELS)]
        for channel in channels:
            grpc.channel_ready_future(channel).result()
        submits = [executor_pb2_grpc.ExecutorServiceStub(channel).Submit for channel in channels]
        front = int(field(kaas.devices()[0].worker_pid, "PPid"))
        os.kill(front, signal.SIGSTOP)
        try:
            calls = [submits[number % FLOOD_CHANNELS].future(request, timeout=100) for number in range(FLOOD)]
        finally:
            os.kill(front, signal.SIGCONT)
        for call in calls:
            if (caught := call.exception()) is None:
                assert int.from_bytes(call.result().outputs["c"], "little") == expected
            else:
                error = as_kaas_error(caught, address)
                refused[error.reason] += 1
                assert error.retry_after_s, error
        assert refused.keys() <= {"QUEUE_FULL"}
        assert FLOOD - refused.total() >= 8
