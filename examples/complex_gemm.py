"""CUTLASS's GEMM of complex numbers: one kernel whose only parameter is a struct of 376 bytes, with addresses among them.

CUTLASS's host code would fill in the struct. Here a kernel does, compiled of the same headers, once for all sizes that are alike;
then ``packed`` puts buffers where its addresses are. Needs a running daemon.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kaas_client import Client, i32, inp, out, packed, u64
from kaas_client.kernels import Launch, ptx

KERNELS = ptx(Path(__file__).parent / "kernels/cutlass/complex_gemm.ptx")
MARK = 0xADD0_0000_0000_0000
"""Stands for the address of a buffer until there is one; the next ones follow in steps of 16."""

Array = NDArray[Any]


def gemm(kaas: Client, m: int, n: int, k: int, alpha: complex, beta: complex) -> Launch:
    """Return the launch of ``D = alpha A B + beta C``, of complex64: A is (m, k), B is (k, n), C and D are (m, n)."""
    marks = {name: MARK + 16 * position for position, name in enumerate("ABCD")}
    scalars = [packed(np.complex64(value).tobytes()) for value in (alpha, beta)]
    size = KERNELS["cgemm"].parameters[0].size_bytes
    described = kaas.bind(
        KERNELS["describe"][1, 1](
            i32(m),
            i32(n),
            i32(k),
            *scalars,
            *map(u64, marks.values()),
            out("params", dtype="u1", shape=size),
            out("launch", dtype="i4", shape=5),
        )
    )()
    params = described["params"].tobytes()
    places = {name: params.index(mark.to_bytes(8, "little")) for name, mark in marks.items()}
    *grid, block, shared = map(int, described["launch"])
    buffers = {places[name]: inp(name) for name in "ABC"} | {places["D"]: out("D", dtype="c8", shape=(m, n))}
    launch: Launch = KERNELS["cgemm"].launcher(grid, block, shared_memory_bytes=shared)(packed(params, buffers))
    return launch


def main() -> int:
    """Multiply three times, and compare with NumPy."""
    m, n, k, alpha, beta = 200, 150, 70, 1.5 - 0.5j, 0.25 + 2j
    rng = np.random.default_rng(1)

    def made(*shape: int) -> Array:
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)

    with Client() as kaas:
        function = kaas.bind(gemm(kaas, m, n, k, alpha, beta))
        for _ in range(3):
            a, b, c = made(m, k), made(k, n), made(m, n)
            found = function(A=a, B=b, C=c)["D"]
            error = float(np.max(np.abs(found - (alpha * (a.astype(complex) @ b) + beta * c))))
            print(f"{m} x {n} x {k}: the largest difference from NumPy is {error:.1e}")
            if not error < 1e-3:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
