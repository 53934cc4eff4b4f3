"""``wmma``: matrix fragments loaded, multiplied and stored by a warp.

The manual leaves it open which thread has which element. Here the elements of a matrix, row after row (of B, column after
column), are dealt out to the threads in order, as many to each as its registers hold; where they hold more than there are
elements, the threads begin anew.
"""

from __future__ import annotations

from typing import Any

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.llvm_builder import I64, Builder, i32
from kaasd.devices.emulator.codegen.structures import Fault
from kaasd.devices.emulator.isa import special_registers
from kaasd.devices.emulator.isa.load_store import space_of
from kaasd.devices.emulator.isa.product import WIDTHS, Fragment, Product, multiply
from kaasd.devices.emulator.isa.table import instruction
from kaasd.devices.emulator.isa.tensor import sizes
from kaasd.devices.emulator.ptx.forms import Match
from kaasd.devices.emulator.ptx.routine import Elements, Memory
from kaasd.devices.emulator.ptx.types import B32, TYPES, U32

SHAPES = "m16n16k16 m32n8k16 m8n32k16 m16n16k8 m8n8k4 m8n8k32 m8n8k128"
KINDS = "f16 bf16 tf32 f32 f64 s8 u8 s4 u4 b1 s32"
SPACE = "global shared shared::cta"
LAYOUTS = "row col"


