"""How groups share the executors of a real cluster, and what the pool actor does for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import TaskCancelledError

import kaas_client.ray as kaas_ray
from kaas_client.errors import DeadlineExceededError, GroupNotFoundError, InvalidArgumentError, KeyNotFoundError
from kaas_client.ray import policies, pool, reports
from kaas_client.ray.pool import PoolState
from kaas_client.ray.tasks import TaskCall
from tests.ray.support import ONE, cancel, dot_request, pid_of, spin_request, vectors

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.timeout(300)]

GROUPS = ("g0", "g1", "g2", "g3")
WAIT_S = 240


@pytest.fixture(scope="module", autouse=True)
def restored(cluster: None) -> Iterator[None]:
    """Leave the cluster as it was."""
    for group in GROUPS:
        kaas_ray.set_group(group)
    yield
    kaas_ray.policy("affinity")
    deadline = monotonic() + WAIT_S
    while not all(each.policy == policies.read().digest and not each.retiring for each in reports.read(reports.names()).values()):
        assert monotonic() < deadline
        sleep(0.05)


def requests(count: int = 200) -> tuple[list[Any], list[int]]:
    """Send requests of all groups in turn; return their results, and what these must be."""
    dot = kaas_ray.remote(dot_request())
    inputs = [vectors(seed) for seed in range(count)]
    results = [dot.options(group=GROUPS[seed % 4]).remote(a=a, b=b) for seed, (a, b) in enumerate(inputs)]
    return results, [int(np.sum(a * b, dtype=np.uint32)) for a, b in inputs]


def served(name: str) -> dict[str, int]:
    """Return how many requests of each group an executor's process has run."""
    uses: Any = ray.get_actor(name, kaas_ray.NAMESPACE).__ray_call__.remote(lambda self: self._engine.group_uses())
    return {group: use.started for group, use in ray.get(uses).items() if use.started}


def state() -> PoolState:
    found: PoolState = ray.get(pool.find().state.remote(), timeout=WAIT_S)
    return found


@pytest.mark.parametrize("policy", ["balance", "affinity"])
def test_all_executors_serve_all_groups(policy: str) -> None:
    kaas_ray.policy(policy)
    results, expected = requests()
    assert ray.get(results, timeout=WAIT_S) == expected
    assert state().sharing.policy.value == policy


def test_under_static_executors_serve_their_groups_alone() -> None:
    before = served("emulator:0"), served("emulator:1")
    kaas_ray.policy("static", owners={"emulator:0": "g0"})
    results, expected = requests()
    assert ray.get(results, timeout=WAIT_S) == expected
    for earlier, now, groups in zip(
        before, (served("emulator:0"), served("emulator:1")), (["g0"], ["g1", "g2", "g3"]), strict=True
    ):
        new = {group: now[group] - earlier.get(group, 0) for group in now}
        assert {group: count for group, count in new.items() if count} == dict.fromkeys(groups, 50)
    assert [executor.owner for executor in state().executors] == ["g0", ""]
    spin = kaas_ray.remote(spin_request()).options(group="g1")
    assert ray.get(spin.options(executor="emulator:1").remote(flag=ONE), timeout=WAIT_S) == 1
    with pytest.raises(InvalidArgumentError, match="group g1 may use"):
        spin.options(executor="emulator:0").remote(flag=ONE)


def test_a_call_that_came_to_anothers_executor_is_passed_on() -> None:
    """As of one who does not know of the policy yet."""
    kaas_ray.policy("static", owners={"emulator:0": "g0"})
    a, b = vectors(200)
    dot = kaas_ray.remote(dot_request()).options(group="g1")
    before = served("emulator:1").get("g1", 0)
    here = ray.get_actor("emulator:0", kaas_ray.NAMESPACE)
    call = TaskCall(dot._task.serialized.digest, [("a", ""), ("b", "")], group="g1")
    assert ray.get(here.run.remote(call.to_bytes(), a, b), timeout=WAIT_S) == np.sum(a * b, dtype=np.uint32)
    with pytest.raises(GroupNotFoundError):
        ray.get(here.run.remote(call._replace(group="none").to_bytes(), a, b), timeout=WAIT_S)
    far = call._replace(given=[("a", "")])
    with pytest.raises(KeyNotFoundError):
        ray.get(here.run.remote(far.to_bytes(), a), timeout=WAIT_S)
    assert served("emulator:1")["g1"] == before + 2


def test_under_exclusive_no_process_serves_two_groups_and_all_get_their_turn() -> None:
    kaas_ray.policy("exclusive", restart_s=0.5)
    results, expected = requests()
    assert ray.get(results, timeout=WAIT_S) == expected
    assert all(len(served(name)) <= 1 for name in kaas_ray.executors())
    with pytest.raises(InvalidArgumentError, match="under exclusive"):
        kaas_ray.remote(spin_request()).options(executor="emulator:0").remote(flag=ONE)


def test_a_pool_that_is_killed_comes_back_and_goes_on() -> None:
    kaas_ray.policy("exclusive", restart_s=0.5)
    results, expected = requests()
    ray.wait(results, num_returns=20, timeout=WAIT_S)
    pid = pid_of(pool.find())
    os.kill(pid, signal.SIGKILL)
    assert ray.get(results, timeout=WAIT_S) == expected
    assert pid_of(pool.find()) != pid
    found = state()
    assert [executor.name for executor in found.executors] == kaas_ray.executors()
    assert {group.name for group in found.groups} >= set(GROUPS)
    assert found.sharing.is_exclusive
    assert all(len(served(name)) <= 1 for name in kaas_ray.executors())


def test_who_waits_for_an_executor_is_cancelled_or_runs_out_of_time() -> None:
    kaas_ray.policy("exclusive", restart_s=1000)
    spin = kaas_ray.remote(spin_request())
    for group in GROUPS[:2]:  # which have the executors from now on
        assert ray.get(spin.options(group=group).remote(flag=ONE), timeout=WAIT_S) == 1
    waiting = spin.options(group="g2").remote(flag=ONE)
    assert not ray.wait([waiting], timeout=0.5)[0]
    cancel(waiting)
    with pytest.raises(TaskCancelledError):
        ray.get(waiting, timeout=WAIT_S)
    with pytest.raises(DeadlineExceededError, match="waited for an executor"):
        kaas_ray.get(spin.options(group="g2", timeout=0.3).remote(flag=ONE), timeout=WAIT_S)


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("fair", {}, "there are balance, affinity, static, exclusive"),
        ("static", {"owners": {"emulator:9": "g0"}}, "no executor 'emulator:9'"),
        ("static", {"owners": {"emulator:0": "a group"}}, "a name has"),
        ("balance", {"owners": {"emulator:0": "g0"}}, "only under static"),
        ("exclusive", {"restart_s": 0}, "restart_s must be"),
    ],
)
def test_policies_that_cannot_be_are_refused(name: str, more: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        kaas_ray.policy(name, **more)
