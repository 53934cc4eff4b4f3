"""Copies of tiles that a tensor map describes, where the kernel has made the map.

What the driver leaves in a ``CUtensorMap`` is not documented, so a map holds what is kept here: a mark, with a bit for each field
that ``tensormap.replace`` has set, and these fields. A map of which the kernel has not set each is refused when it is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kaasd.devices.emulator.codegen import checks
from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.llvm_builder import I1, I8, I32, I64, PTR, VOID, const, i64
from kaasd.devices.emulator.codegen.structures import Fault
from kaasd.devices.emulator.isa.asynchronous import complete_transactions
from kaasd.devices.emulator.isa.bulk import UNIT, each_target, mask_of
from kaasd.devices.emulator.isa.load_store import space_of
from kaasd.devices.emulator.isa.table import instruction
from kaasd.devices.emulator.ptx import ast
from kaasd.devices.emulator.ptx.forms import Match
from kaasd.devices.emulator.ptx.routine import Elements, Memory, Operand
from kaasd.devices.emulator.ptx.types import B32

MAP_BYTES = 128
_MARK = 0x7465_6E73 << 32
_MOST_DIMENSIONS = 5
_BIT, _PLACE, _WIDTH, _COUNT = range(4)
_FIELDS = {
    "global_address": (0, 8, 8, 1),
    "rank": (1, 108, 1, 1),
    "global_stride": (2, 16, 8, _MOST_DIMENSIONS - 1),
    "global_dim": (6, 48, 4, _MOST_DIMENSIONS),
    "box_dim": (11, 68, 4, _MOST_DIMENSIONS),
    "element_stride": (16, 88, 4, _MOST_DIMENSIONS),
    "elemtype": (21, 109, 1, 1),
    "interleave_layout": (22, 110, 1, 1),
    "swizzle_mode": (23, 111, 1, 1),
    "fill_mode": (24, 112, 1, 1),
}
"""Of each: its first bit in the mark, where it is in the map, its bytes, and how many there are."""
_WIDTHS = (1, 2, 4, 4, 8, 8, 2, 4, 4, 8, 2, 4, 4)
"""Bytes of an element, by the number of its type; of what follows, less than a byte each, none."""
_MAP_SPACE: dict[str, Any] = {"space": "global shared::cta"}


@instruction(
    "tensormap.replace.tile.field{.space}.b1024.width [a], *value", field=["global_address"], width=["b64"], **_MAP_SPACE
)
@instruction("tensormap.replace.tile.field{.space}.b1024.width [a], *value", field=["rank"], width=["b32"], **_MAP_SPACE)
@instruction(
    "tensormap.replace.tile.field{.space}.b1024.width [a], *value",
    field="elemtype interleave_layout swizzle_mode fill_mode", width=["b32"], **_MAP_SPACE,
)  # fmt: skip
def replace(t: Emitter, m: Match, a: Memory, value: Operand) -> None:
    _replace(t, m, a, 0, value)


@instruction(
    "tensormap.replace.tile.field{.space}.b1024.width [a], *index, *value", field=["global_stride"], width=["b64"], **_MAP_SPACE
)
@instruction(
    "tensormap.replace.tile.field{.space}.b1024.width [a], *index, *value",
    field="global_dim box_dim element_stride", width=["b32"], **_MAP_SPACE,
)  # fmt: skip
def replace_one(t: Emitter, m: Match, a: Memory, index: Operand, value: Operand) -> None:
    if not isinstance(index, ast.Integer) or not 0 <= index.value < _FIELDS[m.text("field")][_COUNT]:
        raise t.error("the dimension is out of range")
    _replace(t, m, a, index.value, value)


def _replace(t: Emitter, m: Match, a: Memory, index: int, value: Operand) -> None:
    b, field = t.b, _FIELDS[m.text("field")]
    start = t.pointer(space_of(m), a, MAP_BYTES, Fault.STORE, alignment=8)
    mark = b.load_as(I64, start, "memory", 8)
    marked = b.is_("==", b.and_(mark, i64(0xFFFF_FFFF << 32)), _MARK)
    mark = b.or_(b.select(marked, mark, i64(_MARK)), i64(1 << field[_BIT] + index))
    b.store_as(mark, start, "memory", 8)
    kind = {8: I64, 4: I32, 1: I8}[field[_WIDTH]]
    given = t.read(value, m.type_of(m.text("width")))
    b.store_as(b.resize(given, kind), b.at(start, field[_PLACE] + field[_WIDTH] * index), "memory", 1)


@instruction(
    "tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.scope.sync.aligned [to], [a], *size",
    scope="cta cluster gpu sys",
)  # fmt: skip
def copy_map(t: Emitter, m: Match, target: Memory, source: Memory, size: Operand) -> None:
    read = t.pointer("shared", source, MAP_BYTES, Fault.LOAD)
    write = t.pointer("global", target, MAP_BYTES, Fault.STORE)
    t.b.call(t.intrinsic("llvm.memmove.p0.p0.i64", VOID, PTR, PTR, I64, I1), [write, read, i64(MAP_BYTES), const(I1, 0)])


@instruction("fence.proxy.tensormap::generic.release.scope", scope="cta cluster gpu sys")
@instruction("fence.proxy.tensormap::generic.acquire.scope [a], *size", scope="cta cluster gpu sys")
@instruction("prefetch{.space}.tensormap [a]", space="const param")
@instruction(
    "cp.async.bulk.prefetch.tensor.dim.L2.global{.tile}{.hint} [map]{, *policy}", dim="1d 2d 3d 4d 5d", hint=["L2::cache_hint"]
)
def nothing(t: Emitter, m: Match, *operands: Any) -> None:
    """Memory is always in order, and there is no cache."""


@dataclass(frozen=True, slots=True)
class _Tile:
    """A tile of a tensor: what its map says, and where it begins."""

    t: Emitter
    address: Any
    strides: list[Any]
    sizes: list[Any]
    box: list[Any]
    width: Any
    swizzle: Any
    first: list[Any]
    """Coordinates of its first element, signed, as 64 bits."""

    @classmethod
    def of(cls, t: Emitter, m: Match, memory: Memory) -> _Tile:
        b, rank = t.b, int(m.text("dim")[0])
        (coordinates,) = memory.rest
        if not isinstance(coordinates, Elements) or len(coordinates.items) != rank:
            raise t.error(f"{rank} coordinates are needed")
        start = t.pointer("", Memory(memory.base, memory.offset), MAP_BYTES, Fault.LOAD, alignment=64)

        def get(name: str, index: int = 0) -> Any:
            _, place, width, _ = _FIELDS[name]
            return b.resize(b.load_as({8: I64, 4: I32, 1: I8}[width], b.at(start, place + width * index), "memory", 1), I64)

        needed = dict.fromkeys(_FIELDS, 1) | dict.fromkeys(("global_dim", "box_dim", "element_stride"), rank)
        needed["global_stride"] = rank - 1
        bits = sum(((1 << count) - 1) << _FIELDS[name][_BIT] for name, count in needed.items())
        mark = b.load_as(I64, start, "memory", 8)
        bad = b.is_("!=", b.and_(mark, i64(0xFFFF_FFFF << 32 | bits)), _MARK | bits)
        bad = b.or_(bad, b.is_("!=", get("rank"), rank - 1))
        for name in ("interleave_layout", "fill_mode"):
            bad = b.or_(bad, b.is_("!=", get(name), 0))
        for index in range(rank):
            bad = b.or_(bad, b.is_("!=", get("element_stride", index), 1))
        width = i64(0)
        for number, size in enumerate(_WIDTHS):
            width = b.select(b.is_("==", get("elemtype"), number), i64(size), width)
        box = [get("box_dim", index) for index in range(rank)]
        inner = b.mul(box[0], width)
        bad = b.or_(bad, b.or_(b.is_("==", inner, 0), b.bits(inner, UNIT - 1)))
        t.fault_if(bad, Fault.TENSOR)
        return cls(
            t,
            get("global_address"),
            [width, *(get("global_stride", index) for index in range(rank - 1))],
            [get("global_dim", index) for index in range(rank)],
            box,
            width,
            b.shl(b.sub(b.shl(i64(1), get("swizzle_mode")), i64(1)), i64(4)),
            [b.sext(t.read(item, B32), I64) for item in coordinates.items],
        )

    @property
    def bytes(self) -> Any:
        """Of all of it, in shared memory."""
        total = self.width
        for size in self.box:
            total = self.t.b.mul(total, size)
        return total

    def each_chunk(self, shared: Any, to_shared: bool) -> None:
        """Copy 16 bytes at a time between a place in the window of a cluster's shared memory and the tensor.

        What is outside of the tensor is read as zeros, and not written.
        """
        t, b = self.t, self.t.b
        with b.count(b.udiv(self.bytes, i64(UNIT))) as number:
            offset = b.mul(number, i64(UNIT))
            place = b.add(shared, offset)
            place = b.xor(place, b.and_(b.lshr(place, i64(3)), self.swizzle))
            row, inner = b.udiv(offset, b.mul(self.box[0], self.width)), b.urem(offset, b.mul(self.box[0], self.width))
            address, inside = self.address, const(I1, 1)
            for dimension in range(1, len(self.box)):
                at = b.add(self.first[dimension], b.urem(row, self.box[dimension]))
                row = b.udiv(row, self.box[dimension])
                inside = b.and_(inside, b.is_("<", at, self.sizes[dimension]))
                address = b.add(address, b.mul(at, self.strides[dimension]))
            element = b.add(self.first[0], b.udiv(inner, self.width))
            count = b.udiv(i64(UNIT), self.width)
            address = b.add(address, b.mul(element, self.width))
            here = t.checked("", t.of_cluster(place), UNIT, Fault.STORE if to_shared else Fault.LOAD, UNIT)
            with b.count(count) as index:
                own = b.add(element, index)
                whole = b.and_(inside, b.is_("<", own, self.sizes[0]))
                near = b.at(here, b.mul(index, self.width))
                with b.if_else(whole) as (within, beyond):
                    with within:
                        far_address = b.add(address, b.mul(index, self.width))
                        with b.count(self.width) as byte:
                            access = Fault.LOAD if to_shared else Fault.STORE
                            far = t.checked("", b.add(far_address, byte), 1, access, 1)
                            source, target = (far, b.at(near, byte)) if to_shared else (b.at(near, byte), far)
                            b.store_as(b.load_as(I8, source, "memory"), target, "memory")
                    with beyond:
                        if to_shared:
                            with b.count(self.width) as byte:
                                b.store_as(const(I8, 0), b.at(near, byte), "memory")


@instruction(
    "cp.async.bulk.tensor.dim.to.global{.tile}.mbarrier::complete_tx::bytes{.multicast}{.hint} [to], [map], [bar]{, *x}{, *y}",
    dim="1d 2d 3d 4d 5d", to="shared::cluster shared::cta", multicast=["multicast::cluster"], hint=["L2::cache_hint"],
)  # fmt: skip
def load_tile(t: Emitter, m: Match, target: Memory, tensor: Memory, bar: Memory, *rest: Operand | None) -> None:
    mask, tile = mask_of(t, m, rest), _Tile.of(t, m, tensor)
    places = [t.address("shared", memory)[1] for memory in (target, bar)]

    def one(addresses: list[Any]) -> None:
        tile.each_chunk(addresses[0], to_shared=True)
        complete_transactions(t, t.checked("", t.of_cluster(addresses[1]), 8, Fault.ATOMIC, 8), tile.bytes)

    each_target(t, mask, places, one)
    checks.put_in_order(t)


@instruction(
    "cp.async.bulk.tensor.dim.global.shared::cta{.tile}.bulk_group{.hint} [map], [a]{, *policy}",
    dim="1d 2d 3d 4d 5d", hint=["L2::cache_hint"],
)  # fmt: skip
def store_tile(t: Emitter, m: Match, tensor: Memory, source: Memory, policy: Any = None) -> None:
    _Tile.of(t, m, tensor).each_chunk(t.address("shared", source)[1], to_shared=False)
