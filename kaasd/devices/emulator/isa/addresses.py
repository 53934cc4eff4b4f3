"""Addresses as sums of products of what does not change while a thread runs: parameters, and the thread's place in the grid.

Two accesses of different threads of a warp are shown to be apart in this way. That takes it that the threads of a warp differ in
their ``%tid.x`` only, by their lane: that a block's width is a multiple of the warp's, or its only extent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

from kaasd.devices.emulator.codegen.structures import WARP_SIZE
from kaasd.devices.emulator.isa.accesses import Access
from kaasd.devices.emulator.ptx import ast
from kaasd.devices.emulator.ptx.routine import Memory, Operand, Operation, Register, Routine, Special, Storage, Symbol

Sum = dict[tuple[str, ...], int]
"""Coefficients of products of atoms; the constant's product is empty."""
Places = Callable[[Storage], int]
"""Where a shared variable lies."""

_LANE = ("lane",)
UNIFORM = {f"%{name}.{axis}" for name in ("ctaid", "ntid", "nctaid") for axis in "xyz"}
"""Special registers that are the same for all threads of a block."""
_COPIES = ("mov", "cvta", "cvt")
_MOST_TERMS = 12
_LONGEST = 1000
"""Operations that a value may depend on in a row."""
_POSITIVE = ("%ntid.", "%nctaid.")


