"""The open device that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from kaasd.devices.base import Device
from kaasd.devices.open import open_device


@pytest.fixture(scope="session")
def device(device_name: str) -> Iterator[Device]:
    """The device of this name, open. No test may make it fault: see ``fault_cases`` for those."""
    with closing(open_device(device_name)) as opened:
        yield opened
