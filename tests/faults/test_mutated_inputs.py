"""Messages and libraries with something in them changed: front and worker go on, and each refusal has a documented reason.

A few, always the same, in ``make test``; others for as long as one likes with ``make fuzz``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from examples.local_daemon import local_daemon
from kaas_client import Client
from tests.faults.mutated import FILES, Target, bytes_near, calls, examples, ptx
from tests.fuzz.mutate import sources

Explore = Callable[[st.SearchStrategy[Any], Callable[[Any], None], int], None]
EXAMPLES_AT_ONCE = 500
"""Of a long run, between two looks at the clock."""
NO_CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


@pytest.fixture(scope="module")
def target(library_root: Path) -> Iterator[Target]:
    limits = ("--emulator-memory", "64MiB", "--store-limit", "256MiB", "--log-level", "ERROR")
    with (
        local_daemon("--device", "emulator", "--library-root", str(library_root), *limits) as address,
        Client(address, retry=None) as kaas,
        grpc.insecure_channel(address) as channel,
    ):
        for key in "ab":
            kaas.put(key, np.arange(1024, dtype=np.uint32))
        target = Target(kaas, channel, kaas.devices()[0].worker_pid)
        yield target
        print(f"\noutcomes: {dict(target.outcomes.most_common())}")


@pytest.fixture
def explore(request: pytest.FixtureRequest) -> Explore:
    """Draw inputs and have each checked: a number of them, always the same, or others for as long as the command line says."""
    minutes = request.config.getoption("--fuzz-minutes")
    end = time.monotonic() + 60 * (minutes or 0)

    def explore(strategy: st.SearchStrategy[Any], check: Callable[[Any], None], number: int) -> None:
        examples = EXAMPLES_AT_ONCE if minutes else number
        wrapped = settings(
            derandomize=not minutes, max_examples=examples, deadline=None, database=None, suppress_health_check=NO_CHECKS
        )(given(strategy)(lambda drawn: check(drawn)))
        wrapped()
        while time.monotonic() < end:
            wrapped()

    return explore


def test_messages(target: Target, explore: Explore, library_root: Path) -> None:
    explore(calls(examples(str(library_root / "dot.ptx"))), lambda call: target.send(*call), 150)
    assert len(target.outcomes) > 1, "all was taken, or nothing"


def test_ptx(target: Target, explore: Explore) -> None:
    def check(text: bytes) -> None:
        library = target.upload(text)
        if library is not None:
            target.run(library)
            target.kaas.delete_library(library)

    explore(ptx([path.read_text() for path in sources()]), check, 40)


def test_machine_code(target: Target, explore: Explore) -> None:
    """Cubins, fatbins and shared objects, of which the emulated device runs the PTX that is in them."""

    def check(content: bytes) -> None:
        library = target.upload(content)
        if library is not None:
            target.run(library)
            target.kaas.delete_library(library)

    files = [path.read_bytes() for path in sorted(FILES.iterdir()) if path.suffix in (".cubin", ".fatbin", ".so")]
    explore(st.sampled_from(files).flatmap(bytes_near), check, 80)
