"""Loads, stores, moves and addresses."""

from __future__ import annotations

from typing import Any

from kaasd.devices.emulator.codegen.emitter import SPACES, Emitter
from kaasd.devices.emulator.codegen.llvm_builder import I32, I64, const, i64
from kaasd.devices.emulator.codegen.structures import (
    CONTEXT,
    MOST_CLUSTER_BLOCKS,
    OFFSET_BITS,
    OFFSET_MASK,
    RANK_SHIFT,
    SEGMENT,
    Fault,
    Segment,
)
from kaasd.devices.emulator.isa import special_registers
from kaasd.devices.emulator.isa.table import instruction
from kaasd.devices.emulator.ptx.forms import Match
from kaasd.devices.emulator.ptx.routine import Elements, Memory, Operand, Special
from kaasd.devices.emulator.ptx.types import TYPES, Type

SPACE = "const global local param param::entry param::func shared shared::cta shared::cluster"
MEMORY_TYPES = "b8 b16 b32 b64 b128 u8 u16 u32 u64 s8 s16 s32 s64 f32 f64"
ORDER = "weak relaxed acquire release acq_rel volatile mmio"
SCOPE = "cta cluster gpu sys"
CACHE = "ca cg cs lu cv wb wt"
EVICTION = [f"L{level}::{word}" for level in "12" for word in ("evict_normal", "evict_unchanged", "evict_first", "evict_last")]
EVICTION += ["L1::no_allocate", "L2::cache_hint"]
PREFETCH = "L2::64B L2::128B L2::256B"
RESTRICT = "sync_restrict::shared::cta sync_restrict::shared::cluster"
VECTOR = "v2 v4 v8"
POLICY: dict[str, Any] = {"first": EVICTION, "second": EVICTION}


def space_of(m: Match) -> str:
    """The state space named, without its part after ``::`` unless that is a cluster; empty for a generic address."""
    space = m["space"] or ""
    return space if space == "shared::cluster" else space.split("::")[0]


def access(t: Emitter, m: Match, memory: Memory, fault: Fault, count: int = 1, kind: Type | None = None) -> list[Any]:
    """Return the host address of each of ``count`` elements, checked as one access."""
    kind = kind or m.type
    pointer = t.pointer(space_of(m), memory, kind.bytes * count, fault)
    return [t.b.at(pointer, kind.bytes * index) for index in range(count)]


def load(t: Emitter, pointer: Any, kind: Type, ordering: str = "") -> Any:
    """Load a value, with LLVM's ``ordering`` where another core may be writing it."""
    if ordering:
        return t.b.load_strong(kind.ir, pointer, ordering, kind.bytes)
    return t.b.load_as(kind.ir, pointer, "memory", min(kind.bytes, 16))


def store(t: Emitter, value: Any, pointer: Any, kind: Type, ordering: str = "") -> None:
    """Store a value, with LLVM's ``ordering`` where another core may be reading it."""
    if t.watches_stores:
        count_change(t, t.b.is_("!=", t.b.load_as(kind.raw, pointer, "memory", min(kind.bytes, 16)), t.raw(value)))
    if ordering:
        t.b.store_strong(value, pointer, ordering, kind.bytes)
    else:
        t.b.store_as(value, pointer, "memory", min(kind.bytes, 16))


def count_change(t: Emitter, changed: Any) -> None:
    """Take note that a store changed memory, if it did."""
    t.b.bump(CONTEXT, t.context, "changes", t.b.zext(changed, I32))


def is_of_one_core(t: Emitter, m: Match, memory: Memory) -> bool:
    """Whether what an instruction accesses is the block's own: it runs on one core, so that this needs no care."""
    return t.address(space_of(m), memory)[0] in SPACES


def _ordering(t: Emitter, m: Match, memory: Memory, strongest: str) -> str:
    """Return LLVM's word for how a load or store is ordered, nothing for a weak one. ``strongest`` is acquire or release."""
    word = m["order"] or ("relaxed" if "mmio" in m else "weak")
    if word == "weak" or m.type.bits > 64 or is_of_one_core(t, m, memory):
        return ""
    return "monotonic" if word in ("relaxed", "volatile", "mmio") else strongest


HINTS = "{.space}{.nc}{.cache}{.evict}{.evict2}{.hint}{.prefetch}"
HINT_WORDS: dict[str, Any] = {
    "cache": CACHE,
    "evict": EVICTION,
    "evict2": EVICTION,
    "hint": ["L2::cache_hint"],
    "prefetch": PREFETCH,
}


