"""Operations of the threads of a warp, against the manual's definitions."""

from __future__ import annotations

import operator
import random
from functools import partial, reduce

import numpy as np
import pytest

from tests.devices.emulator.numbers import wrap
from tests.devices.emulator.runner import evaluate

FULL = 0xFFFFFFFF
VALUES = np.arange(64, dtype="u4") * 3 + 1000


def source_lane(mode: str, lane: int, b: int, c: int) -> tuple[int, bool]:
    """Return whose value a lane gets, and whether that is in range."""
    clamp, segment, by = c & 31, c >> 8 & 31, b & 31
    last = (lane & segment) | (clamp & ~segment & 31)
    low = lane & segment
    source = {"up": lane - by, "down": lane + by, "bfly": lane ^ by, "idx": low | (by & ~segment & 31)}[mode]
    inside = source >= last if mode == "up" else source <= last
    return (source if inside else lane), inside


@pytest.mark.parametrize("c", [0x1F, 0x0, 0x181F, 0x1C1F, 0x1800, 0x1C03])
@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shfl(mode: str, c: int) -> None:
    for by in (0, 1, 5, 16, 31):
        value, inside = evaluate(f"shfl.sync.{mode}.b32 %d0|%d1, %a, {by}, {c}, {FULL};", ["u4", "?"], VALUES)
        for i in range(64):
            lane, valid = source_lane(mode, i % 32, by, c)
            assert (value[i], inside[i]) == (VALUES[i - i % 32 + lane], valid), (i, by)


