"""Clusters and grids whose blocks wait for each other, beyond what ``tests/conformance/test_launch_attributes.py`` runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from kaas_core.request import Access, Dim3
from kaasd.devices.base import BufferRef, KernelFault, Launch
from kaasd.devices.emulator.runtime.device import EmulatedDevice
from kaasd.request.device_checks import LaunchAttributes
from tests.conformance.test_launch_attributes import PTX, exchanged, numbers
from tests.devices.emulator.runner import HEADER, Array, array_of, buffer_of, load_all, run_launches

BEGIN = """
    .reg .pred %q; .reg .b32 %n, %r, %x, %y; .reg .b64 %p, %o, %s; .shared .align 8 .b64 cell; .shared .b32 word;
    ld.param.u64 %o, [o]; mov.u32 %n, %ctaid.x; mov.u32 %r, %cluster_ctarank; mov.u32 %x, %tid.x;
    mad.wide.u32 %o, %n, 4, %o; mov.u64 %s, word; cvta.shared.u64 %s, %s;
"""
SYNC = "barrier.cluster.arrive.release; barrier.cluster.wait.acquire;"


@pytest.fixture(params=[(None, ()), (3, ()), (None, ("races", "init"))], ids=["in order", "random", "checked"])
def device(request: pytest.FixtureRequest) -> Iterator[EmulatedDevice]:
    seed, checks = request.param
    opened = EmulatedDevice(seed=seed, checks=checks)
    yield opened
    opened.close()


def run(
    device: EmulatedDevice, body: str, blocks: int, attributes: LaunchAttributes, threads: int = 32, directives: str = ""
) -> list[int]:
    """Run lines of PTX that leave one number for each block at ``%o``."""
    code = f"{HEADER}.visible .entry k(.param .u64 o) {directives} {{ {BEGIN} {body} ret; }}"
    module = load_all(device, code.encode())
    out = buffer_of(device, np.zeros(blocks, "u4"))
    launch = Launch(module.kernels["k"], (blocks, 1, 1), (threads, 1, 1), 0, (BufferRef("o", out, Access.OUTPUT),), attributes)
    run_launches(device, [launch])
    return list(map(int, array_of(out, "u4")))


def of(x: int, y: int = 1, z: int = 1) -> LaunchAttributes:
    return LaunchAttributes(cluster=(x, y, z))


def launch(
    device: EmulatedDevice, kernel: str, grid: Dim3, block: Dim3, attributes: LaunchAttributes, *buffers: Array
) -> list[Array]:
    module = load_all(device, PTX.read_bytes())
    on_device = [buffer_of(device, each) for each in buffers]
    references = tuple(BufferRef(f"b{i}", each, Access.INOUT) for i, each in enumerate(on_device))
    run_launches(device, [Launch(module.kernels[kernel], grid, block, 0, references, attributes)])
    return [array_of(each, "u4") for each in on_device]


@pytest.mark.parametrize("size", [1, 2, 16])
def test_an_exchange_in_every_order_and_under_the_checks(device: EmulatedDevice, size: int) -> None:
    x = numbers(size)
    _, y = launch(device, "exchangeKern", (16, 1, 1), (64, 1, 1), of(size), x, np.zeros_like(x))
    np.testing.assert_array_equal(y, exchanged(x, size))


def test_addresses_of_the_window_and_generic_ones(device: EmulatedDevice) -> None:
    body = f"""
    st.shared.u32 [word], %n; {SYNC}
    xor.b32 %y, %r, 1; cvta.to.shared.u64 %p, %s; cvt.u32.u64 %x, %p; mapa.shared::cluster.u32 %x, %x, %y;
    .reg .b32 %a, %b, %c; ld.shared::cluster.u32 %a, [%x]; mapa.u64 %p, %s, %y; ld.u32 %b, [%p]; add.u32 %a, %a, %b;
    cvta.to.shared.u64 %p, %p; ld.shared::cluster.u32 %b, [%p]; add.u32 %a, %a, %b;
    cvta.shared::cluster.u64 %p, %p; ld.u32 %b, [%p]; add.u32 %a, %a, %b;
    getctarank.u64 %b, %p; mad.lo.u32 %a, %b, 100, %a; getctarank.shared::cluster.u32 %b, %x; mad.lo.u32 %a, %b, 100, %a;
    getctarank.u64 %b, %s; mad.lo.u32 %a, %b, 1000, %a;
    isspacep.shared::cluster %q, %p; @%q add.u32 %a, %a, 10000; isspacep.shared %q, %p; @%q add.u32 %a, %a, 20000;
    isspacep.shared %q, %s; @%q add.u32 %a, %a, 40000; isspacep.global %q, %p; @%q add.u32 %a, %a, 80000;
    {SYNC} mov.u32 %x, %tid.x; setp.eq.u32 %q, %x, 0; @%q st.global.u32 [%o], %a;"""
    expected = [4 * (block ^ 1) + 200 * (block % 2 ^ 1) + 1000 * (block % 2) + 50_000 for block in range(4)]
    assert run(device, body, 4, of(2)) == expected


def test_arrivals_at_an_mbarrier_of_another_block(device: EmulatedDevice) -> None:
    body = f"""
    setp.eq.u32 %q, %x, 0; @%q mbarrier.init.shared.b64 [cell], 64; @%q st.shared.u32 [word], 5; bar.sync 0; {SYNC}
    mov.u32 %y, cell; mapa.shared::cluster.u32 %y, %y, 0; mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%y];
    setp.ne.u32 %q, %r, 0; @%q bra DONE;
    AGAIN: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %q, [cell], 0; @!%q bra AGAIN;
    setp.eq.u32 %q, %x, 0; @%q st.global.u32 [%o], 7;
    DONE: {SYNC}"""
    assert run(device, body, 4, of(2)) == [7, 0, 7, 0]


def test_the_size_of_a_cluster_comes_with_the_launch(device: EmulatedDevice) -> None:
    body = "mov.u32 %y, %cluster_nctarank; mov.pred %q, %is_explicit_cluster; @%q add.u32 %y, %y, 10; st.global.u32 [%o], %y;"
    assert run(device, body, 8, of(4), directives=".explicitcluster") == [14] * 8
    assert run(device, body, 8, of(1), directives=".explicitcluster") == [11] * 8
    assert run(device, body, 8, LaunchAttributes()) == [1] * 8


def test_a_block_that_is_not_in_the_cluster(device: EmulatedDevice) -> None:
    for rank in (2, 16, 1 << 20):
        for body in (
            "mapa.u64 %p, %s, {0}; ld.u32 %x, [%p];",
            "mov.u32 %x, word; mapa.shared::cluster.u32 %x, %x, {0}; st.shared::cluster.u32 [%x], 1;",
        ):
            with pytest.raises(KernelFault, match="in no block of the cluster") as caught:
                run(device, f"{body.format(rank)} {SYNC} st.global.u32 [%o], %x;", 4, of(2))
            assert caught.value.fault == "CUDA_ERROR_ILLEGAL_ADDRESS"


def test_an_access_past_the_end_of_another_blocks_memory() -> None:
    device = EmulatedDevice()
    body = f"{SYNC} xor.b32 %y, %r, 1; mapa.u64 %p, %s, %y; st.u32 [%p+4096], 1; {SYNC} st.global.u32 [%o], %y;"
    with pytest.raises(
        KernelFault, match="write of 4 bytes at offset 4096 of shared memory of block 0 of the cluster, of 4 bytes"
    ):
        run(device, body, 4, of(2))
    # A later launch without clusters does not find that memory.
    with pytest.raises(KernelFault, match="in no block of the cluster"):
        run(
            device,
            "mov.u64 %p, 0x0001100000000000; ld.u32 %x, [%p]; st.global.u32 [%o], %x;",
            1,
            of(1),
        )
    device.close()


def test_a_race_between_blocks_of_a_cluster() -> None:
    device = EmulatedDevice(checks=("races",))
    body = f"xor.b32 %y, %r, 1; mapa.u64 %p, %s, %y; st.u32 [%p], %n; st.shared.u32 [word], %n; {SYNC} st.global.u32 [%o], %y;"
    with pytest.raises(KernelFault, match="a data race"):
        run(device, body, 2, of(2), threads=1)
    device.close()


@pytest.mark.parametrize("launches", [1, 3])
def test_a_grid_meets_often(device: EmulatedDevice, launches: int) -> None:
    x = numbers(launches)
    module = load_all(device, PTX.read_bytes())
    buffers: Sequence[Array] = (x, np.zeros(40, "u4"), np.zeros(40, "u4"))
    on_device = [buffer_of(device, each) for each in buffers]
    references = (BufferRef(f"b{i}", each, Access.INOUT) for i, each in enumerate(on_device))
    arguments = (len(x).to_bytes(4, "little"), *references)
    one = Launch(module.kernels["gridSumKern"], (40, 1, 1), (64, 1, 1), 0, arguments, LaunchAttributes(cooperative=True))
    for _ in range(2):
        run_launches(device, [one] * launches, 2)
        expected = x.sum(dtype=np.uint32) * np.arange(1, 41, dtype=np.uint32)
        np.testing.assert_array_equal(array_of(on_device[2], "u4"), expected)


def test_a_report_says_what_a_grid_that_waits_needs() -> None:
    device = EmulatedDevice()
    module = load_all(device, PTX.read_bytes())
    buffers = [buffer_of(device, np.zeros(64, "u4")) for _ in range(3)]
    arguments: tuple[BufferRef | bytes, ...] = (
        bytes(4),
        *(BufferRef(f"b{i}", each, Access.INOUT) for i, each in enumerate(buffers)),
    )
    with pytest.raises(KernelFault, match="its blocks wait for one another, which needs a launch that is cooperative"):
        run_launches(device, [Launch(module.kernels["gridSumKern"], (2, 1, 1), (64, 1, 1), 0, arguments)])
    device.close()
