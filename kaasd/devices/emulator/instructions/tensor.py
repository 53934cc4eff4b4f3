"""Matrix multiply-accumulate of a warp: ``mma.sync``, and what ``wmma`` shares with it.

Products of narrow numbers are exact in double precision; they are summed there with the addend, and the sum is rounded once. The
manual leaves order and precision of that sum open. Double-precision products are summed by fused multiply-adds in order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from kaasd.devices.emulator.emitter import Emitter
from kaasd.devices.emulator.instructions.narrow import from_double, to_double
from kaasd.devices.emulator.layout import THREAD, WARP_SIZE
from kaasd.devices.emulator.native import I32, I64, Builder, const, i32, i64
from kaasd.devices.emulator.program import Elements
from kaasd.devices.emulator.table import Match, instruction
from kaasd.devices.emulator.types import B32, F32, F64, TYPES, Type

WIDTHS = {
    "f16": 16, "bf16": 16, "tf32": 32, "f32": 32, "f64": 64, "e4m3": 8, "e5m2": 8,
    "s8": 8, "u8": 8, "s4": 4, "u4": 4, "b1": 1, "s32": 32,
}  # fmt: skip
INTEGERS = ("s8", "u8", "s4", "u4", "b1")

Place = Callable[[Builder, ir.Value, ir.Value, int], tuple[ir.Value, ir.Value]]
"""Where an element is: builder, lane, register and the element's number in it, to row and column."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """One operand as the threads of a warp hold it."""

    kind: str
    rows: int
    columns: int
    registers: int
    place: Place

    @property
    def register_bytes(self) -> int:
        return 8 if self.kind == "f64" else 4

    @property
    def bytes(self) -> int:
        return self.registers * self.register_bytes

    @property
    def per_register(self) -> int:
        """Elements of one register."""
        return self.register_bytes * 8 // WIDTHS[self.kind]


@dataclass(frozen=True, slots=True)
class Product:
    """A whole operation: D = A x B + C."""

    a: Fragment
    b: Fragment
    c: Fragment
    d: Fragment
    saturates: bool = False
    combine: str = ""
    """Of single bits: ``xor`` or ``and``."""

    @property
    def number(self) -> ir.Type:
        """What is computed with."""
        return I32 if self.a.kind in INTEGERS else F64.ir


def _exchange(b: Builder, warp: Any, stride: Any, lane: Any) -> Any:
    return b.at(b.at(warp, b.mul(b.zext(lane, I64), stride)), THREAD.size)


def _decode(t: Emitter, b: Builder, fragment: Fragment, register: Any, index: int) -> Any:
    """Return element ``index`` of a register as a number to compute with."""
    width = WIDTHS[fragment.kind]
    if fragment.kind == "f64":
        return b.bitcast(register, F64.ir)
    if fragment.kind == "f32":
        return b.fpext(b.bitcast(register, F32.ir), F64.ir)
    if fragment.kind == "s32":
        return register
    bits = b.trunc(b.lshr(register, i32(index * width)), ir.IntType(width))
    if fragment.kind in INTEGERS:
        return b.sext(bits, I32) if fragment.kind[0] == "s" else b.zext(bits, I32)
    if fragment.kind == "tf32":
        bits = b.and_(bits, i32(~0x1FFF))
    with t.building(b):
        return to_double(t, bits, fragment.kind)


def _encode(t: Emitter, b: Builder, fragment: Fragment, numbers: list[Any]) -> Any:
    """Return a register with the given elements."""
    if fragment.kind == "f64":
        return b.bitcast(numbers[0], I64)
    if fragment.kind == "s32":
        return numbers[0]
    if fragment.kind == "f32":
        value = b.fptrunc(numbers[0], F32.ir)
        bits = b.bitcast(value, I32)
        return b.select(b.fcmp_unordered("uno", value, value), i32(0x7FFFFFFF), bits)
    with t.building(b):
        low, high = (b.zext(from_double(t, number, fragment.kind), I32) for number in numbers)
    return b.or_(low, b.shl(high, i32(16)))


def build_product(t: Emitter, product: Product) -> Callable[..., None]:
    """Return the code of the warp operation. Each thread leaves the registers of A, B and C one after another."""

    def build(b: Builder, warp: Any, stride: Any, mask: Any) -> None:
        number = product.number
        arrays, start = [], 0
        for fragment in (product.a, product.b, product.c):
            array = b.alloca(ir.ArrayType(number, fragment.rows * fragment.columns))
            arrays.append(array)
            with b.count(i32(WARP_SIZE)) as lane:
                source = _exchange(b, warp, stride, lane)
                for register in range(fragment.registers):
                    kind = I64 if fragment.kind == "f64" else I32
                    value = b.load_as(kind, b.at(source, start + register * fragment.register_bytes), align=4)
                    for index in range(fragment.per_register):
                        row, column = fragment.place(b, lane, i32(register), index)
                        place = b.add(b.mul(row, i32(fragment.columns)), column)
                        element = _decode(t, b, fragment, value, index)
                        b.store_as(element, b.item(array, number, b.zext(place, I64)))
            start += fragment.bytes
        with b.count(i32(WARP_SIZE)) as lane:
            target = _exchange(b, warp, stride, lane)
            for register in range(product.d.registers):
                numbers = []
                for index in range(product.d.per_register):
                    row, column = product.d.place(b, lane, i32(register), index)
                    numbers.append(_dot(t, b, product, arrays, row, column))
                value = _encode(t, b, product.d, numbers)
                b.store_as(value, b.at(target, register * product.d.register_bytes), align=4)

    return build


