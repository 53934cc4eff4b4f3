"""PTX that Triton emitted, launched as Triton's own launcher would."""

from __future__ import annotations

import numpy as np

from tests.conformance.launching import inout, inp, out
from tests.corpus.running import Check, Corpus, f32, i32, normals, words
from tests.corpus.test_neural import softmax_of
from tests.corpus.test_tensor import to_bfloat


def test_add(corpus: Corpus, same_as_gpu: Check) -> None:
    x, y = normals(1, 3000), normals(2, 3000)
    arguments = {"x": inp("x"), "y": inp("y"), "out": out("out"), "n": i32(2900)}
    results = corpus.run_triton("add", 3, arguments, x=x, y=y, out=np.zeros_like(x))
    assert np.array_equal(results["out"], np.concatenate([(x + y)[:2900], np.zeros(100, np.float32)]))
    same_as_gpu(out=results["out"])


def test_softmax(corpus: Corpus) -> None:
    x = normals(3, 5, 781) * 10
    arguments = {"x": inp("x"), "out": out("out"), "columns": i32(781)}
    results = corpus.run_triton("softmax", 5, arguments, x=x, out=np.zeros_like(x))
    np.testing.assert_allclose(results["out"], softmax_of(x), rtol=1e-5)


def test_matmul(corpus: Corpus) -> None:
    m, n, k = 100, 70, 90
    a, b = normals(4, m, k).astype(np.float16), normals(5, k, n).astype(np.float16)
    arguments = {"a": inp("a"), "b": inp("b"), "c": out("c"), "m": i32(m), "n": i32(n), "k": i32(k)}
    results = corpus.run_triton("matmul", (2, 3, 1), arguments, a=a, b=b, c=np.zeros((m, n), np.float32))
    a, b = a.astype(np.float64), b.astype(np.float64)
    assert np.all(np.abs(results["c"] - a @ b) <= k * 2.0**-22 * (np.abs(a) @ np.abs(b)))


def test_matmul_of_exact_values(corpus: Corpus) -> None:
    a, b = (words(seed, 64 * 64, 9).reshape(64, 64).astype(np.float16) - np.float16(4) for seed in (6, 7))
    arguments = {"a": inp("a"), "b": inp("b"), "c": out("c"), **dict.fromkeys("mnk", i32(64))}
    results = corpus.run_triton("matmul", (1, 2, 1), arguments, a=a, b=b, c=np.zeros((64, 64), np.float32))
    assert np.array_equal(results["c"], a.astype(int) @ b.astype(int))


def test_layer_norm(corpus: Corpus) -> None:
    rows, columns = 4, 700
    x, scale, shift = normals(8, rows, columns) * 2 - 5, normals(9, columns), normals(10, columns)
    arguments = {"x": inp("x"), "scale": inp("scale"), "shift": inp("shift"), "out": out("out"), "mean_out": out("mean_out")}
    arguments |= {"columns": i32(columns), "epsilon": f32(1e-5)}
    zeros = np.zeros(rows, np.float32)
    results = corpus.run_triton(
        "layer_norm", rows, arguments, x=x, scale=scale, shift=shift, out=np.zeros_like(x), mean_out=zeros
    )
    wide = x.astype(np.float64)
    mean = wide.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(results["mean_out"], mean[:, 0], rtol=1e-6)
    exact = (wide - mean) / np.sqrt(wide.var(axis=1, keepdims=True) + 1e-5) * scale + shift
    np.testing.assert_allclose(results["out"], exact, rtol=2e-5, atol=2e-5)


def test_flash_attention(corpus: Corpus) -> None:
    q, k, v = (normals(seed, 128, 32).astype(np.float16) for seed in (11, 12, 13))
    scale = 32**-0.5
    arguments = {**{name: inp(name) for name in "qkv"}, "out": out("out"), "keys": i32(128), "scale": f32(scale)}
    results = corpus.run_triton("attention", 2, arguments, q=q, k=k, v=v, out=np.zeros((128, 32), np.float32))
    scores = q.astype(np.float64) @ k.T.astype(np.float64) * scale
    exact = softmax_of(np.where(np.tri(128, dtype=bool), scores, -np.inf)) @ v.astype(np.float64)
    # The weights are rounded to half before the second product.
    np.testing.assert_allclose(results["out"], exact, atol=2e-3)


def philox(seed: int, counter: int) -> int:
    """The first word of Philox4x32-10 of a counter and a key of 64 bits."""
    c, k = [counter, 0, 0, 0], [seed % 2**32, seed >> 32]
    for _ in range(10):
        x, y = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [y >> 32 ^ c[1] ^ k[0], y % 2**32, x >> 32 ^ c[3] ^ k[1], x % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c[0]


def test_dropout(corpus: Corpus) -> None:
    n, keep, seed = 1000, np.float32(0.6), 123456
    x = normals(14, n)
    arguments = {"x": inp("x"), "out": out("out"), "n": i32(n), "keep": f32(keep), "seed": i32(seed)}
    results = corpus.run_triton("dropout", 2, arguments, x=x, out=np.zeros_like(x))
    word = np.array([philox(seed, i) for i in range(n)], np.uint32).view(np.int32)
    kept = np.where(word < 0, ~word, word).astype(np.float32) * np.float32(4.6566127342e-10) < keep
    assert 550 < kept.sum() < 650
    assert np.array_equal(results["out"] != 0, kept)
    np.testing.assert_allclose(results["out"][kept], x[kept] / keep, rtol=2**-22)  # div.full


def test_scans(corpus: Corpus) -> None:
    rows, n = 3, 200
    x = words(15, rows * n, 60).astype(np.int32).reshape(rows, n)
    arguments = {"x": inp("x"), "sums": out("sums"), "largest": out("largest"), "n": i32(n)}
    results = corpus.run_triton("scans", rows, arguments, x=x, sums=np.zeros_like(x), largest=np.zeros_like(x))
    assert np.array_equal(results["sums"], x.cumsum(axis=1))
    assert results["largest"].tolist() == [[int(np.argmax(row[: i + 1])) for i in range(n)] for row in x]


def test_sort(corpus: Corpus) -> None:
    x = words(16, 4 * 64).view(np.int32).reshape(4, 64)
    results = corpus.run_triton("sort", 4, {"x": inp("x"), "out": out("out")}, x=x, out=np.zeros_like(x))
    assert np.array_equal(results["out"], np.sort(x, axis=1))


def test_quantise(corpus: Corpus) -> None:
    bits = to_bfloat(normals(17, 3, 512))
    arguments = {"x": inp("x"), "packed": out("packed"), "scales": out("scales")}
    zeros = np.zeros(3, np.float32)
    results = corpus.run_triton("quantise", 3, arguments, x=bits, packed=np.zeros((3, 512), np.int8), scales=zeros)
    values = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(results["scales"], np.abs(values).max(axis=1) / 127, rtol=2**-22)  # div.full
    assert np.array_equal(results["packed"], np.rint(values / results["scales"][:, None]))


def test_histogram(corpus: Corpus) -> None:
    x = words(18, 2500, 64).astype(np.int32)
    arguments = {"x": inp("x"), "bins": inout("bins"), "n": i32(2500)}
    results = corpus.run_triton("histogram", 3, arguments, x=x, bins=np.zeros(64, np.int32))
    assert np.array_equal(results["bins"], np.bincount(x, minlength=64))
