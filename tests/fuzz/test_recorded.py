"""Random programs on the emulated device, against what an H100 made of them."""

from __future__ import annotations

import lzma
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest

from kaasd.devices.emulator.runtime.device import EmulatedDevice
from tests.fuzz.record import names, run

RECORDED = sorted(Path(__file__).parent.glob("recorded/*.npz.xz"))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name.partition(".")[0])
def test_recorded_programs(path: Path) -> None:
    with lzma.open(path) as packed, np.load(packed) as kept:
        text, sizes, inputs, expected = (kept[name] for name in ("text", "sizes", "inputs", "output"))
    entries = names(len(sizes))
    device = EmulatedDevice()
    try:
        actual = np.frombuffer(run(device, text.tobytes().decode(), entries, sizes.tolist(), inputs), np.uint8)
    finally:
        device.close()
    ends = list(accumulate(sizes.tolist()))
    wrong = [
        name
        for name, start, end in zip(entries, [0, *ends], ends, strict=False)
        if not np.array_equal(actual[start:end], expected[start:end])
    ]
    assert len(entries) >= 30
    assert not wrong
