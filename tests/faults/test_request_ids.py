"""A call that is sent again has its effect once, whatever died meanwhile: its worker, the front, or its caller's connection."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest

from kaas.v1 import admin_pb2, admin_pb2_grpc, executor_pb2, executor_pb2_grpc, types_pb2
from kaas_client import Client
from kaas_core.errors import KaasError
from kaasd.ipc.replies import pack_reply, unpack_reply
from kaasd.store.base import Durability, Namespace
from kaasd.store.lmdb_store import LmdbStore
from kaasd.store.records import Pieces
from kaasd.store.write_transaction import Change, WriteTransaction
from tests.faults.neighbours import CHUNK_BYTES, LIMIT_BYTES, TIMEOUT_S, Daemon, started
from tests.faults.support import as_kaas_error, use, wait_until

INCREMENT = """
.version 8.0
.target sm_90
.address_size 64
.visible .entry increment(.param .u64 counter)
{
    .reg .u64 %p;
    .reg .u32 %n;
    ld.param.u64 %p, [counter];
    ld.global.u32 %n, [%p];
    add.u32 %n, %n, 1;
    st.global.u32 [%p], %n;
    ret;
}
"""


@pytest.fixture
def daemon(tmp_path: Path, library_root: Path) -> Iterator[Daemon]:
    (library_root / "increment.ptx").write_text(INCREMENT)
    with started(tmp_path, library_root) as daemon:
        yield daemon


def increment(library_root: Path, key: str, request_id: str) -> executor_pb2.SubmitRequest:
    """Return a request that adds one to the number at a key, and returns it."""
    return executor_pb2.SubmitRequest(
        request=types_pb2.Request(
            buffers=[types_pb2.BufferSpec(name="counter", size_bytes=4, key=key)],
            kernels=[
                types_pb2.KernelSpec(
                    library=str(library_root / "increment.ptx"),
                    name="increment",
                    grid=types_pb2.Dim3(x=1),
                    block=types_pb2.Dim3(x=1),
                    arguments=[use("counter", types_pb2.Access.ACCESS_INOUT)],
                )
            ],
        ),
        return_buffers=["counter"],
        request_id=request_id,
    )


@contextmanager
def stubs(address: str) -> Iterator[tuple[executor_pb2_grpc.ExecutorServiceStub, admin_pb2_grpc.AdminServiceStub]]:
    with grpc.insecure_channel(address) as channel:
        yield executor_pb2_grpc.ExecutorServiceStub(channel), admin_pb2_grpc.AdminServiceStub(channel)


def number(reply: executor_pb2.SubmitResponse) -> int:
    return int.from_bytes(reply.outputs["counter"], "little")


class Held:
    """The store's write lock, which keeps whoever commits from going on; what is written under it counts as theirs."""

    def __init__(self, daemon: Daemon) -> None:
        self.store = LmdbStore(daemon.store, limit_bytes=LIMIT_BYTES, chunk_bytes=CHUNK_BYTES, durability=Durability.NONE)
        self.transaction: WriteTransaction | None = None

    @contextmanager
    def lock(self) -> Iterator[None]:
        with self.store._environment.write() as txn:
            self.transaction = WriteTransaction(self.store._environment, txn, CHUNK_BYTES)
            yield
            self.transaction.finish()

    def commit(self, key: str, value: int, request_id: str, content: bytes) -> None:
        """Do what a worker does that has run ``increment``."""
        data = value.to_bytes(4, "little")
        reply = pack_reply(content, [key], lambda reply: reply.outputs.update({"counter": data}))
        assert self.transaction is not None
        self.transaction.apply([
            Change(key, key.encode(), Namespace.VALUES, 0, Pieces([data])),
            Change(f"default/{request_id}", f"default/{request_id}".encode(), Namespace.REPLIES, None, Pieces([reply])),
        ])  # fmt: skip

    def kept(self) -> dict[str, bytes]:
        """Return the fingerprints of all replies, by key."""
        with self.store.snapshot() as snapshot:
            found = {}
            for entry in snapshot.list(namespace=Namespace.REPLIES):
                data = b"".join(snapshot.pieces(entry.key, namespace=Namespace.REPLIES))
                found[entry.key], _ = unpack_reply(data, entry.version)
            return found


@pytest.fixture
def held(daemon: Daemon) -> Iterator[Held]:
    held = Held(daemon)
    with held.store:
        yield held


def is_committing(admin: admin_pb2_grpc.AdminServiceStub) -> bool:
    listed = admin.ListRequests(admin_pb2.ListRequestsRequest()).requests
    return [request.state for request in listed] == [admin_pb2.REQUEST_STATE_COMMITTING]


