"""A daemon for the tests of this folder, spoken to through bare stubs so that no client checks anything first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from examples.local_daemon import local_daemon
from kaas.v1 import executor_pb2, executor_pb2_grpc
from kaas_client import Client
from tests.faults.support import as_kaas_error

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
    limits = ["--max-message-size", "2MiB", "--emulator-memory", "64MiB", "--store-limit", "256MiB"]
    with local_daemon("--device", "emulator", "--library-root", str(library_root), *limits) as address:
        yield address


@pytest.fixture(scope="session")
def kaas(address: str) -> Iterator[Client]:
    """A client of the daemon, for what a test does besides the call that fails."""
    with Client(address) as client:
        yield client


@pytest.fixture
def submit(address: str) -> Iterator[Callable[[executor_pb2.SubmitRequest], executor_pb2.SubmitResponse]]:
    """Submit a message as it stands; raises what the server answered as an exception of ``kaas_core.errors``."""
    with grpc.insecure_channel(address, options=[("grpc.max_send_message_length", -1)]) as channel:
        stub = executor_pb2_grpc.ExecutorServiceStub(channel)

        def call(request: executor_pb2.SubmitRequest, timeout: float = 600) -> executor_pb2.SubmitResponse:
            try:
                return stub.Submit(request, timeout=timeout)
            except grpc.RpcError as error:
                raise as_kaas_error(error, address) from error

        yield call
