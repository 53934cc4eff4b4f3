"""A chain of arithmetic gives a GPU's NaN to whoever looks at it, whatever it is made of and wherever that is."""

from __future__ import annotations

import numpy as np
import pytest

from tests.devices.emulator.runner import evaluate

CANONICAL = 0x7FFF_FFFF
NANS = np.array([0x7FC0_0000, 0xFFC0_0000, 0x7F80_0001, 0xFFFF_FFFF, 0x7FAB_CDEF], "u4")
CHAIN = ".reg .f32 %x, %y, %z; .reg .b32 %r; .reg .pred %p; mov.b32 %x, %a; add.f32 %y, %x, %x; fma.rn.f32 %y, %y, %x, %y;"


@pytest.mark.parametrize(
    "seen",
    [
        "mov.b32 %d, %y;",
        "mov.f32 %z, %y; mov.b32 %d, %z;",
        "and.b32 %d, %y, 0xFFFFFFFF;",
        "neg.f32 %y, %y; abs.f32 %y, %y; mov.b32 %d, %y;",
        "setp.nan.f32 %p, %y, %y; selp.f32 %z, %y, 0f00000000, %p; mov.b32 %d, %z;",
        "shfl.sync.idx.b32 %d, %y, 0, 31, 0xFFFFFFFF;",
        "max.NaN.f32 %z, %y, 0f00000000; mov.b32 %d, %z;",
        "mov.b64 %at, {%y, %y}; mov.b64 {%d, %r}, %at;",
        "prmt.b32 %d, %y, 0, 0x3210;",
        "mov.f32 %z, 0f00000000; mov.u32 %r, 0;\n"
        "LOOP: add.f32 %z, %z, %y; add.u32 %r, %r, 1; setp.lt.u32 %p, %r, 3; @%p bra LOOP; mov.b32 %d, %z;",
        "mov.f32 %z, 0f3F800000; setp.ne.u32 %p, %a, 0; @%p mul.f32 %z, %z, %y; mov.b32 %d, %z;",
        "mov.f32 %z, 0f7F800000; sub.f32 %z, %z, %z; mov.b32 %d, %z;",
        "bar.sync 0; mov.b32 %d, %y;",
        "div.rn.f32 %y, %y, %x; mov.b32 %d, %y;",
    ],
)  # fmt: skip
def test_the_nan_of_a_chain(seen: str) -> None:
    found = evaluate(CHAIN + seen, "u4", np.resize(NANS, 32), block=32)
    assert {hex(value) for value in found} == {hex(CANONICAL)}


@pytest.mark.parametrize("seen", ["mov.f32 %y, %x;", "mov.b32 %r, %x; mov.b32 %y, %r;", "add.f32 %y, %x, %x; mov.f32 %y, %x;"])
def test_a_move_keeps_the_bits(seen: str) -> None:
    code = ".reg .f32 %x, %y; .reg .b32 %r; mov.b32 %x, %a; " + seen + " mov.b32 %d, %y;"
    assert [hex(value) for value in evaluate(code, "u4", NANS)] == [hex(value) for value in NANS]


def test_a_nan_is_stored_as_a_gpus() -> None:
    code = CHAIN + "mov.u32 %r, %y; st.global.f32 [%p0], %y; ld.global.u32 %d, [%p0];"
    assert [hex(value) for value in evaluate(code, "u4", NANS[:1])] == [hex(CANONICAL)]
