"""PTX that lies in files: what nvcc made of the examples, and lines written by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kaas_client import inp, out, packed, u32, u64
from kaas_client.kernels import ptx
from tests.kernels.catalogue import Case, Shows, shows

ROOT = Path(__file__).parents[3]


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@shows(Shows.POINTERS)
def matmul() -> Case:
    a, b = rng(1).random((50, 70), np.float32), rng(2).random((70, 40), np.float32)
    launch = ptx(ROOT / "examples/kernels/matmul.ptx")["matmulKern"][(3, 4), (16, 16)](
        u32(50), u32(40), u32(70), inp("a"), inp("b"), out("c", dtype="f4", shape=(50, 40))
    )
    return Case(launch, {"a": a, "b": b}, {"c": a.astype(float) @ b}, 1e-6)


@shows(Shows.POINTERS, Shows.DYNAMIC)
def jacobi_step() -> Case:
    a, b, x = rng(3).random((48, 48), np.float32), rng(4).random(48), rng(5).random(48)
    wide = a.astype(float)
    step = ptx(ROOT / "examples/kernels/jacobi.ptx")["jacobiKern"].launcher(12, 128, shared_memory_bytes=x.nbytes)
    launch = step(
        u32(48), u32(0), inp("a"), inp("b"), inp("x"), out("y", dtype="f8", shape=48), out("residual", dtype="f8", shape=2)
    )
    error = b - wide @ x
    expected = {"y": x + error / np.diag(wide), "residual": np.array([np.abs(error).sum(), 0])}
    return Case(launch, {"a": a, "b": b, "x": x}, expected, 1e-12)


@shows(Shows.VIEWS, Shows.STRUCTS)
def affine_views() -> Case:
    """Structs with an address in them, and a ``float4``."""
    view = np.dtype([("data", "u8"), ("rows", "i4"), ("columns", "i4"), ("row_stride", "i8")], align=True)
    x = rng(6).integers(0, 100, (32, 64)).astype(np.float32)
    struct = np.array((0, 32, 64, 64), view)[()]
    launch = ptx(ROOT / "tests/conformance/data/packed.ptx")["affineKern"][(2, 32), 32](
        packed(struct, {"data": inp("x")}),
        packed(b"\0\0\0"),
        packed(np.float32([2, 3, -1, 0]).tobytes()),
        packed(struct, {"data": out("y", dtype="f4", shape=x.shape)}),
    )
    return Case(launch, {"x": x}, {"y": 2 * x + 3})


@shows(Shows.POINTERS, Shows.CLUSTER)
def clusters() -> Case:
    """Blocks of a cluster read each other's shared memory."""
    x = rng(8).integers(0, 1000, (4, 4, 64), dtype=np.uint32)
    expected = np.repeat((x + np.arange(4, dtype=np.uint32)[:, None]).sum(axis=1, keepdims=True, dtype=np.uint32), 4, axis=1)
    expected[..., 0] = x[..., 0] + np.arange(4, dtype=np.uint32) + 64
    exchange = ptx(ROOT / "tests/conformance/data/launches.ptx")["exchangeKern"][16, 64]
    launch = exchange(inp("x"), out("y", dtype="u4", shape=x.shape), cluster=4)
    return Case(launch, {"x": x}, {"y": expected})


@shows(Shows.POINTERS)
def histogram() -> Case:
    x = rng(7).integers(0, 256, 9000, dtype=np.uint8)
    launch = ptx(ROOT / "examples/kernels/histogram.ptx")["histogramKern"][4, 128](
        u64(x.size), inp("x"), out("bins", dtype="u4", shape=256)
    )
    return Case(launch, {"x": x}, {"bins": np.bincount(x, minlength=256).astype(np.uint32)})
