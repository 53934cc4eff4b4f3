"""Warp, in the manner of its documentation's examples. Warp reads this file again, so each kernel stands at its top."""

from __future__ import annotations

import numpy as np
import warp as wp

from kaas_client import inout, inp, out
from kaas_client.kernels import warp
from tests.kernels.catalogue import Case, Shows, shows


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@wp.kernel
def add_kernel(x: wp.array(dtype=float), y: wp.array(dtype=float), z: wp.array(dtype=float)):
    i = wp.tid()
    z[i] = x[i] + y[i]


@shows(Shows.VIEWS)
def add() -> Case:
    x, y = rng(1).random((2, 3000), np.float32)
    launch = warp(add_kernel)[3000](inp("x"), inp("y"), out("z", dtype="f4", shape=3000))
    return Case(launch, {"x": x, "y": y}, {"z": x + y})


@wp.kernel
def matmul_kernel(a: wp.array2d(dtype=wp.float64), b: wp.array2d(dtype=wp.float64), c: wp.array2d(dtype=wp.float64)):
    i, j = wp.tid()
    total = wp.float64(0.0)
    for k in range(a.shape[1]):
        total += a[i, k] * b[k, j]
    c[i, j] = total


@shows(Shows.VIEWS)
def matmul() -> Case:
    a, b = rng(2).random((30, 20)), rng(3).random((20, 25))
    launch = warp(matmul_kernel)[30, 25](inp("a"), inp("b"), out("c", dtype="f8", shape=(30, 25)))
    return Case(launch, {"a": a, "b": b}, {"c": a @ b}, 1e-13)


@wp.kernel
def diffuse_kernel(t: wp.array2d(dtype=float), u: wp.array2d(dtype=float), rate: float):
    i, j = wp.tid()
    rows, columns = t.shape[0], t.shape[1]
    around = t[wp.max(i - 1, 0), j] + t[wp.min(i + 1, rows - 1), j] + t[i, wp.max(j - 1, 0)] + t[i, wp.min(j + 1, columns - 1)]
    u[i, j] = t[i, j] + rate * (around - 4.0 * t[i, j])


@shows(Shows.VIEWS)
def diffusion() -> Case:
    t = rng(4).random((40, 50), np.float32)
    p = np.pad(t, 1, "edge")
    around = p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:]
    launch = warp(diffuse_kernel)[40, 50](inp("t"), out("u", dtype="f4", shape=t.shape), 0.2)
    return Case(launch, {"t": t}, {"u": t + np.float32(0.2) * (around - 4 * t)}, 1e-6)


@wp.kernel
def sum_kernel(x: wp.array(dtype=int), total: wp.array(dtype=int)):
    wp.atomic_add(total, 0, x[wp.tid()])


@shows(Shows.VIEWS)
def reduction() -> Case:
    x = rng(5).integers(-1000, 1000, 3000, dtype=np.int32)
    launch = warp(sum_kernel)[3000](inp("x"), out("total", dtype="i4", shape=1))
    return Case(launch, {"x": x}, {"total": x.sum(keepdims=True, dtype=np.int32)})


@wp.kernel
def fall_kernel(x: wp.array(dtype=wp.vec3), v: wp.array(dtype=wp.vec3), gravity: wp.vec3, dt: float):
    i = wp.tid()
    v[i] = v[i] + gravity * dt
    x[i] = x[i] + v[i] * dt
    if x[i][1] < 0.0:
        x[i] = wp.vec3(x[i][0], -x[i][1], x[i][2])
        v[i] = wp.vec3(v[i][0], -v[i][1], v[i][2])


@shows(Shows.VIEWS, Shows.STRUCTS)
def falling_particles() -> Case:
    """Arrays of vectors, and a vector by value."""
    x, v = rng(6).random((2, 500, 3), np.float32)
    launch = warp(fall_kernel)[500](inout("x"), inout("v"), (0.0, -9.81, 0.0), 0.05)
    after = v + np.float32([0, -9.81, 0]) * np.float32(0.05)
    moved = x + after * np.float32(0.05)
    below = moved[:, 1] < 0
    moved[below, 1], after[below, 1] = -moved[below, 1], -after[below, 1]
    return Case(launch, {"x": x, "v": v}, {"x": moved, "v": after}, 1e-6)


@wp.kernel
def rotate_kernel(x: wp.array(dtype=wp.vec3), turn: wp.mat33, y: wp.array(dtype=wp.vec3)):
    i = wp.tid()
    y[i] = turn * x[i]


@shows(Shows.VIEWS, Shows.STRUCTS)
def rotation() -> Case:
    """A matrix by value."""
    x = rng(7).random((200, 3), np.float32)
    turn = np.linalg.qr(rng(8).standard_normal((3, 3)))[0].astype(np.float32)
    launch = warp(rotate_kernel)[200](inp("x"), tuple(map(float, turn.ravel())), out("y", dtype="f4", shape=x.shape))
    return Case(launch, {"x": x}, {"y": x.astype(float) @ turn.T.astype(float)}, 1e-6)


@wp.kernel
def gather_kernel(table: wp.array2d(dtype=float), index: wp.array(dtype=int), found: wp.array2d(dtype=float)):
    i, j = wp.tid()
    found[i, j] = table[index[i], j]


@shows(Shows.VIEWS)
def gather() -> Case:
    table, index = rng(9).random((100, 16), np.float32), rng(10).integers(0, 100, 40, dtype=np.int32)
    launch = warp(gather_kernel)[40, 16](inp("table"), inp("index"), out("found", dtype="f4", shape=(40, 16)))
    return Case(launch, {"table": table, "index": index}, {"found": table[index]})


@wp.func
def collatz_steps(n: int):
    steps = int(0)  # noqa: RUF046, UP018  # Otherwise it is a constant to Warp, which a loop cannot change.
    while n != 1:
        if n % 2 == 0:  # noqa: SIM108  # Warp has no such expression.
            n = n // 2
        else:
            n = 3 * n + 1
        steps += 1
    return steps


@wp.kernel
def collatz_kernel(steps: wp.array(dtype=int)):
    i = wp.tid()
    steps[i] = collatz_steps(i + 1)


@shows(Shows.VIEWS)
def collatz() -> Case:
    expected = []
    for n in range(1, 201):
        count = 0
        while n != 1:
            n, count = (n // 2 if n % 2 == 0 else 3 * n + 1), count + 1
        expected.append(count)
    launch = warp(collatz_kernel)[200](out("steps", dtype="i4", shape=200))
    return Case(launch, {}, {"steps": np.array(expected, np.int32)})


@wp.kernel
def tile_sum_kernel(x: wp.array2d(dtype=float), sums: wp.array(dtype=float)):
    i, _thread = wp.tid()
    row = wp.tile_load(x, shape=(1, 256), offset=(i, 0), storage="shared")
    wp.tile_store(sums, wp.tile_sum(row), offset=i)


@shows(Shows.VIEWS, Shows.DYNAMIC)
def tiles() -> Case:
    """The sum of each row, which a block of Warp's own 256 threads holds in shared memory."""
    x = rng(11).random((20, 256), np.float32)
    launch = warp(tile_sum_kernel)[20, 256](inp("x"), out("sums", dtype="f4", shape=20))
    return Case(launch, {"x": x}, {"sums": x.sum(axis=1, dtype=float)}, 1e-6)