@instruction(
    f"ld{{.mmio}}{{.order}}{{.scope}}{HINTS}{{.unified}}.type d, [a]{{, *policy}}",
    order=ORDER, scope=SCOPE, space=SPACE, type=MEMORY_TYPES, **HINT_WORDS,
)  # fmt: skip
@instruction("ldu{.space}.type d, [a]", space="global", type=MEMORY_TYPES)
def ld(t: Emitter, m: Match, a: Memory, policy: Any = None) -> Any:
    if (parameter := t.parameter(a, m.type.bytes)) is not None:
        return t.b.load_fixed(m.type.ir, parameter, m.type.bytes)
    return load(t, access(t, m, a, Fault.LOAD)[0], m.type, _ordering(t, m, a, "acquire"))


@instruction(
    f"ld{{.mmio}}{{.order}}{{.scope}}{HINTS}{{.unified}}.vec.type d, [a]{{, *policy}}",
    order=ORDER, scope=SCOPE, space=SPACE, vec=VECTOR, type=MEMORY_TYPES, **HINT_WORDS,
)  # fmt: skip
@instruction("ldu{.space}.vec.type d, [a]", space="global", vec=VECTOR, type=MEMORY_TYPES)
def ld_vector(t: Emitter, m: Match, a: Memory, policy: Any = None) -> Any:
    ordering = _ordering(t, m, a, "acquire")
    return [load(t, pointer, m.type, ordering) for pointer in access(t, m, a, Fault.LOAD, int(m.text("vec")[1:]))]


@instruction(
    "st{.mmio}{.order}{.scope}{.space}{.cache}{.evict}{.evict2}{.hint}.type [a], b{, *policy}",
    order=ORDER, scope=SCOPE, space=SPACE, type=MEMORY_TYPES, **HINT_WORDS,
)  # fmt: skip
def st(t: Emitter, m: Match, a: Memory, b: Any, policy: Any) -> None:
    store(t, b, access(t, m, a, Fault.STORE)[0], m.type, _ordering(t, m, a, "release"))


@instruction(
    "st{.mmio}{.order}{.scope}{.space}{.cache}{.evict}{.evict2}{.hint}.vec.type [a], b{, *policy}",
    order=ORDER, scope=SCOPE, space=SPACE, vec=VECTOR, type=MEMORY_TYPES, **HINT_WORDS,
)  # fmt: skip
def st_vector(t: Emitter, m: Match, a: Memory, b: Any, policy: Any) -> None:
    count = int(m.text("vec")[1:])
    if not isinstance(b, list) or len(b) != count:
        raise t.error(f"a vector of {count} is needed")
    ordering = _ordering(t, m, a, "release")
    for value, pointer in zip(b, access(t, m, a, Fault.STORE, count), strict=True):
        store(t, value, pointer, m.type, ordering)


@instruction("prefetch{.space}.level [a]", space="global local", level=["L1", "L2", *EVICTION])
@instruction("prefetchu.L1 [a]")
@instruction("applypriority{.space}.level [a], *size", space="global", level=EVICTION)
@instruction("discard{.space}.L2 [a], *size", space="global")
def prefetch(t: Emitter, m: Match, *operands: Any) -> None:
    """There is no cache."""


@instruction("mov.type *d, *a", type="pred b16 b32 b64 b128 u16 u32 u64 s16 s32 s64 f32 f64", nans_alike=True)
def mov(t: Emitter, m: Match, target: Operand, source: Operand) -> None:
    """Copy; pack a vector into a scalar or unpack a scalar into a vector."""
    if isinstance(source, Elements) and not isinstance(target, Elements):
        t.write(target, _pack(t, m, source), m.type)
    elif isinstance(target, Elements) and not isinstance(source, Elements):
        _unpack(t, m, target, t.raw(t.read(source, m.type)))
    else:
        t.write(target, t.read(source, m.type), m.type)


@instruction("mov.vec.type *d, *a", vec=VECTOR, type="b16 b32 b64 u16 u32 u64 s16 s32 s64 f32 f64")
def mov_vector(t: Emitter, m: Match, target: Operand, source: Operand) -> None:
    if isinstance(source, Special):  # such as %tid, whole
        source = Elements(tuple(special_registers.components(source.name, int(m.text("vec")[1:]))))
    t.write(target, t.read(source, m.type), m.type)


def _part(t: Emitter, m: Match, elements: Elements) -> Type:
    width = m.type.bits // len(elements.items) if elements.items else 0
    if width < 8 or width * len(elements.items) != m.type.bits:
        raise t.error(f"{len(elements.items)} elements do not make .{m.type.name}")
    return TYPES[f"b{width}"]


