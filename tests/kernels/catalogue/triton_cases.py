"""Triton, in the manner of its tutorials. Triton reads this file again, so each kernel stands at its top."""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

from kaas_client import inout, inp, out
from kaas_client.kernels import triton as compiled
from tests.kernels.catalogue import Case, Shows, shows


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@triton.jit
def add_kernel(x, y, z, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(z + i, tl.load(x + i, mask=i < n) + tl.load(y + i, mask=i < n), mask=i < n)


@shows(Shows.POINTERS)
def add() -> Case:
    x, y = rng(1).random((2, 5000), np.float32)
    kernel = compiled(add_kernel, {"x": "*fp32", "y": "*fp32", "z": "*fp32", "n": "i32"}, {"BLOCK": 512})
    return Case(kernel[10](inp("x"), inp("y"), out("z", dtype="f4", shape=5000), 5000), {"x": x, "y": y}, {"z": x + y})


@triton.jit
def softmax_kernel(x, y, columns, BLOCK: tl.constexpr):
    row, i = tl.program_id(0), tl.arange(0, BLOCK)
    values = tl.load(x + row * columns + i, mask=i < columns, other=-float("inf"))
    e = tl.exp(values - tl.max(values, axis=0))
    tl.store(y + row * columns + i, e / tl.sum(e, axis=0), mask=i < columns)


@shows(Shows.POINTERS)
def softmax() -> Case:
    x = rng(2).standard_normal((23, 300)).astype(np.float32)
    e = np.exp(x.astype(float) - x.max(axis=1, keepdims=True))
    kernel = compiled(softmax_kernel, {"x": "*fp32", "y": "*fp32", "columns": "i32"}, {"BLOCK": 512})
    launch = kernel[23](inp("x"), out("y", dtype="f4", shape=x.shape), 300)
    return Case(launch, {"x": x}, {"y": e / e.sum(axis=1, keepdims=True)}, 1e-5)


@triton.jit
def matmul_kernel(a, b, c, M, N, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        of_a = tl.load(a + rows[:, None] * K + k[None, :], mask=(rows[:, None] < M) & (k[None, :] < K), other=0.0)
        of_b = tl.load(b + k[:, None] * N + columns[None, :], mask=(k[:, None] < K) & (columns[None, :] < N), other=0.0)
        total = tl.dot(of_a, of_b, total)
    inside = (rows[:, None] < M) & (columns[None, :] < N)
    tl.store(c + rows[:, None] * N + columns[None, :], total, mask=inside)


@shows(Shows.POINTERS, Shows.DYNAMIC)
def matmul() -> Case:
    a, b = rng(3).random((60, 48)).astype(np.float16), rng(4).random((48, 40)).astype(np.float16)
    types = {"a": "*fp16", "b": "*fp16", "c": "*fp32", "M": "i32", "N": "i32", "K": "i32"}
    kernel = compiled(matmul_kernel, types, {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32}, num_warps=4)
    launch = kernel[2, 2](inp("a"), inp("b"), out("c", dtype="f4", shape=(60, 40)), 60, 40, 48)
    return Case(launch, {"a": a, "b": b}, {"c": a.astype(float) @ b.astype(float)}, 1e-5)


@triton.jit
def layer_norm_kernel(x, weight, bias, y, columns, epsilon, BLOCK: tl.constexpr):
    row, i = tl.program_id(0), tl.arange(0, BLOCK)
    inside = i < columns
    values = tl.load(x + row * columns + i, mask=inside, other=0.0)
    mean = tl.sum(values, axis=0) / columns
    centred = tl.where(inside, values - mean, 0.0)
    scale = 1 / tl.sqrt(tl.sum(centred * centred, axis=0) / columns + epsilon)
    result = centred * scale * tl.load(weight + i, mask=inside) + tl.load(bias + i, mask=inside)
    tl.store(y + row * columns + i, result, mask=inside)


@shows(Shows.POINTERS)
def layer_norm() -> Case:
    x, (weight, bias) = rng(5).random((11, 200), np.float32), rng(6).random((2, 200), np.float32)
    wide = x.astype(float)
    expected = (wide - wide.mean(axis=1, keepdims=True)) / np.sqrt(wide.var(axis=1, keepdims=True) + 1e-5) * weight + bias
    types = {"x": "*fp32", "weight": "*fp32", "bias": "*fp32", "y": "*fp32", "columns": "i32", "epsilon": "fp32"}
    kernel = compiled(layer_norm_kernel, types, {"BLOCK": 256})
    launch = kernel[11](inp("x"), inp("weight"), inp("bias"), out("y", dtype="f4", shape=x.shape), 200, 1e-5)
    return Case(launch, {"x": x, "weight": weight, "bias": bias}, {"y": expected}, 1e-5)


@triton.jit
def sum_kernel(x, total, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(total, tl.sum(tl.load(x + i, mask=i < n, other=0), axis=0))


@shows(Shows.POINTERS)
def reduction() -> Case:
    x = rng(7).integers(-1000, 1000, 9000, dtype=np.int32)
    kernel = compiled(sum_kernel, {"x": "*i32", "total": "*i32", "n": "i32"}, {"BLOCK": 1024})
    launch = kernel[9](inp("x"), out("total", dtype="i4", shape=1), 9000)
    return Case(launch, {"x": x}, {"total": x.sum(keepdims=True, dtype=np.int32)})


@triton.jit
def scan_kernel(x, y, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.cumsum(tl.load(x + i), axis=0))


@shows(Shows.POINTERS)
def scan() -> Case:
    x = rng(8).integers(0, 1000, (6, 256), dtype=np.int32)
    kernel = compiled(scan_kernel, {"x": "*i32", "y": "*i32"}, {"BLOCK": 256})
    return Case(kernel[6](inp("x"), out("y", dtype="i4", shape=x.shape)), {"x": x}, {"y": np.cumsum(x, axis=1, dtype=np.int32)})


@triton.jit
def transpose_kernel(x, y, rows, columns, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (i[:, None] < rows) & (j[None, :] < columns)
    tile = tl.load(x + i[:, None] * columns + j[None, :], mask=inside)
    tl.store(y + j[None, :] * rows + i[:, None], tile, mask=inside)


@shows(Shows.POINTERS)
def transpose() -> Case:
    x = rng(9).integers(0, 2**31, (50, 70), dtype=np.int32)
    kernel = compiled(transpose_kernel, {"x": "*i32", "y": "*i32", "rows": "i32", "columns": "i32"}, {"BLOCK": 32})
    launch = kernel[2, 3](inp("x"), out("y", dtype="i4", shape=(70, 50)), 50, 70)
    return Case(launch, {"x": x}, {"y": np.ascontiguousarray(x.T)})


@triton.jit
def stencil_kernel(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    left = tl.load(x + i - 1, mask=(i > 0) & (i < n), other=0)
    right = tl.load(x + i + 1, mask=i < n - 1, other=0)
    tl.store(y + i, left - 2 * tl.load(x + i, mask=i < n, other=0) + right, mask=i < n)


@shows(Shows.POINTERS)
def stencil() -> Case:
    """Two steps: what one writes the next one reads."""
    x = rng(10).integers(-100, 100, 1000, dtype=np.int32)
    kernel = compiled(stencil_kernel, {"x": "*i32", "y": "*i32", "n": "i32"}, {"BLOCK": 256})
    launches = [
        kernel[4](inp("x"), out("y", dtype="i4", shape=1000), 1000),
        kernel[4](inp("y"), out("z", dtype="i4", shape=1000), 1000),
    ]
    y = np.convolve(x, [1, -2, 1], "same").astype(np.int32)
    return Case(launches, {"x": x}, {"y": y, "z": np.convolve(y, [1, -2, 1], "same").astype(np.int32)})


@triton.jit
def relu_kernel(x, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + i, tl.maximum(tl.load(x + i, mask=i < n), 0), mask=i < n)


@shows(Shows.POINTERS, Shows.CLUSTER)
def relu_in_clusters() -> Case:
    x = rng(11).standard_normal(4000).astype(np.float32)
    kernel = compiled(relu_kernel, {"x": "*fp32", "n": "i32"}, {"BLOCK": 512}, num_ctas=2).compile(target="sm_90")
    return Case(kernel[8](inout("x"), 4000), {"x": x}, {"x": np.maximum(x, 0)})
