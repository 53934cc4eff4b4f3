"""Once the store is found to be gone, nothing is answered from what is left of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from kaas.v1 import admin_pb2, executor_pb2, kv_pb2, library_pb2
from tests.api.support import LIBRARY, PTX, Running, Stubs, failure, product_request

PUT = [kv_pb2.PutRequest(header=kv_pb2.PutHeader(key="k", size_bytes=1)), kv_pb2.PutRequest(chunk=b"x")]
UPLOAD = [
    library_pb2.UploadLibraryRequest(header=library_pb2.UploadLibraryHeader(size_bytes=len(PTX))),
    library_pb2.UploadLibraryRequest(chunk=PTX),
]

CALLS: dict[str, Callable[[Stubs], Any]] = {
    "Get": lambda stubs: list(stubs.kv.Get(kv_pb2.GetRequest(key="k"))),
    "Stat": lambda stubs: stubs.kv.Stat(kv_pb2.StatRequest(key="k")),
    "List": lambda stubs: stubs.kv.List(kv_pb2.ListRequest()),
    "Put": lambda stubs: stubs.kv.Put(iter(PUT)),
    "Delete": lambda stubs: stubs.kv.Delete(kv_pb2.DeleteRequest(key="k")),
    "RegisterFunction": lambda stubs: stubs.executor.RegisterFunction(
        executor_pb2.RegisterFunctionRequest(name="f", request=product_request())
    ),
    "DeleteFunction": lambda stubs: stubs.executor.DeleteFunction(executor_pb2.DeleteFunctionRequest(name="f")),
    "UploadLibrary": lambda stubs: stubs.library.UploadLibrary(iter(UPLOAD)),
    "DeleteLibrary": lambda stubs: stubs.library.DeleteLibrary(library_pb2.DeleteLibraryRequest(id=LIBRARY)),
    "Resume": lambda stubs: stubs.admin.Resume(admin_pb2.ResumeRequest()),
    "CheckStore": lambda stubs: list(stubs.admin.CheckStore(admin_pb2.CheckStoreRequest())),
    "BackupStore": lambda stubs: list(stubs.admin.BackupStore(admin_pb2.BackupStoreRequest())),
    "CompactStore": lambda stubs: stubs.admin.CompactStore(admin_pb2.CompactStoreRequest()),
}


@pytest.fixture
def stubs(server: Running) -> Iterator[Stubs]:
    """Stubs of a server that has found out that its store has been moved away."""
    server.stubs.kv.Put(iter(PUT))
    path = server.store.identity.path
    path.rename(path.with_name("moved"))
    assert failure(lambda: server.stubs.kv.Put(iter(PUT))).reason == "STORE_GONE"
    yield server.stubs


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_is_refused(call: Callable[[Stubs], Any], stubs: Stubs) -> None:
    failed = failure(lambda: call(stubs))
    assert (failed.code, failed.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STORE_GONE")
    assert "moved" in failed.message
