"""Care of the store over a real socket: who may ask for it, one at a time, and what a caller who leaves gives back."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import grpc
import pytest

from kaas.v1 import admin_pb2, admin_pb2_grpc
from kaasd.api import admin
from kaasd.store.base import Write
from kaasd.store.lmdb_store import LmdbStore
from tests.api.support import WAIT_S, FakeDispatcher, Running, failure, running_server
from tests.faults.support import wait_until

BACKUP = admin_pb2.BackupStoreRequest()


@pytest.mark.parametrize(
    ("method", "request_"),
    [("Drain", admin_pb2.DrainRequest()), ("BackupStore", BACKUP)],
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
