"""A worker as its front starts it: its sockets have numbers that ``select`` does not take, or their other ends are closed."""

from __future__ import annotations

import fcntl
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kaas.worker.v1 import worker_pb2
from kaas_core.protobuf import request_to_proto
from kaas_core.request import Access, BufferArgument, BufferSpec, KernelSpec, Request
from kaasd.app import _worker_config
from kaasd.config import load_settings
from kaasd.ipc.channel import Progress
from kaasd.ipc.messages import SerializedRequest
from kaasd.store.lmdb_store import LmdbStore
from tests.conformance.launching import KERNELS

HIGH = 1100
"""Beyond FD_SETSIZE, 1024."""


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[0] < 2 * HIGH:
        resource.setrlimit(resource.RLIMIT_NOFILE, (2 * HIGH, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def endless(library: str) -> SerializedRequest:
    kernel = KernelSpec(library, "spinKern", (1, 1, 1), (1, 1, 1), (BufferArgument("out", Access.OUTPUT),))
    request = Request((kernel,), (BufferSpec("out", 4),))
    return SerializedRequest.of(request_to_proto(request).SerializeToString(deterministic=True))


def test_it_hears_of_calls_and_of_cancellations(tmp_path: Path, many_descriptors: None) -> None:
    with ExitStack() as stack:
        pairs = [tuple(stack.enter_context(each) for each in socket.socketpair()) for _ in range(2)]
        high = [fcntl.fcntl(worker.fileno(), fcntl.F_DUPFD, HIGH) for _, worker in pairs]
        descriptors = [*high, Progress.create(4)]
        process = subprocess.Popen([sys.executable, "-m", "kaasd.worker.main", *map(str, descriptors)], pass_fds=descriptors)
        stack.callback(process.wait)
        stack.callback(process.kill)
        calls, cancellations = (front for front, _ in pairs)
        store = stack.enter_context(LmdbStore(tmp_path / "store", limit_bytes=64 << 20))
        settings = load_settings(
            {"store": str(tmp_path / "store"), "library_root": [str(KERNELS)]}, None, {"HOME": str(tmp_path)}
        )
        config = _worker_config(settings, "emulator", store.identity)
        config.busy_poll_s, config.busy_poll_beside_others = 0.001, True
        send(calls, worker_pb2.ToWorker(configure=config))
        assert answer(calls).HasField("ready")
        request = endless(str(KERNELS / "faults.ptx"))
        named = worker_pb2.SerializedRequest(digest=request.digest, content=request.content)
        for call_id in (1, 2):
            send(calls, worker_pb2.ToWorker(id=call_id, only_call=True, execute=worker_pb2.Execute(request=named)))
            send(cancellations, worker_pb2.ToWorker(id=call_id, cancel=worker_pb2.Cancel()))
            while (failed := answer(calls)).HasField("compiling"):
                pass  # it waited for its code, or does no longer
            assert (failed.id, failed.failed.reason) == (call_id, "CANCELLED")
        for front in (calls, cancellations):
            front.shutdown(socket.SHUT_RDWR)
        assert process.wait(60) == 0


def test_a_worker_whose_front_has_gone_already_ends_at_once() -> None:
    with ExitStack() as stack:
        pairs = [tuple(stack.enter_context(each) for each in socket.socketpair()) for _ in range(2)]
        for front, _ in pairs:
            front.close()
        descriptors = [*(worker.fileno() for _, worker in pairs), Progress.create(4)]
        command = [sys.executable, "-m", "kaasd.worker.main", *map(str, descriptors)]
        done = subprocess.run(command, pass_fds=descriptors, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def send(front: socket.socket, message: worker_pb2.ToWorker) -> None:
    data = message.SerializeToString()
    front.sendall(len(data).to_bytes(4, "little") + data)


def answer(front: socket.socket) -> worker_pb2.FromWorker:
    length = int.from_bytes(front.recv(4, socket.MSG_WAITALL), "little")
    return worker_pb2.FromWorker.FromString(front.recv(length, socket.MSG_WAITALL))
