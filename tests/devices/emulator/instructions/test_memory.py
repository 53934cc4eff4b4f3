"""Loads, stores, moves, addresses and atomics."""

from __future__ import annotations

import time

import numpy as np
import pytest

from kaasd.devices.emulator import EmulatedDevice
from tests.devices.emulator.numbers import array, dtype_of, edge_integers, wrap
from tests.devices.emulator.runner import Array, array_of, buffer_of, cross, evaluate, kernel, launch, read_write


def run(body: str, data: Array, threads: int = 1, before: str = "", shared: int = 0) -> Array:
    """Run a kernel whose ``%p0`` points to ``data``, and return the data afterwards."""
    device = EmulatedDevice()
    try:
        module = device.load(kernel(body, before=before))
        buffer = buffer_of(device, data)
        device.run([launch(module, "k", (1, 1, 1), (threads, 1, 1), read_write("data", buffer), shared=shared)], 1)
        return array_of(buffer, data.dtype)
    finally:
        device.close()


@pytest.mark.parametrize("ptx", ["u8", "s8", "u16", "s16", "u32", "s32"])
def test_narrow_loads_extend(ptx: str) -> None:
    data = np.arange(8, dtype="u8") * 0x1122334455667788
    body = f".reg .b64 %v;\nld.global.{ptx} %v, [%p0+20];\nst.global.u64 [%p0], %v;"
    expected = wrap(int.from_bytes(data.tobytes()[20 : 20 + int(ptx[1:]) // 8], "little"), ptx)
    assert run(body, data)[0] == np.uint64(expected & (2**64 - 1))


@pytest.mark.parametrize(("ptx", "count"), [("u8", 4), ("u16", 2), ("b32", 4), ("f32", 4), ("b64", 2), ("f64", 4), ("b32", 8)])
def test_vectors(ptx: str, count: int) -> None:
    size = int(ptx[1:]) // 8
    register = f"b{max(16, size * 8)}"
    names = ", ".join(f"%v{i}" for i in range(count))
    reverse = ", ".join(f"%v{count - 1 - i}" for i in range(count))
    body = f""".reg .{register} %v<{count}>; ld.global.v{count}.{ptx} {{{names}}}, [%p0];
    st.global.v{count}.{ptx} [%p0+64], {{{reverse}}};"""
    data = np.arange(128, dtype="u1")
    elements = data[: size * count].reshape(count, size)
    np.testing.assert_array_equal(run(body, data)[64 : 64 + size * count], elements[::-1].ravel())


def test_braces_around_one_element() -> None:
    body = ".reg .b32 %v; ld.global.b32 {%v}, [%p0]; st.global.b32 [%p0+4], {%v};"
    assert run(body, np.array([77, 0], "u4"))[1] == 77


def test_pack_and_unpack() -> None:
    a = array(edge_integers("b64"), "b64")
    low, high = evaluate("mov.b64 {%d0, %d1}, %a;", ["u4", "u4"], a)
    np.testing.assert_array_equal(low, a & np.uint64(0xFFFFFFFF))
    np.testing.assert_array_equal(high, a >> np.uint64(32))
    np.testing.assert_array_equal(evaluate("mov.b64 %d, {%b, %a};", "u8", high, low), a)
    np.testing.assert_array_equal(evaluate("mov.b64 {%d, _}, %a;", "u4", a), low)
    quarters = evaluate("mov.b64 {%d0, %d1, %d2, %d3}, %a;", ["u2"] * 4, a)
    np.testing.assert_array_equal(np.stack(quarters, axis=1), a.view("u2").reshape(-1, 4))


def test_shared_memory_static_and_dynamic() -> None:
    body = """
    .reg .b32 %s, %v; .reg .b64 %g, %w;
    mov.u32 %s, fixed; st.shared.u32 [%s+4], 7; ld.shared.u32 %v, [fixed+4]; st.global.u32 [%p0], %v;
    mov.u32 %s, dynamic; st.global.u32 [%p0+4], %s; st.shared.u32 [dynamic+8], 9;
    cvta.shared.u64 %g, 0; ld.u32 %v, [%g+24]; st.global.u32 [%p0+8], %v;
    cvta.to.shared.u64 %w, %g; ld.shared.u32 %v, [%w+24]; st.global.u32 [%p0+12], %v;
    mov.u32 %v, %dynamic_smem_size; st.global.u32 [%p0+16], %v;
    """
    before = ".shared .align 4 .b8 fixed[12];\n.extern .shared .align 16 .b8 dynamic[];"
    result = run(body, np.zeros(8, "u4"), before=before, shared=32)
    assert list(result[:5]) == [7, 16, 9, 9, 32]


def test_local_memory_is_each_threads_own() -> None:
    body = """
    .local .align 8 .b8 depot[16]; .reg .b64 %l, %g; .reg .b32 %v;
    mov.u64 %l, depot; cvta.local.u64 %g, %l;
    st.local.u32 [depot+4], %i; bar.sync 0; ld.u32 %v, [%g+4];
    mad.wide.u32 %at, %i, 4, %p0; st.global.u32 [%at], %v;
    """
    np.testing.assert_array_equal(run(body, np.zeros(96, "u4"), threads=96), np.arange(96))


def test_constants_and_initialisers() -> None:
    before = """
    .const .align 4 .f32 table[3] = {0f3F800000, 2.5, 0f40400000};
    .global .align 8 .u64 pointer = generic(words)+4;
    .global .align 4 .u32 words[2][2] = {{1, 2}, {3, -1}};
    .global .align 1 .b8 text[4] = {0x41, 66, 0b1000011, 0};
    """
    body = """
    .reg .b64 %a; .reg .b32 %v; .reg .pred %c, %g;
    ld.const.u32 %v, [table+4]; st.global.u32 [%p0], %v;
    ld.global.u64 %a, [pointer]; ld.u32 %v, [%a]; st.global.u32 [%p0+4], %v;
    ld.global.u32 %v, [words+12]; st.global.u32 [%p0+8], %v;
    ld.global.u32 %v, [text]; st.global.u32 [%p0+12], %v;
    mov.u64 %a, table; isspacep.const %c, %a; isspacep.global %g, %a;
    selp.u32 %v, 1, 0, %c; st.global.u32 [%p0+16], %v; selp.u32 %v, 1, 0, %g; st.global.u32 [%p0+20], %v;
    """
    result = run(body, np.zeros(6, "u4"), before=before)
    assert result[:1].view("f4")[0] == 2.5
    assert list(result[1:]) == [2, 0xFFFFFFFF, 0x00434241, 1, 0]


def test_spaces_of_generic_addresses() -> None:
    body = """
    .local .b32 here; .shared .b32 there; .reg .b64 %a, %b; .reg .pred %s, %l, %g; .reg .b32 %v, %w;
    mov.u64 %a, here; cvta.local.u64 %a, %a; isspacep.local %l, %a; isspacep.shared %s, %a; isspacep.global %g, %a;
    selp.u32 %v, 1, 0, %l; selp.u32 %w, 2, 0, %s; add.u32 %v, %v, %w; selp.u32 %w, 4, 0, %g; add.u32 %v, %v, %w;
    st.global.u32 [%p0], %v;
    isspacep.global %g, %p0; selp.u32 %w, 4, 0, %g; st.global.u32 [%p0+4], %w;
    mov.u64 %b, there; cvta.shared.u64 %b, %b; isspacep.shared %s, %b; selp.u32 %w, 2, 0, %s; st.global.u32 [%p0+8], %w;
    """
    assert list(run(body, np.zeros(3, "u4"))) == [1, 4, 2]


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


def test_cache_policies_change_nothing() -> None:
    code = """
    .reg .b64 %policy; createpolicy.fractional.L2::evict_last.b64 %policy, 0f3F800000; .shared .b32 x;
    createpolicy.range.global.L2::evict_last.L2::evict_unchanged.b64 %policy, [%p0], 4096, 8192;
    createpolicy.cvt.L2.b64 %policy, 0x1; fence.mbarrier_init.release.cluster;
    ld.mmio.relaxed.sys.global.u32 %d, [%base]; ld.global.L2::cache_hint.u32 %d, [%p1], %policy;"""
    values = np.arange(1, 5, dtype="u4")
    pointers = code.replace("ld.mmio", "ld.param.u64 %base, [p1]; .reg .b64 %p1; mad.wide.u32 %p1, %i, 4, %base; ld.mmio")
    np.testing.assert_array_equal(evaluate(pointers, "u4", values), values)


@pytest.mark.parametrize(
    ("register", "value"),
    [
        ("%cluster_ctarank", 0),
        ("%cluster_nctarank", 1),
        ("%cluster_ctaid.x", 0),
        ("%cluster_nctaid.y", 1),
        ("%nclusterid.x", 3),
        ("%envreg3", 0),
        ("%pm0", 0),
    ],
)
def test_registers_of_clusters_of_one_block(register: str, value: int) -> None:
    result = evaluate(f"mov.u32 %d, {register};", "u4", np.zeros(96, "u4"), block=32)
    assert set(result) == {value}
    blocks = evaluate("mov.u32 %d, %clusterid.x;", "u4", np.zeros(96, "u4"), block=32)
    np.testing.assert_array_equal(blocks, np.arange(96) // 32)


def test_vector_registers() -> None:
    code = """
    .reg .v4 .u32 %v; .reg .v2 .b32 %w<2>; mov.v4.u32 %v, %tid; add.u32 %v.y, %v.x, 10; mov.b32 %w1.x, %v.y; mov.b32 %w1.g, %v.w;
    mov.v2.b32 %w0, %w1; add.u32 %d0, %w0.r, %w0.y; .shared .align 16 .b8 s[16]; setp.eq.u32 %q, %n, 7;
    @%q st.shared.v4.u32 [s], %v; bar.sync 0; ld.shared.v4.u32 %v, [s]; mov.u32 %d1, %v.y;"""
    first, second = evaluate(code, ["u4", "u4"], np.zeros(32, "u4"), block=32)
    np.testing.assert_array_equal(first, np.arange(32) + 10)
    assert set(second) == {17}


def test_the_global_timer_tells_the_time() -> None:
    before = time.time_ns()
    whole, low, high = evaluate(
        "mov.u64 %d0, %globaltimer; mov.u32 %d1, %globaltimer_lo; mov.u32 %d2, %globaltimer_hi;",
        ["u8", "u4", "u4"],
        np.zeros(1, "u4"),
    )
    assert before <= int(whole[0]) <= int(high[0]) << 32 | int(low[0]) <= time.time_ns()
