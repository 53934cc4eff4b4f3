"""Pages of the store that a device may hold on to, or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kaasd.devices.base import Device
from tests.conformance.test_executor import LARGE, Bench, numbers


def test_a_device_is_shown_the_map_only_while_it_may_hold_on_to_it(
    bench: Bench, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, unmapped = [], []
    upload = device.upload

    def watch(buffer: Any, pieces: Any, mapped: Any = None) -> Any:
        shown.append(mapped)
        return upload(buffer, pieces, mapped)

    monkeypatch.setattr(device, "upload", watch)
    monkeypatch.setattr(device, "unmap", lambda: unmapped.append(allowed))
    multiply, b = bench.multiply(LARGE), numbers(0, LARGE)
    bench.put("b", b)
    for seed, allowed in enumerate((True, False, False, True, True)):
        bench.executor.hold_pages(allowed=allowed)
        shown.clear()
        bench.put("a", numbers(seed, LARGE))
        bench.run(multiply)
        assert shown == [bench.store.mapped if allowed else None] * len(shown)
        assert shown
        np.testing.assert_array_equal(bench.get("p"), numbers(seed, LARGE) * b)
    assert unmapped == [False, False]
