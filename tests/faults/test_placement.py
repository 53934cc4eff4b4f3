"""Requests meet their data where these lie, on two emulated devices."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from examples.local_daemon import local_daemon
from kaas_client import Client, Kernel, Request, inp, out, u64
from tests.faults.support import wait_until

CONSTANTS, SIZE, N = 8, 1 << 20, 1024


def reading(library: str, number: int) -> Request:
    """Square the first numbers of a constant."""
    constant = inp(f"constant{number}", SIZE, constant=True)
    return Request(
        [Kernel(library, "prodKern", 1, N, [u64(N), constant, inp(f"constant{number}"), out("p", 4 * N, ephemeral=True)])]
    )


@pytest.fixture
def kaas(library_root: Path) -> Iterator[Client]:
    """Two devices, with room for a little more than half of the constants on each."""
    options = "--emulator-devices", "2", "--device-memory", f"{SIZE * (CONSTANTS // 2) + SIZE}", "--log-level", "ERROR"
    with (
        local_daemon("--device", "emulator", "--library-root", str(library_root), *options) as address,
        Client(address) as client,
    ):
        library = str(library_root / "dot.ptx")
        for number in range(CONSTANTS):
            client.put(f"constant{number}", np.full(SIZE // 4, number, np.uint32))
            client.register(f"read{number}", reading(library, number))
        yield client


def placements(kaas: Client, numbers: list[int], threads: int = 1) -> list[tuple[int, str, str]]:
    """Call functions; return what was called, where, and whether its data were there."""

    def call(number: int) -> tuple[int, str, str]:
        result = kaas.invoke(f"read{number}", returns=["p"])
        assert (result.array("p", "u4") == number**2).all()
        return number, result.device, str(result.placement)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(call, numbers))


@pytest.mark.parametrize("threads", [1, 4])
def test_each_constant_is_brought_once_and_calls_go_where_it_is(kaas: Client, threads: int) -> None:
    numbers = list(range(CONSTANTS)) * 20
    random.Random(threads).shuffle(numbers)
    first = placements(kaas, list(range(CONSTANTS)))
    assert {placement for _, _, placement in first} == {"loaded"}
    assert Counter(device for _, device, _ in first) == {"emulator:0": CONSTANTS // 2, "emulator:1": CONSTANTS // 2}
    where = {number: device for number, device, _ in first}
    rest = placements(kaas, numbers, threads)
    there = [placement == "resident" for _, _, placement in rest]
    assert sum(there) >= 0.95 * len(there)
    assert sum(where[number] == device for number, device, _ in rest) >= 0.95 * len(rest)
    use = kaas.stats().groups["default"]
    assert use.resident == sum(there)


def test_what_a_lost_device_had_is_brought_again_once(kaas: Client) -> None:
    placements(kaas, list(range(CONSTANTS)))
    lost = kaas.devices()[1]
    os.kill(lost.worker_pid, signal.SIGKILL)
    wait_until(lambda: kaas.devices()[1].restarts == 1 and kaas.devices()[1].state == "ready")
    numbers = list(range(CONSTANTS)) * 5
    random.Random(3).shuffle(numbers)
    after = Counter(number for number, _, placement in placements(kaas, numbers) if placement != "resident")
    assert len(after) == CONSTANTS // 2
    assert sum(after.values()) <= CONSTANTS // 2 + 1
