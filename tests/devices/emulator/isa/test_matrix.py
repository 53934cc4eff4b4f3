"""Matrices loaded, stored and transposed by a warp."""

from __future__ import annotations

import numpy as np
import pytest

from tests.devices.emulator.fragments import registers
from tests.devices.emulator.runner import evaluate

FILL = """
.shared .align 16 .b8 tile[512]; .reg .b32 %s, %v, %r;
mov.u32 %s, tile; mad.lo.u32 %r, %i, 16, %s; mul.lo.u32 %v, %i, 0x00080008; add.u32 %v, %v, 0x00010000;
st.shared.u32 [%r], %v; add.u32 %v, %v, 0x00020002; st.shared.u32 [%r+4], %v; add.u32 %v, %v, 0x00020002;
st.shared.u32 [%r+8], %v; add.u32 %v, %v, 0x00020002; st.shared.u32 [%r+12], %v; bar.sync 0;
"""
TILE = np.arange(256).reshape(4, 8, 8)
"""What FILL leaves: four matrices of 8x8, whose elements count up."""


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(count: int, transposed: bool) -> None:
    names = registers("d", 0, count)
    # Only the first lanes' addresses count; the others may be anything.
    stray = f"setp.ge.u32 %q, %i, {8 * count}; @%q mov.u32 %r, 0xFFFFFFF0;" if count < 4 else ""
    trans = ".trans" if transposed else ""
    code = f"{FILL} {stray} ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {names}, [%r];"
    results = evaluate(code, ["u4"] * count, np.zeros(32, "u4"), block=32)
    for matrix, result in zip(TILE, results, strict=False):
        source = matrix.T if transposed else matrix
        pairs = source.reshape(32, 2)
        np.testing.assert_array_equal(result, pairs[:, 0] | pairs[:, 1] << 16)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_stmatrix(count: int, transposed: bool) -> None:
    values = [TILE[i].reshape(32, 2) for i in range(count)]
    inputs = [np.array(v[:, 0] | v[:, 1] << 16, "u4") for v in values]
    trans = ".trans" if transposed else ""
    regs = "{" + ", ".join(f"%{letter}" for letter in "abce"[:count]) + "}"
    code = f"""
    .shared .align 16 .b8 tile[512]; .reg .b32 %s, %r; mov.u32 %s, tile; mad.lo.u32 %r, %i, 16, %s;
    stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%r], {regs}; bar.sync 0;
    ld.shared.v4.u32 {registers("d", 0, 4)}, [%r];"""
    results = np.stack(evaluate(code, ["u4"] * 4, *inputs, block=32), axis=1)
    stored = np.ascontiguousarray(results).view("u2").reshape(4, 8, 8)
    for index in range(count):
        np.testing.assert_array_equal(stored[index], TILE[index].T if transposed else TILE[index])


def test_movmatrix() -> None:
    pairs = TILE[0].reshape(32, 2)
    a = np.array(pairs[:, 0] | pairs[:, 1] << 16, "u4")
    expected = TILE[0].T.reshape(32, 2)
    result = evaluate("movmatrix.sync.aligned.m8n8.trans.b16 %d, %a;", "u4", a, block=32)
    np.testing.assert_array_equal(result, expected[:, 0] | expected[:, 1] << 16)
