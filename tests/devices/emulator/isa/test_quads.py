"""``mma.m8n8k4`` of half precision: four products at once, laid out as the manual draws them, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.devices.emulator.fragments import LANES, pack, registers, warp
from tests.devices.emulator.runner import Array

RNG = np.random.default_rng(4)
BLOCK = (LANES // 4 % 4)[:, None]
LOW = (LANES % 4)[:, None]
UPPER = (LANES // 16 * 4)[:, None]


def factor(matrices: Array, layout: str, left: bool) -> Array:
    """Deal out A or B, of (product, row, column): four neighbours to each lane."""
    i = np.arange(4)[None, :]
    row, column = (LOW, i) if layout == "row" else (i, LOW)
    row, column = (row + UPPER, column) if left else (row, column + UPPER)
    return pack(matrices[BLOCK, row, column].astype("f2").view("u2"), 16)


def result_places(kind: str) -> tuple[Array, Array, Array]:
    i = np.arange(8)[None, :]
    if kind == "f16":
        return BLOCK, LOW + UPPER, i
    return BLOCK, (LANES % 2)[:, None] + (i & 2) + UPPER, (i & 4) + (LANES & 2)[:, None] + (i & 1)


@pytest.mark.parametrize("layouts", ["row.row", "row.col", "col.row", "col.col"])
@pytest.mark.parametrize(("result", "addend"), [("f16", "f16"), ("f32", "f16"), ("f32", "f32")])
def test_four_products(result: str, addend: str, layouts: str) -> None:
    a, b, c = (RNG.integers(-8, 9, (4, *size)) / 4 for size in ((8, 4), (4, 8), (8, 8)))
    dtypes = {"f16": "f2", "f32": "f4"}
    left, right = layouts.split(".")
    addends = np.ascontiguousarray(c[result_places(addend)].astype(dtypes[addend])).view("u4")
    inputs = [factor(a, left, True), factor(b, right, False), addends]
    counts = [x.shape[1] for x in inputs]
    names = [registers("x", sum(counts[:i]), count) for i, count in enumerate(counts)]
    size = 4 if result == "f16" else 8
    code = f"mma.sync.aligned.m8n8k4.{layouts}.{result}.f16.f16.{addend} {registers('y', 0, size)}, {', '.join(names)};"
    expected = np.ascontiguousarray((a @ b + c)[result_places(result)].astype(dtypes[result])).view("u4")
    np.testing.assert_array_equal(warp(code, size, inputs), expected)
