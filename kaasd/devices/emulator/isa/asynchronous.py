"""Asynchronous copies and the barriers that count them.

A copy is done when it is issued, which is one of the orders that the manual allows; groups are then always complete.
"""

from __future__ import annotations

from typing import Any

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.llvm_builder import I1, I8, I32, I64, I128, PTR, VOID, const, i32, i64
from kaasd.devices.emulator.codegen.structures import Fault, Status
from kaasd.devices.emulator.isa.load_store import PREFETCH, space_of
from kaasd.devices.emulator.isa.table import instruction
from kaasd.devices.emulator.ptx import ast
from kaasd.devices.emulator.ptx.forms import Match
from kaasd.devices.emulator.ptx.routine import Memory, Not, Operand, Register
from kaasd.devices.emulator.ptx.types import PRED, U32

SHARED = "shared shared::cta"


@instruction(
    "cp.async.cache.to.global{.hint}{.prefetch} [a], [b], *size{, *source_size}{, *policy}",
    cache="ca cg", to=SHARED, hint=["L2::cache_hint"], prefetch=PREFETCH,
)  # fmt: skip
def copy(t: Emitter, m: Match, a: Memory, b: Memory, size: Any, source_size: Any = None, policy: Any = None) -> None:
    """Copy 4, 8 or 16 bytes to shared memory; where the source is said to be shorter, the rest is zeros."""
    if not isinstance(size, ast.Integer) or size.value not in (4, 8, 16):
        raise t.error("the size must be 4, 8 or 16")
    code, count = t.b, size.value
    target = t.pointer("shared", a, count, Fault.STORE)
    given = _given(t, count, source_size if "hint" not in m or policy is not None else None)
    fill = t.intrinsic("llvm.memset.p0.i64", VOID, PTR, I8, I64, I1)
    code.call(fill, [target, const(I8, 0), i64(count), const(I1, 0)])
    with code.if_else(code.is_("==", given, count)) as (complete, partial):
        with complete:
            source = t.pointer("global", b, count, Fault.LOAD)
            kind = {4: I32, 8: I64, 16: I128}[count]
            code.store_as(code.load_as(kind, source, "memory", count), target, "memory", count)
        with partial, code.count(given) as index:
            space, address = t.address("global", b)
            place = t.checked(space, code.add(address, index), 1, Fault.LOAD, 1)
            code.store_as(code.load_as(I8, place, "memory"), code.at(target, index), "memory")


def _given(t: Emitter, count: int, operand: Operand | None) -> Any:
    """How many bytes to read: as many as the operand says, or none if it is a predicate that holds."""
    if operand is None:
        return i64(count)
    if isinstance(operand, Register | Not) and (operand if isinstance(operand, Register) else operand.register).type is PRED:
        return t.b.select(t.read(operand, PRED), i64(0), i64(count))
    return t.b.zext(t.call("llvm.umin.i32", I32, t.read(operand, U32), i32(count)), I64)


@instruction("cp.async.commit_group")
@instruction("cp.async.wait_all")
@instruction("cp.async.wait_group *n")
@instruction("cp.async.bulk.commit_group")
@instruction("cp.async.bulk.wait_group{.read} *n", read=["read"])
def group(t: Emitter, m: Match, n: Any = None) -> None:
    """Every copy is complete already."""


@instruction("cp.async.mbarrier.arrive{.noinc}{.space}.b64 [a]", space=SHARED)
def arrive_of_copies(t: Emitter, m: Match, a: Memory) -> None:
    """The copies are complete, so this arrives; without ``.noinc`` the count it needs is raised first, to no effect."""
    if "noinc" in m:
        _arrive(t, _cell(t, m, a, Fault.ATOMIC), i64(1))


# An mbarrier here: bits 0-19 the count still to come in this phase, 20-39 the count of a phase, 40-60 the bytes of transactions
# that are still to come, 63 the phase's parity.
_COUNT = (1 << 20) - 1
_BYTES = (1 << 21) - 1
_WORDS: dict[str, Any] = {"space": SHARED, "order": "release relaxed acquire", "scope": "cta cluster"}
_REMOTE = _WORDS | {"space": f"{SHARED} shared::cluster"}
"""Of what a thread may do to an mbarrier in another block of its cluster."""


def _cell(t: Emitter, m: Match, a: Memory, access: Fault) -> Any:
    return t.pointer(space_of(m), a, 8, access)


@instruction("mbarrier.init{.space}.b64 [a], b:u32", space=SHARED)
def init(t: Emitter, m: Match, a: Memory, b: Any) -> None:
    count = t.b.and_(t.b.zext(b, I64), i64(_COUNT))
    t.b.store_as(t.b.or_(count, t.b.shl(count, i64(20))), _cell(t, m, a, Fault.STORE), "memory")


@instruction("mbarrier.inval{.space}.b64 [a]", space=SHARED)
def invalidate(t: Emitter, m: Match, a: Memory) -> None:
    t.b.store_as(i64(0), _cell(t, m, a, Fault.STORE), "memory")


