"""A daemon for the tests of this folder, spoken to through bare stubs so that no client checks anything first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from examples.local_daemon import local_daemon
from kaas.v1 import executor_pb2, executor_pb2_grpc, types_pb2
from kaas_client import Client
from kaas_client._status import from_rpc_error
from kaasd.errors import KaasError

KERNELS = Path(__file__).parent.parent.parent / "examples/kernels"


@pytest.fixture(scope="session")
def library_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library root with the example kernels and with files that are none; beside it one that is outside."""
    root = tmp_path_factory.mktemp("libraries") / "root"
    root.mkdir()
    for name in ("dot", "faults"):
        (root / f"{name}.ptx").write_bytes((KERNELS / f"{name}.ptx").read_bytes())
    ptx = (KERNELS / "dot.ptx").read_bytes()
    (root / "text.ptx").write_text("This is a letter to a friend, not GPU code.\n")
    (root / "truncated.ptx").write_bytes(ptx[: len(ptx) // 2])
    (root / "truncated.so").write_bytes(Path("/proc/self/exe").read_bytes()[:1000])
    (root / "empty.ptx").write_bytes(b"")
    (root.parent / "outside.ptx").write_bytes(ptx)
    (root / "link.ptx").symlink_to(root.parent / "outside.ptx")
    return root


@pytest.fixture(scope="session")
def address(library_root: Path) -> Iterator[str]:
    """The address of a daemon with small limits on the emulated device."""
    limits = ["--max-message-size", "1MiB", "--emulator-memory", "64MiB", "--store-limit", "256MiB"]
    with local_daemon("--device", "emulator", "--library-root", str(library_root), *limits) as address:
        yield address


@pytest.fixture(scope="session")
def kaas(address: str) -> Iterator[Client]:
    """A client of the daemon, for what a test does besides the call that fails."""
    with Client(address) as client:
        yield client


@pytest.fixture
def submit(address: str) -> Iterator[Callable[[executor_pb2.SubmitRequest], executor_pb2.SubmitResponse]]:
    """Submit a message as it stands; raises what the server answered as an exception of ``kaasd.errors``."""
    with grpc.insecure_channel(address, options=[("grpc.max_send_message_length", -1)]) as channel:
        stub = executor_pb2_grpc.ExecutorServiceStub(channel)

        def call(request: executor_pb2.SubmitRequest, timeout: float = 60) -> executor_pb2.SubmitResponse:
            try:
                return stub.Submit(request, timeout=timeout)
            except grpc.RpcError as error:
                raise as_kaas_error(error, address) from error

        yield call


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
