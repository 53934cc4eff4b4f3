"""``LibraryService`` over a real socket."""

from __future__ import annotations

import errno
import hashlib
import itertools
import threading
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import grpc
import pytest

from kaas.v1 import library_pb2
from kaas_core import errors
from kaasd.api import library as api
from kaasd.api import shared
from kaasd.store.base import Namespace
from tests.api.support import PTX, WAIT_S, Call, Running, failure, inspected, wait_for_failure

ID = f"sha256:{hashlib.sha256(PTX).hexdigest()}"


def parts(content: bytes, size: int | None = None, file_name: str = "nothing.ptx") -> Iterator[library_pb2.UploadLibraryRequest]:
    size = len(content) if size is None else size
    yield library_pb2.UploadLibraryRequest(header=library_pb2.UploadLibraryHeader(file_name=file_name, size_bytes=size))
    for start in range(0, len(content), 50):
        yield library_pb2.UploadLibraryRequest(chunk=content[start : start + 50])


def upload(server: Running, content: bytes = PTX, **header: object) -> library_pb2.Library:
    server.dispatcher.expect("inspect", inspected())
    return server.stubs.library.UploadLibrary(parts(content, **header)).library


LARGE_PTX = PTX + b"// a comment\n" * (1 << 18)
"""More than is kept in memory while it comes."""


def stored(server: Running) -> list[str]:
    with server.store.snapshot() as snapshot:
        return [entry.key for entry in snapshot.list(namespace=Namespace.LIBRARIES)]


def test_an_upload_is_kept_by_its_hash(server: Running) -> None:
    library = upload(server)
    assert library.id == ID
    assert (library.file_name, library.size_bytes) == ("nothing.ptx", len(PTX))
    assert library.kind == library_pb2.LIBRARY_KIND_PTX
    assert library.create_time.seconds > 0
    (call,) = server.dispatcher.calls
    assert call.arguments == {"library": "", "content": PTX, "remaining": None}
    listed = server.stubs.library.ListLibraries(library_pb2.ListLibrariesRequest())
    assert list(listed.libraries) == [library]


def test_the_same_bytes_again_change_nothing(server: Running) -> None:
    first = upload(server)
    again = server.stubs.library.UploadLibrary(parts(PTX, file_name="other.ptx")).library
    assert again == first


