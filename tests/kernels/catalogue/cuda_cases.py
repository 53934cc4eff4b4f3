"""CUDA C++ by NVRTC, in the manner of NVIDIA's samples and programming guide."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kaas_client import f32, i32, inout, inp, out, packed, tmp, u32
from kaas_client.kernels import cuda
from tests.kernels.catalogue import Case, Shows, shows

kernels = cuda(Path(__file__).with_name("kernels.cu"))


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@shows(Shows.POINTERS)
def vector_add() -> Case:
    x, y = rng(1).random((2, 5000), np.float32)
    launch = kernels["vector_add<float>"][20, 256](inp("x"), inp("y"), out("z", dtype="f4", shape=5000), i32(5000))
    return Case(launch, {"x": x, "y": y}, {"z": x + y})


@shows(Shows.POINTERS, Shows.DYNAMIC)
def reduction() -> Case:
    x = rng(2).integers(0, 2**32, 10_000, dtype=np.uint32)
    sums = kernels["sum_blocks"].launcher(8, 256, shared_memory_bytes=256 * x.itemsize)
    first = sums(inp("x"), tmp("parts", dtype="u4", shape=8), u32(x.size))
    total = kernels["sum_blocks"].launcher(1, 256, shared_memory_bytes=256 * x.itemsize)
    second = total(inp("parts"), out("sum", dtype="u4", shape=1), u32(8))
    return Case([first, second], {"x": x}, {"sum": np.sum(x, keepdims=True, dtype=np.uint32)})


@shows(Shows.POINTERS)
def warp_reduction() -> Case:
    x = rng(3).integers(-1000, 1000, 7777, dtype=np.int32)
    launch = kernels["sum_warps"][13, 192](inp("x"), out("sum", dtype="i4", shape=1), i32(x.size))
    return Case(launch, {"x": x}, {"sum": x.sum(keepdims=True, dtype=np.int32)})


@shows(Shows.POINTERS)
def matmul() -> Case:
    a, b = rng(4).random((100, 70), np.float32), rng(5).random((70, 90), np.float32)
    launch = kernels["matmul<double, 16>"][(6, 7), (16, 16)](
        inp("a"), inp("b"), out("c", dtype="f4", shape=(100, 90)), i32(100), i32(90), i32(70)
    )
    return Case(launch, {"a": a, "b": b}, {"c": a.astype(float) @ b}, 1e-6)


@shows(Shows.POINTERS, Shows.DYNAMIC)
def softmax() -> Case:
    x = rng(6).standard_normal((37, 500)).astype(np.float32)
    rows = kernels["softmax"].launcher(37, 128, shared_memory_bytes=x[0].nbytes)
    e = np.exp(x.astype(float) - x.max(axis=1, keepdims=True))
    launch = rows(inp("x"), out("y", dtype="f4", shape=x.shape), i32(500))
    return Case(launch, {"x": x}, {"y": e / e.sum(axis=1, keepdims=True)}, 1e-6)


@shows(Shows.POINTERS)
def heat() -> Case:
    """Ten steps of heat in a plate, forth and back between two buffers."""
    t = rng(7).random((60, 90), np.float32)
    expected = t.copy()
    for _ in range(10):
        inner = expected[1:-1, 1:-1]
        around = (expected[:-2, 1:-1] + expected[2:, 1:-1]) + (expected[1:-1, :-2] + expected[1:-1, 2:])
        expected[1:-1, 1:-1] = inner + np.float32(0.2) * (around - np.float32(4) * inner)
    step = kernels["heat"][(6, 4), (16, 16)]
    size = i32(60), i32(90)
    there = step(inp("t"), tmp("u", dtype="f4", shape=t.shape), *size)
    back = step(inp("u"), inout("t"), *size)
    return Case([there, back] * 5, {"t": t}, {"t": expected}, 1e-6)


@shows(Shows.POINTERS)
def transpose() -> Case:
    x = rng(8).integers(0, 2**31, (70, 130), dtype=np.int32)
    launch = kernels["transpose"][(5, 3), (32, 8)](inp("x"), out("y", dtype="i4", shape=(130, 70)), i32(130), i32(70))
    return Case(launch, {"x": x}, {"y": np.ascontiguousarray(x.T)})


@shows(Shows.POINTERS, Shows.DYNAMIC)
def histogram() -> Case:
    x = rng(9).integers(0, 100, 20_000, dtype=np.uint8)
    count = kernels["histogram"].launcher(6, 128, shared_memory_bytes=4 * 100)
    launch = count(inp("x"), out("bins", dtype="u4", shape=100), i32(x.size), i32(100))
    return Case(launch, {"x": x}, {"bins": np.bincount(x, minlength=100).astype(np.uint32)})


@shows(Shows.POINTERS, Shows.DYNAMIC)
def scan() -> Case:
    """Inclusive sums of each row, by doubling distances."""
    x = rng(10).integers(0, 1000, (5, 512), dtype=np.int32)
    rows = kernels["scan"].launcher(5, 512, shared_memory_bytes=x[0].nbytes)
    launch = rows(inp("x"), out("y", dtype="i4", shape=x.shape))
    return Case(launch, {"x": x}, {"y": np.cumsum(x, axis=1, dtype=np.int32)})


VIEW = np.dtype([("data", "u8"), ("shape", "i4", 2), ("strides", "i8", 2)], align=True)


def view(x: np.ndarray) -> np.void:
    """Return the struct that the kernels have for an array of two dimensions."""
    return np.array((0, x.shape, x.strides), VIEW)[()]


@shows(Shows.VIEWS)
def strided_views() -> Case:
    """The same kernel on rows and on columns."""
    x = rng(11).random((40, 50), np.float32)
    args = packed(view(x.T), {"data": inp("x")}), packed(view(x), {"data": out("y", dtype="f4", shape=(50, 40))})
    made = np.empty((50, 40), np.float32)
    launch = kernels["copy_view"][(2, 4), (32, 16)](args[0], packed(view(made), {"data": args[1].buffers[0][1]}))
    return Case(launch, {"x": x}, {"y": np.ascontiguousarray(x.T)})


@shows(Shows.POINTERS, Shows.STRUCTS)
def gravity() -> Case:
    """Accelerations of bodies; what holds for all of them is a struct."""
    bodies = rng(12).random((200, 4), np.float32)
    settings = np.array((6.5, 1e-2, 200), np.dtype([("g", "f8"), ("softening", "f4"), ("count", "i4")], align=True))[()]
    d = bodies[None, :, :3].astype(float) - bodies[:, None, :3]
    distance = (d**2).sum(axis=2) + 1e-2
    expected = 6.5 * (d * (bodies[:, 3] / distance**1.5)[..., None]).sum(axis=1)
    launch = kernels["gravity"][4, 64](packed(settings), inp("bodies"), out("a", dtype="f4", shape=(200, 3)))
    return Case(launch, {"bodies": bodies}, {"a": expected}, 1e-5)


@shows(Shows.STRUCTS)
def vectors_by_value() -> Case:
    """A ``float4`` and a matrix of 3 x 4 move points."""
    points = rng(13).random((300, 3), np.float32)
    matrix = rng(14).random((3, 4), np.float32)
    expected = points.astype(float) @ matrix[:, :3].astype(float).T + matrix[:, 3] + [1, 2, 3]
    launch = kernels["move_points"][3, 128](
        packed(matrix.tobytes()), packed(np.float32([1, 2, 3, 0]).tobytes()), inout("points"), i32(300)
    )
    return Case(launch, {"points": points}, {"points": expected}, 1e-6)


@shows(Shows.POINTERS, Shows.CLUSTER, Shows.DYNAMIC)
def cluster_histogram() -> Case:
    """Bins that are spread over the shared memory of a cluster's blocks."""
    x = rng(15).integers(0, 256, 30_000, dtype=np.uint8)
    count = kernels["cluster_histogram"].launcher(8, 128, shared_memory_bytes=64 * 4)
    launch = count(inp("x"), out("bins", dtype="u4", shape=256), i32(x.size), cluster=4)
    return Case(launch, {"x": x}, {"bins": np.bincount(x, minlength=256).astype(np.uint32)})


