"""Copies between host and device over a stream that is as late as it may be: nothing in it happens until it is waited for."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
from cuda.bindings import driver

from kaasd.devices.cuda.memory import STAGED_BYTES, CudaBuffer, Staging

SUCCESS = driver.CUresult.CUDA_SUCCESS
PINNED_BYTES = 2 << 20


class LateStream:
    """Stands for the driver: keeps copies until an event or the stream is waited for. Device memory is host memory."""

    def __init__(self) -> None:
        self.pending: list[Callable[[], object]] = []
        self.events: dict[int, int] = {}
        self.done = 0
        self.freed: list[str] = []
        self.pinned = ctypes.create_string_buffer(PINNED_BYTES)

    def cuMemHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        assert size == PINNED_BYTES
        return SUCCESS, ctypes.addressof(self.pinned)

    def cuEventCreate(self, flags: object) -> tuple[Any, ...]:
        event = len(self.events)
        self.events[event] = 0
        return SUCCESS, event

    def cuMemcpyHtoDAsync(self, destination: int, source: int, size: int, stream: object) -> tuple[Any, ...]:
        self.pending.append(lambda: ctypes.memmove(destination, source, size))
        return (SUCCESS,)

    def cuMemcpyDtoHAsync(self, destination: int, source: int, size: int, stream: object) -> tuple[Any, ...]:
        return self.cuMemcpyHtoDAsync(destination, source, size, stream)

    def cuEventRecord(self, event: int, stream: object) -> tuple[Any, ...]:
        self.events[event] = len(self.pending)
        return (SUCCESS,)

    def cuEventSynchronize(self, event: int) -> tuple[Any, ...]:
        self.run_to(self.events[event])
        return (SUCCESS,)

    def cuStreamSynchronize(self, stream: object) -> tuple[Any, ...]:
        self.run_to(len(self.pending))
        return (SUCCESS,)

    def run_to(self, count: int) -> None:
        for copy in self.pending[self.done : count]:
            copy()
        self.done = max(self.done, count)

    def release(self, function: Callable[..., object], *_: object) -> None:
        self.freed.append(function.__name__)


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> LateStream:
    late = LateStream()
    for name in (
        "cuMemHostAlloc",
        "cuEventCreate",
        "cuMemcpyHtoDAsync",
        "cuMemcpyDtoHAsync",
        "cuEventRecord",
        "cuEventSynchronize",
        "cuStreamSynchronize",
    ):
        monkeypatch.setattr(driver, name, getattr(late, name))
    return late


def buffer_of(memory: ctypes.Array[ctypes.c_char], stream: LateStream) -> CudaBuffer:
    return CudaBuffer(ctypes.addressof(memory), len(memory), "stream", Staging("stream", stream.release), lambda _: None)


def test_small_writes_return_before_the_stream_gets_to_them(stream: LateStream) -> None:
    memory = ctypes.create_string_buffer(100)
    buffer_of(memory, stream).write(b"abc", 10)
    assert memory.raw == bytes(100)
    stream.cuStreamSynchronize(None)
    assert memory.raw == bytes(10) + b"abc" + bytes(87)


@pytest.mark.parametrize("size", [1, 63, 64, 100_000, STAGED_BYTES, STAGED_BYTES + 1, 3 << 20])
def test_no_write_is_lost_though_every_source_is_reused_at_once(stream: LateStream, size: int) -> None:
    count = max(6, 3 * PINNED_BYTES // max(size, 64)) if size <= STAGED_BYTES else 3
    count = min(count, 2000)
    memory = ctypes.create_string_buffer(count * size)
    buffer = buffer_of(memory, stream)
    source = bytearray(size)
    for i in range(count):
        source[:] = bytes([1 + i % 255]) * size
        buffer.write(source, i * size)
    source[:] = bytes(size)
    stream.cuStreamSynchronize(None)
    assert memory.raw == b"".join(bytes([1 + i % 255]) * size for i in range(count))


@pytest.mark.parametrize("size", [1, 5000, STAGED_BYTES, STAGED_BYTES + 1])
def test_reads_between_writes_see_all_before_and_disturb_none_after(stream: LateStream, size: int) -> None:
    memory = ctypes.create_string_buffer(size)
    buffer = buffer_of(memory, stream)
    for i in range(30):
        content = bytes([1 + i]) * size
        buffer.write(content)
        into = bytearray(size)
        buffer.read(into)
        assert into == content
        buffer.write(bytes([200 + i]), i % size)
    stream.cuStreamSynchronize(None)
    assert memory.raw[29 % size] == 229


def test_a_part_is_read_into_a_part(stream: LateStream) -> None:
    memory = ctypes.create_string_buffer(b"0123456789", 10)
    into = bytearray(6)
    buffer_of(memory, stream).read(memoryview(into)[1:5], 3)
    assert into == b"\x003456\x00"


def test_staging_frees_what_it_has_once(stream: LateStream, monkeypatch: pytest.MonkeyPatch) -> None:
    staging = Staging("stream", stream.release)
    staging.close()
    staging.close()
    assert stream.freed == ["cuEventDestroy", "cuEventDestroy", "cuMemFreeHost"]


def test_staging_rolls_back_when_it_cannot_be_made(stream: LateStream, monkeypatch: pytest.MonkeyPatch) -> None:
    def cuEventCreate(flags: object) -> tuple[Any, ...]:
        raise RuntimeError("no event")

    monkeypatch.setattr(driver, "cuEventCreate", cuEventCreate)
    with pytest.raises(RuntimeError, match="no event"):
        Staging("stream", stream.release)
    assert stream.freed == ["cuMemFreeHost"]