@pytest.mark.parametrize(
    "content",
    [b"", b"to whom it may concern\n", PTX[: len(PTX) // 2], b"\x7fELF" + bytes(60)],
    ids=["empty", "text", "half", "elf"],
)
def test_what_is_no_gpu_code(server: Running, content: bytes) -> None:
    failed = failure(lambda: server.stubs.library.UploadLibrary(parts(content, file_name="lib.x")))
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_LIBRARY")
    assert failed.message.startswith("lib.x: ")
    assert stored(server) == []


def test_what_no_device_can_load(server: Running) -> None:
    server.dispatcher.expect("inspect", errors.InvalidLibraryError("line 5: no such instruction"))
    failed = failure(lambda: server.stubs.library.UploadLibrary(parts(PTX)))
    assert (failed.code, failed.message) == (grpc.StatusCode.INVALID_ARGUMENT, "line 5: no such instruction")
    assert stored(server) == []


@pytest.mark.parametrize("difference", [-1, 1])
def test_an_upload_of_another_size(server: Running, difference: int) -> None:
    failed = failure(lambda: server.stubs.library.UploadLibrary(parts(PTX, size=len(PTX) + difference)))
    assert (failed.code, failed.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "UPLOAD_INCOMPLETE")
    assert stored(server) == []


def test_a_header_that_asks_too_much(server: Running) -> None:
    failed = failure(lambda: server.stubs.library.UploadLibrary(parts(b"", size=1 << 40)))
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_LIBRARY")
    failed = failure(lambda: server.stubs.library.UploadLibrary(parts(PTX, file_name="n" * 256)))
    assert failed.fields == ["header.file_name"]


def test_the_longest_file_name(server: Running) -> None:
    assert upload(server, file_name="n" * 255).file_name == "n" * 255


def test_inspecting(server: Running) -> None:
    server.dispatcher.expect("inspect", inspected())
    response = server.stubs.library.InspectLibrary(library_pb2.InspectLibraryRequest(library="/opt/lib.so"))
    assert response == inspected()
    assert server.dispatcher.calls[0].arguments == {"library": "/opt/lib.so", "content": None, "remaining": None}


def test_the_deadline_of_a_call_is_that_of_its_inspection(server: Running) -> None:
    server.dispatcher.expect("inspect", inspected(), inspected())
    server.stubs.library.UploadLibrary(parts(PTX), timeout=100)
    server.stubs.library.InspectLibrary(library_pb2.InspectLibraryRequest(library=ID), timeout=100)
    for call in server.dispatcher.calls:
        assert 0 < call.arguments["remaining"] <= 101  # gRPC rounds what it sends up to a unit.


def test_inspecting_nothing(server: Running) -> None:
    failed = failure(lambda: server.stubs.library.InspectLibrary(library_pb2.InspectLibraryRequest()))
    assert failed.fields == ["library"]


def test_deleting(server: Running) -> None:
    upload(server)
    delete = library_pb2.DeleteLibraryRequest(id=ID)
    server.stubs.library.DeleteLibrary(delete)
    assert stored(server) == []
    assert server.dispatcher.calls[-1] == Call("forget_library", {"library_id": ID})
    failed = failure(lambda: server.stubs.library.DeleteLibrary(delete))
    assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "LIBRARY_NOT_FOUND")


@pytest.mark.parametrize("id", ["", "sha256:12", ID.upper(), "/opt/lib.so"])
def test_deleting_what_is_no_id(server: Running, id: str) -> None:
    failed = failure(lambda: server.stubs.library.DeleteLibrary(library_pb2.DeleteLibraryRequest(id=id)))
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_NAME")


def test_pages(server: Running) -> None:
    contents = [PTX.replace(b"nothing", b"kernel%d" % number) for number in range(5)]
    expected = sorted(f"sha256:{hashlib.sha256(content).hexdigest()}" for content in contents)
    for content in contents:
        upload(server, content)
    ids, token = [], ""
    for size in (2, 2, 1):
        response = server.stubs.library.ListLibraries(library_pb2.ListLibrariesRequest(page_size=2, page_token=token))
        assert len(response.libraries) == size
        ids += [library.id for library in response.libraries]
        token = response.next_page_token
    assert (ids, token) == (expected, "")


def test_a_large_upload(server: Running) -> None:
    server.dispatcher.expect("inspect", inspected())
    messages = [
        library_pb2.UploadLibraryRequest(header=library_pb2.UploadLibraryHeader(size_bytes=len(LARGE_PTX))),
        *(library_pb2.UploadLibraryRequest(chunk=LARGE_PTX[at : at + (1 << 20)]) for at in range(0, len(LARGE_PTX), 1 << 20)),
    ]
    library = server.stubs.library.UploadLibrary(iter(messages)).library
    assert library.id == f"sha256:{hashlib.sha256(LARGE_PTX).hexdigest()}"
    (call,) = server.dispatcher.calls
    assert call.arguments["content"] == LARGE_PTX


def test_an_upload_that_the_disk_has_no_room_for(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(api, "SpooledTemporaryFile", lambda *arguments, **options: Full())
    failed = failure(lambda: server.stubs.library.UploadLibrary(parts(PTX)))
    assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORE_FULL")
    assert stored(server) == []
    wait_for_failure(server, "STORE_FULL")


@pytest.mark.parametrize("sent", [0, 1, 3])
def test_an_upload_that_nothing_comes_of_any_more_ends(server: Running, monkeypatch: pytest.MonkeyPatch, sent: int) -> None:
    monkeypatch.setattr(shared, "UPLOAD_IDLE_S", 0.2)
    goes_on = threading.Event()

    def stops() -> Iterator[library_pb2.UploadLibraryRequest]:
        yield from itertools.islice(parts(PTX), sent)
        goes_on.wait(WAIT_S)

    failed = failure(lambda: server.stubs.library.UploadLibrary(stops()))
    goes_on.set()
    assert (failed.code, failed.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "UPLOAD_INCOMPLETE")
    assert "nothing came for 0.2 s" in failed.message
    assert stored(server) == []
