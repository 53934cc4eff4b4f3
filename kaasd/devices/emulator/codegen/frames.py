"""Frames of functions: where functions and their local memory are, and how one returns to the one that called it."""

from __future__ import annotations

from llvmlite import ir

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.llvm_builder import i64
from kaasd.devices.emulator.codegen.structures import FRAME, OFFSET_BITS, THREAD, Segment, Status

FUNCTION_SPACING = 16
"""Distance between the device addresses of functions."""


def function_address(index: int) -> int:
    """Return the device address of a module's function number ``index``."""
    return Segment.FUNCTION << OFFSET_BITS | (index + 1) * FUNCTION_SPACING


def stack_end(t: Emitter) -> ir.Value:
    """Where the current function's local memory ends, in the thread's."""
    end = t.b.add(t.b.get(THREAD, t.thread, "local"), i64(t.routine.local_size))
    return t.b.add(end, t.b.get(THREAD, t.thread, "allocated")) if t.routine.allocates else end


def return_from(t: Emitter) -> None:
    """End the routine: the thread exits, or its caller goes on."""
    b, routine = t.b, t.routine
    if routine.is_entry:
        t.end(Status.EXIT)
        return
    for offset, register in routine.formals_of(routine.signature.results):
        b.store_as(t.load_register(register), t.local_pointer(offset), "memory")
    frame = b.get(THREAD, t.thread, "frame")
    b.put(THREAD, t.thread, **{name: b.get(FRAME, frame, name) for name in ("function", "frame", "local", "allocated")})
    t.end(Status.CALL)
