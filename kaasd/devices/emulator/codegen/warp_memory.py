"""How all threads of a warp access memory at once: one check and two vectors where each half's places lie in a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from llvmlite import ir

from kaasd.devices.emulator.codegen.kernel_image import KernelImage
from kaasd.devices.emulator.codegen.llvm_builder import I1, I8, I32, I64, PTR, VOID, Builder, i32, i64
from kaasd.devices.emulator.codegen.structures import OFFSET_BITS, OFFSET_MASK, SEGMENT, WARP_SIZE, Fault
from kaasd.devices.emulator.codegen.warp_plan import Check

LANES = range(WARP_SIZE)
_HALF = WARP_SIZE // 2
ROW, ONE, OTHER = range(3)
"""How the places lie that half a warp accesses: in a row, all at one, or anyhow."""
POINTERS = ir.VectorType(PTR, WARP_SIZE)
Leave: TypeAlias = Callable[[ir.Value], None]
"""Leaves the operation to the code for one thread under a condition."""


class Pointers:
    """Where a checked access leads: one place, or a place for each thread."""

    def __init__(self, check: Check, one: ir.Value | None = None) -> None:
        self.check = check
        self.one = one
        self.pattern: ir.Value
        """Of each half of the warp: ``ROW``, ``ONE`` or ``OTHER``."""
        self.ends: list[ir.Value]
        """Of the first thread of each half, unless it is ``OTHER``."""
        self.all: ir.Value
        """Where the pointers of all are, if it is."""


def vector_of(kind: ir.Type) -> ir.VectorType:
    """Return the type of a value of each thread."""
    return ir.VectorType(kind, WARP_SIZE)


def constant(kind: ir.Type, values: Iterable[int]) -> ir.Constant:
    """Return a constant vector of integers."""
    elements = [ir.Constant(kind, value) for value in values]
    return ir.Constant(ir.VectorType(kind, len(elements)), elements)


def splat(b: Builder, value: ir.Value) -> ir.Value:
    """Return a vector with one value for all threads."""
    if isinstance(value, ir.Constant):
        return ir.Constant(vector_of(value.type), [value] * WARP_SIZE)
    undefined = ir.Constant(vector_of(value.type), ir.Undefined)
    return b.shuffle_vector(b.insert_element(undefined, value, i32(0)), undefined, ir.Constant(vector_of(I32), None))


def holds_for_all(b: Builder, condition: ir.Value) -> ir.Value:
    return b.is_("==", b.bitcast(condition, I32), -1)


class WarpMemory:
    """Emits the accesses of a warp. What does not lie in a row goes through functions that all accesses of a kind share."""

    def __init__(self, image: KernelImage, b: Builder, table: ir.Value) -> None:
        self._image, self._b, self._table = image, b, table

    def check(self, value: ir.Value, narrow: ir.Value, check: Check, leave_if: Leave) -> Pointers:
        """Check an access at the addresses ``value``. They are apart as ``narrow`` is, which may have fewer bits."""
        b = self._b
        if not isinstance(value.type, ir.VectorType):
            bad, pointer = _checked(b, self._table, value, check, i64(check.size))
            leave_if(bad)
            return Pointers(check, pointer)
        found = Pointers(check)
        found.all = b.variable(POINTERS)
        kind = narrow.type.element
        firsts = b.shuffle_vector(narrow, narrow, constant(I32, [lane & _HALF for lane in LANES]))
        row = constant(kind, [lane % _HALF * check.size for lane in LANES])
        distances = b.sub(narrow, firsts)
        start = b.block
        one, near, other, go_on = (b.append_basic_block(name) for name in ("one", "near", "other", "checked"))
        b.cbranch(holds_for_all(b, b.icmp_unsigned("==", distances, row)), near, one)
        b.position_at_end(one)
        b.cbranch(holds_for_all(b, b.icmp_unsigned("==", distances, ir.Constant(narrow.type, None))), near, other)
        b.position_at_end(near)
        pattern, span = b.phi(I32), b.phi(I64)
        for block, number, size in ((start, ROW, _HALF * check.size), (one, ONE, check.size)):
            pattern.add_incoming(i32(number), block)
            span.add_incoming(i64(size), block)
        halves = [b.extract_element(value, i32(lane)) for lane in (0, _HALF)]
        bads, pointers = zip(*(_checked(b, self._table, half, check, span) for half in halves), strict=True)
        leave_if(b.or_(*bads))
        near_end = b.block
        b.branch(go_on)
        b.position_at_end(other)
        leave_if(b.call(self._check_each(check), [self._table, value, found.all]))
        other_end = b.block
        b.branch(go_on)
        b.position_at_end(go_on)
        found.pattern = b.phi(I32)
        found.pattern.add_incoming(pattern, near_end)
        found.pattern.add_incoming(i32(OTHER), other_end)
        found.ends = [b.phi(PTR) for _ in halves]
        for phi, pointer in zip(found.ends, pointers, strict=True):
            phi.add_incoming(pointer, near_end)
            phi.add_incoming(ir.Constant(PTR, None), other_end)
        return found

    def of_lane(self, value: ir.Value, lane: ir.Value) -> ir.Value:
        """Return for each thread the value of the one of a lane."""
        kind = value.type.element

        def build(b: Builder, function: ir.Function) -> None:
            function.attributes.add("noinline")
            place = b.variable(value.type)
            b.store(function.args[0], place)
            places = b.variable(POINTERS)
            start = splat(b, b.ptrtoint(place, I64))
            steps = b.mul(b.zext(function.args[1], vector_of(I64)), constant(I64, [_bytes(kind)] * WARP_SIZE))
            b.store(b.inttoptr(b.add(start, steps), POINTERS), places)
            b.ret(b.call(self._gather(kind), [places, i64(0)]))

        signature = ir.FunctionType(value.type, [value.type, lane.type])
        return self._b.call(self._image.helper(f"of_lane.{_suffix(kind)}", signature, build), [value, lane])

    def _check_each(self, check: Check) -> ir.Function:
        """Return a function that checks places in one segment, stores where they are, and returns whether any is wrong."""

        def build(b: Builder, function: ir.Function) -> None:
            function.attributes.add("noinline")
            table, addresses, out = function.args
            segment, _ = _place_in(b, b.extract_element(addresses, i32(0)), check)
            entry = b.item(table, SEGMENT.ir, segment)
            offsets, wrong = addresses, ir.Constant(vector_of(I1), None)
            if check.segment is None:
                segments = b.lshr(addresses, constant(I64, [OFFSET_BITS] * WARP_SIZE))
                wrong = b.icmp_unsigned("!=", segments, splat(b, segment))
                offsets = b.and_(addresses, constant(I64, [OFFSET_MASK] * WARP_SIZE))
            limit = b.get(SEGMENT, entry, "size" if check.access is Fault.LOAD else "writable_size")
            ends = b.add(offsets, constant(I64, [check.size] * WARP_SIZE))
            wrong = b.or_(wrong, b.icmp_unsigned(">", ends, splat(b, limit)))
            wrong = b.or_(wrong, b.icmp_unsigned("<", ends, offsets))
            if check.alignment > 1:
                low = b.and_(offsets, constant(I64, [check.alignment - 1] * WARP_SIZE))
                wrong = b.or_(wrong, b.icmp_unsigned("!=", low, ir.Constant(low.type, None)))
            base = b.ptrtoint(b.get(SEGMENT, entry, "base"), I64)
            b.store(b.inttoptr(b.add(splat(b, base), offsets), POINTERS), out)
            b.ret(b.is_("!=", b.bitcast(wrong, I32), 0))

        name = f"check.{check.segment}.{check.size}.{check.access}.{check.alignment}"
        return self._image.helper(name, ir.FunctionType(I1, [PTR, vector_of(I64), PTR]), build)

    def _by_pattern(self, pointers: Pointers, kind: ir.Type, *emitted: Callable[[], ir.Value]) -> list[tuple[ir.Value, ir.Block]]:
        """Emit what is done for each pattern, and return what that gives, with where it ends."""
        b, found = self._b, []
        cases = [b.append_basic_block(name) for name in ("row", "one", "anyhow")]
        end = b.append_basic_block("accessed")
        switch = b.switch(pointers.pattern, cases[OTHER])
        for pattern, (block, emit) in enumerate(zip(cases, emitted, strict=True)):
            if pattern != OTHER:
                switch.add_case(i32(pattern), block)
            b.position_at_end(block)
            if pattern == ROW and pointers.check.size != _bytes(kind):
                b.store(self._row_of(pointers), pointers.all)
                emit = emitted[OTHER]
            found.append((emit(), b.block))
            b.branch(end)
        b.position_at_end(end)
        return found

    def _row_of(self, pointers: Pointers) -> ir.Value:
        b = self._b
        low, high = (splat(b, b.ptrtoint(one, I64)) for one in pointers.ends)
        both = b.shuffle_vector(low, high, constant(I32, [lane if lane < _HALF else WARP_SIZE for lane in LANES]))
        steps = constant(I64, [lane % _HALF * pointers.check.size for lane in LANES])
        return b.inttoptr(b.add(both, steps), POINTERS)

    def load(self, kind: ir.Type, pointers: Pointers, offset: int) -> ir.Value:
        """Load a value for each thread, at a distance from its checked address."""
        b = self._b

        def in_row() -> ir.Value:
            parts = [b.load_as(ir.VectorType(kind, _HALF), b.at(one, offset), "memory", _bytes(kind)) for one in pointers.ends]
            return b.shuffle_vector(*parts, constant(I32, LANES))

        def one() -> ir.Value:
            values = [splat(b, b.load_as(kind, b.at(end, offset), "memory", _bytes(kind))) for end in pointers.ends]
            return b.shuffle_vector(*values, constant(I32, [lane if lane < _HALF else WARP_SIZE for lane in LANES]))

        def anyhow() -> ir.Value:
            return b.call(self._gather(kind), [pointers.all, i64(offset)])

        found = self._by_pattern(pointers, kind, in_row, one, anyhow)
        phi = b.phi(vector_of(kind))
        for value, block in found:
            phi.add_incoming(value, block)
        return phi

    def store(self, value: ir.Value, pointers: Pointers, offset: int) -> None:
        """Store a value for each thread. Where several have one place, the highest lane's stays."""
        b, kind = self._b, value.type.element

        def in_row() -> None:
            for place, one in enumerate(pointers.ends):
                part = b.shuffle_vector(value, value, constant(I32, range(place * _HALF, (place + 1) * _HALF)))
                b.store_as(part, b.at(one, offset), "memory", _bytes(kind))

        def one() -> None:
            for place, end in enumerate(pointers.ends):
                part = b.extract_element(value, i32((place + 1) * _HALF - 1))
                b.store_as(part, b.at(end, offset), "memory", _bytes(kind))

        def anyhow() -> None:
            b.call(self._scatter(kind), [pointers.all, i64(offset), value])

        self._by_pattern(pointers, kind, in_row, one, anyhow)

    def _gather(self, kind: ir.Type) -> ir.Function:
        def build(b: Builder, function: ir.Function) -> None:
            function.attributes.add("noinline")
            places, offset = function.args
            name = f"llvm.masked.gather.v{WARP_SIZE}{_suffix(kind)}.v{WARP_SIZE}p0"
            signature = ir.FunctionType(vector_of(kind), [POINTERS, I32, vector_of(I1), vector_of(kind)])
            gather = self._image.declare(name, signature)
            every = constant(I1, [1] * WARP_SIZE)
            b.ret(b.call(gather, [_moved(b, places, offset), i32(_bytes(kind)), every, ir.Constant(vector_of(kind), None)]))

        return self._image.helper(f"gather.{_suffix(kind)}", ir.FunctionType(vector_of(kind), [PTR, I64]), build)

    def _scatter(self, kind: ir.Type) -> ir.Function:
        def build(b: Builder, function: ir.Function) -> None:
            function.attributes.add("noinline")
            places, offset, value = function.args
            name = f"llvm.masked.scatter.v{WARP_SIZE}{_suffix(kind)}.v{WARP_SIZE}p0"
            signature = ir.FunctionType(VOID, [vector_of(kind), POINTERS, I32, vector_of(I1)])
            scatter = self._image.declare(name, signature)
            b.call(scatter, [value, _moved(b, places, offset), i32(_bytes(kind)), constant(I1, [1] * WARP_SIZE)])
            b.ret_void()

        return self._image.helper(f"scatter.{_suffix(kind)}", ir.FunctionType(VOID, [PTR, I64, vector_of(kind)]), build)


