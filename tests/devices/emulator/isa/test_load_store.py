"""Loads, stores, moves and addresses."""

from __future__ import annotations

import time

import numpy as np
import pytest

from tests.devices.emulator.numbers import array, edge_integers, wrap
from tests.devices.emulator.runner import (
    EVERYTHING,
    Array,
    array_of,
    buffer_of,
    device_for,
    evaluate,
    kernel,
    launch,
    read_write,
    run_launches,
)


def run(body: str, data: Array, threads: int = 1, before: str = "", shared: int = 0, target: str = "sm_90") -> Array:
    """Run a kernel whose ``%p0`` points to ``data``, and return the data afterwards."""
    device = device_for(target)
    try:
        module = device.load(kernel(body, before=before, target=target))
        buffer = buffer_of(device, data)
        run_launches(device, [launch(module, "k", (1, 1, 1), (threads, 1, 1), read_write("data", buffer), shared=shared)])
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
    target = EVERYTHING if size * count > 16 else "sm_90"
    np.testing.assert_array_equal(run(body, data, target=target)[64 : 64 + size * count], elements[::-1].ravel())


def test_uniform_loads() -> None:
    body = """
    .reg .b32 %v<3>; ldu.global.u32 %v0, [%p0+4]; ldu.global.v2.u32 {%v1, %v2}, [%p0+8];
    st.global.v2.u32 [%p0+16], {%v0, %v1}; st.global.u32 [%p0+24], %v2;"""
    assert run(body, np.array([5, 6, 7, 8, 0, 0, 0], "u4")).tolist() == [5, 6, 7, 8, 6, 7, 8]


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


def test_cache_policies_change_nothing() -> None:
    code = """
    .reg .b64 %policy; createpolicy.fractional.L2::evict_last.b64 %policy, 0f3F800000; .shared .b32 x;
    createpolicy.range.global.L2::evict_last.L2::evict_unchanged.b64 %policy, [%p0], 4096, 8192;
    createpolicy.cvt.L2.b64 %policy, 0x1; fence.mbarrier_init.release.cluster;
    prefetch.global.L2::evict_last [%base]; prefetch.L1 [%base]; prefetchu.L1 [%base];
    applypriority.L2::evict_normal [%base], 128; discard.global.L2 [%p0], 128;
    fence.acq_rel.gpu; fence.sc.sys; fence.proxy.alias; fence.proxy.async.shared::cta;
    ld.mmio.relaxed.sys.global.u32 %d, [%base]; ld.global.L2::cache_hint.u32 %d, [%p1], %policy;"""
    values = np.arange(1, 5, dtype="u4")
    pointers = ".reg .b64 %p1; ld.param.u64 %base, [p1]; mad.wide.u32 %p1, %i, 4, %base;"
    np.testing.assert_array_equal(evaluate(pointers + code, "u4", values), values)


@pytest.mark.parametrize(
    ("register", "value"),
    [
        ("%cluster_ctarank", 0),
        ("%cluster_nctarank", 1),
        ("%cluster_ctaid.x", 0),
        ("%cluster_nctaid.y", 1),
        ("%nclusterid.x", 3),
        ("%envreg1", 0),
        ("%envreg2", 0),
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
