"""Kernels of several compilers that do the same: ``y = a * x + y``. Compilers read this file again, so each stands at its top."""

from __future__ import annotations

import triton
import triton.language as tl
import warp as wp
from numba import cuda, types

CUDA = """
template <typename T> __device__ void add(T a, const T* x, T* y, unsigned long n)
{
    unsigned long i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}
template <typename T> __global__ void saxpy(T a, const T* x, T* y, unsigned long n) { add(a, x, y, n); }
extern "C" __global__ void __launch_bounds__(128) plain(float a, const float* x, float* y, unsigned long n) { add(a, x, y, n); }
"""


@triton.jit
def triton_saxpy(a, x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, a * tl.load(x + i, mask=i < n) + tl.load(y + i, mask=i < n), mask=i < n)


TRITON_TYPES = {"a": "fp32", "x": "*fp32", "y": "*fp32", "n": "i32"}


def numba_saxpy(a, x, y):
    i = cuda.grid(1)
    if i < y.size:
        y[i] = a * x[i] + y[i]


NUMBA_TYPES = types.float32, types.float32[::1], types.float32[::1]


def numba_transpose(x, y):
    i, j = cuda.grid(2)
    if i < x.shape[0] and j < x.shape[1]:
        y[j, i] = x[i, j]


@wp.kernel
def warp_saxpy(a: float, x: wp.array(dtype=float), y: wp.array(dtype=float)):
    i = wp.tid()
    y[i] = a * x[i] + y[i]


@wp.kernel
def warp_fill(m: wp.array2d(dtype=wp.float32), v: wp.vec3, n: wp.int64):
    i, j = wp.tid()
    m[i, j] = v[i % 3] + wp.float32(n)


@wp.func
def warp_row_sum(m: wp.array2d(dtype=wp.float32), i: int):
    return wp.tile_sum(wp.tile_load(m, shape=(1, 64), offset=(i, 0)))


@wp.kernel
def warp_tiles(m: wp.array2d(dtype=wp.float32), sums: wp.array(dtype=wp.float32)):
    i, _thread = wp.tid()
    wp.tile_store(sums, warp_row_sum(m, i), offset=i)
