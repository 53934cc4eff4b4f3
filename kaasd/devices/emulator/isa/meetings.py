"""Where the threads of a warp have to come together so that their accesses come in a GPU's order.

Up to such a point they run one after another. That cannot be told from all of them doing each instruction together, unless one of
them touches what another touches that should come before, and one of the two writes. What should come before, and may not have,
is what a thread itself did since its last point, and what others may still do that took another way to where it is now: all that
lies between the branch where they parted and here. So a point is needed before an access that may meet one of these, and in every
loop around it, so that all are in the same round.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from kaasd.devices.emulator.codegen.order import ControlFlow, Loop, components
from kaasd.devices.emulator.codegen.routine_code import KernelMeetings, Meetings
from kaasd.devices.emulator.isa import device_library
from kaasd.devices.emulator.isa.accesses import Access, accesses
from kaasd.devices.emulator.isa.addresses import Addresses, Places
from kaasd.devices.emulator.isa.divergence import Divergence
from kaasd.devices.emulator.ptx import ast
from kaasd.devices.emulator.ptx.forms import Flow
from kaasd.devices.emulator.ptx.routine import LabelName, Operation, Routine

MOST_COMPARED = 64
"""Accesses that one is compared with; where there are more, a point is taken to be needed."""
_BARRIERS = ("bar", "barrier")
_PAUSES = ("mbarrier",)
"""Those of the table's ``suspends`` that let a thread on where it need not wait."""
_ANY = (Access("", True),)
"""What a function that is called may do."""


def meetings_of(routine: Routine, place_of: Places, alone: bool, everywhere: bool) -> KernelMeetings:
    """Return where threads come together: ``everywhere`` for a check of races, which looks at each access by itself.

    ``alone`` says that the kernel calls no function, and is short enough to be compiled twice.
    """
    finder = _Finder(routine)
    if everywhere:
        return KernelMeetings(finder.meetings(_Needed(None, {*finder.accesses, *finder.questions})))
    general = finder.meetings(finder.needed(None))
    if not (general.before | general.after) or not alone:
        return KernelMeetings(general)
    addresses = Addresses(routine, place_of)
    by_lane = finder.meetings(finder.needed(addresses))
    if finder.in_loops(by_lane) == finder.in_loops(general) and (finder.stops(by_lane) or not finder.stops(general)):
        return KernelMeetings(general)  # it is not worth code of its own
    return KernelMeetings(general, by_lane, frozenset(addresses.pointers))


@dataclass(slots=True)
class _Needed:
    """Points found so far."""

    addresses: Addresses | None
    before: set[int] = field(default_factory=set)
    after: set[int] = field(default_factory=set)
    in_front: set[int] = field(default_factory=set)
    """Operations at the end of blocks in front of loops, where points are to be."""


