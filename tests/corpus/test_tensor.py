"""Kernels of narrow floating point, tensor cores and asynchronous copies."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conformance.launching import Call, inout, inp, out, u32
from tests.corpus.running import Check, Corpus, normals, words


def to_bfloat(values: np.ndarray) -> np.ndarray:
    """float32 to the bits of bfloat16, to nearest even. No NaN."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bfloat(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def halves(seed: int, *shape: int) -> np.ndarray:
    return normals(seed, *shape).astype(np.float16)


def fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c of half or bfloat16 values before rounding: exact in float64, whose 53 bits hold such a sum of normal numbers."""
    return a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)


def test_axpy_of_halves(corpus: Corpus, same_as_gpu: Check) -> None:
    x, y = halves(1, 200), halves(2, 200)
    a = np.array([1.5, -0.37], np.float16)
    call = Call("axpyKern", 1, 128, [u32(100), a.tobytes(), inp("x"), inout("y")])
    results = corpus.run("half", call, x=x, y=y)
    assert np.array_equal(results["y"], fused(np.tile(a, 100), x, y).astype(np.float16))
    same_as_gpu(y=results["y"])


def test_arithmetic_of_halves(corpus: Corpus, same_as_gpu: Check) -> None:
    a = np.concatenate([halves(3, 400), words(4, 200).view(np.float16)[:100], np.array([0, -0.0, 65504, -65504], np.float16)])
    b = np.concatenate([halves(5, 400), words(6, 200).view(np.float16)[:100], np.array([-0.0, 0, 65504, 1], np.float16)])
    finite = np.isfinite(a) & np.isfinite(b)
    a, b = a[finite], b[finite]
    count = len(a)
    call = Call("arithmeticKern", 4, 128, [u32(count), inp("a"), inp("b"), out("y")])
    results = corpus.run("half", call, a=a, b=b, y=np.zeros((12, count), np.float16))
    wide, other = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(all="ignore"):
        expected = [wide + other, wide - other, wide * other, None, wide * other + 0.5, np.minimum(wide, other)]
        expected += [
            np.maximum(wide, other),
            np.abs(wide),
            -wide,
            np.floor(wide),
            np.rint(wide),
            np.maximum(wide * other + 0.5, 0),
        ]
        for row, exact in zip(results["y"], expected, strict=True):
            if exact is not None:
                assert np.array_equal(row, exact.astype(np.float16))
        normal = np.abs(wide / other) > 1e-4
        np.testing.assert_allclose(results["y"][3][normal].astype(float), (wide / other).astype(np.float16)[normal], rtol=2**-10)
    same_as_gpu(**{f"row{i}": row for i, row in enumerate(results["y"]) if i != 3})


def test_comparisons_of_halves(corpus: Corpus) -> None:
    a, b = words(7, 128).view(np.float16), words(8, 128).view(np.float16).copy()
    b[::3] = a[::3]
    b[1] = np.nan
    a[5], b[5] = 0.0, -0.0
    call = Call("compareKern", 2, 128, [u32(256), inp("a"), inp("b"), out("y")])
    results = corpus.run("half", call, a=a, b=b, y=np.zeros((7, 256), np.uint16))
    equal, same = a == b, b == b
    expected = [equal, a < b, a <= b, a > b, a != b, np.isnan(a)]
    assert np.array_equal(results["y"][:6], expected)
    mask = np.where(equal, 0xFFFF, 0).astype(np.uint32) | np.where(same, 0xFFFF0000, 0).astype(np.uint32)
    assert np.array_equal(results["y"][6], (mask ^ mask >> 8).astype(np.uint16))


def test_conversions_of_halves(corpus: Corpus, same_as_gpu: Check) -> None:
    x = np.concatenate(
        [normals(9, 200) * 1000, normals(10, 50) * 1e-6, np.array([65519, 65520, 1e6, -1e6, 0.5, 1.5], np.float32)]
    )
    x = x.astype(np.float32)
    count = len(x)
    results = corpus.run(
        "half", Call("convertKern", 2, 128, [u32(count), inp("x"), out("y")]), x=x, y=np.zeros((8, count), np.uint32)
    )
    with np.errstate(over="ignore"):
        nearest = x.astype(np.float16)
    assert np.array_equal(results["y"][0], nearest.view(np.uint16))
    towards_zero, up, down = (results["y"][row].astype(np.uint16).view(np.float16) for row in (1, 2, 3))
    assert np.all(down.astype(np.float64) <= x) and np.all(up.astype(np.float64) >= x)
    assert np.array_equal(towards_zero, np.where(x > 0, down, up))
    with np.errstate(over="ignore"):
        assert np.all((down == up) | (np.nextafter(down, np.float16(np.inf)) == up))
    integers = np.clip(np.rint(nearest.astype(np.float64)), -(2.0**31), 2.0**31 - 1).astype(np.int64)
    assert np.array_equal(results["y"][4].view(np.int32), integers)
    assert np.array_equal(results["y"][5], np.clip(np.trunc(nearest.astype(np.float64)), 0, 65535).astype(np.uint32))
    assert np.array_equal(results["y"][6].view(np.float32), nearest.astype(np.float32))
    with np.errstate(over="ignore"):
        assert np.array_equal(results["y"][7], np.trunc(x).astype(np.int64).astype(np.float16).view(np.uint16))
    same_as_gpu(y=results["y"])


def test_dot_products_of_halves(corpus: Corpus, same_as_gpu: Check) -> None:
    a, b = halves(11, 50, 64), halves(12, 50, 64)
    call = Call("dotKern", 1, 64, [u32(50), inp("a"), inp("b"), out("y")])
    results = corpus.run("half", call, a=a, b=b, y=np.zeros(50, np.float32))
    expected = np.zeros(50, np.float32)
    for start in range(0, 64, 8):
        part = np.zeros((50, 2), np.float16)
        for i in range(start, start + 8, 2):
            part = fused(a[:, i : i + 2], b[:, i : i + 2], part).astype(np.float16)
        expected += part[:, 0].astype(np.float32) + part[:, 1].astype(np.float32)
    assert np.array_equal(results["y"], expected)
    same_as_gpu(y=results["y"])


def test_functions_of_halves(corpus: Corpus) -> None:
    x = np.random.default_rng(13).uniform(0.1, 9, 250).astype(np.float16)
    results = corpus.run(
        "half", Call("functionsKern", 2, 128, [u32(250), inp("x"), out("y")]), x=x, y=np.zeros((7, 250), np.float16)
    )
    wide = x.astype(np.float64)
    exact = [np.sqrt(wide), wide**-0.5, 2**wide, np.log2(wide), np.sin(wide), np.cos(wide), 1 / wide]
    for row, values in zip(results["y"], exact, strict=True):
        np.testing.assert_allclose(row.astype(np.float64), values, rtol=2**-9.9, atol=2**-14)


def test_arithmetic_of_bfloats(corpus: Corpus, same_as_gpu: Check) -> None:
    a, b = to_bfloat(normals(14, 300)), to_bfloat(normals(15, 300))
    call = Call("arithmeticKern", 3, 128, [u32(300), inp("a"), inp("b"), out("y")])
    results = corpus.run("bfloat", call, a=a, b=b, y=np.zeros((8, 300), np.uint16))
    x, y = from_bfloat(a), from_bfloat(b)
    # A sum or product of two is exact in float32 or differs from a tie; a fused one is rounded from float64, twice only if
    # its 53 bits end in a tie of float32, which these do not.
    expected = [x + y, x - y, x * y, fused(x, y, y), np.minimum(x, y), np.maximum(x, y), np.abs(x), -x]
    for row, exact in zip(results["y"], expected, strict=True):
        assert np.array_equal(row, to_bfloat(exact))
    same_as_gpu(y=results["y"])


def test_pairs_of_bfloats(corpus: Corpus, same_as_gpu: Check) -> None:
    a, b = to_bfloat(normals(16, 200)), to_bfloat(normals(17, 200))
    call = Call("pairsKern", 1, 128, [u32(100), inp("a"), inp("b"), out("y")])
    results = corpus.run("bfloat", call, a=a, b=b, y=np.zeros((3, 200), np.uint16))
    x, y = from_bfloat(a), from_bfloat(b)
    for row, exact in zip(results["y"], [np.maximum(fused(x, y, y), 0), x + y, np.maximum(x, y)], strict=True):
        assert np.array_equal(row, to_bfloat(exact))
    same_as_gpu(y=results["y"])


def test_conversions_of_bfloats(corpus: Corpus, same_as_gpu: Check) -> None:
    x = np.concatenate([normals(18, 240) * 1000, np.array([0.0, -0.0, 1.00390625, 1.01171875], np.float32)])
    count = len(x)
    call = Call("convertKern", 2, 128, [u32(count), inp("x"), out("y")])
    results = corpus.run("bfloat", call, x=x, y=np.zeros((6, count), np.uint32))
    bits = x.view(np.uint32)
    away, nearest = ((bits >> 16) + (bits & 0xFFFF > 0)).astype(np.uint16), to_bfloat(x)
    assert np.array_equal(results["y"][0], nearest)
    assert np.array_equal(results["y"][1], bits >> 16)
    assert np.array_equal(results["y"][2], np.where(x > 0, away, bits >> 16))
    assert np.array_equal(results["y"][3], np.where(x > 0, bits >> 16, away))
    assert np.array_equal(results["y"][4].view(np.int32), np.trunc(from_bfloat(nearest)))
    assert np.array_equal(results["y"][5], to_bfloat(np.trunc(x) + np.float32(0)))
    same_as_gpu(y=results["y"])


def test_atomic_sum_of_bfloats(corpus: Corpus) -> None:
    pairs = words(19, 200, 3).astype(np.float32).reshape(100, 2) - 1
    call = Call("sumKern", 1, 128, [u32(100), inp("x"), inout("total")])
    results = corpus.run("bfloat", call, x=to_bfloat(pairs), total=np.zeros(2, np.uint16))
    assert np.array_equal(from_bfloat(results["total"]), pairs.sum(axis=0))


def eight_bit_values(exponent_bits: int, mantissa_bits: int, infinities: bool) -> np.ndarray:
    """The 128 values of e4m3 or e5m2 without a sign, in order, as the OCP specification gives them."""
    codes = np.arange(128)
    exponent, mantissa = codes >> mantissa_bits, codes & (1 << mantissa_bits) - 1
    bias = (1 << exponent_bits - 1) - 1
    values = np.where(
        exponent == 0,
        mantissa * 2.0 ** (1 - bias - mantissa_bits),
        (1 + mantissa / 2.0**mantissa_bits) * 2.0 ** (exponent - bias),
    )
    if infinities:
        top = exponent == exponent.max()
        values[top] = np.where(mantissa[top] == 0, np.inf, np.nan)
    else:
        values[127] = np.nan
    return values


E4M3, E5M2 = eight_bit_values(4, 3, False), eight_bit_values(5, 2, True)


def to_eight_bits(x: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Codes of the nearest values, of two equally near the even code; too large ones become the largest."""
    finite = table[np.isfinite(table)]
    apart = np.abs(np.abs(x.astype(np.float64))[:, None] - finite)
    code = apart.argmin(axis=1)
    above = np.minimum(code + 1, len(finite) - 1)
    rows = np.arange(len(x))
    code = np.where((code % 2 == 1) & (apart[rows, above] == apart[rows, code]), above, code)
    return (code | np.signbit(x) * 128).astype(np.uint8)