@pytest.fixture
def content(daemon: Daemon, held: Held, library_root: Path) -> bytes:
    """The fingerprint of ``increment`` of the key ``n``, which is 1 from here on."""
    with Client(daemon.address) as kaas, stubs(daemon.address) as (executor, _):
        kaas.put("n", bytes(4))
        assert number(executor.Submit(increment(library_root, "n", "before"), timeout=TIMEOUT_S)) == 1
    return held.kept()["default/before"]


def test_a_worker_that_died_before_its_commit_was_done(daemon: Daemon, held: Held, content: bytes, library_root: Path) -> None:
    """Its successor runs the call."""
    with stubs(daemon.address) as (executor, admin):
        with held.lock():
            call = executor.Submit.future(increment(library_root, "n", "id"), timeout=TIMEOUT_S)
            wait_until(lambda: is_committing(admin))
            os.kill(admin.ListDevices(admin_pb2.ListDevicesRequest()).devices[0].worker_pid, signal.SIGKILL)
            wait_until(lambda: admin.ListDevices(admin_pb2.ListDevicesRequest()).devices[0].restarts == 1)
        reply = call.result()
        assert (number(reply), reply.attempts) == (2, 2)
        assert held.kept() == {"default/before": content, "default/id": content}


def test_without_an_id_the_caller_is_told(daemon: Daemon, held: Held, content: bytes, library_root: Path) -> None:
    with stubs(daemon.address) as (executor, admin):
        with held.lock():
            call = executor.Submit.future(increment(library_root, "n", ""), timeout=TIMEOUT_S)
            wait_until(lambda: is_committing(admin))
            os.kill(admin.ListDevices(admin_pb2.ListDevicesRequest()).devices[0].worker_pid, signal.SIGKILL)
            with pytest.raises(grpc.RpcError) as caught:
                call.result()
        assert "died while it committed" in as_kaas_error(caught.value, daemon.address).message


def test_a_worker_that_died_behind_its_commit(daemon: Daemon, held: Held, content: bytes, library_root: Path) -> None:
    """Nobody got its answer, but the store has it."""
    with stubs(daemon.address) as (executor, admin):
        with held.lock():
            call = executor.Submit.future(increment(library_root, "n", "id"), timeout=TIMEOUT_S)
            wait_until(lambda: is_committing(admin))
            worker = admin.ListDevices(admin_pb2.ListDevicesRequest()).devices[0].worker_pid
            os.kill(worker, signal.SIGSTOP)
            held.commit("n", 2, "id", content)
        os.kill(worker, signal.SIGKILL)
        reply = call.result()
        assert (number(reply), reply.attempts) == (2, 1)
        with Client(daemon.address) as kaas:
            entry = kaas.stat("n")
            assert kaas.get("n") == (2).to_bytes(4, "little")
        assert dict(reply.versions) == {"n": entry.version}


def test_another_one_commits_first(daemon: Daemon, held: Held, content: bytes, library_root: Path) -> None:
    """A worker of a front that is gone may, whenever it likes. The commit itself tells who was first, and stores nothing else."""
    with stubs(daemon.address) as (executor, admin):
        with held.lock():
            call = executor.Submit.future(increment(library_root, "n", "id"), timeout=TIMEOUT_S)
            wait_until(lambda: is_committing(admin))
            held.commit("n", 2, "id", content)
        assert number(call.result()) == 2
        again = executor.Submit(increment(library_root, "n", "id"), timeout=TIMEOUT_S)
        assert (number(again), again.versions) == (2, call.result().versions)
        assert number(executor.Submit(increment(library_root, "n", "next"), timeout=TIMEOUT_S)) == 3
        assert admin.ListDevices(admin_pb2.ListDevicesRequest()).devices[0].restarts == 0


def test_another_one_commits_other_content_first(daemon: Daemon, held: Held, content: bytes, library_root: Path) -> None:
    with stubs(daemon.address) as (executor, admin):
        with held.lock():
            call = executor.Submit.future(increment(library_root, "n", "id"), timeout=TIMEOUT_S)
            wait_until(lambda: is_committing(admin))
            held.commit("n", 7, "id", b"other content")
        with pytest.raises(grpc.RpcError) as caught:
            call.result()
        assert as_kaas_error(caught.value, daemon.address).reason == "REQUEST_ID_REUSED"
        with Client(daemon.address) as kaas:
            assert kaas.get("n") == (7).to_bytes(4, "little")


