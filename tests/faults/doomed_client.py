"""A client that is in the middle of everything: ``python -m tests.faults.doomed_client ADDRESS``. It waits to be killed.

It has an upload of a value and one of a library half sent, a stream of invocations with answers to come, a reply half read, and a
request that runs without end. It prints a line when all of them are under way.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import grpc

from kaas.v1 import executor_pb2, executor_pb2_grpc, kv_pb2, kv_pb2_grpc, library_pb2, library_pb2_grpc

LARGE_KEY = "large"
"""A value that is there: 32 MiB, more than gRPC holds of a reply that is not read."""
ENDLESS, SHORT = "endless", "short"
"""Functions that are there."""
SIZE_BYTES, CHUNK_BYTES = 16 << 20, 1 << 20
INVOCATIONS = 8


def main(address: str) -> None:
    """Begin everything, and say so."""
    for_ever, sent = threading.Event(), threading.Semaphore(0)

    def half(first: object, request_type: type) -> Iterator[object]:
        yield first
        for _ in range(SIZE_BYTES // CHUNK_BYTES // 2):
            yield request_type(chunk=bytes(CHUNK_BYTES))
        sent.release()
        for_ever.wait()

    def invocations() -> Iterator[executor_pb2.InvokeStreamRequest]:
        for number in range(INVOCATIONS):
            function = executor_pb2.InvokeRequest(function=SHORT)
            yield executor_pb2.InvokeStreamRequest(id=number, invoke=function)
        sent.release()
        for_ever.wait()

    channel = grpc.insecure_channel(address)
    executor, kv = executor_pb2_grpc.ExecutorServiceStub(channel), kv_pb2_grpc.KvServiceStub(channel)
    library = library_pb2_grpc.LibraryServiceStub(channel)
    put = kv_pb2.PutRequest(header=kv_pb2.PutHeader(key="half", size_bytes=SIZE_BYTES))
    upload = library_pb2.UploadLibraryRequest(header=library_pb2.UploadLibraryHeader(file_name="half.ptx", size_bytes=SIZE_BYTES))
    reply = kv.Get(kv_pb2.GetRequest(key=LARGE_KEY))
    next(reply)
    calls = [
        reply,
        kv.Put.future(half(put, kv_pb2.PutRequest)),
        library.UploadLibrary.future(half(upload, library_pb2.UploadLibraryRequest)),
        executor.InvokeStream(invocations()),
    ]
    for _ in calls[1:]:
        sent.acquire()
    calls.append(executor.Invoke.future(executor_pb2.InvokeRequest(function=ENDLESS)))
    print("in the middle", flush=True)
    for_ever.wait()


if __name__ == "__main__":
    main(sys.argv[1])
