"""``mma.sp``: products with a matrix A of which each thread holds half, since the rest is zeros.

A row of A is made of chunks, of which half the elements are held. Four bits of metadata say for each chunk which: two numbers of
two bits each, for elements (pairs of them where they have 4 bits); for tf32 both are of halves of the one element held.
"""

from __future__ import annotations

from typing import Any

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.llvm_builder import Builder, i32
from kaasd.devices.emulator.isa.product import WIDTHS, Product, Spread, multiply
from kaasd.devices.emulator.isa.table import instruction
from kaasd.devices.emulator.isa.tensor import left_fragment, result_fragment, right_fragment, sizes
from kaasd.devices.emulator.ptx import ast
from kaasd.devices.emulator.ptx.forms import Match

QUAD = 4
"""Threads that hold two rows of A, and their metadata."""


def _held(kind: str) -> int:
    """How many elements of a chunk are held."""
    return {"tf32": 1, "s4": 4, "u4": 4}.get(kind, 2)


def _spread(kind: str, first: int) -> Spread:
    """``first`` is the first thread of each four whose metadata counts."""
    held = _held(kind)
    by_halves = WIDTHS[kind] >= 16  # a thread's metadata is of both rows, in its halves, and not of one row

    def spread(b: Builder, metadata: Any, row: Any, column: Any) -> Any:
        group, lower = b.and_(row, i32(7)), b.lshr(row, i32(3))
        chunk, inside = b.udiv(column, i32(held)), b.urem(column, i32(held))
        if by_halves:
            thread, place = b.lshr(chunk, i32(2)), b.add(b.mul(lower, i32(16)), b.mul(b.and_(chunk, i32(3)), i32(4)))
        else:
            thread, place = b.add(lower, b.mul(b.lshr(chunk, i32(3)), i32(2))), b.mul(b.and_(chunk, i32(7)), i32(4))
        word = b.lshr(metadata(b.add(b.add(b.mul(group, i32(QUAD)), i32(first)), thread)), place)
        if held == 1:
            number = b.and_(b.lshr(word, i32(1)), i32(1))
        elif held == 2:
            number = b.and_(b.lshr(word, b.mul(inside, i32(2))), i32(3))
        else:
            pair = b.and_(b.lshr(word, b.and_(inside, i32(2))), i32(3))
            number = b.add(b.mul(pair, i32(2)), b.and_(inside, i32(1)))
        return b.add(b.mul(chunk, i32(2 * held)), number)

    return spread


def _mma(t: Emitter, m: Match, operands: list[Any], metadata: Any, selector: Any, kinds: tuple[str, str, str, str]) -> None:
    d, a, b, c = operands
    result, left, right, addend = kinds
    rows, columns, depth = sizes(m)
    threads = depth // (2 * _held(left)) // 4
    if not isinstance(selector, ast.Integer) or not 0 <= selector.value < QUAD // threads:
        raise t.error(f"the selector needs a constant from 0 to {QUAD // threads - 1}")
    product = Product(
        left_fragment(left, rows, depth // 2),
        right_fragment(right, depth, columns),
        result_fragment(addend, rows, columns),
        result_fragment(result, rows, columns),
        "satfinite" in m,
        spread=_spread(left, threads * selector.value),
    )
    multiply(t, product, [a, b, c], d, [metadata], (t.routine.name, t.operation.index))  # its operand selects


_HEAD = "mma.sp.sync.aligned.shape.row.col"
_OPERANDS = "*d, *a, *b, *c, e:b32, *f"
_WORDS: dict[str, Any] = {"sp": ["sp", "sp::ordered_metadata"], "suspends": True}


@instruction(f"{_HEAD}.dtype.f16.f16.ctype {_OPERANDS}",
             shape="m16n8k16 m16n8k32", dtype="f16 f32", ctype="f16 f32", **_WORDS)  # fmt: skip
def half(t: Emitter, m: Match, d: Any, a: Any, b: Any, c: Any, e: Any, f: Any) -> None:
    _mma(t, m, [d, a, b, c], e, f, (m.text("dtype"), "f16", "f16", m.text("ctype")))


@instruction(f"{_HEAD}.f32.bf16.bf16.f32 {_OPERANDS}", shape="m16n8k16 m16n8k32", **_WORDS)
@instruction(f"{_HEAD}.f32.tf32.tf32.f32 {_OPERANDS}", shape="m16n8k8 m16n8k16", **_WORDS)
def single(t: Emitter, m: Match, d: Any, a: Any, b: Any, c: Any, e: Any, f: Any) -> None:
    kind = "tf32" if "tf32" in m.mnemonic else "bf16"
    _mma(t, m, [d, a, b, c], e, f, ("f32", kind, kind, "f32"))


@instruction(f"{_HEAD}.f32.atype.btype.f32 {_OPERANDS}", shape="m16n8k64", atype="e4m3 e5m2", btype="e4m3 e5m2", **_WORDS)
def narrow(t: Emitter, m: Match, d: Any, a: Any, b: Any, c: Any, e: Any, f: Any) -> None:
    _mma(t, m, [d, a, b, c], e, f, ("f32", m.text("atype"), m.text("btype"), "f32"))


@instruction(f"{_HEAD}{{.satfinite}}.s32.atype.btype.s32 {_OPERANDS}",
             shape="m16n8k32 m16n8k64", atype="u8 s8", btype="u8 s8", **_WORDS)  # fmt: skip
@instruction(f"{_HEAD}{{.satfinite}}.s32.atype.btype.s32 {_OPERANDS}",
             shape="m16n8k64 m16n8k128", atype="u4 s4", btype="u4 s4", **_WORDS)  # fmt: skip
def integer(t: Emitter, m: Match, d: Any, a: Any, b: Any, c: Any, e: Any, f: Any) -> None:
    _mma(t, m, [d, a, b, c], e, f, ("s32", m.text("atype"), m.text("btype"), "s32"))
