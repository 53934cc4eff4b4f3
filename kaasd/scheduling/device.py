"""One device: its slots, what waits for it alone, and when it is likely to have room."""

from __future__ import annotations

import math
from collections.abc import Mapping
from heapq import heappop

from kaasd.scheduling.fair_queue import Claim, FairQueue, Flow, GroupState
from kaasd.scheduling.request import OVERDUE, PROMISED, QueuedRequest, State

Owed = list[tuple[float, int, QueuedRequest]]
"""A heap of requests that are owed a slot, by their start in virtual time."""

PACE_S = 1.0
"""Of the time for which a device was busy, the latest part tells its pace: this much, or down to half of it."""
FIRST_PACE_S = 0.01
"""For so long a new device is taken to have run one request after another, each as planned."""

LEAST_DONE_S = 1e-6
"""Less is as good as nothing, and tells no pace."""


class FreeSlots:
    """Open devices with a slot, for the same groups."""

    __slots__ = ("by_used", "devices")

    def __init__(self) -> None:
        self.devices = 0
        self.by_used: list[dict[Device, None]] = []
        """By how many slots are used; who changed longest ago comes first."""

    def add(self, device: Device) -> None:
        """A device is open."""
        device.free = self
        while len(self.by_used) < device.slots:
            self.by_used.append({})
        if device.used < device.slots:
            self.by_used[device.used][device] = None
            self.devices += 1

    def remove(self, device: Device) -> None:
        """A device is open no longer."""
        if device.used < device.slots:
            del self.by_used[device.used][device]
            self.devices -= 1

    def take(self, device: Device) -> None:
        """One more of a device's slots is used."""
        used = device.used
        del self.by_used[used][device]
        device.used = used = used + 1
        if used < device.slots:
            self.by_used[used][device] = None
        else:
            self.devices -= 1

    def give_back(self, device: Device) -> None:
        """One of a device's slots is used no longer."""
        used = device.used
        if used < device.slots:
            del self.by_used[used][device]
        else:
            self.devices += 1
        device.used = used = used - 1
        self.by_used[used][device] = None

    def least_used(self) -> Mapping[Device, None]:
        """Return the least used devices; empty where none has a slot."""
        for devices in self.by_used:
            if devices:
                return devices
        return {}


class Lease:
    """What one group has of the devices that belong to one group at a time."""

    __slots__ = ("free", "group", "overdue")

    def __init__(self, group: GroupState) -> None:
        self.group = group
        self.free = FreeSlots()
        self.overdue: Owed = []
        """Its requests that take a slot of any device."""


class Device:
    """One device."""

    __slots__ = (
        "_brought_at",
        "_busy_s",
        "_done_s",
        "_expected_s",
        "_pace",
        "_seen_at",
        "claims",
        "divides",
        "free",
        "free_at",
        "lease",
        "memory_bytes",
        "name",
        "only_here",
        "open",
        "promised",
        "running",
        "slots",
        "sticky",
        "used",
    )

    def __init__(
        self, name: str, slots: int, memory_bytes: float = math.inf, *, sticky: bool = True, divides: bool = False
    ) -> None:
        """``sticky``: requests come here because their data are here; ``divides``: groups that reserve have their slots."""
        self.name = name
        self.divides = divides
        self.sticky = sticky
        self.memory_bytes = memory_bytes
        """For data, and for all else."""
        self.slots = slots
        """Requests that it runs at once."""
        self.used = 0
        self.open = True
        """Whether it takes new requests."""
        self.free: FreeSlots
        """Where it stands while it is open and has a slot."""
        self.lease: Lease | None = None
        """Set while it belongs to one group only."""
        self.free_at = 0.0
        """When it is likely to be done with all that it runs and was promised, as of the last event."""
        self._expected_s = 0.0
        """Device time of all that, as was expected."""
        self._done_s = self._busy_s = FIRST_PACE_S
        """Device time of what it has done lately, and for how long it was busy meanwhile."""
        self._pace = 1.0
        """Seconds that one of device time takes: more where others hold them up, fewer where they are charged what they share."""
        self._brought_at = 0.0
        """When all data that are on their way here are likely to have come."""
        self._seen_at = 0.0
        """When it was last noted how long it was busy."""
        self.running: dict[QueuedRequest, None] = {}
        self.only_here: FairQueue[Flow] = FairQueue()
        """Flows that may run nowhere else."""
        self.claims: FairQueue[Claim] = FairQueue()
        """Flows whose data it has."""
        self.promised: Owed = []
        """Requests that wait for it because of their data; those that no longer do are passed over."""

    def wait_s(self, now: float) -> float:
        """Return by how long a request that comes now is likely to be held up by those that are there.

        A slot may be free, but who runs beside others has only a part of the device: what all of them are expected to take is
        done at the pace that it has had lately. What is late by some time is believed to take as long again.
        """
        return abs(self.free_at - now) if self.used else 0.0

    def occupy(self, expected_s: float, now: float) -> None:
        """A request is to run here, or is promised that it will, and is expected to take so much."""
        self._note(now)
        self._expected_s += expected_s
        self.free_at = now + self._expected_s * self._pace

    def bring(self, load_s: float, now: float) -> None:
        """Data are to be brought here, behind those that are on their way."""
        if load_s:
            self._brought_at = max(self._brought_at, now) + load_s

    def brings_for_s(self, now: float) -> float:
        """Return for how long data are brought here for others, which those that come now are behind.

        A request that has its data is held up by that only as far as it tells in the device's pace.
        """
        return max(0.0, self._brought_at - now)

    def left(self, expected_s: float, device_s: float, now: float) -> None:
        """A request that ran here, and was expected to take so much, does so no longer, and has taken ``device_s``."""
        self._note(now)
        self._done_s += device_s
        self._expected_s -= expected_s
        self._pace = self._busy_s / max(self._done_s, LEAST_DONE_S)
        if self._busy_s > PACE_S:
            self._busy_s, self._done_s = self._busy_s / 2, self._done_s / 2
        self.free_at = now + self._expected_s * self._pace

    def withdrawn(self, expected_s: float) -> None:
        """A request that was promised a slot is not to run here."""
        self._expected_s -= expected_s
        self.free_at -= expected_s * self._pace

    def _note(self, now: float) -> None:
        if self.used:
            self._busy_s += now - self._seen_at
        self._seen_at = now

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
