"""A graph that one run launches often goes into the stream piece by piece; the driver only counts, and says what has ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from cuda.bindings import driver

from kaas_core.request import Access
from kaasd.devices.base import BufferRef, DeviceLost, KernelFault, Launch, OutOfMemory, Stopped
from kaasd.devices.cuda.device import CudaDevice
from kaasd.devices.cuda.graph import MAX_REPEATED_LAUNCHES
from kaasd.devices.cuda.kernel import CudaKernel, LoadedCode
from kaasd.devices.cuda.run import MOST_PIECES, CudaRun
from kaasd.request.device_checks import KernelAttributes
from tests.devices.cuda.fake_driver import OTHER, OUT_OF_MEMORY, SUCCESS, FakeDriver

NOT_READY = driver.CUresult.CUDA_ERROR_NOT_READY
FAULT = driver.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
PIECES = 10
KERNEL = CudaKernel(driver.CUfunction(1), KernelAttributes("k", (8,), 0, 1024), LoadedCode("library", "module"))


class Stream:
    """How far the GPU came: pieces that have ended, the moves behind them, and what becomes of the next calls."""

    def __init__(self, fake: FakeDriver) -> None:
        self.fake = fake
        self.ended = 0
        self.fault = False
        self.refuses_graphs = False
        self._first = len(fake.calls)
        self._seen = 0
        fake.fails = self._status

    @property
    def launched(self) -> int:
        return self.fake.calls[self._first :].count("cuGraphLaunch")

    @property
    def moves_behind(self) -> int:
        calls = self.fake.calls[self._first :]
        return 0 if "cuGraphLaunch" not in calls else calls[calls.index("cuGraphLaunch") :].count("cuLaunchKernel")

    def _status(self, _: int, name: str) -> Any:
        if name == "cuGraphLaunch" and self.refuses_graphs:
            return OUT_OF_MEMORY
        if name in ("cuEventQuery", "cuStreamQuery", "cuStreamSynchronize", "cuEventSynchronize") and self.fault:
            return FAULT
        if name == "cuEventSynchronize":
            self.ended += 1
        if name == "cuStreamSynchronize":
            self.ended = self.launched
        if name == "cuEventQuery":
            # Events are asked in order, each until it has come.
            if self._seen < self.ended:
                self._seen += 1
                return SUCCESS
            return NOT_READY
        if name == "cuStreamQuery" and self.ended < self.launched:
            return NOT_READY
        return SUCCESS


@pytest.fixture
def run(device: CudaDevice) -> Iterator[CudaRun]:
    buffer = device.allocate(1 << 20)
    launch = Launch(KERNEL, (1, 1, 1), (1, 1, 1), 0, (BufferRef("a", buffer, Access.INOUT),))
    with closing(device.prepare([launch], PIECES * MAX_REPEATED_LAUNCHES, zeroed=[buffer])) as made:
        yield made


@pytest.fixture
def stream(run: CudaRun, fake: FakeDriver) -> Stream:
    return Stream(fake)


def polled(run: CudaRun) -> bool:
    """Ask often enough for the driver to be asked."""
    return any(run.done() for _ in range(64))


def test_pieces_follow_as_others_end(run: CudaRun, stream: Stream) -> None:
    run.start()
    assert stream.launched == MOST_PIECES
    assert not polled(run)
    assert stream.launched == MOST_PIECES
    for ended in range(1, PIECES):
        stream.ended = ended
        assert not polled(run)
        assert stream.launched == min(PIECES, MOST_PIECES + ended)
        assert stream.moves_behind == (stream.launched == PIECES)
    stream.ended = PIECES
    assert polled(run)
    assert stream.launched == PIECES
    assert stream.moves_behind == 1


def test_who_waits_has_all_of_it_run(run: CudaRun, stream: Stream) -> None:
    for number in (1, 2):
        run.start()
        run.wait()
        assert run.done()
        assert stream.launched == number * PIECES


def test_one_that_is_stopped_ends_with_what_is_in_the_stream(run: CudaRun, stream: Stream) -> None:
    run.start()
    stream.ended = 1
    assert not polled(run)
    run.stop()
    run.stop()
    stream.ended = 3
    assert not polled(run)
    assert stream.launched == MOST_PIECES + 1
    stream.ended = MOST_PIECES + 1
    with pytest.raises(Stopped):
        polled(run)
    assert stream.moves_behind == 0
    with pytest.raises(Stopped):
        run.done()
    run.wait()
    run.start()
    assert stream.launched == 2 * MOST_PIECES + 1
    run.wait()
    assert run.done()
    assert stream.launched == MOST_PIECES + 1 + PIECES


def test_who_waits_for_one_that_is_stopped_waits_for_what_is_in_the_stream(run: CudaRun, stream: Stream) -> None:
    run.start()
    run.stop()
    run.wait()
    assert stream.launched == MOST_PIECES
    with pytest.raises(Stopped):
        run.done()


def test_it_cannot_be_stopped_any_more_once_all_is_in_the_stream(run: CudaRun, stream: Stream) -> None:
    run.start()
    stream.ended = PIECES - MOST_PIECES
    assert not polled(run)
    assert stream.launched == PIECES
    run.stop()
    stream.ended = PIECES
    assert polled(run)


def test_a_fault_between_the_pieces(run: CudaRun, stream: Stream) -> None:
    run.start()
    stream.fault = True
    with pytest.raises(KernelFault) as fault:
        polled(run)
    assert fault.value.device_lost
    assert stream.launched == MOST_PIECES
    with pytest.raises(KernelFault):
        run.done()


def test_after_a_fault_nothing_more_is_asked_of_the_driver(device: CudaDevice, fake: FakeDriver) -> None:
    """A trap has each call take half a second on an H200, and who waits for this process's end waits for all of them."""
    buffer, unused = device.allocate(1 << 20), device.allocate(1 << 20)
    launch = Launch(KERNEL, (1, 1, 1), (1, 1, 1), 0, (BufferRef("a", buffer, Access.INOUT),))
    runs = [device.prepare([launch], MAX_REPEATED_LAUNCHES * pieces, zeroed=[buffer]) for pieces in (1, 2, PIECES, PIECES)]
    *started, waiting = runs
    for run in started:
        run.start()
    upload, download = device.upload(buffer, [memoryview(b"input")]), device.download(buffer)
    Stream(fake).fault = True
    with pytest.raises(KernelFault) as fault:
        polled(started[0])
    assert fault.value.device_lost and fault.value.suspects == len(started)
    asked = len(fake.calls)
    for run in started:
        run.stop()
        run.wait()
        with pytest.raises(KernelFault, match="ILLEGAL_ADDRESS") as again:
            run.done()
        assert again.value.device_lost and again.value.suspects == len(started)
    with pytest.raises(DeviceLost):
        waiting.start()
    for transfer in (upload, download):
        transfer.wait()
        with pytest.raises(DeviceLost):
            transfer.done()
    for refused in (
        lambda: device.allocate(1),
        lambda: device.upload(unused, [memoryview(b"x")]),
        lambda: device.download(unused),
    ):
        with pytest.raises(DeviceLost):
            refused()
    for closed in (*runs, download, buffer, unused):
        closed.close()
    assert fake.calls[asked:] == []


def test_a_piece_that_is_refused(run: CudaRun, stream: Stream) -> None:
    run.start()
    stream.ended, stream.refuses_graphs = 1, True
    assert not polled(run)
    stream.ended = stream.launched
    with pytest.raises(OutOfMemory, match="k could not be launched"):
        polled(run)
    stream.refuses_graphs = False
    run.start()
    run.wait()
    assert run.done()


def test_what_cannot_be_told_is_no_success(run: CudaRun, stream: Stream, fake: FakeDriver) -> None:
    run.start()
    fake.fail_in("cuEventQuery", OTHER)
    with pytest.raises(KernelFault, match="cuEventQuery: CUDA_ERROR_INVALID_HANDLE"):
        polled(run)
    assert stream.launched == MOST_PIECES


def test_events_are_given_back(run: CudaRun, stream: Stream, fake: FakeDriver) -> None:
    for _ in range(3):
        run.start()
        run.wait()
        run.start()
        run.stop()
        run.wait()
    assert fake.held["cuEventCreate"] <= MOST_PIECES
