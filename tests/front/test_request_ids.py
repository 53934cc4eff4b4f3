"""Which ids run, and which replies are in memory: times in, decisions out."""

from __future__ import annotations

import pytest

from kaas.v1 import executor_pb2
from kaas_core.errors import RequestIdReusedError
from kaasd.front.request_ids import RecentIds, fingerprint
from kaasd.ipc.replies import MAX_REPLY_BYTES, ReplyKey, pack_reply, unpack_reply

REPLY = executor_pb2.InvokeResponse(device="d")
A, B = ReplyKey("g/a", b"1"), ReplyKey("g/b", b"1")


def test_one_runs_and_others_wait() -> None:
    ids = RecentIds(10.0)
    assert ids.begin(A, 0.0) is True
    assert ids.begin(A, 0.0) is False
    assert ids.begin(B, 0.0) is True
    ids.end(A, None, 0, 1.0)
    assert ids.begin(A, 1.0) is True


def test_a_reply_is_kept_for_the_window() -> None:
    ids = RecentIds(10.0)
    ids.begin(A, 0.0)
    ids.end(A, REPLY, 5, 1.0)
    assert ids.begin(A, 10.9) is REPLY
    assert ids.kept_bytes == 5
    assert ids.begin(A, 11.0) is True
    assert ids.kept_bytes == 0


def test_the_oldest_goes_where_there_is_no_room() -> None:
    ids = RecentIds(10.0, memory_bytes=100)
    for number, size in enumerate((60, 30, 20)):
        key = ReplyKey(f"g/{number}", b"")
        ids.begin(key, 0.0)
        ids.end(key, REPLY, size, 0.0)
    assert ids.kept_bytes == 50
    assert ids.begin(ReplyKey("g/1", b""), 0.0) is REPLY
    assert ids.begin(ReplyKey("g/0", b""), 0.0) is True
    ids.end(ReplyKey("g/0", b""), REPLY, 101, 0.0)
    assert ids.begin(ReplyKey("g/0", b""), 0.0) is True
    assert ids.kept_bytes == 50


@pytest.mark.parametrize("ended", [False, True])
def test_other_content(ended: bool) -> None:
    ids = RecentIds(10.0)
    ids.begin(A, 0.0)
    if ended:
        ids.end(A, REPLY, 1, 0.0)
    with pytest.raises(RequestIdReusedError, match="'a' was used for a call with other content"):
        ids.begin(A._replace(fingerprint=b"2"), 0.0)
    if ended:
        assert ids.begin(A, 20.0) is True  # and then it may be anything
        ids.end(A, None, 0, 20.0)
        assert ids.begin(A._replace(fingerprint=b"2"), 20.0) is True


def test_a_fingerprint_stays_the_same_from_version_to_version() -> None:
    """It is compared with stored ones."""
    found = fingerprint(bytes(32), {"k": "key", "a": "b"}, {"x": b"12", "y": b""}, ["c", "b", "c"], "cuda:0")
    assert found.hex() == "e21e88a5deb7e7bf86d7a16e8042dfcc"
    assert found == fingerprint(bytes(32), {"a": "b", "k": "key"}, {"y": b"", "x": b"12"}, ["b", "c"], "cuda:0")


def test_names_and_bytes_do_not_run_into_each_other() -> None:
    assert fingerprint(b"", {}, {"ab": b"c"}, [], "") != fingerprint(b"", {}, {"a": b"bc"}, [], "")
    assert fingerprint(b"", {"a": "b"}, {}, [], "") != fingerprint(b"", {}, {"a": b"b"}, [], "")
    assert fingerprint(b"", {}, {"a": b"b"}, ["c"], "") != fingerprint(b"", {}, {}, ["a", "b", "c"], "")


@pytest.mark.parametrize(("size", "dropped"), [(MAX_REPLY_BYTES - 100, False), (MAX_REPLY_BYTES, True)])
def test_a_large_reply_is_stored_without_its_outputs(size: int, dropped: bool) -> None:
    reply = executor_pb2.InvokeResponse(outputs={"c": bytes(size)}, device="d", printed="p")
    packed = pack_reply(b"f", ["k", "l"], lambda message: message.MergeFrom(reply))
    found, again = unpack_reply(packed, 12)
    assert found == b"f"
    assert dict(again.versions) == {"k": 10, "l": 11}
    assert (again.device, again.outputs_dropped) == ("d", dropped)
    assert dict(again.outputs) == ({} if dropped else {"c": bytes(size)})
    assert again.printed == ("" if dropped else "p")
