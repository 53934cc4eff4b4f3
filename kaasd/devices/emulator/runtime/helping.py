"""What a core does for a launch, and how others come to help it. A part of the scheduler."""

from __future__ import annotations

from llvmlite import ir

from kaasd.devices.emulator.codegen.cores import INSIDE, LAUNCHES, OPEN, cycles, declare
from kaasd.devices.emulator.codegen.llvm_builder import I32, I64, PTR, i32, i64
from kaasd.devices.emulator.codegen.structures import (
    CONTEXT,
    LAUNCH,
    MOST_CLUSTER_BLOCKS,
    RUN,
    SEGMENT,
    TEAM,
    Fault,
    Segment,
    segment_entry,
)
from kaasd.devices.emulator.runtime.rendezvous import define

_AWAKE = 100_000
"""Cycles for which a core that has nothing to do looks out for another launch before it sleeps: some 40 µs."""
_ENDED = 2
"""Of what says that a run is to stop: a core has faulted. 1 is the word of who uses the device."""


def build_join(module: ir.Module) -> ir.Function:
    """Return what runs blocks of the launch at hand until there are none, and says so where one faults."""
    existing = module.globals.get("join")
    if existing is not None:
        return existing
    function, b = define(module, "join", I32, PTR)
    (context,) = function.args
    team = b.get(CONTEXT, context, "team")
    launch = b.get(TEAM, team, "launch")
    b.put(CONTEXT, context, launch=launch, launch_index=b.get(TEAM, team, "launch_index"))
    with b.count(i64(MOST_CLUSTER_BLOCKS)) as rank:
        b.put(SEGMENT, b.item(segment_entry(b, context, Segment.CLUSTER), SEGMENT.ir, rank), size=0, writable_size=0)
    parameters = segment_entry(b, context, Segment.PARAM)
    size = b.get(LAUNCH, launch, "arguments_size")
    b.put(SEGMENT, parameters, base=b.get(LAUNCH, launch, "arguments"), size=size, writable_size=0)
    fault = b.call(b.load_as(RUN.as_pointer(), b.field(LAUNCH, launch, "run")), [context])
    with b.when(b.and_(b.is_("!=", fault, Fault.NONE), b.is_("!=", fault, Fault.STOPPED)), likely=False):
        b.cmpxchg(b.field(TEAM, team, "faulty"), ir.Constant(PTR, None), context, "acq_rel", "monotonic")
        b.atomic_rmw("or", b.field(TEAM, team, "stop"), i32(_ENDED), "release")
    b.ret(fault)
    return function


def build_close(module: ir.Module) -> ir.Function:
    """Return what closes the gate, and waits until all have gone out."""
    function, b = define(module, "close_gate", ir.VoidType(), PTR)
    (context,) = function.args
    gate = b.field(TEAM, b.get(CONTEXT, context, "team"), "gate")
    b.atomic_rmw("and", gate, i64(~OPEN), "acq_rel")
    with b.while_(lambda: b.bits(b.load_atomic(gate, "acquire", 8, typ=I64), INSIDE)):
        b.call(declare(module, "sched_yield", I32), [])
    b.ret_void()
    return function


def build_help(module: ir.Module) -> None:
    """Emit ``help``: take part in every launch that calls, and return when the team is closed."""
    function, b = define(module, "help", ir.VoidType(), PTR)
    (context,) = function.args
    team = b.get(CONTEXT, context, "team")
    gate = b.field(TEAM, team, "gate")
    join = build_join(module)
    last, until = b.variable(I64, 0), b.variable(I64, 0)
    again, look = b.append_basic_block("again"), b.append_basic_block("look")
    b.branch(again)
    b.position_at_end(again)
    b.store(b.add(cycles(b), i64(_AWAKE)), until)
    b.branch(look)
    b.position_at_end(look)
    with b.when(b.is_("!=", b.load_atomic(b.field(TEAM, team, "closing"), "acquire", 4, typ=I32), 0), likely=False):
        b.ret_void()
    seen = b.load_atomic(gate, "acquire", 8, typ=I64)
    launch = b.and_(seen, i64(-LAUNCHES))
    with b.when(b.and_(b.bits(seen, OPEN), b.is_("!=", launch, b.load(last, typ=I64)))):
        came_in = b.extract_value(b.cmpxchg(gate, seen, b.add(seen, i64(1)), "acq_rel", "monotonic"), 1)
        with b.when(came_in):
            b.store(launch, last)
            b.put(CONTEXT, context, fault=0, site=0, address=0)
            b.atomic_rmw("add", b.field(TEAM, team, "joined"), i32(1), "monotonic")
            b.call(join, [context])
            b.atomic_rmw("sub", gate, i64(1), "release")
            b.branch(again)
        b.branch(look)
    with b.when(b.is_("<", cycles(b), b.load(until, typ=I64))):
        b.call(declare(module, "sched_yield", I32), [])
        b.branch(look)
    b.call(declare(module, "sem_wait", I32, PTR), [b.field(TEAM, team, "semaphore")])
    b.branch(again)
