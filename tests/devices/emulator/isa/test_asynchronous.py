"""Asynchronous copies and mbarriers."""

from __future__ import annotations

import numpy as np
import pytest

from kaasd.devices.base import KernelFault
from tests.devices.emulator.isa.test_load_store import run
from tests.devices.emulator.runner import evaluate


@pytest.mark.parametrize("size", [4, 8, 16])
def test_copies(size: int) -> None:
    body = f"""
    .shared .align 16 .b8 tile[64]; .reg .b32 %s; .reg .b64 %v<2>; mov.u32 %s, tile; st.shared.u64 [%s+24], -1;
    cp.async.ca.shared.global [%s+16], [%p0], {size}; cp.async.commit_group; cp.async.wait_group 0;
    ld.shared.v2.u64 {{%v0, %v1}}, [%s+16]; st.global.v2.u64 [%p0+16], {{%v0, %v1}};"""
    data = np.arange(1, 33, dtype="u1")
    result = run(body, data)[16:]
    expected = np.array([0] * 8 + [255] * 8, "u1")
    expected[:size] = data[:size]
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("given", [0, 5, 16, 20])
def test_copies_filled_with_zeros(given: int) -> None:
    body = f"""
    .shared .align 16 .b8 tile[16]; .reg .b32 %s; .reg .b64 %v<2>; mov.u32 %s, tile; st.shared.u64 [%s], -1;
    mov.u32 %n, {given}; cp.async.cg.shared.global.L2::128B [%s], [%p0], 16, %n; cp.async.wait_all;
    ld.shared.v2.u64 {{%v0, %v1}}, [%s]; st.global.v2.u64 [%p0+16], {{%v0, %v1}};"""
    data = np.arange(1, 33, dtype="u1")
    expected = np.zeros(16, "u1")
    expected[: min(given, 16)] = data[: min(given, 16)]
    np.testing.assert_array_equal(run(body, data)[16:], expected)


def test_copies_are_checked() -> None:
    body = ".shared .align 16 .b8 tile[16]; .reg .b32 %s; mov.u32 %s, tile; cp.async.ca.shared.global [%s{}], [%p0+{}], 16;"
    with pytest.raises(KernelFault, match="past its end"):
        run(body.format("", 32), np.zeros(32, "u1"))
    with pytest.raises(KernelFault, match="shared memory"):
        run(body.format("+16", 0), np.zeros(32, "u1"))
    with pytest.raises(KernelFault, match="not aligned"):
        run(body.format("", 8), np.zeros(32, "u1"))
    nothing = ".shared .align 16 .b8 tile[16]; .reg .b32 %s; mov.u32 %s, tile; cp.async.ca.shared.global [%s], [%p0+4096], 16, 0;"
    run(nothing, np.zeros(32, "u1"))


def test_mbarrier_phases() -> None:
    code = """
    .shared .align 8 .b64 bar; .shared .b32 sum; .reg .b64 %state; .reg .b32 %p; .reg .pred %first, %done;
    setp.eq.u32 %first, %i, 0; @%first mbarrier.init.shared::cta.b64 [bar], 96; bar.sync 0; mov.u32 %p, 0;
    PHASE: red.shared.add.u32 [sum], 1; mbarrier.arrive.shared::cta.b64 %state, [bar];
    WAIT: mbarrier.try_wait.parity.shared::cta.b64 %done, [bar], %p; @!%done bra WAIT;
    ld.shared.u32 %d0, [sum]; bar.sync 0; add.u32 %p, %p, 1; setp.lt.u32 %done, %p, 3; @%done bra PHASE;
    mbarrier.pending_count.b64 %d1, %state;"""
    total, pending = evaluate(code, ["u4", "u4"], np.zeros(96, "u4"), block=96)
    assert set(total) == {3 * 96}
    assert sorted(pending) == list(range(1, 97))


def test_mbarrier_tests_its_state() -> None:
    code = """
    .shared .align 8 .b64 bar; .reg .b64 %s; mbarrier.init.shared.b64 [bar], 2;
    mbarrier.arrive.shared.b64 %s, [bar]; mbarrier.test_wait.shared.b64 %d0, [bar], %s;
    mbarrier.arrive.shared.b64 _, [bar]; mbarrier.test_wait.shared.b64 %d1, [bar], %s;
    mbarrier.arrive_drop.shared.b64 _, [bar]; mbarrier.arrive.shared.b64 %s, [bar]; mbarrier.arrive.shared.b64 %s, [bar];
    mbarrier.test_wait.shared.b64 %d2, [bar], %s; mbarrier.inval.shared.b64 [bar];"""
    early, late, dropped = evaluate(code, ["?", "?", "?"], np.zeros(1, "u4"), block=1)
    assert (early[0], late[0], dropped[0]) == (False, True, True)


