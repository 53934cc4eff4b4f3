"""Kernels of CuTe DSL, with the functions that launch them."""

from __future__ import annotations

import cutlass
from cuda.bindings.driver import CUstream
from cutlass import cute
from cutlass.cute import runtime


@cute.kernel
def saxpy_kernel(a: cutlass.Float32, x: cute.Tensor, y: cute.Tensor, n: cutlass.Int32):
    t, _, _ = cute.arch.thread_idx()
    b, _, _ = cute.arch.block_idx()
    d, _, _ = cute.arch.block_dim()
    i = b * d + t
    if i < n:
        y[i] = a * x[i] + y[i]


@cute.jit
def saxpy(a: cutlass.Float32, x: cute.Tensor, y: cute.Tensor):
    n = x.shape[0]
    saxpy_kernel(a, x, y, n).launch(grid=[cute.ceil_div(n, 128), 1, 1], block=[128, 1, 1])


@cute.kernel
def copy_kernel(x: cute.Tensor, y: cute.Tensor):
    t, _, _ = cute.arch.thread_idx()
    b, _, _ = cute.arch.block_idx()
    if t < x.shape[1]:
        y[b, t] = x[b, t]


@cute.jit
def transpose(x: cute.Tensor, y: cute.Tensor):
    """Pass the kernel another layout than the one it gets, and sizes in another order."""
    rows, columns = x.shape
    turned = cute.make_tensor(y.iterator, cute.make_layout((rows, columns), stride=(1, rows)))
    threads = cute.ceil_div(columns, 32) * 32
    copy_kernel(x, turned).launch(grid=[rows, 1, 1], block=[threads, 1, 1])


@cute.kernel
def reverse_kernel(x: cute.Tensor, y: cute.Tensor, N: cutlass.Constexpr):
    t, _, _ = cute.arch.thread_idx()
    kept = cutlass.memory.SmemAllocator().allocate_tensor(cutlass.Int32, cute.make_layout(N))
    kept[t] = x[t]
    cute.arch.sync_threads()
    y[t] = kept[N - 1 - t]


@cute.jit
def reverse(x: cute.Tensor, y: cute.Tensor, N: cutlass.Constexpr, stream: CUstream):
    reverse_kernel(x, y, N).launch(grid=[1, 1, 1], block=[N, 1, 1])


@cute.jit
def clustered(x: cute.Tensor, y: cute.Tensor, n: cutlass.Int32):
    saxpy_kernel(cutlass.Float32(1), x, y, n).launch(grid=[4, 1, 1], block=[64, 1, 1], cluster=[2, 1, 1], smem=256, use_pdl=True)


@cute.jit
def twice(x: cute.Tensor, y: cute.Tensor):
    copy_kernel(x, y).launch(grid=[1, 1, 1], block=[32, 1, 1])
    copy_kernel(y, x).launch(grid=[1, 1, 1], block=[32, 1, 1])


@cute.jit
def perhaps(x: cute.Tensor, y: cute.Tensor, n: cutlass.Int32):
    if n > 0:
        saxpy_kernel(cutlass.Float32(1), x, y, n).launch(grid=[1, 1, 1], block=[32, 1, 1])


@cute.jit
def wrong(x: cute.Tensor):
    copy_kernel(x).launch(grid=[1, 1, 1], block=[32, 1, 1])


@cute.jit
def shifted(x: cute.Tensor, y: cute.Tensor):
    saxpy_kernel(cutlass.Float32(1), cute.make_tensor(x.iterator + 1, x.layout), y, 1).launch(grid=[1, 1, 1], block=[32, 1, 1])


def vector(divisibility: int = 1):
    """Return an example of a tensor of one dimension, of any length."""
    return runtime.make_fake_tensor(cutlass.Float32, (cute.sym_int(divisibility=divisibility),), stride=(1,), assumed_align=4)


def matrix(element=cutlass.Float32):
    """Return an example of a tensor of two dimensions whose rows lie one after another."""
    return runtime.make_fake_tensor(element, (cute.sym_int(), cute.sym_int()), stride=(cute.sym_int64(), 1), assumed_align=4)