@shows(Shows.POINTERS)
def mandelbrot() -> Case:
    c = (np.linspace(-2, 1, 90) + 1j * np.linspace(-1.2, 1.2, 60)[:, None]).astype(np.complex128)
    z, counts = np.zeros_like(c), np.zeros(c.shape, np.int32)
    for _ in range(50):
        inside = np.abs(z.real**2 + z.imag**2) <= 4
        counts += inside
        z = np.where(inside, z * z + c, z)
    launch = kernels["mandelbrot"][(3, 8), (32, 8)](inp("c"), out("n", dtype="i4", shape=c.shape), i32(90), i32(60), i32(50))
    return Case(launch, {"c": c}, {"n": counts})


@shows(Shows.POINTERS)
def half_precision() -> Case:
    x, y = rng(16).random((2, 3000)).astype(np.float16)
    launch = kernels["half_axpy"][12, 128](f32(2), inp("x"), inout("y"), i32(1500))
    return Case(launch, {"x": x, "y": y}, {"y": (2 * x.astype(np.float32) + y).astype(np.float16)})


@shows(Shows.POINTERS)
def bitonic_sort() -> Case:
    x = rng(17).integers(0, 2**32, 1024, dtype=np.uint32)
    steps = [(1 << k, 1 << j) for k in range(1, 11) for j in reversed(range(k))]
    launches = [kernels["bitonic_step"][4, 256](inout("x"), u32(size), u32(distance)) for size, distance in steps]
    return Case(launches, {"x": x}, {"x": np.sort(x)})
