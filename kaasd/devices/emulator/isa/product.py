"""Products of matrices that a warp holds in registers: what ``mma`` and ``wmma`` share.

Products of narrow numbers are exact in double precision; they are summed there with the addend, and the sum is rounded once. The
manual leaves order and precision of that sum open. Double-precision products are summed by fused multiply-adds in order.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llvmlite import ir

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.llvm_builder import I1, I8, I32, I64, PTR, VOID, Builder, const, i32, i64
from kaasd.devices.emulator.codegen.structures import THREAD, WARP_SIZE
from kaasd.devices.emulator.isa.narrow import from_double, to_double
from kaasd.devices.emulator.isa.rounding import real, rounded
from kaasd.devices.emulator.ptx.routine import Elements
from kaasd.devices.emulator.ptx.types import B32, F32, F64, TYPES, Type

WIDTHS = {
    "f16": 16, "bf16": 16, "tf32": 32, "f32": 32, "f64": 64, "e4m3": 8, "e5m2": 8,
    "s8": 8, "u8": 8, "s4": 4, "u4": 4, "b1": 1, "s32": 32,
}  # fmt: skip
INTEGERS = ("s8", "u8", "s4", "u4", "b1")
LARGEST = {"f16": 65504.0, "f32": (2 - 2.0**-23) * 2.0**127}

Place = Callable[[Builder, ir.Value, ir.Value, int], tuple[ir.Value, ir.Value]]
"""Where an element is: builder, lane, register and the element's number in it, to row and column."""
Spread = Callable[[Builder, Callable[[ir.Value], ir.Value], ir.Value, ir.Value], ir.Value]
"""Where an element of a sparse matrix belongs: builder, how to get a lane's metadata, row and column held, to the column."""


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
    def register_type(self) -> Type:
        return TYPES["b64"] if self.kind == "f64" else B32

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
    rounding: str | None = None
    """Of double precision."""
    blocks: int = 1
    """So many products, each by itself; the matrices of each lie below those of the one before."""
    spread: Spread | None = None
    """Where A is sparse. Each thread then has a register of metadata after those of C."""
    in_memory: tuple[InMemory | None, InMemory] | None = None
    """Where A, or not, and B come from elsewhere. Each thread then has what they need to be found after the registers of C."""
    scale: int = 0
    """Where among that is said whether there is an addend at all."""

    @property
    def extra(self) -> int:
        """Where in the exchange that begins."""
        return self.a.bytes + self.b.bytes + self.c.bytes

    @property
    def number(self) -> ir.Type:
        """What is computed with."""
        return I32 if self.a.kind in INTEGERS else F64.ir

    @property
    def depth(self) -> int:
        """The columns of A, which are the rows of B."""
        return self.b.rows // self.blocks


class InMemory(Protocol):
    """A factor that is not in registers."""

    def load(self, operation: Operation, extra: int, rows: int, by_row: bool) -> Any:
        """Return an array of all elements: ``rows`` rows of a factor A, or of B's columns if not ``by_row``."""


def multiply(
    t: Emitter, product: Product, operands: list[Any], d: Any, extra: Sequence[Any] = (), variant: tuple[Hashable, ...] = ()
) -> Any:
    """Read A, B and C, meet the other threads, and write D.

    ``extra`` follows the registers: metadata, or where factors are in memory. Mnemonic and ``variant`` must tell what is done.
    Returns, of factors in memory, an offset plus one that is outside, or 0.
    """
    values = []
    for fragment, operand in zip((product.a, product.b, product.c), operands, strict=True):
        values += [t.raw(t.read(item, fragment.register_type)) for item in _items(t, fragment, operand)]
    values += extra
    index = t.collective(lambda b, warp, stride, mask: Operation(t, b, product, warp, stride).emit(), *variant)
    t.wait_for_warp(i32(-1), values, index)
    kind = product.d.register_type
    problem = t.result(I64, product.d.bytes) if product.in_memory else None
    results = [t.result(kind.raw, index * product.d.register_bytes) for index in range(product.d.registers)]
    for item, value in zip(_items(t, product.d, d), results, strict=True):
        t.write(item, value, kind)
    return problem


