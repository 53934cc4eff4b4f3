"""Every kernel of the catalogue, through a daemon: what its compiler made of it computes what NumPy does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from examples.local_daemon import local_daemon
from kaas_client import Client
from tests.kernels.catalogue import COMPILERS, Entry, Shows, entries
from tests.kernels.catalogue.table import is_current

MINIMUM = 40
"""Kernels over all compilers."""


MISSING: dict[str, ImportError] = {}
"""Compilers that are not installed: not one where tests without a GPU run, and some on a machine with one."""


def cases() -> Iterator[Any]:
    """Yield the cases of each compiler, or one for a compiler that is not installed."""
    for compiler in COMPILERS:
        try:
            yield from (pytest.param(entry, id=entry.id) for entry in entries(compiler))
        except ImportError as error:
            MISSING[compiler] = error
            yield pytest.param(compiler, id=compiler)


CASES = list(cases())


@pytest.fixture(scope="module")
def emulated() -> Iterator[Client]:
    with local_daemon("--device", "emulator", "--log-level", "WARNING") as address, Client(address, timeout=100) as client:
        yield client


@pytest.fixture(scope="module")
def gpu() -> Iterator[Client]:
    with local_daemon("--device", "cuda:0", "--log-level", "WARNING") as address, Client(address, timeout=100) as client:
        yield client


@pytest.mark.parametrize("entry", CASES)
def test_on_the_emulated_device(entry: Entry | str, emulated: Client) -> None:
    assert not isinstance(entry, str), MISSING
    assert entry.make().run(emulated) == ""


@pytest.mark.gpu
@pytest.mark.parametrize("entry", CASES)
def test_on_a_gpu(entry: Entry | str, gpu: Client) -> None:
    if isinstance(entry, str):
        pytest.skip(f"a compiler that this machine lacks: {MISSING[entry]}")
    assert entry.make().run(gpu) == ""


def test_the_table_is_current() -> None:
    assert not MISSING
    assert is_current(), "run: python -m tests.kernels.catalogue.table write"
    found = [entry for compiler in COMPILERS for entry in entries(compiler)]
    assert len(found) >= MINIMUM
    assert all(any(what in entry.shows for entry in found) for what in Shows)
