"""An execution that is closed on its way leaves nothing in use, and takes no memory from under who still reads it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kaas_core.errors import DeadlineExceededError, StoreFullError
from kaasd.devices.base import Device, Stopped
from kaasd.devices.emulator.runtime.device import EmulatedDevice
from kaasd.devices.emulator.runtime.run import EmulatedRun
from kaasd.libraries.registry import Libraries, describe_library
from kaasd.store.base import Entry, Write
from kaasd.store.lmdb_store import LmdbStore
from kaasd.worker.cancellation import Cancellation
from kaasd.worker.execution import Invocation, execute
from kaasd.worker.executor import Executor
from tests.conformance.launching import library
from tests.conformance.test_executor import LARGE, Bench, finish, numbers
from tests.worker.test_slots import HeldStore

COMMIT_S = 0.1
"""How long a held commit takes: far longer than closing takes that does not wait for it."""


class SlowStore(LmdbStore):
    """Begins to read what it is given only some time later, while ``slow``."""

    slow = False

    def __init__(self, *arguments: Any, events: list[str], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._events = events

    def commit(self, writes: Sequence[Write]) -> Future[dict[str, Entry]]:
        if not self.slow:
            return super().commit(writes)
        answer: Future[dict[str, Entry]] = Future()

        def commit_late() -> None:
            self._events.append("read by the store")
            answer.set_result(LmdbStore.commit(self, writes).result())

        threading.Timer(COMMIT_S, commit_late).start()
        return answer


class NotingDevice(EmulatedDevice):
    """Notes when the host memory of a download is freed."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self._events = events

    def download(self, *arguments: Any, **options: Any) -> Any:
        download = super().download(*arguments, **options)
        close = download.close

        def note_and_close() -> None:
            self._events.append("freed")
            close()

        download.close = note_and_close  # type: ignore[method-assign]
        return download


@pytest.fixture
def events() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, events: list[str]) -> Iterator[SlowStore]:
    with closing(SlowStore(tmp_path / "store", limit_bytes=64 << 20, events=events)) as opened:
        yield opened


@pytest.fixture
def bench(store: SlowStore, events: list[str]) -> Iterator[Bench]:
    libraries = Libraries(store)
    libraries.put(describe_library(library("dot")), library("dot"))
    with closing(NotingDevice(events)) as device, closing(Executor(device, store, libraries)) as executor:
        yield Bench(executor, store)


def test_one_that_commits_waits_for_the_store(bench: Bench, store: SlowStore, events: list[str]) -> None:
    for key in "ab":
        bench.put(key, numbers(1, LARGE))
    store.slow = True
    job = bench.begin(bench.multiply(LARGE))
    while not job.is_committing:
        assert job.poll() is None
    assert events == []
    job.close()
    assert events == ["read by the store", "freed"]
    job.close()
    assert np.array_equal(bench.get("p"), numbers(1, LARGE) ** 2)
    assert bench.executor.memory.in_use_bytes == 0


def test_a_job_is_committing_from_its_commit_on(bench: Bench, store: SlowStore, events: list[str]) -> None:
    for key in "ab":
        bench.put(key, numbers(1, LARGE))
    ended = []
    bench.executor.on_commit = lambda: ended.append(list(events))
    job = bench.begin(bench.multiply(LARGE))
    assert not job.is_committing
    store.slow = True
    while not job.is_committing:
        assert job.poll() is None
    assert bench.executor.memory.in_use_bytes == 0
    while (result := job.poll()) is None:
        assert job.is_committing
        job.wait()
    assert result.versions.keys() == {"p"}
    assert ended == [["read by the store"]]
    assert events == ["read by the store", "freed"]
    store.slow = False
    finish([bench.begin(bench.multiply(LARGE))])


@pytest.mark.parametrize("closed", [False, True])
def test_a_run_that_is_under_way_is_stopped(bench: Bench, monkeypatch: pytest.MonkeyPatch, closed: bool) -> None:
    """As far as the device can: on a GPU between the pieces of a long one."""
    events: list[str] = []

    def done(_: EmulatedRun) -> bool:
        if events:
            raise Stopped
        return False

    monkeypatch.setattr(EmulatedRun, "done", done)
    monkeypatch.setattr(EmulatedRun, "stop", lambda _: events.append("stopped"))
    monkeypatch.setattr(EmulatedRun, "wait", lambda _: events.append("awaited"))
    for key in "ab":
        bench.put(key, numbers(1, LARGE))
    cancellation = Cancellation()
    job = execute(bench.executor, Invocation(bench.multiply(LARGE), {}, {}, [], cancellation))
    for _ in range(10):
        assert job.poll() is None
    assert events == []
    if closed:
        job.close()
        assert events == ["stopped", "awaited"]
    else:
        cancellation.reason = DeadlineExceededError("the deadline passed")
        with pytest.raises(DeadlineExceededError, match="the deadline passed"):
            job.poll()
        assert events == ["stopped"]
    assert bench.executor.memory.in_use_bytes == 0


@pytest.mark.parametrize("ends", ["fails", "is closed", "succeeds"])
def test_what_was_to_stay_on_the_device_goes_where_it_was_not_stored(tmp_path: Path, device: Device, ends: str) -> None:
    """Nobody could find it there, and it would count for its group."""
    with closing(HeldStore(tmp_path / "store", limit_bytes=256 << 20)) as store:
        libraries = Libraries(store)
        libraries.put(describe_library(library("dot")), library("dot"))
        with closing(Executor(device, store, libraries, keep_stored=True)) as executor:
            bench = Bench(executor, store)
            invocation = Invocation(bench.multiply(LARGE), {}, dict.fromkeys("ab", bytes(4 * LARGE)), [], Cancellation())
            if ends != "succeeds":
                store.held = held = Future()
            job = execute(executor, invocation)
            while ends != "succeeds" and not job.is_committing:
                assert job.poll() is None
            if ends == "fails":
                held.set_exception(StoreFullError("full"))
                with pytest.raises(StoreFullError):
                    finish([job])
            elif ends == "is closed":
                held.set_result({})
                job.close()
            else:
                finish([job])
            kinds = [key[0] for key in executor.memory.keys() if isinstance(key, tuple)]  # noqa: SIM118  (no mapping)
            assert kinds == (["instance", "value"] if ends == "succeeds" else ["instance"])
            assert executor.memory.in_use_bytes == 0
