"""Multiprocessors of the devices that groups have for their own: whether what they want can be had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from kaas_core.errors import InvalidRequestError


class Reservable(NamedTuple):
    """What a device has to give."""

    name: str
    multiprocessors: int
    unit: int
    """Of which number of them a group may have multiples for its own; 0: it may have none."""


class Reserving(Protocol):
    """The devices."""

    def reservable(self) -> Sequence[Reservable]:
        """Return what each has to give."""

    def reserve(self, groups: Mapping[str, int]) -> None:
        """Give groups so many multiprocessors of each device for their own, in place of those that they had."""


def check_reservation(group: str, wanted: Mapping[str, int], devices: Sequence[Reservable], field: str) -> None:
    """Check that each device has what ``wanted`` says, by group, and some left for all others.

    ``group`` is the one whose wish is new, and ``field`` where it stands. Raises ``InvalidRequestError``.
    """
    if not wanted.get(group):
        return
    if not any(device.unit for device in devices):
        raise InvalidRequestError.at(field, "no device of this server can reserve multiprocessors; it must be 0")
    for device in devices:
        unit = device.unit
        if not unit:
            raise InvalidRequestError.at(field, f"the device {device.name} cannot reserve multiprocessors; it must be 0")
        units = {name: -(-number // unit) for name, number in wanted.items()}
        most = device.multiprocessors // unit - 1
        if sum(units.values()) > most:
            others = (sum(units.values()) - units[group]) * unit
            raise InvalidRequestError.at(
                field,
                f"the device {device.name} has {device.multiprocessors} multiprocessors, of which {most * unit} can be reserved,"
                f" in multiples of {unit}; {others} are other groups' own, so {units[group] * unit} more are too many",
            )
