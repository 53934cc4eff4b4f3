"""Kernels of floating point: images, grids, linear algebra, Fourier transforms, physics, mathematical functions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.conformance.launching import Call, inout, inp, out, u32
from tests.corpus.running import Check, Corpus, f32, f64, i32, normals, words

WEIGHTS = np.array(
    [
        [0.0039, 0.0156, 0.0234, 0.0156, 0.0039],
        [0.0156, 0.0625, 0.0938, 0.0625, 0.0156],
        [0.0234, 0.0938, 0.1406, 0.0938, 0.0234],
        [0.0156, 0.0625, 0.0938, 0.0625, 0.0156],
        [-0.0039, 0.0156, 0.0234, 0.0156, 0.0039],
    ],
    np.float32,
)


def test_convolution(corpus: Corpus, same_as_gpu: Check) -> None:
    image = normals(1, 30, 50)
    call = Call("convolveKern", (4, 4, 1), (16, 8, 1), [i32(50), i32(30), inp("x"), out("y")])
    results = corpus.run("image", call, x=image, y=np.zeros_like(image))
    padded = np.pad(image.astype(np.float64), 2)
    exact = sum(WEIGHTS[j, i] * padded[j : j + 30, i : i + 50] for j in range(5) for i in range(5))
    np.testing.assert_allclose(results["y"], exact, rtol=1e-5, atol=1e-6)
    same_as_gpu(y=results["y"])


def random_image(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_sobel(corpus: Corpus) -> None:
    image = random_image(2, 33, 45)
    call = Call("sobelKern", (3, 5, 1), (16, 8, 1), [i32(45), i32(33), inp("x"), out("y")])
    results = corpus.run("image", call, x=image, y=np.zeros(image.shape, np.uint16))
    p = np.pad(image.astype(int), 1, mode="edge")
    across = sum(w * (p[j : j + 33, 2:] - p[j : j + 33, :-2]) for j, w in enumerate((1, 2, 1)))
    down = sum(w * (p[2:, i : i + 45] - p[:-2, i : i + 45]) for i, w in enumerate((1, 2, 1)))
    assert np.array_equal(results["y"], np.vectorize(math.isqrt)(across**2 + down**2))


@pytest.mark.parametrize(("width", "height"), [(50, 40), (13, 11)])
def test_bilinear_resize(corpus: Corpus, width: int, height: int) -> None:
    image = random_image(3, 20, 25, 4)
    sizes = [i32(25), i32(20), i32(width), i32(height)]
    call = Call("resizeKern", (4, 5, 1), (16, 8, 1), [*sizes, inp("x"), out("y")])
    results = corpus.run("image", call, x=image, y=np.zeros((height, width, 4), np.uint8))
    u = np.clip((np.arange(width) + 0.5) * 25 / width - 0.5, 0, 24)[None, :, None]
    v = np.clip((np.arange(height) + 0.5) * 20 / height - 0.5, 0, 19)[:, None, None]
    left, top = u.astype(int), v.astype(int)
    right, bottom = np.minimum(left + 1, 24), np.minimum(top + 1, 19)
    a, b, pixels = u - left, v - top, image.astype(np.float64)

    def at(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        return pixels[y[:, 0], x[0, :, 0][None]] if y.ndim == 2 else pixels[y[:, 0, 0][:, None], x[0, :, 0][None]]

    exact = (1 - b) * ((1 - a) * at(top, left) + a * at(top, right)) + b * ((1 - a) * at(bottom, left) + a * at(bottom, right))
    assert np.abs(results["y"] - exact).max() <= 0.501


def test_median(corpus: Corpus) -> None:
    image = random_image(4, 20, 60)
    call = Call("medianKern", (1, 20, 1), 32, [u32(15), u32(20), inp("x"), out("y")])
    results = corpus.run("image", call, x=image.view(np.uint32), y=np.zeros((20, 15), np.uint32))
    p = np.pad(image, 1, mode="edge")
    neighbours = np.stack([p[j : j + 20, i : i + 60] for j in range(3) for i in range(3)])
    assert np.array_equal(results["y"].view(np.uint8), np.median(neighbours, axis=0))


def test_integral_image(corpus: Corpus) -> None:
    image = random_image(5, 48, 70)
    results = corpus.run(
        "image", Call("integralKern", 1, 48, [u32(70), inp("x"), inout("y")]), x=image, y=np.zeros(image.shape, np.uint32)
    )
    assert np.array_equal(results["y"], image.astype(np.uint32).cumsum(axis=0).cumsum(axis=1))


def test_heat_in_three_dimensions(corpus: Corpus, same_as_gpu: Check) -> None:
    shape = (8, 20, 40)
    a = normals(6, *shape)
    sizes = [i32(40), i32(20), i32(8), f32(0.1)]
    calls = [Call("heatKern", (2, 3, 1), (32, 8, 1), [*sizes, inout(x), inout(y)]) for x, y in ("ab", "ba")]
    results = corpus.run("grid", *calls, iterations=2, a=a, b=np.zeros(shape, np.float32))
    exact = a.astype(np.float64)
    inner = (slice(1, -1),) * 3
    for _ in range(4):
        step = exact.copy()
        total = sum(np.roll(exact, by, axis)[inner] for axis in range(3) for by in (1, -1))
        step[inner] += np.float32(0.1) * (total - 6 * exact[inner])
        exact = step
    np.testing.assert_allclose(results["a"], exact, rtol=1e-5, atol=1e-6)
    same_as_gpu(a=results["a"])


def test_game_of_life(corpus: Corpus) -> None:
    height, width = 30, 70
    cells = (np.random.default_rng(7).random((height, width)) < 0.35).astype(np.uint8)
    calls = [Call("lifeKern", (3, 4, 1), (32, 8, 1), [u32(width), u32(height), inout(x), inout(y)]) for x, y in ("ab", "ba")]
    results = corpus.run("grid", *calls, iterations=3, a=cells, b=np.zeros_like(cells))
    for _ in range(6):
        neighbours = sum(np.roll(cells, (j, i), (0, 1)) for j in (-1, 0, 1) for i in (-1, 0, 1) if (j, i) != (0, 0))
        cells = ((neighbours == 3) | (cells & (neighbours == 2))).astype(np.uint8)
    assert np.array_equal(results["a"], cells)


@pytest.mark.parametrize("julia", [0, 1])
def test_mandelbrot(corpus: Corpus, same_as_gpu: Check, julia: int) -> None:
    width, height, limit = 60, 40, 80
    low, step, c = (-2.0, -1.2), (0.05, 0.06), (-0.8, 0.156)
    arguments = [u32(width), u32(height), *(b"".join(map(f64, pair)) for pair in (low, step)), i32(julia)]
    call = Call("mandelbrotKern", (2, 5, 1), (32, 8, 1), [*arguments, b"".join(map(f64, c)), u32(limit), out("y")])
    results = corpus.run("grid", call, y=np.zeros((height, width), np.uint32))
    z = (low[0] + np.arange(width) * step[0])[None, :] + 1j * (low[1] + np.arange(height) * step[1])[:, None]
    constant = np.full_like(z, complex(*c)) if julia else z
    counts = np.zeros(z.shape, int)
    for _ in range(limit):
        inside = z.real**2 + z.imag**2 <= 4
        counts += inside
        z = np.where(inside, z * z + constant, z)
    # On the boundary the last bit decides when a point escapes: the device fuses its products, NumPy does not.
    assert (results["y"] != counts).mean() < 0.01
    same_as_gpu(**{f"y{julia}": results["y"]})


def test_wave(corpus: Corpus, same_as_gpu: Check) -> None:
    n = 300
    x = np.sin(2 * np.pi * np.arange(n) / n)
    grid, block = 3, 128
    names = ("abc", "bca", "cab")
    calls = [
        Call("waveKern", grid, block, [u32(n), f64(0.25), inout(a), inout(b), inout(c)], 8 * (block + 2)) for a, b, c in names
    ]
    results = corpus.run("grid", *calls, iterations=10, a=x, b=x.copy(), c=np.zeros(n))
    before, now = x, x
    for _ in range(30):
        before, now = now, 2 * now - before + 0.25 * (np.roll(now, 1) - 2 * now + np.roll(now, -1))
    np.testing.assert_allclose(results["b"], now, rtol=1e-11, atol=1e-12)
    same_as_gpu(b=results["b"])


def test_matrix_vector(corpus: Corpus, same_as_gpu: Check) -> None:
    a, x = normals(8, 37, 256), normals(9, 256)
    call = Call("gemvKern", 10, 128, [u32(37), u32(256), inp("a"), inp("x"), out("y")])
    results = corpus.run("linear", call, a=a, x=x, y=np.zeros(37, np.float32))
    np.testing.assert_allclose(results["y"], a.astype(np.float64) @ x, rtol=1e-5, atol=1e-5)
    same_as_gpu(y=results["y"])


def test_matrix_product(corpus: Corpus, same_as_gpu: Check) -> None:
    generator = np.random.default_rng(10)
    a, b = generator.standard_normal((48, 48)), generator.standard_normal((48, 48))
    call = Call("matmulKern", (3, 3, 1), (16, 16, 1), [u32(48), inp("a"), inp("b"), out("c")])
    results = corpus.run("linear", call, a=a, b=b, c=np.zeros((48, 48)))
    np.testing.assert_allclose(results["c"], a @ b, rtol=1e-12, atol=1e-13)
    same_as_gpu(c=results["c"])


def test_lu_decomposition(corpus: Corpus, same_as_gpu: Check) -> None:
    n = 24
    a = np.random.default_rng(11).uniform(-1, 1, (n, n)) + n * np.eye(n)
    calls = [Call("luKern", 1, 128, [u32(n), u32(k), inout("a")]) for k in range(n - 1)]
    results = corpus.run("linear", *calls, a=a)
    lower, upper = np.tril(results["a"], -1) + np.eye(n), np.triu(results["a"])
    np.testing.assert_allclose(lower @ upper, a, rtol=1e-13, atol=1e-13)
    same_as_gpu(a=results["a"])


def sparse_matrix(seed: int, rows: int, columns: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((rows, columns)) * (generator.random((rows, columns)) < 0.15)


def test_sparse_product(corpus: Corpus, same_as_gpu: Check) -> None:
    matrix, x = sparse_matrix(12, 50, 300), np.random.default_rng(13).standard_normal(300)
    matrix[7] = 0
    rows, columns = np.nonzero(matrix)
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=50))]).astype(np.uint32)
    call = Call("spmvKern", 13, 128, [u32(50), inp("starts"), inp("columns"), inp("values"), inp("x"), out("y")])
    results = corpus.run(
        "linear", call, starts=starts, columns=columns.astype(np.uint32), values=matrix[rows, columns], x=x, y=np.ones(50)
    )
    np.testing.assert_allclose(results["y"], matrix @ x, rtol=1e-12, atol=1e-13)
    same_as_gpu(y=results["y"])


def test_sparse_product_in_ellpack(corpus: Corpus) -> None:
    matrix, x = sparse_matrix(14, 60, 40).astype(np.float32), normals(15, 40)
    width = int((matrix != 0).sum(axis=1).max())
    columns, values = np.full((width, 60), 0xFFFFFFFF, np.uint32), np.zeros((width, 60), np.float32)
    expected = np.zeros(60, np.float32)
    for row in range(60):
        for i, column in enumerate(np.flatnonzero(matrix[row])):
            columns[i, row], values[i, row] = column, matrix[row, column]
            expected[row] += matrix[row, column] * x[column]
    call = Call("spmvEllKern", 1, 64, [u32(60), u32(width), inp("columns"), inp("values"), inp("x"), out("y")])
    results = corpus.run("linear", call, columns=columns, values=values, x=x, y=np.zeros(60, np.float32))
    assert np.array_equal(results["y"], expected)


def test_step_of_k_means(corpus: Corpus) -> None:
    n, k = 500, 7
    points = (np.random.default_rng(16).integers(-2000, 2000, (n, 2)) / 256).astype(np.float32)
    centres = points[:k].copy()
    arguments = [u32(n), u32(k), inp("points"), inp("centres"), out("nearest"), inout("sums"), inout("counts")]
    results = corpus.run(
        "linear",
        Call("kmeansKern", 4, 128, arguments, 8 * k),
        points=points,
        centres=centres,
        nearest=np.zeros(n, np.uint32),
        sums=np.zeros((k, 2), np.float32),
        counts=np.zeros(k, np.uint32),
    )
    distance = ((points[:, None].astype(np.float64) - centres[None]) ** 2).sum(axis=2)
    nearest = results["nearest"]
    np.testing.assert_allclose(distance[np.arange(n), nearest], distance.min(axis=1), rtol=1e-6)
    assert np.array_equal(results["counts"], np.bincount(nearest, minlength=k))
    assert np.array_equal(results["sums"], [points[nearest == j].sum(axis=0, dtype=np.float64) for j in range(k)])


def test_complex_numbers(corpus: Corpus, same_as_gpu: Check) -> None:
    generator = np.random.default_rng(17)
    a, b, c = (generator.standard_normal(100) + 1j * generator.standard_normal(100) for _ in range(3))
    call = Call("complexKern", 1, 128, [u32(100), inp("a"), inp("b"), inp("c"), out("z")])
    results = corpus.run("linear", call, a=a, b=b, c=c, z=np.zeros(100, complex))
    np.testing.assert_allclose(results["z"], a * b + c.conj(), rtol=1e-13)
    same_as_gpu(z=results["z"].view(np.float64))


def test_fourier_transform(corpus: Corpus, same_as_gpu: Check) -> None:
    x = normals(18, 3, 256, 2)
    results = corpus.run("fourier", Call("fftKern", 3, 128, [inp("x"), out("y")]), x=x, y=np.zeros_like(x))
    exact = np.fft.fft(x[..., 0] + 1j * x[..., 1].astype(np.float64), axis=1)
    np.testing.assert_allclose(results["y"][..., 0] + 1j * results["y"][..., 1], exact, atol=5e-5)
    same_as_gpu(y=results["y"])


def test_fourier_transform_in_double_precision(corpus: Corpus, same_as_gpu: Check) -> None:
    generator = np.random.default_rng(19)
    x = generator.standard_normal((2, 256)) + 1j * generator.standard_normal((2, 256))
    twiddles = np.exp(-2j * np.pi * np.arange(128) / 256)
    call = Call("fftDoubleKern", 2, 128, [inp("w"), inp("x"), out("y")])
    results = corpus.run("fourier", call, w=twiddles, x=x, y=np.zeros_like(x))
    np.testing.assert_allclose(results["y"], np.fft.fft(x, axis=1), atol=1e-12)
    same_as_gpu(y=results["y"].view(np.float64))


def test_n_bodies(corpus: Corpus) -> None:
    n = 150
    bodies = np.abs(normals(20, n, 4))
    call = Call("nbodyKern", 3, 64, [u32(n), f32(0.01), inp("x"), out("a")], 64 * 16)
    results = corpus.run("physics", call, x=bodies, a=np.zeros((n, 3), np.float32))
    wide = bodies.astype(np.float64)
    apart = wide[None, :, :3] - wide[:, None, :3]
    distance = (apart**2).sum(axis=2) + np.float32(0.01)
    exact = (apart * (wide[:, 3] * distance**-1.5)[..., None]).sum(axis=1)
    np.testing.assert_allclose(results["a"], exact, rtol=2e-4, atol=2e-3)


def test_lennard_jones(corpus: Corpus, same_as_gpu: Check) -> None:
    n, side = 64, 6.0
    grid = np.stack(np.meshgrid(*[np.arange(4) * 1.5] * 3), axis=-1).reshape(n, 3)
    places = grid + np.random.default_rng(21).uniform(-0.2, 0.2, (n, 3))
    call = Call("lennardJonesKern", 1, 64, [u32(n), f64(side), inp("x"), out("e")])
    results = corpus.run("physics", call, x=places, e=np.zeros(n))
    apart = places[None] - places[:, None]
    apart -= side * np.rint(apart / side)
    sixth = ((apart**2).sum(axis=2) + np.diag(np.full(n, np.inf))) ** -3.0
    np.testing.assert_allclose(results["e"], (4 * sixth * (sixth - 1)).sum(axis=1) / 2, rtol=1e-11)
    same_as_gpu(e=results["e"])


def test_black_scholes(corpus: Corpus) -> None:
    n, rate, volatility = 300, np.float32(0.03), np.float32(0.25)
    generator = np.random.default_rng(22)
    price, strike, years = (generator.uniform(a, b, n).astype(np.float32) for a, b in ((20, 60), (20, 60), (0.1, 3)))
    arguments = [u32(n), f32(rate), f32(volatility), *(inp(name) for name in "psy"), out("call"), out("put")]
    zeros = np.zeros(n, np.float32)
    results = corpus.run(
        "physics", Call("blackScholesKern", 3, 128, arguments), p=price, s=strike, y=years, call=zeros, put=zeros
    )
    p, s, y = (x.astype(np.float64) for x in (price, strike, years))
    spread = volatility * np.sqrt(y)
    d1 = (np.log(p / s) + (rate + float(volatility) ** 2 / 2) * y) / spread
    normal = np.vectorize(lambda x: math.erfc(-x / math.sqrt(2)) / 2)
    discounted = s * np.exp(-float(rate) * y)
    call = p * normal(d1) - discounted * normal(d1 - spread)
    np.testing.assert_allclose(results["call"], call, rtol=1e-4, atol=5e-5)
    np.testing.assert_allclose(results["put"], call - p + discounted, rtol=1e-4, atol=5e-5)


def test_integration(corpus: Corpus, same_as_gpu: Check) -> None:
    upper = np.linspace(0, 4, 100)
    call = Call("simpsonKern", 1, 128, [u32(100), inp("x"), out("y")])
    results = corpus.run("physics", call, x=upper, y=np.zeros(100))
    x = upper[:, None] * np.arange(65) / 64
    weights = np.where(np.arange(65) % 2, 4, 2)
    weights[[0, 64]] = 1
    np.testing.assert_allclose(results["y"], (np.sin(x * x) * weights).sum(axis=1) * upper / 192, rtol=1e-13, atol=1e-15)
    same_as_gpu(y=results["y"])


def test_lorenz_attractor(corpus: Corpus, same_as_gpu: Check) -> None:
    points = np.random.default_rng(23).uniform(-10, 10, (64, 3))
    results = corpus.run("physics", Call("rungeKuttaKern", 1, 64, [u32(64), u32(50), f64(0.01), inout("p")]), p=points)

    def slope(p: np.ndarray) -> np.ndarray:
        x, y, z = p.T
        return np.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], axis=1)

    exact = points
    for _ in range(50):
        a = slope(exact)
        b = slope(exact + 0.005 * a)
        c = slope(exact + 0.005 * b)
        exact = exact + 0.01 / 6 * (a + 2 * b + 2 * c + slope(exact + 0.01 * c))
    np.testing.assert_allclose(results["p"], exact, rtol=1e-10)
    same_as_gpu(p=results["p"])


FUNCTIONS = ["sin", "cos", "tan", "exp", "log", "pow", "tanh", "asin", "atan", "cbrt", "log1p", "expm1", "erf", "lgamma"]
REFERENCES = [
    np.sin,
    np.cos,
    np.tan,
    lambda x: np.exp(x / 8),
    lambda x: np.log(np.abs(x)),
    lambda x: np.abs(x) ** 1.7,
    np.tanh,
    lambda x: np.arcsin(x / (1 + np.abs(x))),
    np.arctan,
    np.cbrt,
    lambda x: np.log1p(np.abs(x)),
    lambda x: np.expm1(x / (1 + np.abs(x))),
    np.vectorize(lambda x: math.erf(x / 8)),
    np.vectorize(lambda x: math.lgamma(abs(x) + 0.5)),
]
EXACT = {"float32": ("sin", "cos", "log"), "float64": [name for name in FUNCTIONS if name != "cbrt"]}
"""Those whose every bit PTX defines. The others rest on ``.approx`` instructions, as far as no later step corrects them."""


@pytest.mark.parametrize(("kernel", "kind", "tolerance"), [("floatsKern", np.float32, 1e-5), ("doublesKern", np.float64, 1e-13)])
def test_mathematical_functions(
    corpus: Corpus, same_as_gpu: Check, kernel: str, kind: type[np.floating], tolerance: float
) -> None:
    generator = np.random.default_rng(24)
    x = np.concatenate(
        [generator.uniform(-50, 50, 200), generator.uniform(-1e6, 1e6, 28) if kind is np.float64 else [], [0.5, 1.0]]
    )
    x = x.astype(kind)
    call = Call(kernel, 2, 128, [u32(len(x)), inp("x"), out("y")])
    results = corpus.run("functions", call, x=x, y=np.zeros((14, len(x)), kind))
    wide = x.astype(np.float64)
    for name, row, reference in zip(FUNCTIONS, results["y"], REFERENCES, strict=True):
        with np.errstate(over="ignore"):
            exact = reference(wide)
        limit = np.finfo(kind)
        close = np.abs(exact) < float(limit.max)
        np.testing.assert_allclose(row[close], exact[close], rtol=tolerance, atol=tolerance, err_msg=name)
        if name in EXACT[np.dtype(kind).name]:
            same_as_gpu(**{f"{name}{limit.bits}": row})


def test_fast_functions(corpus: Corpus) -> None:
    x = np.random.default_rng(25).uniform(0.1, 3.1, 200).astype(np.float32)
    results = corpus.run(
        "functions", Call("fastKern", 2, 128, [u32(200), inp("x"), out("y")]), x=x, y=np.zeros((8, 200), np.float32)
    )
    wide = x.astype(np.float64)
    # The bounds of the CUDA programming guide, where x is in [-pi, pi].
    assert np.abs(results["y"][0] - np.sin(wide)).max() <= 2**-21.41
    assert np.abs(results["y"][1] - np.cos(wide)).max() <= 2**-21.19
    np.testing.assert_allclose(results["y"][2], np.exp(wide), rtol=1e-6)
    np.testing.assert_allclose(results["y"][3], np.log(wide), rtol=1e-6, atol=2**-21)
    np.testing.assert_allclose(results["y"][4], wide**1.5, rtol=2e-6)
    np.testing.assert_allclose(results["y"][5], 1 / wide, rtol=2**-22)
    near = np.abs(np.cos(wide)) > 0.1
    np.testing.assert_allclose(results["y"][6][near], np.tan(wide)[near], rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(results["y"][7], wide**-0.5, rtol=2**-22)


def test_rounding_modes(corpus: Corpus, same_as_gpu: Check) -> None:
    x = np.concatenate([normals(26, 180) * 100, words(27, 60).view(np.float32)])
    x = x[np.isfinite(x)][:200].copy()
    count = len(x)
    call = Call("roundingKern", 2, 128, [u32(count), inp("x"), out("y")])
    results = corpus.run("functions", call, x=x, y=np.zeros((20, count), np.float32))
    rows, third = results["y"], np.float64(np.float32(1) / 3)
    simple = [np.floor, np.ceil, np.trunc, np.rint, lambda v: np.fmod(v, np.float32(3))]
    simple += [np.vectorize(lambda v: math.remainder(float(v), 3.0)), lambda v: v * np.float32(8), lambda v: np.frexp(v)[0]]
    for row, reference in zip(rows, simple, strict=False):
        with np.errstate(over="ignore"):
            assert np.array_equal(row, reference(x).astype(np.float32))
    wide = x.astype(np.longdouble)
    for start, exact in ((8, wide / third), (12, wide * third), (16, wide + third)):
        nearest, towards_zero, up, down = rows[start : start + 4]
        with np.errstate(over="ignore"):
            if start != 8:  # a product has 48 bits and fits; for a sum or quotient the bounds below say as much
                assert np.array_equal(nearest, exact.astype(np.float32))
        assert np.all(down <= exact) and np.all(up >= exact)
        assert np.array_equal(towards_zero, np.where(exact > 0, down, up))
        same = (down == up) | (np.nextafter(down, np.float32(np.inf)) == up)
        assert np.all(same)
        assert np.all((nearest == down) | (nearest == up))
    same_as_gpu(y=rows)
