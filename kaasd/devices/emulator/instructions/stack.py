"""Local memory taken as a function runs, and given back when it returns or before."""

from __future__ import annotations

from typing import Any

from kaasd.devices.emulator.calls import stack_end
from kaasd.devices.emulator.emitter import Emitter
from kaasd.devices.emulator.layout import CONTEXT, LAUNCH, THREAD, Fault
from kaasd.devices.emulator.native import I64, i64
from kaasd.devices.emulator.ptx import ast
from kaasd.devices.emulator.table import Match, instruction

DEFAULT_ALIGNMENT = 8


def _move_end(t: Emitter, end: Any) -> None:
    """Let the function's local memory end elsewhere, past its variables."""
    by = t.b.sub(end, stack_end(t))
    t.b.bump(THREAD, t.thread, "allocated", by)


@instruction("alloca.type d, a{, *alignment}", type="u32 u64")
def alloca(t: Emitter, m: Match, size: Any, alignment: Any) -> Any:
    b = t.b
    multiple = DEFAULT_ALIGNMENT if alignment is None else alignment.value if isinstance(alignment, ast.Integer) else 0
    if multiple < 1 or multiple & (multiple - 1):
        raise t.error("the alignment must be a power of two")
    start = b.and_(b.add(stack_end(t), i64(multiple - 1)), i64(-multiple))
    end = t.call("llvm.uadd.sat.i64", I64, start, b.resize(size, I64))
    limit = b.get(LAUNCH, b.get(CONTEXT, t.context, "launch"), "local_stride")
    t.fault_if(b.is_(">", end, limit), Fault.STACK)
    _move_end(t, b.and_(b.add(end, i64(15)), i64(-16)))
    return b.resize(start, m.type.raw)


@instruction("stacksave.type d", type="u32 u64")
def stacksave(t: Emitter, m: Match) -> Any:
    return t.b.resize(stack_end(t), m.type.raw)


@instruction("stackrestore.type a", type="u32 u64")
def stackrestore(t: Emitter, m: Match, saved: Any) -> None:
    """Give back what was taken since ``stacksave``."""
    end = t.b.resize(saved, I64)
    start = t.b.add(t.b.get(THREAD, t.thread, "local"), i64(t.routine.local_size))
    t.fault_if(t.b.or_(t.b.is_("<", end, start), t.b.is_(">", end, stack_end(t))), Fault.STACK)
    if t.routine.allocates:
        _move_end(t, end)
