"""Kernels of neural networks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.conformance.launching import Call, inout, inp, out, u32
from tests.corpus.running import Check, Corpus, f32, normals, words


def softmax_of(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x.astype(np.float64) - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("columns", [7, 33, 300])
def test_softmax(corpus: Corpus, columns: int) -> None:
    x = normals(1, 8, columns) * 20 + 500
    call = Call("softmaxKern", 2, 128, [u32(columns), inp("x"), out("y")])
    results = corpus.run("neural", call, x=x, y=np.zeros_like(x))
    np.testing.assert_allclose(results["y"], softmax_of(x), rtol=2e-5, atol=1e-30)


def test_layer_norm(corpus: Corpus) -> None:
    x, scale, shift = normals(2, 6, 300) * 3 + 10, normals(3, 300), normals(4, 300)
    call = Call("layerNormKern", 6, 128, [u32(300), f32(1e-5), inp("x"), inp("scale"), inp("shift"), out("y")])
    results = corpus.run("neural", call, x=x, scale=scale, shift=shift, y=np.zeros_like(x))
    wide = x.astype(np.float64)
    exact = (wide - wide.mean(axis=1, keepdims=True)) / np.sqrt(wide.var(axis=1, keepdims=True) + 1e-5) * scale + shift
    np.testing.assert_allclose(results["y"], exact, rtol=2e-5, atol=2e-5)


def test_rms_norm_of_halves(corpus: Corpus, same_as_gpu: Check) -> None:
    x, scale = normals(5, 5, 128).astype(np.float16), normals(6, 128).astype(np.float16)
    call = Call("rmsNormKern", 5, 32, [u32(64), inp("x"), inp("scale"), out("y")])
    results = corpus.run("neural", call, x=x, scale=scale, y=np.zeros_like(x))
    wide = x.astype(np.float64)
    exact = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-5) * scale.astype(np.float64)
    np.testing.assert_allclose(results["y"].astype(np.float64), exact, rtol=2e-3, atol=1e-6)
    same_as_gpu(y=results["y"])


def attention_of(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    return softmax_of(q.astype(np.float64) @ k.T / math.sqrt(q.shape[1])) @ v


def test_attention(corpus: Corpus) -> None:
    q, k, v = normals(7, 9, 48), normals(8, 100, 48), normals(9, 100, 48)
    call = Call("attentionKern", 9, 64, [u32(100), u32(48), inp("q"), inp("k"), inp("v"), out("y")], 400)
    results = corpus.run("neural", call, q=q, k=k, v=v, y=np.zeros_like(q))
    np.testing.assert_allclose(results["y"], attention_of(q, k, v), rtol=1e-5, atol=1e-5)


def test_flash_attention(corpus: Corpus) -> None:
    q, k, v = normals(10, 16, 32), normals(11, 128, 32) * 2, normals(12, 128, 32)
    call = Call("flashKern", 4, (32, 4, 1), [u32(128), inp("q"), inp("k"), inp("v"), out("y")])
    results = corpus.run("neural", call, q=q, k=k, v=v, y=np.zeros_like(q))
    np.testing.assert_allclose(results["y"], attention_of(q, k, v), rtol=2e-5, atol=1e-5)


def test_gelu(corpus: Corpus) -> None:
    x = np.linspace(-6, 6, 250, dtype=np.float32)
    call = Call("geluKern", 2, 128, [u32(250), inp("x"), out("exact"), out("near")])
    results = corpus.run("neural", call, x=x, exact=np.zeros_like(x), near=np.zeros_like(x))
    wide = x.astype(np.float64)
    exact = wide * np.vectorize(math.erfc)(-wide / math.sqrt(2)) / 2
    near = wide / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
    np.testing.assert_allclose(results["exact"], exact, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(results["near"], near, rtol=1e-5, atol=1e-6)


def test_cross_entropy(corpus: Corpus) -> None:
    logits, labels = normals(13, 10, 60) * 5, words(14, 10, 60).astype(np.int32)
    call = Call("crossEntropyKern", 10, 32, [u32(60), inp("x"), inp("labels"), out("loss"), out("gradient")])
    results = corpus.run("neural", call, x=logits, labels=labels, loss=np.zeros(10, np.float32), gradient=np.zeros_like(logits))
    p = softmax_of(logits)
    np.testing.assert_allclose(results["loss"], -np.log(p[np.arange(10), labels]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(results["gradient"], p - np.eye(60)[labels], rtol=1e-5, atol=1e-6)


def test_pooling(corpus: Corpus) -> None:
    x = words(15, 12 * 20 * 4, 50).astype(np.float32).reshape(12, 20, 4)
    call = Call("poolKern", (1, 6, 1), 32, [u32(20), u32(12), inp("x"), out("y"), out("places")])
    zeros = np.zeros((6, 10, 4))
    results = corpus.run("neural", call, x=x, y=zeros.astype(np.float32), places=zeros.astype(np.uint8))
    windows = x.reshape(6, 2, 10, 2, 4).transpose(0, 2, 1, 3, 4).reshape(6, 10, 4, 4)
    assert np.array_equal(results["y"], windows.max(axis=2))
    assert np.array_equal(results["places"], windows.argmax(axis=2))


def test_step_of_adam(corpus: Corpus) -> None:
    n, step = 200, 7
    start = {"g": normals(16, n), "m": normals(17, n), "v": np.abs(normals(18, n)), "w": normals(19, n)}
    call = Call("adamKern", 2, 128, [u32(n), u32(step), f32(1e-2), inp("g"), inout("m"), inout("v"), inout("w")])
    results = corpus.run("neural", call, **start)
    g, m, v, w = (x.astype(np.float64) for x in start.values())
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    w = w - 1e-2 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    np.testing.assert_allclose(results["m"], m, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(results["v"], v, rtol=1e-5)
    np.testing.assert_allclose(results["w"], w, rtol=2e-5, atol=2e-5)
