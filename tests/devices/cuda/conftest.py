"""A device whose driver only counts. Tests on a real GPU have one of their own in its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from kaasd.devices.cuda.device import CudaDevice
from tests.devices.cuda.fake_driver import FakeDriver


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return FakeDriver(monkeypatch)


@pytest.fixture
def device(fake: FakeDriver) -> Iterator[CudaDevice]:
    """At its end all that was made is freed, unless the context was lost."""
    with closing(CudaDevice(0)) as opened:
        yield opened
        fake.work_again()
        lost = opened._context.lost
    assert lost or not +fake.held