def _fragment(t: Emitter, m: Match, part: str, kind: str) -> Fragment:
    """Return how part a, b, c or d of the operation is held."""
    height, width, depth = sizes(m)
    rows, columns = {"a": (height, depth), "b": (depth, width)}.get(part, (height, width))
    total = rows * columns
    per_register = (64 if kind == "f64" else 32) // WIDTHS[kind]
    held = 16 if kind == "f16" and part in "ab" else max(1, total // 32)
    registers = max(1, held // per_register)
    by_columns = part == "b"

    def place(b: Builder, lane: Any, register: Any, index: int) -> tuple[Any, Any]:
        number = b.add(b.mul(b.add(b.mul(lane, i32(registers)), register), i32(per_register)), i32(index))
        number = b.and_(number, i32(total - 1))
        inner = rows if by_columns else columns  # along the depth, so that what a register holds is contiguous there
        first, second = b.udiv(number, i32(inner)), b.urem(number, i32(inner))
        return (second, first) if by_columns else (first, second)

    return Fragment(kind, rows, columns, registers, place)


def _visit(t: Emitter, m: Match, fragment: Fragment, memory: Memory, stride: Any, access: Fault) -> list[list[Any]]:
    """Return, for each register, the host addresses of its elements, or of the whole where elements are less than a byte."""
    b, width = t.b, WIDTHS[fragment.kind]
    by_rows = m["layout"] == "row"
    default = fragment.columns if by_rows else fragment.rows
    step = i32(default) if stride is None else t.read(stride, U32)
    space, start = t.address(space_of(m), memory)
    lane = special_registers.read(t, "%laneid")
    places = []
    for register in range(fragment.registers):
        addresses = []
        for index in range(fragment.per_register if width >= 8 else 1):
            row, column = fragment.place(b, lane, i32(register), index)
            outer, inner = (row, column) if by_rows else (column, row)
            element = b.add(b.mul(b.zext(outer, I64), b.zext(step, I64)), b.zext(inner, I64))
            offset = b.lshr(b.mul(element, b.zext(i32(width), I64)), b.zext(i32(3), I64))
            size = max(width // 8, 1) if width >= 8 else 4
            addresses.append(t.checked(space, b.add(start, offset), size, access, size))
        places.append(addresses)
    return places


def _items(t: Emitter, operand: Any, fragment: Fragment) -> tuple[Any, ...]:
    items = operand.items if isinstance(operand, Elements) else (operand,)
    if len(items) != fragment.registers:
        raise t.error(f"{fragment.registers} registers are needed, not {len(items)}")
    return items


def _load(t: Emitter, m: Match, part: str, d: Any, a: Memory, stride: Any) -> None:
    b, kind = t.b, m.text("kind")
    fragment = _fragment(t, m, part, kind)
    width = WIDTHS[kind]
    if width < 8 and (m["layout"] == "row") != (part == "a"):
        raise t.error("elements of less than a byte need a by rows and b by columns")
    whole = TYPES["b64"] if kind == "f64" else B32
    for item, addresses in zip(_items(t, d, fragment), _visit(t, m, fragment, a, stride, Fault.LOAD), strict=True):
        size = whole.raw if width < 8 else TYPES[f"b{width}"].raw
        value = whole.constant(0)
        for index, address in enumerate(addresses):
            element = b.resize(b.load_as(size, address, "memory"), whole.raw)
            value = b.or_(value, b.shl(element, whole.constant(index * width)))
        t.write(item, value, whole)


_LOAD: dict[str, Any] = {"layout": LAYOUTS, "shape": SHAPES, "space": SPACE, "kind": KINDS}


@instruction("wmma.load.a.sync.aligned.layout.shape{.space}.kind *d, [a]{, *stride}", **_LOAD)
def load_a(t: Emitter, m: Match, d: Any, a: Memory, stride: Any) -> None:
    _load(t, m, "a", d, a, stride)


@instruction("wmma.load.b.sync.aligned.layout.shape{.space}.kind *d, [a]{, *stride}", **_LOAD)
def load_b(t: Emitter, m: Match, d: Any, a: Memory, stride: Any) -> None:
    _load(t, m, "b", d, a, stride)


@instruction("wmma.load.c.sync.aligned.layout.shape{.space}.kind *d, [a]{, *stride}", **_LOAD)
def load_c(t: Emitter, m: Match, d: Any, a: Memory, stride: Any) -> None:
    _load(t, m, "c", d, a, stride)


@instruction("wmma.store.d.sync.aligned.layout.shape{.space}.kind [a], *b{, *stride}", **_LOAD)
def store_d(t: Emitter, m: Match, a: Memory, registers: Any, stride: Any) -> None:
    b, kind = t.b, m.text("kind")
    fragment = _fragment(t, m, "d", kind)
    whole = TYPES["b64"] if kind == "f64" else B32
    places = _visit(t, m, fragment, a, stride, Fault.STORE)
    for item, addresses in zip(_items(t, registers, fragment), places, strict=True):
        value = t.read(item, whole)
        for index, address in enumerate(addresses):
            width = WIDTHS[kind]
            element = b.resize(b.lshr(value, whole.constant(index * width)), TYPES[f"b{width}"].raw)
            b.store_as(element, address, "memory")


def _multiply(t: Emitter, m: Match, operands: list[Any], d: Any, kinds: tuple[str, str, str, str], combine: str = "") -> None:
    result, left, right, addend = kinds
    product = Product(
        _fragment(t, m, "a", left),
        _fragment(t, m, "b", right),
        _fragment(t, m, "c", addend),
        _fragment(t, m, "d", result),
        "satfinite" in m,
        combine,
        m["rnd"],
    )
    multiply(t, product, operands, d)


_HEAD = "wmma.mma.sync.aligned.alayout.blayout.shape"
_WORDS: dict[str, Any] = {"alayout": LAYOUTS, "blayout": LAYOUTS, "shape": SHAPES, "suspends": True}


@instruction(f"{_HEAD}.dtype.ctype{{.satfinite}} *d, *a, *b, *c", dtype="f16 f32", ctype="f16 f32", **_WORDS)
def mma_half(t: Emitter, m: Match, d: Any, a: Any, b: Any, c: Any) -> None:
    _multiply(t, m, [a, b, c], d, (m.text("dtype"), "f16", "f16", m.text("ctype")))


@instruction(f"{_HEAD}.f32.kind.kind2.f32 *d, *a, *b, *c", kind="bf16 tf32 f16", kind2="bf16 tf32 f16", **_WORDS)
def mma_single(t: Emitter, m: Match, d: Any, a: Any, b: Any, c: Any) -> None:
    _multiply(t, m, [a, b, c], d, ("f32", m.text("kind"), m.text("kind2"), "f32"))


@instruction(f"{_HEAD}{{.rnd}}.f64.f64.f64.f64 *d, *a, *b, *c", rnd="rn rz rm rp", **_WORDS)
@instruction(f"{_HEAD}.f64.f64.f64.f64.rnd *d, *a, *b, *c", rnd="rn rz rm rp", **_WORDS)  # as nvcc writes it
def mma_double(t: Emitter, m: Match, d: Any, a: Any, b: Any, c: Any) -> None:
    _multiply(t, m, [a, b, c], d, ("f64",) * 4)


@instruction(f"{_HEAD}.s32.kind.kind2.s32{{.satfinite}} *d, *a, *b, *c", kind="s8 u8 s4 u4", kind2="s8 u8 s4 u4", **_WORDS)
def mma_integer(t: Emitter, m: Match, d: Any, a: Any, b: Any, c: Any) -> None:
    _multiply(t, m, [a, b, c], d, ("s32", m.text("kind"), m.text("kind2"), "s32"))


@instruction("wmma.mma.combine.popc.sync.aligned.row.col.shape.s32.b1.b1.s32 *d, *a, *b, *c",
             combine="xor and", shape="m8n8k128", suspends=True)  # fmt: skip
def mma_bits(t: Emitter, m: Match, d: Any, a: Any, b: Any, c: Any) -> None:
    _multiply(t, m, [a, b, c], d, ("s32", "b1", "b1", "s32"), m.text("combine"))
