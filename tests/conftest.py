"""What all tests share: the devices that a conformance test runs on, and the code that daemons have compiled."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing

import pytest

from kaasd.devices.base import Device
from kaasd.devices.registry import open_device


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", help="Run the tests that run on every device on this one, named as for kaasd --device.")
    parser.addoption("--kills", type=int, help="How many workers, and then daemons, are killed, however long it takes.")
    parser.addoption("--fuzz-minutes", type=float, help="For how long each test of mutated inputs draws new ones.")
    parser.addoption("--sequences", type=int, help="How many random sequences of operations the store is put through.")


def pytest_configure(config: pytest.Config) -> None:
    """Let all daemons of a run share what they compile, those of its other processes too: most have a store of their own."""
    if not hasattr(config, "workerinput"):
        os.environ["KAASD_CODE_CACHE"] = directory = tempfile.mkdtemp(prefix="kaasd-code-")
        config.add_cleanup(lambda: shutil.rmtree(directory, ignore_errors=True))


@pytest.fixture
def own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Daemons that a test starts compile for themselves."""
    monkeypatch.delenv("KAASD_CODE_CACHE")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device_name" in metafunc.fixturenames:
        named = metafunc.config.getoption("--device")
        names = [named] if named else ["emulator", pytest.param("cuda:0", marks=pytest.mark.gpu)]
        metafunc.parametrize("device_name", names, indirect=True, scope="session")


@pytest.fixture(scope="session")
def device_name(request: pytest.FixtureRequest) -> str:
    """A device's name. Every test that uses it runs on the emulated device, and with ``-m gpu`` on a GPU instead."""
    return str(request.param)


@pytest.fixture(scope="session")
def device(device_name: str) -> Iterator[Device]:
    """The device of this name, open. No test may make it fault: see ``tests.conformance.fault_cases`` for those."""
    with closing(open_device(device_name)) as opened:
        yield opened
