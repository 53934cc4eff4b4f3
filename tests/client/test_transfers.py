"""Values on their way in and out: every kind of source and target, in chunks, and what goes wrong half way."""

from __future__ import annotations

import array
import ctypes
import io
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from kaas.v1 import admin_pb2, kv_pb2
from kaas_client._dtypes import dtype_to_text
from kaas_client.errors import InternalError, InvalidArgumentError, KeyNotFoundError, StoreFullError
from tests.client.fake_server import Failure, FakeServer

MIB = 1 << 20


def put_reply() -> kv_pb2.PutResponse:
    return kv_pb2.PutResponse(entry=kv_pb2.Entry(key="k", version=5))


def get_reply(*chunks: bytes, size_bytes: int | None = None) -> list[kv_pb2.GetResponse]:
    size = sum(map(len, chunks)) if size_bytes is None else size_bytes
    header = kv_pb2.GetResponse(entry=kv_pb2.Entry(key="k", size_bytes=size))
    return [header, *(kv_pb2.GetResponse(chunk=chunk) for chunk in chunks)]


def pipe_with(content: bytes) -> Any:
    reader, writer = os.pipe()

    def fill() -> None:
        with os.fdopen(writer, "wb") as file:
            file.write(content)

    threading.Thread(target=fill).start()
    return os.fdopen(reader, "rb")


def anonymous_map(content: bytes) -> mmap.mmap:
    region = mmap.mmap(-1, len(content))
    region[:] = content
    region.seek(3)
    return region


CONTENT = bytes(range(24))


class Structure(ctypes.Structure):
    _fields_ = (("OPX", ctypes.c_uint64), ("b", ctypes.c_double * 2))


class Pointers(ctypes.Structure):
    _fields_ = (("a", ctypes.POINTER(ctypes.c_int)),)


class Tensor:
    """Another library's array, without the buffer protocol."""

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return np.zeros(2)


SOURCES: dict[str, Callable[[], Any]] = {
    "bytes": lambda: CONTENT,
    "bytearray": lambda: bytearray(CONTENT),
    "memoryview": lambda: memoryview(CONTENT),
    "array": lambda: array.array("I", np.frombuffer(CONTENT, "u4").tolist()),
    "mmap, from its start": lambda: anonymous_map(CONTENT),
    "numpy": lambda: np.frombuffer(CONTENT, "u4"),
    "numpy, two dimensions": lambda: np.frombuffer(CONTENT, "u2").reshape(3, 4),
    "numpy, other byte order": lambda: np.frombuffer(CONTENT, ">f4"),
    "numpy, structured": lambda: np.frombuffer(CONTENT, [("a", "u1"), ("b", "u2")]),
    "numpy, half": lambda: np.frombuffer(CONTENT, "f2"),
    "numpy, complex": lambda: np.frombuffer(CONTENT, "c8"),
    "numpy, text of one length": lambda: np.frombuffer(CONTENT, "S4"),
    "numpy, dates": lambda: np.frombuffer(CONTENT, "i8").view("datetime64[ns]"),
    "numpy, spans of time, strided": lambda: np.repeat(np.frombuffer(CONTENT, "i8"), 2).view("timedelta64[s]")[::2],
    "numpy, structured with dates": lambda: np.frombuffer(CONTENT, [("a", "i8"), ("b", "u4")]).view(
        [("a", "M8[s]"), ("b", "u4")]
    ),
    "ml_dtypes, bfloat16": lambda: np.frombuffer(CONTENT, "u2").view(ml_dtypes.bfloat16).reshape(3, 4),
    "ml_dtypes, fp8": lambda: np.frombuffer(CONTENT, "u1").view(ml_dtypes.float8_e4m3fn),
    "a structure of C": lambda: Structure.from_buffer_copy(CONTENT),
    "numpy, strided": lambda: np.frombuffer(bytes(b for c in CONTENT for b in (c, 255)), "u1")[::2],
    "numpy, Fortran order": lambda: np.asfortranarray(np.frombuffer(CONTENT, "u1").reshape(4, 6)),
    "numpy, transposed back": lambda: np.ascontiguousarray(np.frombuffer(CONTENT, "u1").reshape(4, 6).T).T,
    "file": lambda: io.BytesIO(CONTENT),
    "file, from where it stands": lambda: _advanced(io.BytesIO(b"skipped" + CONTENT), 7),
    "pipe": lambda: pipe_with(CONTENT),
    "generator": lambda: (CONTENT[i : i + 5] for i in range(0, 24, 5)),
    "list of arrays": lambda: [np.frombuffer(CONTENT, "u4")[:3], CONTENT[12:]],
}


