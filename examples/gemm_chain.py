"""A chain of matrix products, each of what the one before gave, as one request: nothing between them leaves the device.

Needs a running daemon.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np

from kaas_client import Client, inp, out, tmp, u32
from kaas_client.kernels import Launch, ptx

MATMUL = ptx(Path(__file__).parent / "kernels/matmul.ptx")["matmulKern"]
TILE = 16
WIDTHS = 96, 128, 64, 160, 80
"""Columns of the first matrix, and of each factor."""
ROWS = 100


def chain() -> list[Launch]:
    """Return the launches: the product before is a buffer of the request, the factors are constants of the store."""
    launches, before = [], inp("A")
    for number, (inner, columns) in enumerate(pairwise(WIDTHS), 1):
        factor = inp(f"B{number}", key=f"chain/B{number}", constant=True, dtype="f4", shape=(inner, columns))
        is_last = number == len(WIDTHS) - 1
        product = out("C", dtype="f4", shape=(ROWS, columns)) if is_last else tmp(f"C{number}", ROWS * columns * 4)
        grid = -(-columns // TILE), -(-ROWS // TILE)
        launches.append(MATMUL[grid, (TILE, TILE)](u32(ROWS), u32(columns), u32(inner), before, factor, product))
        before = inp(product.name)
    return launches


def main() -> int:
    """Put the factors, run the chain on three matrices, and compare with NumPy."""
    rng = np.random.default_rng(1)
    factors = [rng.standard_normal(shape).astype(np.float32) for shape in pairwise(WIDTHS)]
    with Client() as kaas:
        for number, factor in enumerate(factors, 1):
            kaas.put(f"chain/B{number}", factor)
        function = kaas.bind(chain())
        for _ in range(3):
            a = rng.standard_normal((ROWS, WIDTHS[0])).astype(np.float32)
            expected = np.linalg.multi_dot([a.astype(float), *(factor.astype(float) for factor in factors)])
            error = float(np.max(np.abs(function(A=a)["C"] - expected)) / np.max(np.abs(expected)))
            print(f"{len(factors)} products: the largest difference from NumPy is {error:.1e} of the largest number")
            if not error < 1e-5:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
