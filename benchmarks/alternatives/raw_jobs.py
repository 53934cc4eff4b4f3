"""The benchmarks' work on a bare GPU, with nothing imported that kaasd would need."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.alternatives import raw
from benchmarks.problems import CHAIN_N, DOT_N, DOT_PTX, JACOBI_LAUNCHES, JACOBI_N, JACOBI_PTX


@dataclass(frozen=True)
class RawJob:
    """Work on a bare GPU: put it on its stream, wait for that, and look at the result."""

    stream: Any
    enqueue: Callable[[Any], None]
    """Puts the whole job on a stream, kernel by kernel."""
    result: NDArray[Any]
    """Page-locked; holds the result once the stream is done."""


def raw_dot(gpu: raw.Gpu, b: NDArray[np.uint32], library: Path = DOT_PTX, suffix: str = "") -> tuple[RawJob, NDArray[np.uint32]]:
    """Return the dot product, copies included, and the page-locked array from which it takes ``a``."""
    size = 4 * DOT_N
    module, stream = gpu.module(library), gpu.stream()
    a_host, c_host = gpu.pinned(size).view(np.uint32), gpu.pinned(4)
    a, b_device, p, c = gpu.allocate(size), gpu.allocate(b), gpu.allocate(size), gpu.allocate(4)
    product = raw.Launch(gpu.kernel(module, f"prodKern{suffix}"), 1, DOT_N, [ctypes.c_uint64(DOT_N), a, b_device, p])
    total = raw.Launch(gpu.kernel(module, f"sumKern{suffix}"), 1, DOT_N // 2, [p, c])

    def enqueue(stream: Any) -> None:
        raw.to_device(a, a_host, stream)
        product.on(stream)
        total.on(stream)
        raw.to_host(c_host, c, stream)

    return RawJob(stream, enqueue, c_host), a_host


def raw_jacobi(gpu: raw.Gpu, matrix: NDArray[np.float32], rhs: NDArray[np.float64], launches: int = JACOBI_LAUNCHES) -> RawJob:
    """Return the solver on inputs that are on the device already; the solution is copied back."""
    n = JACOBI_N
    kernel, stream = gpu.kernel(gpu.module(JACOBI_PTX), "jacobiKern"), gpu.stream()
    a, b, x, y, residual = (gpu.allocate(content) for content in (matrix, rhs, 8 * n, 8 * n, 16))
    x_host = gpu.pinned(8 * n).view(np.float64)

    def step(phase: int, old: Any, new: Any) -> raw.Launch:
        literals = [ctypes.c_uint32(n), ctypes.c_uint32(phase)]
        return raw.Launch(kernel, n // 8, 256, [*literals, a, b, old, new, residual], 8 * n)

    pair = step(0, x, y), step(1, y, x)

    def enqueue(stream: Any) -> None:
        raw.clear(x, 8 * n, stream)
        raw.clear(residual, 16, stream)
        for _ in range(launches // 2):
            for launch in pair:
                launch.on(stream)
        raw.to_host(x_host, x, stream)

    return RawJob(stream, enqueue, x_host)


def raw_chain(gpu: raw.Gpu, w: NDArray[np.uint32], kernels: int) -> RawJob:
    """Return the same chain with ``w`` on the device already."""
    size = 4 * CHAIN_N
    kernel, stream = gpu.kernel(gpu.module(DOT_PTX), "prodKern"), gpu.stream()
    w_device, x, y = gpu.allocate(w), gpu.allocate(size), gpu.allocate(size)
    y_host = gpu.pinned(size).view(np.uint32)

    def product(source: Any, target: Any) -> raw.Launch:
        return raw.Launch(kernel, 1, CHAIN_N, [ctypes.c_uint64(CHAIN_N), w_device, source, target])

    first, there, back = product(w_device, x), product(x, y), product(y, x)

    def enqueue(stream: Any) -> None:
        raw.clear(x, size, stream)
        raw.clear(y, size, stream)
        first.on(stream)
        for i in range(1, kernels):
            (there if i % 2 else back).on(stream)
        raw.to_host(y_host, y, stream)

    return RawJob(stream, enqueue, y_host)
