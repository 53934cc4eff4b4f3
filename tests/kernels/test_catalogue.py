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


def cases() -> Iterator[Any]:
    """Yield the cases of each compiler, or one that is skipped where it is not installed: compilers are extras."""
    for compiler in COMPILERS:
        try:
            yield from (pytest.param(entry, id=entry.id) for entry in entries(compiler))
        except ImportError as error:
            yield pytest.param(None, id=compiler, marks=pytest.mark.skip(reason=f"the compiler is an extra: {error}"))


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
def test_on_the_emulated_device(entry: Entry, emulated: Client) -> None:
    assert entry.make().run(emulated) == ""


@pytest.mark.gpu
@pytest.mark.parametrize("entry", CASES)
def test_on_a_gpu(entry: Entry, gpu: Client) -> None:
    assert entry.make().run(gpu) == ""


def test_the_table_is_current() -> None:
    for compiler in COMPILERS:
        pytest.importorskip(f"tests.kernels.catalogue.{compiler}_cases", reason="the compiler is an extra")
    assert is_current(), "run: python -m tests.kernels.catalogue.table write"
    found = [entry for compiler in COMPILERS for entry in entries(compiler)]
    assert len(found) >= MINIMUM
    assert all(any(what in entry.shows for entry in found) for what in Shows)