class _Finder:
    """Sets of accesses are integers: the bit of each is that of its operation."""

    def __init__(self, routine: Routine) -> None:
        self.routine = routine
        self.flow = ControlFlow.of(routine)
        self.divergence = Divergence(routine, self.flow)
        found = ((operation.index, tuple(accesses(operation))) for operation in routine.operations)
        self.accesses = {index: each for index, each in found if each}
        """By operation."""
        self.questions = [operation.index for operation in routine.operations if _asks_who_is_there(operation)]
        self._calls = {op.index for op in routine.operations if op.source.opcode == "call" and op.index not in self.accesses}
        self._writes = sum(1 << index for index, each in self.accesses.items() if any(access.writes for access in each))
        self._writes |= sum(1 << index for index in self._calls)

    def needed(self, addresses: Addresses | None) -> _Needed:
        """Return the points that are needed for accesses, and where it is asked which threads are there."""
        found = _Needed(addresses, set(self.questions) if self.divergence.partings else set())
        if self._writes:
            while self._pass(found):
                pass
        return found

    def _pass(self, found: _Needed) -> bool:
        """Go through all blocks, and return whether points were added in front of loops, so that fewer may be needed in them."""
        blocks = sorted(self.flow.starts, key=lambda start: self.flow.order[start])
        reaching = dict.fromkeys(blocks, 0) | self._of_others
        waiting = set(blocks)
        known, fresh = len(found.before) + len(found.after), set(found.before)
        while waiting:
            for block in [block for block in blocks if block in waiting]:
                waiting.discard(block)
                pending = self._through(block, reaching[block], found)
                for successor in self.flow.successors[block]:
                    if pending & ~reaching[successor]:
                        reaching[successor] |= pending
                        waiting.add(successor)
        if not found.in_front:
            return False
        found.before = fresh  # what else was found may not be needed any more
        for index in found.in_front:
            (found.after if self.routine.operations[index].match.form.flow is Flow.NEXT else found.before).add(index)
        found.in_front.clear()
        return len(found.before) + len(found.after) > known

    @cached_property
    def _of_others(self) -> dict[int, int]:
        """By block: what threads may still do that parted from one which is there, and come there or past it later."""
        if not (partings := self.divergence.partings):
            return {}
        in_order = sorted(self.flow.starts, key=lambda start: self.flow.order[start])
        own = {block: self._in(block) for block in in_order}
        joins = self._joins
        found: dict[int, int] = {}
        for parting in {(each.between, each.meeting): each for each in partings}.values():
            earlier = 0
            for block in sorted({*parting.between, parting.meeting} - {-1}, key=lambda start: self.flow.order[start]):
                if block in joins and earlier:
                    found[block] = found.get(block, 0) | earlier
                if block in parting.between:
                    earlier |= own[block]
        return found

    @cached_property
    def _leading(self) -> dict[int, list[int]]:
        """The blocks from which a block is reached at once."""
        leading: dict[int, list[int]] = {}
        for block in self.flow.starts:
            for successor in self.flow.successors[block]:
                leading.setdefault(successor, []).append(block)
        return leading

    @cached_property
    def _joins(self) -> set[int]:
        """The blocks to which threads come from several, or from a loop that others may still be in."""
        found = {block for block, before in self._leading.items() if len(before) > 1}
        for loop in self.flow.loops:
            found |= {successor for block in loop.blocks for successor in self.flow.successors[block]} - loop.blocks
        return found

    def _in(self, block: int) -> int:
        return sum(1 << index for index in self._range(block) if index in self.accesses or index in self._calls)

    def _through(self, block: int, pending: int, found: _Needed) -> int:
        """Go through a block with what may still be before it, and return what may be after it."""
        for index in self._range(block):
            operation = self.routine.operations[index]
            own = self.accesses.get(index, ())
            is_point, reads_first = _is_point(operation), operation.source.opcode == "ldmatrix"
            if index in found.before or (is_point and not reads_first):
                pending = 0
            if own:
                met = self._met(own, pending, found.addresses)
                if met and not self._put_in_front(block, met, found):
                    found.before.add(index)
                    pending = 0
                pending |= 1 << index
            if index in found.after or (is_point and reads_first):
                pending = 0
        return pending

    def _put_in_front(self, block: int, met: list[int], found: _Needed) -> bool:
        """Ask for points in front of a loop around a block, where all that is met lies outside. Returns whether that helps."""
        for loop in self._loops_of.get(block, ()):
            if not any(self._block_of(index) in loop.blocks for index in met):
                before = [each for each in self._leading.get(loop.head, ()) if each not in loop.blocks]
                wanted = {self.flow.ends[each] - 1 for each in before}
                if wanted <= found.before | found.after:
                    return False
                found.in_front |= wanted
                return True
        return False

    @cached_property
    def _loops_of(self) -> dict[int, list[Loop]]:
        """The loops around a block, outer ones first."""
        found: dict[int, list[Loop]] = {}
        for loop in self.flow.loops:
            for block in loop.blocks:
                found.setdefault(block, []).append(loop)
        return found

    def _block_of(self, index: int) -> int:
        return self.flow.starts[bisect_right(self.flow.starts, index) - 1]

    def _met(self, own: tuple[Access, ...], pending: int, addresses: Addresses | None) -> list[int]:
        """Return those of ``pending`` that may have touched, for another thread, what an access does."""
        if not any(access.writes for access in own):
            pending &= self._writes
        relevant = [
            (one, other, index)
            for index in _bits(pending)
            for other in self.accesses.get(index, _ANY)
            for one in own
            if _matter(one, other)
        ]
        if addresses is None or len(relevant) > MOST_COMPARED:
            return [index for _, _, index in relevant]
        return [index for one, other, index in relevant if not addresses.apart(one, other)]

    def meetings(self, needed: _Needed) -> Meetings:
        """Return these points, with those that the loops around them need."""
        before = needed.before | needed.after
        heads: set[int] = set()
        cut = {block for block in self.flow.starts if any(map(_holds_warp, self._operations(block)))}
        met = {block for block in self.flow.starts if any(index in before for index in self._range(block))}
        parts = {parting.block for parting in self.divergence.partings} if met else set()
        for loop in reversed(self.flow.loops):
            if not loop.blocks & met or not loop.blocks & parts or not self._goes_round(loop.blocks - cut):
                continue
            points = [index for block in sorted(loop.blocks & met) for index in self._range(block) if index in before]
            alone = len(points) == 1 and points[0] in needed.before and not heads & loop.blocks
            if alone and self._is_passed_alone(loop.blocks, points[0]):
                heads.add(points[0])
            else:
                heads.add(loop.head)
        return Meetings(frozenset(needed.before), frozenset(heads), frozenset(needed.after))

    def in_loops(self, meetings: Meetings) -> frozenset[int]:
        """Return the operations in loops that have points."""
        points = meetings.before | meetings.heads | meetings.after
        return frozenset(index for index in points if self._block_of(index) in self._loops_of)

    def stops(self, meetings: Meetings) -> bool:
        """Whether a thread stops anywhere before its end."""
        points = meetings.before | meetings.heads | meetings.after
        return bool(points) or any(op.match.form.suspends for op in self.routine.operations)

    def _range(self, block: int) -> range:
        return range(block, self.flow.ends[block])

    def _operations(self, block: int) -> list[Operation]:
        return self.routine.operations[block : self.flow.ends[block]]

    def _is_passed_alone(self, blocks: frozenset[int], point: int) -> bool:
        """Whether a point is in every round of a loop, which has no other place that a thread stops at."""
        if any(operation.match.form.suspends for block in blocks for operation in self._operations(block)):
            return False
        return not self._goes_round(frozenset(block for block in blocks if point not in self._range(block)))

    def _goes_round(self, blocks: frozenset[int]) -> bool:
        found = components(sorted(blocks), self.flow.successors, set(blocks))
        return any(len(component) > 1 or component[0] in self.flow.successors[component[0]] for component in found)


