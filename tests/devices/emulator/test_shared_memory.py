"""The shared memory of a kernel that was not compiled yet is what compiling finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from kaasd.devices.emulator.ptx.architecture import PtxSupport
from kaasd.devices.emulator.translation.unit import PtxUnit
from tests.devices.emulator.runner import HEADER

MODULE = """.shared .align 4 .b8 a[3];
.shared .align 16 .b8 b[16]; .extern .shared .align 8 .b8 dynamic[]; .shared .b8 unused[1000];
.func use_b() { .reg .b32 %r; mov.u32 %r, b; ret; }
.func through() { call use_b; ret; }
.global .u64 table[1] = {FUNCTION};
"""
BODIES = {
    "": 0,
    "mov.u32 %r, a;": 3,
    "mov.u32 %r, a; mov.u32 %s, b;": 32,
    "call use_b;": 16,
    "call through; mov.u32 %r, a;": 32,
    "mov.u32 %r, a; mov.u32 %s, dynamic;": 16,
    "mov.u32 %r, dynamic;": 0,
    "// a\n/* b\n */ .pragma \"a\";": 0,
    ".shared .b32 own[5], more; mov.u32 %r, own;": 20,
    ".loc 1 2 3\n.shared .b32 own[5], more; st .shared.u32 [more], %r; mov.u32 %s, own;": 24,
    "{ .shared .b64 own<2>; mov.u32 %r, own1; } mov.u32 %s, a;": 16,
}  # fmt: skip


@pytest.mark.parametrize("body", BODIES)
def test_of_mentions(body: str) -> None:
    functions = f'.visible .entry k() {{ .reg .b32 %r, %s;\n{body} ret; }} .file 1 "x"\n.visible .entry bad() {{ add }}'
    unit = PtxUnit(HEADER + MODULE.replace("FUNCTION", "0") + functions, PtxSupport((9, 0)), frozenset())
    assert unit.describe().kernels[0].static_shared_bytes == BODIES[body]
    assert unit.lowered("k").image.static_shared == BODIES[body]


def test_of_functions_that_a_variable_points_to() -> None:
    text = HEADER + MODULE.replace("FUNCTION", "through") + ".visible .entry k() { ret; }"
    unit = PtxUnit(text, PtxSupport((9, 0)), frozenset())
    assert unit.describe().kernels[0].static_shared_bytes == 16
    assert unit.lowered("k").image.static_shared == 16


@pytest.mark.parametrize("name", ["reduce", "sort", "language", "functions"])
def test_of_what_compilers_write(name: str) -> None:
    path = Path(__file__).parents[2] / f"corpus/cuda/{name}.ptx"
    unit = PtxUnit(path.read_text(), PtxSupport((9, 0)), frozenset())
    for kernel in unit.describe().kernels:
        assert unit.lowered(kernel.name).image.static_shared == kernel.static_shared_bytes, kernel.name
