"""The power fails at any moment, and the disk has what was synced and any of the rest: what ``--durability`` promises."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.store.power_loss import STEPS

Record = Callable[..., Path]


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Return the recording of a load, in one mode where it has several; it is made once."""
    folder = tmp_path_factory.mktemp("recordings")

    def record_(*mode: str, module: str = "power_loss") -> Path:
        name = "-".join([module, *mode])
        log, store = folder / name, folder / f"{name}-store"
        if not log.exists():
            load = [sys.executable, "-B", "-m", f"tests.store.{module}", "load", str(store), *mode]
            done = subprocess.run(
                [sys.executable, "-m", "tests.store.recorder", str(log), str(store), *load],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"the system calls of a process cannot be traced here: {done.stderr}"
        return log

    return record_


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Open every file that the disk may hold by a recording."""
    memory = Path("/dev/shm")
    folder = memory / f"kaas-test-{os.getpid()}" if os.access(memory, os.W_OK) else tmp_path / "disk"

    def check_(log: Path, *mode: str, module: str = "power_loss") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", f"tests.store.{module}", "check", str(log), str(folder), *mode]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=False)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return check_


@pytest.mark.parametrize(
    ("durability", "undone"),
    [
        pytest.param("FULL", 0, id="full: nothing that was acknowledged is lost"),
        pytest.param("META", 1, id="meta: the last transaction at most, and the store is whole"),
        pytest.param("NONE", 1, id="none: the store is whole where the disk keeps the order of writes"),
    ],
)
def test_what_is_there_after_a_power_loss(durability: str, undone: int, record: Record, check: Callable) -> None:
    """All of a step or nothing of it: outputs of several keys, large values, ranges."""
    done = check(record(durability), durability)
    assert done.returncode == 0, done.stderr
    found = {int(more): times for more, times in json.loads(done.stdout).items()}
    assert found[0] > 200
    assert found[1] >= STEPS - 1  # committed, and not acknowledged yet
    assert found.get(-1, 0) >= 5 * undone
    assert found.keys() <= {-undone, 0, 1}


def test_none_where_the_disk_writes_in_any_order(record: Record, check: Callable) -> None:
    """Refused, or one state that is not older than the last sync, but for values that are refused: nothing else, and no crash."""
    done = check(record(module="reordered_writes"), module="reordered_writes")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == {"refused", "whole", "older", "damaged"}
    assert min(found["refused"], found["whole"]) > 50


def test_a_weaker_mode_does_not_keep_the_promise_of_full(record: Record, check: Callable) -> None:
    done = check(record("META"), "FULL")
    assert "steps acknowledged: [-1] of them more are there" in done.stderr


def test_a_disk_that_does_not_sync_does_not_keep_the_promise_of_meta(record: Record, check: Callable, tmp_path: Path) -> None:
    events = pickle.loads(record("META").read_bytes())
    opened = events.index(("Said", "open\n"))
    log = tmp_path / "log"
    log.write_bytes(pickle.dumps(events[:opened] + [event for event in events[opened:] if event[0] != "Sync"]))
    done = check(log, "META")
    assert done.returncode != 0
    assert "steps acknowledged" in done.stderr or done.returncode < 0