def test_a_front_that_died_while_its_worker_committed(daemon: Daemon, held: Held, content: bytes, library_root: Path) -> None:
    """The worker goes on, ends, and its call is answered by the next front, to the same caller."""
    request = increment(library_root, "n", "id")
    with stubs(daemon.address) as (executor, admin):
        with held.lock():
            call = executor.Submit.future(request, timeout=TIMEOUT_S)
            wait_until(lambda: is_committing(admin))
            worker = admin.ListDevices(admin_pb2.ListDevicesRequest()).devices[0].worker_pid
            assert daemon.process is not None
            daemon.process.kill()  # Its worker has its standard output too, which so ends later.
            with pytest.raises(grpc.RpcError):
                call.result()
        wait_until(lambda: not Path(f"/proc/{worker}").exists())
    assert held.kept() == {"default/before": content, "default/id": content}
    daemon.start()
    daemon.wait_until_up()
    with stubs(daemon.address) as (executor, _):
        assert number(executor.Submit(request, timeout=TIMEOUT_S)) == 2
        assert number(executor.Submit(request, timeout=TIMEOUT_S)) == 2
        assert number(executor.Submit(increment(library_root, "n", "next"), timeout=TIMEOUT_S)) == 3


def test_a_caller_that_left_while_its_call_committed(daemon: Daemon, held: Held, content: bytes, library_root: Path) -> None:
    """It comes again at once, and finds nothing stored yet: its call runs beside the one that still commits."""
    request = increment(library_root, "n", "id")
    with stubs(daemon.address) as (executor, admin):
        with held.lock():
            call = executor.Submit.future(request, timeout=TIMEOUT_S)
            wait_until(lambda: is_committing(admin))
            call.cancel()
            again = executor.Submit.future(request, timeout=TIMEOUT_S)
            wait_until(lambda: len(admin.ListRequests(admin_pb2.ListRequestsRequest()).requests) == 1)
        assert number(again.result()) == 2
        assert number(executor.Submit(increment(library_root, "n", "next"), timeout=TIMEOUT_S)) == 3


class Counting:
    """A caller that adds one to a number of its own, again and again, and sends each call until it is answered."""

    def __init__(self, key: str, library_root: Path) -> None:
        self.key = key
        self.acknowledged = 0
        self.again = 0
        """Calls that were sent more than once."""
        self._library_root = library_root

    def run(self, daemon: Daemon, stop: threading.Event) -> None:
        """Count until ``stop``, and on until the last call is answered."""
        sent = 0
        while not stop.is_set() or sent > self.acknowledged:
            if not daemon.up.wait(0.1):
                continue
            with suppress(grpc.RpcError), stubs(daemon.address) as (executor, _):
                while not stop.is_set() or sent > self.acknowledged:
                    if sent == self.acknowledged:
                        sent += 1
                    else:
                        self.again += 1
                    try:
                        reply = executor.Submit(increment(self._library_root, self.key, f"{self.key}-{sent}"), timeout=TIMEOUT_S)
                    except grpc.RpcError as error:
                        failed: KaasError = as_kaas_error(error, daemon.address)
                        assert failed.code == "UNAVAILABLE", failed
                        raise
                    assert number(reply) == sent, f"{self.key}: call {sent} had its effect not once"
                    self.acknowledged += 1


@contextmanager
def counting(daemon: Daemon, library_root: Path) -> Iterator[Callable[[], None]]:
    """Callers count meanwhile; yields what waits until each has gone on. At the end each number is that of its calls."""
    callers = [Counting(f"n{index}", library_root) for index in range(3)]
    with Client(daemon.address) as kaas:
        for caller in callers:
            kaas.put(caller.key, bytes(4))
    stop = threading.Event()
    with ThreadPoolExecutor(len(callers)) as threads:
        runs = [threads.submit(caller.run, daemon, stop) for caller in callers]

        def advance() -> None:
            before = [caller.acknowledged for caller in callers]

            def advanced() -> bool:
                for run in runs:
                    if run.done():
                        run.result()
                return all(caller.acknowledged > done for caller, done in zip(callers, before, strict=True))

            wait_until(advanced)

        try:
            yield advance
        finally:
            stop.set()
    for run in runs:
        run.result()
    with Client(daemon.address) as kaas:
        for caller in callers:
            assert int.from_bytes(kaas.get(caller.key), "little") == caller.acknowledged


KILLS = 10


def test_workers_killed_at_random_moments(daemon: Daemon, library_root: Path) -> None:
    moments = random.Random()
    with counting(daemon, library_root) as advance, Client(daemon.address) as kaas:
        for kill in range(KILLS):
            advance()
            time.sleep(moments.uniform(0, 0.02))
            os.kill(kaas.devices()[0].worker_pid, signal.SIGKILL)
            wait_until(lambda kill=kill: kaas.devices()[0].restarts == kill + 1)
    assert daemon.end(signal.SIGTERM) == 0


def test_fronts_killed_at_random_moments(daemon: Daemon, library_root: Path) -> None:
    moments = random.Random()
    with counting(daemon, library_root) as advance:
        for _ in range(KILLS // 2):
            advance()
            time.sleep(moments.uniform(0, 0.02))
            assert daemon.end(signal.SIGKILL) == -signal.SIGKILL
            daemon.start()
            daemon.wait_until_up()
        advance()
    assert daemon.end(signal.SIGTERM) == 0
