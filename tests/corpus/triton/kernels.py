"""Triton kernels of the corpus. Only ``build.py`` imports this, where Triton is installed."""

import triton
import triton.language as tl


@triton.jit
def add(x, y, out, n, BLOCK: tl.constexpr):
    """out = x + y over n elements; a program for each BLOCK of them."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, mask=at < n) + tl.load(y + at, mask=at < n), mask=at < n)


@triton.jit
def softmax(x, out, columns, BLOCK: tl.constexpr):
    """Softmax of each row; a program a row, at most BLOCK columns."""
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    values = tl.load(x + row * columns + column, mask=column < columns, other=-float("inf"))
    powers = tl.exp(values - tl.max(values, axis=0))
    tl.store(out + row * columns + column, powers / tl.sum(powers, axis=0), mask=column < columns)


@triton.jit
def matmul(a, b, c, m, n, k, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """c[m][n] = a[m][k] b[k][n] of float16 with sums in float32; a program a tile of c."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    a_at = a + row[:, None] * k + inner[None, :]
    b_at = b + inner[:, None] * n + column[None, :]
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, k, BLOCK_K):
        rest = k - start
        a_tile = tl.load(a_at, mask=(row[:, None] < m) & (inner[None, :] < rest), other=0.0)
        b_tile = tl.load(b_at, mask=(inner[:, None] < rest) & (column[None, :] < n), other=0.0)
        sums = tl.dot(a_tile, b_tile, sums)
        a_at += BLOCK_K
        b_at += BLOCK_K * n
    tl.store(c + row[:, None] * n + column[None, :], sums, mask=(row[:, None] < m) & (column[None, :] < n))


@triton.jit
def layer_norm(x, scale, shift, out, mean_out, columns, epsilon, BLOCK: tl.constexpr):
    """Each row normalised, scaled and shifted; a program a row, in steps of BLOCK columns."""
    row = tl.program_id(0)
    sums = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        sums += tl.load(x + row * columns + column, mask=column < columns, other=0.0)
    mean = tl.sum(sums, axis=0) / columns
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        values = tl.load(x + row * columns + column, mask=column < columns, other=0.0)
        difference = tl.where(column < columns, values - mean, 0.0)
        squares += difference * difference
    inverse = 1 / tl.sqrt(tl.sum(squares, axis=0) / columns + epsilon)
    tl.store(mean_out + row, mean)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < columns
        values = tl.load(x + row * columns + column, mask=mask)
        result = (values - mean) * inverse * tl.load(scale + column, mask=mask) + tl.load(shift + column, mask=mask)
        tl.store(out + row * columns + column, result, mask=mask)


@triton.jit
def attention(q, k, v, out, keys, scale, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Flash attention of one head in float16: a program BLOCK_M queries, BLOCK_N keys at a time; causal."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    lane = tl.arange(0, WIDTH)
    queries = tl.load(q + row[:, None] * WIDTH + lane[None, :])
    largest = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    sums = tl.zeros((BLOCK_M,), tl.float32)
    values = tl.zeros((BLOCK_M, WIDTH), tl.float32)
    for start in range(0, keys, BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        k_tile = tl.load(k + column[None, :] * WIDTH + lane[:, None])
        scores = tl.dot(queries, k_tile) * (scale * 1.44269504)
        scores = tl.where(row[:, None] >= column[None, :], scores, -float("inf"))
        next_largest = tl.maximum(largest, tl.max(scores, axis=1))
        keep = tl.exp2(largest - next_largest)
        weights = tl.exp2(scores - next_largest[:, None])
        sums = sums * keep + tl.sum(weights, axis=1)
        v_tile = tl.load(v + column[:, None] * WIDTH + lane[None, :])
        values = tl.dot(weights.to(tl.float16), v_tile, values * keep[:, None])
        largest = next_largest
    tl.store(out + row[:, None] * WIDTH + lane[None, :], values / sums[:, None])


@triton.jit
def dropout(x, out, n, keep, seed, BLOCK: tl.constexpr):
    """out = x / keep where Triton's Philox gives element i a number below ``keep``, else 0."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + at, mask=at < n)
    tl.store(out + at, tl.where(tl.rand(seed, at) < keep, values / keep, 0.0), mask=at < n)


@triton.jit
def _pick(a, at_a, b, at_b):
    take = (b > a) | ((b == a) & (at_b < at_a))
    return tl.where(take, b, a), tl.where(take, at_b, at_a)


@triton.jit
def scans(x, sums, largest, n, BLOCK: tl.constexpr):
    """Of each row: prefix sums of int32, and where the largest element is so far; a program a row of n <= BLOCK."""
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    values = tl.load(x + row * n + column, mask=column < n, other=0)
    tl.store(sums + row * n + column, tl.cumsum(values, axis=0), mask=column < n)
    _, place = tl.associative_scan((values, column), 0, _pick)
    tl.store(largest + row * n + column, place, mask=column < n)


@triton.jit
def sort(x, out, BLOCK: tl.constexpr):
    """Each row of BLOCK int32 sorted; a program a row."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.sort(tl.load(x + at)))


@triton.jit
def quantise(x, packed, scales, BLOCK: tl.constexpr):
    """Rows of BLOCK bfloat16 as int8 with one float32 scale each, by rounding to nearest even."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + at).to(tl.float32)
    scale = tl.max(tl.abs(values), axis=0) / 127.0
    shifted = tl.div_rn(values, scale) + 12582912.0
    tl.store(packed + at, (shifted - 12582912.0).to(tl.int8))
    tl.store(scales + tl.program_id(0), scale)


@triton.jit
def histogram(x, bins, n, BLOCK: tl.constexpr, BINS: tl.constexpr):
    """Counts of values below BINS, added to bins by atomics; a program each BLOCK elements."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    counts = tl.histogram(tl.load(x + at, mask=at < n, other=0), BINS, mask=at < n)
    tl.atomic_add(bins + tl.arange(0, BINS), counts)
