"""What runs use of a real GPU, by its own clock: kernels of a known length, alone and beside each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from kaas_core.request import Access
from kaasd.devices.base import BufferRef, Launch, Run
from kaasd.devices.cuda.device import CudaDevice
from kaasd.worker.device_time import DeviceTime
from tests.conformance.launching import u64

pytestmark = pytest.mark.gpu

HOLD = Path(__file__).parents[3] / "benchmarks" / "kernels" / "hold.ptx"
HOLD_NS = 5_000_000


@pytest.fixture(scope="module", params=[None, 0], ids=["launches", "graph"])
def device(request: pytest.FixtureRequest) -> Iterator[CudaDevice]:
    with closing(CudaDevice(0, plain_starts=request.param)) as opened:
        yield opened


def held(device: CudaDevice, number: int, blocks: int) -> list[int]:
    """Run so many at once, each of one kernel that holds its blocks for ``HOLD_NS``; return what each has used.

    Other processes may have the GPU for a while too, so this is the round of five in which they used least.
    """
    with ExitStack() as stack:
        module = stack.enter_context(closing(device.load(HOLD.read_bytes())))
        runs: list[Run] = []
        for _ in range(number):
            source, target = (stack.enter_context(closing(device.allocate(4 * blocks))) for _ in range(2))
            uses = BufferRef("in", source, Access.INPUT), BufferRef("out", target, Access.OUTPUT)
            launch = Launch(module.kernels["holdKern"], (blocks, 1, 1), (1024, 1, 1), 0, (u64(HOLD_NS), *uses))
            runs.append(stack.enter_context(closing(device.prepare([launch], 1, uploads=[source]))))
        time = DeviceTime()
        rounds: list[list[int]] = []
        for _ in range(5):  # the first loads the code
            for run in runs:
                run.start()
                time.start(run)
            for run in runs:
                run.wait()
            rounds.append([time.end(run) for run in runs])
        return min(rounds, key=sum)


def test_a_kernel_uses_what_it_takes(device: CudaDevice) -> None:
    (used,) = held(device, 1, blocks=1)
    assert used == pytest.approx(HOLD_NS, rel=0.1)


def test_small_kernels_at_once_share_what_one_takes(device: CudaDevice) -> None:
    used = held(device, 4, blocks=1)
    assert sum(used) == pytest.approx(HOLD_NS, rel=0.2)
    assert used == pytest.approx([HOLD_NS / 4] * 4, rel=0.3)


def test_kernels_that_fill_the_gpu_use_what_they_take_one_after_another(device: CudaDevice) -> None:
    """Each waits for those before it, and that counts once: 2 blocks of 1024 threads fill a multiprocessor.

    Other processes may have the GPU meanwhile, so it takes that long at least. Counted for each that waits, it were 2.5 times as
    long.
    """
    blocks = 2 * device.properties.multiprocessor_count
    assert 4 * HOLD_NS * 0.9 <= sum(held(device, 4, blocks)) < 2 * 4 * HOLD_NS
