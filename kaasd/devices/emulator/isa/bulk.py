"""Bulk copies, and stores that an mbarrier counts: between global memory and the shared memory of a cluster.

As with other asynchronous copies, all is done when it is issued, and the mbarrier has its bytes at once.
"""

from __future__ import annotations

from typing import Any

from kaasd.devices.emulator.codegen import checks
from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.llvm_builder import I1, I32, I64, PTR, VOID, const, i32, i64
from kaasd.devices.emulator.codegen.structures import CONTEXT, LAUNCH, RANK_SHIFT, Fault
from kaasd.devices.emulator.isa import special_registers
from kaasd.devices.emulator.isa.asynchronous import complete_transactions
from kaasd.devices.emulator.isa.atomic import combine_halves, combine_integers
from kaasd.devices.emulator.isa.load_store import load, space_of, store
from kaasd.devices.emulator.isa.table import instruction
from kaasd.devices.emulator.ptx.forms import Match
from kaasd.devices.emulator.ptx.routine import Memory, Operand
from kaasd.devices.emulator.ptx.types import B32, TYPES, Type

UNIT = 16
"""Bytes: addresses and sizes of bulk copies are multiples of it."""
_COUNTED = "mbarrier::complete_tx::bytes"
_HINT = ["L2::cache_hint"]


def checked_range(t: Emitter, space: str, address: Any, size: Any, fault: Fault) -> Any:
    """Return the host address of ``size`` bytes, a multiple of ``UNIT`` and not 0, after all checks."""
    b = t.b
    first = t.checked(space, address, UNIT, fault, UNIT)
    if t.image.checks:  # which look at every byte
        with b.count(b.udiv(size, i64(UNIT))) as index:
            t.checked(space, b.add(address, b.mul(index, i64(UNIT))), UNIT, fault, UNIT)
    else:
        t.checked(space, b.add(address, b.sub(size, i64(UNIT))), UNIT, fault, UNIT)
    return first


def at_rank(t: Emitter, address: Any, rank: Any) -> Any:
    """Return the address in a cluster's shared memory of the place of this address, in the block of this rank."""
    b = t.b
    own = b.is_("==", rank, b.zext(special_registers.cluster_rank(t), I64))
    place = b.select(own, i64(0), b.shl(b.add(rank, i64(1)), i64(RANK_SHIFT)))
    return b.or_(b.and_(address, i64((1 << RANK_SHIFT) - 1)), place)


def each_target(t: Emitter, mask: Any, addresses: list[Any], body: Any) -> None:
    """Emit ``body(addresses)`` for the addresses as they are, or in each block of the cluster that is in ``mask``."""
    b = t.b
    if mask is None:
        body(addresses)
        return
    launch = b.get(CONTEXT, t.context, "launch")
    blocks, mask = b.get(LAUNCH, launch, "cluster_size"), b.zext(mask, I32)
    with b.count(blocks) as rank, b.when(b.bits(mask, b.shl(i32(1), rank))):
        body([at_rank(t, address, b.zext(rank, I64)) for address in addresses])


def _size(t: Emitter, size: Operand) -> Any:
    b = t.b
    value = b.zext(t.read(size, B32), I64)
    t.fault_if(b.bits(value, UNIT - 1), Fault.BULK)
    return value


def mask_of(t: Emitter, m: Match, rest: tuple[Operand | None, ...]) -> Any:
    """Return which blocks a copy goes to; None where it goes to one. It comes before a cache policy."""
    if "multicast" not in m:
        return None
    if not rest or rest[0] is None:
        raise t.error("a mask of blocks is needed")
    return t.read(rest[0], TYPES["u16"])


def _copy(t: Emitter, target: Any, source: Any, size: Any) -> None:
    t.b.call(t.intrinsic("llvm.memmove.p0.p0.i64", VOID, PTR, PTR, I64, I1), [target, source, size, const(I1, 0)])


@instruction(
    f"cp.async.bulk.to.space.{_COUNTED}{{.multicast}}{{.hint}} [to], [a], *size, [bar]{{, *x}}{{, *y}}",
    to="shared::cluster shared::cta", space="global shared::cta", multicast=["multicast::cluster"], hint=_HINT,
)  # fmt: skip
def copy_to_shared(
    t: Emitter, m: Match, target: Memory, source: Memory, size: Operand, bar: Memory, *rest: Operand | None
) -> None:
    b, mask = t.b, mask_of(t, m, rest)
    amount = _size(t, size)
    (from_space, from_address), to, barrier = t.address(space_of(m), source), _in_cluster(t, target), _in_cluster(t, bar)

    def one(addresses: list[Any]) -> None:
        place, cell = (t.of_cluster(address) for address in addresses)
        with b.when(b.is_("!=", amount, 0)):
            read = checked_range(t, from_space, from_address, amount, Fault.LOAD)
            _copy(t, checked_range(t, "", place, amount, Fault.STORE), read, amount)
        complete_transactions(t, t.checked("", cell, 8, Fault.ATOMIC, 8), amount)

    each_target(t, mask, [to, barrier], one)
    checks.put_in_order(t)


def _in_cluster(t: Emitter, memory: Memory) -> Any:
    """Return an address of shared memory as it is in the window of a cluster."""
    return t.address("shared", memory)[1]


@instruction(
    "cp.async.bulk.global.shared::cta.bulk_group{.hint} [to], [a], *size{, *policy}", hint=_HINT
)  # fmt: skip
def copy_to_global(t: Emitter, m: Match, target: Memory, source: Memory, size: Operand, policy: Any = None) -> None:
    b, amount = t.b, _size(t, size)
    (to_space, to_address), (from_space, from_address) = t.address("global", target), t.address("shared", source)
    with b.when(b.is_("!=", amount, 0)):
        read = checked_range(t, from_space, from_address, amount, Fault.LOAD)
        _copy(t, checked_range(t, to_space, to_address, amount, Fault.STORE), read, amount)