def _dot(t: Emitter, b: Builder, product: Product, arrays: list[Any], row: Any, column: Any) -> Any:
    """Return one element of the result."""
    number, depth, width = product.number, product.a.columns, product.b.columns
    wide = I64 if product.saturates else number
    total = b.variable(wide)
    addend = b.load_as(number, b.item(arrays[2], number, b.zext(b.add(b.mul(row, i32(width)), column), I64)))
    integer = number is I32
    b.store(
        (b.sext(addend, wide) if wide is not number else addend) if integer or product.a.kind == "f64" else const(number, 0.0),
        total,
    )
    with b.count(i32(depth)) as k:
        left = b.load_as(number, b.item(arrays[0], number, b.zext(b.add(b.mul(row, i32(depth)), k), I64)))
        right = b.load_as(number, b.item(arrays[1], number, b.zext(b.add(b.mul(k, i32(width)), column), I64)))
        sum_so_far = b.load(total, typ=wide)
        if product.combine:
            term = b.and_(left, right) if product.combine == "and" else b.xor(left, right)
            b.store(b.add(sum_so_far, term), total)
        elif integer:
            term = b.mul(left, right)
            b.store(b.add(sum_so_far, b.sext(term, wide) if wide is not number else term), total)
        else:
            fma = t.intrinsic("llvm.fma.f64", F64.ir, F64.ir, F64.ir, F64.ir)
            b.store(b.call(fma, [left, right, sum_so_far]), total)
    result = b.load(total, typ=wide)
    if not integer and product.a.kind != "f64":
        return b.fadd(result, addend)
    if not product.saturates:
        return result
    for name, limit in (("smin", 2**31 - 1), ("smax", -(2**31))):
        result = b.call(t.intrinsic(f"llvm.{name}.i64", I64, I64, I64), [result, i64(limit)])
    return b.trunc(result, I32)


def multiply(t: Emitter, product: Product, operands: list[Any], d: Any) -> None:
    """Read A, B and C, meet the other threads, and write D."""
    values = []
    for fragment, operand in zip((product.a, product.b, product.c), operands, strict=True):
        values += [t.raw(value) for value in _registers(t, fragment, operand, t.read)]
    index = t.image.collective(f"{t.routine.name}:{t.operation.index}", build_product(t, product))
    t.wait_for_warp(i32(-1), values, index)
    kind = I64 if product.d.kind == "f64" else I32
    results = [t.result(kind, index * product.d.register_bytes) for index in range(product.d.registers)]
    items = d.items if isinstance(d, Elements) else (d,)
    if len(items) != len(results):
        raise t.error(f"the result needs {len(results)} registers")
    for item, value in zip(items, results, strict=True):
        t.write(item, value, _register_type(product.d))


def _register_type(fragment: Fragment) -> Type:
    return TYPES["b64"] if fragment.kind == "f64" else B32


def _registers(t: Emitter, fragment: Fragment, operand: Any, read: Callable[..., Any]) -> list[Any]:
    items = operand.items if isinstance(operand, Elements) else (operand,)
    if len(items) != fragment.registers:
        raise t.error(f"{fragment.registers} registers are needed, not {len(items)}")
    return [read(item, _register_type(fragment)) for item in items]


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


def _mma(t: Emitter, m: Match, d: Any, a: Any, b: Any, c: Any, kinds: tuple[str, str, str, str], combine: str = "") -> None:
    rows, columns, depth = (int(number) for number in m.text("shape")[1:].replace("n", " ").replace("k", " ").split())
    product = Product(
        left_fragment(kinds[1], rows, depth),
        right_fragment(kinds[2], depth, columns),
        result_fragment(kinds[3], rows, columns),
        result_fragment(kinds[0], rows, columns),
        "satfinite" in m,
        combine,
    )
    multiply(t, product, [a, b, c], d)


OPERANDS = "*d, *a, *b, *c"


@instruction(f"mma.sync.aligned.shape.row.col.dtype.f16.f16.ctype {OPERANDS}",
             shape="m16n8k8 m16n8k16", dtype="f16 f32", ctype="f16 f32", suspends=True)  # fmt: skip
def mma_half(t: Emitter, m: Match, d: Any, a: Any, b: Any, c: Any) -> None:
    _mma(t, m, d, a, b, c, (m.text("dtype"), "f16", "f16", m.text("ctype")))


@instruction(f"mma.sync.aligned.shape.row.col.f32.atype.btype.f32 {OPERANDS}",
             shape="m16n8k4 m16n8k8 m16n8k16", atype="bf16 tf32", btype="bf16 tf32", suspends=True)  # fmt: skip
@instruction(f"mma.sync.aligned.shape.row.col.f32.atype.btype.f32 {OPERANDS}",
             shape="m16n8k16 m16n8k32", atype="e4m3 e5m2", btype="e4m3 e5m2", suspends=True)  # fmt: skip
def mma_single(t: Emitter, m: Match, d: Any, a: Any, b: Any, c: Any) -> None:
    if m["atype"] in ("bf16", "tf32") and m["atype"] != m["btype"]:
        raise t.error("both factors need the same type")
    _mma(t, m, d, a, b, c, ("f32", m.text("atype"), m.text("btype"), "f32"))


@instruction(f"mma.sync.aligned.shape.row.col{{.rnd}}.f64.f64.f64.f64 {OPERANDS}",
             shape="m8n8k4 m16n8k4 m16n8k8 m16n8k16", rnd="rn", suspends=True)  # fmt: skip
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
