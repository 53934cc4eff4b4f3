"""One device: its slots, what waits for it alone, and when it is likely to have room."""

from __future__ import annotations

from heapq import heappop

from kaasd.scheduling.fair_queue import Claim, FairQueue, Flow
from kaasd.scheduling.request import OVERDUE, PROMISED, QueuedRequest, State

Owed = list[tuple[float, int, QueuedRequest]]
"""A heap of requests that are owed a slot, by their start in virtual time."""


class Device:
    """One device."""

    __slots__ = ("claims", "free_at", "name", "only_here", "open", "promised", "running", "slots", "used")

    def __init__(self, name: str, slots: int) -> None:
        self.name = name
        self.slots = slots
        """Requests that it runs at once."""
        self.used = 0
        self.open = True
        """Whether it takes new requests."""
        self.free_at = 0.0
        """When it is likely to be done with all that it runs and was promised."""
        self.running: dict[QueuedRequest, None] = {}
        self.only_here: FairQueue[Flow] = FairQueue()
        """Flows that may run nowhere else."""
        self.claims: FairQueue[Claim] = FairQueue()
        """Flows whose data it has."""
        self.promised: Owed = []
        """Requests that wait for it because of their data; those that no longer do are passed over."""

    def wait_s(self, now: float) -> float:
        """Return by how long a request that comes now is likely to be held up by those that are there.

        A slot may be free, but who runs beside others has only a part of the device: they count as if one ran behind the other.
        What is late by some time is believed to take as long again.
        """
        return abs(self.free_at - now) * self.slots if self.used else 0.0

    def occupy(self, planned_s: float, now: float) -> None:
        """A request is to occupy a slot for some time."""
        self.free_at = (self.free_at if self.free_at > now else now) + planned_s / self.slots

    def occupied(self, planned_s: float, occupied_s: float) -> None:
        """A request was to occupy a slot for some time, and has for another."""
        self.free_at += (occupied_s - planned_s) / self.slots

    def first_promised(self) -> QueuedRequest | None:
        """Return the first request that waits for it because of its data."""
        promised = self.promised
        while promised:
            request = promised[0][2]
            if (request.state is PROMISED or request.state is OVERDUE) and request.runs_on == self.name:
                return request
            heappop(promised)
        return None


def first_in(owed: Owed, state: State) -> QueuedRequest | None:
    """Return the first request that is in ``state``; those before it are removed."""
    while owed:
        request = owed[0][2]
        if request.state is state:
            return request
        heappop(owed)
    return None
