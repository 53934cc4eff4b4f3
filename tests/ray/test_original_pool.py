"""Programs of the original that share workers in a pool."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import ray

import kaas_client.ray.original as kaas
from kaas_client.ray.original import profiling
from tests.ray.test_original import dot_request, vectors

pytestmark = pytest.mark.usefixtures("cluster")

HEAD = "node:__internal_head__"
"""A resource that Ray gives the first node of a cluster, one of it."""


@kaas.pool.remote_with_confirmation()
def doubled(value: int) -> int:
    return 2 * value


@kaas.pool.remote_with_confirmation()
def with_confirmation(value: Any) -> Any:
    return value


@kaas.pool.remote_with_confirmation(num_returns=2)
def with_square(value: int) -> tuple[int, int]:
    return value, value**2


class Methods(kaas.pool.PoolWorker):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.getProfs()["n_initialized"].increment(1)

    def one(self, value: Any) -> Any:
        self.getProfs()["n_one"].increment(1)
        return value

    def two(self, value: Any, scale: int = 1) -> tuple[Any, Any]:
        return scale * value, os.getpid()

    def runKaas(self, req: Any, clientID: str | None = None) -> Any:
        profs = self.getProfs()
        kaas.ray.init()
        with profiling.timer("t_model_run", profs):
            return kaas.ray.invoke(req, profs=profs.mod("kaas"), clientID=clientID)

    def fail(self) -> None:
        raise ValueError("it cannot be done")

    def die(self) -> None:
        os._exit(1)


@ray.remote(num_cpus=0, num_gpus=1)
class Worker(Methods):
    """Asks for a GPU, as the original's do. The cluster has none."""


@ray.remote(num_cpus=0, resources={HEAD: 0.75})
class Holder(Methods):
    """There is room for one."""


@ray.remote(num_cpus=0)
class NeverStarts(kaas.pool.PoolWorker):
    def __init__(self, **kwargs: Any) -> None:
        raise ValueError("no worker today")


MakePool = Callable[..., kaas.pool.Pool]


@pytest.fixture(scope="module")
def make_pool() -> Iterator[MakePool]:
    """Makes pools that end after the last of these tests."""
    pools: list[kaas.pool.Pool] = []

    def make(*args: Any, **kwargs: Any) -> kaas.pool.Pool:
        pools.append(kaas.pool.Pool(*args, **kwargs))
        return pools[-1]

    yield make
    for pool in pools:
        ray.kill(pool.pool)


@pytest.fixture(scope="module")
def balanced(cluster: None, make_pool: MakePool) -> kaas.pool.Pool:
    """A pool of one worker, and one group."""
    pool = make_pool(1)
    pool.registerGroup("group", Worker)
    return pool


def result_of(pool: kaas.pool.Pool, group: str | None, method: str, *args: Any) -> Any:
    return ray.get(ray.get(pool.run(group, method, args=args)))


def test_a_request_through_a_pool_is_three_references_deep(make_pool: MakePool) -> None:
    pool = make_pool(2, policy=kaas.pool.policies.BALANCE)
    groups = [f"client {index}" for index in range(4)]
    for group in groups:
        pool.registerGroup(group, kaas.ray.invokerActor)
    a, b, expected = vectors(1)
    request = ray.put(dot_request(kaas.ray.putObj(a), kaas.ray.putObj(b), ephemeral=True))
    calls = [pool.run(group, "invoke", args=[(request, {})], kwargs={"clientID": group}) for group in 50 * groups]
    for call in calls:
        array = ray.get(ray.get(ray.get(call)))
        array.dtype = np.uint32
        assert array[0] == expected
    report = pool.getProfile().report(metrics=["mean"])
    assert set(report["pool"]["groups"]) == set(report["workers"]["groups"]) == set(groups)
    for group in groups:
        assert report["pool"]["groups"][group]["t_policy_run"]["mean"] > 0
        assert report["workers"]["groups"][group]["t_e2e"]["mean"] > report["workers"]["groups"][group]["t_invoke"]["mean"] > 0
    assert pool.getProfile().report() == {"pool": {}, "workers": {}}


