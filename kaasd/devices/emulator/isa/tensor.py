"""Matrix multiply-accumulate of a warp: ``mma.sync``."""

from __future__ import annotations

import re
from typing import Any

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.llvm_builder import Builder, i32
from kaasd.devices.emulator.codegen.structures import WARP_SIZE
from kaasd.devices.emulator.isa.product import WIDTHS, Fragment, Product, multiply
from kaasd.devices.emulator.isa.table import instruction
from kaasd.devices.emulator.ptx.forms import Match


def _group(b: Builder, lane: Any) -> tuple[Any, Any]:
    return b.lshr(lane, i32(2)), b.and_(lane, i32(3))


def left_fragment(kind: str, rows: int, depth: int) -> Fragment:
    """A: a thread has parts of row ``lane / 4`` and, of 16 rows, of the eighth after it."""
    elements = (64 if kind == "f64" else 32) // WIDTHS[kind]

    def place(b: Builder, lane: Any, register: Any, index: int) -> tuple[Any, Any]:
        group, inner = _group(b, lane)
        lower, block = (b.and_(register, i32(1)), b.lshr(register, i32(1))) if rows == 16 else (i32(0), register)
        column = b.add(b.mul(block, i32(4 * elements)), b.add(b.mul(inner, i32(elements)), i32(index)))
        return b.add(group, b.mul(lower, i32(8))), column

    return Fragment(kind, rows, depth, rows * depth // WARP_SIZE // elements, place)


def right_fragment(kind: str, depth: int, columns: int) -> Fragment:
    """B: a thread has parts of column ``lane / 4``."""
    elements = (64 if kind == "f64" else 32) // WIDTHS[kind]

    def place(b: Builder, lane: Any, register: Any, index: int) -> tuple[Any, Any]:
        group, inner = _group(b, lane)
        row = b.add(b.mul(register, i32(4 * elements)), b.add(b.mul(inner, i32(elements)), i32(index)))
        return row, group

    return Fragment(kind, depth, columns, depth * columns // WARP_SIZE // elements, place)


def result_fragment(kind: str, rows: int, columns: int) -> Fragment:
    """C and D: a thread has pairs of neighbours in row ``lane / 4`` and, of 16 rows, in the eighth after it."""
    elements = (64 if kind == "f64" else 32) // WIDTHS[kind]

    def place(b: Builder, lane: Any, register: Any, index: int) -> tuple[Any, Any]:
        group, inner = _group(b, lane)
        number = b.add(b.mul(register, i32(elements)), i32(index))
        row = b.add(group, b.mul(b.lshr(number, i32(1)), i32(8)))
        return row, b.add(b.mul(inner, i32(2)), b.and_(number, i32(1)))

    return Fragment(kind, rows, columns, rows * columns // WARP_SIZE // elements, place)


def sizes(m: Match) -> tuple[int, int, int]:
    """Return the rows and columns of the result, and the depth, of an operation's shape."""
    rows, columns, depth = map(int, re.split("[mnk]", m.text("shape"))[1:])
    return rows, columns, depth


def _mma(t: Emitter, m: Match, d: Any, a: Any, b: Any, c: Any, kinds: tuple[str, str, str, str], combine: str = "") -> None:
    rows, columns, depth = sizes(m)
    product = Product(
        left_fragment(kinds[1], rows, depth),
        right_fragment(kinds[2], depth, columns),
        result_fragment(kinds[3], rows, columns),
        result_fragment(kinds[0], rows, columns),
        "satfinite" in m,
        combine,
        m["rnd"],
    )
    multiply(t, product, [a, b, c], d)


OPERANDS = "*d, *a, *b, *c"
FP8 = "e4m3 e5m2"


@instruction(f"mma.sync.aligned.shape.row.col.dtype.f16.f16.ctype {OPERANDS}",
             shape="m16n8k8 m16n8k16", dtype="f16 f32", ctype="f16 f32", suspends=True)  # fmt: skip
def mma_half(t: Emitter, m: Match, d: Any, a: Any, b: Any, c: Any) -> None:
    _mma(t, m, d, a, b, c, (m.text("dtype"), "f16", "f16", m.text("ctype")))


@instruction(f"mma.sync.aligned.shape.row.col.f32.atype.btype.f32 {OPERANDS}",
             shape="m16n8k4 m16n8k8 m16n8k16", atype="bf16 tf32", btype="bf16 tf32", suspends=True)  # fmt: skip
@instruction(f"mma.sync.aligned.shape.row.col.f32.atype.btype.f32 {OPERANDS}",
             shape="m16n8k16 m16n8k32", atype=FP8, btype=FP8, suspends=True)  # fmt: skip
def mma_single(t: Emitter, m: Match, d: Any, a: Any, b: Any, c: Any) -> None:
    if m["atype"] in ("bf16", "tf32") and m["atype"] != m["btype"]:
        raise t.error("both factors need the same type")
    _mma(t, m, d, a, b, c, ("f32", m.text("atype"), m.text("btype"), "f32"))


@instruction(f"mma.sync.aligned.shape.row.col.f16.atype.btype.f16 {OPERANDS}",
             shape="m16n8k16 m16n8k32", atype=FP8, btype=FP8, suspends=True)  # fmt: skip
def mma_fp8_to_half(t: Emitter, m: Match, d: Any, a: Any, b: Any, c: Any) -> None:
    _mma(t, m, d, a, b, c, ("f16", m.text("atype"), m.text("btype"), "f16"))


@instruction(f"mma.sync.aligned.shape.row.col{{.rnd}}.f64.f64.f64.f64 {OPERANDS}",
             shape="m8n8k4 m16n8k4 m16n8k8 m16n8k16", rnd="rn rz rm rp", suspends=True)  # fmt: skip
def mma_double(t: Emitter, m: Match, d: Any, a: Any, b: Any, c: Any) -> None:
    _mma(t, m, d, a, b, c, ("f64",) * 4)


@instruction(f"mma.sync.aligned.shape.row.col{{.satfinite}}.s32.atype.btype.s32 {OPERANDS}",
             shape="m8n8k16 m16n8k16 m16n8k32", atype="u8 s8", btype="u8 s8", suspends=True)  # fmt: skip
@instruction(f"mma.sync.aligned.shape.row.col{{.satfinite}}.s32.atype.btype.s32 {OPERANDS}",
             shape="m8n8k32 m16n8k32 m16n8k64", atype="u4 s4", btype="u4 s4", suspends=True)  # fmt: skip
def mma_integer(t: Emitter, m: Match, d: Any, a: Any, b: Any, c: Any) -> None:
    _mma(t, m, d, a, b, c, ("s32", m.text("atype"), m.text("btype"), "s32"))


@instruction(f"mma.sync.aligned.shape.row.col.s32.b1.b1.s32.combine.popc {OPERANDS}",
             shape="m8n8k128 m16n8k128 m16n8k256", combine="xor and", suspends=True)  # fmt: skip
def mma_bits(t: Emitter, m: Match, d: Any, a: Any, b: Any, c: Any) -> None:
    _mma(t, m, d, a, b, c, ("s32", "b1", "b1", "s32"), m.text("combine"))
