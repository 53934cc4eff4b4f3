"""Start-time fair queueing: which group is next.

Each group has a virtual time, its tag, which moves on by the device time that the group uses, over its share. The group with the
lowest tag is served first: so tags keep together, and device times are as the shares. The virtual time of all is the highest tag
that was served. A group that was idle starts there, or where it left off if that is later: idleness earns and costs nothing.

P. Goyal, H. Vin, H. Cheng: Start-time fair queueing, SIGCOMM 1996; for several servers, W. Jin, J. Chase, J. Kaur: Interposed
proportional sharing for a storage service utility, SIGMETRICS 2004.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from heapq import heappop, heappush, heapreplace
from itertools import count
from typing import Generic, TypeVar, Union

from kaas_core.errors import GroupLimitError
from kaasd.scheduling.group import Group, GroupUse
from kaasd.scheduling.request import Datum, QueuedRequest
from kaasd.scheduling.turns import Turns

LAG_REQUESTS = 2
"""How far behind the virtual time a group may stay that has requests outstanding, in the longest requests of its devices.

It gets there where a long request of another holds the slot that is its turn, or where it has too few requests outstanding to be
served more just now. Without this memory each such loss would be for ever: one of two groups on four devices, with two requests
outstanding whose times are exponential, gets 0.83 of its share with 0 here, 0.98 with 1, and 0.998 with 2.
"""

Entry = tuple[float, int, Union["Flow", "Claim"]]
"""A place in a ``FairQueue``, which alone writes it."""
F = TypeVar("F", "Flow", "Claim")


class GroupState:
    """A group in the queue: its virtual time, and counts."""

    __slots__ = (
        "_advance_s", "_idle_from", "_max_running", "device_s", "flows", "granted", "may_run", "queued", "queued_bytes",
        "removed", "resident", "running", "share", "started", "tag", "waiting",
    )  # fmt: skip

    def __init__(self, granted: Group) -> None:
        self.tag = -math.inf
        """Its virtual time, at which its next request starts."""
        self.flows: dict[str | None, Flow] = {}
        """Its requests that wait, by the only device that they may run on; None: any."""
        self.queued = 0
        self.queued_bytes = 0
        self.waiting = 0
        """Those of ``queued`` that could run."""
        self.running = 0
        self.may_run = True
        """Whether another of its requests may go to a device."""
        self.device_s = 0.0
        self.started = 0
        self.resident = 0
        self.removed = False
        """It goes with its last request, and gets no other."""
        self._idle_from = -math.inf
        self.grant(granted)

    def grant(self, granted: Group) -> None:
        """Change what it is granted, from now on."""
        self.granted = granted
        self.share = granted.share
        self._advance_s = granted.advance_s
        self._max_running = granted.max_running
        self.may_run = not self._max_running or self.running < self._max_running

    @property
    def use(self) -> GroupUse:
        """What it uses."""
        return GroupUse(self.queued, self.queued_bytes, self.running, self.device_s, self.started, self.resident)

    def admit(self, size_bytes: int) -> None:
        """Count a request that waits. Raises ``GroupLimitError``, and counts nothing, where that is one too many."""
        granted = self.granted
        if granted.max_queued and self.queued >= granted.max_queued:
            raise self._over("max_queued", f"{self.queued} of its requests are waiting already, the most that it may have")
        if granted.max_queued_bytes and self.queued_bytes + size_bytes > granted.max_queued_bytes:
            waiting = f"its waiting requests hold {self.queued_bytes} bytes and this one {size_bytes}"
            raise self._over("max_queued_bytes", f"{waiting}; it may have {granted.max_queued_bytes}")
        self.queued += 1
        self.queued_bytes += size_bytes

    def leave(self, size_bytes: int) -> None:
        """A request waits no longer."""
        self.queued -= 1
        self.queued_bytes -= size_bytes

    def send(self, request: QueuedRequest, expected_s: float) -> None:
        """A request that could run goes to a device, and is charged what is expected of it."""
        self.queued -= 1
        self.queued_bytes -= request.size_bytes
        self.waiting -= 1
        self.send_at_once(request, expected_s)

    def send_at_once(self, request: QueuedRequest, expected_s: float) -> None:
        """The same, of one that has not waited."""
        self.running += 1
        if self._max_running:
            self.may_run = self.running < self._max_running
        request.tag = self.tag
        request.charged_s = expected_s
        self.tag += expected_s / self.share

    def back(self, request: QueuedRequest, device_s: float) -> None:
        """A request is no longer with a device, where it has used ``device_s``."""
        self.running -= 1
        if self._max_running:
            self.may_run = self.running < self._max_running
        self.device_s += device_s
        self.tag += (device_s - request.charged_s) / self.share

    def idle(self, virtual_time: float) -> None:
        """It has nothing any more that could run."""
        self._idle_from = virtual_time

    def enter(self, virtual_time: float, longest_s: float) -> None:
        """It has something to run again. ``longest_s`` is what the longest requests of its devices take."""
        kept = LAG_REQUESTS * longest_s / self.share
        if not self.running:
            kept = max(0.0, kept - (virtual_time - self._idle_from))
        floor = virtual_time - self._advance_s - kept
        if self.tag < floor:
            self.tag = floor

    def _over(self, limit: str, why: str) -> GroupLimitError:
        return GroupLimitError(f"group {self.granted.name}: {why}", {"group": self.granted.name, "limit": limit})


class Flow(Turns):
    """Requests of one group that wait for the same devices."""

    __slots__ = ("claimed", "claims", "entry", "group", "only")

    def __init__(self, group: GroupState, only: str | None) -> None:
        super().__init__()
        self.group = group
        self.only = only
        """The only device that they may run on."""
        self.entry: Entry | None = None
        self.claimed: Sequence[Datum] = ()
        """What its first request needed when it last stood in the queues of devices."""
        self.claims: dict[object, Claim] = {}
        """By device."""

    @property
    def stands(self) -> bool:
        """Whether it stands in the queue of a device that has what its first request needs."""
        if self.claims and self.first().data == self.claimed:
            for claim in self.claims.values():
                if claim.entry is not None and claim.data is self.claimed:
                    return True
        return False


class Claim:
    """A flow in the queue of a device that has what its first request needs, or most of it."""

    __slots__ = ("cost_s", "data", "entry", "flow", "group")

    def __init__(self, flow: Flow, data: Sequence[Datum], cost_s: float) -> None:
        self.flow = flow
        self.group = flow.group
        self.data = data
        self.cost_s = cost_s
        """Of bringing the rest."""
        self.entry: Entry | None = None

    @property
    def waiting(self) -> bool:
        """Whether it still stands there with reason."""
        return self.flow.waiting > 0 and self.flow.claimed is self.data


class FairQueue(Generic[F]):
    """Flows, or claims of flows, in the order of their groups' virtual times."""

    __slots__ = ("_numbers", "entries")

    def __init__(self) -> None:
        # An entry may be out of date: too early, where its group was charged meanwhile; superseded, where its group was refunded;
        # of a flow that has nothing to run. That is put right when it comes to the front.
        self.entries: list[tuple[float, int, F]] = []
        self._numbers = count()

    def list(self, flow: F) -> None:
        """A flow has requests that may run, or its group's virtual time has moved back."""
        entry = flow.entry = (flow.group.tag, next(self._numbers), flow)
        heappush(self.entries, entry)

    def clear(self) -> None:
        """Take all out."""
        for _, _, flow in self.entries:
            flow.entry = None
        self.entries.clear()

    def first(self) -> F | None:
        """Return the flow whose group has the lowest virtual time, of those that have requests which may run."""
        entries = self.entries
        while entries:
            entry = entries[0]
            flow = entry[2]
            if flow.entry is not entry:
                heappop(entries)
            elif not flow.waiting or not flow.group.may_run:
                flow.entry = None
                heappop(entries)
            elif entry[0] < flow.group.tag:
                later = flow.entry = (flow.group.tag, next(self._numbers), flow)
                heapreplace(entries, later)
            else:
                return flow
        return None
