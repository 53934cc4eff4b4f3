"""Loads and stores of 8x8 matrices by a whole warp."""

from __future__ import annotations

from typing import Any

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.llvm_builder import I16, I32, I64, Builder, i32
from kaasd.devices.emulator.codegen.structures import Fault
from kaasd.devices.emulator.isa import special_registers
from kaasd.devices.emulator.isa.load_store import space_of
from kaasd.devices.emulator.isa.table import instruction
from kaasd.devices.emulator.isa.warp import per_lane
from kaasd.devices.emulator.ptx.forms import Match
from kaasd.devices.emulator.ptx.routine import Elements, Memory
from kaasd.devices.emulator.ptx.types import B32

FULL = -1
ROW_BYTES = 16
COUNTS = "x1 x2 x4"
SHARED = "shared shared::cta"


def _count(t: Emitter, m: Match, registers: Any) -> int:
    count = int(m.text("num")[1:])
    if not isinstance(registers, Elements) or len(registers.items) != count:
        raise t.error(f"a vector of {count} registers is needed")
    return count


def _row_words(t: Emitter, memory: Memory, m: Match, rows: int) -> list[Any]:
    """Return the four words of the row that this thread addresses, or zeros where its row is not needed."""
    b = t.b
    words = [b.variable(I32, 0) for _ in range(4)]
    for word in words:
        b.store(i32(0), word)
    with b.when(b.is_("<", special_registers.read(t, "%laneid"), rows)):
        pointer = t.pointer(space_of(m), memory, ROW_BYTES, Fault.LOAD)
        for index, word in enumerate(words):
            b.store(b.load_as(I32, b.at(pointer, index * 4), "memory"), word)
    return [b.load(word, typ=I32) for word in words]


@instruction("ldmatrix.sync.aligned.m8n8.num{.trans}{.space}.b16 *d, [a]", num=COUNTS, space=SHARED, suspends=True)
def ldmatrix(t: Emitter, m: Match, d: Any, a: Memory) -> None:
    count = _count(t, m, d)
    transposed = "trans" in m

    def compute(b: Builder, lane: Any, mask: Any, operand: Any) -> list[tuple[Any, int]]:
        group, place = b.lshr(lane, i32(2)), b.and_(lane, i32(3))
        results = []
        for index in range(count):
            if not transposed:
                row = b.add(group, i32(8 * index))
                word = b.shl(b.zext(place, I64), b.zext(i32(2), I64))
                value = operand(row, word, I32)
            else:
                byte = b.shl(b.zext(group, I64), b.zext(i32(1), I64))
                halves = []
                for half in range(2):
                    row = b.add(b.shl(place, i32(1)), i32(8 * index + half))
                    halves.append(b.zext(operand(row, byte, I16), I32))
                value = b.or_(halves[0], b.shl(halves[1], i32(16)))
            results.append((value, 4 * index))
        return results

    words = _row_words(t, a, m, 8 * count)
    index = t.collective(per_lane(compute, ROW_BYTES))
    t.wait_for_warp(i32(FULL), words, index)
    for number, item in enumerate(d.items):
        t.write(item, t.result(I32, 4 * number), B32)


@instruction("stmatrix.sync.aligned.m8n8.num{.trans}{.space}.b16 [a], *b", num=COUNTS, space=SHARED, suspends=True)
def stmatrix(t: Emitter, m: Match, a: Memory, registers: Any) -> None:
    count = _count(t, m, registers)
    transposed = "trans" in m

    def compute(b: Builder, lane: Any, mask: Any, operand: Any) -> list[tuple[Any, int]]:
        """Gather the row that this lane stores: row ``lane % 8`` of matrix ``lane / 8``."""
        row, matrix = b.and_(lane, i32(7)), b.and_(b.lshr(lane, i32(3)), i32(count - 1))
        offset = b.zext(b.shl(matrix, i32(2)), I64)
        words = []
        for word in range(4):
            if not transposed:
                source = b.add(b.shl(row, i32(2)), i32(word))
                words.append((operand(source, offset, I32), 4 * word))
                continue
            halves = []
            for half in range(2):
                column = 2 * word + half
                source = b.add(i32(4 * column), b.lshr(row, i32(1)))
                place = b.add(offset, b.zext(b.shl(b.and_(row, i32(1)), i32(1)), I64))
                halves.append(b.zext(operand(source, place, I16), I32))
            words.append((b.or_(halves[0], b.shl(halves[1], i32(16))), 4 * word))
        return words

    space, address = t.address(space_of(m), a)
    values = [t.read(item, B32) for item in registers.items] + [i32(0)] * (4 - count)
    index = t.collective(per_lane(compute, ROW_BYTES))
    t.wait_for_warp(i32(FULL), [*values, address], index)
    with t.b.when(t.b.is_("<", special_registers.read(t, "%laneid"), 8 * count)):
        pointer = t.checked(space, t.result(I64, ROW_BYTES), ROW_BYTES, Fault.STORE, ROW_BYTES)
        for word in range(4):
            t.b.store_as(t.result(I32, 4 * word), t.b.at(pointer, 4 * word), "memory")


@instruction("movmatrix.sync.aligned.m8n8.trans.b16 d:b32, a:b32", suspends=True)
def movmatrix(t: Emitter, m: Match, a: Any) -> Any:
    """Transpose a matrix held in registers."""

    def compute(b: Builder, lane: Any, mask: Any, operand: Any) -> list[tuple[Any, int]]:
        row, place = b.lshr(lane, i32(2)), b.and_(lane, i32(3))
        byte = b.zext(b.shl(b.and_(row, i32(1)), i32(1)), I64)
        halves = []
        for half in range(2):
            column = b.add(b.shl(place, i32(1)), i32(half))
            source = b.add(b.shl(column, i32(2)), b.lshr(row, i32(1)))
            halves.append(b.zext(operand(source, byte, I16), I32))
        return [(b.or_(halves[0], b.shl(halves[1], i32(16))), 0)]

    index = t.collective(per_lane(compute, 4))
    t.wait_for_warp(i32(FULL), [a], index)
    return t.result(I32)
