"""What the demo runs: requests on the example kernels, their inputs, and the check of their results with NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kaas_client import BufferSpec, Client, Kernel, Request, inout, inp, out, tmp, u32, u64

KERNELS = Path(__file__).parent / "kernels"

Array = NDArray[Any]


@dataclass(frozen=True)
class Workload:
    """One request, and how to check its results."""

    title: str
    request: Request
    inputs: Mapping[str, Array]
    """By key."""
    launches: int
    check: Callable[[Client], str]
    """Compares the written keys with NumPy. Returns a short text for the table; raises ``AssertionError`` where they differ."""


def dot_product(kaas: Client, n: int = 1024) -> Workload:
    """Two kernels with a temporary between them; uint32, compared bit for bit."""
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 2**32, (2, n), dtype=np.uint32)
    library = kaas.upload(KERNELS / "dot.ptx")
    request = Request(
        [
            Kernel(
                library, "prodKern", grid=1, block=n, args=[u64(n), inp("a", a.nbytes), inp("b", b.nbytes), tmp("p", a.nbytes)]
            ),
            Kernel(library, "sumKern", grid=1, block=n // 2, args=[inp("p"), out("c", 4)]),
        ]
    )

    def check(kaas: Client) -> str:
        expected = np.sum(a * b, dtype=np.uint32)
        found = kaas.get("c", dtype="u4")[0]
        assert found == expected, f"{found} is not {expected}"
        return "equal"

    return Workload("dot product", request, {"a": a, "b": b}, 2, check)


def jacobi(kaas: Client, n: int = 512, launches: int = 3000) -> Workload:
    """Solve A x = b by ``launches`` steps of Jacobi's method, one launch a step, two launches an iteration of the request.

    A is dense and just diagonally dominant: the error shrinks by 1.005 a step, so a few steps are not enough.
    """
    rng = np.random.default_rng(2)
    matrix = rng.random((n, n), dtype=np.float32)
    np.fill_diagonal(matrix, 0)
    np.fill_diagonal(matrix, 1.005 * matrix.sum(axis=1))
    b = rng.standard_normal(n)
    library = kaas.upload(KERNELS / "jacobi.ptx")

    def step(phase: int, x: BufferSpec, x_new: BufferSpec) -> Kernel:
        return Kernel(
            library,
            "jacobiKern",
            grid=n // 8,
            block=256,
            shared_memory_bytes=8 * n,
            args=[u32(n), u32(phase), inp("A", matrix.nbytes), inp("rhs", b.nbytes), x, x_new, out("residual", 16)],
        )

    steps = [step(0, inp("x", b.nbytes), tmp("y", b.nbytes)), step(1, inp("y"), inout("x"))]
    request = Request(steps, iterations=launches // 2)

    def check(kaas: Client) -> str:
        x = kaas.get("x", dtype="f8")
        start = np.abs(b).sum()
        residual = np.abs(b - matrix.astype(np.float64) @ x).sum()
        reported = kaas.get("residual", dtype="f8")[1]
        np.testing.assert_allclose(x, np.linalg.solve(matrix.astype(np.float64), b), rtol=0, atol=1e-5 * np.abs(x).max())
        assert residual < 1e-2 * start, f"residual {residual:.3g}, {start:.3g} at the start"
        assert reported < 1e-2 * start, f"the kernel reports a residual of {reported:.3g}, {start:.3g} at the start"
        return f"residual {residual / start:.1e}"

    inputs: dict[str, Array] = {"A": matrix, "rhs": b, "x": np.zeros(n)}
    return Workload(f"Jacobi, N = {n}", request, inputs, launches, check)


def blur(kaas: Client, width: int = 640, height: int = 400, passes: int = 24) -> Workload:
    """Blur the picture under the key ``image`` in place, forth and back between two buffers; uint8, compared bit for bit."""
    picture = draw_picture(width, height)
    library = kaas.upload(KERNELS / "blur.ptx")

    def one_pass(source: BufferSpec, target: BufferSpec) -> Kernel:
        grid = (-(-width // 16), -(-height // 16), 3)
        return Kernel(library, "blurKern", grid=grid, block=(16, 16), args=[u32(width), u32(height), u32(3), source, target])

    there = one_pass(inp("image", picture.nbytes), tmp("scratch", picture.nbytes))
    back = one_pass(inp("scratch"), inout("image"))
    request = Request([there, back], iterations=passes // 2)

    def check(kaas: Client) -> str:
        expected = picture
        for _ in range(passes):
            expected = blurred(expected)
        found = kaas.get("image", dtype="u1").reshape(picture.shape)
        np.testing.assert_array_equal(found, expected)
        return "equal"

    return Workload(f"blur, {width} x {height}", request, {"image": picture}, passes, check)


def blurred(image: Array) -> Array:
    """Return one pass of the binomial stencil over uint8 [height, width, channels], edges repeated, rounded to nearest."""
    weights = np.array([1, 4, 6, 4, 1])
    height, width, _ = image.shape
    padded = np.pad(image.astype(np.int64), ((2, 2), (2, 2), (0, 0)), mode="edge")
    rows = sum(weight * padded[:, i : i + width] for i, weight in enumerate(weights))
    total = sum(weight * rows[i : i + height] for i, weight in enumerate(weights))
    return np.asarray((total + 128) // 256, dtype=np.uint8)


def draw_picture(width: int, height: int) -> Array:
    """Return an RGB picture, uint8 [height, width, 3]: a sun over hills, with edges sharp enough to show a blur."""
    y, x = np.mgrid[0:height, 0:width] / height
    picture = np.empty((height, width, 3))
    picture[:] = np.array([250, 170, 90]) + (1 - y)[..., None] * np.array([-210, -110, 60])
    distance = np.hypot(x - 0.72 * width / height, y - 0.42)
    rays = (np.arctan2(y - 0.42, x - 0.72 * width / height) * 12 / np.pi % 1 < 0.5) & (distance < 0.36)
    picture[rays] += 22
    picture[distance < 0.17] = [255, 236, 150]
    colours = [[96, 108, 150], [62, 92, 108], [36, 66, 62], [18, 36, 34]]
    for i, colour in enumerate(colours):
        ridge = 0.58 + 0.1 * i - 0.06 * np.sin((5 + 2 * i) * x + 2 * i) - 0.02 * np.sin((17 + 5 * i) * x + i)
        picture[y > ridge] = colour
    lake = y > 0.93
    picture[lake & (np.sin(90 * y + 3 * np.sin(9 * x)) > 0.4)] = [120, 140, 160]
    return np.clip(picture, 0, 255).astype(np.uint8)
