"""Branches, calls and ends."""

from __future__ import annotations

from typing import Any

from kaasd.devices.emulator import calls
from kaasd.devices.emulator.emitter import Emitter
from kaasd.devices.emulator.layout import Fault, Status
from kaasd.devices.emulator.native import i32
from kaasd.devices.emulator.program import Elements, LabelName, Operand
from kaasd.devices.emulator.table import Flow, Match, instruction


@instruction("bra{.uni} *target", flow=Flow.BRANCH)
def bra(t: Emitter, m: Match, target: Operand) -> None:
    t.b.branch(t.go(target))


@instruction("brx.idx{.uni} a:u32, *targets", flow=Flow.BRANCH)
def brx(t: Emitter, m: Match, a: Any, targets: Operand) -> None:
    labels = t.routine.lists.get(targets.name, ()) if isinstance(targets, LabelName) else ()
    if not labels:
        raise t.error("the targets need a .branchtargets list")
    outside = t.b.append_basic_block("outside")
    switch = t.b.switch(a, outside)
    for index, label in enumerate(labels):
        switch.add_case(i32(index), t.go(LabelName(label)))
    t.b.position_at_end(outside)
    t.fault(Fault.TRAP)


@instruction("ret{.uni}", flow=Flow.END)
def ret(t: Emitter, m: Match) -> None:
    calls.return_from(t)


@instruction("exit", flow=Flow.END)
def exit_(t: Emitter, m: Match) -> None:
    t.end(Status.EXIT)


@instruction("trap", flow=Flow.END)
def trap(t: Emitter, m: Match) -> None:
    t.fault(Fault.TRAP)


@instruction("brkpt")
@instruction("pmevent{.mask} *a")
@instruction("griddepcontrol.action", action="launch_dependents wait")
@instruction("setmaxnreg.action.sync.aligned.u32 *count", action="inc dec")
def nothing(t: Emitter, m: Match, *operands: Any) -> None:
    """There is no debugger, no profiler, no kernel that starts before the one in front has ended, and no want of registers."""


@instruction("nanosleep.u32 *a", suspends=True)
def nanosleep(t: Emitter, m: Match, a: Operand) -> None:
    """Let other threads run."""
    t.suspend(Status.YIELD)


@instruction("call{.uni} *dresults, *target, *arguments, *prototype", suspends=True)
def call(t: Emitter, m: Match, results: Any, target: Any, arguments: Any, prototype: Any) -> None:
    calls.call(t, results, target, arguments, prototype)


__all__ = ["Elements"]
