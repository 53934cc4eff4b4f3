"""What PTX has besides instructions: declarations, addresses, names, directives."""

from __future__ import annotations

import numpy as np
import pytest

from kaasd.devices.emulator.runtime.device import EmulatedDevice
from tests.devices.emulator.runner import HEADER, evaluate

INDICES = np.arange(40, dtype="u4")


def test_variables_of_a_function_that_live_as_long_as_the_module() -> None:
    before = """
    .func (.reg .b32 %r) next () { .global .u32 count = 7; atom.global.add.u32 %r, [count], 1; ret; }
    .func (.reg .b32 %r) other () { .const .u32 count[2] = {3, 1000}; ld.const.u32 %r, [count+4]; ret; }"""
    code = ".reg .b32 %x; call (%d), next, (); call (%x), other, (); add.u32 %d, %d, %x;"
    assert sorted(evaluate(code, "u4", INDICES, before=before)) == [1007 + i for i in range(40)]


def test_parameterised_names_of_variables() -> None:
    code = "st.global.u32 [cell1], 5; st.global.u32 [cell0], 4; ld.global.u32 %d, [cell1];"
    assert set(evaluate(code, "u4", INDICES, before=".global .u32 cell<2>;")) == {5}


def test_registers_plus_constants() -> None:
    code = """
    .reg .b64 %w; .reg .b16 %h, %k; .reg .b32 %x; .shared .u32 cell[64]; cvt.u64.u32 %w, %a; mov.u64 %w, %w+0x100000000;
    cvt.u16.u32 %h, %a; mov.b16 %k, %h+65535; cvt.u32.u16 %x, %h+0xffff; add.u32 %d, %a+1, %a+-1;
    shr.u64 %w, %w+1, 32; cvt.u32.u64 %d, %w; mad.lo.u32 %d, %d, 1000, %x; st.shared.u32 [cell], %d+7;
    ld.shared.u32 %d, [cell];"""
    expected = 1007 + ((INDICES + 0xFFFF) & 0xFFFF)
    np.testing.assert_array_equal(evaluate(code, "u4", INDICES, block=1, before=""), expected)


def test_functions_of_vector_registers() -> None:
    before = """
    .func (.reg .v2 .b32 %r) swap (.reg .v2 .b32 %v) { mov.b32 %r.x, %v.y; mov.b32 %r.y, %v.x; ret; }
    .func (.reg .b64 %r) dot (.reg .b16 %n, .reg .v4 .u32 %v, .reg .v2 .b32 %w) {
      .reg .b32 %x; mul.lo.u32 %x, %v.x, %w.x; mad.lo.u32 %x, %v.w, %w.y, %x; mad.lo.u32 %x, %v.r, 1000, %x;
      cvt.u64.u32 %r, %x; ret; }"""
    code = """
    .reg .v2 .b32 %v, %w; .reg .v4 .b32 %q; .reg .b64 %l; .reg .b16 %n; mov.b32 %v.x, %a; mov.b32 %v.y, 5;
    call (%w), swap, (%v); mov.b32 %q.x, 2; mov.b32 %q.y, 77; mov.b32 %q.z, 78; mov.b32 %q.w, 3; mov.b16 %n, 1;
    call (%l), dot, (%n, %q, %w); cvt.u32.u64 %d, %l; P: .callprototype (.reg .v2 .b32 _) _ (.reg .v2 .b32 _);
    mov.u64 %l, swap; call (%v), %l, (%w), P; mad.lo.u32 %d, %v.x, 10000, %d;"""
    expected = 2 * 5 + 3 * INDICES + 2000 + 10000 * INDICES
    np.testing.assert_array_equal(evaluate(code, "u4", INDICES, before=before), expected)


def test_a_last_parameter_of_any_size() -> None:
    before = """
    .func (.param .b32 sum) total (.param .b32 n, .param .align 8 .b8 rest[]) {
      .reg .b32 %n, %s, %x; .reg .b64 %p; .reg .pred %more; ld.param.b32 %n, [n]; ld.param.b32 %s, [rest]; mov.b64 %p, rest;
      add.u64 %p, %p, 4;
      L: sub.u32 %n, %n, 1; setp.gt.s32 %more, %n, 0; @!%more bra E; ld.local.b32 %x, [%p]; add.u32 %s, %s, %x;
      add.u64 %p, %p, 4; bra L; E: st.param.b32 [sum], %s; ret; }"""
    code = """
    .param .b32 r, n; .param .align 8 .b8 few[8]; .param .align 8 .b8 many[16]; .reg .b32 %x;
    st.param.b32 [n], 2; st.param.b32 [few], %a; st.param.b32 [few+4], 100; call (r), total, (n, few); ld.param.b32 %d, [r];
    st.param.b32 [n], 4; st.param.v4.b32 [many], {1000, 2000, 3000, %a}; call (r), total, (n, many); ld.param.b32 %x, [r];
    add.u32 %d, %d, %x;"""
    np.testing.assert_array_equal(evaluate(code, "u4", INDICES, before=before), 2 * INDICES + 6100)


