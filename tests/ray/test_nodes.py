"""Clusters of several nodes: where executors, libraries and calls go, and what the loss of one costs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import kaas_client.ray as kaas_ray
from kaas_client import Kernel, Request, inp, out, u64
from kaas_client.ray import reports
from kaas_client.ray.cluster import EMULATOR_RESOURCE, kind_of_device, stop
from kaas_client.ray.session import Session
from tests.ray.conftest import wait_until
from tests.ray.support import DOT, ONE, Words, dot_request, pid_of, product_request, spin_request, vectors

pytestmark = pytest.mark.timeout(300)

WAIT_S = 240
STORE_BYTES = 96 << 20
LARGE = 1 << 20
"""Words of a vector: 4 MiB."""
OURS = ("emulator:0", "emulator:1")
"""On the head node."""
THEIRS = ("emulator:2", "emulator:3")
"""On nodes of their own."""


def add_node(cluster: Cluster, devices: int) -> Any:
    return cluster.add_node(num_cpus=1, resources={EMULATOR_RESOURCE: devices}, object_store_memory=STORE_BYTES)


@pytest.fixture(scope="module")
def nodes(cluster: Cluster) -> Iterator[dict[str, Any]]:
    """Two nodes beside that of the suite, by the executors that they have."""
    one = add_node(cluster, 1)
    kaas_ray.init("emulator", executors=3)
    wait_until(lambda: "emulator:2" in reports.names())
    # The other has room for that of the first, if that is lost.
    other = add_node(cluster, 2)
    kaas_ray.init("emulator", executors=4)
    wait_until(lambda: "emulator:3" in reports.names())
    yield {"emulator:2": one, "emulator:3": other}
    executors = Session.current().executors
    stop(executors[2:])
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node)
    Session.begin(executors[:2])


@pytest.fixture
def placed(nodes: dict[str, Any]) -> Callable[[str], Any]:
    """Return what makes a function of Python run on the node of an executor."""

    def on(executor: str) -> Any:
        node = reports.read([executor])[executor].node
        return ray.remote(num_cpus=1, max_retries=-1, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True))

    return on


def uploaded(executor: str) -> int:
    """Return how many bytes have come to an executor's device."""
    usage: Any = ray.get(ray.get_actor(executor, kaas_ray.NAMESPACE).usage.remote(), timeout=WAIT_S)
    return int(usage.uploaded_bytes)


def random_words(seed: int, n: int) -> Words:
    return vectors(seed, n)[0]


@pytest.mark.usefixtures("nodes")
def test_each_node_has_the_executors_of_its_devices() -> None:
    where = {name: report.node for name, report in reports.read(kaas_ray.executors()).items()}
    assert sorted(where) == [*OURS, *THEIRS]
    assert where["emulator:0"] == where["emulator:1"] == ray.get_runtime_context().get_node_id()
    assert len(set(where.values())) == 3


@pytest.mark.usefixtures("nodes")
def test_a_library_comes_to_each_node_once() -> None:
    library = kaas_ray.upload(Path(DOT).read_bytes() + b"\n// as no other test has it\n")
    size = 4 * 1024
    args = [u64(1024), inp("a", size), inp("b", size), out("p", dtype="u4", shape=1024)]
    product = kaas_ray.remote(Request([Kernel(library, "prodKern", grid=1, block=1024, args=args)]))

    def fetched(executor: str) -> int:
        return ray.get(ray.get_actor(executor, kaas_ray.NAMESPACE).__ray_call__.remote(lambda self: self._libraries.fetched))

    before = {name: fetched(name) for name in kaas_ray.executors()}
    a, b = vectors(80)
    for _ in range(2):
        for executor in kaas_ray.executors():
            assert np.array_equal(ray.get(product.options(executor=executor).remote(a=a, b=b), timeout=WAIT_S), a * b)
    times = {name: fetched(name) - before[name] for name in before}
    assert sorted(times[name] for name in OURS) == [0, 1]
    assert [times[name] for name in THEIRS] == [1, 1]


TRIES, IN_A_ROW = 12, 4
"""What is known of executors may be out of date for a moment. By chance so many in a row go to one of four in 1 of 30 runs."""


