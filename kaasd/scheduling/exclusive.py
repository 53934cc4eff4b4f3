"""Devices that belong to one group at a time: each group has a partition, and leases move devices between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableSequence, Sequence

from kaasd.scheduling.decisions import Close, Decision, Give, Start
from kaasd.scheduling.device import Device
from kaasd.scheduling.fair_queue import GroupState
from kaasd.scheduling.leases import Leases
from kaasd.scheduling.partition import Partition
from kaasd.scheduling.request import QueuedRequest
from kaasd.scheduling.sharing import Sharing


class Exclusive(Sharing):
    """A partition for each group."""

    def __init__(self, new_partition: Callable[[], Partition], restart_s: float) -> None:
        """``restart_s``: what a restart takes."""
        super().__init__(new_partition, {})
        self._new_partition = new_partition
        self._leases = Leases(restart_s)
        self._groups: dict[Partition, GroupState] = {}
        self._devices: dict[str, Device] = {}
        self._closed: set[Device] = set()
        """Devices that are not to be given to anyone."""
        self._vacated: dict[Device, None] = {}
        """Devices that may be idle."""

    @property
    def has_slot(self) -> bool:
        """Return False: no device is common."""
        return False

    @property
    def may_start(self) -> bool:
        """Return True: a device may be given to its group."""
        return True

    def may_name(self, group: str, device: str) -> bool:
        """Return False: whose a device is changes."""
        return False

    def set_group(self, state: GroupState) -> None:
        """A group is there, or is granted something else."""
        name = state.granted.name
        if name not in self._own:
            partition = self._own[name] = self._new_partition()
            self._groups[partition] = state
        self._leases.set_group(name, state.granted.share)

    def remove_group(self, name: str) -> None:
        """A group is gone. Its devices wait for the next that wants them."""
        del self._groups[self._own.pop(name)]
        self._leases.remove_group(name)

    def add(self, device: Device) -> None:
        """A device is there, and nobody's."""
        device.open = False
        self._devices[device.name] = device
        self._leases.add_device(device.name)

    def close(self, device: Device) -> Sequence[QueuedRequest]:
        """A device takes no more requests. Return those that were promised it. Idempotent."""
        self._closed.add(device)
        self._leases.remove_device(device.name)
        return super().close(device)

    def open(self, device: Device) -> None:
        """Undo ``close``: it is whose it was. Idempotent."""
        if device in self._closed:
            self._closed.discard(device)
            partition = self._at.get(device.name)
            owner = None if partition is None else self._groups.get(partition)
            self._leases.add_device(device.name, None if owner is None else owner.granted.name)

    def remove(self, device: Device) -> None:
        """A device that is closed is gone."""
        super().remove(device)
        del self._devices[device.name]
        self._closed.discard(device)
        self._vacated.pop(device, None)

    def abandon(self, device: str) -> None:
        """A device that restarts does not come back."""
        self._leases.remove_device(device)

    def vacated(self, device: Device) -> None:
        """A request has left a device."""
        if not device.used:
            self._vacated[device] = None

    def used(self, group: str, device_s: float) -> None:
        """A group has used device time."""
        self._leases.used(group, device_s)

    @property
    def wakes_at(self) -> float:
        """When ``settle`` is to be called though nothing has happened; infinity, for never."""
        return self._leases.wakes_at

    def settle(
        self, now: float, changed: Iterable[Partition], decisions: MutableSequence[Decision]
    ) -> tuple[Sequence[Partition], Sequence[QueuedRequest]]:
        """Partitions have decided. Add what else is to be done; return those that have to decide again, and requests that were
        promised a device which their group has lost.
        """
        for decision in decisions:
            if isinstance(decision, Start):
                self._leases.busy(decision.device)
        for partition in changed:
            if (state := self._groups.get(partition)) is not None:
                self._leases.wants(state.granted.name, state.waiting if state.may_run else 0)
        for device in self._vacated:
            if not device.used and device not in self._closed:
                self._leases.idle(device.name, now)
        self._vacated.clear()
        again: list[Partition] = []
        promised: list[QueuedRequest] = []
        for lease in self._leases.decide(now):
            device = self._devices[lease.device]
            if isinstance(lease, Give):
                again.append(self._give(device, lease.group))
            else:
                promised += super().close(device)
                if not isinstance(lease, Close):
                    self.remove(device)
                    decisions.append(lease)
        return again, promised

    def _give(self, device: Device, group: str) -> Partition:
        """A device is a group's; it may have been so before."""
        partition = self._own[group]
        if self._at.get(device.name) is partition:
            partition.open(device)
        else:
            self._at[device.name] = partition
            partition.add(device)
        self._vacated[device] = None
        return partition