def test_groups_of_bulk_copies_without_copies() -> None:
    code = "cp.async.bulk.commit_group; cp.async.bulk.wait_group.read 0; cp.async.bulk.wait_group 1; mov.b32 %d, %a;"
    np.testing.assert_array_equal(evaluate(code, "u4", INDICES, before=""), INDICES)


def test_aliases() -> None:
    before = """
    .visible .func (.reg .b32 %r) twice (.reg .b32 %x) { add.u32 %r, %x, %x; ret; }
    .visible .func (.reg .b32 %r) also (.reg .b32 %x);
    .alias also, twice;
    .global .u64 pointers[2] = {also, twice};
    """
    code = """
    .reg .b64 %f; .reg .b32 %x; call (%d), also, (%a); ld.global.u64 %f, [pointers];
    P: .callprototype (.reg .b32 _) _ (.reg .b32 _); call (%x), %f, (%a), P; add.u32 %d, %d, %x; mov.u64 %f, also;
    call (%x), %f, (%a), P; add.u32 %d, %d, %x;"""
    np.testing.assert_array_equal(evaluate(code, "u4", INDICES, before=before), INDICES * 6)


def test_arrays_with_an_index() -> None:
    before = ".global .u16 halves[4] = {10, 11, 12, 13}; .global .u64 words[40];"
    code = """
    .shared .b32 cells[64]; .reg .b32 %x, %k; .reg .b64 %w, %wide; .reg .b16 %h;
    cvt.u64.u32 %wide, %a; st.shared.u32 cells[%a+1], %a; mov.u32 %x, cells[1]; mad.lo.u32 %x, %a, 4, %x; ld.shared.u32 %x, [%x];
    st.global.u64 words[%wide], %wide; mov.u64 %w, words[%a]; ld.global.u64 %wide, [%w];
    cvt.u32.u64 %k, %wide; mad.lo.u32 %d, %k, 100, %x;
    ld.global.u16 %h, halves[3]; cvt.u32.u16 %k, %h; mad.lo.u32 %d, %k, 10000, %d;"""
    expected = 13 * 10000 + INDICES * 100 + INDICES
    np.testing.assert_array_equal(evaluate(code, "u4", INDICES, block=64, before=before), expected)


def test_words_that_only_advise() -> None:
    before = ".global .attribute(.managed) .u32 x; .func .attribute(.unified(1, 2)) nothing () { ret; } .const[3] .u32 c = 5;"
    code = "ld.global.u32 %d, [x].unified; call nothing; ld.const[3].u32 %d, [c];"
    assert set(evaluate(code, "u4", INDICES, before=before)) == {5}


def test_modifiers_in_another_order() -> None:
    """As ptxas takes them, and headers of NVIDIA have them."""
    code = """
    .shared .b32 cell; .reg .b32 %x; st.shared.b32 [cell], 0; bar.sync 0;
    atom.add.acquire.cta.shared.u32 %x, [cell], 1; red.shared.u32.add.relaxed.gpu [cell], 1; bar.sync 0;
    ld.u32.shared.volatile %d, [cell];"""
    assert set(evaluate(code, "u4", INDICES, block=40)) == {80}


ONE_BLOCK = [".reqnctapercluster 1", ".maxclusterrank 8", ".reqntid 32 .reqnctapercluster 1, 1, 1 .blocksareclusters"]


@pytest.mark.parametrize("directive", ONE_BLOCK)
def test_clusters_of_one_block(directive: str) -> None:
    device = EmulatedDevice()
    try:
        assert device.load(f"{HEADER}.visible .entry k() {directive} {{ ret; }}".encode()).kernels["k"]
    finally:
        device.close()


@pytest.mark.parametrize("part", ["begin", "end", "cap", "0", "1"])
def test_no_shared_memory_is_reserved(part: str) -> None:
    assert set(evaluate(f"mov.u32 %d, %reserved_smem_offset_{part};", "u4", INDICES)) == {0}
