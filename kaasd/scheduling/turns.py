"""Requests of one group that wait, in the order in which the group wants them.

The highest priority comes first. Of one priority, those who send requests take turns: nobody waits for more than one request of
each other sender before it comes to one of its own. A sender's requests come by their deadlines, the earliest first, then as they
came; so do senders whose turn it is equally.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from kaasd.scheduling.request import QUEUED, QueuedRequest

FEW = 32
"""A heap of so many entries is not worth clearing of dead ones."""
_BEFORE_ALL = object()
"""Stands for whoever sent what has left its queue before."""


class _Place(NamedTuple):
    """A sender's place, by its first request. Compared as a tuple, of which the first four tell all apart that are not dead."""

    minus_priority: int
    turn: float
    deadline: float
    number: int
    request: QueuedRequest
    sender: _Sender


class _Sender:
    """Who has sent some of the requests."""

    __slots__ = ("least_s", "name", "place", "requests", "turn")

    def __init__(self, name: Hashable, turn: float) -> None:
        self.name = name
        self.turn = turn
        self.requests: list[tuple[int, float, int, QueuedRequest]] = []
        self.place: _Place | None = None
        self.least_s = 0.0
        """Device time that its waiting requests take at least."""

    def __lt__(self, other: _Sender) -> bool:
        """Compare places of one request that has come twice, of which one at least is dead: either may be first."""
        return False

    def first(self) -> QueuedRequest | None:
        """Return its first request; None where it has none any more."""
        requests = self.requests
        while requests and requests[0][3].state is not QUEUED:
            heappop(requests)
        return requests[0][3] if requests else None


class Turns:
    """The requests that wait. Those that are ``QUEUED`` no longer are told to ``discarded``, and passed over."""

    __slots__ = ("_lone", "_places", "_senders", "_size", "_turn", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self._lone: QueuedRequest | None = None
        """The only one that waits, where it came when none did: most do, and cost little so."""
        self._senders: dict[Hashable, _Sender] = {}
        self._places: list[_Place] = []
        self._turn = 0.0
        """Of who came last. Who has nothing waiting joins this one."""
        self._size = 0
        """Entries of all senders, the dead ones too, or more."""

    def __iter__(self) -> Iterator[QueuedRequest]:
        """All that wait, in no order."""
        if self._lone is not None:
            yield self._lone
        for sender in self._senders.values():
            for *_, request in sender.requests:
                if request.state is QUEUED:
                    yield request

    def ahead_s(self, sender: Hashable) -> float:
        """Return the device time that the waiting requests of a sender take at least."""
        if self._lone is not None:
            return self._lone.least_s if self._lone.sender == sender else 0.0
        known = self._senders.get(sender)
        return 0.0 if known is None else known.least_s

    def push(self, request: QueuedRequest) -> bool:
        """Take a request in. Return whether it is the first."""
        request.state = QUEUED
        self.waiting += 1
        if self.waiting == 1:
            self._lone = request
            return True
        if self._lone is not None:
            lone, self._lone = self._lone, None
            self._add(lone)
        self._add(request)
        return self.first() is request

    def pop(self) -> QueuedRequest:
        """Take the first request out; there is one."""
        self.waiting -= 1
        if self._lone is not None:
            request, self._lone = self._lone, None
            return request
        request = self.first()
        place = heappop(self._places)
        sender = place.sender
        if place.turn > self._turn:
            self._turn = place.turn
        sender.turn += 1
        heappop(sender.requests)
        sender.least_s -= request.least_s
        self._size -= 1
        self._place(sender)
        return request

    def first(self) -> QueuedRequest:
        """Return the first request; there is one."""
        if self._lone is not None:
            return self._lone
        places = self._places
        while True:
            place = places[0]
            if place.sender.place is not place:
                heappop(places)
            elif place.request.state is not QUEUED:
                heappop(places)
                self._place(place.sender)
            else:
                return place.request

    def discarded(self, request: QueuedRequest) -> None:
        """One that waited is ``QUEUED`` no longer."""
        self.waiting -= 1
        if not self.waiting:
            self._lone = None
            self._senders.clear()
            self._places.clear()
            self._size = 0
            return
        self._senders[_BEFORE_ALL if request.left_before else request.sender].least_s -= request.least_s
        if self._size > 2 * self.waiting + FEW:
            self._clear_dead()

    def _add(self, request: QueuedRequest) -> None:
        name, turn = (_BEFORE_ALL, -math.inf) if request.left_before else (request.sender, self._turn)
        sender = self._senders.get(name)
        if sender is None:
            sender = self._senders[name] = _Sender(name, turn)
        heappush(sender.requests, (-request.priority, request.deadline, request.number, request))
        sender.least_s += request.least_s
        self._size += 1
        if sender.place is None or sender.requests[0][3] is request:
            self._place(sender)
            if len(self._places) > 2 * len(self._senders) + FEW:
                self._clear_dead()

    def _place(self, sender: _Sender) -> None:
        """Give a sender its place by its first request, or forget it."""
        request = sender.first()
        if request is None:
            sender.place = None
            del self._senders[sender.name]
            return
        if -math.inf < sender.turn < self._turn:
            sender.turn = self._turn
        sender.place = _Place(-request.priority, sender.turn, request.deadline, request.number, request, sender)
        heappush(self._places, sender.place)

    def _clear_dead(self) -> None:
        self._places = []
        self._size = self.waiting
        for sender in list(self._senders.values()):
            sender.requests = [entry for entry in sender.requests if entry[3].state is QUEUED]
            heapify(sender.requests)
            self._place(sender)
