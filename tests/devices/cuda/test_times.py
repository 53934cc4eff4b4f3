"""When runs begin and end by the GPU's clock: what a run asks of ``moveKern``, and what that does, on the emulated device."""

from __future__ import annotations

from contextlib import closing
from time import time_ns

import pytest
from cuda.bindings import driver

from kaas_core.request import Access
from kaasd.devices.base import BufferRef, Launch
from kaasd.devices.cuda import moves as moves_module
from kaasd.devices.cuda import run as run_module
from kaasd.devices.cuda.device import _MOVE_PTX, CudaDevice
from kaasd.devices.cuda.kernel import CudaKernel, LoadedCode
from kaasd.devices.cuda.moves import RANGES
from kaasd.devices.emulator.runtime.device import EmulatedDevice
from kaasd.request.device_checks import KernelAttributes
from tests.devices.cuda.fake_driver import FakeDriver

KERNEL = CudaKernel(driver.CUfunction(1), KernelAttributes("k", (8,), 0, 1024), LoadedCode("library", "module"))


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize(("flag", "time"), [(True, True), (False, True), (True, False)])
def test_the_time_is_told_with_the_flag_and_as_a_launch_without_one_begins(flag: bool, time: bool, blocks: int) -> None:
    with closing(EmulatedDevice()) as device, closing(device.load(_MOVE_PTX.read_bytes())) as module:
        buffers = {"arrived": device.allocate(4), "flag": device.allocate(4), "time": device.allocate(8)}
        for buffer in buffers.values():
            buffer.zero()
        uses = {name: BufferRef(name, buffer, Access.INOUT) for name, buffer in buffers.items()}
        asked = uses["arrived"], uses["flag"] if flag else bytes(8), uses["time"] if time else bytes(8)
        launch = Launch(module.kernels["moveKern"], (1, blocks, 1), (256, 1, 1), 0, (bytes(24 * RANGES), *asked))
        before = time_ns()
        with closing(device.prepare([launch], 1)) as run:
            run.start()
        found = {}
        for name, buffer in buffers.items():
            content = bytearray(buffer.size_bytes)
            buffer.read(content)
            found[name] = int.from_bytes(content, "little")
    assert found["flag"] == flag and found["arrived"] == 0
    assert (before <= found["time"] <= time_ns()) if time else found["time"] == 0


@pytest.mark.parametrize("repeats", [1, 3000])
def test_a_run_is_timed_from_its_first_launch_to_its_flag(device: CudaDevice, fake: FakeDriver, repeats: int) -> None:
    with closing(device.allocate(64)) as buffer:
        launch = Launch(KERNEL, (1, 1, 1), (32, 1, 1), 0, (BufferRef("a", buffer, Access.OUTPUT),))
        with closing(device.prepare([launch], repeats)) as run:
            times = run._times  # type: ignore[attr-defined]
            for begun, ended in ((1000, 1700), (5000, 6000)):
                run.start()
                assert run.times_ns == (0, 0), "those of the run before are gone"
                times[0] = begun
                assert run.times_ns == (begun, 0)
                times[1] = ended
                run._flag.value = 1  # type: ignore[attr-defined]
                assert run.done()
                assert run.times_ns == (begun, ended)


def test_without_the_gpus_clock_the_hosts_is_taken(device: CudaDevice, fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    def launches(timed: bool) -> int:
        monkeypatch.setattr(moves_module, "TIMED", timed)
        monkeypatch.setattr(run_module, "TIMED", timed)
        with closing(device.allocate(64)) as buffer:
            launch = Launch(KERNEL, (1, 1, 1), (32, 1, 1), 0, (BufferRef("a", buffer, Access.OUTPUT),))
            with closing(device.prepare([launch], 1)) as run:
                before = fake.calls.count("cuLaunchKernel")
                run.start()
                run._flag.value = 1  # type: ignore[attr-defined]
                assert run.done()
                begun_ns, ended_ns = run.times_ns
                assert (begun_ns, ended_ns) == (0, 0) if timed else 0 < begun_ns <= ended_ns
                return fake.calls.count("cuLaunchKernel") - before

    assert launches(timed=True) == 3
    assert launches(timed=False) == 2
