"""Devices that belong to one group at a time, beside those that all groups share: leases move them from group to group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableSequence, Sequence

from kaasd.scheduling.decisions import Close, Decision, Give, Start
from kaasd.scheduling.device import Device
from kaasd.scheduling.fair_queue import GroupState
from kaasd.scheduling.leases import Leases
from kaasd.scheduling.partition import Partition
from kaasd.scheduling.request import QueuedRequest
from kaasd.scheduling.sharing import Sharing


class Exclusive(Sharing):
    """Some of the devices, or all, are leased to the groups that share the common ones."""

    def __init__(
        self,
        new_partition: Callable[[], Partition],
        owners: Mapping[str, str],
        is_exclusive: Callable[[str], bool],
        restart_s: float,
    ) -> None:
        """``owners`` are groups by device; ``is_exclusive`` tells the devices that are leased, by name; ``restart_s`` is what a
        restart takes.
        """
        super().__init__(new_partition, owners)
        self._is_exclusive = is_exclusive
        self._leases = Leases(restart_s)
        self._devices: dict[str, Device] = {}
        """Those that are leased, and are there."""
        self._groups: dict[str, GroupState] = {}
        """Those that may have them."""
        self._lessees: dict[Device, GroupState] = {}
        self._closed: set[Device] = set()
        """Devices that are not to be given to anyone."""
        self._vacated: dict[Device, None] = {}
        """Devices that may be idle."""
        self._new: list[Device] = []
        """Devices that were given last, and have served nobody yet."""
        self.touched: dict[GroupState, None] = {}
        """Groups that may want more or fewer devices."""
        self._common.touched = self.touched

    @property
    def may_start(self) -> bool:
        """Return True: a device may be given to its group."""
        return True

    def may_name(self, group: str, device: str) -> bool:
        """Return whether a request of a group may be for one device only. Whose a leased one is changes."""
        return not self._is_exclusive(device) and super().may_name(group, device)

    def set_group(self, state: GroupState) -> None:
        """A group is there, or is granted something else."""
        name = state.granted.name
        if self.partition_of(name) is self._common:
            self._groups[name] = state
            self._common.set_lease(state)
            self._leases.set_group(name, state.granted.share)
            self.touched[state] = None

    def remove_group(self, name: str) -> None:
        """A group is gone. Its devices wait for the next that wants them."""
        if (state := self._groups.pop(name, None)) is not None:
            self._common.remove_lease(state)
            self._leases.remove_group(name)
            self.touched.pop(state, None)

    def add(self, device: Device) -> None:
        """A device is there. One that is leased is nobody's at first."""
        if not self._is_exclusive(device.name):
            super().add(device)
            return
        device.open = False
        self._devices[device.name] = device
        self._leases.add_device(device.name)

    def close(self, device: Device) -> Sequence[QueuedRequest]:
        """A device takes no more requests. Return those that were promised it. Idempotent."""
        if device.name in self._devices:
            self._closed.add(device)
            self._leases.remove_device(device.name)
        return super().close(device)

    def open(self, device: Device) -> None:
        """Undo ``close``: it is whose it was. Idempotent."""
        if device.name not in self._devices:
            super().open(device)
        elif device in self._closed:
            self._closed.discard(device)
            lessee = self._lessees.get(device)
            self._leases.add_device(device.name, None if lessee is None else lessee.granted.name)

    def remove(self, device: Device) -> None:
        """A device that is closed is gone."""
        super().remove(device)
        if self._devices.pop(device.name, None) is not None:
            self._lessees.pop(device, None)
            self._closed.discard(device)
            self._vacated.pop(device, None)

    def abandon(self, device: str) -> None:
        """A device that restarts does not come back."""
        self._leases.remove_device(device)

    def vacated(self, device: Device) -> None:
        """A request has left a device."""
        if not device.running and device.name in self._devices:
            self._vacated[device] = None

    def used(self, request: QueuedRequest, device_s: float) -> None:
        """A request has used device time of the device on which it ran."""
        if device_s and self._is_exclusive(request.runs_on):
            self._leases.used(request.group, device_s)

    @property
    def wakes_at(self) -> float:
        """When ``settle`` is to be called though nothing has happened; infinity, for never."""
        return self._leases.wakes_at

    def settle(self, now: float, decisions: MutableSequence[Decision]) -> tuple[Partition | None, Sequence[QueuedRequest]]:
        """Partitions have decided. Add what else is to be done; return the one that has to decide again, and requests that were
        promised a device which their group has lost.
        """
        for decision in decisions:
            if isinstance(decision, Start) and decision.device in self._devices:
                self._leases.busy(decision.device)
        for device in self._new:
            if not device.running:
                self._take_back(device)
        self._new.clear()
        for state in self.touched:
            if state.granted.name in self._groups:
                self._leases.wants(state.granted.name, self._common.waiting_of(state))
        self.touched.clear()
        for device in self._vacated:
            if not device.running and device not in self._closed:
                self._leases.idle(device.name, now)
        self._vacated.clear()
        again: Partition | None = None
        promised: list[QueuedRequest] = []
        for lease in self._leases.decide(now):
            device = self._devices[lease.device]
            if isinstance(lease, Give):
                again = self._give(device, self._groups[lease.group])
            else:
                promised += super().close(device)
                if not isinstance(lease, Close):
                    self.remove(device)
                    decisions.append(lease)
        return again, promised

    def _give(self, device: Device, state: GroupState) -> Partition:
        """A device is a group's; it may have been so before."""
        if device.name not in self._at:
            self._new.append(device)
        self._lessees[device] = state
        self._at[device.name] = self._common
        self._common.lend(device, state)
        self._vacated[device] = None
        return self._common

    def _take_back(self, device: Device) -> None:
        """What a group wanted a new device for was promised others: it is nobody's again."""
        super().close(device)
        super().remove(device)
        del self._lessees[device], self._vacated[device]
        self._leases.remove_device(device.name)
        self._leases.add_device(device.name)
