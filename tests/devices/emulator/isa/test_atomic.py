"""Atomic operations."""

from __future__ import annotations

import numpy as np
import pytest

from tests.devices.emulator.isa.test_load_store import run
from tests.devices.emulator.numbers import array, dtype_of, edge_integers
from tests.devices.emulator.runner import cross, evaluate

ATOMICS = {
    "add": lambda old, value, t: old + value,
    "exch": lambda old, value, t: value,
    "min": lambda old, value, t: min(old, value),
    "max": lambda old, value, t: max(old, value),
    "inc": lambda old, value, t: 0 if old >= value else old + 1,
    "dec": lambda old, value, t: value if old == 0 or old > value else old - 1,
    "and": lambda old, value, t: old & value,
    "or": lambda old, value, t: old | value,
    "xor": lambda old, value, t: old ^ value,
}
TYPES = {"add": "u32 s32 u64", "exch": "b32 b64", "min": "u32 s32 u64 s64", "max": "u32 s32 u64 s64"}


@pytest.mark.parametrize("space", ["global", "shared", ""])
@pytest.mark.parametrize(
    ("opcode", "ptx"),
    [(opcode, ptx) for opcode in ATOMICS for ptx in TYPES.get(opcode, "u32" if opcode in ("inc", "dec") else "b32 b64").split()],
)
def test_atomics(opcode: str, ptx: str, space: str) -> None:
    values = edge_integers(ptx, extra=1)[::2]
    kind = dtype_of(ptx)
    a, b = cross(values, values, kinds=[kind, kind])
    size = int(ptx[1:]) // 8
    place = """.shared .align 8 .b64 cell[128]; .reg .b64 %at2; .reg .b32 %t;
    mov.u32 %t, %tid.x; mov.u64 %at2, cell; mad.wide.u32 %at2, %t, 8, %at2;"""
    generic = "" if space else "cvta.shared.u64 %at2, %at2;"
    home = "global" if space == "global" else "shared"
    if space == "global":
        place = ".reg .b64 %at2; mov.u64 %at2, %at;"  # where input b was read: each thread has its own
    dot = f".{space}" if space else ""
    code = f"""{place} st.{home}.b{size * 8} [%at2], %a; {generic}
    atom{dot}.{opcode}.{ptx} %d0, [%at2], %b; ld{dot}.b{size * 8} %d1, [%at2];"""
    old, new = evaluate(code, [kind, kind], a, b)
    np.testing.assert_array_equal(old, a)
    expected = array([ATOMICS[opcode](int(x), int(y), ptx) for x, y in zip(a, b, strict=True)], ptx)
    np.testing.assert_array_equal(new, expected)


@pytest.mark.parametrize("words", ["acq_rel.gpu.global.add", "global.cta.add", "global.gpu.acq_rel.add", "add.acquire.cta"])
def test_places_of_order_and_scope(words: str) -> None:
    body = f".reg .b32 %o; atom.{words}.u32 %o, [%p0], 5; red.{words}.u32 [%p0], 7; st.global.b32 [%p0+4], %o;"
    assert run(body, np.array([30, 0], "u4")).tolist() == [42, 30]


