"""Every example kernel against NumPy: integers to the bit, floating point to the tolerance that each test states."""

from __future__ import annotations

import numpy as np
import pytest

from kaasd.devices.base import Device
from tests.conformance.launching import Call, execute, inout, inp, library, out, tmp, u32, u64

GENERATOR = np.random.default_rng(20)


def random_words(count: int) -> np.ndarray:
    return GENERATOR.integers(0, 2**32, count, np.uint32)


def test_dot_product_of_1024(device: Device) -> None:
    a, b = random_words(1024), random_words(1024)
    results = execute(
        device,
        library("dot"),
        [
            Call("prodKern", 1, 1024, [u64(1024), inp("a"), inp("b"), tmp("p")]),
            Call("sumKern", 1, 512, [inp("p"), out("c")]),
        ],
        {"a": a, "b": b, "p": np.zeros(1024, np.uint32), "c": np.zeros(1, np.uint32)},
    )
    assert results["c"][0] == int(np.dot(a.astype(object), b.astype(object))) % 2**32
    assert np.array_equal(results["p"], a * b)
    assert np.array_equal(results["a"], a)


def test_product_stops_at_n(device: Device) -> None:
    count, n = 1000, 900
    a, b, before = random_words(count), random_words(count), random_words(count)
    results = execute(
        device,
        library("dot"),
        [Call("prodKern", 8, 128, [u64(n), inp("a"), inp("b"), out("p")])],
        {"a": a, "b": b, "p": before},
    )
    assert np.array_equal(results["p"], np.concatenate([(a * b)[:n], before[n:]]))


@pytest.mark.parametrize("block", [1, 2, 3, 31, 32, 100, 511, 1024])
def test_sum_of_any_block(device: Device, block: int) -> None:
    p = random_words(2 * block)
    results = execute(
        device, library("dot"), [Call("sumKern", 1, block, [inp("p"), out("c")])], {"p": p, "c": np.zeros(1, np.uint32)}
    )
    assert results["c"][0] == int(p.astype(object).sum()) % 2**32


def jacobi_steps(a: np.ndarray, b: np.ndarray, steps: int) -> tuple[np.ndarray, float]:
    """Return x after ``steps`` from zeros, and the residual of the x before the last step."""
    matrix = a.astype(np.float64)
    x = np.zeros_like(b)
    for _ in range(steps):
        error = b - matrix @ x
        x = x + error / np.diag(matrix)
    return x, float(np.abs(error).sum())


@pytest.mark.parametrize(("n", "pairs"), [(512, 4), (100, 60)])
def test_jacobi(device: Device, n: int, pairs: int) -> None:
    a = GENERATOR.uniform(-1, 1, (n, n)).astype(np.float32)
    np.fill_diagonal(a, 1.1 * np.abs(a).sum(axis=1))
    b = GENERATOR.uniform(-1, 1, n)
    block, grid, shared = 256, -(-n // 8), 8 * n
    results = execute(
        device,
        library("jacobi"),
        [
            Call(
                "jacobiKern", grid, block, [u32(n), u32(0), inp("a"), inp("b"), inout("x"), tmp("y"), inout("residual")], shared
            ),
            Call(
                "jacobiKern", grid, block, [u32(n), u32(1), inp("a"), inp("b"), inp("y"), inout("x"), inout("residual")], shared
            ),
        ],
        {"a": a, "b": b, "x": np.zeros(n), "y": np.zeros(n), "residual": np.zeros(2)},
        iterations=pairs,
    )
    x, residual = jacobi_steps(a, b, 2 * pairs)
    # Both compute in float64; only the order of the sums differs.
    np.testing.assert_allclose(results["x"], x, rtol=1e-11, atol=1e-17)
    np.testing.assert_allclose(results["residual"], [0.0, residual], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(("m", "n", "k"), [(64, 64, 64), (33, 17, 50), (1, 1, 1), (16, 48, 5)])
def test_matrix_product(device: Device, m: int, n: int, k: int) -> None:
    a = GENERATOR.standard_normal((m, k)).astype(np.float32)
    b = GENERATOR.standard_normal((k, n)).astype(np.float32)
    results = execute(
        device,
        library("matmul"),
        [Call("matmulKern", (-(-n // 16), -(-m // 16), 1), (16, 16, 1), [u32(m), u32(n), u32(k), inp("a"), inp("b"), out("c")])],
        {"a": a, "b": b, "c": np.zeros((m, n), np.float32)},
    )
    exact = a.astype(np.float64) @ b.astype(np.float64)
    bound = k * 2.0**-23 * (np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64))  # of any order of summation
    assert np.all(np.abs(results["c"] - exact) <= bound)


@pytest.mark.parametrize("shape", [(24, 40, 3), (37, 23, 1), (1, 1, 3), (3, 70, 1), (2, 2, 4)])
def test_blur(device: Device, shape: tuple[int, int, int]) -> None:
    height, width, channels = shape
    image = GENERATOR.integers(0, 256, shape, np.uint8)
    results = execute(
        device,
        library("blur"),
        [
            Call(
                "blurKern",
                (-(-width // 16), -(-height // 8), channels),
                (16, 8, 1),
                [u32(width), u32(height), u32(channels), inp("in"), out("out")],
            )
        ],
        {"in": image, "out": np.zeros(shape, np.uint8)},
    )
    weights = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1])
    padded = np.pad(image.astype(np.int64), ((2, 2), (2, 2), (0, 0)), mode="edge")
    total = sum(weights[y, x] * padded[y : y + height, x : x + width] for y in range(5) for x in range(5))
    assert np.array_equal(results["out"], (total + 128) // 256)


@pytest.mark.parametrize(("n", "grid", "block"), [(100_003, 7, 256), (10, 2, 32), (5000, 3, 100)])
def test_histogram(device: Device, n: int, grid: int, block: int) -> None:
    data = (GENERATOR.standard_normal(n) * 30 + 128).clip(0, 255).astype(np.uint8)
    before = random_words(256)
    results = execute(
        device,
        library("histogram"),
        [Call("histogramKern", grid, block, [u64(n), inp("d"), inout("bins")])],
        {"d": data, "bins": before},
    )
    assert np.array_equal(results["bins"], before + np.bincount(data, minlength=256).astype(np.uint32))


@pytest.mark.parametrize(("rows", "columns", "block"), [(5, 1000, 128), (3, 1, 32), (1, 31, 64), (4, 2049, 1024)])
def test_softmax(device: Device, rows: int, columns: int, block: int) -> None:
    values = GENERATOR.uniform(-40, 40, (rows, columns)).astype(np.float32)
    values[0] += 1000  # too large for exp without the maximum taken off
    results = execute(
        device,
        library("softmax"),
        [Call("softmaxKern", rows, block, [u32(columns), inp("in"), out("out")])],
        {"in": values, "out": np.zeros((rows, columns), np.float32)},
    )
    wide = values.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    # An exponent of up to 80 is rounded to float32, by at most 4e-6; expf and the sum add less.
    np.testing.assert_allclose(results["out"], powers / powers.sum(axis=1, keepdims=True), rtol=1e-5)