def _bits(mask: int) -> Iterator[int]:
    while mask:
        yield (mask & -mask).bit_length() - 1
        mask &= mask - 1


def _is_synchronised(operation: Operation) -> bool:
    return ".sync" in operation.match.mnemonic


def _asks_who_is_there(operation: Operation) -> bool:
    return operation.source.opcode in ("activemask", "vote", "shfl") and not _is_synchronised(operation)


def _holds_warp(operation: Operation) -> bool:
    """Whether no thread of the warp goes on before all have come."""
    if operation.guard is not None:
        return False
    if operation.source.opcode in _BARRIERS and not {"arrive", "warp"} & set(operation.match.mnemonic.split(".")):
        return True
    last = operation.operands[-1] if operation.operands else None
    full = isinstance(last, ast.Integer) and last.value & 0xFFFF_FFFF == 0xFFFF_FFFF
    return operation.match.form.suspends and _is_synchronised(operation) and full


def _is_point(operation: Operation) -> bool:
    """Whether a thread that comes to an operation always leaves its code there, and all do."""
    if not operation.match.form.suspends or operation.guard is not None or operation.source.opcode in _PAUSES:
        return False
    target = operation.operands[1] if operation.source.opcode == "call" else None
    return not (isinstance(target, LabelName) and device_library.holds(target.name))


def _matter(one: Access, other: Access) -> bool:
    """Whether the order of two accesses can matter, if they touch the same bytes."""
    if not (one.writes or other.writes) or (one.commutes and one.commutes == other.commutes):
        return False
    if one.space == other.space:
        return True
    return "" in (one.space, other.space) and not {one.space, other.space} & {"printed", "heap"}