def test_shfl_with_an_index_of_its_own_for_each_thread() -> None:
    index = np.array([random.Random(i).randrange(32) for i in range(64)], "u4")
    value = evaluate(f"shfl.sync.idx.b32 %d, %a, %b, 31, {FULL};", "u4", VALUES, index)
    np.testing.assert_array_equal(value, VALUES.reshape(2, 32)[np.arange(64) // 32, index])


def test_shuffles_and_votes_without_a_mask() -> None:
    """As in PTX for compute capabilities before 7.0: of whoever is there."""
    a = np.array([i % 3 == 0 for i in range(64)], "?")
    other, inside = evaluate("shfl.down.b32 %d0|%d1, %a, 4, 31;", ["u4", "?"], VALUES)
    for i in range(64):
        assert (other[i], inside[i]) == ((VALUES[i + 4], True) if i % 32 < 28 else (VALUES[i], False))
    code = "vote.all.pred %d0, %a; vote.any.pred %d1, %a; vote.uni.pred %d2, !%a; vote.ballot.b32 %d3, %a;"
    every, some, same, ballot = evaluate(code, ["?", "?", "?", "u4"], a)
    assert (set(every), set(some), set(same)) == ({False}, {True}, {False})
    for i in range(64):
        assert ballot[i] == sum(1 << lane for lane in range(32) if a[i // 32 * 32 + lane])


def test_vote() -> None:
    a = np.array([i < 32 or i % 3 == 0 for i in range(64)], "?")
    every, some, same, ballot = evaluate(
        f"vote.sync.all.pred %d0, %a, {FULL}; vote.sync.any.pred %d1, !%a, {FULL}; vote.sync.uni.pred %d2, %a, {FULL};"
        f"vote.sync.ballot.b32 %d3, %a, {FULL};",
        ["?", "?", "?", "u4"],
        a,
    )
    for warp in range(2):
        lanes = a[warp * 32 : warp * 32 + 32]
        expected = (lanes.all(), (~lanes).any(), lanes.all() or not lanes.any(), sum(1 << i for i in range(32) if lanes[i]))
        for i in range(warp * 32, warp * 32 + 32):
            assert (every[i], some[i], same[i], ballot[i]) == expected


@pytest.mark.parametrize(("ptx", "kind"), [("b32", "u4"), ("b64", "u8")])
def test_match(ptx: str, kind: str) -> None:
    a = np.array([7 if i < 32 else i % 5 << 20 for i in range(64)], kind)
    some, every, flag = evaluate(
        f"match.any.sync.{ptx} %d0, %a, {FULL}; match.all.sync.{ptx} %d1|%d2, %a, {FULL};", ["u4", "u4", "?"], a
    )
    for i in range(64):
        warp = i // 32 * 32
        same = sum(1 << j for j in range(32) if a[warp + j] == a[i])
        assert (some[i], every[i], flag[i]) == (same, FULL if warp == 0 else 0, warp == 0)


REDUCTIONS = {
    "add": ("u32 s32", sum),
    "min": ("u32 s32", min),
    "max": ("u32 s32", max),
    "and": ("b32", partial(reduce, operator.and_)),
    "or": ("b32", partial(reduce, operator.or_)),
    "xor": ("b32", partial(reduce, operator.xor)),
}


@pytest.mark.parametrize("opcode", REDUCTIONS)
def test_redux_under_a_mask(opcode: str) -> None:
    types, function = REDUCTIONS[opcode]
    a = np.random.default_rng(1).integers(0, 2**32, 32, dtype=np.uint32)
    mask = 0x0FF0F00F
    for ptx in types.split():
        code = f"""
        .reg .pred %in; .reg .b32 %m; mov.u32 %m, %lanemask_eq; and.b32 %m, %m, {mask}; setp.ne.u32 %in, %m, 0;
        mov.u32 %d, 0; @%in redux.sync.{opcode}.{ptx} %d, %a, {mask};"""
        result = evaluate(code, "u4", a)
        expected = function([wrap(int(a[i]), ptx) for i in range(32) if mask >> i & 1])
        for i in range(32):
            assert result[i] == (wrap(expected, "u32") if mask >> i & 1 else 0)


def test_elect() -> None:
    code = """
    .reg .pred %in; mov.u32 %d0, 99; setp.lt.u32 %d1, 1, 0; setp.ge.u32 %in, %a, 4;
    @%in elect.sync %d0|%d1, 0xFFFFFFF0;"""
    leader, chosen = evaluate(code, ["u4", "?"], np.arange(32, dtype="u4"))
    assert list(leader) == [99] * 4 + [4] * 28
    assert list(np.flatnonzero(chosen)) == [4]


def test_activemask_of_whoever_is_there() -> None:
    code = """
    .reg .pred %odd; .reg .b32 %o; and.b32 %o, %a, 1; setp.eq.u32 %odd, %o, 1;
    @%odd bra ODD; activemask.b32 %d; bra DONE; ODD: activemask.b32 %d; DONE: bar.warp.sync 0xFFFFFFFF;"""
    result = evaluate(code, "u4", np.arange(32, dtype="u4"))
    assert list(result) == [0x55555555, 0xAAAAAAAA] * 16


def test_groups_under_different_masks() -> None:
    code = """
    .reg .pred %low; setp.lt.u32 %low, %a, 16; @%low bra LOW;
    shfl.sync.bfly.b32 %d, %a, 1, 31, 0xFFFF0000; shfl.sync.bfly.b32 %d, %d, 2, 31, 0xFFFF0000; bra DONE;
    LOW: shfl.sync.bfly.b32 %d, %a, 8, 31, 0x0000FFFF; DONE: shfl.sync.idx.b32 %d, %d, 31, 31, 0xFFFFFFFF;"""
    assert set(evaluate(code, "u4", np.arange(32, dtype="u4"))) == {31 ^ 1 ^ 2}


def test_lane_registers() -> None:
    names = ["%laneid", "%lanemask_eq", "%lanemask_lt", "%lanemask_le", "%lanemask_gt", "%lanemask_ge", "%warpid", "%nwarpid"]
    code = "\n".join(f"mov.u32 %d{i}, {name};" for i, name in enumerate(names))
    results = evaluate(code, ["u4"] * len(names), np.zeros(96, "u4"), block=96)
    for i in range(96):
        lane = i % 32
        expected = [
            lane,
            1 << lane,
            (1 << lane) - 1,
            (2 << lane) - 1,
            FULL & ~((2 << lane) - 1),
            FULL & ~((1 << lane) - 1),
            i // 32,
            3,
        ]
        assert [int(result[i]) for result in results] == expected
