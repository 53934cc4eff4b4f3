"""An engine for the tests of this folder, on the ``device`` of each module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kaasd.devices.base import Device
from kaasd.libraries.registry import Libraries, describe_library
from kaasd.store.lmdb_store import LmdbStore
from kaasd.worker import loop
from kaasd.worker.executor import Executor
from tests.conformance.launching import library
from tests.conformance.test_executor import Bench
from tests.worker.support import HeldExecutor, Worker


@pytest.fixture
def bench(tmp_path: Path, device: Device) -> Iterator[Bench]:
    """An executor with the kernels of the dot product, none of them loaded yet."""
    with closing(LmdbStore(tmp_path / "store", limit_bytes=64 << 20)) as store:
        libraries = Libraries(store)
        libraries.put(describe_library(library("dot")), library("dot"))
        with closing(Executor(device, store, libraries)) as executor:
            yield Bench(executor, store)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[HeldExecutor], Worker]]:
    workers: list[Worker] = []
    monkeypatch.setattr(loop, "execute", HeldExecutor.begin)

    def start(executor: HeldExecutor) -> Worker:
        workers.append(Worker(executor))
        return workers[-1]

    yield start
    for worker in workers:
        with closing(worker):
            pass