@instruction("cp.async.bulk.prefetch.L2.global{.hint} [a], *size{, *policy}", hint=_HINT)
def prefetch(t: Emitter, m: Match, *operands: Any) -> None:
    """There is no cache."""


def _combine(t: Emitter, m: Match, kind: Type, old: Any, value: Any) -> Any:
    if kind.name in ("f16", "bf16"):
        return combine_halves(t, m, old, value)
    return t.b.fadd(old, value) if kind.floating else combine_integers(t, m, old, value)


def reduce_elements(t: Emitter, m: Match, target: Any, source: Any, size: Any, kind: Type) -> None:
    """Combine each element at a host address with that at another."""
    t.image.one_core = True  # its elements are changed one by one, by what no other block may see half done
    b = t.b
    with b.count(b.udiv(size, i64(kind.bytes))) as index:
        to, value = (b.at(each, b.mul(index, i64(kind.bytes))) for each in (target, source))
        store(t, _combine(t, m, kind, load(t, to, kind), load(t, value, kind)), to, kind)


_INTEGER_REDUCTIONS: dict[str, Any] = {"op": "and or xor add inc dec min max", "type": "b32 b64 u32 u64 s32 s64"}
_FLOAT_REDUCTIONS: dict[str, Any] = {"op": ["add"], "type": "f32 f64"}
_HALF_REDUCTIONS: dict[str, Any] = {"op": "add min max", "type": "f16 bf16"}


@instruction(
    "cp.reduce.async.bulk.global.shared::cta.bulk_group{.hint}.op.type [to], [a], *size{, *policy}",
    hint=_HINT,
    **_INTEGER_REDUCTIONS,
)
@instruction(
    "cp.reduce.async.bulk.global.shared::cta.bulk_group{.hint}.op.type [to], [a], *size{, *policy}",
    hint=_HINT,
    **_FLOAT_REDUCTIONS,
)
@instruction(
    "cp.reduce.async.bulk.global.shared::cta.bulk_group{.hint}.op{.noftz}.type [to], [a], *size{, *policy}",
    hint=_HINT,
    **_HALF_REDUCTIONS,
)
def reduce_to_global(t: Emitter, m: Match, target: Memory, source: Memory, size: Operand, policy: Any = None) -> None:
    b, amount = t.b, _size(t, size)
    (to_space, to_address), (from_space, from_address) = t.address("global", target), t.address("shared", source)
    with b.when(b.is_("!=", amount, 0)):
        read = checked_range(t, from_space, from_address, amount, Fault.LOAD)
        reduce_elements(t, m, checked_range(t, to_space, to_address, amount, Fault.ATOMIC), read, amount, m.type)


@instruction(
    f"cp.reduce.async.bulk.shared::cluster.shared::cta.{_COUNTED}.op.type [to], [a], *size, [bar]", **_INTEGER_REDUCTIONS
)
def reduce_to_shared(t: Emitter, m: Match, target: Memory, source: Memory, size: Operand, bar: Memory) -> None:
    b, amount = t.b, _size(t, size)
    (from_space, from_address), place, cell = t.address("shared", source), _in_cluster(t, target), _in_cluster(t, bar)
    with b.when(b.is_("!=", amount, 0)):
        read = checked_range(t, from_space, from_address, amount, Fault.LOAD)
        reduce_elements(t, m, checked_range(t, "", t.of_cluster(place), amount, Fault.ATOMIC), read, amount, m.type)
    complete_transactions(t, t.checked("", t.of_cluster(cell), 8, Fault.ATOMIC, 8), amount)
    checks.put_in_order(t)


_STORED = "b32 b64 u32 u64 s32 s64 f32 f64"


def _count(t: Emitter, bar: Memory, size: int) -> None:
    complete_transactions(t, t.pointer("shared::cluster", bar, 8, Fault.ATOMIC), i64(size))
    checks.put_in_order(t)


@instruction(f"st.async{{.weak}}{{.space}}.{_COUNTED}.type [a], b, [bar]", space="shared::cluster", type=_STORED)
def store_counted(t: Emitter, m: Match, a: Memory, value: Any, bar: Memory) -> None:
    store(t, value, t.pointer("shared::cluster", a, m.type.bytes, Fault.STORE), m.type)
    _count(t, bar, m.type.bytes)


@instruction(f"st.async{{.weak}}{{.space}}.{_COUNTED}.vec.type [a], b, [bar]", space="shared::cluster", vec="v2 v4", type=_STORED)
def store_vector_counted(t: Emitter, m: Match, a: Memory, values: Any, bar: Memory) -> None:
    count = int(m.text("vec")[1:])
    if not isinstance(values, list) or len(values) != count:
        raise t.error(f"a vector of {count} is needed")
    start = t.pointer("shared::cluster", a, m.type.bytes * count, Fault.STORE)
    for index, value in enumerate(values):
        store(t, value, t.b.at(start, m.type.bytes * index), m.type)
    _count(t, bar, m.type.bytes * count)


@instruction(
    f"red.async{{.relaxed}}{{.cluster}}{{.space}}.{_COUNTED}.op.type [a], b, [bar]",
    space="shared::cluster", op="and or xor add inc dec min max", type="b32 u32 s32 b64 u64 s64",
)  # fmt: skip
def reduce_counted(t: Emitter, m: Match, a: Memory, value: Any, bar: Memory) -> None:
    place = t.pointer("shared::cluster", a, m.type.bytes, Fault.ATOMIC)
    store(t, combine_integers(t, m, load(t, place, m.type), value), place, m.type)
    _count(t, bar, m.type.bytes)