def test_methods_return_one_value_or_several(balanced: kaas.pool.Pool) -> None:
    pairs = [balanced.run("group", "two", num_returns=2, args=[value], kwargs={"scale": 3}) for value in range(8)]
    values, processes = zip(*(ray.get(ray.get(pair)) for pair in pairs), strict=True)
    assert list(values) == [0, 3, 6, 9, 12, 15, 18, 21]
    assert len(set(processes)) == 1
    failed = ray.get(balanced.run("group", "fail"))
    with pytest.raises(ValueError, match="it cannot be done"):
        ray.get(failed)
    assert result_of(balanced, "group", "one", "after") == "after"


def test_a_worker_of_ones_own_runs_requests(balanced: kaas.pool.Pool) -> None:
    """As the original's benchmarks do: with a request that was put with its keys, once what makes its input is done."""
    a, b, expected = vectors(3)
    template = dot_request(b"", kaas.ray.putObj(b), ephemeral=True)
    template.kernels[0].ioTypes[2] = "o"
    reference = ray.put(template)
    confirmation, made = with_confirmation.remote(a)
    balanced.getProfile()
    request = ray.put((reference, {"inpA": ray.cloudpickle.dumps(made)}))
    call = balanced.run("group", "runKaas", 2, refDeps=[confirmation], args=[request], kwargs={"clientID": "group"})
    product, total = ray.get(ray.get(ray.get(call)))
    assert np.array_equal(product.view(np.uint32), a * b)
    assert total.view(np.uint32)[0] == expected
    report = balanced.getProfile().report(metrics=["total"])["workers"]["groups"]["group"]
    assert report["kaas"]["n_invoke"]["total"] == 2
    assert report["t_model_run"]["total"] > report["kaas"]["t_e2e"]["total"] > 0


def test_work_waits_for_what_it_depends_on(balanced: kaas.pool.Pool) -> None:
    confirmation, value = doubled.remote(21)
    assert ray.get(ray.get(balanced.run("group", "one", args=[value], refDeps=[confirmation]))) == 42
    confirmation, same, square = with_square.remote(5)
    assert ray.get([same, square]) == [5, 25]
    assert ray.get(ray.get(balanced.run("group", "one", args=[square], refDeps=[confirmation]))) == 25


def test_a_call_need_not_name_a_group_where_all_share_workers(balanced: kaas.pool.Pool) -> None:
    balanced.getProfile()
    assert result_of(balanced, None, "one", 3) == 3
    report = balanced.getProfile().report(metrics=["total"])
    assert report["workers"]["n_one"] == {"total": 1}
    assert set(report["pool"]) == {"t_policy_run"}


def test_a_worker_that_dies_is_replaced(balanced: kaas.pool.Pool) -> None:
    balanced.getProfile()
    lost = ray.get(balanced.run("group", "die"))
    after = balanced.run("group", "one", args=[1])
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(lost)
    assert ray.get(ray.get(after)) == 1
    assert balanced.getProfile().report()["pool"]["n_cold_start"]["total"] == 1


def test_what_cannot_be_is_said(balanced: kaas.pool.Pool, make_pool: MakePool) -> None:
    with pytest.raises(kaas.pool.PoolError, match="no policy 'fifo'"):
        kaas.pool.Pool(1, policy="fifo")
    with pytest.raises(kaas.pool.PoolError, match="takes no arguments: strict"):
        kaas.pool.Pool(1, policyArgs={"strict": True})
    with pytest.raises(TypeError, match="weight"):
        balanced.registerGroup("other", Worker, weight=2)
    with pytest.raises(kaas.pool.PoolError, match="workers of the same class"):
        balanced.registerGroup("other", NeverStarts)
    with pytest.raises(kaas.pool.PoolError, match="at least 1, not 0"):
        balanced.run("group", "one", num_returns=0)
    with pytest.raises(TypeError, match="groupID"):
        ray.get(balanced.run("group", "one", kwargs={"groupID": "twice"}))
    empty = make_pool(0)
    empty.registerGroup("group", Worker)
    with pytest.raises(kaas.pool.PoolError, match="no group 'nobody'"):
        ray.get(make_pool(1).run("nobody", "one"))
    with pytest.raises(kaas.pool.PoolError, match="the pool has no workers"):
        ray.get(empty.run("group", "one"))


def test_work_fails_where_no_worker_can_be_started(make_pool: MakePool) -> None:
    pool = make_pool(1)
    pool.registerGroup("group", NeverStarts)
    for _ in range(2):
        with pytest.raises(kaas.pool.PoolError, match="no worker today"):
            ray.get(pool.run("group", "one", args=[1]))


