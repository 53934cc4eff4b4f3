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
from kaasd.scheduling.decisions import Decision, Restart
from kaasd.scheduling.device import Device, Owed, first_in
from kaasd.scheduling.durations import Durations
from kaasd.scheduling.exclusive import Exclusive
from kaasd.scheduling.fair_queue import Flow, GroupState
from kaasd.scheduling.group import DEFAULT_GROUP, Group, GroupUse
from kaasd.scheduling.leases import RESTART_S
from kaasd.scheduling.partition import Partition
from kaasd.scheduling.request import ENDED, NEW, OVERDUE, PROMISED, QUEUED, RUNNING, UNREADY, WAITING, QueuedRequest
from kaasd.scheduling.sharing import Sharing


class Policy(Enum):
    """How groups share devices."""

    BALANCE = "balance"
    """Any group on any device, the least used first, wherever data are."""
    AFFINITY = "affinity"
    """Any group on any device, where its data are unless waiting there takes longer than bringing them elsewhere."""
    STATIC = "static"
    """Devices belong to groups, by a table; what belongs to nobody is shared by the other groups, as by ``AFFINITY``."""
    EXCLUSIVE = "exclusive"
    """Each device belongs to one group at a time, and restarts for the next."""


class Scheduler:
    """Groups, devices, and the requests between them."""

    def __init__(
        self,
        groups: Iterable[Group] = (),
        policy: Policy = Policy.AFFINITY,
        owners: Mapping[str, str] | None = None,
        *,
        policies: Mapping[str, Policy] | None = None,
        restart_s: float = RESTART_S,
    ) -> None:
        """``policies`` are those of devices that have another than ``policy``; ``owners`` are groups by device, where that is
        ``STATIC``; ``restart_s`` is what a restart takes, for ``EXCLUSIVE``.
        """
        self._policy = policy
        self._policies = policies or {}
        self._groups: dict[str, GroupState] = {}
        self._devices: dict[str, Device] = {}
        self._known: dict[str, None] = {}
        """All devices that there have been: those that are lost may return."""
        self._slots = 0
        """Of all devices."""
        self._only: dict[str, dict[GroupState, Flow]] = {}
        """Flows by the only device that they may run on."""
        self._durations = Durations()
        self._patience: Owed = []
        """When requests become overdue; those that are no longer ``PROMISED`` are passed over."""
        self._changed: dict[Partition, None] = {}
        """Partitions that have something to decide."""
        self._numbers = count()
        every = {policy, *self._policies.values()}
        self._sticky = every != {Policy.BALANCE}
        owners = {name: group for name, group in (owners or {}).items() if self._policy_of(name) is Policy.STATIC}
        self._exclusive: Exclusive | None = None
        if Policy.EXCLUSIVE in every:
            self._exclusive = Exclusive(self._partition, owners, self._is_exclusive, restart_s)
        self._sharing = self._exclusive or Sharing(self._partition, owners)
        self._lone: Partition | None = None
        """That of all groups, where they share all devices."""
        if every <= {Policy.BALANCE, Policy.AFFINITY}:
            self._lone = self._sharing.partition_of(DEFAULT_GROUP)
        for group in (Group(DEFAULT_GROUP), *groups):
            self.set_group(group)

    # Groups

    def set_group(self, group: Group) -> None:
        """Make a group, or change what it is granted."""
        state = self._groups.get(group.name)
        if state is None:
            state = self._groups[group.name] = GroupState(group)
        state.removed = False
        state.grant(group)
        self._sharing.set_group(state)
        self._partition_of(state).set_reserves(state, group.reserves)
        self._list_all(state)

    def remove_group(self, name: str) -> None:
        """Take no more requests of a group; it is forgotten with its last one. Raises ``GroupNotFoundError``."""
        state = self._group(name)
        state.removed = True
        self._check_idle(state)

    def groups(self) -> list[Group]:
        """Return what every group is granted."""
        return [state.granted for state in self._groups.values() if not state.removed]

    def leaving(self) -> list[str]:
        """Return the groups that were removed and have requests still."""
        return [name for name, state in self._groups.items() if state.removed]

    def granted(self, group: str) -> Group | None:
        """Return what a group is granted; None for one that there is not."""
        state = self._groups.get(group)
        return None if state is None else state.granted

    def use(self, group: str) -> GroupUse:
        """Return what a group uses, also one that is ``leaving``. Raises ``GroupNotFoundError``."""
        state = self._groups.get(group)
        return self._group(group).use if state is None else state.use

    # Times

    def expected_s(self, request: QueuedRequest) -> float:
        """Return the device time that a request of a known group is likely to take."""
        if request.expected_s is not None:
            return request.expected_s
        return self._durations.expected_s(self._groups[request.group] if request.function is None else request.function)

    def least_s(self, request: QueuedRequest) -> float:
        """Return the device time that a request with a function takes at least, by those before, or little more; 0: not known."""
        return self._durations.least_s(request.function)

    def least_wait_s(self, request: QueuedRequest) -> float:
        """Return how long a request of a known group would wait at least, were it submitted now, and run.

        That is what its sender has waiting already, on all slots that there are. A guess all the same: what those requests took
        before, or what this one did, may have been by bad luck. Tell ``doubt`` where it was believed.
        """
        state = self._groups[request.group]
        flow = state.flows.get(request.device)
        ahead_s = 0.0 if flow is None else flow.ahead_s(request.sender)
        own_s = self._durations.least_s(state if request.function is None else request.function)
        return own_s if not ahead_s else own_s + ahead_s / max(1, self._slots)

    def doubt(self, request: QueuedRequest) -> None:
        """A request was not submitted because of ``least_wait_s``: the next of its function is likelier to be."""
        self._durations.doubt(self._groups[request.group] if request.function is None else request.function)

    def expected_of(self, most: int) -> dict[Hashable, float]:
        """Return the device times expected of the functions that were new last, at most so many."""
        return self._durations.latest(most)

    def short_ones(self, most: int, below_s: float) -> set[Hashable]:
        """Return those of the functions that were new last, at most so many, whose requests take less device time at least."""
        return self._durations.latest_below(most, below_s)

    # Devices

    def add_device(self, name: str, slots: int = 1, memory_bytes: float = math.inf, *, divides: bool = False) -> None:
        """A device is there, or there again: nothing is on it, and it runs nothing.

        Where it ``divides``, each group that reserves a part of it has a slot there besides, for one request.
        """
        if name in self._devices:
            raise ValueError(f"there is a device {name} already")
        self._known[name] = None
        device = self._devices[name] = Device(
            name, slots, memory_bytes, sticky=self._policy_of(name) is not Policy.BALANCE, divides=divides
        )
        self._slots += slots
        self._sharing.add(device)
        self._look_at(device)
        for flow in self._only.get(name, {}).values():
            self._list(flow)

    def remove_device(self, name: str) -> list[QueuedRequest]:
        """A device is lost. Return what it ran: each is to be given to ``run_again`` or ``finished``. Idempotent.

        What was promised the device waits for any; what may run only there waits for its return.
        """
        device = self._devices.pop(name, None)
        if device is None:
            if self._exclusive is not None:
                self._exclusive.abandon(name)
            return []
        self._slots -= device.slots
        self._put_back(self._sharing.close(device))
        self._sharing.remove(device)
        for flow in self._only.get(name, {}).values():
            flow.entry = None
        return list(device.running)

    def close_device(self, name: str) -> None:
        """Start nothing more on a device; what it runs goes on. Idempotent."""
        self._put_back(self._sharing.close(self._devices[name]))

    def open_device(self, name: str) -> None:
        """Undo ``close_device``. Idempotent."""
        device = self._devices[name]
        self._sharing.open(device)
        self._look_at(device)

    def holds(self, device: str, key: Hashable) -> None:
        """Data are on a device. What requests bring there is noted without this."""
        if (partition := self._sharing.partition_at(device)) is not None:
            partition.residents.add(self._devices[device], key)

    def dropped(self, device: str, key: Hashable, *, is_full: bool = True) -> None:
        """A device has dropped data, since it ``is_full`` and needed the room, or for a group's own limit. Idempotent.

        Of what a request there needs that was before it: it brings them again.
        """
        if (partition := self._sharing.partition_at(device)) is not None:
            partition.dropped(self._devices[device], key, is_full=is_full)

    # Requests

    def submit(self, request: QueuedRequest, *, ready: bool = True) -> None:
        """Take a request. One that is not ``ready`` waits for an argument.

        Raises ``GroupNotFoundError``; ``GroupLimitError`` where too much of its group is waiting; ``InvalidRequestError`` for a
        device that there never was.
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

    def start_at_once(self, request: QueuedRequest, now: float) -> str | None:
        """Start a request and return its device, as ``submit`` and ``decide`` would, where no request waits at all.

        Return None, and change nothing, where that takes a look at more than its group and the least used device.
        """
        partition, state = self._lone, self._groups.get(request.group)
        if partition is None or not partition.has_slot or request.data or request.device is not None:
            return None
        if state is None or state.removed or not state.may_run or state.granted.reserves:
            return None
        if state.granted.max_queued_bytes and request.size_bytes > state.granted.max_queued_bytes:
            return None
        request.number = next(self._numbers)
        return partition.start_at_once(request, state, self.expected_s(request), now)

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
            self._back(request, state, 0.0)
        else:
            state.leave(request.size_bytes)
            if was is QUEUED:
                state.flows[request.device].discarded(request)
                state.waiting -= 1
                if self._exclusive is not None:
                    self._exclusive.touched[state] = None
        self._check_idle(state)
        return True

    def finished(self, request: QueuedRequest, now: float, device_s: float | None = None, *, succeeded: bool = True) -> None:
        """A request is done, well or not, and used that much device time. None: from its start until now.

        What is expected of the next of its function is learnt from those that ``succeeded``.
        """
        if request.state is not RUNNING:
            raise ValueError(f"a request that is {request.state.value} cannot finish")
        state = self._groups[request.group]
        if device_s is None:
            device_s = now - request.started_at
        self._vacate(request, state, now, device_s)
        if succeeded:
            self._durations.learn(state if request.function is None else request.function, device_s)
        request.state = ENDED
        self._back(request, state, device_s)
        self._check_idle(state)

    def leave_slot(self, request: QueuedRequest, now: float) -> None:
        """A request that runs needs its slot no more, or not for now, and goes on all the same. Idempotent."""
        if request.state is RUNNING:
            self._vacate(request, self._groups[request.group], now, 0.0)

    @property
    def has_slot(self) -> bool:
        """Whether a device that takes requests of all groups has a slot."""
        return self._sharing.has_slot

    @property
    def decides_idly(self) -> bool:
        """Whether ``decide`` may have something to say though no request waits."""
        return self._exclusive is not None

    @property
    def may_start(self) -> bool:
        """Whether ``decide`` may have something to say after ``submit``. Where no device has a slot it has not."""
        return self._sharing.may_start

    def run_again(self, request: QueuedRequest, now: float, device_s: float = 0.0) -> None:
        """A request that runs, or ran on a device that was lost, is to run again; ``device_s`` counts as its group's."""
        if request.state is not RUNNING:
            raise ValueError(f"a request that is {request.state.value} cannot run again")
        state = self._groups[request.group]
        self._vacate(request, state, now, device_s)
        self._back(request, state, device_s)
        self._wait(request)

    # Decisions

    def decide(self, now: float) -> list[Decision]:
        """Return what is to be done, in this order."""
        while self._patience and self._overdue_at <= now:
            request = heappop(self._patience)[2]
            partition = self._partition_of(self._groups[request.group])
            partition.overdue(request)
            self._changed[partition] = None
        decisions: list[Decision] = []
        for partition in self._changed:
            partition.decide(now, decisions)
        if self._exclusive is not None:
            self._settle(self._exclusive, now, decisions)
        self._changed.clear()
        return decisions

    def _settle(self, exclusive: Exclusive, now: float, decisions: list[Decision]) -> None:
        """See to whose the devices are, until that changes nothing any more."""
        while True:
            again, promised = exclusive.settle(now, decisions)
            self._changed.clear()
            self._put_back(promised)
            if again is not None:
                self._changed[again] = None
            if not self._changed:
                break
            for partition in self._changed:
                partition.decide(now, decisions)
        for decision in decisions:
            if isinstance(decision, Restart):
                self._slots -= self._devices.pop(decision.device).slots

    @property
    def wakes_at(self) -> float:
        """When ``decide`` is to be called though nothing has happened; infinity, for never."""
        return self._overdue_at if self._exclusive is None else min(self._overdue_at, self._exclusive.wakes_at)

    @property
    def _overdue_at(self) -> float:
        return math.inf if first_in(self._patience, PROMISED) is None else self._patience[0][0]

    # Parts of events

    def _group(self, name: str) -> GroupState:
        state = self._groups.get(name)
        if state is None or state.removed:
            raise GroupNotFoundError(f"there is no group {name!r}", {"group": name})
        return state

    def _check_device(self, name: str, state: GroupState) -> None:
        if name not in self._known:
            known = ", ".join(self._known) or "none"
            raise InvalidRequestError.at("device", f"there is no device {name!r}; there are: {known}")
        if not self._sharing.may_name(state.granted.name, name):
            why = "belongs to one group at a time" if self._is_exclusive(name) else "is for others"
            raise InvalidRequestError.at("device", f"group {state.granted.name} cannot ask for {name}: that device {why}")

    def _policy_of(self, device: str) -> Policy:
        return self._policies.get(device, self._policy)

    def _is_exclusive(self, device: str) -> bool:
        return self._policy_of(device) is Policy.EXCLUSIVE

    def _partition(self) -> Partition:
        return Partition(self._groups, self._durations, self._patience, sticky=self._sticky)

    def _partition_of(self, state: GroupState) -> Partition:
        return self._sharing.partition_of(state.granted.name)

    def _look_at(self, device: Device) -> None:
        if (partition := self._sharing.partition_at(device.name)) is not None:
            self._changed[partition] = None

    def _enqueue(self, request: QueuedRequest, state: GroupState) -> None:
        """A request may run as soon as there is a slot."""
        only = request.device
        flow = state.flows.get(only)
        if flow is None:
            flow = state.flows[only] = Flow(state, only)
            if only is not None:
                self._only.setdefault(only, {})[state] = flow
        state.waiting += 1
        if self._exclusive is not None:
            self._exclusive.touched[state] = None
        request.least_s = self._durations.least_s(state if request.function is None else request.function)
        if flow.push(request) or flow.entry is None:
            self._list(flow)

    def _wait(self, request: QueuedRequest) -> None:
        """A request that had left the queue waits there again; its group's limits do not matter."""
        state = self._groups[request.group]
        state.queued += 1
        state.queued_bytes += request.size_bytes
        request.runs_on = ""
        request.in_own_slot = False
        request.left_before = True
        self._enqueue(request, state)

    def _put_back(self, requests: Iterable[QueuedRequest]) -> None:
        """Requests that were promised a device do not run there."""
        for request in requests:
            self._back(request, self._groups[request.group], 0.0)
            self._wait(request)

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

    def _back(self, request: QueuedRequest, state: GroupState, device_s: float) -> None:
        """A request is no longer with a device, nor is it promised one."""
        state.back(request, device_s)
        if self._exclusive is not None:
            self._exclusive.used(request, device_s)
            self._exclusive.touched[state] = None
        flow = state.flows.get(request.device)
        if flow is not None and flow.entry is not None and flow.entry[0] > state.tag:
            self._partition_of(state).move(flow)
        if state.granted.max_running:
            self._list_all(state)

    def _vacate(self, request: QueuedRequest, state: GroupState, now: float, device_s: float) -> None:
        """A request no longer runs, and has used so much of its device."""
        device = self._devices.get(request.runs_on)
        if device is not None and request in device.running:
            partition = self._partition_of(state)
            partition.vacate(request, device, now, device_s)
            self._changed[partition] = None
            if self._exclusive is not None:
                self._exclusive.vacated(device)

    def _check_idle(self, state: GroupState) -> None:
        if not state.running and not state.waiting:
            state.idle(self._partition_of(state).virtual_time)
            if state.removed and not state.queued:
                self._partition_of(state).set_reserves(state, False)
                del self._groups[state.granted.name]
                self._sharing.remove_group(state.granted.name)
                for only in state.flows:
                    if only is not None:
                        del self._only[only][state]