def _arrive(t: Emitter, pointer: Any, count: Any, drop: bool = False, expected: Any = None) -> Any:
    """Count arrivals, and change by ``expected`` the bytes that are to come; the last completes the phase.

    Returns the state before.
    """
    b = t.b
    old = b.load_as(I64, pointer, "memory")
    total = b.and_(b.lshr(old, i64(20)), i64(_COUNT))
    if drop:
        total = b.and_(b.sub(total, count), i64(_COUNT))
    left = b.and_(b.sub(b.and_(old, i64(_COUNT)), count), i64(_COUNT))
    to_come = b.and_(b.lshr(old, i64(40)), i64(_BYTES))
    if expected is not None:
        to_come = b.and_(b.add(to_come, expected), i64(_BYTES))
    phase = b.lshr(old, i64(63))
    done = b.and_(b.is_("==", left, 0), b.is_("==", to_come, 0))
    phase = b.select(done, b.xor(phase, i64(1)), phase)
    left = b.select(done, total, left)
    new = b.or_(b.or_(left, b.shl(total, i64(20))), b.or_(b.shl(to_come, i64(40)), b.shl(phase, i64(63))))
    b.store_as(new, pointer, "memory")
    return old


def complete_transactions(t: Emitter, pointer: Any, size: Any) -> None:
    """Take bytes that have come off those that an mbarrier waits for."""
    _arrive(t, pointer, i64(0), expected=t.b.neg(size))


@instruction("mbarrier.expect_tx{.order}{.scope}{.space}.b64 [a], c:u32", **_REMOTE)
@instruction("mbarrier.complete_tx{.order}{.scope}{.space}.b64 [a], c:u32", **_REMOTE)
def transactions(t: Emitter, m: Match, a: Memory, c: Any) -> None:
    by = t.b.zext(c, I64)
    _arrive(t, _cell(t, m, a, Fault.ATOMIC), i64(0), expected=by if "expect" in m.mnemonic else t.b.neg(by))


@instruction("mbarrier.arrive.expect_tx{.order}{.scope}{.space}.b64 d, [a], c:u32", **_REMOTE)
@instruction("mbarrier.arrive_drop.expect_tx{.order}{.scope}{.space}.b64 d, [a], c:u32", **_REMOTE)
def arrive_expecting(t: Emitter, m: Match, a: Memory, c: Any) -> Any:
    drop = "arrive_drop" in m.mnemonic
    return _arrive(t, _cell(t, m, a, Fault.ATOMIC), i64(1), drop, expected=t.b.zext(c, I64))


@instruction("mbarrier.arrive{.order}{.scope}{.space}.b64 d, [a]{, c:u32}", **_REMOTE)
@instruction("mbarrier.arrive_drop{.order}{.scope}{.space}.b64 d, [a]{, c:u32}", **_REMOTE)
@instruction("mbarrier.arrive_drop.noComplete{.order}{.scope}{.space}.b64 d, [a], c:u32", **_WORDS)
@instruction("mbarrier.arrive.noComplete{.order}{.scope}{.space}.b64 d, [a], c:u32", **_WORDS)
def arrive(t: Emitter, m: Match, a: Memory, c: Any = None) -> Any:
    count = i64(1) if c is None else t.b.zext(c, I64)
    return _arrive(t, _cell(t, m, a, Fault.ATOMIC), count, drop="arrive_drop" in m.mnemonic)


def _completed(t: Emitter, m: Match, a: Memory, parity: Any) -> Any:
    """Whether the phase of this parity is over: the barrier is then in the other one."""
    state = t.b.load_as(I64, _cell(t, m, a, Fault.LOAD), "memory")
    return t.b.is_("!=", t.b.lshr(state, i64(63)), parity)


@instruction("mbarrier.test_wait{.order}{.scope}{.space}.b64 d:pred, [a], b:u64", **_WORDS)
def test_wait(t: Emitter, m: Match, a: Memory, b: Any) -> Any:
    return _completed(t, m, a, t.b.lshr(b, i64(63)))


@instruction("mbarrier.test_wait.parity{.order}{.scope}{.space}.b64 d:pred, [a], b:u32", **_WORDS)
def test_wait_parity(t: Emitter, m: Match, a: Memory, b: Any) -> Any:
    return _completed(t, m, a, t.b.zext(t.b.and_(b, i32(1)), I64))


def _wait(t: Emitter, done: Any) -> Any:
    """Return ``done``, and give other threads a turn before that where it is false."""
    code = t.b
    result = code.variable(I1, 0)
    in_vain, go_on = code.append_basic_block("in_vain"), code.append_basic_block("tested")
    code.store(done, result)
    code.cbranch(done, go_on, in_vain)
    code.position_at_end(in_vain)
    t.suspend(Status.PAUSE)
    code.store(const(I1, 0), result)
    code.branch(go_on)
    code.position_at_end(go_on)
    return code.load(result, typ=I1)


@instruction("mbarrier.try_wait{.order}{.scope}{.space}.b64 d:pred, [a], b:u64{, c:u32}", suspends=True, **_WORDS)
def try_wait(t: Emitter, m: Match, a: Memory, b: Any, c: Any = None) -> Any:
    return _wait(t, _completed(t, m, a, t.b.lshr(b, i64(63))))


@instruction("mbarrier.try_wait.parity{.order}{.scope}{.space}.b64 d:pred, [a], b:u32{, c:u32}", suspends=True, **_WORDS)
def try_wait_parity(t: Emitter, m: Match, a: Memory, b: Any, c: Any = None) -> Any:
    return _wait(t, _completed(t, m, a, t.b.zext(t.b.and_(b, i32(1)), I64)))


@instruction("mbarrier.pending_count.b64 d:u32, a:u64")
def pending(t: Emitter, m: Match, a: Any) -> Any:
    return t.b.trunc(t.b.and_(a, i64(_COUNT)), I32)
