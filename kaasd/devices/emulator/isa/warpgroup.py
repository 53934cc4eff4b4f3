"""Matrix operations of four warps, ``wgmma``: a factor, or both, is in shared memory, where a descriptor says how it lies there.

Each warp computes its 16 of the 64 rows. An operation is done when it is issued; groups are then always complete.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.llvm_builder import I32, I64, Builder, i32, i64
from kaasd.devices.emulator.codegen.structures import OFFSET_BITS, SEGMENT, THREAD, Fault, Segment, segment_entry
from kaasd.devices.emulator.isa.product import WIDTHS, Fragment, Operation, Product, decode_bits, multiply
from kaasd.devices.emulator.isa.table import instruction
from kaasd.devices.emulator.isa.tensor import left_fragment, sizes
from kaasd.devices.emulator.ptx import ast
from kaasd.devices.emulator.ptx.forms import Match
from kaasd.devices.emulator.ptx.routine import Elements, Operand
from kaasd.devices.emulator.ptx.types import PRED, TYPES

ROWS = 16
"""Of the result, for each warp."""
CHUNK = 16
"""Bytes that swizzling leaves together."""
_B64 = TYPES["b64"]
_SCALE, _BASE, _SIZE, _LEFT, _RIGHT = 0, 4, 12, 20, 28
"""Where in the exchange, behind the registers: whether there is an addend, shared memory and its size, the descriptors."""


@instruction("wgmma.fence.sync.aligned")
@instruction("wgmma.commit_group.sync.aligned")
@instruction("wgmma.wait_group.sync.aligned *n")
def group(t: Emitter, m: Match, n: Any = None) -> None:
    """Every operation is complete already."""


@dataclass(frozen=True, slots=True)
class _InMemory:
    """A factor in shared memory, as rows of ``depth`` elements (B by its columns)."""

    kind: str
    depth: int
    place: int
    """Of its descriptor in the exchange, behind the registers."""
    transposed: bool
    """Rows rather than depth are contiguous."""
    negated: bool
    of_warp: bool
    """The warp's own rows of it are what counts."""

    def load(self, operation: Operation, extra: int, rows: int, by_row: bool) -> Any:
        """Return an array of all elements, by row or by column, and note the first address that is outside."""
        t, b, number = operation.t, operation.b, operation.product.number
        width = WIDTHS[self.kind] // 8
        first = operation.exchange(i32(0))
        descriptor = b.load_as(I64, b.at(first, extra + self.place), align=4)
        base = b.inttoptr(b.load_as(I64, b.at(first, extra + _BASE), align=4), ir.PointerType())
        size = b.load_as(I64, b.at(first, extra + _SIZE), align=4)
        layout = _Layout.of(b, descriptor)
        array = b.alloca(ir.ArrayType(number, rows * self.depth))
        skipped = b.and_(b.lshr(b.get(THREAD, operation.warp, "index"), i32(5)), i32(3)) if self.of_warp else i32(0)
        nothing = b.alloca(I64)
        b.store(i64(0), nothing)
        with b.count(i32(rows)) as row, b.count(i32(self.depth)) as k:
            whole = b.add(row, b.mul(skipped, i32(ROWS)))
            offset = layout.offset(b, b.zext(whole, I64), b.zext(k, I64), width, self.transposed)
            outside = b.is_(">", b.add(offset, i64(width)), size)
            with b.when(outside, likely=False):
                b.store(b.add(offset, i64(1)), operation.problem)
            bits = b.load_as(ir.IntType(8 * width), b.select(outside, nothing, b.at(base, offset)), "memory", width)
            element = decode_bits(t, b, self.kind, bits)
            if self.negated:
                element = b.fneg(element)
            to = b.add(b.mul(row, i32(self.depth)), k) if by_row else b.add(b.mul(k, i32(rows)), row)
            b.store_as(element, b.item(array, number, b.zext(to, I64)))
        return array


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a matrix lies in shared memory: cores of 8 rows of 16 bytes, or of up to 128 that are swizzled."""

    start: Any
    leading: Any
    stride: Any
    chunks: Any
    """Of 16 bytes, in a row of a core: 1, 2, 4 or 8."""

    @classmethod
    def of(cls, b: Builder, descriptor: Any) -> _Layout:
        start, leading, stride = (b.shl(b.and_(b.lshr(descriptor, i64(bit)), i64(0x3FFF)), i64(4)) for bit in (0, 16, 32))
        mode = b.lshr(descriptor, i64(62))  # none, 128, 64 or 32 bytes
        chunks = b.select(b.is_("==", mode, 0), i64(1), b.lshr(i64(16), mode))
        return cls(start, leading, stride, chunks)

    def offset(self, b: Builder, row: Any, k: Any, width: int, transposed: bool) -> Any:
        """Return where in shared memory an element is: the address bits of a chunk are exchanged by those of its row."""
        plain = b.is_("==", self.chunks, 1)
        pitch = b.mul(self.chunks, i64(CHUNK))
        if transposed:
            a_chunk = i64(CHUNK // width)
            within, chunk = b.mul(b.urem(row, a_chunk), i64(width)), b.udiv(row, a_chunk)
            across, inner = b.udiv(chunk, self.chunks), b.mul(b.urem(chunk, self.chunks), i64(CHUNK))
            by_row = b.mul(across, b.select(plain, self.stride, self.leading))
            by_depth = b.add(
                b.mul(b.urem(k, i64(8)), pitch), b.mul(b.udiv(k, i64(8)), b.select(plain, self.leading, self.stride))
            )
            place = b.add(b.add(within, inner), b.add(by_row, by_depth))
        else:
            at = b.mul(k, i64(width))
            chunk = b.mul(b.udiv(at, i64(CHUNK)), b.select(plain, self.leading, i64(CHUNK)))
            by_row = b.add(b.mul(b.urem(row, i64(8)), pitch), b.mul(b.udiv(row, i64(8)), self.stride))
            place = b.add(b.add(b.urem(at, i64(CHUNK)), chunk), by_row)
        address = b.add(self.start, place)
        mask = b.shl(b.sub(self.chunks, i64(1)), i64(4))
        return b.xor(address, b.and_(b.lshr(address, i64(3)), mask))


def _result_fragment(kind: str, columns: int) -> Fragment:
    """D: a thread has pairs of neighbours of two rows in each eight columns."""
    elements = 32 // WIDTHS[kind]

    def place(b: Builder, lane: Any, register: Any, index: int) -> tuple[Any, Any]:
        number = b.add(b.mul(register, i32(elements)), i32(index))
        row = b.add(b.lshr(lane, i32(2)), b.mul(b.and_(b.lshr(number, i32(1)), i32(1)), i32(8)))
        pair = b.add(b.mul(b.and_(lane, i32(3)), i32(2)), b.and_(number, i32(1)))
        return row, b.add(b.mul(b.lshr(number, i32(2)), i32(8)), pair)

    return Fragment(kind, ROWS, columns, ROWS * columns // 32 // elements, place)


def _number(t: Emitter, operand: Operand | None, allowed: tuple[int, ...]) -> int:
    if not isinstance(operand, ast.Integer) or operand.value not in allowed:
        raise t.error(f"a constant is needed here, one of {', '.join(map(str, allowed))}")
    return operand.value


def _multiply(
    t: Emitter, m: Match, d: Any, a: Any, right: Any, scale: Operand, kinds: tuple[str, str, str], signs: Any, transposed: Any
) -> None:
    _, columns, depth = sizes(m)
    b, from_registers = t.b, isinstance(a, Elements)
    signs = [_number(t, sign, (1, -1)) == -1 for sign in signs] or [False, False]
    turned = [bool(_number(t, turn, (0, 1))) for turn in transposed]
    turned = [False] * (2 - len(turned)) + turned
    if from_registers and signs[0]:
        signs = [False, not signs[1]]  # the product is the same
    left = left_fragment(kinds[1], ROWS, depth) if from_registers else _nothing(kinds[1], ROWS, depth)
    accumulator = _result_fragment(kinds[0], columns)
    in_memory = (
        None if from_registers else _InMemory(kinds[1], depth, _LEFT, turned[0], signs[0], True),
        _InMemory(kinds[2], depth, _RIGHT, turned[1], signs[1], False),
    )
    shared = segment_entry(b, t.context, Segment.SHARED)
    descriptors = [i64(0) if from_registers else t.read(a, _B64), t.read(right, _B64)]
    for descriptor in descriptors:
        t.fault_if(b.bits(descriptor, 7 << 49), Fault.MATRIX)
    extra = [
        b.zext(t.read(scale, PRED), I32),
        b.ptrtoint(b.get(SEGMENT, shared, "base"), I64),
        b.get(SEGMENT, shared, "size"),
        *descriptors,
    ]
    product = Product(
        left,
        _nothing(kinds[2], depth, columns),
        accumulator,
        accumulator,
        "satfinite" in m,
        in_memory=in_memory,
        scale=_SCALE,
    )
    variant = (t.routine.name, t.operation.index)  # constants of this very place say what is done
    problem = multiply(t, product, [a if from_registers else Elements(()), Elements(()), d], d, extra, variant)
    t.fault_if(b.is_("!=", problem, 0), Fault.LOAD, b.or_(b.sub(problem, i64(1)), i64(Segment.SHARED << OFFSET_BITS)), 16)


def _nothing(kind: str, rows: int, columns: int) -> Fragment:
    """A factor of which threads hold nothing."""
    return Fragment(kind, rows, columns, 0, lambda b, lane, register, index: (i32(0), i32(0)))


_SHAPES = [f"m64n{n}" for n in range(8, 257, 8)]
_INTEGER_SHAPES = [f"m64n{n}k32" for n in (8, 16, 24, *range(32, 257, 16))]
_FP8 = "e4m3 e5m2"


def _shapes(depth: int) -> list[str]:
    return [f"{shape}k{depth}" for shape in _SHAPES]


@instruction(
    "wgmma.mma_async.sync.aligned.shape.dtype.f16.f16 *d_, *a, *b, *scale, *sign_a, *sign_b, *turn{, *more}",
    shape=_shapes(16), dtype="f16 f32", suspends=True,
)  # fmt: skip
@instruction(
    "wgmma.mma_async.sync.aligned.shape.dtype.bf16.bf16 *d_, *a, *b, *scale, *sign_a, *sign_b, *turn{, *more}",
    shape=_shapes(16), dtype=["f32"], suspends=True,
)  # fmt: skip
def multiply_halves(
    t: Emitter, m: Match, d: Any, a: Any, b: Any, scale: Any, sign_a: Any, sign_b: Any, turn: Any, more: Any = None
) -> None:
    """A that is held in registers is not transposed, so that it has no word on that."""
    turns = [turn] if more is None else [turn, more]
    if (more is None) != isinstance(a, Elements):
        raise t.error("a matrix in registers takes one number that says what is transposed, one in memory takes two")
    kind = "bf16" if "bf16" in m.mnemonic else "f16"
    _multiply(t, m, d, a, b, scale, (m.text("dtype"), kind, kind), [sign_a, sign_b], turns)


@instruction(
    "wgmma.mma_async.sync.aligned.shape.dtype.atype.btype *d_, *a, *b, *scale, *sign_a, *sign_b",
    shape=_shapes(32), dtype="f16 f32", atype=_FP8, btype=_FP8, suspends=True,
)  # fmt: skip
@instruction(
    "wgmma.mma_async.sync.aligned.shape.dtype.atype.btype *d_, *a, *b, *scale, *sign_a, *sign_b",
    shape=_shapes(8), dtype=["f32"], atype=["tf32"], btype=["tf32"], suspends=True,
)  # fmt: skip
def multiply_others(t: Emitter, m: Match, d: Any, a: Any, b: Any, scale: Any, sign_a: Any, sign_b: Any) -> None:
    _multiply(t, m, d, a, b, scale, (m.text("dtype"), m.text("atype"), m.text("btype")), [sign_a, sign_b], [])


@instruction(
    "wgmma.mma_async.sync.aligned.shape{.satfinite}.s32.atype.btype *d_, *a, *b, *scale",
    shape=_INTEGER_SHAPES, atype="s8 u8", btype="s8 u8", suspends=True,
)  # fmt: skip
def multiply_integers(t: Emitter, m: Match, d: Any, a: Any, b: Any, scale: Any) -> None:
    _multiply(t, m, d, a, b, scale, ("s32", m.text("atype"), m.text("btype")), [], [])
