"""A daemon with a spare worker: whoever kills its workers, callers notice nothing, and no process is left."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import grpc

from examples.local_daemon import local_daemon
from kaas.v1 import executor_pb2, executor_pb2_grpc
from kaas_client import Client
from kaas_client.errors import UnavailableError
from tests.faults.support import children, dot_request, front_of, put_dot_inputs, wait_until

CALLERS, TAKEOVERS = 4, 3


def test_callers_notice_nothing_of_killed_workers(library_root: Path) -> None:
    stop = threading.Event()
    done, wrong = [0] * CALLERS, []

    def invoke(caller: int, address: str, expected: int) -> None:
        with Client(address) as kaas:
            while not stop.is_set():
                try:
                    found = kaas.invoke("dot", returns=["c"], timeout=600).array("c", "u4")[0]
                    wrong.extend([found] if found != expected else [])
                    done[caller] += 1
                except UnavailableError as error:
                    wrong.append(error)

    with local_daemon("--device", "emulator", "--library-root", str(library_root), "--spare", "1") as address:
        with Client(address) as kaas, grpc.insecure_channel(address) as channel:
            expected = put_dot_inputs(kaas)
            request = dot_request(str(library_root / "dot.ptx")).request
            register = executor_pb2.RegisterFunctionRequest(name="dot", request=request)
            executor_pb2_grpc.ExecutorServiceStub(channel).RegisterFunction(register)
            callers = [threading.Thread(target=invoke, args=(number, address, expected)) for number in range(CALLERS)]
            for caller in callers:
                caller.start()
            front = front_of(kaas)
            takeovers, seen = 0, set()
            while takeovers < TAKEOVERS:
                before = list(done)
                wait_until(lambda before=before: all(now > then for now, then in zip(done, before, strict=True)))
                serves, waiting = kaas.devices()[0].worker_pid, children(front)
                seen |= waiting
                os.kill(serves, signal.SIGKILL)
                wait_until(lambda pid=serves: kaas.devices()[0].worker_pid not in (0, pid))
                takeovers += kaas.devices()[0].worker_pid in waiting
            stop.set()
            for caller in callers:
                caller.join()
            seen |= children(front)
        assert not wrong
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in seen))
