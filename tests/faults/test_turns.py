"""Callers take turns: who sends much at once does not keep others waiting for all of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from kaas.v1 import executor_pb2, executor_pb2_grpc
from kaas_client import Client, Key
from tests.faults.support import begin, dot_request, own_daemon, put_dot_inputs, spin, wait_until

STREAMS, EACH = 8, 24


@pytest.fixture
def daemon(library_root: Path) -> Iterator[str]:
    with own_daemon("emulator", library_root) as address:
        yield address


def invocation(key: str) -> executor_pb2.InvokeRequest:
    """Return a call of ``dot`` whose result goes to a key."""
    return executor_pb2.InvokeRequest(function="dot", bindings={"c": executor_pb2.Binding(key=key)})


class Flood:
    """Streams that send many calls each and never read an answer."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._done = threading.Event()
        stub = executor_pb2_grpc.ExecutorServiceStub(self._channel)
        self._streams = [stub.InvokeStream(self._messages(), timeout=600) for _ in range(STREAMS)]

    def _messages(self) -> Iterator[executor_pb2.InvokeStreamRequest]:
        for number in range(EACH):
            yield executor_pb2.InvokeStreamRequest(id=number, invoke=invocation("flood"))
        self._done.wait()

    def close(self) -> None:
        for stream in self._streams:
            stream.cancel()
        self._done.set()
        self._channel.close()


def test_who_sends_much_at_once_keeps_nobody_waiting_for_all_of_it(daemon: str, library_root: Path) -> None:
    with (
        Client(daemon) as kaas,
        Client(daemon, retry=None) as greedy,  # as ids of requests would take versions too
        Client(daemon, retry=None) as modest,
        grpc.insecure_channel(daemon) as channel,
        ThreadPoolExecutor(EACH + 1) as threads,
    ):
        stub = executor_pb2_grpc.ExecutorServiceStub(channel)
        request = dot_request(str(library_root / "dot.ptx")).request
        stub.RegisterFunction(executor_pb2.RegisterFunctionRequest(name="dot", request=request))
        put_dot_inputs(kaas)
        kaas.invoke("dot")
        running = begin(stub, spin(library_root), timeout=600)
        wait_until(lambda: kaas.stats().devices[0].running == 1)
        flood = Flood(daemon)
        try:
            wait_until(lambda: kaas.stats().devices[0].queued == STREAMS * EACH)
            many = [threads.submit(greedy.invoke, "dot", {"c": Key("many")}, timeout=600) for _ in range(EACH)]
            wait_until(lambda: kaas.stats().devices[0].queued == (STREAMS + 1) * EACH)
            # One caller by a connection of its own, which it names, and one who says nothing of himself.
            one = threads.submit(modest.invoke, "dot", {"c": Key("one")}, timeout=600)
            bare = stub.Invoke.future(invocation("bare"), timeout=600)
            wait_until(lambda: kaas.stats().devices[0].queued == (STREAMS + 1) * EACH + 2)
            before = kaas.put("marker", b"").version  # what is stored from now on has the next versions
            running.cancel()
            assert one.result().versions["one"] - before <= 2 * STREAMS + 8
            assert bare.result().versions["bare"] - before <= 2 * STREAMS + 8
            latest = max(call.result().versions["many"] for call in many)
            wait_until(lambda: max(latest, kaas.stat("flood").version) == before + (STREAMS + 1) * EACH + 2)  # none was lost
        finally:
            flood.close()
