"""Which devices a group may use: the common ones, or its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from kaasd.scheduling.device import Device
from kaasd.scheduling.fair_queue import GroupState
from kaasd.scheduling.partition import Partition
from kaasd.scheduling.request import QueuedRequest


class Sharing:
    """One partition for all groups, but for those that have devices of their own by a table."""

    def __init__(self, new_partition: Callable[[], Partition], owners: Mapping[str, str]) -> None:
        """``owners`` are groups by device."""
        self._owners = owners
        self._common = new_partition()
        self._own = {group: new_partition() for group in owners.values()}
        self._at: dict[str, Partition] = {}

    def partition_of(self, group: str) -> Partition:
        """Return the devices that a group may use."""
        return self._own.get(group, self._common)

    def partition_at(self, device: str) -> Partition | None:
        """Return the devices of which this is one; None for one that nobody may use just now."""
        return self._at.get(device)

    @property
    def has_slot(self) -> bool:
        """Whether a common device has a slot."""
        return self._common.has_slot

    @property
    def may_start(self) -> bool:
        """Whether a request that comes may start; False where it is sure that it may not."""
        return self._common.has_slot or self._common.has_own_slots or bool(self._own)

    def may_name(self, group: str, device: str) -> bool:
        """Return whether a request of a group may be for one device only."""
        owner = self._owners.get(device)
        return (self._common if owner is None else self._own[owner]) is self.partition_of(group)

    def set_group(self, state: GroupState) -> None:
        """A group is there, or is granted something else."""

    def remove_group(self, name: str) -> None:
        """A group is gone."""

    def add(self, device: Device) -> None:
        """A device is there."""
        owner = self._owners.get(device.name)
        partition = self._at[device.name] = self._common if owner is None else self._own[owner]
        partition.add(device)

    def close(self, device: Device) -> Sequence[QueuedRequest]:
        """A device takes no more requests. Return those that were promised it. Idempotent."""
        partition = self._at.get(device.name)
        return partition.close(device) if partition is not None and device.open else ()

    def open(self, device: Device) -> None:
        """Undo ``close``. Idempotent."""
        if not device.open:
            self._at[device.name].open(device)

    def remove(self, device: Device) -> None:
        """A device that is closed is gone."""
        if (partition := self._at.pop(device.name, None)) is not None:
            partition.remove(device)