def _advanced(file: io.BytesIO, position: int) -> io.BytesIO:
    file.seek(position)
    return file


@pytest.mark.parametrize("kind", SOURCES)
def test_put_takes_it(client: Any, server: FakeServer, kind: str) -> None:
    server.expect("Put", put_reply())
    source, expected = SOURCES[kind](), kv_pb2.PutHeader(key="k", size_bytes=24)
    if isinstance(source, np.ndarray):
        expected.dtype = dtype_to_text(source.dtype)
        expected.shape.extend(source.shape)
    assert client.put("k", source).version == 5
    header, *chunks = server.only_call("Put").request
    assert header.header == expected
    assert b"".join(message.chunk for message in chunks) == CONTENT


@pytest.mark.parametrize("data", [b"", np.zeros((0, 4)), [], io.BytesIO()])
def test_put_takes_nothing(client: Any, server: FakeServer, data: Any) -> None:
    server.expect("Put", put_reply())
    client.put("k", data)
    assert [message.header.size_bytes for message in server.only_call("Put").request] == [0]


def test_put_takes_a_path(client: Any, server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "value").write_bytes(CONTENT)
    server.expect("Put", put_reply())
    client.put("k", tmp_path / "value")
    assert [message.chunk for message in server.only_call("Put").request[1:]] == [CONTENT]


def test_a_number_is_a_scalar_array(client: Any, server: FakeServer) -> None:
    server.expect("Put", put_reply())
    client.put("k", np.float32(1.0))
    assert server.only_call("Put").request[1].chunk == b"\x00\x00\x80\x3f"


