"""Uploads that stop half-way take no memory of the front."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc

from kaas.v1 import library_pb2, library_pb2_grpc
from kaas_client import Client
from tests.faults.support import own_daemon, wait_until

UPLOADS, SENT_BYTES, CHUNK_BYTES = 12, 32 << 20, 1 << 20
MOST_BYTES = UPLOADS * SENT_BYTES // 2
"""That all of them may take: gRPC holds some of each that was not read yet."""


def resident_bytes(pid: int) -> int:
    """Return the memory of a process's own."""
    (kilobytes,) = re.findall(r"^RssAnon:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(kilobytes) << 10


def test_uploads_that_stop_half_way(library_root: Path) -> None:
    goes_on, sent = threading.Event(), threading.Semaphore(0)
    header = library_pb2.UploadLibraryHeader(file_name="half.ptx", size_bytes=2 * SENT_BYTES)

    def messages() -> Iterator[library_pb2.UploadLibraryRequest]:
        yield library_pb2.UploadLibraryRequest(header=header)
        for _ in range(SENT_BYTES // CHUNK_BYTES):
            yield library_pb2.UploadLibraryRequest(chunk=bytes(CHUNK_BYTES))
        sent.release()
        goes_on.wait()

    with own_daemon("emulator", library_root) as address, Client(address) as kaas, grpc.insecure_channel(address) as channel:
        worker = kaas.devices()[0].worker_pid
        front = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
        before = resident_bytes(front)
        stub = library_pb2_grpc.LibraryServiceStub(channel)
        uploads = [stub.UploadLibrary.future(messages()) for _ in range(UPLOADS)]
        for _ in uploads:
            sent.acquire()
        # What is still on its way is on the client's side: the front reads on while there is room.
        wait_until(lambda: bool(kaas.stats()))
        assert resident_bytes(front) - before < MOST_BYTES
        assert kaas.upload(library_root / "dot.ptx")
        for upload in uploads:
            upload.cancel()
        goes_on.set()