class Addresses:
    """The addresses of a routine's accesses, as far as they can be told."""

    def __init__(self, routine: Routine, place_of: Places) -> None:
        self._routine = routine
        self._place_of = place_of
        self._writers: dict[int, list[Operation]] = {}
        self._known: dict[int, Sum | None] = dict.fromkeys((formal.index for formal in routine.formals.values()), None)
        for operation in routine.operations:
            for register in operation.writes:
                self._writers.setdefault(register.index, []).append(operation)
        self.pointers: set[int] = set()
        """Offsets of the parameters that were taken to be buffers: the same ones, or apart."""

    def apart(self, one: Access, other: Access) -> bool:
        """Whether two threads of a warp never touch the same byte, one by ``one`` and one by ``other``."""
        if one.memory is None or other.memory is None:
            return False
        first, second = self._address(one.memory), self._address(other.memory)
        if first is None or second is None:
            return False
        rounds = _take_rounds(first)
        if rounds != _take_rounds(second) or len(rounds) > 1:
            return False
        if (distance := _distance(first, second)) is None:
            bases = _bases(first), _bases(second)
            if len(bases[0]) != 1 or len(bases[1]) != 1:
                return False
            named = [each[0][0].partition(":") for each in bases]
            if named[0] != named[1]:
                self.pointers |= {int(number) for kind, _, number in named if kind == "buffer"}
            if "variable" in (named[0][0], named[1][0]):
                return named[0] != named[1]
            del first[bases[0][0]], second[bases[1][0]]
            if (distance := _distance(first, second)) is None:
                return False
        steps = first.get(_LANE, 0), second.get(_LANE, 0)
        return _never_meet(*steps, distance, one.size, other.size) and all(
            _apart_in_rounds(product, factor, steps, distance, max(one.size, other.size)) for product, factor in rounds.items()
        )

    def _address(self, memory: Memory) -> Sum | None:
        if isinstance(memory.base, Register):
            base = self._register(memory.base)
        elif memory.base is None:
            base = {}
        else:
            base = self._variable(memory.base)
        if base is None or any("lane" in product and product != _LANE for product in base):
            return None
        return _plus(base, {(): memory.offset})

    def _variable(self, storage: Storage) -> Sum | None:
        if storage.space == "shared":
            return {(): self._place_of(storage)}
        return None if storage.number is None else {(f"variable:{storage.number}",): 1}

    def _register(self, register: Register) -> Sum | None:
        """Return the value of a register."""
        wanted = [register]
        while wanted:  # a chain of operations may be longer than Python's stack is deep
            index = wanted[-1].index
            if index not in self._known:
                writers = self._writers.get(index, [])
                missing = [
                    source
                    for writer in writers
                    for source in _sources(writer)
                    if source.index not in self._known and source not in wanted
                ]
                if missing and len(wanted) < _LONGEST:
                    wanted.append(missing[0])
                    continue
                self._known[index] = self._of_writers(index, writers)
            wanted.pop()
        found = self._known[register.index]
        return None if found is None else dict(found)

    def _of_writers(self, index: int, writers: list[Operation]) -> Sum | None:
        """Return the value of a register that is written once, or that starts with a value and then grows by equal steps."""
        if len(writers) == 1:
            return None if writers[0].guard is not None else self._value(writers[0])
        if len(writers) != 2:
            return None
        own, known = f"register:{index}", self._known
        starts: list[Sum] = []
        steps: list[Sum] = []
        self._known = {index: {(own,): 1}}
        self._known |= {each: value for each, value in known.items() if value is not None}
        for writer in writers:
            for source in _sources(writer):  # computed anew, in terms of this register
                if source.index not in self._known and len(between := self._writers.get(source.index, [])) == 1:
                    self._known[source.index] = None if between[0].guard is not None else self._value(between[0])
            value = self._value(writer)
            if value is None:
                break
            grows = value.pop((own,), 0) == 1
            if any(own in product for product in value):
                break
            (steps if grows else starts).append(value)
        self._known = known
        if len(starts) != 1 or len(steps) != 1 or len(steps[0]) != 1:
            return None
        ((product, coefficient),) = steps[0].items()
        if product == _LANE or any(atom.startswith(("round:", "register:")) for atom in product):
            return None
        return starts[0] | {tuple(sorted((*product, f"round:{index}"))): coefficient}

    def _operand(self, operand: Operand | None) -> Sum | None:
        if isinstance(operand, Register):
            return self._known.get(operand.index)
        if isinstance(operand, ast.Integer):
            return {(): operand.value}
        if isinstance(operand, Symbol):
            base = self._variable(operand.storage) if operand.storage.space in ("shared", "global") else None
            return None if base is None else _plus(base, {(): operand.offset})
        if isinstance(operand, Special):
            if operand.name == "%tid.x":
                return {_LANE: 1, ("%tid.x",): 1}  # the second is that of the warp's first thread
            if operand.name == "%laneid":
                return {_LANE: 1}
            return {(operand.name,): 1} if operand.name in UNIFORM | {"%tid.y", "%tid.z"} else None
        return None

    def _value(self, operation: Operation) -> Sum | None:
        """Return what an operation writes into its one register."""
        opcode, match, operands = operation.source.opcode, operation.match, operation.operands
        kind = match.type
        if kind.floating or kind.bits < 32 or operation.carry is not None or len(operation.writes) != 1:
            return None
        if opcode == "ld":
            (memory,) = (operand for operand in operands if isinstance(operand, Memory))
            base = memory.base
            if self._routine.is_entry and isinstance(base, Storage) and base.space == "param" and match["vec"] is None:
                offset = base.offset + memory.offset
                return {(f"buffer:{offset}" if kind.bits == 64 else f"parameter:{offset}",): 1}
            return None
        sources = [self._operand(operand) for operand in operands[1:] if operand is not None]
        if any(source is None for source in sources) or not isinstance(operands[0], Register):
            return None
        values = [source for source in sources if source is not None]
        words = set(match.words)
        if opcode in _COPIES and len(values) == 1:
            if opcode == "cvta" and "global" not in words:
                return None
            if opcode == "cvt" and any(word in words for word in ("sat", "s8", "u8", "s16", "u16", "f16", "f32", "f64")):
                return None
            return values[0]
        if words & {"sat", "hi", "cc"}:
            return None
        if opcode in ("add", "sub") and len(values) == 2:
            return _plus(values[0], values[1], -1 if opcode == "sub" else 1)
        if opcode == "mul" and len(values) == 2:
            return _times(values[0], values[1])
        if opcode == "mad" and len(values) == 3:
            product = _times(values[0], values[1])
            return None if product is None else _plus(product, values[2])
        if len(values) != 2 or set(values[1]) - {()}:
            return None
        return _bits(opcode, values[0], values[1].get((), 0), kind.bits)


