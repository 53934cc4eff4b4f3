"""``KvService`` over a real socket."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from kaas.v1 import kv_pb2
from kaasd.api import kv
from kaasd.store.base import Write
from tests.api.support import WAIT_S, FakeDispatcher, Running, failure, running_server, wait_for_failure


def put(server: Running, key: str, value: bytes, chunk_bytes: int = 1 << 20) -> kv_pb2.Entry:
    return server.stubs.kv.Put(_parts(key, len(value), value, chunk_bytes)).entry


def get(server: Running, key: str, **range_: int) -> tuple[kv_pb2.Entry, bytes]:
    first, *others = server.stubs.kv.Get(kv_pb2.GetRequest(key=key, **range_))
    assert first.WhichOneof("part") == "entry"
    return first.entry, b"".join(message.chunk for message in others)


def _parts(key: str, size: int, value: bytes, chunk_bytes: int = 1 << 20) -> Iterator[kv_pb2.PutRequest]:
    yield kv_pb2.PutRequest(header=kv_pb2.PutHeader(key=key, size_bytes=size))
    for start in range(0, len(value), chunk_bytes):
        yield kv_pb2.PutRequest(chunk=value[start : start + chunk_bytes])


def pattern(size: int) -> bytes:
    return bytes(i * 37 % 251 for i in range(1021)) * (size // 1021 + 1)


@pytest.mark.parametrize("size", [0, 1, 70_000, 1 << 20, (1 << 20) + 1, 5_000_000])
def test_what_was_put_is_got(server: Running, size: int) -> None:
    value = pattern(size)[:size]
    stored = put(server, "k", value, chunk_bytes=300_000)
    assert (stored.key, stored.size_bytes) == ("k", size)
    assert stored.update_time.seconds > 0
    entry, got = get(server, "k")
    assert got == value
    assert entry == stored
    assert server.stubs.kv.Stat(kv_pb2.StatRequest(key="k")).entry == stored


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 1, 3 << 20])
def test_a_value_comes_in_chunks_of_at_most_1_mib(server: Running, size: int) -> None:
    put(server, "k", bytes(size))
    _, *chunks = server.stubs.kv.Get(kv_pb2.GetRequest(key="k"))
    sizes = [len(message.chunk) for message in chunks]
    assert sum(sizes) == size
    assert max(sizes) <= 1 << 20


def test_every_put_gives_a_greater_version(server: Running) -> None:
    assert put(server, "k", b"one").version < put(server, "k", b"two").version
    assert get(server, "k")[1] == b"two"


@pytest.mark.parametrize(
    ("offset", "size", "expected"),
    [
        (0, 0, slice(0, 0)),
        (10, 5, slice(10, 15)),
        (65_530, 20, slice(65_530, 65_550)),
        (2_999_999, 1, slice(2_999_999, 3_000_000)),
    ],
)
def test_a_range(server: Running, offset: int, size: int, expected: slice) -> None:
    value = pattern(3_000_000)[:3_000_000]
    put(server, "k", value)
    assert get(server, "k", offset_bytes=offset, size_bytes=size)[1] == value[expected]
    assert get(server, "k", offset_bytes=offset)[1] == value[offset:]


@pytest.mark.parametrize(("offset", "size"), [(0, 5), (4, 1), (5, 0), (2**63, 2**63 - 1), (0, 2_000_000)])
def test_a_range_past_the_end(server: Running, offset: int, size: int) -> None:
    put(server, "k", b"1234")
    failed = failure(lambda: get(server, "k", offset_bytes=offset, size_bytes=size))
    assert (failed.code, failed.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "VALUE_TOO_SHORT")


def test_an_unknown_key(server: Running) -> None:
    for call in (
        lambda: get(server, "absent"),
        lambda: server.stubs.kv.Stat(kv_pb2.StatRequest(key="absent")),
        lambda: server.stubs.kv.Delete(kv_pb2.DeleteRequest(key="absent")),
    ):
        failed = failure(call)
        assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "KEY_NOT_FOUND")
        assert "absent" in failed.message


@pytest.mark.parametrize("key", ["", "k" * 401, "ä" * 201])
def test_a_bad_key(server: Running, key: str) -> None:
    for call in (
        lambda: put(server, key, b"x"),
        lambda: get(server, key),
        lambda: server.stubs.kv.Stat(kv_pb2.StatRequest(key=key)),
        lambda: server.stubs.kv.Delete(kv_pb2.DeleteRequest(key=key)),
    ):
        failed = failure(call)
        assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_NAME")
        assert failed.message.startswith("key: ")


def test_the_longest_key(server: Running) -> None:
    put(server, "ä" * 200, b"x")
    assert get(server, "ä" * 200)[1] == b"x"


def test_a_key_that_is_no_utf8(server: Running) -> None:
    stat = server.stubs.channel.unary_unary("/kaas.v1.KvService/Stat")
    failed = failure(lambda: stat(b"\x0a\x02\xff\xfe"))
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert "UTF-8" in failed.message


def test_a_message_of_a_stream_that_is_no_message(server: Running) -> None:
    call = server.stubs.channel.stream_unary("/kaas.v1.KvService/Put")
    failed = failure(lambda: call(iter([b"\xff\xff\xff"])))
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


@pytest.mark.parametrize("size", [100, 2_000_000])
@pytest.mark.parametrize("sent", [-1, 1])
def test_a_put_of_another_size_stores_nothing(server: Running, size: int, sent: int) -> None:
    put(server, "k", b"old")
    failed = failure(lambda: server.stubs.kv.Put(_parts("k", size, bytes(size + sent), 50_000)))
    assert (failed.code, failed.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "UPLOAD_INCOMPLETE")
    assert get(server, "k")[1] == b"old"


@pytest.mark.parametrize(
    ("messages", "code", "field"),
    [
        ([], grpc.StatusCode.FAILED_PRECONDITION, None),
        ([kv_pb2.PutRequest(chunk=b"x")], grpc.StatusCode.INVALID_ARGUMENT, "header"),
        ([kv_pb2.PutRequest()], grpc.StatusCode.INVALID_ARGUMENT, "header"),
        ([kv_pb2.PutRequest(header=kv_pb2.PutHeader(key="k", size_bytes=9))] * 2, grpc.StatusCode.INVALID_ARGUMENT, "chunk"),
    ],
    ids=["nothing", "no header", "empty", "two headers"],
)
def test_a_put_out_of_order(server: Running, messages: list[kv_pb2.PutRequest], code: grpc.StatusCode, field: str) -> None:
    failed = failure(lambda: server.stubs.kv.Put(iter(messages)))
    assert failed.code is code
    assert failed.fields == ([field] if field else [])


def put_array(server: Running, value: bytes, **fields: Any) -> kv_pb2.Entry:
    header = kv_pb2.PutHeader(key="k", size_bytes=len(value), **fields)
    return server.stubs.kv.Put(iter([kv_pb2.PutRequest(header=header), kv_pb2.PutRequest(chunk=value)])).entry


@pytest.mark.parametrize("size", [24, 3 << 20], ids=["small", "large"])
def test_an_array_is_known_as_one(server: Running, size: int) -> None:
    form = {"dtype": "float32", "shape": [2, size // 8], "fortran_order": True}
    stored = put_array(server, bytes(size), **form)
    assert (stored.dtype, list(stored.shape), stored.fortran_order) == ("float32", [2, size // 8], True)
    assert get(server, "k") == (stored, bytes(size))
    assert server.stubs.kv.Stat(kv_pb2.StatRequest(key="k")).entry == stored
    assert list(server.stubs.kv.List(kv_pb2.ListRequest()).entries) == [stored]
    plain = put(server, "k", bytes(size))
    assert (plain.dtype, list(plain.shape), plain.fortran_order) == ("", [], False)


@pytest.mark.parametrize(
    ("size", "dtype", "shape"),
    [
        (0, "bfloat16", [0, 2**32]),
        (2, "bfloat16", []),
        (3, "float8_e4m3fn", [3, 1]),
        (16, "complex128", [1] * 64),
        (20, '[["x", "<f4"], ["y", "<i2", [3]]]', [2]),
        (4096, "|S4096", []),
    ],
)
def test_dtypes_and_shapes(server: Running, size: int, dtype: str, shape: list[int]) -> None:
    stored = put_array(server, bytes(size), dtype=dtype, shape=shape)
    assert (stored.dtype, list(stored.shape), stored.size_bytes) == (dtype, shape, size)


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"dtype": "nonsense", "shape": [2]}, "dtype", "'nonsense' is no dtype that is known here"),
        ({"dtype": "object", "shape": [1]}, "dtype", "is no dtype"),
        ({"dtype": "[" * 4096}, "dtype", "is no dtype"),
        ({"dtype": "f" * 4097}, "dtype", "at most 4096 bytes of UTF-8 are allowed, not 4097"),
        ({"dtype": "float32", "shape": [3]}, "shape", r"'float32' of shape \[3\] has 12 bytes, and here are 8"),
        ({"dtype": "float32"}, "shape", r"'float32' of shape \[\] has 4 bytes, and here are 8"),
        ({"dtype": "float32", "shape": [1] * 65}, "shape", "at most 64 are allowed, not 65"),
        ({"dtype": "float32", "shape": [2**62 + 2]}, "shape", "has at most 9223372036854775807 bytes"),
        ({"dtype": "float32", "shape": [2**32, 2**32, 2]}, "shape", "has at most 9223372036854775807 bytes"),
        ({"dtype": "float32", "shape": [0, 2**63]}, "shape", "dimensions of 0 left out"),
        ({"shape": [8]}, "shape", "is given without dtype"),
        ({"fortran_order": True}, "fortran_order", "is given without dtype"),
    ],
)
def test_an_array_that_cannot_be(server: Running, fields: dict[str, Any], field: str, words: str) -> None:
    before = put(server, "k", b"before")
    failed = failure(lambda: put_array(server, bytes(8), **fields))
    assert (failed.code, failed.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])
    assert re.search(words, failed.message)
    assert get(server, "k") == (before, b"before")


def test_a_put_cut_off_stores_nothing(server: Running) -> None:
    put(server, "k", b"old")
    before = server.store.stats().used_bytes
    cut = threading.Event()

    def half() -> Iterator[kv_pb2.PutRequest]:
        yield from _parts("k", 4_000_000, bytes(2_000_000))
        call.cancel()
        cut.wait(WAIT_S)

    call = server.stubs.kv.Put.future(half())
    with pytest.raises(grpc.FutureCancelledError):
        call.result(WAIT_S)
    cut.set()
    wait_for_failure(server, "CANCELLED")
    assert get(server, "k")[1] == b"old"
    # Chunks that were staged are dropped by the one writer, before it comes to what is asked of it later.
    server.store.commit([Write("other", [b"x"])]).result(WAIT_S)
    assert server.store.stats().used_bytes <= before + (1 << 20)


def test_readers_see_the_old_value_until_the_last_chunk(server: Running) -> None:
    put(server, "k", b"old")
    seen: list[bytes] = []

    def parts() -> Iterator[kv_pb2.PutRequest]:
        yield from _parts("k", 2_000_000, bytes(1_999_999))
        seen.append(get(server, "k")[1])
        yield kv_pb2.PutRequest(chunk=b"!")

    server.stubs.kv.Put(parts())
    assert seen == [b"old"]
    assert get(server, "k")[1] == bytes(1_999_999) + b"!"


def test_a_reader_has_one_version_to_the_end(server: Running) -> None:
    old, new = b"\1" * 8_000_000, b"\2" * 8_000_000
    put(server, "k", old)
    stream = server.stubs.kv.Get(kv_pb2.GetRequest(key="k"))
    version = next(stream).entry.version
    assert put(server, "k", new).version > version
    assert b"".join(message.chunk for message in stream) == old
    assert get(server, "k")[1] == new


def test_a_reader_that_stops_reading_is_ended(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv, "GET_GRACE_S", 0.2)
    monkeypatch.setattr(kv, "GET_BYTES_PER_S", 1 << 40)
    put(server, "k", bytes(100 << 20))
    stream = server.stubs.kv.Get(kv_pb2.GetRequest(key="k"))
    next(stream)
    wait_for_failure(server, "DEADLINE_EXCEEDED")
    failed = failure(lambda: list(stream))
    assert (failed.code, failed.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
    assert "more than 0 s" in failed.message


def test_a_reader_that_is_slow_keeps_nobody_from_writing(tmp_path: Path) -> None:
    """As a store may not use pages again that somebody reads, four such values would fill it."""
    values = [bytes([number]) * (24 << 20) for number in range(6)]
    with running_server(tmp_path, FakeDispatcher(), store_limit_bytes=96 << 20) as server:
        put(server, "k", values[0])
        stream = server.stubs.kv.Get(kv_pb2.GetRequest(key="k"), timeout=WAIT_S)
        next(stream)
        for value in values[1:]:
            put(server, "k", value)
        assert b"".join(message.chunk for message in stream) == values[0]
        assert get(server, "k")[1] == values[-1]


def test_a_reader_that_is_slow_is_ended_where_there_is_no_room_for_its_copy(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv, "COPIES_BYTES", 1 << 20)
    monkeypatch.setattr(kv, "NO_ROOM_S", 0.2)
    put(server, "k", bytes(32 << 20))
    stream = server.stubs.kv.Get(kv_pb2.GetRequest(key="k"))
    next(stream)
    wait_for_failure(server, "DEADLINE_EXCEEDED")
    failed = failure(lambda: list(stream))
    assert (failed.code, failed.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
    assert "took nothing for 0.2 s" in failed.message
    server.store.close()  # Fails while a snapshot is open.


def test_a_reader_that_goes_away_lets_go_of_its_snapshot(server: Running) -> None:
    put(server, "k", bytes(100 << 20))
    stream = server.stubs.kv.Get(kv_pb2.GetRequest(key="k"))
    next(stream)
    stream.cancel()
    wait_for_failure(server, "CANCELLED")
    server.store.close()  # Fails while a snapshot is open.


def test_a_store_over_its_limit(tmp_path: Path) -> None:
    with running_server(tmp_path, FakeDispatcher(), store_limit_bytes=4 << 20) as server:
        put(server, "kept", b"x" * 1000)
        size = 5 << 20
        failed = failure(lambda: server.stubs.kv.Put(_parts("big", size, bytes(size))))
        assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORE_FULL")
        assert get(server, "kept")[1] == b"x" * 1000
        server.stubs.kv.Delete(kv_pb2.DeleteRequest(key="kept"))
        put(server, "small", b"fits again")
        assert [e.key for e in server.stubs.kv.List(kv_pb2.ListRequest()).entries] == ["small"]


def test_delete(server: Running) -> None:
    put(server, "k", b"x")
    server.stubs.kv.Delete(kv_pb2.DeleteRequest(key="k"))
    assert failure(lambda: get(server, "k")).reason == "KEY_NOT_FOUND"


def test_pages(server: Running) -> None:
    for name in ["b/1", "a/3", "a/1", "a/2", "ä", "a/4", "a/5"]:
        put(server, name, b"x")
    pages, token = [], ""
    while True:
        response = server.stubs.kv.List(kv_pb2.ListRequest(prefix="a/", page_size=2, page_token=token))
        pages.append([entry.key for entry in response.entries])
        token = response.next_page_token
        if not token:
            break
    assert pages == [["a/1", "a/2"], ["a/3", "a/4"], ["a/5"]]
    everything = [entry.key for entry in server.stubs.kv.List(kv_pb2.ListRequest()).entries]
    assert everything == ["a/1", "a/2", "a/3", "a/4", "a/5", "b/1", "ä"]


def test_a_full_last_page_has_no_next(server: Running) -> None:
    for name in "abcd":
        put(server, name, b"x")
    first = server.stubs.kv.List(kv_pb2.ListRequest(page_size=2))
    second = server.stubs.kv.List(kv_pb2.ListRequest(page_size=2, page_token=first.next_page_token))
    assert [entry.key for entry in second.entries] == ["c", "d"]
    assert second.next_page_token == ""


@pytest.mark.parametrize("token", ["!!!", "abc", "/w==", "ä"])
def test_a_bad_page_token(server: Running, token: str) -> None:
    failed = failure(lambda: server.stubs.kv.List(kv_pb2.ListRequest(page_token=token)))
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_NAME")
    assert failed.message.startswith("page_token: ")


def test_a_page_token_of_another_listing(server: Running) -> None:
    for name in ["a1", "a2", "b1"]:
        put(server, name, b"x")
    token = server.stubs.kv.List(kv_pb2.ListRequest(prefix="a", page_size=1)).next_page_token
    failed = failure(lambda: server.stubs.kv.List(kv_pb2.ListRequest(prefix="b", page_token=token)))
    assert failed.message.startswith("page_token: ")
