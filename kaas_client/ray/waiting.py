"""The calls that wait for an executor's device, and which of them is next. A state machine: events in, decisions out, no I/O."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

C = TypeVar("C", bound=Hashable)


class WaitingCalls(Generic[C]):
    """First come, first served."""

    def __init__(self) -> None:
        self._calls: OrderedDict[C, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._calls)

    def push(self, call: C) -> None:
        """A call has come."""
        self._calls[call] = None

    def push_first(self, call: C) -> None:
        """A call that was next cannot be begun yet."""
        self._calls[call] = None
        self._calls.move_to_end(call, last=False)

    def pop(self) -> C | None:
        """There is room for a call: return the next one, which waits no more; None where none waits."""
        return self._calls.popitem(last=False)[0] if self._calls else None

    def remove(self, call: C) -> bool:
        """A call is not to run. Return whether it was waiting."""
        if call not in self._calls:
            return False
        del self._calls[call]
        return True
