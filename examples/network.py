"""The forward pass of a small language network, of BERT-tiny's shapes, as one request of Triton kernels.

Needs a running daemon, and ``pip install 'kaasd[kernels-triton]'``. The weights are made, not trained.
"""

# Triton's kernels have no types.
# mypy: disable-error-code="no-untyped-def, no-any-return"

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from math import erf
from typing import Any

import numpy as np
import triton
import triton.language as tl
from numpy.typing import NDArray

from kaas_client import BufferSpec, Client, inp, out, tmp
from kaas_client.kernels import Launch
from kaas_client.kernels import triton as compiled

TOKENS, HIDDEN, HEADS, INNER, LAYERS, WORDS = 64, 128, 2, 512, 2, 1000
HEAD = HIDDEN // HEADS

Array = NDArray[Any]


@triton.jit
def embed(words, table, places, y, HIDDEN: tl.constexpr):
    token, i = tl.program_id(0), tl.arange(0, HIDDEN)
    word = tl.load(words + token)
    tl.store(y + token * HIDDEN + i, tl.load(table + word * HIDDEN + i) + tl.load(places + token * HIDDEN + i))


@triton.jit
def linear(x, weight, bias, y, INNER: tl.constexpr, COLUMNS: tl.constexpr, GELU: tl.constexpr, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, INNER, BLOCK):
        k = start + tl.arange(0, BLOCK)
        of_x = tl.load(x + rows[:, None] * INNER + k[None, :])
        of_weight = tl.load(weight + k[:, None] * COLUMNS + columns[None, :])
        total = tl.dot(of_x, of_weight, total, input_precision="ieee")
    total += tl.load(bias + columns)[None, :]
    if GELU:
        total = 0.5 * total * (1 + tl.erf(total * 0.7071067811865476))
    tl.store(y + rows[:, None] * COLUMNS + columns[None, :], total)


@triton.jit
def attend(qkv, y, TOKENS: tl.constexpr, HIDDEN: tl.constexpr, HEAD: tl.constexpr):
    rows, i = tl.arange(0, TOKENS), tl.program_id(0) * HEAD + tl.arange(0, HEAD)
    at = qkv + rows[:, None] * (3 * HIDDEN) + i[None, :]
    query, key, value = tl.load(at), tl.load(at + HIDDEN), tl.load(at + 2 * HIDDEN)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") / tl.sqrt(HEAD * 1.0)
    weights = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    weights = weights / tl.sum(weights, axis=1)[:, None]
    tl.store(y + rows[:, None] * HIDDEN + i[None, :], tl.dot(weights, value, input_precision="ieee"))


@triton.jit
def add_and_norm(x, residual, scale, shift, y, HIDDEN: tl.constexpr):
    row, i = tl.program_id(0), tl.arange(0, HIDDEN)
    total = tl.load(x + row * HIDDEN + i) + tl.load(residual + row * HIDDEN + i)
    centred = total - tl.sum(total, axis=0) / HIDDEN
    centred = centred / tl.sqrt(tl.sum(centred * centred, axis=0) / HIDDEN + 1e-12)
    tl.store(y + row * HIDDEN + i, centred * tl.load(scale + i) + tl.load(shift + i))


def floats(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "*fp32")


