"""The order in which blocks and warps run: fixed, or random and the same for the same seed."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from kaasd.devices.base import KernelFault
from kaasd.devices.emulator.runtime.device import EmulatedDevice
from tests.devices.emulator.runner import Array, array_of, buffer_of, kernel, launch, read_write, run_launches

TICKETS = """
    .reg .b32 %v; {before} atom.global.add.u32 %v, [%p0], 1; mad.wide.u32 %at, %v, 4, %p0; st.global.u32 [%at+4], %i;"""
"""Every thread writes its index behind those that came before it."""


def order_of(device: EmulatedDevice, before: str = "", *, grid: int = 4, block: int = 128) -> Array:
    module = device.load(kernel(TICKETS.format(before=before)))
    buffer = buffer_of(device, np.zeros(1 + grid * block, "u4"))
    run_launches(device, [launch(module, "k", (grid, 1, 1), (block, 1, 1), read_write("x", buffer))])
    order = array_of(buffer, "u4")[1:]
    np.testing.assert_array_equal(np.sort(order), np.arange(grid * block))
    return order


@pytest.mark.parametrize("before", ["", "bar.sync 0;", "bar.warp.sync 0xFFFFFFFF;"])
def test_same_seed_same_order(before: str) -> None:
    orders = []
    for _ in range(2):
        with closing(EmulatedDevice(seed=7)) as device:
            orders.append([order_of(device, before) for _ in range(2)])
    for first, second in zip(*orders, strict=True):
        np.testing.assert_array_equal(first, second)
    assert (orders[0][0] != orders[0][1]).any()


def test_seeds_and_no_seed_differ() -> None:
    orders = []
    for seed in (None, 1, 2):
        with closing(EmulatedDevice(seed=seed)) as device:
            orders.append(order_of(device, "bar.sync 0;"))
    assert not any((orders[a] == orders[b]).all() for a, b in ((0, 1), (0, 2), (1, 2)))


def test_a_bug_of_order_is_shaken_out() -> None:
    """The last of several warps that store without a barrier wins: another one now and then."""
    body = "shr.u32 %n, %n, 5; st.global.u32 [%p0], %n;"
    winners = set()
    for seed in range(20):
        with closing(EmulatedDevice(seed=seed)) as device:
            module = device.load(kernel(body))
            buffer = buffer_of(device, np.zeros(1, "u4"))
            run_launches(device, [launch(module, "k", (1, 1, 1), (128, 1, 1), read_write("x", buffer))])
            winners.add(int(array_of(buffer, "u4")[0]))
    assert len(winners) > 1


def test_a_deadlock_is_still_found() -> None:
    with closing(EmulatedDevice(seed=3)) as device:
        module = device.load(kernel("setp.lt.u32 %q, %n, 32; @%q bar.sync 1, 64;"))
        buffer = buffer_of(device, np.zeros(1, "u4"))
        with pytest.raises(KernelFault, match="deadlock"):
            run_launches(device, [launch(module, "k", (1, 1, 1), (128, 1, 1), read_write("x", buffer))])


def test_blocks_that_wait_for_each_other_come_together() -> None:
    body = """
    .reg .pred %all; .reg .b32 %v; red.global.add.u32 [%p0], 1;
    WAIT: ld.volatile.global.u32 %v, [%p0]; setp.eq.u32 %all, %v, 640; @!%all bra WAIT;
    bar.sync 0; red.global.add.u32 [%p0+4], 1;"""
    with closing(EmulatedDevice(seed=5)) as device:
        module = device.load(kernel(body))
        buffer = buffer_of(device, np.zeros(2, "u4"))
        run_launches(device, [launch(module, "k", (10, 1, 1), (64, 1, 1), read_write("x", buffer))])
        assert list(array_of(buffer, "u4")) == [640, 640]
