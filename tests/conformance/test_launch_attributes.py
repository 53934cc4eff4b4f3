"""Cooperative launches, clusters and launches that begin early, through the real daemon, on every device that has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kaas_client import Client, Kernel, Request, inout, inp, out, tmp, u32
from kaas_client.builders import BufferSpec, Literal
from kaas_core.errors import InvalidRequestError, KernelFaultError

PTX = Path(__file__).parent / "data/launches.ptx"
N = 16 * 64
RUNS = 4
"""As a graph too, where there are any, and as one whose buffers are others."""


@pytest.fixture
def launches(kaas: Client) -> str:
    """The library, uploaded."""
    return kaas.upload(PTX)


def numbers(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << 20, N, dtype=np.uint32)


def grid_sum(library: str, blocks: int, cooperative: bool = True) -> Kernel:
    args: list[BufferSpec | Literal] = [
        u32(N),
        inp("x", 4 * N, ephemeral=True),
        tmp("partial", 4 * blocks),
        out("sums", 4 * blocks, ephemeral=True),
    ]
    return Kernel(library, "gridSumKern", grid=blocks, block=64, args=args, cooperative=cooperative)


@pytest.mark.parametrize("blocks", [1, 7, 130])
@pytest.mark.parametrize("iterations", [1, 3])
def test_all_blocks_of_a_grid_wait_for_each_other(kaas: Client, launches: str, blocks: int, iterations: int) -> None:
    request = Request([grid_sum(launches, blocks)], iterations=iterations)
    for seed in range(RUNS):
        x = numbers(seed)
        sums = kaas.submit(request, inputs={"x": x}, returns=["sums"]).array("sums", "u4")
        np.testing.assert_array_equal(sums, x.sum(dtype=np.uint32) * np.arange(1, blocks + 1, dtype=np.uint32))


def test_more_blocks_than_run_at_once(kaas: Client, launches: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"kernels\[0\]\.grid: device .* runs at most \d+ blocks of this cooperative"):
        kaas.submit(Request([grid_sum(launches, 100_000)]), inputs={"x": numbers(0)})


def exchange(library: str, cluster: int | tuple[int, ...] | None, grid: int = 16) -> Kernel:
    args = [inp("x", 4 * N, ephemeral=True), out("y", 4 * N, ephemeral=True)]
    return Kernel(library, "exchangeKern", grid=grid, block=64, args=args, cluster=cluster)


def exchanged(x: np.ndarray, size: int) -> np.ndarray:
    left = x.reshape(-1, size, 64) + np.arange(size, dtype=np.uint32)[:, None]
    expected = np.broadcast_to(left.sum(1, keepdims=True, dtype=np.uint32), left.shape).copy()
    expected[:, :, 0] = left[:, :, 0] + 64
    return expected.reshape(-1)


@pytest.mark.parametrize("size", [None, 1, 2, 4, 8, 16])
def test_blocks_of_a_cluster_share_their_memory(kaas: Client, launches: str, size: int | None) -> None:
    request = Request([exchange(launches, size)], iterations=3)
    for seed in range(RUNS):
        x = numbers(seed)
        y = kaas.submit(request, inputs={"x": x}, returns=["y"]).array("y", "u4")
        np.testing.assert_array_equal(y, exchanged(x, size or 1))


def test_a_cluster_that_a_kernel_is_compiled_for(kaas: Client, launches: str) -> None:
    place = Kernel(launches, "placeKern", grid=(4, 4, 2), block=32, args=[out("places", 4 * 32 * 8, ephemeral=True)])
    (info,) = (kernel for kernel in kaas.inspect(launches).kernels if kernel.name == "placeKern")
    assert info.cluster == (2, 2, 1)
    for _ in range(RUNS):
        places = kaas.submit(Request([place]), returns=["places"]).array("places", "u4").reshape(2, 4, 4, 8)
        _, y, x = np.indices((2, 4, 4))
        expected = [x % 2 + 2 * (y % 2), x % 2, y % 2, 22 + 0 * x, 128 + 0 * x, x // 2, y // 2, 2 + 0 * x]
        np.testing.assert_array_equal(places, np.stack(expected, -1))


def test_a_block_that_ends_early(kaas: Client, launches: str) -> None:
    leave = Kernel(launches, "leaveKern", grid=8, block=64, args=[out("left", 32, ephemeral=True)], cluster=4)
    left = kaas.submit(Request([leave]), returns=["left"]).array("left", "u4")
    assert left.tolist() == [10, 0, 12, 13] * 2


@pytest.mark.parametrize(
    ("kernel", "cluster", "grid", "problem"),
    [
        ("exchangeKern", 3, 16, r"kernels\[0\]\.grid\[0\]: 16 blocks are no multiple of the 3 of a cluster"),
        ("exchangeKern", 32, 32, r"kernels\[0\]\.cluster: device .* allows at most 16 blocks in a cluster, not 32"),
        ("placeKern", 2, 16, r"kernels\[0\]\.cluster: kernel 'placeKern' is compiled for a cluster of \(2, 2, 1\), not"),
        ("placeKern", None, 16, r"kernels\[0\]\.grid\[1\]: 1 blocks are no multiple of the 2 of a cluster"),
    ],
)
def test_a_cluster_that_does_not_fit(
    kaas: Client, launches: str, kernel: str, cluster: int | None, grid: int, problem: str
) -> None:
    args = [inp("x", 4 * N, ephemeral=True), out("y", 4 * N, ephemeral=True)]
    args = args if kernel == "exchangeKern" else args[1:]
    with pytest.raises(InvalidRequestError, match=problem):
        kaas.submit(Request([Kernel(launches, kernel, grid=grid, block=64, args=args, cluster=cluster)]))


@pytest.mark.parametrize("iterations", [1, 5, 300])
def test_launches_that_begin_early_wait_themselves(kaas: Client, launches: str, iterations: int) -> None:
    args: list[BufferSpec | Literal] = [u32(N), u32(3), inout("x", 4 * N, ephemeral=True)]
    step = Kernel(launches, "stepKern", grid=N // 128, block=128, args=args, programmatic_dependent_launch=True)
    request = Request([step, step], iterations=iterations)
    for seed in range(RUNS):
        x = expected = numbers(seed)
        for _ in range(2 * iterations):
            expected = expected * np.uint32(3) + np.uint32(1)
        result = kaas.submit(request, inputs={"x": x}, returns=["x"]).array("x", "u4")
        np.testing.assert_array_equal(result, expected)


def test_a_grid_that_waits_without_being_cooperative(kaas: Client, launches: str) -> None:
    with pytest.raises(KernelFaultError, match="gridSumKern"):
        kaas.submit(Request([grid_sum(launches, 2, cooperative=False)]), inputs={"x": numbers(0)})


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_bulk_copies_to_all_blocks_of_a_cluster(kaas: Client, launches: str, blocks: int) -> None:
    args = [inp("x", 4 * N, ephemeral=True), out("y", 4 * N * blocks, ephemeral=True)]
    bulk = Kernel(launches, "bulkKern", grid=N // 256 * blocks, block=128, args=args, cluster=blocks)
    for seed in range(RUNS):
        x = numbers(seed)
        y = kaas.submit(Request([bulk]), inputs={"x": x}, returns=["y"]).array("y", "u4").reshape(blocks, N)
        np.testing.assert_array_equal(y, np.broadcast_to(2 * x + 1, (blocks, N)))
