"""One cluster of Ray for all tests of this folder, with two emulated devices."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep

import pytest
import ray
from ray.cluster_utils import Cluster

import kaas_client.ray as kaas_ray
from kaas_client.ray.metrics import Usage
from kaas_client.ray.table import NAMESPACE

_HERE = Path(__file__).parent
_STARTS = 3
"""Ray gives up when a process of its own needs more than 15 to 30 s to start, as it may on a busy machine."""
OBJECT_STORE_BYTES = 256 << 20
SETTLED_WITHIN_S = 20.0
_HEALTH = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000}
"""Nodes that are lost are to be missed within some seconds. One that is late is not lost: it has 10 s for each of 5 times."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of this folder first: so the first of several test processes gets them all, and one cluster is enough."""
    items.sort(key=lambda item: not item.path.is_relative_to(_HERE))


@pytest.fixture
def settled(cluster: Cluster) -> Callable[[str], Usage]:
    """Return what says what is on an executor's device once no call uses any of it, soon after the last has its results."""

    def settled(name: str) -> Usage:
        executor = ray.get_actor(name, NAMESPACE)
        deadline = monotonic() + SETTLED_WITHIN_S
        while (found := ray.get(executor.usage.remote())).in_use_bytes:
            assert monotonic() < deadline, f"still in use: {found}"
            sleep(0.01)
        return found

    return settled


@pytest.fixture
def usage(settled: Callable[[str], Usage]) -> Callable[[], Usage]:
    """Return ``settled`` for ``emulator:0``."""
    return lambda: settled("emulator:0")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster of one node that this process has joined, with the executors ``emulator:0`` and ``emulator:1``."""
    started = _start()
    try:
        kaas_ray.init("emulator", executors=2)
        yield started
    finally:
        _stop(started)


def set_up_environment() -> None:
    """Have other processes of the cluster find the packages where this one does, and need no token."""
    paths = [str(_HERE.parents[1] / folder) for folder in ("", "proto")]
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


def wait_until(is_so: Callable[[], bool], timeout_s: float = SETTLED_WITHIN_S) -> None:
    """Return when something is so that is to come about."""
    deadline = monotonic() + timeout_s
    while not is_so():
        assert monotonic() < deadline
        sleep(0.02)


def _start() -> Cluster:
    """Start Ray, or skip where it cannot be started at all."""
    set_up_environment()
    for attempt in range(1, _STARTS + 1):
        started = Cluster()
        try:
            started.add_node(
                num_cpus=2,
                resources={"kaas_emulator": 2},
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                _system_config=_HEALTH,
            )
            ray.init(address=started.address, logging_level=logging.ERROR, log_to_driver=False)
        except Exception as error:
            _stop(started)
            if attempt == _STARTS:
                pytest.skip(f"Ray did not start in {_STARTS} attempts: {error}")
        else:
            break
    return started


def _stop(cluster: Cluster) -> None:
    ray.shutdown()
    cluster.shutdown()
