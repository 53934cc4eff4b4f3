"""Requests as tasks of a cluster with one GPU."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ray

import kaas_client.ray as kaas_ray
from kaas_client import Kernel, Request, inout, inp, out, u64
from kaas_client.errors import DeadlineExceededError, KernelFaultError
from tests.ray.conftest import OBJECT_STORE_BYTES, set_up_environment
from tests.ray.support import DOT, FAULTS, ONE, ZERO, dot_request, product_request, spin_request, vectors

pytestmark = pytest.mark.gpu

LARGE = 1 << 22
"""Words of a vector: 16 MiB."""


@pytest.fixture(scope="module", autouse=True)
def gpu_cluster() -> Iterator[None]:
    set_up_environment()
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=1,
        object_store_memory=4 * OBJECT_STORE_BYTES,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    kaas_ray.init()
    yield
    ray.shutdown()


def usage() -> Any:
    return ray.get(ray.get_actor("gpu:0", kaas_ray.NAMESPACE).usage.remote())


def serves() -> bool:
    return int(ray.get(kaas_ray.remote(spin_request()).remote(flag=ONE), timeout=60)) == 1


def test_small_requests_side_by_side() -> None:
    assert kaas_ray.executors() == ["gpu:0"]
    dot = kaas_ray.remote(dot_request())
    inputs = [vectors(seed) for seed in range(100)]
    results = ray.get([dot.remote(a=a, b=b) for a, b in inputs])
    assert results == [np.sum(a * b, dtype=np.uint32) for a, b in inputs]


def test_a_chain_uploads_its_inputs_once() -> None:
    a, b = vectors(1, LARGE)
    product = kaas_ray.remote(product_request(LARGE))
    factor, reference = ray.put(b), ray.put(a)
    before = usage()
    expected = a
    for _ in range(5):
        reference, expected = product.remote(a=reference, b=factor), expected * b
    assert np.array_equal(ray.get(reference), expected)
    assert usage().uploaded_bytes - before.uploaded_bytes == a.nbytes + b.nbytes


def test_a_chain_in_place_uploads_its_inputs_once() -> None:
    a, b = vectors(2, LARGE)
    args = [u64(LARGE), inout("a", dtype="u4", shape=LARGE), inp("b", b.nbytes), inout("a")]
    in_place = kaas_ray.remote(Request([Kernel(DOT, "prodKern", grid=LARGE // 1024, block=1024, args=args)]))
    factor, reference = ray.put(b), ray.put(a)
    before = usage()
    expected = a
    for _ in range(5):
        reference, expected = in_place.remote(a=reference, b=factor), expected * b
    assert np.array_equal(ray.get(reference), expected)
    assert usage().uploaded_bytes - before.uploaded_bytes == a.nbytes + b.nbytes


def test_inputs_are_copied_from_pages_of_rays_store_that_the_driver_knows() -> None:
    a, b = vectors(3, LARGE)
    ray.get(kaas_ray.remote(product_request(LARGE)).remote(a=ray.put(a), b=ray.put(b)))
    executor = ray.get_actor("gpu:0", kaas_ray.NAMESPACE)
    registered = ray.get(executor.__ray_call__.remote(lambda self: self._engine.executor.device._registered._bytes))
    assert registered >= 2 * a.nbytes


def test_a_fault_costs_the_executor_and_nobody_elses_result() -> None:
    a, b = vectors(4)
    dot = kaas_ray.remote(dot_request())
    faulty = kaas_ray.remote(Request([Kernel(FAULTS, "writeAtKern", args=[u64(1 << 40), out("c", dtype="u4")])]))
    expected = np.sum(a * b, dtype=np.uint32)
    before = [dot.remote(a=a, b=b) for _ in range(20)]
    fault = faulty.remote()
    behind = [dot.remote(a=a, b=b) for _ in range(50)]
    with pytest.raises(KernelFaultError) as raised:
        ray.get(fault, timeout=100)
    assert raised.value.metadata["fault"] == "CUDA_ERROR_ILLEGAL_ADDRESS"
    assert ray.get(before + behind, timeout=100) == [expected] * 70


def test_an_endless_kernel_ends_at_its_deadline_and_the_next_executor_serves() -> None:
    with pytest.raises(DeadlineExceededError):
        ray.get(kaas_ray.remote(spin_request()).options(timeout=0.5).remote(flag=ZERO), timeout=60)
    assert serves()


def test_an_endless_kernel_that_is_cancelled_keeps_nobody_waiting() -> None:
    spinning = kaas_ray.remote(spin_request()).remote(flag=ZERO)
    assert not ray.wait([spinning], timeout=1)[0]
    ray.cancel(spinning)
    assert serves()