def _items(t: Emitter, fragment: Fragment, operand: Any) -> tuple[Any, ...]:
    items = operand.items if isinstance(operand, Elements) else (operand,)
    if len(items) != fragment.registers:
        raise t.error(f"a matrix of {fragment.registers} registers is needed, not of {len(items)}")
    return items


class Operation:
    """The code of the warp operation. Each thread leaves the registers of A, B and C, and the metadata, one after another."""

    def __init__(self, t: Emitter, b: Builder, product: Product, warp: Any, stride: Any) -> None:
        self.t, self.b, self.product = t, b, product
        self.warp, self._stride = warp, stride
        self.problem = b.variable(I64, 0)
        """Of factors in memory: an offset plus one that is outside."""

    def emit(self) -> None:
        b, product = self.b, self.product
        from_memory = product.in_memory or (None, None)
        if from_memory[0]:
            left = from_memory[0].load(self, product.extra, product.a.rows, True)
        else:
            left = self._unpack(product.a, 0, product.depth, product.spread)
        if from_memory[1]:
            right = from_memory[1].load(self, product.extra, product.b.columns, False)
        else:
            right = self._unpack(product.b, product.a.bytes, product.b.columns)
        addends = self._unpack(product.c, product.a.bytes + product.b.bytes, product.c.columns)
        if product.in_memory:
            self._scale(addends)
        element = self._integer if product.number is I32 else self._real
        with b.count(i32(WARP_SIZE)) as lane:
            target = self.exchange(lane)
            for register in range(product.d.registers):
                numbers = []
                for index in range(product.d.per_register):
                    row, column = product.d.place(b, lane, i32(register), index)
                    numbers.append(element(left, right, addends, row, column))
                value = _encode(self.t, b, product.d, numbers)
                b.store_as(value, b.at(target, register * product.d.register_bytes), align=4)
            if product.in_memory:
                b.store_as(b.load(self.problem, typ=I64), b.at(target, product.d.bytes), align=4)

    def _scale(self, addends: Any) -> None:
        """Take the addends away where it is said that there are none."""
        b, product = self.b, self.product
        scale = b.load_as(I32, b.at(self.exchange(i32(0)), product.extra + product.scale), align=4)
        size = product.c.rows * product.c.columns * (4 if product.number is I32 else 8)
        with b.when(b.is_("==", scale, 0)):
            fill = self.t.image.declare("llvm.memset.p0.i64", ir.FunctionType(VOID, [PTR, I8, I64, I1]))
            b.call(fill, [addends, const(I8, 0), i64(size), const(I1, 0)])

    def exchange(self, lane: Any) -> Any:
        return self.b.at(self.b.at(self.warp, self.b.mul(self.b.zext(lane, I64), self._stride)), THREAD.size)

    def _metadata(self, lane: Any) -> Any:
        product = self.product
        return self.b.load_as(I32, self.b.at(self.exchange(lane), product.extra), align=4)

    def _unpack(self, fragment: Fragment, start: int, columns: int, spread: Spread | None = None) -> Any:
        """Return an array of all elements, row by row, of an operand whose registers are ``start`` bytes into the exchange."""
        b, number = self.b, self.product.number
        size = fragment.rows * columns
        array = b.alloca(ir.ArrayType(number, size))
        if spread:
            fill = self.t.image.declare("llvm.memset.p0.i64", ir.FunctionType(VOID, [PTR, I8, I64, I1]))
            b.call(fill, [array, const(I8, 0), i64(size * (4 if number is I32 else 8)), const(I1, 0)])
        with b.count(i32(WARP_SIZE)) as lane:
            source = b.at(self.exchange(lane), start)
            for register in range(fragment.registers):
                value = b.load_as(fragment.register_type.raw, b.at(source, register * fragment.register_bytes), align=4)
                for index in range(fragment.per_register):
                    row, column = fragment.place(b, lane, i32(register), index)
                    if spread:
                        column = spread(b, self._metadata, row, column)
                    element = _decode(self.t, b, fragment, value, index)
                    b.store_as(element, self._at(array, row, columns, column))
        return array

    def _at(self, array: Any, row: Any, columns: int, column: Any) -> Any:
        b = self.b
        return b.item(array, self.product.number, b.zext(b.add(b.mul(row, i32(columns)), column), I64))

    def _sum(self, left: Any, right: Any, row: Any, column: Any, total: Any, step: Callable[..., Any]) -> Any:
        """Add up the products of a row of A and a column of B with ``step(total, left, right)``, from ``total`` on."""
        b, product = self.b, self.product
        variable = b.variable(total.type)
        b.store(total, variable)
        first = i32(0)
        if product.blocks > 1:
            first = b.mul(b.udiv(row, i32(product.d.rows // product.blocks)), i32(product.depth))
        with b.count(i32(product.depth)) as k:
            x = b.load_as(product.number, self._at(left, row, product.depth, k))
            y = b.load_as(product.number, self._at(right, b.add(first, k), product.b.columns, column))
            b.store(step(b.load(variable, typ=total.type), x, y), variable)
        return b.load(variable, typ=total.type)

    def _integer(self, left: Any, right: Any, addends: Any, row: Any, column: Any) -> Any:
        b, product = self.b, self.product
        multiply = {"": b.mul, "and": b.and_, "xor": b.xor}[product.combine]  # sums of single bits are counts of them
        addend = b.load_as(I32, self._at(addends, row, product.c.columns, column))
        if not product.saturates:
            return self._sum(left, right, row, column, addend, lambda total, x, y: b.add(total, multiply(x, y)))
        start = b.sext(addend, I64)
        total = self._sum(left, right, row, column, start, lambda total, x, y: b.add(total, b.sext(multiply(x, y), I64)))
        for name, limit in (("smin", 2**31 - 1), ("smax", -(2**31))):
            total = b.call(self.t.intrinsic(f"llvm.{name}.i64", I64, I64, I64), [total, i64(limit)])
        return b.trunc(total, I32)

    def _real(self, left: Any, right: Any, addends: Any, row: Any, column: Any) -> Any:
        b, t, product = self.b, self.t, self.product
        addend = b.load_as(F64.ir, self._at(addends, row, product.c.columns, column))

        def step(total: Any, x: Any, y: Any) -> Any:
            with t.building(b):
                return rounded(t, "fma", product.rounding, F64.ir, x, y, total)

        if product.a.kind == "f64":
            return self._sum(left, right, row, column, addend, step)
        total = b.fadd(self._sum(left, right, row, column, real(F64.ir, 0.0), step), addend)
        if not product.saturates:
            return total
        limit = LARGEST[product.d.kind]  # nothing infinite, and zero for NaN
        for operator, bound in (("<", limit), (">", -limit)):
            total = b.select(b.fcmp_unordered(operator, total, real(F64.ir, bound)), total, real(F64.ir, bound))
        return b.select(b.fcmp_ordered("ord", total, total), total, real(F64.ir, 0.0))


def _decode(t: Emitter, b: Builder, fragment: Fragment, register: Any, index: int) -> Any:
    """Return element ``index`` of a register as a number to compute with."""
    width = WIDTHS[fragment.kind]
    if fragment.kind == "f64":
        return b.bitcast(register, F64.ir)
    if fragment.kind == "f32":
        return b.fpext(b.bitcast(register, F32.ir), F64.ir)
    if fragment.kind == "s32":
        return register
    return decode_bits(t, b, fragment.kind, b.trunc(b.lshr(register, i32(index * width)), ir.IntType(width)))


def decode_bits(t: Emitter, b: Builder, kind: str, bits: Any) -> Any:
    """Return an element of a narrow kind as a number to compute with."""
    if kind in INTEGERS:
        return b.sext(bits, I32) if kind[0] == "s" else b.zext(bits, I32)
    if kind == "tf32":
        bits = b.and_(bits, i32(~0x1FFF))
    with t.building(b):
        return to_double(t, bits, kind)


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
