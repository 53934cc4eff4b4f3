"""Workers that do as they are told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kaasd.front import worker_process
from tests.front import support


@pytest.fixture(autouse=True)
def scripted_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every worker that is started is a scripted one."""
    monkeypatch.setattr(worker_process, "COMMAND", support.COMMAND)
    yield
