"""Devices that belong to one group at a time: to whom each is given, and when another gets its turn.

A device comes to its next group as new: it is restarted, which takes seconds. So a group keeps it for a while: until another is
behind it by more than a quantum of device time, or it has had nothing to run for as long as a restart takes.

Events in, decisions out, no I/O, no clock. Requests are not its concern, so that it also serves who only hands out devices.
"""

from __future__ import annotations

import math

from kaasd.scheduling.decisions import Close, Give, LeaseDecision, Restart
from kaasd.scheduling.ranking import Ranking

RESTART_S = 2.0
"""What a restart takes if nobody says otherwise: that of an executor with its process and its context on a GPU."""
QUANTUM_RESTARTS = 10
"""A quantum, in restarts: where groups take turns, at most one in ten seconds of a device goes to restarts."""


class _Tenant:
    """A group."""

    __slots__ = ("coming", "devices", "name", "share", "tag", "waiting")

    def __init__(self, name: str, share: float) -> None:
        self.name = name
        self.share = share
        self.tag = 0.0
        """Its virtual time: the device time that it has used, over its share."""
        self.waiting = 0
        """Requests for which its devices have no slot."""
        self.devices: dict[_Device, None] = {}
        """What it has, the oldest first."""
        self.coming = 0
        """Devices that it gets as soon as they are idle and restarted."""


class _Device:
    """A device."""

    __slots__ = ("name", "next", "owner")

    def __init__(self, name: str) -> None:
        self.name = name
        self.owner: _Tenant | None = None
        """Whose it is; None where it is nobody's, or restarts."""
        self.next: _Tenant | None = None
        """Whose it will be, once it is idle and restarted."""