@pytest.mark.parametrize("ptx", ["b16", "b32", "b64"])
def test_compare_and_swap(ptx: str) -> None:
    body = f"""
    .reg .{ptx} %o<2>;
    atom.global.cas.{ptx} %o0, [%p0], 5, 9; atom.global.cas.{ptx} %o1, [%p0], 5, 11;
    st.global.{ptx} [%p0+8], %o0; st.global.{ptx} [%p0+16], %o1;
    """
    kind = f"u{int(ptx[1:]) // 8}"
    data = np.zeros(32 // np.dtype(kind).itemsize, kind)
    data[0] = 5
    result = run(body, data)
    step = 8 // np.dtype(kind).itemsize
    assert (result[0], result[step], result[2 * step]) == (9, 5, 9)


def test_atomics_of_128_bits() -> None:
    body = """
    .reg .b128 %x, %y, %o; .reg .b64 %l, %h;
    mov.b128 %x, {1, 2}; mov.b128 %y, {3, 4};
    atom.global.cas.b128 %o, [%p0], %x, %y; mov.b128 {%l, %h}, %o; st.global.v2.u64 [%p0+16], {%l, %h};
    atom.global.exch.b128 %o, [%p0], %x; mov.b128 {%l, %h}, %o; st.global.v2.u64 [%p0+32], {%l, %h};
    """
    assert list(run(body, np.array([1, 2, 0, 0, 0, 0], "u8"))) == [1, 2, 1, 2, 3, 4]


def test_counting_from_many_threads() -> None:
    body = "red.global.add.u32 [%p0], 1; red.global.add.f32 [%p0+4], 0f3F000000; red.global.add.f64 [%p0+8], 0d3FD0000000000000;"
    result = run(body, np.zeros(4, "u4"), threads=640)
    assert result[0] == 640
    assert result[1:2].view("f4")[0] == 320.0
    assert result[2:4].view("f8")[0] == 160.0


def test_single_precision_atomics_flush_outside_shared_memory() -> None:
    body = """
    .shared .b32 cell; .reg .f32 %v; st.shared.u32 [cell], 1; atom.shared.add.f32 %v, [cell], 0f00000002;
    ld.shared.f32 %v, [cell]; st.global.f32 [%p0+4], %v; red.global.add.f32 [%p0], 0f00000002;
    """
    assert list(run(body, np.array([1, 0], "u4"))) == [0, 3]


def test_half_precision_and_vector_atomics() -> None:
    body = """
    .reg .b16 %h; .reg .b32 %w; .reg .f32 %f<4>;
    atom.global.add.noftz.f16 %h, [%p0], 0x3C00; st.global.u16 [%p0+2], %h;
    red.global.add.noftz.f16x2 [%p0+4], 0x40003C00; red.global.add.noftz.bf16x2 [%p0+8], 0x3F803F80;
    mov.f32 %f0, 0f3F800000; mov.f32 %f1, %f0; mov.f32 %f2, %f0; mov.f32 %f3, %f0;
    atom.global.add.v4.f32 {%f0, %f1, %f2, %f3}, [%p0+16], {%f0, %f1, %f2, %f3}; st.global.f32 [%p0+12], %f3;
    """
    halves = np.array([1.5, 0, 2.0, 3.0], "f2")
    data = np.concatenate([halves.view("u4"), np.array([0x3F803F80, 0], "u4"), np.array([1, 2, 3, 4], "f4").view("u4")])
    result = run(body, data)
    assert list(result[:2].view("f2")) == [2.5, 1.5, 3.0, 5.0]
    assert result[2] == 0x40004000
    assert list(result[3:].view("f4")) == [4, 2, 3, 4, 5]


VECTORS = [  # operation, width of an element, elements before, operands, elements after
    ("add.noftz.v2.f16", 16, [1.5, 2], [1, -3], [2.5, -1]), ("min.noftz.v4.f16", 16, [1, 2, 3, 4], [4, 1, 5, -1], [1, 1, 3, -1]),
    ("max.noftz.v8.f16", 16, [*range(8)], [3] * 8, [3, 3, 3, 3, 4, 5, 6, 7]),
    ("add.v2.f32", 32, [1, 2], [0.25, 4], [1.25, 6]),
    ("add.v4.f32", 32, [1, 2, 3, 4], [4, 3, 2, 1], [5, 5, 5, 5]),
    ("max.noftz.v2.f16x2", 16, [1, 2, 3, 4], [4, 1, 5, -1], [4, 2, 5, 4]),
]  # fmt: skip


@pytest.mark.parametrize(("opcode", "width", "before", "operands", "after"), VECTORS)
def test_atomics_on_vectors(opcode: str, width: int, before: list[float], operands: list[float], after: list[float]) -> None:
    """An ``atom`` of the second half of the data, and a ``red`` of the first."""
    kind, register = (f"f{width // 8}", 32 if opcode.endswith("x2") else width)
    size = len(before) * width // 8
    count = size * 8 // register
    data = np.array([*before, *before, *operands, *([0] * len(before))], kind)
    v, o = ("{" + ", ".join(f"%{name}{i}" for i in range(count)) + "}" for name in "vo")
    body = f".reg .b{register} %v<{count}>, %o<{count}>;"
    body += "".join(f"ld.global.b{register} %v{i}, [%p0+{2 * size + i * register // 8}];" for i in range(count))
    body += f"red.global.{opcode} [%p0], {v}; atom.relaxed.gpu.global.{opcode} {o}, [%p0+{size}], {v};"
    body += "".join(f"st.global.b{register} [%p0+{3 * size + i * register // 8}], %o{i};" for i in range(count))
    expected = np.array([*after, *after, *operands, *before], kind)
    np.testing.assert_array_equal(run(body, data.view(f"u{width // 8}")).view(kind), expected)
