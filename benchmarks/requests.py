"""The requests that the benchmarks send to kaasd."""

from __future__ import annotations

from benchmarks.problems import CHAIN_N, DOT_N, JACOBI_LAUNCHES, JACOBI_N
from kaas_client import BufferSpec, Kernel, Literal, Request, inout, inp, out, tmp, u32, u64


def dot_request(library: str, *, stored: bool = False, b_key: str = "b", constant: bool = False, suffix: str = "") -> Request:
    """The dot product: ``a`` comes with the call, ``b`` lies in the store, ``c`` comes back, and is stored if so asked."""
    size = 4 * DOT_N
    b = inp("b", size, key=b_key, constant=constant)
    product = Kernel(library, f"prodKern{suffix}", 1, DOT_N, [u64(DOT_N), inp("a", size), b, tmp("p", size)])
    total = Kernel(library, f"sumKern{suffix}", 1, DOT_N // 2, [inp("p"), out("c", 4, ephemeral=not stored)])
    return Request([product, total])


def jacobi_request(library: str, matrix_key: str, rhs_key: str, launches: int = JACOBI_LAUNCHES) -> Request:
    """Solve from zeros; the solution ``x`` is not stored."""
    n = JACOBI_N

    def step(phase: int, x: BufferSpec, x_new: BufferSpec) -> Kernel:
        matrix, rhs = inp("A", 4 * n * n, key=matrix_key), inp("rhs", 8 * n, key=rhs_key)
        residual = out("residual", 16, ephemeral=True)
        return Kernel(library, "jacobiKern", n // 8, 256, [u32(n), u32(phase), matrix, rhs, x, x_new, residual], 8 * n)

    steps = [step(0, inout("x", 8 * n, ephemeral=True), tmp("y", 8 * n)), step(1, inp("y"), inout("x", ephemeral=True))]
    return Request(steps, iterations=launches // 2)


def chain_request(library: str, kernels: int) -> Request:
    """A chain of small kernels: ``x = w * x`` element by element, from one buffer into the other and back.

    ``w`` lies in the store and is the chain's first ``x`` too; the last product, ``y`` or ``x``, comes back. ``kernels`` is even.
    """
    size = 4 * CHAIN_N

    def product(source: BufferSpec, target: BufferSpec) -> Kernel:
        return Kernel(library, "prodKern", 1, CHAIN_N, [u64(CHAIN_N), inp("w", size), source, target])

    chain = [product(inp("w"), out("x", size, ephemeral=True))]
    for i in range(1, kernels):
        source, target = ("x", "y") if i % 2 else ("y", "x")
        chain.append(product(inp(source), out(target, size, ephemeral=True)))
    return Request(chain)


OUT_OF_BOUNDS = 1 << 44
"""An index of no memory of any GPU."""


def faulting_request(library: str, kernel: str, number: int) -> Request:
    """Run ``trapKern`` of ``faults.ptx``, or ``writeAtKern`` to no memory; each ``number`` is another request."""
    index = [u64(OUT_OF_BOUNDS)] if kernel == "writeAtKern" else []
    return Request([Kernel(library, kernel, 1, 1, [*index, out("never", 4 + 4 * number)])])


def reading_request(library: str, size: int, *, key: str | None = None, constant: bool = False, iterations: int = 1) -> Request:
    """Load ``size`` bytes of the key ``input``, or another, of which a kernel reads the first 4 KiB; ``p`` are their squares."""
    n = DOT_N
    source = inp("input", size, key=key, constant=constant)
    product = Kernel(library, "prodKern", 1, n, [u64(n), source, inp("input"), out("p", 4 * n, ephemeral=True)])
    return Request([product], iterations=iterations)


def reading_and_holding_request(library: str, hold: str, size: int, key: str, grid: int, seconds: float) -> Request:
    """As ``reading_request`` of constants, behind a kernel of ``hold`` that has the places of ``grid`` blocks for so long."""
    n = DOT_N
    source = inp("input", size, key=key, constant=True)
    product = Kernel(library, "prodKern", 1, n, [u64(n), source, inp("input"), out("p", 4 * n, ephemeral=True)])
    held = out("held", 4 * grid, ephemeral=True)
    return Request([Kernel(hold, "holdKern", grid, 1024, [u64(int(seconds * 1e9)), inp("input"), held]), product])


def touching_request(library: str, size: int) -> Request:
    """Bring ``size`` bytes of ``x``, of which a kernel squares the first 4 KiB in place as uint32, and take them back."""
    n = DOT_N
    return Request([Kernel(library, "prodKern", 1, n, [u64(n), inout("x", size), inout("x"), inout("x")])])


def storing_request(library: str, size: int) -> Request:
    """Store ``size`` bytes as ``p``, of which a kernel writes the first 4 KiB: the squares of ``w``."""
    n = DOT_N
    return Request([Kernel(library, "prodKern", 1, n, [u64(n), inp("w", 4 * n), inp("w"), out("p", size)])])


def working_request(library: str, iterations: int) -> Request:
    """Square 1024 elements of the key ``w`` again and again; ``p`` are the squares, which are not stored."""
    n = DOT_N
    product = Kernel(library, "prodKern", 1, n, [u64(n), inp("w", 4 * n), inp("w"), out("p", 4 * n, ephemeral=True)])
    return Request([product], iterations=iterations)


def holding_request(library: str, grid: int, seconds: float) -> Request:
    """Hold the places of ``grid`` blocks of 1024 threads for so long; ``held`` tells that it was all of them."""
    arguments: list[BufferSpec | Literal] = [
        u64(int(seconds * 1e9)),
        inp("blocks", 4 * grid),
        out("held", 4 * grid, ephemeral=True),
    ]
    return Request([Kernel(library, "holdKern", grid, 1024, arguments)])


def writing_request(library: str, size: int, key: str = "product") -> Request:
    """Square ``size`` bytes of the key ``factors`` as uint32 and store them."""
    n, block = size // 4, 1024
    factors = inp("factors", size)
    return Request([Kernel(library, "prodKern", n // block, block, [u64(n), factors, factors, out(key, size)])])
