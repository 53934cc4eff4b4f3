"""The order in which a warp passes the blocks of a routine, and where its threads may part."""

from __future__ import annotations

from random import Random

import pytest

from kaasd.devices.emulator.codegen.order import ControlFlow, reach
from kaasd.devices.emulator.isa.divergence import Divergence
from kaasd.devices.emulator.ptx.architecture import PtxSupport
from kaasd.devices.emulator.ptx.routine import Routine
from kaasd.devices.emulator.translation.unit import PtxUnit
from tests.devices.emulator.runner import kernel


def routine_of(body: str) -> Routine:
    return PtxUnit(kernel(body).decode(), PtxSupport((9, 0)), frozenset()).routine("k")


@pytest.mark.parametrize("seed", range(60))
def test_order(seed: int) -> None:
    """Random branches: what is on the way to a block comes before it, but for ways round a loop, and loops stand together."""
    random = Random(seed)
    count = random.randrange(2, 12)
    body = "".join(
        f"L{block}: setp.eq.u32 %q, %n, {block}; {'@%q ' * random.choice((0, 1, 1))}bra L{random.randrange(count)};\n"
        for block in range(count)
    )
    flow = ControlFlow.of(routine_of(body))
    assert sorted(flow.order) == flow.starts
    assert sorted(flow.order.values()) == list(range(len(flow.starts)))
    reached = reach([0], flow.successors, set(flow.starts))
    for block in reached:
        for successor in flow.successors[block]:
            if flow.order[successor] <= flow.order[block]:
                assert any(loop.head == successor and block in loop.blocks for loop in flow.loops)
    for loop in flow.loops:
        places = sorted(flow.order[block] for block in loop.blocks)
        assert places == list(range(places[0], places[0] + len(places)))
        assert flow.order[loop.head] == places[0]


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ("setp.eq.u32 %q, %n, 0; @%q bra OUT; add.u32 %n, %n, 1; OUT:", True),
        ("mov.u32 %u, %ctaid.x; setp.eq.u32 %q, %u, 0; @%q bra OUT; add.u32 %u, %u, 1; OUT:", False),
        # By what was loaded; by what was counted while threads were apart; by what was counted together.
        ("ld.global.u32 %n, [%p0]; setp.eq.u32 %q, %n, 0; @%q bra OUT; add.u32 %n, %n, 1; OUT:", True),
        ("mov.u32 %u, 0; L: add.u32 %u, %u, 1; setp.lt.u32 %q, %u, 9; @%q bra L;", False),
        ("mov.u32 %u, 0; L: add.u32 %u, %u, 1; setp.lt.u32 %q, %u, %n; @%q bra L; setp.lt.u32 %q, %u, 3; @%q bra L;", True),
    ],
)
def test_where_threads_part(body: str, parts: bool) -> None:
    routine = routine_of(".reg .b32 %u; " + body)
    assert bool(Divergence(routine, ControlFlow.of(routine)).partings) == parts
