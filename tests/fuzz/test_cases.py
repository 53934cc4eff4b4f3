"""Cases that once went differently on the emulated device, against what an H100 made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kaasd.devices.emulator.runtime.device import EmulatedDevice
from tests.fuzz import cases


@pytest.mark.parametrize("path", sorted(cases.FOLDER.glob("*.ptx")), ids=lambda path: path.stem)
def test_case(path: Path) -> None:
    case = cases.read(path)
    device = EmulatedDevice()
    try:
        assert case.run(device).hex() == case.outputs.hex()
    finally:
        device.close()
