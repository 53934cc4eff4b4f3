"""One server a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.support import FakeDispatcher, Running, running_server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    """A server whose dispatcher must be called as the test expects."""
    dispatcher = FakeDispatcher()
    with running_server(tmp_path, dispatcher) as running:
        yield running
    dispatcher.assert_all_used()
