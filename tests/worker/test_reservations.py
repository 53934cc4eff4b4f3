"""Multiprocessors of groups' own, on a device that may have none to give."""

from __future__ import annotations

import numpy as np

from kaasd.devices.base import Device
from tests.conformance.test_executor import LARGE, Bench, numbers


def test_requests_run_whether_the_device_can_reserve_or_not(bench: Bench, device: Device) -> None:
    """A store may come from a machine whose devices could."""
    multiply = bench.multiply(LARGE)
    for reserved in ({"a": device.properties.multiprocessor_unit or 8}, {"a": 1 << 20}, {}):
        bench.executor.reserve(reserved)
        bench.put("a", numbers(1, LARGE))
        bench.put("b", numbers(2, LARGE))
        bench.run(multiply)
        np.testing.assert_array_equal(bench.get("p"), numbers(1, LARGE) * numbers(2, LARGE))