@pytest.mark.parametrize("kind", ["buffer", "file", "generator of crumbs", "one large piece"])
def test_put_cuts_into_chunks_of_a_mebibyte(client: Any, server: FakeServer, kind: str) -> None:
    content = np.arange(5 * MIB // 8 + 1, dtype="u4").tobytes()
    source = {
        "buffer": lambda: content,
        "file": lambda: io.BytesIO(content),
        "generator of crumbs": lambda: (content[i : i + 1000] for i in range(0, len(content), 1000)),
        "one large piece": lambda: iter([content]),
    }[kind]()
    seen: list[tuple[int, int]] = []
    server.expect("Put", put_reply())
    client.put("k", source, size=len(content), progress=lambda done, total: seen.append((done, total)))
    header, *chunks = server.only_call("Put").request
    assert header.header.size_bytes == len(content) == 2 * MIB + MIB // 2 + 4
    assert [len(message.chunk) for message in chunks] == [MIB, MIB, MIB // 2 + 4]
    assert b"".join(message.chunk for message in chunks) == content
    assert seen == [(MIB, len(content)), (2 * MIB, len(content)), (len(content), len(content))]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("text", "cannot store a str"),
        (5, "not int"),
        ([1, 2], "expected bytes or an array, not int"),
        (["text"], "expected bytes or an array, not str"),
        (io.StringIO("text"), "open in binary mode"),
        (np.array([1, "x"], object), "not plain bytes.*astype"),
        (np.array([(1, "x")], [("a", "i4"), ("b", object)]), "not plain bytes.*astype"),
        (np.ma.masked_array([1, 2], [True, False]), "lose its mask.*filled"),
        (np.ma.masked_array([1, 2]), "lose its mask.*filled"),
        (Pointers(), "are addresses"),
        ((ctypes.py_object * 2)(1, 2), "are addresses"),
        ([Tensor()], "not Tensor; send numpy.asarray"),
    ],
)
def test_put_refuses_what_is_not_data(client: Any, server: FakeServer, data: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        client.put("k", data)
    assert server.calls == []


def test_a_missing_file_is_an_os_error(client: Any, server: FakeServer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        client.put("k", tmp_path / "missing")


def test_a_source_that_fails_half_way_raises_its_own_error(client: Any, server: FakeServer) -> None:
    def pieces() -> Iterator[bytes]:
        yield bytes(MIB)
        raise RuntimeError("the disk is on fire")

    incomplete = Failure("FAILED_PRECONDITION", "the upload is too short", "UPLOAD_INCOMPLETE")
    server.expect("Put", incomplete)
    with pytest.raises(RuntimeError, match="the disk is on fire"):
        client.put("k", pieces(), size=2 * MIB)
    (header, chunk) = server.only_call("Put").request
    assert (header.header.size_bytes, len(chunk.chunk)) == (2 * MIB, MIB)


def test_a_refusal_ends_an_upload_that_would_never_end(client: Any, server: FakeServer) -> None:
    def refuse(messages: Any, context: Any) -> Failure:
        next(messages)
        return Failure("INVALID_ARGUMENT", "the key is too long", "INVALID_NAME")

    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(MIB)

    server.expect("Put", refuse)
    with pytest.raises(InvalidArgumentError, match="the key is too long"):
        client.put("k" * 500, endless(), size=1 << 40)


def test_get_returns_bytes(client: Any, server: FakeServer) -> None:
    server.expect("Get", get_reply(b"abc", b"de"))
    assert client.get("k") == b"abcde"
    request = server.only_call("Get").request
    assert (request.key, request.offset_bytes, request.HasField("size_bytes")) == ("k", 0, False)


def test_get_a_range(client: Any, server: FakeServer) -> None:
    server.expect("Get", get_reply(b"cd", size_bytes=10))
    assert client.get("k", offset=2, size=2) == b"cd"
    request = server.only_call("Get").request
    assert (request.offset_bytes, request.HasField("size_bytes"), request.size_bytes) == (2, True, 2)


def test_get_from_an_offset_to_the_end(client: Any, server: FakeServer) -> None:
    server.expect("Get", get_reply(b"cde", size_bytes=5))
    assert client.get("k", offset=2) == b"cde"


def test_get_as_an_array(client: Any, server: FakeServer) -> None:
    server.expect("Get", get_reply(b"\x01\x00", b"\x00\x00\x02\x00\x00\x00"))
    found = client.get("k", dtype="u4")
    assert found.dtype == np.uint32 and found.tolist() == [1, 2]
    found[0] = 7
    assert found.tolist() == [7, 2]


def test_get_as_an_array_of_no_elements(client: Any, server: FakeServer) -> None:
    server.expect("Get", get_reply())
    assert client.get("k", np.float64).tolist() == []


def test_get_as_an_array_that_does_not_divide(client: Any, server: FakeServer) -> None:
    server.expect("Get", get_reply(b"abcde"))
    with pytest.raises(ValueError, match="5 bytes are not a whole number of uint32 elements"):
        client.get("k", "u4")


def test_get_into_an_array(client: Any, server: FakeServer) -> None:
    target = np.zeros((2, 2), "<u2")
    server.expect("Get", get_reply(b"\x01\x00\x02", b"\x00\x03\x00"))
    assert client.get("k", into=target) == 6
    assert target.tolist() == [[1, 2], [3, 0]]


def test_get_into_a_buffer_that_is_too_small(client: Any, server: FakeServer) -> None:
    target = bytearray(2)
    server.expect("Get", get_reply(b"abc"))
    with pytest.raises(ValueError, match="3 bytes do not fit into a buffer of 2"):
        client.get("k", into=target)
    assert target == bytes(2)


def test_get_into_a_file(client: Any, server: FakeServer) -> None:
    target = io.BytesIO()
    seen: list[tuple[int, int]] = []
    server.expect("Get", get_reply(b"abc", b"de"))
    assert client.get("k", into=target, progress=lambda done, total: seen.append((done, total))) == 5
    assert target.getvalue() == b"abcde"
    assert seen == [(3, 5), (5, 5)]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"into": b"fixed"}, ValueError, "must be writable"),
        ({"into": np.zeros((4, 4))[:, ::2]}, ValueError, "contiguous"),
        ({"into": 5}, TypeError, "not int"),
        ({"into": bytearray(1), "dtype": "u4"}, ValueError, "cannot be given together"),
        ({"dtype": "nonsense"}, TypeError, "nonsense"),
    ],
)
def test_get_refuses_bad_targets_before_it_calls(
    client: Any, server: FakeServer, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        client.get("k", **options)
    assert server.calls == []


def test_get_of_a_missing_key(client: Any, server: FakeServer) -> None:
    server.expect("Get", Failure("NOT_FOUND", "no key 'k'", "KEY_NOT_FOUND"))
    with pytest.raises(KeyNotFoundError, match="no key 'k'"):
        client.get("k")


def backup_reply(*chunks: bytes, size_bytes: int | None = None) -> list[admin_pb2.BackupStoreResponse]:
    size = sum(map(len, chunks)) if size_bytes is None else size_bytes
    header = admin_pb2.BackupStoreResponse(header=admin_pb2.BackupHeader(size_bytes=size))
    return [header, *(admin_pb2.BackupStoreResponse(chunk=chunk) for chunk in chunks)]


@pytest.mark.parametrize("kind", [str, Path])
def test_a_backup_at_a_path(client: Any, server: FakeServer, tmp_path: Path, kind: type) -> None:
    server.expect("BackupStore", backup_reply(b"abc", b"", b"de"))
    seen: list[tuple[int, int]] = []
    path = tmp_path / "backup.tar"
    assert client.backup_store(kind(path), progress=lambda *done: seen.append(done)) == 5
    assert path.read_bytes() == b"abcde"
    assert path.stat().st_mode & 0o777 == 0o600
    assert seen[-1] == (5, 5)
    assert list(tmp_path.iterdir()) == [path]


def test_a_backup_in_a_file(client: Any, server: FakeServer) -> None:
    server.expect("BackupStore", backup_reply(b"abc"))
    target = io.BytesIO()
    assert client.backup_store(target) == 3
    assert target.getvalue() == b"abc"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Failure("RESOURCE_EXHAUSTED", "no room", "STORE_FULL"), StoreFullError),
        (backup_reply(b"abc", size_bytes=4), InternalError),
        (backup_reply()[1:], InternalError),
    ],
)
def test_a_backup_that_fails_leaves_what_was_there(
    client: Any, server: FakeServer, tmp_path: Path, answer: Any, kind: type[Exception]
) -> None:
    path = tmp_path / "backup.tar"
    path.write_bytes(b"the one of yesterday")
    server.expect("BackupStore", answer)
    with pytest.raises(kind):
        client.backup_store(path)
    assert path.read_bytes() == b"the one of yesterday"
    assert list(tmp_path.iterdir()) == [path]


def test_a_backup_that_cannot_be_written_ends_the_call(client: Any, server: FakeServer) -> None:
    ended = threading.Event()

    def endless(request: Any, context: Any) -> Iterator[admin_pb2.BackupStoreResponse]:
        context.add_callback(ended.set)
        yield backup_reply(size_bytes=1 << 40)[0]
        while not ended.is_set():
            yield admin_pb2.BackupStoreResponse(chunk=bytes(MIB))

    server.expect("BackupStore", endless)
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(OSError, match="No space left"):
        client.backup_store(full)
    assert ended.wait(60)
