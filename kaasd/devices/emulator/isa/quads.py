"""``mma.m8n8k4`` on half precision, made for compute capability 7.0: four products at once.

Threads with the same bits 2 and 3 of their lane, eight of them, hold one product: the lower four half of each matrix, the upper
four the other.
"""

from __future__ import annotations

from typing import Any

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.llvm_builder import Builder, i32
from kaasd.devices.emulator.isa.product import Fragment, Place, Product, multiply
from kaasd.devices.emulator.isa.table import instruction
from kaasd.devices.emulator.ptx.forms import Match

BLOCKS = 4
SIZE, DEPTH = 8, 4


def _parts(b: Builder, lane: Any, register: Any, index: int, per_register: int) -> tuple[Any, Any, Any, Any]:
    """Return the product's number, the lane's lower two bits, 0 or 4 by its upper bit, and the element's number."""
    block = b.and_(b.lshr(lane, i32(2)), i32(3))
    upper = b.lshr(b.and_(lane, i32(16)), i32(2))
    return block, b.and_(lane, i32(3)), upper, b.add(b.mul(register, i32(per_register)), i32(index))


def _factor(left: bool, by_rows: bool) -> Fragment:
    """A or B: a thread has four neighbours, of a row of it or of a column."""

    def place(b: Builder, lane: Any, register: Any, index: int) -> tuple[Any, Any]:
        block, low, upper, number = _parts(b, lane, register, index, 2)
        row, column = (low, number) if by_rows else (number, low)
        if left:
            return b.add(b.add(row, upper), b.mul(block, i32(SIZE))), column
        return b.add(row, b.mul(block, i32(DEPTH))), b.add(column, upper)

    rows, columns = (SIZE, DEPTH) if left else (DEPTH, SIZE)
    return Fragment("f16", rows * BLOCKS, columns, 2, place)


def _result(kind: str) -> Fragment:
    """C or D: a thread has a row of it in half precision, and pairs of two rows in single precision."""

    def of_halves(b: Builder, lane: Any, register: Any, index: int) -> tuple[Any, Any]:
        block, low, upper, number = _parts(b, lane, register, index, 2)
        return b.add(b.add(low, upper), b.mul(block, i32(SIZE))), number

    def of_singles(b: Builder, lane: Any, register: Any, index: int) -> tuple[Any, Any]:
        block, low, upper, number = _parts(b, lane, register, index, 1)
        row = b.add(b.add(b.and_(low, i32(1)), b.and_(number, i32(2))), upper)
        column = b.or_(b.or_(b.and_(number, i32(4)), b.and_(low, i32(2))), b.and_(number, i32(1)))
        return b.add(row, b.mul(block, i32(SIZE))), column

    places: dict[str, Place] = {"f16": of_halves, "f32": of_singles}
    return Fragment(kind, SIZE * BLOCKS, SIZE, 4 if kind == "f16" else 8, places[kind])


@instruction("mma.sync.aligned.m8n8k4.alayout.blayout.dtype.f16.f16.ctype *d, *a, *b, *c",
             alayout="row col", blayout="row col", dtype="f16 f32", ctype="f16 f32", suspends=True)  # fmt: skip
def mma(t: Emitter, m: Match, d: Any, a: Any, b: Any, c: Any) -> None:
    left, right = _factor(True, m["alayout"] == "row"), _factor(False, m["blayout"] == "row")
    product = Product(left, right, _result(m.text("ctype")), _result(m.text("dtype")), blocks=BLOCKS)
    multiply(t, product, [a, b, c], d)
