"""What is brought to a device of a real cluster, and how often."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
import ray

import kaas_client.ray as kaas_ray
from kaas_client import Kernel, Request, inp, out, u64
from kaas_client.ray import reports
from kaas_client.ray.metrics import Usage
from tests.ray.support import DOT, Words, product_request, scaled_request, vectors

pytestmark = pytest.mark.usefixtures("cluster")

LARGE = 1 << 16
"""Words of a vector: 256 KiB, too large to travel by value."""
FIRST = {"executor": "emulator:0"}
WITHIN_S = 60


def forget(executor: Any) -> None:
    """Have an executor's device free all that no call uses."""
    done = threading.Event()
    memory = executor._engine.executor.memory

    def evict() -> None:
        memory._free(memory._residency.evict(1 << 60))
        done.set()

    executor._engine.call_soon(evict)
    done.wait()


@pytest.mark.parametrize("n", [1024, LARGE])
def test_a_constant_is_uploaded_once_in_100_requests(n: int, usage: Callable[[], Usage]) -> None:
    scaled = kaas_ray.remote(scaled_request(n)).options(**FIRST)
    weights = vectors(20)[0].repeat(n // 1024)
    reference = ray.put(weights)
    inputs = [vectors(seed, 1024)[0].repeat(n // 1024) for seed in range(100)]
    before = usage()
    results = ray.get([scaled.remote(x=x, weights=reference) for x in inputs])
    assert all(np.array_equal(result, x * weights) for result, x in zip(results, inputs, strict=True))
    large_inputs = 0 if n == 1024 else 100
    assert usage().uploads - before.uploads == 1 + large_inputs


def test_a_constant_that_is_not_ready_is_waited_for(usage: Callable[[], Usage]) -> None:
    scaled = kaas_ray.remote(scaled_request(LARGE)).options(**FIRST)
    x, weights = vectors(21, LARGE)

    @ray.remote
    def late(value: Words) -> Words:
        return value

    reference = late.remote(weights)
    before = usage()
    assert np.array_equal(ray.get(scaled.remote(x=x, weights=reference)), x * weights)
    assert np.array_equal(ray.get(scaled.remote(x=x, weights=reference)), x * weights)
    assert usage().uploaded_bytes - before.uploaded_bytes == weights.nbytes + 2 * x.nbytes


def test_a_constant_that_was_evicted_is_brought_again(usage: Callable[[], Usage]) -> None:
    scaled = kaas_ray.remote(scaled_request(LARGE)).options(**FIRST)
    x, weights = vectors(22, LARGE)
    reference = ray.put(weights)
    assert np.array_equal(ray.get(scaled.remote(x=x, weights=reference)), x * weights)
    assert usage().held_bytes > 0
    ray.get(ray.get_actor("emulator:0", kaas_ray.NAMESPACE).__ray_call__.remote(forget))
    assert usage().held_bytes == 0
    assert np.array_equal(ray.get(scaled.remote(x=x, weights=reference)), x * weights)


def test_an_executor_reports_what_it_holds_and_what_it_has_dropped(usage: Callable[[], Usage]) -> None:
    scaled = kaas_ray.remote(scaled_request(LARGE)).options(**FIRST)
    x, weights = vectors(27, LARGE)
    reference = ray.put(weights)

    def reported(where: str) -> None:
        deadline = monotonic() + WITHIN_S
        while reference.binary() not in getattr(reports.read(["emulator:0", "none"])["emulator:0"], where):
            assert monotonic() < deadline
            sleep(0.05)

    ray.get(scaled.remote(x=x, weights=reference))
    reported("held")
    assert reference.binary() not in reports.read(["emulator:0"])["emulator:0"].dropped
    usage()
    ray.get(ray.get_actor("emulator:0", kaas_ray.NAMESPACE).__ray_call__.remote(forget))
    reported("dropped")
    assert reports.read(["emulator:0"])["emulator:0"].held == []
    ray.get(scaled.remote(x=x, weights=reference))
    reported("held")


def test_a_chain_on_one_executor_uploads_nothing_of_what_it_made(usage: Callable[[], Usage]) -> None:
    product = kaas_ray.remote(product_request(LARGE)).options(**FIRST)
    a, b = vectors(23, LARGE)
    factor = ray.put(b)
    reference = ray.put(a)
    before = usage()
    for _ in range(5):
        reference = product.remote(a=reference, b=factor)
    assert np.array_equal(ray.get(reference), a * b * b * b * b * b)
    assert usage().uploaded_bytes - before.uploaded_bytes == a.nbytes + b.nbytes


def test_a_chain_over_two_executors_is_right_too() -> None:
    product = kaas_ray.remote(product_request(LARGE))
    a, b = vectors(24, LARGE)
    there = product.options(executor="emulator:1").remote(a=a, b=b)
    back = product.options(**FIRST).remote(a=there, b=b)
    assert np.array_equal(ray.get(back), a * b * b)


def test_nothing_is_in_use_once_the_results_are_there(usage: Callable[[], Usage]) -> None:
    product = kaas_ray.remote(product_request(LARGE)).options(**FIRST)
    a, b = vectors(25, LARGE)
    results = [product.remote(a=a, b=b) for _ in range(5)]
    assert all(np.array_equal(each, a * b) for each in ray.get(results))
    assert usage().in_use_bytes == 0


def test_large_results_lie_in_the_store_and_small_ones_come_by_value() -> None:
    product = kaas_ray.remote(product_request(LARGE))
    a, b = vectors(26, LARGE)
    result = ray.get(product.remote(a=a, b=b))
    assert not result.flags.writeable
    owner = result
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    assert not isinstance(owner, np.ndarray)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("n", [64, 256])
def test_an_object_that_is_read_in_rows_and_in_columns_is_right_in_both(n: int, constant: bool) -> None:
    """Though it is on the device in the other order."""
    words, size = n * n, 4 * n * n
    a = np.arange(words, dtype=np.uint32).reshape(n, n)
    ones, reference = ray.put(np.ones(words, np.uint32)), ray.put(a)

    def product(fortran_order: bool) -> Any:
        read = inp("a", dtype="u4", shape=(n, n), fortran_order=fortran_order, constant=constant)
        written = out("p", dtype="u4", shape=(n, n))
        kernel = Kernel(DOT, "prodKern", grid=words // 1024, block=1024, args=[u64(words), read, inp("b", size), written])
        return kaas_ray.remote(Request([kernel])).options(**FIRST)

    rows, columns = product(False), product(True)
    for _ in range(3):
        assert np.array_equal(ray.get(rows.remote(a=reference, b=ones)), a)
        assert np.array_equal(ray.get(columns.remote(a=reference, b=ones)), a.T)
    made = rows.remote(a=reference, b=ones)  # it stays on the device where it is large
    assert np.array_equal(ray.get(columns.remote(a=made, b=ones)), a.T)
