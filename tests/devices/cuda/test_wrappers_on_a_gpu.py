"""Wrappers among the launches of a run, on a real GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from kaas_core.request import Access
from kaasd.devices.base import BufferRef, KernelFault, Launch
from kaasd.devices.cuda.buffers import CudaBuffer
from kaasd.devices.cuda.device import CudaDevice
from kaasd.devices.cuda.wrapper import HostFunction
from tests.conformance.launching import library, u32, u64
from tests.devices.cuda.test_runs_on_a_gpu import buffers, finish, numbers, product

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[3]
SUM = (ROOT / "examples/wrappers/sum.so").read_bytes()
CONVENTION = (ROOT / "tests/libraries/data/convention.so").read_bytes()
N = 10_000


@pytest.fixture(scope="module", params=[1, 0, None], ids=["second run", "at once", "never"])
def device(request: pytest.FixtureRequest) -> Iterator[CudaDevice]:
    """A device by when it makes graphs of launches without wrappers."""
    with closing(CudaDevice(0, plain_starts=request.param)) as opened:
        yield opened


@pytest.fixture
def total(device: CudaDevice) -> Iterator[HostFunction]:
    with closing(device.load(SUM)) as module:
        yield module.load_host_function("sum")


def sum_of(total: HostFunction, a: CudaBuffer, partial: CudaBuffer, c: CudaBuffer, n: int, threads: int = 64) -> Launch:
    uses = zip(("a", "partial", "c"), (a, partial, c), (Access.INPUT, Access.TEMPORARY, Access.OUTPUT), strict=True)
    arguments = tuple(BufferRef(name, buffer, access) for name, buffer, access in uses)
    return Launch(total, (1, 1, 1), (threads, 1, 1), 0, (*arguments, u64(n)))


def gives(device: CudaDevice, code: int) -> Launch:
    function = device.load(CONVENTION).load_host_function("give")
    return Launch(function, (1, 1, 1), (1, 1, 1), 0, (u32(code),))


@pytest.mark.parametrize(("n", "threads"), [(1, 2), (2, 2), (5, 2), (17, 2), (1000, 2), (N, 64), (1_000_003, 256), (2048, 1024)])
def test_as_many_launches_as_it_takes(n: int, threads: int, device: CudaDevice, total: HostFunction) -> None:
    a, partial = buffers(device, 2, 4 * n)
    c = device.allocate(4)
    value = numbers(n, n)
    a.write(value.tobytes())
    with closing(device.prepare([sum_of(total, a, partial, c, n, threads)], 1, downloads=[c])) as run:
        run.start()
        finish(run)
        assert np.frombuffer(run.downloads[0], np.uint32)[0] == np.sum(value, dtype=np.uint32)


def test_between_kernels_and_again(device: CudaDevice, total: HostFunction) -> None:
    """c = sum(a * b), then p = c * c: each sees what the one before it has written, in every run."""
    module = device.load(library("dot"))
    a, b, p, partial = buffers(device, 4, 4 * N)
    c, squared = buffers(device, 2, 4)
    launches = [product(module, a, b, p, N), sum_of(total, p, partial, c, N), product(module, c, c, squared, 1)]
    with closing(device.prepare(launches, 1, uploads=[a, b], zeroed=[partial], downloads=[c, squared])) as run:
        run.warm()
        for seed in range(4):
            first, second = numbers(seed, N), numbers(seed + 100, N)
            run.uploads[0][:], run.uploads[1][:] = first.tobytes(), second.tobytes()
            run.start()
            finish(run)
            expected = np.sum(first * second, dtype=np.uint32)
            assert np.frombuffer(run.downloads[0], np.uint32)[0] == expected
            assert np.frombuffer(run.downloads[1], np.uint32)[0] == expected * expected


def test_other_buffers(device: CudaDevice, total: HostFunction) -> None:
    a, other, partial = buffers(device, 3, 4 * N)
    c = device.allocate(4)
    values = numbers(1, N), numbers(2, N)
    for buffer, value in zip((a, other), values, strict=True):
        buffer.write(value.tobytes())
    with closing(device.prepare([sum_of(total, a, partial, c, N)], 3, downloads=[c])) as run:
        for buffer, value in zip((a, other, a), (*values, values[0]), strict=True):
            run.update([sum_of(total, buffer, partial, c, N)])
            run.start()
            finish(run)
            assert np.frombuffer(run.downloads[0], np.uint32)[0] == np.sum(value, dtype=np.uint32)


def test_a_wrapper_that_fails(device: CudaDevice, total: HostFunction) -> None:
    """It fails its run alone, and names itself; the next run is as good as any."""
    a, partial = buffers(device, 2, 4 * N)
    c = device.allocate(4)
    value = numbers(3, N)
    a.write(value.tobytes())
    good = sum_of(total, a, partial, c, N)
    with closing(device.prepare([good, gives(device, 0), gives(device, 7), good], 2)) as run:
        for _ in range(2):
            with pytest.raises(KernelFault) as fault:
                run.start()
            assert (fault.value.fault, fault.value.launch_index) == ("WRAPPER_FAILED", 2)
            assert (fault.value.message, fault.value.device_lost) == ("give returned 7", False)
    with closing(device.prepare([gives(device, 0), good], 2, downloads=[c])) as run:
        run.start()
        finish(run)
        assert np.frombuffer(run.downloads[0], np.uint32)[0] == np.sum(value, dtype=np.uint32)


def test_what_its_arguments_are_is_for_it_to_check(device: CudaDevice, total: HostFunction) -> None:
    """CUDA_ERROR_INVALID_VALUE is 1."""
    launch = Launch(total, (1, 1, 1), (64, 1, 1), 0, (u64(1),))
    with closing(device.prepare([launch], 1)) as run, pytest.raises(KernelFault, match="sum returned 1"):
        run.start()
