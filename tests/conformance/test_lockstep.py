"""Code that counts on the threads of a warp advancing together, as it was written before ``__syncwarp``, on every device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kaasd.devices.base import Device
from tests.conformance.launching import Call, execute, inout, inp, out, tmp

CODE = (Path(__file__).parent / "data/lockstep.ptx").read_bytes()
BLOCKS = 5
Words = np.ndarray


def words() -> Words:
    """64 for each block."""
    return np.random.default_rng(3).integers(0, 1 << 20, (BLOCKS, 64), np.uint32)


def run(device: Device, kernel: str, x: Words, results: int) -> Words:
    buffers = {"x": x, "out": np.zeros(results, np.uint32)}
    return execute(device, CODE, [Call(kernel, BLOCKS, 64, [inp("x"), out("out")])], buffers)["out"]


@pytest.mark.parametrize("kernel", ["sharedSum", "shrinkingSum"])
def test_sum_of_the_last_warp(device: Device, kernel: str) -> None:
    x = words()
    np.testing.assert_array_equal(run(device, kernel, x, BLOCKS), x.sum(axis=1, dtype="u4"))


def test_sum_through_global_memory(device: Device) -> None:
    x = words()
    buffers = {"x": x, "scratch": np.zeros(x.size + 64, "u4"), "out": np.zeros(BLOCKS, "u4")}
    call = Call("globalSum", BLOCKS, 64, [inp("x"), tmp("scratch"), out("out")])
    np.testing.assert_array_equal(execute(device, CODE, [call], buffers)["out"], x.sum(axis=1, dtype="u4"))


def after_branch(x: Words) -> Words:
    def digits(v: int) -> int:
        while v > 9:
            v = v // 10 + v % 10
        return v

    left = np.array([digits(int(v)) for v in x.ravel()], np.uint32).reshape(x.shape)
    return np.where(x & 1, left, x * 7)[:, np.arange(64) ^ 1]


def after_loop(x: Words) -> Words:
    rounds = x & 31
    return (x * (rounds * (rounds - 1) // 2))[:, np.arange(64) ^ 31]


def scan(x: Words) -> Words:
    return x.reshape(-1, 32).cumsum(axis=1, dtype="u4")


def leader(x: Words) -> Words:
    total = np.zeros(x.size // 32, np.uint32)
    for value in x.reshape(-1, 32).T[::-1]:
        total = total * np.uint32(3) + value
    return np.repeat(total, 32)


def turns(x: Words) -> Words:
    total = np.ones(x.size // 32, np.uint32)
    for value in x.reshape(-1, 32).T[::-1]:
        total = total * np.uint32(3) + value
    return np.repeat(total, 32)


def transpose(x: Words) -> Words:
    return x.reshape(-1, 4, 8).transpose(0, 2, 1)


@pytest.mark.parametrize(
    ("kernel", "right"),
    [
        ("afterBranch", after_branch),
        ("afterLoop", after_loop),
        ("scan", scan),
        ("leader", leader),
        ("turns", turns),
        ("transpose", transpose),
    ],
)
def test_threads_of_a_warp_advance_together(device: Device, kernel: str, right: Callable[[Words], Words]) -> None:
    x = words()
    np.testing.assert_array_equal(run(device, kernel, x, x.size), right(x).ravel())


@pytest.mark.parametrize(("blocks", "threads"), [(1, 32), (2, 96)])
def test_a_lock_within_a_warp(device: Device, blocks: int, threads: int) -> None:
    buffers = {"lock": np.zeros(1, "u4"), "word": np.zeros(1, "u4")}
    result = execute(device, CODE, [Call("spinLock", blocks, threads, [inout("lock"), inout("word")])], buffers)
    expected = 0
    for _ in range(blocks * threads):
        expected = (expected * 5 + 1) % (1 << 32)
    assert result["word"][0] == expected


def test_threads_that_wait_for_the_one_before(device: Device) -> None:
    count = 3 * 64
    buffers = {"state": np.zeros(count, "u4"), "ticket": np.zeros(1, "u4"), "out": np.zeros(count, "u4")}
    result = execute(device, CODE, [Call("lookBack", 3, 64, [inout("state"), inout("ticket"), out("out")])], buffers)
    np.testing.assert_array_equal(result["out"], np.arange(1, count + 1))
