"""How the cores of one launch share out its clusters, most of one block: each takes some at a time, until none is left.

A launch begins on one core. If it has run for some time, and blocks are left, it opens the gate and wakes the others, which come
in, take blocks, and go out when there are none. So a short launch costs no more than without them. The gate is a number: the
launches so far, whether it is open, and how many are inside.
"""

from __future__ import annotations

from llvmlite import ir

from kaasd.devices.emulator.codegen.llvm_builder import I32, I64, PTR, Builder, i64
from kaasd.devices.emulator.codegen.structures import CONTEXT, LAUNCH, TEAM

CALL_AFTER = 30_000
"""Cycles that a launch runs on one core before it calls the others: some 10 µs. To wake one takes as long."""
INSIDE = (1 << 16) - 1
"""Of the gate: how many are inside."""
OPEN = 1 << 16
LAUNCHES = 1 << 17
"""What another launch adds to the gate."""
_PIECES = 8
"""Of what is left a core takes one part in so many for each core there is: less and less, so that all end at about one time."""
_MOST = 64
"""Blocks that a core takes at once: another may be waiting for what they do."""


def declare(module: ir.Module, name: str, result: ir.Type, *arguments: ir.Type) -> ir.Function:
    """Return a function of LLVM or of the C library."""
    existing = module.globals.get(name)
    return existing if existing is not None else ir.Function(module, ir.FunctionType(result, arguments), name)


def cycles(b: Builder) -> ir.Value:
    """Return the processor's cycles so far."""
    return b.call(declare(b.module, "llvm.readcyclecounter", I64), [])


def take(b: Builder, context: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Take clusters: the place of the first in their order, and of the one behind the last. None is left if both are one."""
    launch, team = b.get(CONTEXT, context, "launch"), b.get(CONTEXT, context, "team")
    blocks, cores = b.get(LAUNCH, launch, "clusters"), b.get(LAUNCH, launch, "cores")
    following = b.field(TEAM, team, "next")
    known = b.load_atomic(following, "monotonic", 8, typ=I64)
    left = b.select(b.is_("<", known, blocks), b.sub(blocks, known), i64(0))
    share = b.udiv(left, b.mul(cores, i64(_PIECES)))
    share = b.select(b.is_("<", share, _MOST), share, i64(_MOST))
    share = b.select(b.is_("==", share, 0), i64(1), share)
    share = b.select(b.is_("==", cores, 1), blocks, share)
    first = b.atomic_rmw("add", following, share, "monotonic")
    end = b.add(first, share)
    end = b.select(b.is_("<", end, blocks), end, blocks)
    return b.select(b.is_("<", first, blocks), first, end), end


def call_others(b: Builder, context: ir.Value) -> None:
    """Call the other cores if it is time to."""
    at = b.get(CONTEXT, context, "call_at")
    with b.when(b.is_("!=", at, 0), likely=False), b.when(b.is_(">", cycles(b), at), likely=False):
        b.call(_open_gate(b.module), [context])


def _open_gate(module: ir.Module) -> ir.Function:
    """Open the gate, and wake as many cores as there are blocks left."""
    existing = module.globals.get("open_gate")
    if existing is not None:
        return existing
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [PTR]), "open_gate")
    function.linkage = "internal"
    function.attributes.add("noinline")
    b = Builder(function.append_basic_block("entry"))
    (context,) = function.args
    b.put(CONTEXT, context, call_at=0)
    launch, team = b.get(CONTEXT, context, "launch"), b.get(CONTEXT, context, "team")
    gate = b.field(TEAM, team, "gate")
    following = b.load_atomic(b.field(TEAM, team, "next"), "monotonic", 8, typ=I64)
    blocks = b.get(LAUNCH, launch, "clusters")
    left = b.select(b.is_("<", following, blocks), b.sub(blocks, following), i64(0))
    others = b.sub(b.get(LAUNCH, launch, "cores"), i64(1))
    b.atomic_rmw("add", gate, i64(LAUNCHES | OPEN), "release")
    with b.count(b.select(b.is_("<", left, others), left, others)):
        b.call(declare(module, "sem_post", I32, PTR), [b.field(TEAM, team, "semaphore")])
    b.ret_void()
    return function