class Leases:
    """Devices, and the groups that want them."""

    def __init__(self, restart_s: float = RESTART_S) -> None:
        """``restart_s``: what giving a device to another group takes."""
        self._restart_s = restart_s
        self._quantum_s = QUANTUM_RESTARTS * restart_s
        self._virtual_time = 0.0
        self._tenants: dict[str, _Tenant] = {}
        self._devices: dict[str, _Device] = {}
        self._unowned: dict[_Device, None] = {}
        self._told: list[LeaseDecision] = []
        """What follows from events, for the next ``decide``."""
        self._active: Ranking[_Tenant] = Ranking()
        """Groups that have or want devices, by virtual time."""
        self._wanting: Ranking[_Tenant] = Ranking()
        """Groups that want a device more, by their rank with it."""
        self._holding: Ranking[_Tenant] = Ranking()
        """Groups that have devices, by their rank with one less, the highest first."""
        self._idle: Ranking[_Device] = Ranking()
        """Devices that run nothing, by when anyone may have them."""

    # Events

    def set_group(self, name: str, share: float = 1.0) -> None:
        """A group is there, or has another share."""
        tenant = self._tenants.setdefault(name, _Tenant(name, share))
        tenant.share = share
        self._rank(tenant)

    def remove_group(self, name: str) -> None:
        """A group wants nothing any more. What it has goes to whoever wants it. Idempotent."""
        if name in self._tenants:
            self.wants(name, 0)
            del self._tenants[name]

    def add_device(self, name: str, owner: str | None = None) -> None:
        """A device is there, or there again after its restart. ``owner`` is the group that it serves already."""
        device = self._devices.setdefault(name, _Device(name))
        tenant, device.next = device.next, None
        if tenant is not None:
            tenant.coming -= 1
            self._give(device, tenant)
        elif owner is not None:
            self._give(device, self._tenants[owner])
        else:
            self._unowned[device] = None

    def remove_device(self, name: str) -> None:
        """A device is lost. Not for one that restarts, unless it does not come back. Idempotent."""
        device = self._devices.pop(name, None)
        if device is None:
            return
        self._unowned.pop(device, None)
        self._idle.discard(device)
        self._told = [decision for decision in self._told if decision.device != name]
        if device.owner is not None:
            device.owner.devices.pop(device, None)
            self._rank(device.owner)
        if device.next is not None:
            device.next.coming -= 1
            self._rank(device.next)

    def wants(self, group: str, waiting: int) -> None:
        """Say for how many requests of a group its devices have no slot."""
        tenant = self._tenants[group]
        if waiting and not (tenant.devices or tenant.coming or tenant.waiting):
            first = self._active.first()
            if first is not None:
                self._virtual_time = max(self._virtual_time, first.tag)
            tenant.tag = max(tenant.tag, self._virtual_time)
        tenant.waiting = waiting
        self._rank(tenant)

    def used(self, group: str, device_s: float) -> None:
        """A group has used device time."""
        tenant = self._tenants[group]
        tenant.tag += device_s / tenant.share
        self._rank(tenant)

    def busy(self, name: str) -> None:
        """A device runs something."""
        self._idle.discard(self._devices[name])

    def idle(self, name: str, now: float) -> None:
        """A device runs nothing. Idempotent."""
        device = self._devices[name]
        if device.next is not None:
            if device.owner is not None:
                self._hand_over(device, device.owner, device.next)
        elif self._idle.key(device) == math.inf:
            self._idle.set(device, now + self._restart_s)

    def virtual_times(self) -> dict[str, float]:
        """Return those of the groups that have or want devices: so who keeps the leases may die and come back.

        Each is there again after ``wants`` of all these, and then ``used`` of its virtual time times its share.
        """
        return {name: tenant.tag for name, tenant in self._tenants.items() if tenant.devices or tenant.coming or tenant.waiting}

    # Decisions

    @property
    def wakes_at(self) -> float:
        """When ``decide`` is to be called though nothing has happened; infinity, for never."""
        return math.inf if self._wanting.first() is None else self._idle.key(self._idle.first())

    def decide(self, now: float) -> list[LeaseDecision]:
        """Return what is to be done, in this order."""
        while (tenant := self._wanting.first()) is not None:
            if self._unowned:
                device = next(iter(self._unowned))
                del self._unowned[device]
                self._give(device, tenant)
                continue
            idle = self._idle.first()
            if idle is not None and self._idle.key(idle) <= now:
                self._promise(idle, tenant)
                continue
            ahead = self._holding.first()
            if ahead is None or -self._holding.key(ahead) <= self._wanting.key(tenant):
                break
            self._promise(next(iter(ahead.devices)), tenant)
        told, self._told = self._told, []
        return told

    def _promise(self, device: _Device, tenant: _Tenant) -> None:
        """A device is to go from its owner to another group."""
        owner = device.owner
        assert owner is not None
        del owner.devices[device]
        device.next = tenant
        tenant.coming += 1
        self._rank(owner)
        self._rank(tenant)
        if self._idle.key(device) < math.inf:
            self._restart(device, tenant)
        else:
            self._told.append(Close(device.name))

    def _hand_over(self, device: _Device, owner: _Tenant, tenant: _Tenant) -> None:
        """A device that was closed is idle. The group that it was closed for may not want it any more."""
        if not tenant.waiting:
            tenant.coming -= 1
            device.next = None
            self._rank(tenant)
            other = self._wanting.first()
            if other is None or other is owner:
                self._give(device, owner)
                return
            device.next = tenant = other
            tenant.coming += 1
            self._rank(tenant)
        self._restart(device, tenant)

    def _restart(self, device: _Device, tenant: _Tenant) -> None:
        device.owner = None
        self._idle.discard(device)
        self._told.append(Restart(device.name, tenant.name))

    def _give(self, device: _Device, tenant: _Tenant) -> None:
        """A device is a group's, which may use it at once."""
        device.owner = tenant
        tenant.devices[device] = None
        tenant.waiting = max(0, tenant.waiting - 1)
        self._rank(tenant)
        self._told.append(Give(device.name, tenant.name))

    def _rank(self, tenant: _Tenant) -> None:
        """A group has used, got, lost or wished for something."""
        each_s = self._quantum_s / tenant.share
        held_s = tenant.tag + (len(tenant.devices) + tenant.coming) * each_s
        if tenant.devices or tenant.coming or tenant.waiting:
            self._active.set(tenant, tenant.tag)
        else:
            self._active.discard(tenant)
        if tenant.waiting > tenant.coming:
            self._wanting.set(tenant, held_s + each_s)
        else:
            self._wanting.discard(tenant)
        if tenant.devices:
            self._holding.set(tenant, -(held_s - each_s))
        else:
            self._holding.discard(tenant)