def test_mbarrier_waits_for_transactions() -> None:
    code = """
    .shared .align 8 .b64 bar; .reg .b64 %s; mbarrier.init.shared.b64 [bar], 1;
    mbarrier.arrive.expect_tx.shared.b64 %s, [bar], 48; mbarrier.test_wait.shared.b64 %d0, [bar], %s;
    mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [bar], 32; mbarrier.test_wait.shared.b64 %d1, [bar], %s;
    mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [bar], 16; mbarrier.test_wait.shared.b64 %d2, [bar], %s;
    mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [bar], 8; mbarrier.arrive.shared.b64 %s, [bar];
    mbarrier.test_wait.shared.b64 %d3, [bar], %s;"""
    results = evaluate(code, ["?"] * 4, np.zeros(1, "u4"), block=1)
    assert [bool(result[0]) for result in results] == [False, False, True, False]


@pytest.mark.parametrize("noinc", [False, True])
def test_mbarrier_counts_copies(noinc: bool) -> None:
    """Without ``.noinc`` the arrival of the copies is one more than the barrier's own count."""
    code = f"""
    .shared .align 8 .b64 bar; .reg .b64 %s; mbarrier.init.shared.b64 [bar], 2;
    cp.async.mbarrier.arrive{".noinc" if noinc else ""}.shared.b64 [bar]; mbarrier.arrive.shared.b64 %s, [bar];
    mbarrier.test_wait.parity.shared.b64 %d0, [bar], 0; mbarrier.pending_count.b64 %d1, %s;"""
    done, pending = evaluate(code, ["?", "u4"], np.zeros(1, "u4"), block=1)
    assert (done[0], pending[0]) == ((True, 1) if noinc else (False, 2))


def test_mbarrier_arrives_twice_without_completing() -> None:
    code = """
    .shared .align 8 .b64 bar; .reg .b64 %s, %t; mbarrier.init.shared.b64 [bar], 3;
    mbarrier.arrive.noComplete.shared.b64 %s, [bar], 2; mbarrier.test_wait.parity.shared.b64 %d0, [bar], 0;
    mbarrier.arrive.shared.b64 %t, [bar]; mbarrier.test_wait.parity.shared.b64 %d1, [bar], 0;
    mbarrier.test_wait.parity.shared.b64 %d2, [bar], 1; mbarrier.pending_count.b64 %d3, %s;"""
    early, late, next_one, pending = evaluate(code, ["?", "?", "?", "u4"], np.zeros(1, "u4"), block=1)
    assert (early[0], late[0], next_one[0], pending[0]) == (False, True, False, 3)


def test_mbarrier_drops_and_expects() -> None:
    code = """
    .shared .align 8 .b64 bar; .reg .b64 %s; mbarrier.init.shared.b64 [bar], 2;
    mbarrier.arrive_drop.expect_tx.release.cta.shared::cta.b64 _, [bar], 16; mbarrier.arrive.shared.b64 %s, [bar];
    mbarrier.test_wait.shared.b64 %d0, [bar], %s; mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [bar], 16;
    mbarrier.test_wait.shared.b64 %d1, [bar], %s; mbarrier.arrive.shared.b64 %s, [bar];
    mbarrier.test_wait.shared.b64 %d2, [bar], %s;"""
    results = evaluate(code, ["?"] * 3, np.zeros(1, "u4"), block=1)
    assert [bool(result[0]) for result in results] == [False, True, True]


def test_mbarrier_waits_by_its_state() -> None:
    code = """
    .shared .align 8 .b64 bar; .shared .b32 sum; .reg .b64 %s; .reg .pred %first, %done;
    setp.eq.u32 %first, %i, 0; @%first mbarrier.init.shared.b64 [bar], 64; bar.sync 0;
    red.shared.add.u32 [sum], 1; mbarrier.arrive.shared.b64 %s, [bar];
    WAIT: mbarrier.try_wait.acquire.cta.shared::cta.b64 %done, [bar], %s, 1000; @!%done bra WAIT; ld.shared.u32 %d, [sum];"""
    assert set(evaluate(code, "u4", np.zeros(64, "u4"), block=64)) == {64}


def test_mbarrier_drops_without_completing() -> None:
    code = """
    .shared .align 8 .b64 bar; .reg .b64 %s; mbarrier.init.shared.b64 [bar], 3;
    mbarrier.arrive_drop.noComplete.shared.b64 %s, [bar], 1; mbarrier.arrive.shared.b64 %s, [bar];
    mbarrier.arrive.shared.b64 %s, [bar]; mbarrier.test_wait.shared.b64 %d0, [bar], %s;
    mbarrier.arrive.shared.b64 %s, [bar]; mbarrier.arrive.shared.b64 %s, [bar]; mbarrier.test_wait.shared.b64 %d1, [bar], %s;"""
    first, second = evaluate(code, ["?", "?"], np.zeros(1, "u4"), block=1)
    assert (first[0], second[0]) == (True, True)
