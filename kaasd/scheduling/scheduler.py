"""Which request runs next, and where: events in, decisions out, no I/O, no clock.

Every method that changes something is an event, but ``decide``. What happens at one moment is told first, then ``decide`` is
called, so that a request which comes when a slot is freed is considered for it. ``now`` is in seconds, of any clock that does not
go back.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from enum import Enum
from heapq import heappop, heappush
from itertools import count

from kaas_core.errors import GroupNotFoundError, InvalidRequestError
from kaasd.scheduling.decisions import Decision, Start
from kaasd.scheduling.durations import Durations
from kaasd.scheduling.fair_queue import Flow, GroupState
from kaasd.scheduling.group import DEFAULT_GROUP, Group, GroupUse
from kaasd.scheduling.partition import Device, Partition
from kaasd.scheduling.placement import Placement
from kaasd.scheduling.request import WAITING, QueuedRequest, State


class Policy(Enum):
    """How groups share devices."""

    BALANCE = "balance"
    """Any group on any device, the least used first, wherever data are."""
    AFFINITY = "affinity"
    """Any group on any device, where its data are unless waiting there takes longer than bringing them elsewhere."""
    STATIC = "static"
    """Devices belong to groups, by a table; what belongs to nobody is shared by the other groups, as by ``AFFINITY``."""


class Scheduler:
    """Groups, devices, and the requests between them."""

    def __init__(
        self, groups: Iterable[Group] = (), policy: Policy = Policy.AFFINITY, owners: Mapping[str, str] | None = None
    ) -> None:
        """``owners`` are groups by device, for ``Policy.STATIC``."""
        self._owners = dict(owners or {})
        self._shared = Partition(sticky=policy is not Policy.BALANCE)
        self._own = {group: Partition(sticky=True) for group in self._owners.values()} if policy is Policy.STATIC else {}
        self._groups: dict[str, GroupState] = {}
        self._devices: dict[str, Device] = {}
        self._durations = Durations()
        self._changed: dict[Partition, None] = {}
        self._patience: list[tuple[float, int, QueuedRequest]] = []
        """When requests stop waiting for a device that has their data; those that are no longer ``PROMISED`` are passed over."""
        self._numbers = count()
        for group in (Group(DEFAULT_GROUP), *groups):
            self.set_group(group)

    # Groups

    def set_group(self, group: Group) -> None:
        """Make a group, or change what it is granted."""
        state = self._groups.get(group.name)
        if state is None:
            self._groups[group.name] = GroupState(group)
        else:
            state.removed = False
            state.grant(group)
            self._relist(state)

    def remove_group(self, name: str) -> None:
        """Take no more requests of a group; it is forgotten with its last one. Raises ``GroupNotFoundError``."""
        state = self._group(name)
        state.removed = True
        self._check_idle(state)

    def groups(self) -> list[Group]:
        """Return what every group is granted."""
        return [state.granted for state in self._groups.values() if not state.removed]

    def use(self, group: str) -> GroupUse:
        """Return what a group uses. Raises ``GroupNotFoundError``."""
        return self._group(group).use

    # Devices

    def add_device(self, name: str, slots: int = 1) -> None:
        """A device is there, or there again: nothing is on it, and it runs nothing."""
        if name in self._devices:
            raise ValueError(f"there is a device {name} already")
        partition = self._own.get(self._owners.get(name, ""), self._shared)
        device = self._devices[name] = Device(name, slots, partition)
        partition.list(device)
        self._attend(device)
        for state in self._groups.values():
            if name in state.flows:
                self._list(state, state.flows[name], name)

    def remove_device(self, name: str) -> list[QueuedRequest]:
        """A device is lost. Return what it ran: each is to be given to ``run_again`` or ``finished``.

        What was promised the device waits for any; what may run only there waits for its return.
        """
        device = self._devices[name]
        self.close_device(name)
        partition = device.partition
        partition.residents.forget(device)
        partition.attention.pop(device, None)
        del self._devices[name]
        for state in self._groups.values():
            if name in state.flows:
                state.flows[name].entry = None
        return list(device.running)

    def close_device(self, name: str) -> None:
        """Start nothing more on a device; what it runs goes on. Idempotent."""
        device = self._devices[name]
        if not device.open:
            return
        if device.used < device.slots:
            device.partition.unlist(device)
        device.open = False
        while (request := device.first_promised()) is not None:
            self._withdraw(request)
            self._refund(request)
            self._wait(request)

    def open_device(self, name: str) -> None:
        """Undo ``close_device``. Idempotent."""
        device = self._devices[name]
        if not device.open:
            device.open = True
            if device.used < device.slots:
                device.partition.list(device)
            self._attend(device)

    def holds(self, device: str, key: Hashable) -> None:
        """Data are on a device. What requests bring there is noted without this."""
        found = self._devices[device]
        found.partition.residents.add(found, key)

    def dropped(self, device: str, key: Hashable) -> None:
        """Data are no longer on a device. Idempotent."""
        if (found := self._devices.get(device)) is not None:
            found.partition.residents.drop(found, key)

    # Requests

    def submit(self, request: QueuedRequest, *, ready: bool = True) -> None:
        """Take a request. One that is not ``ready`` waits for an argument.

        Raises ``GroupNotFoundError``; ``GroupLimitError`` where too much of its group is waiting; ``InvalidRequestError`` for a
        device that there is not.
        """
        if request.state is not State.NEW:
            raise ValueError("a request is submitted once")
        state = self._group(request.group)
        if request.device is not None:
            self._check_device(request.device, state)
        state.admit(request.size_bytes)
        request.number = next(self._numbers)
        if ready:
            self._enqueue(request, state)
        else:
            request.state = State.UNREADY

    def ready(self, request: QueuedRequest) -> None:
        """The arguments of a request are there. Ignored where it does not wait for them."""
        if request.state is State.UNREADY:
            self._enqueue(request, self._groups[request.group])

    def cancel(self, request: QueuedRequest) -> bool:
        """Forget a request. Return False where it is with a device, or has ended: then nothing changes."""
        if request.state not in WAITING:
            return False
        was, request.state = request.state, State.ENDED
        state = self._groups[request.group]
        if was is State.PROMISED or was is State.OVERDUE:
            if was is State.PROMISED:
                self._withdraw(request)
            self._refund(request)
        else:
            state.leave(request.size_bytes)
            if was is State.QUEUED:
                state.flows[request.device].discarded()
                state.waiting -= 1
        self._check_idle(state)
        return True

    def finished(self, request: QueuedRequest, now: float, device_s: float | None = None) -> None:
        """A request is done, well or not, and used that much device time. None: from its start until now."""
        if request.state is not State.RUNNING:
            raise ValueError(f"a request that is {request.state.value} cannot finish")
        occupied_s = self._vacate(request, now)
        if device_s is None:
            device_s = occupied_s
        state = self._groups[request.group]
        self._durations.learn(state if request.function is None else request.function, device_s)
        state.used(device_s, request.charged_s)
        if device_s < request.charged_s and (flow := state.flows.get(request.device)) is not None and flow.entry is not None:
            self._requeue(flow, request.device)
        request.state = State.ENDED
        self._relist(state)
        self._check_idle(state)

    def run_again(self, request: QueuedRequest, now: float, device_s: float = 0.0) -> None:
        """A request that runs, or ran on a device that was lost, is to run again; ``device_s`` counts as its group's."""
        if request.state is not State.RUNNING:
            raise ValueError(f"a request that is {request.state.value} cannot run again")
        self._vacate(request, now)
        state = self._groups[request.group]
        state.used(device_s, request.charged_s)
        self._wait(request)
        self._relist(state)

    # Decisions

    def decide(self, now: float) -> list[Decision]:
        """Return what is to be done, in this order."""
        patience = self._patience
        while patience and (patience[0][0] <= now or patience[0][2].state is not State.PROMISED):
            request = heappop(patience)[2]
            if request.state is State.PROMISED:
                request.state = State.OVERDUE
                partition = self._withdraw(request)
                heappush(partition.overdue, (request.tag, request.number, request))
                self._changed[partition] = None
        decisions: list[Decision] = []
        for partition in self._changed:
            self._fill(partition, now, decisions)
        self._changed.clear()
        return decisions

    @property
    def wakes_at(self) -> float:
        """When ``decide`` is to be called though nothing has happened; infinity, for never."""
        patience = self._patience
        while patience and patience[0][2].state is not State.PROMISED:
            heappop(patience)
        return patience[0][0] if patience else math.inf

    def _fill(self, partition: Partition, now: float, decisions: list[Decision]) -> None:
        """Give out the slots of a partition."""
        while partition.free:
            own = partition.own_work()
            shared = partition.shared_work()
            if own is not None and (shared is None or _tag(own[1]) <= _tag(shared)):
                device, work = own
                request = self._leave_queue(work) if isinstance(work, Flow) else work
                load_s = partition.residents.missing_s(device, request.data)
                self._start(request, device, load_s, now, decisions)
            elif isinstance(shared, Flow):
                request = self._leave_queue(shared)
                device, load_s, elsewhere_s = partition.choose(request, now)
                if device.used < device.slots:
                    self._start(request, device, load_s, now, decisions)
                else:
                    self._promise(request, device, load_s, now, now + elsewhere_s - load_s)
            elif shared is not None:
                device, load_s, _ = partition.choose(shared, now, must_be_free=True)
                self._start(shared, device, load_s, now, decisions)
            else:
                break
        partition.attention.clear()

    def _leave_queue(self, flow: Flow) -> QueuedRequest:
        """Take a flow's first request, and charge its group."""
        request = flow.pop()
        state = flow.group
        state.leave(request.size_bytes)
        state.waiting -= 1
        state.running += 1
        request.tag = state.tag
        expected_s = request.expected_s
        if expected_s is None:
            expected_s = self._durations.expected_s(state if request.function is None else request.function)
        request.charged_s = expected_s
        state.charge(expected_s)
        return request

    def _promise(self, request: QueuedRequest, device: Device, load_s: float, now: float, until: float) -> None:
        """Have a request wait for a slot of the device that has its data."""
        request.state = State.PROMISED
        request.runs_on = device.name
        request.planned_s = request.charged_s + load_s
        device.occupy(request.planned_s, now)
        heappush(device.promised, (request.tag, request.number, request))
        heappush(self._patience, (until, request.number, request))

    def _start(self, request: QueuedRequest, device: Device, load_s: float, now: float, decisions: list[Decision]) -> None:
        partition = device.partition
        planned_s = request.charged_s + load_s
        if request.state is State.PROMISED:
            device.corrected(planned_s - request.planned_s)
        else:
            device.occupy(planned_s, now)
        state = self._groups[request.group]
        state.started += 1
        placement = Placement.UNSPECIFIED
        residents = partition.residents
        if request.data:
            placement = residents.placement(device, request.data)
            state.resident += placement is Placement.RESIDENT
            for datum in request.data:
                residents.add(device, datum.key)
        request.state = State.RUNNING
        request.runs_on = device.name
        request.planned_s = planned_s
        request.started_at = now
        device.running[request] = None
        partition.take_slot(device)
        if request.tag > partition.virtual_time:
            partition.virtual_time = request.tag
        decisions.append(Start(request, device.name, placement))

    # Parts of events

    def _group(self, name: str) -> GroupState:
        state = self._groups.get(name)
        if state is None or state.removed:
            raise GroupNotFoundError(f"there is no group {name!r}", {"group": name})
        return state

    def _check_device(self, name: str, state: GroupState) -> None:
        device = self._devices.get(name)
        if device is None:
            known = ", ".join(self._devices) or "none"
            raise InvalidRequestError.at("device", f"there is no device {name!r}; there are: {known}")
        if device.partition is not self._partition_of(state):
            raise InvalidRequestError.at("device", f"{name} belongs to another group")

    def _enqueue(self, request: QueuedRequest, state: GroupState) -> None:
        """A request may run as soon as there is a slot."""
        flow = state.flows.get(request.device)
        if flow is None:
            flow = state.flows[request.device] = Flow(state)
        flow.push(request)
        state.waiting += 1
        self._list(state, flow, request.device)

    def _wait(self, request: QueuedRequest) -> None:
        """A request that had left the queue waits there again; its group's limits do not matter."""
        state = self._groups[request.group]
        state.queued += 1
        state.queued_bytes += request.size_bytes
        request.runs_on = ""
        self._enqueue(request, state)

    def _list(self, state: GroupState, flow: Flow, only: str | None) -> None:
        """Let a flow wait for slots, if it does not and may."""
        if flow.entry is None and flow.live and state.may_run and (only is None or only in self._devices):
            state.enter(self._partition_of(state).virtual_time)
            self._requeue(flow, only)

    def _requeue(self, flow: Flow, only: str | None) -> None:
        """Give a flow its place by its group's virtual time."""
        if only is None:
            partition = self._partition_of(flow.group)
            partition.queue.list(flow)
            self._changed[partition] = None
        else:
            device = self._devices[only]
            device.only_here.list(flow)
            self._attend(device)

    def _relist(self, state: GroupState) -> None:
        """A group may have come below its limit of running requests."""
        if state.granted.max_running:
            for only, flow in state.flows.items():
                self._list(state, flow, only)

    def _partition_of(self, state: GroupState) -> Partition:
        return self._own.get(state.granted.name, self._shared)

    def _attend(self, device: Device) -> None:
        device.partition.attention[device] = None
        self._changed[device.partition] = None

    def _withdraw(self, request: QueuedRequest) -> Partition:
        """The device that a request was promised need not keep a slot for it."""
        device = self._devices[request.runs_on]
        device.corrected(-request.planned_s)
        request.runs_on = ""
        return device.partition

    def _refund(self, request: QueuedRequest) -> None:
        """A request that had left the queue does not run after all."""
        state = self._groups[request.group]
        state.running -= 1
        state.charge(-request.charged_s)
        self._relist(state)

    def _vacate(self, request: QueuedRequest, now: float) -> float:
        """A request no longer runs. Return for how long it has."""
        occupied_s = now - request.started_at
        device = self._devices.get(request.runs_on)
        if device is not None and request in device.running:
            del device.running[request]
            device.partition.free_slot(device)
            device.corrected(occupied_s - request.planned_s)
            if not device.used and device.first_promised() is None:
                device.free_at = now
            self._changed[device.partition] = None
        self._groups[request.group].running -= 1
        return occupied_s

    def _check_idle(self, state: GroupState) -> None:
        if not state.running and not state.waiting:
            state.idle(self._partition_of(state).virtual_time)
        if state.removed and not state.queued and not state.running:
            del self._groups[state.granted.name]


def _tag(work: QueuedRequest | Flow) -> float:
    return work.group.tag if isinstance(work, Flow) else work.tag