def test_each_group_has_its_own_workers_under_static(make_pool: MakePool) -> None:
    pool = make_pool(2, policy=kaas.pool.policies.STATIC, profLevel=1)
    pool.registerGroup("a", Worker, workerResources=[(0.125, 0.0625)], resourceName=HEAD)
    pool.registerGroup("b", Worker, nWorker=1, workerResources=0.125, resourceName=HEAD)
    processes: dict[str, set[int]] = {"a": set(), "b": set()}
    for group, call in [(group, pool.run(group, "two", num_returns=2, args=[0])) for group in 6 * ["a", "b"]]:
        processes[group].add(ray.get(ray.get(call[1])))
    assert len(processes["a"]) == len(processes["b"]) == 1
    assert processes["a"] != processes["b"]
    report = pool.getProfile().report(includeEvents=True)
    assert {group: each["n_cold_start"]["events"] for group, each in report["pool"]["groups"].items()} == {"a": [1], "b": [1]}
    assert report["workers"]["groups"]["b"]["n_initialized"]["total"] == 1
    with pytest.raises(kaas.pool.PoolError, match="'a' is registered already"):
        pool.registerGroup("a", Worker)
    with pytest.raises(kaas.pool.PoolError, match="no group 'nobody'"):
        ray.get(pool.run("nobody", "one"))


def test_groups_prefer_their_workers_under_affinity(make_pool: MakePool) -> None:
    pool = make_pool(2, policy="affinity")
    for index, group in enumerate("ab"):
        pool.registerGroup(group, Worker, weight=1 + index, affinities=[index])

    def processes_of(groups: str) -> list[int]:
        calls = [pool.run(group, "two", num_returns=2, args=[0])[1] for group in groups]
        return ray.get(ray.get(calls))

    with pytest.raises(kaas.pool.PoolError, match="above 0, not -1"):
        pool.registerGroup("c", Worker, weight=-1)
    ready: set[int] = set()
    while len(ready) < 2:
        ready.update(processes_of("ab"))
    first, second = processes_of("ab")
    assert first != second
    assert processes_of("a") + processes_of("a") + processes_of("b") + processes_of("b") == [first, first, second, second]


def test_a_worker_serves_one_group_until_another_needs_it_under_exclusive(make_pool: MakePool) -> None:
    pool = make_pool(1, policy=kaas.pool.policies.EXCLUSIVE)
    pool.registerGroup("a", Holder)
    pool.registerGroup("ours", kaas.ray.invokerActor)
    a, b, expected = vectors(2)
    request = ray.put(dot_request(kaas.ray.putObj(a), kaas.ray.putObj(b)))
    processes = [ray.get(ray.get(pool.run("a", "two", num_returns=2, args=[0])[1])) for _ in range(2)]
    output = result_of(pool, "ours", "invoke", (request, {}))
    processes.append(ray.get(ray.get(pool.run("a", "two", num_returns=2, args=[0])[1])))
    assert processes[0] == processes[1] != processes[2]
    # The worker that this belongs to gave its place to another, and did not end.
    assert ray.get(output).view(np.uint32)[0] == expected
    report = pool.getProfile().report(metrics=["total"])
    totals = {
        group: {name: each["total"] for name, each in metrics.items()} for group, metrics in report["pool"]["groups"].items()
    }
    assert [totals[group]["n_cold_start"] for group in ("a", "ours")] == [2, 1]
    assert [totals[group].get("n_killed", 0) for group in ("a", "ours")] == [1, 0]
    assert report["workers"]["groups"]["a"]["n_initialized"]["total"] == 2


def test_a_pool_that_was_shut_down_keeps_its_last_metrics() -> None:
    pool = kaas.pool.Pool(1)
    pool.registerGroup("group", Worker)
    calls = [pool.run("group", "one", args=[value]) for value in range(3)]
    # Calls of an actor that is asynchronous may overtake each other.
    assert len(ray.wait(calls, num_returns=3, timeout=60)[0]) == 3
    pool.shutdown()
    assert pool.getProfile().report()["workers"]["groups"]["group"]["n_one"]["total"] == 3
    with pytest.raises(kaas.pool.PoolError, match="was shut down"):
        pool.run("group", "one", args=[1])
