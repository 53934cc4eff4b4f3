"""Which registers may hold another NaN than a GPU's for a while: arithmetic takes all NaNs alike, only others can tell.

So what a chain of arithmetic computes needs no look at each of its results; who stores the last one, or takes its bits, looks.
"""

from __future__ import annotations

from kaasd.devices.emulator.ptx import ast
from kaasd.devices.emulator.ptx.routine import Memory, Operation, Register, Routine
from kaasd.devices.emulator.ptx.types import F32

_INFINITY = 0x7F80_0000


def late_nans(routine: Routine) -> frozenset[int]:
    """Return the numbers of the registers that only arithmetic of single precision writes, and moves from such registers."""
    if not routine.is_entry:  # registers may be its results
        return frozenset()
    found: set[int] = set()
    not_so: set[int] = set()
    for operation in routine.operations:
        gives_numbers = _gives_numbers(operation) or _moved(operation) is not None
        for register in operation.writes:
            (found if gives_numbers and register.type.bits == 32 else not_so).add(register.index)
        raw = not operation.match.form.nans_alike and any(formal.kind == "raw" for formal in operation.match.form.operands)
        for operand in operation.operands:
            if isinstance(operand, Memory) and isinstance(operand.base, Register):
                not_so.add(operand.base.index)
        if raw:
            not_so.update(register.index for register in operation.reads)
    found -= not_so
    moves = [(op.writes[0].index, source.index) for op in routine.operations if isinstance(source := _moved(op), Register)]
    while lost := {target for target, source in moves if target in found and source not in found}:
        found -= lost
    return frozenset(found)


def takes_nans_alike(operation: Operation, late: frozenset[int]) -> bool:
    """Whether an operation gives the same for every NaN that it reads, or what it writes is late too."""
    if _moved(operation) is not None:
        return operation.writes[0].index in late
    return operation.match.form.nans_alike and operation.match.type is F32


def _gives_numbers(operation: Operation) -> bool:
    match = operation.match
    return match.form.nans_alike and match.type is F32 and "sat" not in match


def _moved(operation: Operation) -> Register | ast.Float | None:
    """Return what an operation moves as it is: a register, or a constant that is a number."""
    if operation.source.opcode != "mov" or not operation.match.form.nans_alike or operation.match.type.bits != 32:
        return None
    target, source = operation.operands
    if not isinstance(target, Register):
        return None
    if isinstance(source, ast.Float) and source.width == 32 and source.bits & 0x7FFF_FFFF <= _INFINITY:
        return source
    return source if isinstance(source, Register) and source.type.bits == 32 else None