@pytest.mark.parametrize(("large_at", "small_at"), [THEIRS, THEIRS[::-1]])
def test_calls_go_to_the_node_that_has_the_larger_inputs(large_at: str, small_at: str, placed: Callable[[str], Any]) -> None:
    n = 1 << 16
    args = [u64(n), inp("a", 4 * LARGE), inp("b", 4 * n), out("p", dtype="u4", shape=n)]
    product = kaas_ray.remote(Request([Kernel(DOT, "prodKern", grid=n // 1024, block=1024, args=args)]))
    in_a_row = 0
    for seed in range(TRIES):
        before = uploaded(large_at)
        a = placed(large_at)(random_words).remote(seed, LARGE)
        b = placed(small_at)(random_words).remote(seed + TRIES, n)
        ray.wait([a, b], num_returns=2, timeout=WAIT_S, fetch_local=False)
        result = product.remote(a=a, b=b)
        assert np.array_equal(ray.get(result, timeout=WAIT_S), random_words(seed, LARGE)[:n] * random_words(seed + TRIES, n))
        in_a_row = in_a_row + 1 if uploaded(large_at) - before == 4 * LARGE + 4 * n else 0
        if in_a_row == IN_A_ROW:
            return
    raise AssertionError(f"of {TRIES} calls not even {IN_A_ROW} in a row went there")


def products(count: int = 200) -> tuple[list[Any], list[int]]:
    """Send requests for dot products; return results and what these must be."""
    dot = kaas_ray.remote(dot_request())
    inputs = [vectors(seed) for seed in range(count)]
    return [dot.remote(a=a, b=b) for a, b in inputs], [int(np.sum(a * b, dtype=np.uint32)) for a, b in inputs]


def test_a_node_that_is_killed_costs_no_answer(cluster: Cluster, nodes: dict[str, Any], placed: Callable[[str], Any]) -> None:
    """Neither its executor, nor inputs that were there, nor results that have not been fetched."""
    n = 1 << 15
    node = reports.read(["emulator:2"])["emulator:2"].node
    make = placed("emulator:2")(random_words)
    product = kaas_ray.remote(product_request(n))
    results, expected = [], []
    for seed in range(200):
        a, b = random_words(seed, n), random_words(seed + 1000, 1024).repeat(n // 1024)
        if seed % 4 == 0:
            results.append(product.options(executor="emulator:2").remote(a=make.remote(seed, n), b=b))
        else:
            results.append(product.remote(a=a, b=b))
        expected.append(a * b)
    ray.wait(results, num_returns=150, timeout=WAIT_S, fetch_local=False)
    cluster.remove_node(nodes["emulator:2"], allow_graceful=False)
    values = ray.get(results, timeout=WAIT_S)
    assert all(np.array_equal(*each) for each in zip(values, expected, strict=True))
    last = kaas_ray.remote(spin_request()).options(executor="emulator:2").remote(flag=ONE)
    assert int(ray.get(last, timeout=WAIT_S)) == 1
    assert not next(each for each in ray.nodes() if each["NodeID"] == node)["Alive"]
    assert reports.read(["emulator:2"])["emulator:2"].node != node


def test_an_executor_that_is_killed_costs_no_answer() -> None:
    results, expected = products()
    ray.wait(results, num_returns=20, timeout=WAIT_S)
    os.kill(pid_of(ray.get_actor("emulator:2", kaas_ray.NAMESPACE)), signal.SIGKILL)
    assert ray.get(results, timeout=WAIT_S) == expected


def test_executors_that_have_no_node_are_a_demand_and_are_used_once_they_have(cluster: Cluster, nodes: dict[str, Any]) -> None:
    def demanded() -> int:
        """Return for how many emulated devices Ray's autoscaler is asked."""
        found = get_cluster_status(cluster.address).resource_demands.ray_task_actor_demand
        return sum(each.count for demand in found for each in demand.bundles_by_count if each.bundle == {EMULATOR_RESOURCE: 1.0})

    kaas_ray.init("emulator", executors=7)
    devices = int(ray.cluster_resources()[EMULATOR_RESOURCE])
    wait_until(lambda: demanded() == 7 - devices, WAIT_S)
    wait_until(lambda: len(reports.names()) == devices, WAIT_S)
    results, expected = products(20)
    assert ray.get(results, timeout=WAIT_S) == expected
    before = set(reports.names())
    add_node(cluster, 1)
    wait_until(lambda: len(reports.names()) > len(before), WAIT_S)
    (new,) = set(reports.names()) - before

    def is_used() -> bool:
        results, expected = products(20)
        assert ray.get(results, timeout=WAIT_S) == expected
        uses: Any = ray.get_actor(new, kaas_ray.NAMESPACE).__ray_call__.remote(lambda self: self._engine.group_uses())
        return bool(ray.get(uses)["default"].started)

    wait_until(is_used, WAIT_S)
    wait_until(lambda: demanded() == 6 - devices, WAIT_S)


@pytest.mark.parametrize(("possible", "kind"), [({"CPU": 8, "GPU": 4}, "gpu"), ({"CPU": 8}, "emulator"), (None, "emulator")])
@pytest.mark.usefixtures("cluster")
def test_gpus_that_the_autoscaler_may_add_count_as_the_clusters(
    monkeypatch: pytest.MonkeyPatch, possible: dict[str, int] | None, kind: str
) -> None:
    monkeypatch.setattr(ray._private.state.state, "get_max_resources_from_cluster_config", lambda: possible)
    assert kind_of_device("auto") == kind
    assert kind_of_device("emulator") == "emulator"
