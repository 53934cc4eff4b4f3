"""Executors that end while they have calls: what their callers get, and how often a request may cost one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import RayActorError

import kaas_client.ray as kaas_ray
from kaas_client import Kernel, Request, out, u64
from kaas_client.errors import DeadlineExceededError, KernelFaultError, QuarantinedError
from kaas_client.ray.cluster import ExecutorRef, actor_class
from kaas_client.ray.session import Session
from tests.ray.fragile import FragileExecutor
from tests.ray.support import FAULTS, ONE, ZERO, dot_request, pid_of, spin_request, vectors

pytestmark = pytest.mark.timeout(300)
WAIT_S = 240
"""Ray takes some seconds to start an actor anew, and on a busy machine many."""


@pytest.fixture(scope="module")
def starts_file(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Have this process's calls run on a fragile executor, which writes a line to this file whenever it starts."""
    path = tmp_path_factory.mktemp("fragile") / "starts"
    actor = actor_class(FragileExecutor).options(num_cpus=0).remote(path)
    before = Session.current()
    Session.begin([ExecutorRef("fragile", actor)])
    ray.get(actor.device.remote())
    yield path
    Session._current = before
    ray.kill(actor)


@pytest.fixture
def starts(starts_file: Path) -> Callable[[], int]:
    """Return what says how often the executor was started since the test began."""

    def count() -> int:
        return len(starts_file.read_text().splitlines())

    before = count()
    return lambda: count() - before


def of_faults(kernel: str, *args: Any) -> kaas_ray.RemoteFunction:
    return kaas_ray.remote(Request([Kernel(FAULTS, kernel, args=[*args, out("c", dtype="u4", shape=8)])]))


def test_a_fault_that_costs_the_device_is_answered_and_the_actor_starts_anew(starts: Callable[[], int]) -> None:
    a, b = vectors(60)
    dot = kaas_ray.remote(dot_request())
    faulty = of_faults("writeAtKern", u64(1 << 40))
    expected = np.sum(a * b, dtype=np.uint32)
    before = [dot.remote(a=a, b=b) for _ in range(5)]
    fault = faulty.remote()
    behind = [dot.remote(a=a, b=b) for _ in range(20)]
    with pytest.raises(KernelFaultError) as raised:
        ray.get(fault, timeout=WAIT_S)
    assert raised.value.metadata["kernel"] == "writeAtKern"
    assert ray.get(before + behind, timeout=WAIT_S) == [expected] * 25
    assert ray.get(dot.remote(a=a, b=b), timeout=WAIT_S) == expected
    while starts() < 1:  # all of them may have been answered before the actor ended
        time.sleep(0.05)
    assert starts() == 1


def test_a_request_that_kills_its_process_runs_so_often_and_fails_with_its_history(starts: Callable[[], int]) -> None:
    a, b = vectors(61)
    dot = kaas_ray.remote(dot_request())
    expected = np.sum(a * b, dtype=np.uint32)
    before = [dot.remote(a=a, b=b) for _ in range(10)]
    poison = of_faults("misalignedKern").options(max_retries=1).remote()
    behind = [dot.remote(a=a, b=b) for _ in range(30)]
    with pytest.raises(QuarantinedError, match=r"2 executors ended: .*Z: the process ended without a word") as raised:
        ray.get(poison, timeout=WAIT_S)
    assert raised.value.metadata["workers"] == "2"
    assert ray.get(before + behind, timeout=WAIT_S) == [expected] * 40
    assert starts() == 2


def test_a_call_that_may_not_be_retried_fails_as_ray_says(starts: Callable[[], int]) -> None:
    with pytest.raises(RayActorError):
        ray.get(of_faults("misalignedKern").options(max_retries=0).remote(), timeout=WAIT_S)
    assert int(ray.get(kaas_ray.remote(spin_request()).remote(flag=ONE), timeout=WAIT_S)) == 1


def test_a_killed_executor_loses_nothing(starts: Callable[[], int]) -> None:
    dot = kaas_ray.remote(dot_request())
    executor = Session.current().executors[0].actor
    pid = pid_of(executor)
    inputs = [vectors(seed) for seed in range(200)]
    results = [dot.remote(a=a, b=b) for a, b in inputs]
    ray.wait(results, num_returns=50, timeout=WAIT_S)
    os.kill(pid, signal.SIGKILL)
    values = ray.get(results, timeout=WAIT_S)
    assert all(int(value) == np.sum(a * b, dtype=np.uint32) for value, (a, b) in zip(values, inputs, strict=True))
    assert starts() == 1


def test_what_ran_when_the_executor_was_killed_runs_again(starts: Callable[[], int]) -> None:
    spin = kaas_ray.remote(spin_request())
    executor = Session.current().executors[0].actor
    pid = pid_of(executor)
    running = spin.options(timeout=6).remote(flag=ZERO)
    assert not ray.wait([running], timeout=0.5)[0]
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(DeadlineExceededError):
        ray.get(running, timeout=WAIT_S)
    assert int(ray.get(spin.remote(flag=ONE), timeout=WAIT_S)) == 1
    assert starts() == 1
