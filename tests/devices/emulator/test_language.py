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
