"""Requests as bare messages, what a store holds, and how a status reads."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import grpc
import numpy as np

from examples.local_daemon import local_daemon
from kaas.v1 import executor_pb2, executor_pb2_grpc, types_pb2
from kaas_client import Client
from kaas_client._status import from_rpc_error
from kaas_core.errors import KaasError


def as_kaas_error(error: grpc.RpcError, address: str) -> KaasError:
    """Return the exception that a status stands for, and check that it is a ``google.rpc.Status`` of ours."""
    return from_rpc_error(error, address)


def dot_request(library: str, n: int = 1024) -> executor_pb2.SubmitRequest:
    """Return a good request: the dot product of keys ``a`` and ``b`` into key ``c``."""
    access = types_pb2.Access
    return executor_pb2.SubmitRequest(
        request=types_pb2.Request(
            buffers=[
                types_pb2.BufferSpec(name="a", size_bytes=4 * n),
                types_pb2.BufferSpec(name="b", size_bytes=4 * n),
                types_pb2.BufferSpec(name="p", size_bytes=4 * n, ephemeral=True),
                types_pb2.BufferSpec(name="c", size_bytes=4),
            ],
            kernels=[
                types_pb2.KernelSpec(
                    library=library,
                    name="prodKern",
                    grid=types_pb2.Dim3(x=1),
                    block=types_pb2.Dim3(x=n),
                    arguments=[
                        literal("Q", uint_value=n),
                        use("a", access.ACCESS_INPUT),
                        use("b", access.ACCESS_INPUT),
                        use("p", access.ACCESS_OUTPUT),
                    ],
                ),
                types_pb2.KernelSpec(
                    library=library,
                    name="sumKern",
                    grid=types_pb2.Dim3(x=1),
                    block=types_pb2.Dim3(x=n // 2),
                    arguments=[use("p", access.ACCESS_INPUT), use("c", access.ACCESS_OUTPUT)],
                ),
            ],
        )
    )


def fault_request(library: str, kernel: str, *arguments: types_pb2.Argument, size_bytes: int = 4) -> executor_pb2.SubmitRequest:
    """Return a request of one misbehaving kernel; its buffer ``out`` is written back to a key of that name."""
    return executor_pb2.SubmitRequest(
        request=types_pb2.Request(
            buffers=[
                types_pb2.BufferSpec(name="out", size_bytes=size_bytes),
                types_pb2.BufferSpec(name="in", size_bytes=size_bytes),
            ],
            kernels=[
                types_pb2.KernelSpec(
                    library=library, name=kernel, grid=types_pb2.Dim3(x=1), block=types_pb2.Dim3(x=1), arguments=arguments
                )
            ],
        )
    )


def use(buffer: str, access: types_pb2.Access) -> types_pb2.Argument:
    """Return a buffer as an argument."""
    return types_pb2.Argument(buffer=types_pb2.BufferArgument(buffer=buffer, access=access))


def literal(type: str, **value: float) -> types_pb2.Argument:
    """Return a literal as an argument."""
    return types_pb2.Argument(literal=types_pb2.Literal(type=type, **value))  # type: ignore[arg-type]


def put_dot_inputs(kaas: Client, n: int = 1024) -> int:
    """Put ``a`` and ``b`` and return their dot product modulo 2^32."""
    a, b = np.random.default_rng(7).integers(0, 2**32, (2, n), dtype=np.uint32)
    kaas.put("a", a)
    kaas.put("b", b)
    return int(np.sum(a * b, dtype=np.uint32))


def contents(kaas: Client) -> dict[str, tuple[int, bytes]]:
    """Return the version and value of every key."""
    return {entry.key: (entry.version, kaas.get(entry.key)) for entry in kaas.list()}


def spin(library_root: Path) -> executor_pb2.SubmitRequest:
    """Return a request whose kernel never ends."""
    return fault_request(str(library_root / "faults.ptx"), "spinKern", use("out", types_pb2.Access.ACCESS_OUTPUT))


def begin(executor: executor_pb2_grpc.ExecutorServiceStub, message: executor_pb2.SubmitRequest, timeout: float) -> grpc.Future:
    """Submit a request whose code is compiled already: who waits for that leaves its place to those behind it."""
    executor.RegisterFunction(executor_pb2.RegisterFunctionRequest(name="begun", request=message.request), timeout=timeout)
    return executor.Submit.future(message, timeout=timeout)


def own_daemon(device: str, library_root: Path) -> AbstractContextManager[str]:
    """A daemon whose workers may die."""
    return local_daemon("--device", device, "--library-root", str(library_root), "--log-level", "ERROR")


def front_of(kaas: Client) -> int:
    """Return the process that has started a daemon's workers."""
    return int(Path(f"/proc/{kaas.devices()[0].worker_pid}/stat").read_text().rpartition(")")[2].split()[1])


def children(pid: int) -> set[int]:
    """Return the processes that a process has started, and that have not ended."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has ended meanwhile
            found |= set(map(int, (task / "children").read_text().split()))
    return {child for child in found if _runs(child)}


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll until the server says so; the test's own time limit ends a wait in vain."""
    while not condition():
        time.sleep(0.01)
