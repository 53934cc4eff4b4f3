"""Calls, and local memory taken in the run."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kaasd.devices.base import KernelFault
from tests.devices.emulator.runner import evaluate

INDICES = np.arange(64, dtype="u4")
SIZES = np.arange(1, 41, dtype="u4")

SUM = """
{ .reg .b64 %room, %at; .reg .b32 %k; .reg .pred %p; .reg .b64 %size;
mul.wide.u32 %size, %a, 4; alloca.u64 %room, %size; mov.u32 %k, 0;
FILL: mad.wide.u32 %at, %k, 4, %room; st.local.u32 [%at], %k; add.u32 %k, %k, 1; setp.lt.u32 %p, %k, %a; @%p bra FILL;
mov.u32 %d, 0; mov.u32 %k, 0;
ADD: mad.wide.u32 %at, %k, 4, %room; ld.local.u32 %size32, [%at]; add.u32 %d, %d, %size32; add.u32 %k, %k, 1;
setp.lt.u32 %p, %k, %a; @%p bra ADD; }
"""
"""The sum of the numbers below %a, from an array of that size."""


@pytest.mark.parametrize("end", ["", "bar.sync 0;"])
def test_arrays(end: str) -> None:
    expected = [sum(range(n)) for n in SIZES]
    np.testing.assert_array_equal(evaluate(f".reg .b32 %size32; {SUM} {end}", "u4", SIZES, block=64), expected)


def test_alignment_and_generic_addresses() -> None:
    code = """
    .reg .b64 %x, %y, %g; .reg .b32 %low; alloca.u64 %x, 5; alloca.u64 %y, 24, 128; cvta.local.u64 %g, %y;
    st.local.u8 [%x+4], 7; st.u32 [%g], %a; ld.local.u32 %d0, [%y]; cvt.u32.u64 %low, %y; and.b32 %d1, %low, 127;
    cvt.u32.u64 %low, %x; and.b32 %d2, %low, 7;"""
    value, low, other = evaluate(code, ["u4", "u4", "u4"], SIZES)
    np.testing.assert_array_equal(value, SIZES)
    assert set(low) == set(other) == {0}


def test_what_is_given_back_is_taken_again() -> None:
    """Without that, the loop would need 40 times the stack."""
    code = """
    .reg .b64 %mark, %x, %first, %k; .reg .pred %p; mov.u64 %k, 0; mov.u64 %first, 0;
    LOOP: stacksave.u64 %mark; alloca.u64 %x, 60000; setp.eq.u64 %p, %k, 0; @%p mov.u64 %first, %x;
    stackrestore.u64 %mark; add.u64 %k, %k, 1; setp.lt.u64 %p, %k, 40; @%p bra LOOP; sub.u64 %d, %x, %first;"""
    assert set(evaluate(code, "u8", SIZES)) == {0}


def test_called_functions_have_their_own() -> None:
    before = """
    .func (.param .b32 r) fill (.param .b32 n, .param .b32 value) {
      .reg .b64 %room; .reg .b32 %n, %v; .local .b32 spot;
      ld.param.u32 %n, [n]; ld.param.u32 %v, [value]; cvt.u64.u32 %room, %n; alloca.u64 %room, %room;
      st.local.u32 [%room], %v; st.local.u32 [spot], 9; ld.local.u32 %v, [%room]; st.param.u32 [r], %v; ret; }"""
    code = """
    .reg .b64 %mine; .reg .b32 %x; .param .b32 n; .param .b32 value; .param .b32 r;
    alloca.u64 %mine, 64; st.local.u32 [%mine+60], %a; st.param.u32 [n], 64; st.param.u32 [value], 1000;
    call (r), fill, (n, value); ld.param.u32 %x, [r]; alloca.u64 %mine, 4; st.local.u32 [%mine], %x;
    call (r), fill, (n, value); ld.local.u32 %d, [%mine];
    sub.u64 %mine, %mine, 4; ld.local.u32 %x, [%mine]; add.u32 %d, %d, %x;"""
    np.testing.assert_array_equal(evaluate(code, "u4", SIZES, before=before), SIZES + 1000)


@pytest.mark.parametrize("code", ["alloca.u64 %d, 100000;", "alloca.u64 %d, -1;", "mov.u64 %d, 12345678; stackrestore.u64 %d;"])
def test_more_than_there_is(code: str) -> None:
    with pytest.raises(KernelFault) as caught:
        evaluate(code, "u8", SIZES)
    assert caught.value.fault == "CUDA_ERROR_HARDWARE_STACK_ERROR"


FACTORIAL = """
.func (.param .b64 r) factorial (.param .b64 n) {
  .reg .b64 %n, %m; .reg .pred %p;
  ld.param.u64 %n, [n]; setp.le.u64 %p, %n, 1; @%p bra ONE;
  sub.u64 %m, %n, 1;
  { .param .b64 a; .param .b64 b; st.param.u64 [a], %m; call.uni (b), factorial, (a); ld.param.u64 %m, [b]; }
  mul.lo.u64 %n, %n, %m; st.param.u64 [r], %n; ret;
  ONE: st.param.u64 [r], 1; ret;
}
"""


def test_recursion() -> None:
    code = ".param .b64 a; .param .b64 b; st.param.u64 [a], %a; call (b), factorial, (a); ld.param.u64 %d, [b];"
    result = evaluate(code, "u8", np.arange(20, dtype="u8"), before=FACTORIAL)
    np.testing.assert_array_equal(result, [math.factorial(i) for i in range(20)])


def test_registers_as_parameters() -> None:
    before = ".func (.reg .b32 %r) twice (.reg .b32 %x) { add.u32 %r, %x, %x; ret; }"
    np.testing.assert_array_equal(evaluate("call (%d), twice, (%a);", "u4", INDICES, before=before), INDICES * 2)


def test_barrier_and_shuffle_inside_a_function() -> None:
    before = """
    .shared .b32 total;
    .func (.param .b32 r) sum (.param .b32 x) {
      .reg .b32 %x, %y; ld.param.u32 %x, [x];
      shfl.sync.bfly.b32 %y, %x, 1, 31, 0xFFFFFFFF; add.u32 %x, %x, %y;
      red.shared.add.u32 [total], %x; bar.sync 0; ld.shared.u32 %y, [total]; st.param.u32 [r], %y; ret;
    }"""
    code = ".param .b32 a; .param .b32 b; st.param.u32 [a], %a; call (b), sum, (a); ld.param.u32 %d, [b];"
    assert set(evaluate(code, "u4", INDICES, before=before, block=64)) == {2 * sum(range(64))}


def test_indirect_calls() -> None:
    before = """
    .func (.param .b32 r) plus (.param .b32 x) {
      .reg .b32 %x; ld.param.u32 %x, [x]; add.u32 %x, %x, 5; st.param.u32 [r], %x; ret; }
    .func (.param .b32 r) times (.param .b32 x) {
      .reg .b32 %x; ld.param.u32 %x, [x]; mul.lo.u32 %x, %x, 5; st.param.u32 [r], %x; ret; }
    .global .align 8 .u64 table[2] = {plus, times};
    """
    code = """
    .reg .b64 %f, %t; .reg .b32 %k; and.b32 %k, %a, 1; mov.u64 %t, table; mad.wide.u32 %t, %k, 8, %t; ld.global.u64 %f, [%t];
    P: .callprototype (.param .b32 _) _ (.param .b32 _);
    .param .b32 a; .param .b32 b; st.param.u32 [a], %a; call (b), %f, (a), P; ld.param.u32 %d, [b];"""
    result = evaluate(code, "u4", INDICES, before=before)
    np.testing.assert_array_equal(result, np.where(INDICES % 2 == 0, INDICES + 5, INDICES * 5))


def test_structures_by_value() -> None:
    before = """
    .func (.param .align 8 .b8 r[16]) swap (.param .align 8 .b8 x[16]) {
      .reg .b64 %a, %b; ld.param.v2.u64 {%a, %b}, [x]; st.param.v2.u64 [r], {%b, %a}; ret; }"""
    before = before.replace("align 8", "align 16")
    code = """
    .param .align 16 .b8 a[16]; .param .align 16 .b8 b[16]; .reg .b64 %x; st.param.u64 [a], %a; st.param.u64 [a+8], 77;
    call (b), swap, (a); ld.param.u64 %d0, [b]; ld.param.u64 %d1, [b+8];"""
    first, second = evaluate(code, ["u8", "u8"], np.arange(8, dtype="u8"), before=before)
    assert set(first) == {77}
    np.testing.assert_array_equal(second, np.arange(8))
