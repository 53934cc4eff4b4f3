"""Control flow of a routine: which labels an operation may go to, and which registers are live where."""

from __future__ import annotations

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
    """The registers whose values are needed before each operation."""

    def __init__(self, routine: Routine) -> None:
        self._registers = routine.registers
        operations = routine.operations
        count = len(operations)
        reads = [sum(1 << index for index in {r.index for r in operation.reads}) for operation in operations]
        writes = [sum(1 << index for index in {r.index for r in operation.writes}) for operation in operations]
        kills = [0 if operation.guard else written for operation, written in zip(operations, writes, strict=True)]
        successors = [targets(routine, operation) for operation in operations]
        for index, operation in enumerate(operations):
            if not leaves(operation):
                successors[index].append(index + 1)
        results = 0
        if not routine.is_entry:  # a `ret` reads the formal results that are registers
            results = sum(1 << register.index for _, register in routine.formals_of(routine.signature.results))
        self._writes = writes
        self._before = [0] * (count + 1)
        self._before[count] = results
        changed = True
        while changed:
            changed = False
            for index in reversed(range(count)):
                after = results if operations[index].match.form.flow is Flow.END else 0
                for successor in successors[index]:
                    after |= self._before[successor]
                before = after & ~kills[index] | reads[index]
                if before != self._before[index]:
                    self._before[index] = before
                    changed = True
        self._successors = successors

    def before(self, index: int) -> list[Register]:
        """Return the registers live before operation ``index``."""
        return self._of(self._before[index])

    def across(self, index: int) -> list[Register]:
        """Return the registers live after operation ``index`` that it does not itself write."""
        after = 0
        for successor in self._successors[index]:
            after |= self._before[successor]
        return self._of(after & ~self._writes[index])

    def _of(self, mask: int) -> list[Register]:
        return [register for register in self._registers if mask >> register.index & 1]
