"""kill -9 of workers and daemons at random moments, while clients write: what was acknowledged stays, and nothing is torn.

`make soak` does it more often, and as long as that takes.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kaas_client import Client
from tests.faults.neighbours import Caller, Daemon, advance, assert_nothing_is_left, callers_of, children, running, started
from tests.faults.support import wait_until

KILLS, KILLS_S = 20, 20.0
"""At most, where the command line says nothing; on a busy machine there are fewer."""
MIN_KILLS = 5


@pytest.fixture
def daemon(tmp_path: Path, library_root: Path) -> Iterator[Daemon]:
    with started(tmp_path, library_root) as daemon:
        yield daemon


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> Iterator[int]:
    """Count the kills."""
    wanted, start = request.config.getoption("--kills"), time.monotonic()
    return itertools.takewhile(
        lambda kill: wanted is not None or kill < MIN_KILLS or time.monotonic() - start < KILLS_S,
        range(KILLS if wanted is None else wanted),
    )


@pytest.fixture
def callers(library_root: Path) -> list[Caller]:
    return callers_of(library_root, 3)


def test_killed_workers(daemon: Daemon, callers: list[Caller], kills: Iterator[int]) -> None:
    moments = random.Random()
    with running(callers, daemon) as check, Client(daemon.address) as kaas:
        for restarts in (kill + 1 for kill in kills):
            advance(callers, check)
            time.sleep(moments.uniform(0, 0.1))
            os.kill(kaas.devices()[0].worker_pid, signal.SIGKILL)
            wait_until(lambda restarts=restarts: kaas.devices()[0].restarts == restarts)
    assert [error.message for caller in callers for error in caller.errors] == [], "nobody hears of it"
    assert daemon.end(signal.SIGTERM) == 0
    assert_nothing_is_left(daemon)


def test_killed_workers_and_spares(tmp_path: Path, library_root: Path, callers: list[Caller], kills: Iterator[int]) -> None:
    """One of the two, or both, and the one that has just taken over."""
    moments = random.Random()
    with started(tmp_path, library_root, "--spare", "1") as daemon:
        seen: set[int] = set()
        with running(callers, daemon) as check:
            for _ in kills:
                advance(callers, check)
                wait_until(lambda: len(children(daemon.pid)) == 2)
                time.sleep(moments.uniform(0, 0.1))
                both = sorted(children(daemon.pid))
                seen.update(both)
                for pid in moments.sample(both, moments.randint(1, len(both))):
                    os.kill(pid, signal.SIGKILL)
                wait_until(lambda both=both: not set(both) <= children(daemon.pid))
            advance(callers, check)
        assert [error.message for caller in callers for error in caller.errors] == [], "nobody hears of it"
        seen |= children(daemon.pid)
        assert daemon.end(signal.SIGTERM) == 0
    assert not [pid for pid in seen if Path(f"/proc/{pid}").exists()]
    assert_nothing_is_left(daemon)


def test_killed_daemons(daemon: Daemon, callers: list[Caller], kills: Iterator[int]) -> None:
    """Every other one before it is ready; and some with their workers, as a system that is short of memory does."""
    moments = random.Random()
    with running(callers, daemon) as check:
        for kill in kills:
            if kill % 2:
                time.sleep(moments.uniform(0, 1))
            else:
                if not daemon.up.is_set():
                    daemon.wait_until_up()
                advance(callers, check)
                with Client(daemon.address) as kaas:
                    worker = kaas.devices()[0].worker_pid
                time.sleep(moments.uniform(0, 0.1))
                if kill % 4:
                    os.kill(worker, signal.SIGKILL)
            assert daemon.end(signal.SIGKILL) == -signal.SIGKILL
            daemon.start()
        daemon.wait_until_up()
        advance(callers, check)
    assert daemon.end(signal.SIGTERM) == 0
    assert_nothing_is_left(daemon)
