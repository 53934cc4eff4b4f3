"""Arithmetic of extended precision, through the carry flag."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.llvm_builder import const
from kaasd.devices.emulator.isa.integer import high
from kaasd.devices.emulator.isa.table import instruction
from kaasd.devices.emulator.ptx.forms import Match

TYPES = "u32 s32 u64 s64"


def _add(t: Emitter, a: Any, b: Any, carry: Any) -> tuple[Any, Any]:
    """The sum, and whether it left its width."""
    wide = ir.IntType(a.type.width + 1)
    total = t.b.add(t.b.zext(a, wide), t.b.zext(b, wide))
    if carry is not None:
        total = t.b.add(total, t.b.zext(carry, wide))
    return t.b.trunc(total, a.type), t.b.trunc(t.b.lshr(total, const(wide, a.type.width)), ir.IntType(1))


def _subtract(t: Emitter, a: Any, b: Any, carry: Any) -> tuple[Any, Any]:
    """The difference, and the flag: as the hardware has it, the carry of ``a + ~b + 1``, so set where nothing was borrowed.

    Divisions of 128 bits, as nvcc compiles them, read the flag of ``subc.cc`` with ``addc``.
    """
    return _add(t, a, t.b.not_(b), const(ir.IntType(1), 1) if carry is None else carry)


@instruction("add.cc.type d, a, b", type=TYPES, carry="out")
@instruction("addc.cc.type d, a, b", type=TYPES, carry="in out")
def add_cc(t: Emitter, m: Match, a: Any, b: Any, carry: Any = None) -> Any:
    return _add(t, a, b, carry)


@instruction("addc.type d, a, b", type=TYPES, carry="in")
def addc(t: Emitter, m: Match, a: Any, b: Any, carry: Any) -> Any:
    return _add(t, a, b, carry)[0]


@instruction("sub.cc.type d, a, b", type=TYPES, carry="out")
@instruction("subc.cc.type d, a, b", type=TYPES, carry="in out")
def sub_cc(t: Emitter, m: Match, a: Any, b: Any, carry: Any = None) -> Any:
    return _subtract(t, a, b, carry)


@instruction("subc.type d, a, b", type=TYPES, carry="in")
def subc(t: Emitter, m: Match, a: Any, b: Any, carry: Any) -> Any:
    return _subtract(t, a, b, carry)[0]


def _product(t: Emitter, m: Match, a: Any, b: Any) -> Any:
    return high(t, a, b, m.type) if m["half"] == "hi" else t.b.mul(a, b)


@instruction("mad.half.cc.type d, a, b, c", half="hi lo", type=TYPES, carry="out")
@instruction("madc.half.cc.type d, a, b, c", half="hi lo", type=TYPES, carry="in out")
def mad_cc(t: Emitter, m: Match, a: Any, b: Any, c: Any, carry: Any = None) -> Any:
    return _add(t, _product(t, m, a, b), c, carry)


@instruction("madc.half.type d, a, b, c", half="hi lo", type=TYPES, carry="in")
def madc(t: Emitter, m: Match, a: Any, b: Any, c: Any, carry: Any) -> Any:
    return _add(t, _product(t, m, a, b), c, carry)[0]
