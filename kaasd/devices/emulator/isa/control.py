"""Branches, and ends of functions and threads."""

from __future__ import annotations

from typing import Any

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.frames import return_from
from kaasd.devices.emulator.codegen.llvm_builder import i32
from kaasd.devices.emulator.codegen.structures import Fault, Status
from kaasd.devices.emulator.isa.table import instruction
from kaasd.devices.emulator.ptx.forms import Flow, Match
from kaasd.devices.emulator.ptx.routine import LabelName, Operand


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
    return_from(t)


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
    t.suspend(Status.PAUSE)