def _pack(t: Emitter, m: Match, source: Elements) -> Any:
    part = _part(t, m, source)
    whole = const(m.type.raw, 0)
    for index, item in enumerate(source.items):
        element = t.b.zext(t.read(item, part), m.type.raw)
        whole = t.b.or_(whole, t.b.shl(element, const(m.type.raw, part.bits * index)))
    return whole


def _unpack(t: Emitter, m: Match, target: Elements, whole: Any) -> None:
    part = _part(t, m, target)
    for index, item in enumerate(target.items):
        t.write(item, t.b.trunc(t.b.lshr(whole, const(whole.type, part.bits * index)), part.raw), part)


def _window(t: Emitter, m: Match) -> int | None:
    """The segment of a space whose addresses are offsets, or None for one whose addresses are generic as they are."""
    space = space_of(m)
    if space == "param" and not t.routine.is_entry:
        space = "local"
    return SPACES.get(space)


@instruction("cvta.space.type d, a", space=SPACE, type="u64 u32")
def cvta(t: Emitter, m: Match, a: Any) -> Any:
    segment = _window(t, m)
    if m.type.bits != 64:
        raise t.error("addresses have 64 bits on the emulated device")
    if space_of(m).startswith("shared"):  # where the window of a block is that of its cluster
        return t.of_cluster(a)
    return a if segment is None else t.b.or_(a, i64(segment << OFFSET_BITS))


@instruction("cvta.to.space.type d, a", space=SPACE, type="u64 u32")
def cvta_to(t: Emitter, m: Match, a: Any) -> Any:
    if space_of(m).startswith("shared") and m.type.bits == 64:
        b = t.b
        segment, offset = b.lshr(a, i64(OFFSET_BITS)), b.and_(a, i64(OFFSET_MASK))
        rank = b.sub(segment, i64(Segment.CLUSTER))
        far = b.shl(b.add(rank, i64(1)), i64(RANK_SHIFT))
        return b.select(b.is_("<", rank, MOST_CLUSTER_BLOCKS), b.or_(far, offset), offset)
    return a if _window(t, m) is None else t.b.and_(a, const(a.type, OFFSET_MASK))


@instruction("isspacep.space d:pred, a:u64", space=SPACE)
def isspacep(t: Emitter, m: Match, a: Any) -> Any:
    b, segment = t.b, t.b.lshr(a, i64(OFFSET_BITS))
    if space_of(m).startswith("shared"):
        rank = b.sub(segment, i64(Segment.CLUSTER))
        own = b.zext(special_registers.cluster_rank(t), I64)
        far = b.is_("<", rank, MOST_CLUSTER_BLOCKS) if space_of(m) == "shared::cluster" else b.is_("==", rank, own)
        return b.or_(b.is_("==", segment, Segment.SHARED), far)
    window = _window(t, m)
    if window is not None:
        return b.is_("==", segment, window)
    entry = b.item(b.get(CONTEXT, t.context, "table"), SEGMENT.ir, segment)
    constant = b.is_("!=", b.get(SEGMENT, entry, "flags"), 0)
    outside = b.is_(">=", segment, Segment.FIRST_FREE)
    return b.and_(outside, constant if space_of(m) == "const" else b.not_(constant))


@instruction("createpolicy.fractional.first{.second}.b64 d{, *fraction}", **POLICY)
@instruction("createpolicy.range{.global}.first{.second}.b64 d, *a, *size, *whole", **POLICY)
@instruction("createpolicy.cvt.L2.b64 d, *size")
def createpolicy(t: Emitter, m: Match, *operands: Any) -> Any:
    """There is no cache, so all policies are one."""
    return i64(0)


@instruction("membar.level", level="cta gl sys")
@instruction("membar.proxy.alias")
@instruction("fence{.order}.scope", order="sc acq_rel acquire release", scope=SCOPE)
@instruction("fence.proxy.kind", kind=["alias", "async", "async.global", "async.shared::cta"])
@instruction("fence.mbarrier_init.release.cluster")
@instruction("fence.order.restrict.cluster", order="acquire release", restrict=RESTRICT)
@instruction("fence.proxy.async::generic.order.restrict.cluster", order="acquire release", restrict=RESTRICT)
def fence(t: Emitter, m: Match) -> None:
    """A block runs on one core, where memory is always in order; other blocks may run on others."""
    if m["scope"] == "cta" or m["level"] == "cta":
        t.b.fence("acq_rel", "singlethread")
    else:
        order = m["order"] or "sc"
        t.b.fence("seq_cst" if order == "sc" else order)


__all__ = ["I64"]
