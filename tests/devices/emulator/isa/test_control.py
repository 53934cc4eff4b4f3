"""Branches and barriers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.devices.emulator.runner import EVERYTHING, evaluate

INDICES = np.arange(64, dtype="u4")


def test_divergent_loop() -> None:
    code = """
    .reg .pred %more; .reg .b32 %k; mov.u32 %d, 0; mov.u32 %k, 0;
    LOOP: setp.lt.u32 %more, %k, %a; @!%more bra DONE; add.u32 %d, %d, %k; add.u32 %k, %k, 1; bra LOOP; DONE:"""
    np.testing.assert_array_equal(evaluate(code, "u4", INDICES), [sum(range(i)) for i in range(64)])


def test_long_loops_yield_and_go_on() -> None:
    code = """
    .reg .pred %more; .reg .b32 %k; mov.u32 %d, 0; mov.u32 %k, 0;
    LOOP: add.u32 %d, %d, %a; add.u32 %k, %k, 1; setp.lt.u32 %more, %k, 20000; @%more bra LOOP;"""
    np.testing.assert_array_equal(evaluate(code, "u4", INDICES), INDICES * 20000)


def test_branch_table() -> None:
    code = """
    .reg .b32 %k; and.b32 %k, %a, 3; TARGETS: .branchtargets ZERO, ONE, TWO, ONE; brx.idx %k, TARGETS;
    ZERO: mov.u32 %d, 10; bra DONE; ONE: mov.u32 %d, 11; bra DONE; TWO: mov.u32 %d, 12; DONE:"""
    np.testing.assert_array_equal(evaluate(code, "u4", INDICES), [[10, 11, 12, 11][i % 4] for i in range(64)])


def test_branch_table_of_numbered_labels() -> None:
    code = """
    .reg .b32 %k; rem.u32 %k, %a, 3; TARGETS: .branchtargets CASE<2>, DONE; mov.u32 %d, 9; brx.idx.uni %k, TARGETS;
    CASE0: mov.u32 %d, 10; bra DONE; CASE1: mov.u32 %d, 11; DONE:"""
    np.testing.assert_array_equal(evaluate(code, "u4", INDICES), [[10, 11, 9][i % 3] for i in range(64)])


def test_hints_to_the_hardware_do_nothing() -> None:
    code = """
    setmaxnreg.dec.sync.aligned.u32 40; griddepcontrol.wait; pmevent 3; pmevent.mask 0xff; brkpt; membar.proxy.alias;
    mov.u32 %d, %a; griddepcontrol.launch_dependents; setmaxnreg.inc.sync.aligned.u32 232;"""
    np.testing.assert_array_equal(evaluate(code, "u4", INDICES, target=EVERYTHING), INDICES)


def test_scopes_hide_names() -> None:
    code = """
    .reg .b32 %x; mov.u32 %x, 1; { .reg .b32 %x; mov.u32 %x, 2; bra L; L: add.u32 %d, %x, %a; }
    { bra L; L: add.u32 %d, %d, %x; }"""
    np.testing.assert_array_equal(evaluate(code, "u4", INDICES), INDICES + 3)


def test_barriers_count_and_combine() -> None:
    code = """
    .reg .pred %p; setp.lt.u32 %p, %a, 40;
    bar.red.popc.u32 %d0, 0, %p; barrier.cta.red.popc.aligned.u32 %d1, 2, 64, !%p;
    bar.red.and.pred %d2, 0, %p; barrier.red.or.pred %d3, 0, %p; bar.red.and.pred %d4, 0, !%d2;"""
    results = evaluate(code, ["u4", "u4", "?", "?", "?"], INDICES, block=64)
    assert [set(result) for result in results] == [{40}, {24}, {False}, {True}, {True}]


def test_registers_of_128_bits_outlive_a_barrier() -> None:
    """They are saved while the thread waits, with the alignment that a copy from memory to memory counts on."""
    code = """
    .shared .align 16 .b8 cells[1024]; .reg .b128 %wide; .reg .b64 %x, %y; .reg .b32 %cell, %next; .reg .pred %odd;
    mov.u32 %cell, cells; mad.lo.u32 %cell, %a, 16, %cell; cvt.u64.u32 %x, %a; st.shared.v2.u64 [%cell], {%x, -1};
    xor.b32 %next, %cell, 16; setp.eq.u32 %odd, 1, 1; bar.sync 0; ld.shared.b128 %wide, [%cell]; bar.sync 0;
    st.shared.b128 [%next], %wide; selp.u32 %d1, 7, 0, %odd; bar.sync 0;
    ld.shared.v2.u64 {%d0, %y}, [%cell]; add.u64 %d0, %d0, %y;"""
    low, seven = evaluate(code, ["u8", "u4"], INDICES, block=64)
    np.testing.assert_array_equal(low.astype("i8"), (INDICES ^ 1).astype("i8") - 1)
    assert set(seven) == {7}


@pytest.mark.parametrize("arrive", ["bar.arrive", "barrier.cta.arrive.aligned"])
def test_producers_and_consumers(arrive: str) -> None:
    code = f"""
    .shared .b32 cell; .reg .pred %consumer; setp.ge.u32 %consumer, %a, 32; @%consumer bra CONSUME;
    st.shared.u32 [cell], 42; {arrive} 1, 64; mov.u32 %d, 1; bra DONE;
    CONSUME: bar.sync 1, 64; ld.shared.u32 %d, [cell]; DONE:"""
    np.testing.assert_array_equal(evaluate(code, "u4", INDICES, block=64), [1] * 32 + [42] * 32)


def test_barrier_goes_on_without_threads_that_exited() -> None:
    code = """
    .shared .b32 cell; .reg .pred %gone; setp.ge.u32 %gone, %a, 40; @%gone exit;
    red.shared.add.u32 [cell], 1; bar.sync 0; ld.shared.u32 %d, [cell];"""
    np.testing.assert_array_equal(evaluate(code, "u4", INDICES, block=64), [40] * 40 + [0] * 24)