def test_packing_of_eight_bits(corpus: Corpus) -> None:
    x = np.concatenate(
        [normals(20, 300) * 100, normals(21, 80) * 0.01, np.array([448, 464, 500, -1e9, 57344, 1e5, 0, -0.0], np.float32)]
    )
    x = np.concatenate([x, (E4M3[:-2] + E4M3[1:-1]).astype(np.float32) / 2])  # ties
    call = Call("packKern", 2, 256, [u32(len(x) // 2), inp("x"), out("y")])
    results = corpus.run("fp8", call, x=x, y=np.zeros((2, len(x) // 2), np.uint16))
    for row, table in zip(results["y"], (E4M3, E5M2), strict=True):
        assert np.array_equal(row.view(np.uint8), to_eight_bits(x, table))


def test_unpacking_of_eight_bits(corpus: Corpus) -> None:
    results = corpus.run("fp8", Call("unpackKern", 1, 256, [out("y")]), y=np.zeros((2, 256), np.float32))
    for row, table in zip(results["y"], (E4M3, E5M2), strict=True):
        np.testing.assert_array_equal(row, np.concatenate([table, -table]))


def test_quantisation_to_eight_bits(corpus: Corpus, same_as_gpu: Check) -> None:
    x = normals(22, 6, 128)
    call = Call("scaleKern", 6, 32, [inp("x"), out("packed"), out("scales"), out("back")])
    zeros = np.zeros(6, np.float32)
    results = corpus.run("fp8", call, x=x, packed=np.zeros((6, 128), np.uint8), scales=zeros, back=np.zeros_like(x))
    scales = np.abs(x).max(axis=1) / np.float32(448)
    codes = to_eight_bits((x / scales[:, None]).ravel(), E4M3).reshape(6, 128)
    assert np.array_equal(results["scales"], scales)
    assert np.array_equal(results["packed"], codes)
    values = np.where(codes >= 128, -1, 1) * E4M3[codes % 128]
    assert np.array_equal(results["back"], values.astype(np.float32) * scales[:, None])
    same_as_gpu(**{name: results[name] for name in ("packed", "scales", "back")})


M, N = 64, 48


def small(seed: int, rows: int, columns: int, low: int = -4, high: int = 5) -> np.ndarray:
    """Integers whose sums of products no format of the corpus rounds."""
    return np.random.default_rng(seed).integers(low, high, (rows, columns))


def packed(values: np.ndarray, bits: int) -> np.ndarray:
    """Integers of 1 or 4 bits packed into bytes, the first lowest."""
    each = 8 // bits
    parts = (values & (1 << bits) - 1).astype(np.uint8).reshape(len(values), -1, each)
    return np.bitwise_or.reduce(parts << (bits * np.arange(each)).astype(np.uint8), axis=2)


@pytest.mark.parametrize(
    ("kernel", "k", "low", "high"),
    [("int8Kern", 96, -128, 128), ("uint8Kern", 96, -128, 128), ("int4Kern", 128, -8, 8), ("binaryKern", 512, 0, 2)],
)
def test_mma_of_integers(corpus: Corpus, kernel: str, k: int, low: int, high: int) -> None:
    a, b = small(23, M, k, low, high), small(24, k, N, low, high)
    if kernel == "uint8Kern":
        a += 128
    pack = {"int4Kern": lambda x: packed(x, 4), "binaryKern": lambda x: packed(x, 1)}.get(kernel, lambda x: x.astype(np.uint8))
    a_bytes, b_bytes = pack(a), pack(b.T.copy())
    call = Call(kernel, (N // 8, M // 16, 1), 32, [u32(N), u32(a_bytes.shape[1] // 4), inp("a"), inp("b"), out("c")])
    results = corpus.run("mma", call, a=a_bytes, b=b_bytes, c=np.zeros((M, N), np.int32))
    assert np.array_equal(results["c"], a @ b)


KINDS = {"bfloatKern": to_bfloat, "halfKern": np.float16, "halfSumsKern": np.float16, "tf32Kern": np.float32}


def run_mma(corpus: Corpus, kernel: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A product of values that the kernel's kind holds, through its own launch shape."""
    k = a.shape[1]
    convert = KINDS.get(kernel, np.float64)
    shape = {"halfKern": ((N // 16, M // 32, 1), (32, 2, 1)), "doubleKern": ((N // 8, M // 8, 1), (32, 1, 1))}
    grid, block = shape.get(kernel, ((N // 8, M // 16, 1), (32, 1, 1)))
    size = k // 2 if kernel in ("bfloatKern", "halfSumsKern") else k
    sums = {"halfSumsKern": np.float16, "doubleKern": np.float64}.get(kernel, np.float32)
    call = Call(kernel, grid, block, [u32(N), u32(size), inp("a"), inp("b"), out("c")])
    return corpus.run("mma", call, a=convert(a), b=convert(b.T.copy()), c=np.zeros((M, N), sums))["c"]


@pytest.mark.parametrize("kernel", [*KINDS, "doubleKern"])
def test_mma_of_exact_values(corpus: Corpus, kernel: str) -> None:
    a, b = small(25, M, 64), small(26, 64, N)
    assert np.array_equal(run_mma(corpus, kernel, a.astype(np.float32), b.astype(np.float32)), a @ b)


ROUNDING = {"bfloatKern": 2.0**-8, "halfKern": 2.0**-11, "halfSumsKern": 2.0**-11, "tf32Kern": 2.0**-11}
SUMS = {"halfSumsKern": 2.0**-10, "doubleKern": 2.0**-53}


@pytest.mark.parametrize("kernel", [*KINDS, "doubleKern"])
def test_mma_of_random_values(corpus: Corpus, kernel: str) -> None:
    k = 64
    a, b = normals(27, M, k), normals(28, k, N)
    exact, size = a.astype(np.float64) @ b, np.abs(a).astype(np.float64) @ np.abs(b)
    # Each source is rounded once; the sums are of float32 at least as good as one that truncates after each addition.
    bound = (2 * ROUNDING.get(kernel, 0) * 1.01 + k * SUMS.get(kernel, 2.0**-22)) * size
    assert np.all(np.abs(run_mma(corpus, kernel, a, b).astype(np.float64) - exact) <= bound)


def test_recorded_double_mma(corpus: Corpus, same_as_gpu: Check) -> None:
    same_as_gpu(c=run_mma(corpus, "doubleKern", normals(29, M, 64), normals(30, 64, N)))


def test_ldmatrix_transposed(corpus: Corpus) -> None:
    x = words(31, 2 * 64).view(np.uint16).reshape(2, 2, 8, 8)
    results = corpus.run("mma", Call("transKern", 2, 32, [inp("x"), out("y")]), x=x, y=np.zeros((2, 2, 8, 8), np.uint16))
    assert np.array_equal(results["y"], x.transpose(0, 1, 3, 2))


WMMA = {
    "halfKern": (16, 16, "row", np.float16),
    "halfColumnKern": (16, 16, "column", np.float16),
    "wideKern": (8, 32, "row", np.float16),
    "tallKern": (32, 8, "column", np.float16),
    "bfloatKern": (16, 16, "row", to_bfloat),
    "tf32Kern": (16, 16, "row", np.float32),
    "int8Kern": (16, 16, "row", np.int8),
    "uint8Kern": (16, 16, "column", np.uint8),
    "doubleKern": (8, 8, "row", np.float64),
    "scaledKern": (16, 16, "row", np.float16),
}
"""Each kernel's tile, the order of B, and the kind of A and B."""


@pytest.mark.parametrize("kernel", WMMA)
def test_wmma_of_exact_values(corpus: Corpus, kernel: str) -> None:
    rows, columns, order, kind = WMMA[kernel]
    k = 32
    low = 0 if kernel == "uint8Kern" else -4
    a, b, c = small(32, 32, k, low), small(33, k, 32, low), small(34, 32, 32)
    sums = {"int8Kern": np.int32, "uint8Kern": np.int32, "doubleKern": np.float64, "scaledKern": np.float16}.get(
        kernel, np.float32
    )
    convert = kind if kind is to_bfloat else lambda x: x.astype(kind)
    call = Call(kernel, (32 // columns, 32 // rows, 1), 32, [u32(32), u32(k), inp("a"), inp("b"), inout("c")])
    results = corpus.run("wmma", call, a=convert(a), b=convert(b if order == "row" else b.T.copy()), c=c.astype(sums))
    assert np.array_equal(results["c"], 2 * (a @ b) - c if kernel == "scaledKern" else a @ b + c)


@pytest.mark.parametrize(("kernel", "rounding"), [("halfKern", 2.0**-11), ("tf32Kern", 2.0**-11)])
def test_wmma_of_random_values(corpus: Corpus, kernel: str, rounding: float) -> None:
    k, kind = 48, WMMA[kernel][3]
    a, b, c = normals(35, 32, k), normals(36, k, 32), normals(37, 32, 32)
    call = Call(kernel, (2, 2, 1), 32, [u32(32), u32(k), inp("a"), inp("b"), inout("c")])
    results = corpus.run("wmma", call, a=a.astype(kind), b=b.astype(kind), c=c)
    size = np.abs(a).astype(np.float64) @ np.abs(b) + np.abs(c)
    assert np.all(np.abs(results["c"] - (a.astype(np.float64) @ b + c)) <= (2.02 * rounding + k * 2.0**-22) * size)


def test_double_buffered_copies(corpus: Corpus, same_as_gpu: Check) -> None:
    x = normals(38, 2, 5, 256)
    call = Call("doubleBufferKern", 2, 64, [u32(5), inp("x"), out("y")])
    results = corpus.run("pipeline", call, x=x, y=np.zeros_like(x))
    p = np.pad(x, ((0, 0), (0, 0), (1, 1)))
    assert np.array_equal(results["y"], p[..., :-2] + p[..., 1:-1] + p[..., 2:])
    same_as_gpu(y=results["y"])


def test_copies_in_stages(corpus: Corpus, same_as_gpu: Check) -> None:
    a, b = normals(39, 3, 333), normals(40, 3, 333)
    call = Call("stagesKern", 3, 32, [u32(333), inp("a"), inp("b"), out("y")])
    results = corpus.run("pipeline", call, a=a, b=b, y=np.zeros(3, np.float32))
    np.testing.assert_allclose(results["y"], (a.astype(np.float64) * b).sum(axis=1), rtol=1e-5, atol=1e-5)
    same_as_gpu(y=results["y"])


def test_barriers_in_shared_memory(corpus: Corpus) -> None:
    x = words(41, 6 * 64).reshape(6, 64)
    results = corpus.run("pipeline", Call("barrierKern", 1, 128, [u32(6), inp("x"), out("y")]), x=x, y=np.zeros(64, np.uint32))
    expected = np.zeros(64, np.uint32)
    for row in x:
        expected = expected * np.uint32(5) + row[::-1]
    assert np.array_equal(results["y"], expected)


def test_pipeline_of_a_block(corpus: Corpus) -> None:
    x = words(42, 7 * 128).reshape(7, 128)
    results = corpus.run(
        "pipeline", Call("blockPipelineKern", 1, 128, [u32(7), inp("x"), out("y")]), x=x, y=np.zeros(128, np.uint32)
    )
    expected = np.zeros(128, np.uint32)
    for row in x:
        expected = expected * np.uint32(7) + row[::-1]
    assert np.array_equal(results["y"], expected)
