"""Which request runs next, and where: events in, decisions out, no I/O, no clock.

Every method that changes something is an event, but ``decide``. What happens at one moment is told first, then ``decide`` is
called, so that a request which comes when a slot is freed is considered for it. ``now`` is in seconds, of any clock that does not
go back.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from enum import Enum
from heapq import heappop
from itertools import count

from kaas_core.errors import GroupNotFoundError, InvalidRequestError
from kaasd.scheduling.decisions import Decision
from kaasd.scheduling.device import Device, Owed, first_in
from kaasd.scheduling.durations import Durations
from kaasd.scheduling.fair_queue import Flow, GroupState
from kaasd.scheduling.group import DEFAULT_GROUP, Group, GroupUse
from kaasd.scheduling.partition import Partition
from kaasd.scheduling.request import ENDED, NEW, OVERDUE, PROMISED, QUEUED, RUNNING, UNREADY, WAITING, QueuedRequest


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
        self._groups: dict[str, GroupState] = {}
        self._devices: dict[str, Device] = {}
        self._only: dict[str, dict[GroupState, Flow]] = {}
        """Flows by the only device that they may run on."""
        self._durations = Durations()
        self._patience: Owed = []
        """When requests become overdue; those that are no longer ``PROMISED`` are passed over."""
        self._owners = dict(owners or {}) if policy is Policy.STATIC else {}
        self._shared = self._partition(sticky=policy is not Policy.BALANCE)
        self._own = {group: self._partition(sticky=True) for group in self._owners.values()}
        self._changed: dict[Partition, None] = {}
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
            self._list_all(state)

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
        device = self._devices[name] = Device(name, slots)
        partition = self._partition_at(name)
        partition.add(device)
        self._changed[partition] = None
        for flow in self._only.get(name, {}).values():
            self._list(flow)

    def remove_device(self, name: str) -> list[QueuedRequest]:
        """A device is lost. Return what it ran: each is to be given to ``run_again`` or ``finished``.

        What was promised the device waits for any; what may run only there waits for its return.
        """
        self.close_device(name)
        device = self._devices.pop(name)
        self._partition_at(name).remove(device)
        for flow in self._only.get(name, {}).values():
            flow.entry = None
        return list(device.running)

    def close_device(self, name: str) -> None:
        """Start nothing more on a device; what it runs goes on. Idempotent."""
        device = self._devices[name]
        if device.open:
            for request in self._partition_at(name).close(device):
                self._refund(request)
                self._wait(request)

    def open_device(self, name: str) -> None:
        """Undo ``close_device``. Idempotent."""
        device = self._devices[name]
        if not device.open:
            partition = self._partition_at(name)
            partition.open(device)
            self._changed[partition] = None

    def holds(self, device: str, key: Hashable) -> None:
        """Data are on a device. What requests bring there is noted without this."""
        self._partition_at(device).residents.add(self._devices[device], key)

    def dropped(self, device: str, key: Hashable) -> None:
        """Data are no longer on a device. Idempotent."""
        if (found := self._devices.get(device)) is not None:
            self._partition_at(device).residents.drop(found, key)

    # Requests

    def submit(self, request: QueuedRequest, *, ready: bool = True) -> None:
        """Take a request. One that is not ``ready`` waits for an argument.

        Raises ``GroupNotFoundError``; ``GroupLimitError`` where too much of its group is waiting; ``InvalidRequestError`` for a
        device that there is not.
        """
        if request.state is not NEW:
            raise ValueError("a request is submitted once")
        state = self._group(request.group)
        if request.device is not None:
            self._check_device(request.device, state)
        state.admit(request.size_bytes)
        request.number = next(self._numbers)
        if ready:
            self._enqueue(request, state)
        else:
            request.state = UNREADY

    def ready(self, request: QueuedRequest) -> None:
        """The arguments of a request are there. Ignored where it does not wait for them."""
        if request.state is UNREADY:
            self._enqueue(request, self._groups[request.group])

    def cancel(self, request: QueuedRequest) -> bool:
        """Forget a request. Return False where it is with a device, or has ended: then nothing changes."""
        if request.state not in WAITING:
            return False
        state = self._groups[request.group]
        was, request.state = request.state, ENDED
        if was is PROMISED or was is OVERDUE:
            self._partition_of(state).withdraw(request)
            self._refund(request)
        else:
            state.leave(request.size_bytes)
            if was is QUEUED:
                state.flows[request.device].discarded()
                state.waiting -= 1
        self._check_idle(state)
        return True

    def finished(self, request: QueuedRequest, now: float, device_s: float | None = None) -> None:
        """A request is done, well or not, and used that much device time. None: from its start until now."""
        if request.state is not RUNNING:
            raise ValueError(f"a request that is {request.state.value} cannot finish")
        occupied_s = self._vacate(request, now)
        if device_s is None:
            device_s = occupied_s
        state = self._groups[request.group]
        self._durations.learn(state if request.function is None else request.function, device_s)
        state.used(device_s, request.charged_s)
        self._moved(state, request)
        request.state = ENDED
        self._check_idle(state)

    def run_again(self, request: QueuedRequest, now: float, device_s: float = 0.0) -> None:
        """A request that runs, or ran on a device that was lost, is to run again; ``device_s`` counts as its group's."""
        if request.state is not RUNNING:
            raise ValueError(f"a request that is {request.state.value} cannot run again")
        self._vacate(request, now)
        state = self._groups[request.group]
        state.used(device_s, request.charged_s)
        self._moved(state, request)
        self._wait(request)

    # Decisions

    def decide(self, now: float) -> list[Decision]:
        """Return what is to be done, in this order."""
        while self.wakes_at <= now:
            request = heappop(self._patience)[2]
            partition = self._partition_of(self._groups[request.group])
            partition.overdue(request)
            self._changed[partition] = None
        decisions: list[Decision] = []
        for partition in self._changed:
            partition.decide(now, decisions)
        self._changed.clear()
        return decisions

    @property
    def wakes_at(self) -> float:
        """When ``decide`` is to be called though nothing has happened; infinity, for never."""
        return math.inf if first_in(self._patience, PROMISED) is None else self._patience[0][0]

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
        if self._partition_at(name) is not self._partition_of(state):
            raise InvalidRequestError.at("device", f"{name} belongs to another group")

    def _partition(self, *, sticky: bool) -> Partition:
        return Partition(self._groups, self._durations, self._patience, sticky=sticky)

    def _partition_of(self, state: GroupState) -> Partition:
        """Return the devices that a group may use."""
        return self._own.get(state.granted.name, self._shared) if self._own else self._shared

    def _partition_at(self, device: str) -> Partition:
        """Return the devices of which this is one."""
        return self._own[self._owners[device]] if device in self._owners else self._shared

    def _enqueue(self, request: QueuedRequest, state: GroupState) -> None:
        """A request may run as soon as there is a slot."""
        only = request.device
        flow = state.flows.get(only)
        if flow is None:
            flow = state.flows[only] = Flow(state, only)
            if only is not None:
                self._only.setdefault(only, {})[state] = flow
        flow.push(request)
        state.waiting += 1
        if flow.entry is None or flow.first() is request:
            self._list(flow)

    def _wait(self, request: QueuedRequest) -> None:
        """A request that had left the queue waits there again; its group's limits do not matter."""
        state = self._groups[request.group]
        state.queued += 1
        state.queued_bytes += request.size_bytes
        request.runs_on = ""
        self._enqueue(request, state)

    def _list(self, flow: Flow) -> None:
        """Let a flow wait for slots, if it has something that may run."""
        if flow.waiting and flow.group.may_run and (flow.only is None or flow.only in self._devices):
            partition = self._partition_of(flow.group)
            partition.list(flow)
            self._changed[partition] = None

    def _list_all(self, state: GroupState) -> None:
        """A group may have come below its limit of requests at devices."""
        for flow in state.flows.values():
            self._list(flow)

    def _moved(self, state: GroupState, request: QueuedRequest) -> None:
        """A group has another virtual time because of a request, and one fewer at devices."""
        flow = state.flows[request.device]
        if flow.entry is not None and flow.entry[0] > state.tag:
            self._partition_of(state).move(flow)
        if state.granted.max_running:
            self._list_all(state)

    def _refund(self, request: QueuedRequest) -> None:
        """A request that was promised a device does not run there after all."""
        state = self._groups[request.group]
        state.running -= 1
        state.charge(-request.charged_s)
        self._moved(state, request)

    def _vacate(self, request: QueuedRequest, now: float) -> float:
        """A request no longer runs. Return for how long it has."""
        state = self._groups[request.group]
        state.running -= 1
        device = self._devices.get(request.runs_on)
        if device is not None and request in device.running:
            partition = self._partition_of(state)
            partition.vacate(request, device, now)
            self._changed[partition] = None
        return now - request.started_at

    def _check_idle(self, state: GroupState) -> None:
        if not state.running and not state.waiting:
            state.idle(self._partition_of(state).virtual_time)
            if state.removed and not state.queued:
                del self._groups[state.granted.name]
                for only in state.flows:
                    if only is not None:
                        del self._only[only][state]
