"""A daemon on each device, for the tests that go through one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from examples.local_daemon import local_daemon
from kaas_client import Client
from tests.conformance.launching import KERNELS


@pytest.fixture(scope="module")
def address(device_name: str) -> Iterator[str]:
    """The address of a daemon on this device."""
    with local_daemon("--device", device_name) as address:
        yield address


@pytest.fixture(scope="module")
def kaas(address: str) -> Iterator[Client]:
    """A client of it."""
    with Client(address, timeout=90) as client:
        yield client


@pytest.fixture(scope="module")
def dot(kaas: Client) -> str:
    """The library ``dot``: ``prodKern(n, a, b, p)`` is p = a * b, ``sumKern(p, c)`` sums."""
    return kaas.upload(KERNELS / "dot.ptx")