def _bits(opcode: str, value: Sum, by: int, width: int) -> Sum | None:
    """Return a shift or mask by a constant."""
    if opcode == "shl" and 0 <= by < 32:
        return _times(value, {(): 1 << by})
    of_thread = value == {_LANE: 1, ("%tid.x",): 1}
    if opcode in ("shr", "and") and not any(_is_own(atom) for product in value for atom in product):
        return {(f"{opcode}{width}({sorted(value.items())}, {by})",): 1}
    if opcode == "shr" and of_thread and 5 <= by < 32:
        return {(f"%tid.x>>{by}",): 1}
    if opcode == "and" and of_thread:
        mask = by & ((1 << width) - 1)
        uniform: Sum = {(f"%tid.x&{mask >> 5}",): 1} if mask >> 5 else {}
        if mask & (WARP_SIZE - 1) == WARP_SIZE - 1:
            return {_LANE: 1} | uniform
        return uniform if mask & (WARP_SIZE - 1) == 0 else None
    return None


def _is_own(atom: str) -> bool:
    """Whether an atom may be another for another thread of the warp, or at another time."""
    return atom == "lane" or atom.startswith(("round:", "register:"))


def _sources(operation: Operation) -> Iterator[Register]:
    for operand in operation.operands[1:]:
        if isinstance(operand, Register):
            yield operand


def _plus(one: Sum, other: Sum, sign: int = 1) -> Sum:
    total = dict(one)
    for product, coefficient in other.items():
        total[product] = total.get(product, 0) + sign * coefficient
    return {product: coefficient for product, coefficient in total.items() if coefficient}


def _times(one: Sum, other: Sum) -> Sum | None:
    if len(one) * len(other) > _MOST_TERMS:
        return None
    total: Sum = {}
    for product, coefficient in one.items():
        for more, factor in other.items():
            key = tuple(sorted(product + more))
            total[key] = total.get(key, 0) + coefficient * factor
    return {product: coefficient for product, coefficient in total.items() if coefficient}


def _take_rounds(address: Sum) -> Sum:
    """Take from an address what grows with the rounds of a loop, which need not be the same for two accesses."""
    return {product: address.pop(product) for product in list(address) if any(atom.startswith("round:") for atom in product)}


def _apart_in_rounds(product: tuple[str, ...], factor: int, steps: tuple[int, int], distance: int, size: int) -> bool:
    """Whether two threads are apart in different rounds, each of which adds ``factor`` times ``product``."""
    by = [atom for atom in product if not atom.startswith("round:")]
    if len(by) != len(product) - 1 or not all(atom.startswith(_POSITIVE) for atom in by):
        return False
    if not by:
        return abs(factor) >= max(map(abs, steps)) * (WARP_SIZE - 1) + abs(distance) + size
    # The lanes of a warp are fewer than the block is wide.
    return "%ntid.x" in by and distance == 0 and steps[0] == steps[1] and abs(factor) >= abs(steps[0]) >= size


def _distance(one: Sum, other: Sum) -> int | None:
    """Return by how much ``other`` is behind ``one`` for the same lane 0, if that is the same everywhere."""
    difference = _plus(other, one, -1)
    difference.pop(_LANE, None)
    constant = difference.pop((), 0)
    return None if difference else constant


def _bases(address: Sum) -> list[tuple[str, ...]]:
    """The buffers and variables that an address begins with."""
    return [
        product
        for product, coefficient in address.items()
        if len(product) == 1 and coefficient == 1 and product[0].startswith(("buffer:", "variable:"))
    ]


@cache
def _never_meet(step: int, other_step: int, distance: int, size: int, other_size: int) -> bool:
    """Whether ``step * i`` and ``distance + other_step * j`` are apart for all lanes i and j that differ."""
    if max(abs(step), abs(other_step)) * WARP_SIZE >= 1 << 30 or abs(distance) >= 1 << 30:
        return False
    if step == other_step:
        gaps = (distance + step * d for d in range(1 - WARP_SIZE, WARP_SIZE) if d)
    else:
        gaps = (distance + other_step * j - step * i for i in range(WARP_SIZE) for j in range(WARP_SIZE) if i != j)
    return all(gap >= size or -gap >= other_size for gap in gaps)
