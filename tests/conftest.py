"""What all tests share: the devices that a conformance test runs on."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", params=["emulator", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def device_name(request: pytest.FixtureRequest) -> str:
    """A device's name. Every test that uses it runs on the emulated device, and with ``-m gpu`` on a GPU instead."""
    return str(request.param)
