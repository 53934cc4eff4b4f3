"""Set-up that fails half-way: the first error is raised, what was made is freed, and too little memory is told as such."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cuda.bindings import driver

from kaas_core.request import Access
from kaasd.devices.base import BufferRef, DeviceLost, DeviceUnavailable, KernelFault, Launch, OutOfMemory
from kaasd.devices.cuda.buffers import CudaBuffer, address_of
from kaasd.devices.cuda.device import CudaDevice
from kaasd.devices.cuda.driver import CudaError
from kaasd.devices.cuda.graph import MAX_REPEATED_LAUNCHES
from kaasd.devices.cuda.kernel import CudaKernel, LoadedCode
from kaasd.devices.cuda.module import CudaModule
from kaasd.devices.cuda.run import MOST_PIECES, CudaRun
from kaasd.devices.cuda.tracer import CudaTracer
from kaasd.libraries import UnsupportedLibrary
from kaasd.request.device_checks import KernelAttributes
from tests.conformance.launching import library
from tests.devices.cuda.fake_driver import ANSWERS, FREED_BY, OTHER, OUT_OF_MEMORY, SUCCESS, FakeDriver

CODE = LoadedCode("library", "module")
KERNEL = CudaKernel(driver.CUfunction(1), KernelAttributes("k", (8,), 0, 1024), CODE)
KEPT = {"cuStreamCreate", "cuEventCreate", "cuMemHostAlloc", "cuMemHostRegister"}
"""What a device keeps for the next who asks."""


def calls_of(fake: FakeDriver, act: Callable[[], object]) -> list[tuple[int, str]]:
    """Return the driver's functions that something calls, numbered, without those that free something."""
    start = len(fake.calls)
    act()
    return [(index, name) for index, name in enumerate(fake.calls[start:]) if name not in FREED_BY.values()]


@pytest.mark.parametrize("from_then_on", [False, True])
def test_a_device_that_cannot_be_opened_says_what_failed_first(fake: FakeDriver, from_then_on: bool) -> None:
    names = calls_of(fake, lambda: CudaDevice(0).close())
    assert len(names) > 30
    for index, name in names:
        fake.fail_at(index, OTHER, from_then_on=from_then_on)
        with pytest.raises(DeviceUnavailable, match=f"{name}: CUDA_ERROR_INVALID_HANDLE"):
            CudaDevice(0)
        assert not +fake.held, name


def test_a_device_without_room_cannot_be_opened(fake: FakeDriver) -> None:
    fake.fail_in("cuMemAllocAsync", OUT_OF_MEMORY)
    with pytest.raises(DeviceUnavailable, match="cuda:0 cannot be opened: 32768 bytes asked of cuda:0"):
        CudaDevice(0)
    assert not +fake.held


def test_more_than_there_is_room_for_is_not_asked_of_the_driver(fake: FakeDriver) -> None:
    """It would take all that is free first, and others of this GPU would find nothing meanwhile."""
    free, total = ANSWERS["cuMemGetInfo"]
    with closing(CudaDevice(0)) as device:
        fake.fail_in("cuMemAllocAsync", OTHER)
        with pytest.raises(OutOfMemory, match=f"asked of cuda:0; 0 are in use here and {free} of {total} free"):
            device.allocate(64 << 20)


def allocate(device: CudaDevice, _: CudaBuffer) -> CudaBuffer:
    return device.allocate(100)


def load(device: CudaDevice, _: CudaBuffer) -> CudaModule:
    return device.load(library("dot"))


def prepare(device: CudaDevice, buffer: CudaBuffer) -> CudaRun:
    launch = Launch(KERNEL, (1, 1, 1), (1, 1, 1), 0, (BufferRef("a", buffer, Access.INOUT),))
    return device.prepare([launch], 1, uploads=[buffer], zeroed=[buffer], downloads=[buffer])


def start(device: CudaDevice, buffer: CudaBuffer) -> CudaRun:
    with ExitStack() as on_failure:
        run = prepare(device, buffer)
        on_failure.callback(run.close)
        transfer = device.upload(buffer, [memoryview(b"input")])
        on_failure.callback(transfer.wait)
        run.start([transfer])
        transfer.wait()
        run.wait()
        run.done()
        on_failure.pop_all()
    return run


def run_in_pieces(device: CudaDevice, buffer: CudaBuffer) -> CudaRun:
    launch = Launch(KERNEL, (1, 1, 1), (1, 1, 1), 0, (BufferRef("a", buffer, Access.INOUT),))
    with ExitStack() as on_failure:
        run = device.prepare([launch], (MOST_PIECES + 2) * MAX_REPEATED_LAUNCHES)
        on_failure.callback(run.close)
        run.start()
        while not run.done():
            pass
        on_failure.pop_all()
    return run


def warm(device: CudaDevice, buffer: CudaBuffer) -> CudaRun:
    run = prepare(device, buffer)
    try:
        run.warm()
    except BaseException:
        run.close()
        raise
    return run


def download(device: CudaDevice, buffer: CudaBuffer) -> Any:
    arriving = device.download(buffer)
    arriving.wait()
    return arriving


def trace(device: CudaDevice, _: CudaBuffer) -> CudaTracer:
    return device.tracer()


