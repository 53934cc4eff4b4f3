"""Values that are hard on arithmetic, by type: limits, special encodings, neighbours of ties; and the table of inputs."""

from __future__ import annotations

import random
from functools import cache

import numpy as np

from kaasd.devices.emulator.ptx.types import TYPES, Type

THREADS = 64
"""Threads of the one block that runs a program."""

FORMATS = {"f16": (5, 10), "bf16": (8, 7), "f32": (8, 23), "f64": (11, 52), "tf32": (8, 23)}
"""Bits of exponent and of fraction."""

PACKED = {"f16x2": "f16", "bf16x2": "bf16", "u16x2": "u16", "s16x2": "s16"}


@cache
def _special_floats(name: str) -> tuple[int, ...]:
    exponent, fraction = FORMATS[name]
    one, ulp, top = ((1 << exponent - 1) - 1) << fraction, 1, ((1 << exponent) - 1) << fraction
    half = one - (1 << fraction)
    numbers = [0, ulp, (1 << fraction) - 1, 1 << fraction, (1 << fraction) + 1, half, half - ulp, half + ulp]
    numbers += [one, one + ulp, one - ulp, one | 1 << fraction - 1, top - 1, top - 2, top]  # 1.5 is a tie
    numbers += [top | 1 << fraction - 1, top | 1, top | (1 << fraction) - 1]  # quiet NaN, signalling NaN, full payload
    # Whole numbers at the limits of integers, and their neighbours.
    for power in (7, 8, 15, 16, 24, 31, 32, 53, 63, 64):
        if power < (1 << exponent - 1):
            numbers += [one + (power << fraction) + step for step in (-1, 0, 1)]
    # 2.5 and 3.5
    numbers += [one + (1 << fraction) + (1 << fraction - 2), one + (1 << fraction) + (3 << fraction - 2)]
    return tuple(numbers)


def _draw_float(rng: random.Random, name: str) -> int:
    exponent, fraction = FORMATS[name]
    sign = rng.getrandbits(1) << exponent + fraction
    way = rng.random()
    if way < 0.4:
        return sign | rng.choice(_special_floats(name))
    if way < 0.8:  # near one, often of few bits, so that sums meet and ties happen
        bias = (1 << exponent - 1) - 1
        spread = min(bias - 1, 3 + fraction if rng.getrandbits(1) else 3)
        bits = rng.getrandbits(fraction)
        if rng.getrandbits(1):
            bits &= -1 << rng.randrange(fraction)
        return sign | (bias - spread + rng.randrange(2 * spread)) << fraction | bits & (1 << fraction) - 1
    return rng.getrandbits(1 + exponent + fraction)


def _draw_integer(rng: random.Random, bits: int) -> int:
    way = rng.random()
    if way < 0.3:
        number = rng.choice((0, 1, -1, 2, -2, 1 << bits - 1, (1 << bits - 1) - 1, (1 << bits - 1) + 1, 0x5555555555555555))
    elif way < 0.5:
        number = rng.randrange(-2, bits + 3)
    elif way < 0.7:
        number = (1 << rng.randrange(bits)) + rng.randrange(-1, 2)
    else:
        number = rng.getrandbits(bits)
    return number & (1 << bits) - 1


def draw(rng: random.Random, kind: Type) -> int:
    """Return the bits of a value of a type."""
    if kind.name in PACKED:
        part = TYPES[PACKED[kind.name]]
        return draw(rng, part) | draw(rng, part) << 16
    if kind.name in FORMATS:
        return _draw_float(rng, kind.name)
    return _draw_integer(rng, kind.bits)


def constant(rng: random.Random, kind: Type) -> str | None:
    """Return a constant as PTX writes it, or None for a type that has none."""
    if kind.name in ("f32", "f64"):
        return f"0{kind.name[0] if kind.bits == 32 else 'd'}{draw(rng, kind):0{kind.bits // 4}X}"
    if kind.kind not in "usb" or kind.bits not in (16, 32, 64) or kind.name in PACKED:
        return None
    number = draw(rng, kind)
    return str(number - (1 << kind.bits) if kind.signed and number >> kind.bits - 1 else number)


KINDS = ("u16", "s32", "u32", "u64", "s64", "f16", "bf16", "f32", "f64", "f16x2", "bf16x2", "u8", "b128")
"""The types of the inputs' columns."""
COLUMNS = 8
"""Columns of each type."""


def inputs(seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
    """Return the table of inputs: a row for each column of each type, 64 bits for each thread."""
    rng = random.Random(f"inputs {seed}")
    rows = [[draw(rng, TYPES[kind]) & 2**64 - 1 for _ in range(THREADS)] for kind in KINDS for _ in range(COLUMNS)]
    for row in rows[::COLUMNS]:  # one column of each type has few values, so that threads agree
        row[:] = [row[rng.randrange(3)] for _ in row]
    return np.array(rows, np.uint64)


def row_of(kind: str, column: int) -> int:
    """Return a column's row in the table of inputs."""
    return KINDS.index(kind) * COLUMNS + column
