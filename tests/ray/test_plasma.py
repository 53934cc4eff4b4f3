"""Where Ray's object store is found in a process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import ray

import kaas_client.ray as kaas_ray
from kaas_client.ray.jobs import Job
from kaas_client.ray.plasma import find_mapping
from tests.ray.conftest import OBJECT_STORE_BYTES
from tests.ray.support import product_request, vectors

MAPS = """\
55d0c0a00000-55d0c0a52000 r--p 00000000 08:01 1311 /usr/bin/python3
7f0000000000-7f0000004000 rw-s 00000000 00:1b 9 /dev/shm/plasmaXY (deleted)
7f9a358ba000-7f9a458ba000 rw-s 00000000 00:1b 5                          /dev/shm/plasmaDB3vwL (deleted)
7ffd2a5e3000-7ffd2a604000 rw-p 00000000 00:00 0 [stack]
7ffd2a700000-7ffd2a701000 rw-p 00000000 00:00 0
"""


def test_the_largest_mapping_of_a_store_is_it() -> None:
    found = find_mapping(MAPS)
    assert found is not None
    assert (found.path, found.address, found.size_bytes, found.grows) == ("/dev/shm/plasmaDB3vwL", 0x7F9A358BA000, 1 << 28, False)
    assert find_mapping(MAPS.replace("plasma", "other")) is None


def recorded(executor: Any) -> list[int]:
    """Have an executor note where the inputs of its next calls lie; return the list that it notes them in."""
    engine = executor._engine
    run, executor.noted = engine.run, []

    def noting(job: Job, *rest: Any) -> Any:
        views = [*job.inputs.values(), *job.values.values()]
        executor.noted += [np.frombuffer(view, np.uint8).ctypes.data for view in views]
        return run(job, *rest)

    engine.run = noting
    return []


@pytest.mark.usefixtures("cluster")
def test_large_inputs_are_read_where_the_store_holds_them() -> None:
    a, b = vectors(80, 1 << 16)
    product = kaas_ray.remote(product_request(1 << 16)).options(executor="emulator:0")
    executor = ray.get_actor("emulator:0", kaas_ray.NAMESPACE)
    ray.get(executor.__ray_call__.remote(recorded))
    assert np.array_equal(ray.get(product.remote(a=ray.put(a), b=b)), a * b)
    addresses = ray.get(executor.__ray_call__.remote(lambda self: self.noted))
    mapping = ray.get(executor.__ray_call__.remote(lambda self: self._engine.executor.store.mapped))
    ray.get(executor.__ray_call__.remote(lambda self: self._engine.__dict__.pop("run") and None))
    assert mapping.size_bytes >= OBJECT_STORE_BYTES
    assert len(addresses) == 2
    assert all(mapping.address <= address < mapping.address + mapping.size_bytes for address in addresses)
