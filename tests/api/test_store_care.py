"""Care of the store over a real socket: who may ask for it, one at a time, and what a caller who leaves gives back."""

from __future__ import annotations

import io
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from kaas.v1 import admin_pb2, admin_pb2_grpc
from kaas_core.errors import InternalError, WorkerBusyError
from kaasd.api import admin
from kaasd.store.base import CheckProgress, Compaction, DamagedEntry, Namespace, Write
from kaasd.store.lmdb_store import LmdbStore
from tests.api.support import WAIT_S, FakeDispatcher, Running, failure, running_server
from tests.faults.support import wait_until
from tests.store.test_check import damage_chunk

BACKUP = admin_pb2.BackupStoreRequest()
CHECK = admin_pb2.CheckStoreRequest()
COMPACT = admin_pb2.CompactStoreRequest()


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("Drain", admin_pb2.DrainRequest()),
        ("Resume", admin_pb2.ResumeRequest()),
        ("DrainDevice", admin_pb2.DrainDeviceRequest(name="emulator")),
        ("ResumeDevice", admin_pb2.ResumeDeviceRequest(name="emulator")),
        ("ListRequests", admin_pb2.ListRequestsRequest()),
        ("CancelRequest", admin_pb2.CancelRequestRequest(id="1")),
        ("ListQuarantine", admin_pb2.ListQuarantineRequest()),
        ("ReleaseQuarantine", admin_pb2.ReleaseQuarantineRequest(id="1")),
        ("BackupStore", BACKUP),
        ("CompactStore", COMPACT),
        ("CheckStore", CHECK),
    ],
)
def test_over_tcp_it_is_not_enabled(method: str, request_: object, tmp_path: Path) -> None:
    with (
        running_server(tmp_path, FakeDispatcher(), listen=("127.0.0.1:0",)) as server,
        grpc.insecure_channel(server.server.addresses[0]) as channel,
    ):
        call = getattr(admin_pb2_grpc.AdminServiceStub(channel), method)
        failed = failure(lambda: list(answer) if isinstance(answer := call(request_), grpc.Call) else answer)
        assert (failed.code, failed.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_ENABLED")
        assert "unix sockets" in failed.message
        assert not server.stubs.admin.GetServerInfo(admin_pb2.GetServerInfoRequest()).draining


def copies_under_way(server: Running) -> int:
    """Return how many files in the store's directory this process has open that have no name."""
    directory, found = server.store.identity.path, 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            found += link.readlink().parent == directory and "(deleted)" in str(link.readlink())
        except OSError:
            continue
    return found


def test_a_backup_is_a_tar_of_a_store(server: Running, tmp_path: Path) -> None:
    value = os.urandom(3 << 20)
    server.store.commit([Write("a", [value])]).result(WAIT_S)
    first, *rest = server.stubs.admin.BackupStore(BACKUP)
    tar = b"".join(part.chunk for part in rest)
    assert first.header.size_bytes == len(tar)
    assert max(len(part.chunk) for part in rest) <= 1 << 20
    with tarfile.open(fileobj=io.BytesIO(tar)) as file:
        file.extractall(tmp_path / "restored", filter="data")
    with LmdbStore(tmp_path / "restored", limit_bytes=256 << 20) as restored, restored.snapshot() as snapshot:
        assert b"".join(snapshot.pieces("a")) == value
    wait_until(lambda: not copies_under_way(server))


def test_one_backup_at_a_time(server: Running) -> None:
    server.store.commit([Write("a", [os.urandom(30 << 20)])]).result(WAIT_S)
    slow = server.stubs.admin.BackupStore(BACKUP)
    assert next(slow).header.size_bytes > 30 << 20
    refused = failure(lambda: next(server.stubs.admin.BackupStore(BACKUP)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert "one at a time" in refused.message
    assert copies_under_way(server)
    slow.cancel()
    wait_until(lambda: not copies_under_way(server))
    assert len(list(server.stubs.admin.BackupStore(BACKUP))) > 30


def test_a_reader_that_has_stopped_loses_its_backup(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "STALLED_S", 0.2)
    server.store.commit([Write("a", [os.urandom(30 << 20)])]).result(WAIT_S)
    slow = server.stubs.admin.BackupStore(BACKUP)
    next(slow)
    wait_until(lambda: not copies_under_way(server))
    failed = failure(lambda: list(slow))
    assert (failed.code, failed.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")


def test_a_caller_who_leaves_while_the_copy_is_made(server: Running) -> None:
    server.store.commit([Write("a", [os.urandom(60 << 20)])]).result(WAIT_S)
    call = server.stubs.admin.BackupStore(BACKUP)
    wait_until(lambda: copies_under_way(server) > 0)
    call.cancel()
    wait_until(lambda: not copies_under_way(server))
    server.store.delete("a").result(WAIT_S)
    assert not server.store._environment.is_held()


def hole_of(server: Running, size_bytes: int) -> None:
    """Have the store's file get free pages of that many bytes."""
    server.store.commit([Write("a", [os.urandom(size_bytes)])]).result(WAIT_S)
    server.store.delete("a").result(WAIT_S)


def test_a_compaction_says_what_it_gave_back(server: Running) -> None:
    hole_of(server, 20 << 20)
    server.dispatcher.expect("pages_released", None)
    done = server.stubs.admin.CompactStore(COMPACT)
    status = (server.store.identity.path / "data.mdb").stat()
    assert done.disk_after_bytes == status.st_blocks * 512 < done.disk_before_bytes - (15 << 20)
    assert done.file_after_bytes == status.st_size <= done.file_before_bytes
    assert not done.only_end


def test_workers_that_hold_on_to_pages_keep_the_store_as_it_is(server: Running) -> None:
    hole_of(server, 20 << 20)
    server.dispatcher.expect("pages_released", WorkerBusyError("it is busy; nothing was changed"))
    failed = failure(lambda: server.stubs.admin.CompactStore(COMPACT))
    assert (failed.code, failed.reason, failed.retry_s) == (grpc.StatusCode.UNAVAILABLE, "WORKER_BUSY", 1.0)
    assert (server.store.identity.path / "data.mdb").stat().st_blocks * 512 > 20 << 20


class HeldCompaction:
    """In place of ``compact``: goes on until it is to stop."""

    def __init__(self, server: Running) -> None:
        self.began, self.released_until_its_end = threading.Event(), False
        self._dispatcher = server.dispatcher

    def __call__(self, is_stopped: Callable[[], bool]) -> Compaction:
        self.began.set()
        wait_until(is_stopped)
        self.released_until_its_end = self._dispatcher.pages_are_released
        return Compaction(4, 3, 2, 1, only_end=True)


def test_a_caller_who_leaves_ends_the_compaction(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers may hold on to pages again only when it has ended. Meanwhile there is no other."""
    held = HeldCompaction(server)
    monkeypatch.setattr(server.store, "compact", held)
    server.dispatcher.expect("pages_released", None)
    call = server.stubs.admin.CompactStore.future(COMPACT)
    assert held.began.wait(WAIT_S)
    refused = failure(lambda: server.stubs.admin.CompactStore(COMPACT))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    call.cancel()
    wait_until(lambda: not server.dispatcher.pages_are_released)
    assert held.released_until_its_end


def test_a_check_answers_with_what_is_damaged_and_how_far_it_came(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("a", "b", "c"):
        server.store.commit([Write(key, [bytes(200_000)])]).result(WAIT_S)
    server.store.commit([Write("f", [b"1"], namespace=Namespace.FUNCTIONS)]).result(WAIT_S)
    used = server.store.stats().used_bytes
    damage_chunk(server.store, "b", 1, None)
    *found, last = server.stubs.admin.CheckStore(CHECK)
    problem = "chunk 6 is missing"
    assert [part.damaged for part in found] == [admin_pb2.DamagedEntry(kind="value", key="b", problem=problem)]
    assert last.progress.entries == 4
    assert last.progress.checked_bytes == 600_001
    assert last.progress.used_bytes < used
    assert last.progress.finished
    kinds = iter([DamagedEntry(namespace, "k", "p") for namespace in (*Namespace, None)])
    monkeypatch.setattr(server.store, "check", lambda progress: kinds)
    found = list(server.stubs.admin.CheckStore(CHECK))
    assert [part.damaged.kind for part in found[:-1]] == [*(namespace.noun for namespace in Namespace), "store"]
    assert {"value", "library", "function", "reply", "compiled code", "group"} == {namespace.noun for namespace in Namespace}


class EndlessCheck:
    """In place of ``check``: finds nothing until it is to stop."""

    def __init__(self) -> None:
        self.progress: CheckProgress | None = None
        self.ended = threading.Event()

    def __call__(self, progress: CheckProgress) -> Iterator[DamagedEntry]:
        self.progress = progress
        wait_until(lambda: progress.stopped)
        self.ended.set()
        yield from ()


def test_a_caller_who_leaves_ends_the_check(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then it says how far it is, and there is no other."""
    monkeypatch.setattr(admin, "PROGRESS_S", 0.01)
    endless = EndlessCheck()
    monkeypatch.setattr(server.store, "check", endless)
    call = server.stubs.admin.CheckStore(CHECK)
    assert not next(call).progress.finished
    assert endless.progress is not None
    endless.progress.entries = 7
    while next(call).progress.entries != 7:
        pass
    refused = failure(lambda: list(server.stubs.admin.CheckStore(CHECK)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    call.cancel()
    assert endless.ended.wait(WAIT_S)
    monkeypatch.undo()
    wait_until(lambda: answers_check(server))


def answers_check(server: Running) -> bool:
    try:
        return bool(list(server.stubs.admin.CheckStore(CHECK)))
    except grpc.RpcError:
        return False


def test_a_check_that_fails(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(progress: CheckProgress) -> Iterator[DamagedEntry]:
        yield DamagedEntry(None, "", "it is damaged")
        raise InternalError("LMDB failed")

    monkeypatch.setattr(server.store, "check", fail)
    call = server.stubs.admin.CheckStore(CHECK)
    assert next(call).damaged.problem == "it is damaged"
    assert failure(lambda: list(call)).reason == "INTERNAL"