@pytest.mark.parametrize("act", [allocate, load, prepare, start, run_in_pieces, warm, download, trace])
@pytest.mark.parametrize("status", [OUT_OF_MEMORY, OTHER])
def test_what_fails_half_way_leaves_nothing_behind(
    act: Callable[[CudaDevice, CudaBuffer], Any], status: Any, fake: FakeDriver
) -> None:
    with closing(CudaDevice(0)) as device:
        buffer = device.allocate(1 << 20)
        names = calls_of(fake, lambda: act(device, buffer).close())
    failed = 0
    for index, name in names:
        fake.work_again()
        fake.held.clear()
        with closing(CudaDevice(0)) as device:
            buffer = device.allocate(1 << 20)
            before = fake.held.copy()
            fake.fail_at(index, status)
            try:
                act(device, buffer).close()
            except (OutOfMemory, CudaError, KernelFault, UnsupportedLibrary) as error:
                if isinstance(error, KernelFault) and error.device_lost:
                    continue  # the end of its process frees all
                failed += 1
                assert isinstance(error, OutOfMemory) == (status is OUT_OF_MEMORY), (name, error)
                assert name in str(error) or "asked of cuda:0" in str(error)
            fake.work_again()
            left = {made: number for made, number in (fake.held - before).items() if made not in KEPT}
            assert left == {}, name
        # Where waiting for an event fails, ``done`` is to say why; the event goes with the context.
        assert not {*+fake.held} - ({"cuEventCreate"} if name == "cuEventSynchronize" else set()), name
    assert failed > 0


def test_host_memory_that_cannot_be_pinned_is_out_of_memory(device: CudaDevice, fake: FakeDriver) -> None:
    buffer = device.allocate(1 << 20)
    fake.fail_in("cuMemHostAlloc", OUT_OF_MEMORY)
    with pytest.raises(OutOfMemory, match=r"page-locked host memory cannot be had: cuMemHostAlloc: CUDA_ERROR_OUT_OF_MEMORY"):
        prepare(device, buffer)
    with pytest.raises(OutOfMemory, match="1048576 bytes of page-locked host memory"):
        download(device, buffer)


def test_idle_host_memory_goes_before_anybody_is_refused(device: CudaDevice, fake: FakeDriver) -> None:
    buffer, small = device.allocate(1 << 20), device.allocate(1)
    download(device, buffer).close()
    assert fake.held["cuMemHostAlloc"] == 1
    refusals = [OUT_OF_MEMORY]
    fake.fails = lambda _, name: refusals.pop() if name == "cuMemHostAlloc" and refusals else SUCCESS
    download(device, small).close()
    assert refusals == []
    assert fake.held["cuMemHostAlloc"] == 1


def test_a_fault_of_before_shows_as_a_lost_device(device: CudaDevice, fake: FakeDriver) -> None:
    buffer = device.allocate(1 << 20)
    fake.fail_in("cuMemHostAlloc", driver.CUresult.CUDA_ERROR_LAUNCH_FAILED)
    with pytest.raises(DeviceLost, match="a kernel faulted before"):
        prepare(device, buffer)
    fake.held.clear()  # what is lost is not freed


def test_memory_is_not_given_back_while_a_copy_goes_there(device: CudaDevice, fake: FakeDriver) -> None:
    buffer = device.allocate(1 << 20)
    fake.fail_in("cuEventCreate", OUT_OF_MEMORY)
    with pytest.raises(OutOfMemory, match="cuEventCreate"):
        device.download(buffer)
    assert fake.calls[-3:] == ["cuMemcpyDtoHAsync", "cuEventCreate", "cuStreamSynchronize"]


def test_a_run_that_could_not_start_is_over_and_can_start_again(device: CudaDevice, fake: FakeDriver) -> None:
    buffer = device.allocate(1 << 20)
    with closing(prepare(device, buffer)) as run:
        transfer = device.upload(buffer, [memoryview(b"input")])
        fake.fail_in("cuStreamWaitEvent", OUT_OF_MEMORY)
        with pytest.raises(OutOfMemory, match="cuStreamWaitEvent"):
            run.start([transfer])
        assert not device.is_busy
        fake.work_again()
        run.start([transfer])
        assert device.is_busy
        transfer.wait()
        run.wait()
        assert not device.is_busy


def test_pages_that_cannot_be_registered_are_copied_all_the_same(
    device: CudaDevice, fake: FakeDriver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = (tmp_path / "data").write_bytes(bytes(8192)) * b"x"
    file = SimpleNamespace(path=str(tmp_path / "data"), address=address_of(content), size_bytes=len(content), grows=True)
    buffer = device.allocate(len(content))
    fake.fail_in("cuMemHostRegister", OUT_OF_MEMORY)
    device.upload(buffer, [memoryview(content)], file).wait()
    assert "inputs are copied slower" in caplog.text
    fake.fail_in("cuMemHostRegister", driver.CUresult.CUDA_ERROR_LAUNCH_FAILED)
    device.unmap()
    with pytest.raises(DeviceLost, match="a kernel faulted before"):
        device.upload(buffer, [memoryview(content)], file)
    fake.held.clear()
