"""Devices that groups share: their slots, what each is to run next, and when it is likely to have room."""

from __future__ import annotations

from heapq import heappop
from typing import NamedTuple

from kaasd.scheduling.fair_queue import FairQueue, Flow
from kaasd.scheduling.placement import Residents
from kaasd.scheduling.request import QueuedRequest, State

Entry = tuple[float, int, QueuedRequest]
"""A request that is owed a slot, in the order of its start in virtual time."""


class Device:
    """One device."""

    __slots__ = ("free_at", "name", "only_here", "open", "partition", "promised", "running", "slots", "used")

    def __init__(self, name: str, slots: int, partition: Partition) -> None:
        self.name = name
        self.slots = slots
        """Requests that it runs at once."""
        self.used = 0
        self.open = True
        """Whether it takes new requests."""
        self.free_at = 0.0
        """When all that it runs and has promised to run is likely to be done, were it run slot by slot."""
        self.running: dict[QueuedRequest, None] = {}
        self.promised: list[Entry] = []
        """Requests that wait for it because it has their data; those that are no longer ``PROMISED`` are passed over."""
        self.only_here = FairQueue()
        """Flows that may run nowhere else."""
        self.partition = partition

    def wait_s(self, now: float) -> float:
        """Return how long a request that comes now is likely to wait for a slot.

        What is late by some time is believed to take as long again.
        """
        return 0.0 if self.used < self.slots else abs(self.free_at - now)

    def occupy(self, planned_s: float, now: float) -> None:
        """A request is to occupy a slot."""
        self.free_at = (self.free_at if self.free_at > now else now) + planned_s / self.slots

    def corrected(self, more_s: float) -> None:
        """A request occupied a slot for that much longer than planned; less, where negative."""
        self.free_at += more_s / self.slots

    def first_promised(self) -> QueuedRequest | None:
        """Return the first request that waits for it because of its data."""
        return first_in(self.promised, State.PROMISED)


class Choice(NamedTuple):
    """Where a request is to run."""

    device: Device
    load_s: float
    """How long bringing its data there takes."""
    elsewhere_s: float
    """How long bringing them to the least used device would take."""


class Partition:
    """Devices, and the groups that share them."""

    __slots__ = ("_by_used", "attention", "devices", "free", "overdue", "queue", "residents", "sticky", "virtual_time")

    def __init__(self, *, sticky: bool) -> None:
        self.sticky = sticky
        """Whether requests go where their data are."""
        self.devices: dict[str, Device] = {}
        self.queue = FairQueue()
        """Flows that may run on any of them."""
        self.overdue: list[Entry] = []
        self.virtual_time = 0.0
        """The highest tag that was started."""
        self.residents: Residents[Device] = Residents()
        self.attention: dict[Device, None] = {}
        """Devices with a new slot, or new requests of their own."""
        self.free = 0
        """Open devices with a slot."""
        self._by_used: list[dict[Device, None]] = []
        """Open devices with a slot, by how many are used; who changed longest ago comes first."""

    def list(self, device: Device) -> None:
        """An open device has a slot."""
        while len(self._by_used) < device.slots:
            self._by_used.append({})
        self._by_used[device.used][device] = None
        self.free += 1

    def unlist(self, device: Device) -> None:
        """Undo ``list``."""
        del self._by_used[device.used][device]
        self.free -= 1

    def take_slot(self, device: Device) -> None:
        """A request starts on an open device with a slot."""
        del self._by_used[device.used][device]
        device.used += 1
        if device.used < device.slots:
            self._by_used[device.used][device] = None
        else:
            self.free -= 1

    def free_slot(self, device: Device) -> None:
        """A request has left its slot."""
        if device.open:
            if device.used < device.slots:
                del self._by_used[device.used][device]
            else:
                self.free += 1
            self._by_used[device.used - 1][device] = None
            self.attention[device] = None
        device.used -= 1

    def least_used(self) -> Device:
        """Return the open device with the fewest slots used; there is one."""
        for devices in self._by_used:
            for device in devices:
                return device
        raise LookupError("no device has a slot")

    def choose(self, request: QueuedRequest, now: float, *, must_be_free: bool = False) -> Choice:
        """Return which device can begin the request's kernels first; some device has a slot.

        One without a slot comes into question unless ``must_be_free``.
        """
        best = self.least_used()
        data = request.data
        if not data:
            return Choice(best, 0.0, 0.0)
        residents = self.residents
        elsewhere_s = load_s = cost_s = residents.missing_s(best, data)
        if not self.sticky or not load_s:
            return Choice(best, load_s, elsewhere_s)
        for device in residents.holders(data):
            if not device.open or (must_be_free and device.used >= device.slots):
                continue
            missing_s = residents.missing_s(device, data)
            if missing_s > cost_s:
                continue
            began_s = missing_s + device.wait_s(now)
            if began_s < cost_s or (began_s == cost_s and (missing_s, device.used) < (load_s, best.used)):
                best, load_s, cost_s = device, missing_s, began_s
        return Choice(best, load_s, elsewhere_s)

    def own_work(self) -> tuple[Device, QueuedRequest | Flow] | None:
        """Return a device with a slot, and what waits for it alone and is first; None where there is none such."""
        while self.attention:
            device = next(iter(self.attention))
            if device.open and device.used < device.slots:
                promised, flow = device.first_promised(), device.only_here.first()
                if promised is not None and (flow is None or promised.tag <= flow.group.tag):
                    return device, promised
                if flow is not None:
                    return device, flow
            del self.attention[device]
        return None

    def shared_work(self) -> QueuedRequest | Flow | None:
        """Return what may run on any device and is first."""
        overdue, flow = first_in(self.overdue, State.OVERDUE), self.queue.first()
        if overdue is not None and (flow is None or overdue.tag <= flow.group.tag):
            return overdue
        return flow


def first_in(entries: list[Entry], state: State) -> QueuedRequest | None:
    """Return the first request of a heap that is still in ``state``; those before it are removed."""
    while entries:
        request = entries[0][2]
        if request.state is state:
            return request
        heappop(entries)
    return None
