"""Control flow of a routine: which labels an operation may go to, and which registers are live where."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence

from kaasd.devices.emulator.ptx.forms import Flow
from kaasd.devices.emulator.ptx.routine import Elements, LabelName, Operation, Register, Routine


def targets(routine: Routine, operation: Operation) -> list[int]:
    """Return the indices of the operations that a branch may go to."""
    if operation.match.form.flow is not Flow.BRANCH:
        return []
    names: list[str] = []
    for operand in operation.operands:
        items = operand.items if isinstance(operand, Elements) else (operand,)
        for item in items:
            if isinstance(item, LabelName):
                names += routine.lists.get(item.name, (item.name,))
    return [routine.labels[name] for name in names if name in routine.labels]


def leaves(operation: Operation) -> bool:
    """Whether control never goes on to the next operation."""
    return operation.match.form.flow is not Flow.NEXT and operation.guard is None


class Liveness:
    """The registers whose values are needed at each of some operations, by their numbers.

    It costs what the sizes of these sets add up to: they are worked out for whole blocks, and within a block once for all.
    """

    def __init__(self, routine: Routine, starts: Sequence[int], ends: Mapping[int, int], stops: Collection[int]) -> None:
        """``starts`` and ``ends`` are those of the routine's blocks, and ``stops`` the operations that are asked for."""
        self._routine = routine
        self._starts, self._ends = starts, ends
        operations = routine.operations
        self._count = len(operations)
        self.reads = [tuple(register.index for register in operation.reads) for operation in operations]
        """By operation."""
        self.writes = [tuple(register.index for register in operation.writes) for operation in operations]
        self._results: frozenset[int] = frozenset()
        if not routine.is_entry:  # a `ret` reads the formal results that are registers
            self._results = frozenset(register.index for _, register in routine.formals_of(routine.signature.results))
        self.entering: dict[int, set[int]] = {}
        """Needed at the start of a block."""
        self.leaving: dict[int, set[int]] = {}
        """Needed at its end."""
        self._solve()
        self._before: dict[int, set[int]] = {}
        self._after: dict[int, set[int]] = {}
        self._stops = set(stops)
        for block in {self._block_of(stop) for stop in self._stops}:
            self._walk(block)

    def _block_of(self, index: int) -> int:
        return self._starts[bisect_right(self._starts, index) - 1]

    def _solve(self) -> None:
        operations = self._routine.operations
        exposed: dict[int, set[int]] = {}
        killed: dict[int, set[int]] = {}
        leading: dict[int, list[int]] = {start: [] for start in self._starts}
        for start in self._starts:
            needed: set[int] = set()
            written: set[int] = set()
            for index in range(start, self._ends[start]):
                needed.update(register for register in self.reads[index] if register not in written)
                if operations[index].guard is None:
                    written.update(self.writes[index])
            exposed[start], killed[start] = needed, written
            for successor in self._successors(start):
                leading[successor].append(start)
            self.entering[start], self.leaving[start] = set(), set()
        waiting = dict.fromkeys(reversed(self._starts))
        while waiting:
            start = next(iter(waiting))
            del waiting[start]
            leaving: set[int] = set()
            for successor in self._successors(start):
                leaving |= self.entering[successor]
            if start == self._count or operations[self._ends[start] - 1].match.form.flow is Flow.END:
                leaving |= self._results
            self.leaving[start] = leaving
            entering = exposed[start] | (leaving - killed[start])
            if entering != self.entering[start]:
                self.entering[start] = entering
                waiting |= dict.fromkeys(leading[start])

    def _successors(self, start: int) -> list[int]:
        end = self._ends[start]
        if start == end:
            return []
        last = self._routine.operations[end - 1]
        return [*targets(self._routine, last), *([] if leaves(last) else [end])]

    def _walk(self, block: int) -> None:
        """Go through a block from its end, and keep what is needed at its stops."""
        live = set(self.leaving[block])
        if block == self._count:
            self._before[block] = live
        for index in reversed(range(block, self._ends[block])):
            is_stop = index in self._stops
            if is_stop:
                self._after[index] = live.difference(self.writes[index])
            if self._routine.operations[index].guard is None:
                live.difference_update(self.writes[index])
            live.update(self.reads[index])
            if is_stop:
                self._before[index] = set(live)

    def needed(self, index: int) -> Collection[int]:
        """Return the numbers of the registers live before operation ``index``."""
        return self._at(self._before, index)

    def before(self, index: int) -> list[Register]:
        """Return the registers live before operation ``index``."""
        return self._of(self._at(self._before, index))

    def across(self, index: int) -> list[Register]:
        """Return the registers live after operation ``index`` that it does not itself write."""
        return self._of(self._at(self._after, index))

    def _at(self, known: dict[int, set[int]], index: int) -> set[int]:
        if index not in known:
            self._stops.add(index)
            self._walk(self._block_of(index))
        return known[index]

    def _of(self, indices: set[int]) -> list[Register]:
        return [self._routine.registers[index] for index in sorted(indices)]
