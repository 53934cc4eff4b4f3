"""numba-cuda, in the manner of its documentation's examples."""

from __future__ import annotations

import math

import numpy as np
from numba import cuda, float32, int32, uint32

from kaas_client import inout, inp, out
from kaas_client.kernels import numba
from tests.kernels.catalogue import Case, Shows, shows


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def add_kernel(x, y, z):
    i = cuda.grid(1)
    if i < z.size:
        z[i] = x[i] + y[i]


@shows(Shows.VIEWS)
def add() -> Case:
    x, y = rng(1).random((2, 5000), np.float32)
    kernel = numba(add_kernel, "void(float32[::1], float32[::1], float32[::1])")
    return Case(kernel[20, 256](inp("x"), inp("y"), out("z", dtype="f4", shape=5000)), {"x": x, "y": y}, {"z": x + y})


TILE = 16


def matmul_kernel(a, b, c):
    of_a, of_b = cuda.shared.array((TILE, TILE), float32), cuda.shared.array((TILE, TILE), float32)
    row, column = cuda.grid(2)
    i, j = cuda.threadIdx.x, cuda.threadIdx.y
    total = float32(0.0)
    for start in range(0, a.shape[1], TILE):
        of_a[i, j] = a[row, start + j] if row < a.shape[0] and start + j < a.shape[1] else float32(0.0)
        of_b[i, j] = b[start + i, column] if start + i < b.shape[0] and column < b.shape[1] else float32(0.0)
        cuda.syncthreads()
        for k in range(TILE):
            total += of_a[i, k] * of_b[k, j]
        cuda.syncthreads()
    if row < c.shape[0] and column < c.shape[1]:
        c[row, column] = total


@shows(Shows.VIEWS)
def matmul() -> Case:
    a, b = rng(2).random((50, 33), np.float32), rng(3).random((33, 40), np.float32)
    kernel = numba(matmul_kernel, "void(float32[:,::1], float32[:,::1], float32[:,::1])")
    launch = kernel[(4, 3), (TILE, TILE)](inp("a"), inp("b"), out("c", dtype="f4", shape=(50, 40)))
    return Case(launch, {"a": a, "b": b}, {"c": a.astype(float) @ b}, 1e-6)


def laplace_kernel(t, u):
    i, j = cuda.grid(2)
    if 0 < i < t.shape[0] - 1 and 0 < j < t.shape[1] - 1:
        u[i, j] = (t[i - 1, j] + t[i + 1, j] + t[i, j - 1] + t[i, j + 1]) * float32(0.25)


@shows(Shows.VIEWS)
def laplace() -> Case:
    """On a plate in Fortran's order."""
    t = np.asfortranarray(rng(4).random((40, 60), np.float32))
    expected = np.zeros_like(t)
    expected[1:-1, 1:-1] = (t[:-2, 1:-1] + t[2:, 1:-1] + t[1:-1, :-2] + t[1:-1, 2:]) * np.float32(0.25)
    kernel = numba(laplace_kernel, "void(float32[::1,:], float32[::1,:])")
    launch = kernel[(3, 4), (16, 16)](inp("t"), out("u", dtype="f4", shape=t.shape, fortran_order=True))
    return Case(launch, {"t": t}, {"u": expected}, 1e-6)


def reduce_kernel(x, total):
    part = cuda.shared.array(0, int32)
    i = cuda.threadIdx.x
    sum = int32(0)
    for k in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        sum += x[k]
    part[i] = sum
    half = cuda.blockDim.x // 2
    while half > 0:
        cuda.syncthreads()
        if i < half:
            part[i] += part[i + half]
        half //= 2
    if i == 0:
        cuda.atomic.add(total, 0, part[0])


@shows(Shows.VIEWS, Shows.DYNAMIC)
def reduction() -> Case:
    x = rng(5).integers(-1000, 1000, 7000, dtype=np.int32)
    kernel = numba(reduce_kernel, "void(int32[::1], int32[::1])")
    launch = kernel.launcher(6, 128, shared_memory_bytes=4 * 128)(inp("x"), out("total", dtype="i4", shape=1))
    return Case(launch, {"x": x}, {"total": x.sum(keepdims=True, dtype=np.int32)})


def histogram_kernel(x, bins):
    i = cuda.grid(1)
    if i < x.size:
        cuda.atomic.add(bins, x[i], uint32(1))


@shows(Shows.VIEWS)
def histogram() -> Case:
    x = rng(6).integers(0, 64, 6000, dtype=np.uint8)
    kernel = numba(histogram_kernel, "void(uint8[::1], uint32[::1])")
    launch = kernel[24, 256](inp("x"), out("bins", dtype="u4", shape=64))
    return Case(launch, {"x": x}, {"bins": np.bincount(x, minlength=64).astype(np.uint32)})


def polar_kernel(z, r, phi):
    i = cuda.grid(1)
    if i < z.size:
        r[i] = abs(z[i])
        phi[i] = math.atan2(z[i].imag, z[i].real)


@shows(Shows.VIEWS)
def complex_numbers() -> Case:
    z = rng(7).standard_normal(1000) + 1j * rng(8).standard_normal(1000)
    kernel = numba(polar_kernel, "void(complex128[::1], float64[::1], float64[::1])")
    launch = kernel[8, 128](inp("z"), out("r", dtype="f8", shape=1000), out("phi", dtype="f8", shape=1000))
    return Case(launch, {"z": z}, {"r": np.abs(z), "phi": np.angle(z)}, 1e-14)


def shuffle_kernel(x, sums):
    i = cuda.grid(1)
    value = x[i]
    for distance in (16, 8, 4, 2, 1):
        value += cuda.shfl_down_sync(0xFFFFFFFF, value, distance)
    if cuda.laneid == 0:
        sums[i // 32] = value


@shows(Shows.VIEWS)
def warp_sums() -> Case:
    x = rng(9).integers(0, 10_000, 2048, dtype=np.int32)
    kernel = numba(shuffle_kernel, "void(int32[::1], int32[::1])")
    launch = kernel[8, 256](inp("x"), out("sums", dtype="i4", shape=64))
    return Case(launch, {"x": x}, {"sums": x.reshape(64, 32).sum(axis=1, dtype=np.int32)})


def volume_kernel(v, axis_sums):
    i, j = cuda.grid(2)
    if i < v.shape[0] and j < v.shape[1]:
        for k in range(v.shape[2]):
            axis_sums[i, j] += v[i, j, k]


@shows(Shows.VIEWS)
def three_dimensions() -> Case:
    v = rng(10).integers(0, 100, (9, 10, 11), dtype=np.int64)
    kernel = numba(volume_kernel, "void(int64[:,:,::1], int64[:,::1])")
    launch = kernel[(2, 2), (8, 8)](inp("v"), inout("sums"))
    start = np.ones((9, 10), np.int64)
    return Case(launch, {"v": v, "sums": start}, {"sums": start + v.sum(axis=2)})
