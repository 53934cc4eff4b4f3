"""On which multiprocessors the kernels of groups run, on a real GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from kaas_core.request import Access
from kaasd.devices.base import BufferRef, Launch
from kaasd.devices.cuda.device import CudaDevice
from tests.conformance.launching import u64

pytestmark = pytest.mark.gpu

BLOCKS = 528
WHERE = b"""
.version 8.0
.target sm_70
.address_size 64
.visible .entry where(.param .u64 out, .param .u64 nanoseconds)
{
    .reg .b32 %r<2>;
    .reg .b64 %d<7>;
    .reg .pred %p;
    ld.param.u64 %d0, [out];
    ld.param.u64 %d1, [nanoseconds];
    mov.u64 %d2, %globaltimer;
WAIT:
    mov.u64 %d3, %globaltimer;
    sub.u64 %d4, %d3, %d2;
    setp.lt.u64 %p, %d4, %d1;
    @%p bra WAIT;
    mov.u32 %r0, %smid;
    mov.u32 %r1, %ctaid.x;
    cvta.to.global.u64 %d5, %d0;
    mul.wide.u32 %d6, %r1, 4;
    add.u64 %d5, %d5, %d6;
    st.global.u32 [%d5], %r0;
    ret;
}
"""


@pytest.fixture(params=[1, 0, None], ids=["second run", "at once", "never"])
def device(request: pytest.FixtureRequest) -> Iterator[CudaDevice]:
    """A device by when it makes graphs."""
    with closing(CudaDevice(0, plain_starts=request.param)) as opened:
        if not opened.properties.multiprocessor_unit:
            pytest.skip("this driver or GPU has no green contexts")
        yield opened


@pytest.mark.parametrize("shared_memory_bytes", [0, 100 << 10], ids=["", "shared memory beyond 48 KiB"])
def test_runs_keep_to_the_multiprocessors_of_their_groups(device: CudaDevice, shared_memory_bytes: int) -> None:
    kernel = device.load(WHERE).kernels["where"]
    out = device.allocate(4 * BLOCKS)
    launch = Launch(kernel, (BLOCKS, 1, 1), (128, 1, 1), shared_memory_bytes, (BufferRef("out", out, Access.OUTPUT), u64(50_000)))
    run = device.prepare([launch], 1, downloads=[out])

    def where(group: str) -> set[int]:
        """Run it twice; return on which multiprocessors it was, each time the same."""
        seen = []
        for _ in range(2):
            run.start(group=group)
            run.wait()
            assert run.done()
            seen.append(set(np.frombuffer(run.downloads[0], np.uint32).tolist()))
        assert seen[0] == seen[1]
        return seen[0]

    everywhere, unit = where("a"), device.properties.multiprocessor_unit
    assert len(everywhere) == device.properties.multiprocessor_count
    device.reserve({"a": unit, "b": unit + 1})
    a, b, rest = where("a"), where("b"), where("")
    assert (len(a), len(b)) == (unit, 2 * unit)
    assert a | b | rest == everywhere
    assert len(a) + len(b) + len(rest) == len(everywhere)
    device.reserve({"b": unit})
    assert where("a") == where("c") == everywhere - where("b")
    device.reserve({})
    assert where("a") == where("b") == everywhere
    run.close()
