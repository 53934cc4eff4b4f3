"""Calls that wait for a place, in the order in which they get one: those who send them take turns."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator

_FIRST = object()
"""Stands for the sender of calls that come before all turns."""


class Turns:
    """Waiting calls. Nobody waits for more than one call of each other sender before it comes to one of its own."""

    def __init__(self) -> None:
        self.calls: dict[int, Hashable] = {}
        """All that wait, and who has sent each."""
        self.input_bytes = 0
        """Of all calls."""
        self._by_sender: OrderedDict[Hashable, OrderedDict[int, int]] = OrderedDict()
        """In the order of their turns, the size of the inputs of each one's calls. None is empty."""

    def __iter__(self) -> Iterator[int]:
        for calls in self._by_sender.values():
            yield from calls

    def add(self, call: int, sender: Hashable, input_bytes: int) -> None:
        """A call waits behind those of its sender, and that one for its turn."""
        self.calls[call] = sender
        self._by_sender.setdefault(sender, OrderedDict())[call] = input_bytes
        self.input_bytes += input_bytes

    def add_first(self, call: int, input_bytes: int) -> None:
        """A call comes before all others."""
        self.add(call, _FIRST, input_bytes)
        self._by_sender[_FIRST].move_to_end(call, last=False)
        self._by_sender.move_to_end(_FIRST, last=False)

    @property
    def next(self) -> int:
        """Whose turn it is. There is one."""
        return next(iter(self))

    def take(self) -> tuple[int, int]:
        """Take ``next`` out, with the size of its inputs; its sender's next turn comes after all others'."""
        call = self.next
        sender = self.calls[call]
        if sender is not _FIRST:
            self._by_sender.move_to_end(sender)
        return call, self.remove(call)

    def remove(self, call: int) -> int:
        """Take a call out, wherever it is; return the size of its inputs."""
        sender = self.calls.pop(call)
        calls = self._by_sender[sender]
        input_bytes = calls.pop(call)
        if not calls:
            del self._by_sender[sender]
        self.input_bytes -= input_bytes
        return input_bytes
