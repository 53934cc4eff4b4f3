"""The order in which the threads of a warp pass the code of a routine, so that they come together where a GPU's would.

Of the groups of a warp's threads that are at different places, the one at the earliest place runs. So what is earlier must be so
that whoever waits at a later place meets those that can still come there: every block comes after those that lead to it, and the
blocks of a loop stand together, so that nothing behind a loop comes before a block of it. That is a weak topological order
(Bourdoncle, 1993). In it threads meet at the immediate post-dominator of a branch, or before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from kaasd.devices.emulator.codegen.liveness import leaves, targets
from kaasd.devices.emulator.ptx.forms import Flow
from kaasd.devices.emulator.ptx.routine import Routine

Place = tuple[int, int, int]
"""A block's place in the order and, within it, 0 and an operation's index, or what is behind all operations."""


@dataclass(slots=True)
class Loop:
    """A loop of the control flow: blocks that can all reach one another."""

    head: int
    """The block at which it is entered."""
    blocks: frozenset[int]


@dataclass
class ControlFlow:
    """The blocks of a routine, by the index of their first operation; one past the last operation is the end."""

    starts: list[int]
    ends: dict[int, int]
    """One past a block's last operation."""
    successors: dict[int, list[int]]
    order: dict[int, int] = field(default_factory=dict)
    """The place of each block, from 0 on."""
    loops: list[Loop] = field(default_factory=list)
    """Outer ones before inner ones."""

    @cached_property
    def round_ends(self) -> dict[int, Place]:
        """The place at which a round of each loop is over, by its head: behind all of its blocks, and before what follows it."""
        return {loop.head: (max(self.order[block] for block in loop.blocks), 1, len(loop.blocks)) for loop in self.loops}

    @staticmethod
    def of(routine: Routine) -> ControlFlow:
        """Work out the blocks of a routine, their order and its loops."""
        operations = routine.operations
        count = len(operations)
        starts = {0, count, *routine.labels.values()}
        starts |= {op.index + 1 for op in operations if op.match.form.flow is not Flow.NEXT}
        ordered = sorted(starts)
        ends = dict(zip(ordered, [*ordered[1:], count], strict=True))
        successors: dict[int, list[int]] = {}
        for start, end in ends.items():
            if start == end:
                successors[start] = []
                continue
            last = operations[end - 1]
            following = [] if leaves(last) else [end]
            successors[start] = list(dict.fromkeys([*targets(routine, last), *following]))
        flow = ControlFlow(ordered, ends, successors)
        reached = reach([0], successors, set(ordered))
        flow._place([0, *(start for start in ordered if start not in reached)])
        return flow

    def _place(self, roots: list[int]) -> None:
        """Put the blocks in order that the roots lead to."""
        pending: list[tuple[list[int], set[int]]] = [(roots, set(self.starts))]
        while pending:
            roots, among = pending.pop()
            for component in components(roots, self.successors, among):  # the last of the order first
                head = component[0]
                if len(component) > 1 or head in self.successors[head]:
                    head = self._entry(component, roots, among)
                    self.loops.append(Loop(head, frozenset(component)))
                    pending.append((self.successors[head], set(component) - {head}))
                pending.append(([], {head}))
            if not roots:
                self.order[among.pop()] = len(self.order)

    def _entry(self, component: list[int], roots: list[int], among: set[int]) -> int:
        """Return the block at which a loop is entered: the first, where there are several."""
        inside = set(component)
        entries = inside & set(roots)
        entries |= {s for block in among - inside for s in self.successors[block] if s in inside}
        return min(entries)


def reach(roots: Iterable[int], successors: Mapping[int, Sequence[int]], among: set[int]) -> set[int]:
    """Return the blocks of ``among`` that ``roots`` lead to within it, themselves included."""
    seen = {root for root in roots if root in among}
    waiting = list(seen)
    while waiting:
        new = {successor for successor in successors[waiting.pop()] if successor in among} - seen
        seen |= new
        waiting += new
    return seen


def components(roots: Sequence[int], successors: Mapping[int, Sequence[int]], among: set[int]) -> list[list[int]]:
    """Return the strongly connected parts of what ``roots`` lead to within ``among``, each after those it leads to (Tarjan)."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    found: list[list[int]] = []
    calls: list[tuple[int, Iterator[int]]] = []

    def enter(block: int) -> None:
        index[block] = low[block] = len(index)
        stack.append(block)
        on_stack.add(block)
        calls.append((block, iter(successors[block])))

    for root in roots:
        if root in among and root not in index:
            enter(root)
        while calls:
            block, rest = calls[-1]
            for successor in rest:
                if successor in among and successor not in index:
                    enter(successor)
                    break
                if successor in on_stack:
                    low[block] = min(low[block], index[successor])
            else:
                calls.pop()
                if calls:
                    low[calls[-1][0]] = min(low[calls[-1][0]], low[block])
                if low[block] == index[block]:
                    component = [stack.pop()]
                    while component[-1] != block:
                        component.append(stack.pop())
                    on_stack.difference_update(component)
                    found.append(component)
    return found
