"""A client whose calls come to nothing: what they leave behind is to be nothing too."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np

from kaas.v1 import executor_pb2, executor_pb2_grpc, kv_pb2, kv_pb2_grpc, types_pb2
from kaas_client import Client, Kernel, Request, inp, out, u64
from kaas_client.errors import KaasError
from tests.faults.support import fault_request, spin, use

KERNELS = Path(__file__).parents[2] / "examples/kernels"
VARIANTS = 32
"""Of libraries that come and go, again and again: what the caches hold of them is soon all that they will."""
N = 1024
QUARANTINED = "FAILED_PRECONDITION"
"""Where it was running each time when three workers were killed."""


class Troubles:
    """A client that makes every kind of call that comes to nothing, one after the other."""

    def __init__(self, address: str) -> None:
        self.done: Counter[str] = Counter()
        """By kind of call."""
        self._kaas = Client(address)
        self._channel = grpc.insecure_channel(address)
        self._executor = executor_pb2_grpc.ExecutorServiceStub(self._channel)
        self._variants = itertools.cycle(range(VARIANTS))
        self._values = np.arange(N, dtype=np.uint32)

    def run(self, stop: threading.Event) -> None:
        """Make calls until ``stop``. What fails otherwise than it should is raised."""
        kinds: list[Callable[[], object]] = [
            self._bad_request, self._fault, self._deadline, self._cancelled, self._library, self._stream, self._half_put,
            self._half_get,
        ]  # fmt: skip
        with self._kaas, self._channel:
            for kind in itertools.cycle(kinds):
                if stop.is_set():
                    return
                try:
                    kind()
                except KaasError as error:
                    if error.code != "UNAVAILABLE":
                        raise
                self.done[kind.__name__.removeprefix("_")] += 1

    def clean_up(self) -> None:
        """Delete what is left, where a worker died at the wrong moment."""
        with Client(self._kaas.address) as kaas:
            for function in kaas.functions():
                kaas.delete_function(function.name)
            for library in kaas.libraries():
                kaas.delete_library(library.id)

    def _fails(self, call: grpc.Future, *codes: str) -> None:
        assert call.code().name in (*codes, "UNAVAILABLE"), call.exception()

    def _bad_request(self) -> None:
        self._fails(self._executor.Submit.future(executor_pb2.SubmitRequest()), "INVALID_ARGUMENT")

    def _fault(self) -> None:
        trap = fault_request(str(KERNELS / "faults.ptx"), "trapKern", use("out", types_pb2.ACCESS_OUTPUT))
        self._fails(self._executor.Submit.future(trap), "ABORTED", QUARANTINED)

    def _deadline(self) -> None:
        self._fails(self._executor.Submit.future(spin(KERNELS), timeout=0.1), "DEADLINE_EXCEEDED", QUARANTINED)

    def _cancelled(self) -> None:
        calls = [self._executor.Submit.future(spin(KERNELS), timeout=600) for _ in range(3)]
        for call in calls:
            call.cancel()
            self._fails(call, "CANCELLED", QUARANTINED)

    def _library(self) -> None:
        """Upload one, inspect it, register a function of it, invoke that, and delete both."""
        name = f"variant{next(self._variants)}"
        library = self._kaas.upload((KERNELS / "dot.ptx").read_bytes() + f"// {name}\n".encode())
        self._kaas.inspect(library)
        arguments = [u64(N), inp("a", 4 * N), inp("b", 4 * N), out("c", 4 * N, ephemeral=True)]
        self._kaas.register(name, Request([Kernel(library, "prodKern", 1, N, arguments)]))
        result = self._kaas.invoke(name, {"a": self._values, "b": self._values}, returns=["c"])
        assert np.array_equal(result.array("c", "u4"), self._values**2)
        self._kaas.delete_function(name)
        self._kaas.delete_library(library)

    def _stream(self) -> None:
        """Invocations of a function that is not there."""
        invoke = executor_pb2.InvokeRequest(function="?")
        messages = [executor_pb2.InvokeStreamRequest(id=number, invoke=invoke) for number in range(16)]
        assert len(list(self._executor.InvokeStream(iter(messages)))) == len(messages)

    def _half_put(self) -> None:
        def half() -> Iterator[kv_pb2.PutRequest]:
            yield kv_pb2.PutRequest(header=kv_pb2.PutHeader(key="half", size_bytes=4 << 20))
            yield kv_pb2.PutRequest(chunk=bytes(1 << 20))

        self._fails(kv_pb2_grpc.KvServiceStub(self._channel).Put.future(half()), "FAILED_PRECONDITION")

    def _half_get(self) -> None:
        """Read the beginning of a value that is larger than what gRPC holds."""
        if not self.done["half_get"]:
            self._kaas.put("large", bytes(24 << 20))
        call = kv_pb2_grpc.KvServiceStub(self._channel).Get(kv_pb2.GetRequest(key="large"))
        next(call)
        call.cancel()
