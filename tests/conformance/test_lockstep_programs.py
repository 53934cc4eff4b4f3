"""Random programs of one warp whose answer depends on its threads advancing together: every device gives NumPy's."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from kaasd.devices.base import Device
from tests.conformance.launching import Call, execute, inout
from tests.conformance.lockstep_programs import LANES, REGISTERS, WORDS, ptx, random_body, simulate


def check(device: Device, seed: int, space: str, most_depth: int) -> None:
    """Run a program, with votes at most so deep, and compare."""
    random = Random(seed)
    body = random_body(random, 14, most_depth)
    rng = np.random.default_rng(seed)
    registers = rng.integers(0, 1 << 32, (REGISTERS, LANES), np.uint32)
    memory = rng.integers(0, 1 << 32, WORDS, np.uint32)
    buffers = {"registers": registers.copy(), "memory": memory.copy()}
    call = Call("k", 1, LANES, [inout("registers"), inout("memory")])
    result = execute(device, ptx(body, space).encode(), [call], buffers)
    simulate(body, registers, memory)
    np.testing.assert_array_equal(result["memory"], memory)
    np.testing.assert_array_equal(result["registers"], registers)


@pytest.mark.parametrize("space", ["shared", "global"])
@pytest.mark.parametrize("seed", range(40))
def test_random_program(device: Device, seed: int, space: str) -> None:
    check(device, seed, space, most_depth=0)
