"""SIMD video instructions: on the half words or bytes of two registers, lane by lane."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.llvm_builder import I32, I64, const, i32, i64
from kaasd.devices.emulator.isa.table import instruction
from kaasd.devices.emulator.isa.video import COMPARISONS, OPERATIONS, TYPES, clamp, compute, selector
from kaasd.devices.emulator.ptx.forms import Match

_LETTERS = {2: "h", 4: "b"}


def _part(t: Emitter, value: Any, start: int, width: int, signed: bool) -> Any:
    """Bits of a 32-bit value as a number of 64 bits."""
    moved = t.b.shl(t.b.zext(value, I64), i64(64 - start - width))
    return t.b.ashr(moved, i64(64 - width)) if signed else t.b.lshr(moved, i64(64 - width))


def _lanes(t: Emitter, m: Match, count: int, values: tuple[Any, Any], operand: int) -> list[Any]:
    """Return an operand's lanes as numbers, lowest first: those of both registers, ``values``, that it selects."""
    first = 0 if operand == 1 else count
    default = "".join(str(lane) for lane in reversed(range(first, first + count)))
    chosen = selector(t, operand, _LETTERS[count] + default)
    if not re.fullmatch(f"{_LETTERS[count]}[0-{2 * count - 1}]{{{count}}}", chosen):
        raise t.error(f".{chosen} does not select {count} lanes")
    width = 32 // count
    signed = m["atype" if operand == 1 else "btype"] == "s32"
    numbers = [divmod(int(digit), count) for digit in reversed(chosen[1:])]
    return [_part(t, values[register], lane * width, width, signed) for register, lane in numbers]


def _pairs(t: Emitter, m: Match, count: int, values: tuple[Any, Any]) -> Iterable[tuple[Any, Any]]:
    """Return the lanes of both operands that go together."""
    return zip(*(_lanes(t, m, count, values, operand) for operand in (1, 2)), strict=True)


def _gather(t: Emitter, m: Match, count: int, results: list[Any], c: Any) -> Any:
    """Put the results, those that the mask names, in the places of a third operand, or add them to it."""
    everything = _LETTERS[count] + "".join(str(lane) for lane in reversed(range(count)))
    mask = selector(t, 0, everything)
    if mask[0] != everything[0] or not set(mask) <= set(everything) or list(mask[1:]) != sorted(set(mask[1:]), reverse=True):
        raise t.error(f".{mask} is not a mask of {count} lanes")
    width = 32 // count
    total, merged = t.b.zext(c, I64), c
    for lane in map(int, mask[1:]):
        total = t.b.add(total, results[lane])
        place = const(I32, ((1 << width) - 1) << lane * width)
        moved = t.b.and_(t.b.shl(t.b.trunc(results[lane], I32), i32(lane * width)), place)
        merged = t.b.or_(t.b.and_(merged, t.b.not_(place)), moved)
    return t.b.trunc(total, I32) if "add" in m else merged


def _define(operation: str, count: int) -> None:
    @instruction(
        f"{operation}{count}.dtype.atype.btype{{.sat}}{{.add}} d:b32, a:b32, b:b32, c:b32",
        dtype=TYPES, atype=TYPES, btype=TYPES, parts=True,
    )  # fmt: skip
    def simd(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
        results = [compute(t, operation, x, y) for x, y in _pairs(t, m, count, (a, b))]
        if "sat" in m:
            results = [clamp(t, result, 32 // count, m["dtype"] == "s32") for result in results]
        return _gather(t, m, count, results, c)


def _define_comparison(count: int) -> None:
    @instruction(
        f"vset{count}.atype.btype.cmp{{.add}} d:b32, a:b32, b:b32, c:b32",
        atype=TYPES, btype=TYPES, cmp=COMPARISONS, parts=True,
    )  # fmt: skip
    def simd(t: Emitter, m: Match, a: Any, b: Any, c: Any) -> Any:
        operator = COMPARISONS[m.text("cmp")]
        return _gather(t, m, count, [t.b.zext(t.b.icmp_signed(operator, x, y), I64) for x, y in _pairs(t, m, count, (a, b))], c)


for _count in _LETTERS:
    for _operation in (*OPERATIONS.split(), "vavrg"):
        _define(_operation, _count)
    _define_comparison(_count)