def linear_of(inner: int, columns: int, *, gelu: bool = False) -> Any:
    """Return a launcher of a layer: one block of threads for each tile of 32 x 32."""
    constants = {"INNER": inner, "COLUMNS": columns, "GELU": gelu, "BLOCK": 32}
    return compiled(linear, floats("x", "weight", "bias", "y"), constants)[TOKENS // 32, columns // 32]


def launches() -> Iterator[Launch]:
    """Yield the network, layer by layer. Buffers between kernels live for the request, weights stay on the device."""
    types = {"words": "*i32"} | floats("table", "places", "y")
    yield compiled(embed, types, {"HIDDEN": HIDDEN})[TOKENS](
        inp("words"), weight("table", WORDS, HIDDEN), weight("places", TOKENS, HIDDEN), between("x.0", HIDDEN)
    )
    attention = compiled(attend, floats("qkv", "y"), {"TOKENS": TOKENS, "HIDDEN": HIDDEN, "HEAD": HEAD})[HEADS]
    norm = compiled(add_and_norm, floats("x", "residual", "scale", "shift", "y"), {"HIDDEN": HIDDEN})[TOKENS]
    for n in range(LAYERS):
        x, middle = between(f"x.{n}", HIDDEN), between(f"middle.{n}", HIDDEN)
        qkv, mixed, mapped = between(f"qkv.{n}", 3 * HIDDEN), between(f"mixed.{n}", HIDDEN), between(f"mapped.{n}", HIDDEN)
        inner, back = between(f"inner.{n}", INNER), between(f"back.{n}", HIDDEN)
        last = n == LAYERS - 1
        after = out("hidden", dtype="f4", shape=(TOKENS, HIDDEN)) if last else between(f"x.{n + 1}", HIDDEN)
        yield linear_of(HIDDEN, 3 * HIDDEN)(x, weight(f"{n}.qkv", HIDDEN, 3 * HIDDEN), weight(f"{n}.qkv.bias", 3 * HIDDEN), qkv)
        yield attention(qkv, mixed)
        yield linear_of(HIDDEN, HIDDEN)(mixed, weight(f"{n}.map", HIDDEN, HIDDEN), weight(f"{n}.map.bias", HIDDEN), mapped)
        yield norm(mapped, x, weight(f"{n}.scale", HIDDEN), weight(f"{n}.shift", HIDDEN), middle)
        yield linear_of(HIDDEN, INNER, gelu=True)(middle, weight(f"{n}.up", HIDDEN, INNER), weight(f"{n}.up.bias", INNER), inner)
        yield linear_of(INNER, HIDDEN)(inner, weight(f"{n}.down", INNER, HIDDEN), weight(f"{n}.down.bias", HIDDEN), back)
        yield norm(back, middle, weight(f"{n}.scale2", HIDDEN), weight(f"{n}.shift2", HIDDEN), after)


def weight(name: str, *shape: int) -> BufferSpec:
    """Return a constant: it is read from the store once, and stays on the device for the calls to come."""
    return inp(name, key=f"network/{name}", constant=True, dtype="f4", shape=shape)


def between(name: str, columns: int) -> BufferSpec:
    return tmp(name, TOKENS * columns * 4)


def make_weights() -> dict[str, Array]:
    """Return weights for all names that the launches have, of a size that keeps the numbers near 1."""
    rng, weights = np.random.default_rng(1), {}
    for launch in launches():
        for buffer in launch.buffers():
            if buffer.key is not None and buffer.name not in weights:
                shape = buffer.shape or ()
                weights[buffer.name] = (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
    return weights


def with_numpy(words: Array, weights: Mapping[str, Array]) -> Array:
    """Return what the network gives, of shape (tokens, hidden), computed in double precision."""
    w = {name: value.astype(float) for name, value in weights.items()}

    def norm(x: Array, scale: str, shift: str) -> Array:
        return (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-12) * w[scale] + w[shift]

    def gelu(x: Array) -> Array:
        return 0.5 * x * (1 + np.vectorize(erf)(x / np.sqrt(2)))

    x = w["table"][words] + w["places"]
    for n in range(LAYERS):
        query, key, value = np.split(x @ w[f"{n}.qkv"] + w[f"{n}.qkv.bias"], 3, axis=1)
        mixed = np.empty_like(x)
        for head in range(HEADS):
            i = slice(head * HEAD, (head + 1) * HEAD)
            e = np.exp(query[:, i] @ key[:, i].T / np.sqrt(HEAD))
            mixed[:, i] = e / e.sum(axis=1, keepdims=True) @ value[:, i]
        middle = norm(mixed @ w[f"{n}.map"] + w[f"{n}.map.bias"] + x, f"{n}.scale", f"{n}.shift")
        back = gelu(middle @ w[f"{n}.up"] + w[f"{n}.up.bias"]) @ w[f"{n}.down"] + w[f"{n}.down.bias"]
        x = norm(back + middle, f"{n}.scale2", f"{n}.shift2")
    return x


def main() -> int:
    """Put the weights, run the network on three inputs, and compare with NumPy."""
    weights, rng = make_weights(), np.random.default_rng(2)
    with Client() as kaas:
        for name, value in weights.items():
            kaas.put(f"network/{name}", value)
        network = kaas.bind(launches(), name="network")
        for _ in range(3):
            words = rng.integers(0, WORDS, TOKENS, dtype=np.int32)
            start = time.perf_counter()
            hidden = network(words=words)["hidden"]
            took = time.perf_counter() - start
            error = float(np.max(np.abs(hidden - with_numpy(words, weights))))
            print(f"{took * 1000:.1f} ms; the largest difference from NumPy is {error:.1e}")
            if not error < 1e-4:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
