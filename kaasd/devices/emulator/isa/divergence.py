"""Which branches the threads of a warp may part at, and what is between such a branch and where they meet again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from kaasd.devices.emulator.codegen.order import ControlFlow, reach
from kaasd.devices.emulator.isa.addresses import UNIFORM
from kaasd.devices.emulator.ptx.forms import Flow
from kaasd.devices.emulator.ptx.routine import Memory, Operation, Routine, Special, Storage

MOST_VISITED = 50_000
"""Blocks between branches and where threads meet again, of all branches together, that are looked at one by one."""
_END = -1
"""Stands for the end of the routine, whichever way a thread comes there."""


@dataclass(frozen=True, slots=True)
class Parting:
    """A block at whose end threads of a warp may part."""

    block: int
    between: frozenset[int]
    """The blocks in which they may be before all of them come to the immediate post-dominator."""
    meeting: int
    """That, or -1 if it is the end of the routine."""


@dataclass
class Divergence:
    """What threads of a warp may do differently."""

    routine: Routine
    flow: ControlFlow

    @cached_property
    def partings(self) -> list[Parting]:
        """The blocks at whose end threads may part."""
        found: dict[int, Parting] = {}
        varying = {formal.index for formal in self.routine.formals.values()}
        known, visited = -1, 0
        while known != len(varying) + len(found):
            known = len(varying) + len(found)
            for operation in self.routine.operations:
                if _varies(operation, varying, self.routine.is_entry):
                    varying |= {register.index for register in operation.writes}
            for block in self.flow.starts:
                if block not in found and self._parts(block, varying):
                    parting = found[block] = self._parting(block)
                    visited += len(parting.between)
                    if visited > MOST_VISITED:
                        return self._anywhere()
                    varying.update(*(self._written[inner] for inner in parting.between))
        return list(found.values())

    @cached_property
    def _written(self) -> dict[int, set[int]]:
        """The registers that are written in each block."""
        operations = self.routine.operations
        return {
            block: {register.index for operation in operations[block:end] for register in operation.writes}
            for block, end in self.flow.ends.items()
        }

    def _anywhere(self) -> list[Parting]:
        """Return what is true of every routine: at any branch, threads may part for good."""
        everything = frozenset(self.flow.starts)
        branches = (block for block in self.flow.starts if len(self.flow.successors[block]) > 1)
        return [Parting(block, everything, _END) for block in branches]

    def _parts(self, block: int, varying: set[int]) -> bool:
        if len(self.flow.successors[block]) < 2:
            return False
        last = self.routine.operations[self.flow.ends[block] - 1]
        return any(register.index in varying for register in last.reads)

    def _parting(self, block: int) -> Parting:
        meeting = self._post_dominators.get(block, _END)
        between = reach(self.flow.successors[block], self.flow.successors, set(self.flow.starts) - {meeting})
        return Parting(block, frozenset(between), meeting)

    @cached_property
    def _post_dominators(self) -> dict[int, int]:
        """The immediate post-dominator of each block that leads to the end (Cooper, Harvey and Kennedy)."""
        leading: dict[int, list[int]] = {_END: []}
        for block in self.flow.starts:
            for successor in self.flow.successors[block] or [_END]:
                leading.setdefault(successor, []).append(block)
        order: list[int] = []
        seen = {_END}
        stack: list[tuple[int, Iterator[int]]] = [(_END, iter(leading[_END]))]
        while stack:
            block, rest = stack[-1]
            following = next((each for each in rest if each not in seen), None)
            if following is None:
                order.append(stack.pop()[0])
            else:
                seen.add(following)
                stack.append((following, iter(leading.get(following, []))))
        number = {block: place for place, block in enumerate(order)}
        found = {_END: _END}
        changed = True
        while changed:
            changed = False
            for block in reversed(order[:-1]):
                best: int | None = None
                for successor in self.flow.successors[block] or [_END]:
                    if successor not in found:
                        continue
                    if best is None:
                        best = successor
                        continue
                    other = successor
                    while best != other:
                        while number[best] < number[other]:
                            best = found[best]
                        while number[other] < number[best]:
                            other = found[other]
                if best is not None and found.get(block) != best:
                    found[block] = best
                    changed = True
        return found


def _varies(operation: Operation, varying: set[int], is_entry: bool) -> bool:
    """Whether what an operation writes may differ between threads of a warp that do it together."""
    form = operation.match.form
    if form.flow is not Flow.NEXT:
        return False
    if form.suspends or operation.source.opcode in ("atom", "call", "alloca", "stacksave"):
        return True
    for operand in operation.operands:
        if isinstance(operand, Special) and operand.name not in UNIFORM:
            return True
        if isinstance(operand, Memory):
            base = operand.base
            if not (
                is_entry and operation.source.opcode == "ld" and isinstance(base, Storage) and base.space in ("param", "const")
            ):
                return True
    return any(register.index in varying for register in operation.reads)