def _moved(b: Builder, places: ir.Value, offset: ir.Value) -> ir.Value:
    return b.gep(b.load(places, typ=POINTERS), [offset], source_etype=I8)


def _checked(b: Builder, table: ir.Value, address: ir.Value, check: Check, size: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Return whether an access of so many bytes is wrong, and its host address."""
    segment, offset = _place_in(b, address, check)
    entry = b.item(table, SEGMENT.ir, segment)
    end = b.add(offset, size)
    limit = b.get(SEGMENT, entry, "size" if check.access is Fault.LOAD else "writable_size")
    bad = b.or_(b.is_(">", end, limit), b.is_("<", end, offset))
    if check.alignment > 1:
        bad = b.or_(bad, b.bits(offset, check.alignment - 1))
    return bad, b.at(b.get(SEGMENT, entry, "base"), offset)


def _place_in(b: Builder, address: ir.Value, check: Check) -> tuple[ir.Value, ir.Value]:
    if check.segment is not None:
        return i64(check.segment), address
    return b.lshr(address, i64(OFFSET_BITS)), b.and_(address, i64(OFFSET_MASK))


def _bytes(kind: ir.Type) -> int:
    return {"float": 4, "double": 8}.get(str(kind)) or int(kind.width) // 8


def _suffix(kind: ir.Type) -> str:
    return {"float": "f32", "double": "f64"}.get(str(kind)) or str(kind)
