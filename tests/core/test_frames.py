"""Frames as bytes: what is written is what protobuf says, and what is read is the same however it comes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaas.v1 import executor_pb2, local_pb2
from kaas_core.frames import FrameReader, FrameTooLarge, size_of, to_frame


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 100, 127, 128, 129, 16383, 16384, 70_000]))
def test_a_frame_is_a_length_and_the_message(id: int, timeout_ns: int, size: int) -> None:
    invoke = executor_pb2.InvokeRequest(function="f" * size)
    content = b"".join(to_frame(id, "invoke", invoke, timeout_ns))
    assert struct.unpack_from("<I", content) == (len(content) - 4,)
    assert local_pb2.LocalFrame.FromString(content[4:]) == local_pb2.LocalFrame(id=id, timeout_ns=timeout_ns, invoke=invoke)
    assert size_of(to_frame(id, "invoke", invoke, timeout_ns)) == len(content) - 4


@given(st.lists(st.binary(max_size=300), max_size=20), st.lists(st.integers(1, 700), max_size=40))
def test_frames_come_in_any_pieces(frames: list[bytes], cuts: list[int]) -> None:
    data = b"".join(struct.pack("<I", len(frame)) + frame for frame in frames)
    reader, found = FrameReader(300), []
    for cut in [*cuts, len(data)]:
        reader.feed(data[:cut])
        data = data[cut:]
        while (frame := reader.next()) is not None:
            found.append(bytes(frame))
    assert found == frames
    assert not reader.is_within


@given(st.integers(1, 400), st.integers(0, 2**63))
def test_one_that_is_too_large_is_skipped(cut: int, id: int) -> None:
    large = b"".join(to_frame(id, "invoke", executor_pb2.InvokeRequest(function="f" * 300)))
    small = b"".join(to_frame(8, "hello", local_pb2.Hello()))
    data, reader, found, skipped = large + small, FrameReader(100), [], []
    for piece in (data[:cut], data[cut:]):
        reader.feed(piece)
        while True:
            try:
                frame = reader.next()
            except FrameTooLarge as error:
                skipped.append((error.id, error.size_bytes))
                continue
            if frame is None:
                break
            found.append(bytes(frame))
    assert skipped == [(id, len(large) - 4)]
    assert found == [small[4:]]
    assert not reader.is_within


@pytest.mark.parametrize("begin", [b"\xff" * 11, b"\x10\x01" + bytes(9), b"\x08" + b"\xff" * 10])
def test_one_that_is_too_large_and_does_not_begin_with_an_id(begin: bytes) -> None:
    reader = FrameReader(5)
    reader.feed(struct.pack("<I", 1000) + begin)
    with pytest.raises(FrameTooLarge) as raised:
        reader.next()
    assert (raised.value.id, raised.value.size_bytes) == (0, 1000)
