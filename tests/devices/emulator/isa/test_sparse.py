"""Products with sparse matrices, whose elements and metadata are laid out as the manual draws them, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.devices.emulator.fragments import a_places, b_places, bf16_of, c_places, pack, registers, sizes, warp
from tests.devices.emulator.runner import Array

RNG = np.random.default_rng(8)


def compress(m: int, k: int, kind: str, values: Array) -> tuple[Array, Array, Array]:
    """Spread ``values``, of (m, k / 2), over a matrix. Returns that, what is held of it, and four bits for each chunk."""
    held = {"tf32": 1, "s4": 4, "u4": 4}.get(kind, 2)
    chunks = k // (2 * held)
    dense, numbers = np.zeros((m, k), values.dtype), np.zeros((m, chunks), "u4")
    for row in range(m):
        for chunk in range(chunks):
            part = values[row, chunk * held : (chunk + 1) * held]
            if held == 1:
                second = RNG.integers(0, 2)
                dense[row, 2 * chunk + second] = part[0]
                numbers[row, chunk] = 0b1110 if second else 0b0100
                continue
            first, last = sorted(RNG.choice(4, 2, replace=False))
            numbers[row, chunk] = first | last << 2
            places = [first, last] if held == 2 else [2 * first, 2 * first + 1, 2 * last, 2 * last + 1]
            dense[row, 2 * held * chunk + np.array(places)] = part
    return dense, values, numbers


def metadata_of(numbers: Array, by_halves: bool, selector: int) -> Array:
    """Return each lane's word. Lanes that the selector leaves out hold nonsense."""
    chunks = numbers.shape[1]
    threads = chunks // 4
    words = RNG.integers(0, 2**32, 32, dtype="u4")
    for group in range(8):
        for thread in range(threads):
            if by_halves:  # four chunks of row `group` and of the eighth row after it
                parts = [*numbers[group, 4 * thread : 4 * thread + 4], *numbers[group + 8, 4 * thread : 4 * thread + 4]]
            else:  # eight chunks: of one row, then of the other, then what follows
                first = 8 * (thread // 2)
                parts = list(numbers[group + 8 * (thread % 2), first : first + 8])
            words[4 * group + threads * selector + thread] = sum(int(part) << 4 * i for i, part in enumerate(parts))
    return words.reshape(32, 1)


FORMS = [  # shape, type of A and B, of the result, selectors
    ("m16n8k16", "f16", "f16", 4), ("m16n8k16", "f16", "f32", 4), ("m16n8k32", "f16", "f32", 2), ("m16n8k32", "f16", "f16", 2),
    ("m16n8k16", "bf16", "f32", 4), ("m16n8k32", "bf16", "f32", 2), ("m16n8k8", "tf32", "f32", 4), ("m16n8k16", "tf32", "f32", 2),
    ("m16n8k32", "s8", "s32", 2), ("m16n8k64", "u8", "s32", 1), ("m16n8k64", "s4", "s32", 2), ("m16n8k128", "u4", "s32", 1),
    ("m16n8k64", "e4m3", "f32", 1), ("m16n8k64", "e5m2", "f32", 1),
]  # fmt: skip
BITS = {"f16": 16, "bf16": 16, "tf32": 32, "s8": 8, "u8": 8, "s4": 4, "u4": 4, "e4m3": 8, "e5m2": 8}
FP8_ONE = {"e4m3": (0x38, 8), "e5m2": (0x3C, 4)}
"""The bits of 1, and how far apart powers of two are."""


def draw(kind: str, size: tuple[int, int]) -> tuple[Array, Array]:
    """Return small numbers, and their bits."""
    if kind in FP8_ONE:
        one, step = FP8_ONE[kind]
        powers = RNG.integers(-2, 3, size)
        return 2.0**powers, one + step * powers
    if kind[0] in "su":
        values = RNG.integers(-8 if kind[0] == "s" else 0, 8, size)
        return values, values & (2 ** BITS[kind] - 1)
    values = RNG.integers(-8, 9, size) / 4
    return values, {"f16": lambda v: v.astype("f2").view("u2"), "bf16": bf16_of, "tf32": lambda v: v.astype("f4").view("u4")}[
        kind
    ](values)


@pytest.mark.parametrize("ordered", ["", "::ordered_metadata"])
@pytest.mark.parametrize(("shape", "kind", "result", "selectors"), FORMS)
def test_products(shape: str, kind: str, result: str, selectors: int, ordered: str) -> None:
    m, n, k = sizes(shape)
    bits = BITS[kind]
    held, held_bits = draw(kind, (m, k // 2))
    dense, _, numbers = compress(m, k, kind, held)
    b, b_bits = draw(kind, (k, n))
    c = RNG.integers(-9, 10, (m, n))
    selector = int(RNG.integers(0, selectors))
    dtype = {"f16": "f2", "f32": "f4", "s32": "i4"}[result]
    addend = np.ascontiguousarray(c[c_places(m)].astype(dtype))
    inputs = [
        pack(held_bits[a_places(m, k // 2, 32 // bits)], bits),
        pack(b_bits[b_places(k, 32 // bits)], bits),
        addend.view("u4"),
        metadata_of(numbers, bits >= 16, selector),
    ]
    counts = [x.shape[1] for x in inputs]
    names = [registers("x", sum(counts[:i]), count) for i, count in enumerate(counts[:3])]
    code = f"mma.sp{ordered}.sync.aligned.{shape}.row.col.{result}.{kind}.{kind}.{result} {registers('y', 0, counts[2])}, "
    code += f"{', '.join(names)}, %x{sum(counts[:3])}, {selector};"
    expected = np.ascontiguousarray((dense @ b + c)[c_places(m)].astype(dtype))
    np.testing.assert_array_equal(warp(code, counts[2], inputs), expected.view("u4"))


def test_saturation() -> None:
    held = np.full((16, 16), 127)
    dense, _, numbers = compress(16, 32, "s8", held)
    b, c = np.full((32, 8), 127), np.full((16, 8), 2**31 - 1)
    inputs = [
        pack(held[a_places(16, 16, 4)], 8), pack(b[b_places(32, 4)], 8), c[c_places(16)].astype("u4"),
        metadata_of(numbers, False, 0),
    ]  # fmt: skip
    code = f"mma.sp.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32 {registers('y', 0, 4)}, {registers('x', 0, 2)}, "
    code += f"{registers('x', 2, 2)}, {registers('x', 4, 4)}, %x8, 0;"
    assert (dense @ b > 0).all()
    assert set(warp(code, 4, inputs).ravel()) == {2**31 - 1}
