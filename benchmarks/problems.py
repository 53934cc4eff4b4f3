"""What the benchmarks compute, on random data, and NumPy's opinion of the results."""

from __future__ import annotations

import secrets
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

KERNELS = Path(__file__).parents[1] / "examples/kernels"
DOT_PTX = KERNELS / "dot.ptx"
FAULTS_PTX = KERNELS / "faults.ptx"
JACOBI_PTX = KERNELS / "jacobi.ptx"
HOLD_PTX = Path(__file__).parent / "kernels/hold.ptx"

DOT_N = 1024
JACOBI_N = 512
JACOBI_LAUNCHES = 3000
CHAIN_N = 1024


def dot_vectors(seed: int = 1) -> NDArray[np.uint32]:
    """Return two vectors of ``DOT_N``: uint32 [2, DOT_N]."""
    return np.random.default_rng(seed).integers(0, 2**32, (2, DOT_N), dtype=np.uint32)


def dot_of(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> bytes:
    """Return the dot product modulo 2^32 as its four bytes."""
    return np.sum(a * b, dtype=np.uint32).tobytes()


def squares_of(w: NDArray[np.uint32]) -> bytes:
    """Return the squares modulo 2^32 of the first 1024 elements, as bytes."""
    return (w[:DOT_N] * w[:DOT_N]).tobytes()


def held_by(blocks: NDArray[np.uint32]) -> bytes:
    """Return what ``holdKern`` makes of its blocks' numbers, as bytes."""
    return (3 * blocks + 1).tobytes()


def unseen_dot_ptx() -> tuple[bytes, str]:
    """Return the dot product's PTX under names that no compiler's cache has seen, and their suffix."""
    suffix = f"_{secrets.token_hex(8)}"
    ptx = DOT_PTX.read_bytes()
    for name in (b"prodKern", b"sumKern"):
        ptx = ptx.replace(name, name + suffix.encode())
    return ptx, suffix


def jacobi_system(seed: int = 2) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return a random, diagonally dominant matrix, float32 [n, n], and a right-hand side, float64 [n]."""
    rng = np.random.default_rng(seed)
    matrix = rng.random((JACOBI_N, JACOBI_N), dtype=np.float32)
    np.fill_diagonal(matrix, 0)
    np.fill_diagonal(matrix, 1.005 * matrix.sum(axis=1))
    return matrix, rng.standard_normal(JACOBI_N)


def jacobi_steps(matrix: NDArray[np.float32], rhs: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """Return what so many steps from zeros come to, in float64."""
    exact = matrix.astype(np.float64)
    diagonal = exact.diagonal()
    x = np.zeros_like(rhs)
    for _ in range(steps):
        x = x + (rhs - exact @ x) / diagonal
    return x


def chain_vector() -> NDArray[np.uint32]:
    """Return a vector whose powers do not vanish modulo 2^32: odd numbers, uint32 [CHAIN_N]."""
    return np.random.default_rng(3).integers(0, 2**32, CHAIN_N, dtype=np.uint32) | np.uint32(1)


def chain_of(w: NDArray[np.uint32], kernels: int) -> NDArray[np.uint32]:
    """Return what the chain computes: ``w`` to the power of ``kernels + 1``, modulo 2^32."""
    result = w.copy()
    for _ in range(kernels):
        result *= w
    return result
