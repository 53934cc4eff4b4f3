"""Devices, and the groups that share them: who gets the next slot, and where."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, MutableSequence, Sequence
from heapq import heappush
from itertools import islice

from kaasd.scheduling.decisions import Decision, Start
from kaasd.scheduling.device import Device, FreeSlots, Lease, Owed, first_in
from kaasd.scheduling.durations import Durations
from kaasd.scheduling.fair_queue import Claim, FairQueue, Flow, GroupState
from kaasd.scheduling.placement import MOST_HOLDERS, Placement, Residents
from kaasd.scheduling.request import OVERDUE, PROMISED, QUEUED, RUNNING, QueuedRequest

Work = QueuedRequest | Flow | Claim
"""What may get a slot: a request that has left its flow, or the first one of a flow."""
OwnWork = tuple[Device, float, Work]
"""A device, and what it is to run itself, with its tag."""


class Partition:
    """Devices, and the flows of the groups that share them."""

    def __init__(self, groups: Mapping[str, GroupState], durations: Durations, patience: Owed, *, sticky: bool) -> None:
        """``patience`` is told when requests become overdue; ``sticky``: they go where their data are."""
        self.residents: Residents[Device] = Residents()
        self.virtual_time = 0.0
        """The lowest tag that is not served yet, or was served last."""
        self._longest_s = 0.0
        """The longest that a request has occupied its slot, lately."""
        self._groups = groups
        self._durations = durations
        self._sticky = sticky
        self._devices: dict[str, Device] = {}
        self._queue: FairQueue[Flow] = FairQueue()
        """Flows that may run on any device."""
        self._overdue: Owed = []
        self._patience = patience
        self._attention: dict[Device, None] = {}
        """Devices with a new slot, or new requests of their own."""
        self._free = FreeSlots()
        """Of the devices that all groups use."""
        self._leases: dict[GroupState, Lease] = {}
        """Of groups that may have devices to themselves."""
        self._own_slots: dict[GroupState, set[Device]] = {}
        """Of groups that have a slot of their own on devices that divide: where that is used."""
        self.touched: dict[GroupState, None] | None = None
        """Groups of which more or fewer requests wait for a slot, where that is to be known."""

    @property
    def has_slot(self) -> bool:
        """Whether a device that takes requests of all groups has a slot."""
        return self._free.devices > 0

    # Events

    @property
    def has_own_slots(self) -> bool:
        """Whether a group may run something where no device has a slot."""
        return bool(self._own_slots)

    def set_reserves(self, group: GroupState, reserves: bool) -> None:
        """Say whether a group has slots of its own from now on. Idempotent."""
        if not reserves:
            self._own_slots.pop(group, None)
        elif group not in self._own_slots:
            running = ((device, each) for device in self._devices.values() for each in device.running)
            self._own_slots[group] = {device for device, each in running if each.in_own_slot and each.group == group.granted.name}

    def set_lease(self, group: GroupState) -> None:
        """A group may have devices to itself. Idempotent."""
        if group not in self._leases:
            self._leases[group] = Lease(group)

    def remove_lease(self, group: GroupState) -> None:
        """A group is gone, and has no requests."""
        del self._leases[group]

    def waiting_of(self, group: GroupState) -> int:
        """Return how many requests of a group would run on further devices; of those that are overdue, one."""
        flow = group.flows.get(None)
        waiting = flow.waiting if flow is not None and group.may_run else 0
        return waiting + (first_in(self._leases[group].overdue, OVERDUE) is not None)

    def lend(self, device: Device, group: GroupState) -> None:
        """A device that is closed, or is not here, takes requests of one group."""
        device.lease = self._leases[group]
        if device.name in self._devices:
            self.open(device)
        else:
            self.add(device)

    def add(self, device: Device) -> None:
        """A device is there, and takes requests."""
        self._devices[device.name] = device
        self.residents.limit(device, device.memory_bytes)
        self.open(device)

    def remove(self, device: Device) -> None:
        """A device that takes no requests is gone."""
        del self._devices[device.name]
        for used_at in self._own_slots.values():
            used_at.discard(device)
        self.residents.forget(device)

    def open(self, device: Device) -> None:
        """A device takes requests from now on."""
        device.open = True
        (self._free if device.lease is None else device.lease.free).add(device)
        self._attention[device] = None

    def close(self, device: Device) -> Sequence[QueuedRequest]:
        """A device takes no more requests. Return those that were promised it: they are to wait elsewhere."""
        device.open = False
        self._attention.pop(device, None)
        device.free.remove(device)
        device.claims.clear()
        promised = []
        while (request := device.first_promised()) is not None:
            self.withdraw(request)
            promised.append(request)
        return promised

    def dropped(self, device: Device, key: Hashable, *, is_full: bool) -> None:
        """A device has dropped data, unless a request there, or one that is promised it, brings them again."""
        coming = [request.to_bring for request in device.running]
        coming += [request.to_bring for _, _, request in device.promised if request.runs_on == device.name]
        if not any(datum.key == key for data in coming for datum in data):
            (self.residents.dropped if is_full else self.residents.drop)(device, key)

    def list(self, flow: Flow) -> None:
        """A flow has requests that may run, or another first one."""
        if flow.entry is None:
            flow.group.enter(self.virtual_time, self._longest_s)
            self.move(flow)
        if self._leases and flow.only is None:
            self._attend(self._leases[flow.group])
        if self._sticky and flow.only is None and not flow.stands:
            self._claim(flow)

    def move(self, flow: Flow) -> None:
        """A flow takes its place by its group's virtual time."""
        if flow.only is None:
            self._queue.list(flow)
        else:
            device = self._devices[flow.only]
            device.only_here.list(flow)
            if device.open:
                self._attention[device] = None

    def overdue(self, request: QueuedRequest) -> None:
        """A request has waited long enough for the device that has its data."""
        request.state = OVERDUE
        heappush(self._overdue, (request.tag, request.number, request))
        if self._leases:
            group = self._groups[request.group]
            heappush(self._leases[group].overdue, (request.tag, request.number, request))
            self._attend(self._leases[group])
            if self.touched is not None:
                self.touched[group] = None

    def _attend(self, lease: Lease) -> None:
        """Look at the devices of a group that has more to run."""
        if lease.free.devices:
            for devices in lease.free.by_used:
                self._attention.update(devices)

    def withdraw(self, request: QueuedRequest) -> None:
        """A request is not to run on the device that it was promised."""
        device = self._devices[request.runs_on]
        device.withdrawn(request.charged_s)
        for datum in request.to_bring:
            self.residents.drop(device, datum.key)
        request.to_bring = ()
        request.runs_on = ""

    def vacate(self, request: QueuedRequest, device: Device, now: float, device_s: float) -> None:
        """A request has left its slot, and has used so much of the device."""
        del device.running[request]
        if request.in_own_slot:
            request.in_own_slot = False
            self._own_slots.get(self._groups[request.group], set()).discard(device)
            return
        device.left(request.charged_s, device_s, now)
        if device.open:
            device.free.give_back(device)
            self._attention[device] = None
        else:
            device.used -= 1
        self._longest_s = max(now - request.started_at, self._longest_s * 0.999)

    def start_at_once(self, request: QueuedRequest, group: GroupState, expected_s: float, now: float) -> str:
        """A request that needs no data gets a slot of the least used device, which is free, while none waits; return which."""
        group.enter(self.virtual_time, self._longest_s)
        group.send_at_once(request, expected_s)
        self._reach(request.tag)
        device = next(iter(self._free.least_used()))
        self._occupy(request, device, now)
        group.started += 1
        return device.name

    # Decisions

    def decide(self, now: float, decisions: MutableSequence[Decision]) -> None:
        """Give out the slots."""
        if self._own_slots:
            for group, used_at in self._own_slots.items():
                self._fill_own_slots(group, used_at, now, decisions)
        free, attention = self._free, self._attention
        while free.devices or (attention and self._leases):
            own = self._own_work()
            flow = self._queue.first()
            overdue = first_in(self._overdue, OVERDUE) if self._overdue else None
            tag = math.inf if flow is None else flow.group.tag
            if overdue is not None and overdue.tag <= tag:
                flow, tag = None, overdue.tag
            if own is not None and (not free.devices or self._goes_first(own, flow, tag)):
                device, own_tag, work = own
                if isinstance(work, Flow) and work.only is None:
                    self._place(work, min(tag, own_tag), now, decisions)
                else:
                    self._reach(min(tag, own_tag))
                    self._start(work if isinstance(work, QueuedRequest) else self._take(work), device, now, decisions)
            elif not free.devices:
                break
            elif flow is not None:
                self._place(flow, tag, now, decisions)
            elif overdue is not None:
                self._reach(tag)
                device, _ = self._choose(overdue, now, must_be_free=True)
                self._start(overdue, device, now, decisions)
            else:
                break
        attention.clear()

    def _fill_own_slots(self, group: GroupState, used_at: set[Device], now: float, decisions: MutableSequence[Decision]) -> None:
        """Start what a group has to run in the slots that are its own: nobody else has a use for them."""
        free = [
            device
            for device in self._devices.values()
            if device.divides and device.open and device not in used_at and (device.lease is None or device.lease.group is group)
        ]
        while free and (found := self._own_start(group, free, now)) is not None:
            request, device = found
            free.remove(device)
            used_at.add(device)
            request.in_own_slot = True
            self._start(request, device, now, decisions)

    def _own_start(self, group: GroupState, free: Sequence[Device], now: float) -> tuple[QueuedRequest, Device] | None:
        """Return what a group starts next in a slot of its own, and where; None where there is nothing to start."""
        name = group.granted.name
        for device in free:
            promised = (each for each in device.promised if each[2].state is PROMISED and each[2].runs_on == device.name)
            if (first := min((each for each in promised if each[2].group == name), default=None)) is not None:
                return first[2], device
        overdue = (each for each in self._overdue if each[2].state is OVERDUE and each[2].group == name)
        if (first := min(overdue, default=None)) is not None:
            return first[2], min(free, key=lambda device: self.residents.cost_s(device, first[2].data))
        for flow in group.flows.values():
            devices = [device for device in free if flow.only in (None, device.name)]
            while devices and flow.waiting and group.may_run:
                request = self._take(flow)
                device, until = self._choose_own(request, devices, now)
                if device in devices:
                    return request, device
                self._promise(request, device, now, until)
                self._attention[device] = None
        return None

    def _choose_own(self, request: QueuedRequest, free: Sequence[Device], now: float) -> tuple[Device, float]:
        """Return where a request can begin first, with slots of its group's own on ``free``; until when to promise another."""
        data, residents = request.data, self.residents
        best = min(free, key=lambda device: residents.cost_s(device, data))
        own_s = least_s = residents.cost_s(best, data)
        if least_s and self._sticky and request.device is None:
            lease = self._leases.get(self._groups[request.group])
            for device in self._devices.values():
                if device.open and device.sticky and device not in free and device.lease in (None, lease):
                    began_s = residents.cost_s(device, data) + device.wait_s(now)
                    if began_s < least_s:
                        best, least_s = device, began_s
        return best, now + own_s - least_s

    def _place(self, flow: Flow, tag: float, now: float, decisions: MutableSequence[Decision]) -> None:
        """Start a flow's first request on the device where it costs least, or promise it that."""
        request = self._take(flow)
        device, saved_s = self._choose(request, now)
        if device.used < device.slots:
            self._reach(tag)
            self._start(request, device, now, decisions)
        else:
            self._promise(request, device, now, now + saved_s)

    def _own_work(self) -> OwnWork | None:
        """Return a device with a slot, and the first of what waits for it; None where there is none such."""
        attention = self._attention
        while attention:
            device = next(iter(attention))
            if device.used < device.slots:
                tag = math.inf
                work: Work | None = None
                if device.promised and (request := device.first_promised()) is not None:
                    tag, work = request.tag, request
                if device.lease is not None:
                    tag, work = self._leased_work(device.lease, tag, work)
                if device.only_here.entries and (flow := device.only_here.first()) is not None and flow.group.tag < tag:
                    tag, work = flow.group.tag, flow
                if device.claims.entries and (claim := self._first_claim(device)) is not None and claim.group.tag < tag:
                    tag, work = claim.group.tag, claim
                if work is not None:
                    return device, tag, work
            del attention[device]
        return None

    def _leased_work(self, lease: Lease, tag: float, work: Work | None) -> tuple[float, Work | None]:
        """Return ``work`` of a device, which has ``tag``, or what comes before it of the group that has the device."""
        request = first_in(lease.overdue, OVERDUE) if lease.overdue else None
        if request is not None and request.tag < tag:
            tag, work = request.tag, request
        flow = lease.group.flows.get(None)
        if flow is not None and flow.waiting and lease.group.may_run and lease.group.tag < tag:
            tag, work = lease.group.tag, flow
        return tag, work

    def _first_claim(self, device: Device) -> Claim | None:
        """Return the first flow that has its data on a device. Claims to what the device no longer has are removed."""
        while (claim := device.claims.first()) is not None:
            if self.residents.cost_s(device, claim.data) <= claim.cost_s:
                break
            claim.entry = None
        return claim

    def _goes_first(self, own: OwnWork, flow: Flow | None, tag: float) -> bool:
        """Return whether a device is to run what waits for it. On any may run ``flow``, or something else, which has ``tag``.

        Who has its data there goes before a group whose data are elsewhere until that is owed the time that bringing them takes.
        """
        device, own_tag, work = own
        if not isinstance(work, Claim) or flow is None:
            return own_tag <= tag
        if work.flow is flow:
            return not device.used  # another device that has its data may be used less
        ahead = own_tag - tag
        return ahead <= 0 or ahead * flow.group.share <= self.residents.cost_s(device, flow.first().data)

    def _reach(self, tag: float) -> None:
        """What starts now, or what waits behind it, has this tag at least."""
        if tag > self.virtual_time:
            self.virtual_time = tag

    def _take(self, work: Flow | Claim) -> QueuedRequest:
        """Take a flow's first request, and charge its group."""
        flow = work.flow if isinstance(work, Claim) else work
        request = flow.pop()
        group = flow.group
        expected_s = request.expected_s
        if expected_s is None:
            expected_s = self._durations.expected_s(group if request.function is None else request.function)
        group.send(request, expected_s)
        if self.touched is not None:
            self.touched[group] = None
        if self._sticky and flow.only is None and flow.waiting and flow.first().data != flow.claimed:
            self._claim(flow)
        return request

    def _choose(self, request: QueuedRequest, now: float, *, must_be_free: bool = False) -> tuple[Device, float]:
        """Return the device on which the request costs least, and how much less bringing its data costs there than to the least
        used device.

        Some device must have a slot. One without comes into question unless ``must_be_free``.
        """
        lease = self._leases[self._groups[request.group]] if self._leases else None
        devices = self._free.least_used()
        own = lease.free.least_used() if lease is not None else None
        if own and (not devices or next(iter(own)).used <= next(iter(devices)).used):
            devices = own  # others have no use for them
        best = next(iter(devices))
        data = request.data
        if not data:
            return best, 0.0
        residents = self.residents
        if self._sticky and len(devices) > 1:
            best = min(islice(devices, MOST_HOLDERS), key=residents.filled)
        elsewhere_s = least_s = residents.cost_s(best, data)
        if self._sticky and least_s:
            elsewhere_s += best.brings_for_s(now)
            began_s = elsewhere_s + best.wait_s(now)
            for key, key_load_s, _ in residents.rarest_first(data):
                holders = residents.holders(key)
                for device in holders:
                    if not (device.open and device.sticky) or (must_be_free and device.used >= device.slots):
                        continue
                    if device.lease is not lease and device.lease is not None:
                        continue
                    cost_s = residents.cost_s(device, data)
                    if cost_s > began_s:
                        continue
                    began_here_s = cost_s + device.wait_s(now)
                    if cost_s:
                        began_here_s += device.brings_for_s(now)
                    if began_here_s < began_s or (began_here_s == began_s and (cost_s, device.used) < (least_s, best.used)):
                        best, least_s, began_s = device, cost_s, began_here_s
                if began_s <= key_load_s and len(holders) < MOST_HOLDERS:
                    break  # whoever else lacks this key, and it alone would cost as much
            if not must_be_free and least_s > residents.missing_s(best, data):  # others would lose theirs
                roomy = residents.roomiest()
                if roomy is not None and roomy.open and roomy.sticky and (roomy.lease is None or roomy.lease is lease):
                    cost_s = residents.cost_s(roomy, data)
                    if cost_s < least_s:
                        best, least_s = roomy, cost_s
                        elsewhere_s += roomy.wait_s(now) + roomy.brings_for_s(now)
        return best, elsewhere_s - least_s

    def _promise(self, request: QueuedRequest, device: Device, now: float, until: float) -> None:
        """Have a request wait for a slot of the device that has its data."""
        request.state = PROMISED
        request.runs_on = device.name
        if request.data:
            request.to_bring = self.residents.missing(device, request.data)
            for datum in request.to_bring:  # so that the room for it is not promised twice, and others of its function follow it
                self.residents.add(device, *datum)
        device.occupy(request.charged_s, now)
        heappush(device.promised, (request.tag, request.number, request))
        heappush(self._patience, (until, request.number, request))

    def _start(self, request: QueuedRequest, device: Device, now: float, decisions: MutableSequence[Decision]) -> None:
        """A request gets a slot."""
        if request.state is not QUEUED:
            self.withdraw(request)
        self._occupy(request, device, now)
        group = self._groups[request.group]
        group.started += 1
        placement = Placement.UNSPECIFIED
        if request.data:
            placement = self.residents.bring(device, request.data)
            request.to_bring = () if placement is Placement.RESIDENT else request.data
            if placement is Placement.RESIDENT:
                group.resident += 1
            elif self._sticky and (flow := group.flows.get(None)) is not None:
                flow.claimed = ()  # another device has its data now
                if flow.waiting:
                    self._claim(flow)
        decisions.append(Start(request, device.name, placement))

    def _occupy(self, request: QueuedRequest, device: Device, now: float) -> None:
        """A request takes a slot of a device."""
        request.state = RUNNING
        request.runs_on = device.name
        if request.data:
            device.bring(self.residents.missing_s(device, request.data), now)
        request.started_at = now
        device.running[request] = None
        if not request.in_own_slot:  # which holds up nobody
            device.occupy(request.charged_s, now)
            device.free.take(device)

    def _claim(self, flow: Flow) -> None:
        """Have a flow stand in the queues of the devices that lack least of what its first request needs."""
        data = flow.first().data
        if data != flow.claimed:
            flow.claimed = data
        data = flow.claimed
        residents = self.residents
        least_s = math.inf
        best: list[Device] = []
        for key, key_load_s, _ in residents.rarest_first(data):
            for device in residents.holders(key):
                claimable = device.open and device.sticky and device.lease is None
                cost_s = residents.cost_s(device, data) if claimable else math.inf
                if cost_s < least_s:
                    least_s = cost_s
                    best.clear()
                if cost_s == least_s < math.inf:
                    best.append(device)
            if least_s <= key_load_s:
                break
        for device in best:
            claim = flow.claims.get(device)
            if claim is None or claim.data is not data or claim.cost_s != least_s:
                claim = flow.claims[device] = Claim(flow, data, least_s)
            if claim.entry is None:
                device.claims.list(claim)
        if len(flow.claims) > 4 * MOST_HOLDERS:
            flow.claims = {device: claim for device, claim in flow.claims.items() if claim.entry is not None}
