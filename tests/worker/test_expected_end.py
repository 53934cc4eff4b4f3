"""A job says when its run should end, by how long it took the last time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from time import perf_counter_ns
from typing import Any

import numpy as np
import pytest

from kaasd.devices.emulator.runtime.device import EmulatedDevice
from kaasd.devices.emulator.runtime.run import EmulatedRun
from tests.conformance.test_executor import SMALL, Bench, finish

HELD_NS = 20_000_000


class HeldDevice(EmulatedDevice):
    """As one whose runs go on until the test lets them go."""

    held = False

    def prepare(self, *arguments: Any, **options: Any) -> EmulatedRun:
        run = super().prepare(*arguments, **options)
        ended = run.done
        run.done = lambda: not self.held and ended()  # type: ignore[method-assign]
        return run


@pytest.fixture
def device() -> Iterator[HeldDevice]:
    with closing(HeldDevice()) as opened:
        yield opened


def test_it_is_known_from_the_second_time_on(device: HeldDevice, bench: Bench) -> None:
    for key in "ab":
        bench.put(key, np.full(SMALL, 3, np.uint32))
    request = bench.multiply(SMALL)

    device.held = True
    first = bench.begin(request)
    assert first.poll() is None  # it runs
    begun_ns = perf_counter_ns()
    while perf_counter_ns() < begun_ns + HELD_NS:
        assert first.poll() is None
    assert first.expected_end_ns == 0
    device.held = False
    finish([first])
    at_most_ns = perf_counter_ns() - begun_ns + HELD_NS

    device.held = True
    second = bench.begin(request)
    begun_ns = perf_counter_ns()
    assert second.expected_end_ns == 0
    assert second.poll() is None
    assert begun_ns + HELD_NS <= second.expected_end_ns <= perf_counter_ns() + at_most_ns
    device.held = False
    finish([second])
    assert second.expected_end_ns == 0
