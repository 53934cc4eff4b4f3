"""Where data lie, and which device a request is to have: the one that can begin its kernels first.

A device that has a request's data is preferred, unless waiting there takes longer than bringing the data elsewhere.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from enum import Enum
from itertools import islice
from typing import Generic, TypeVar

from kaasd.scheduling.request import Datum

MOST_KEYS = 65536
"""Keys of one device that are known; beyond, those that were not used for longest are forgotten."""
MOST_HOLDERS = 8
"""Devices that are looked at for one key, in turns: a choice takes the same time however many have it."""


class Placement(Enum):
    """Why a request went where it went. The names are those of ``kaas.v1.Placement``."""

    UNSPECIFIED = "unspecified"
    """It needs no data."""
    RESIDENT = "resident"
    """All its data were there."""
    LOADED = "loaded"
    """Some had to be brought, which no other device has."""
    REPLICATED = "replicated"
    """What had to be brought is on other devices too."""


D = TypeVar("D", bound=Hashable)


class Residents(Generic[D]):
    """Which data are on which devices, as far as is known: a guess, to be mended by ``drop``."""

    def __init__(self) -> None:
        self._devices: dict[Hashable, dict[D, None]] = {}
        """By key; who was looked at longest ago comes first."""
        self._keys: dict[D, dict[Hashable, None]] = {}
        """By device; what was used longest ago comes first."""

    def add(self, device: D, key: Hashable) -> None:
        """A device has a key, or uses it again."""
        keys = self._keys.setdefault(device, {})
        if key in keys:
            del keys[key]
        else:
            self._devices.setdefault(key, {})[device] = None
        keys[key] = None
        if len(keys) > MOST_KEYS:
            self.drop(device, next(iter(keys)))

    def drop(self, device: D, key: Hashable) -> None:
        """A device no longer has a key. Idempotent."""
        self._keys.get(device, {}).pop(key, None)
        if devices := self._devices.get(key):
            devices.pop(device, None)
            if not devices:
                del self._devices[key]

    def forget(self, device: D) -> None:
        """A device has lost everything."""
        for key in list(self._keys.get(device, ())):
            self.drop(device, key)
        self._keys.pop(device, None)

    def missing_s(self, device: D, data: Sequence[Datum]) -> float:
        """Return how long bringing takes what a device lacks."""
        keys = self._keys.get(device, ())
        return sum(datum.load_s for datum in data if datum.key not in keys)

    def holders(self, data: Sequence[Datum]) -> Iterator[D]:
        """Yield devices that have some of the data, at most ``MOST_HOLDERS`` for each key. A device may come twice."""
        for datum in data:
            devices = self._devices.get(datum.key)
            if devices is None:
                continue
            if len(devices) <= MOST_HOLDERS:
                yield from devices
            else:
                for device in list(islice(devices, MOST_HOLDERS)):
                    del devices[device]
                    devices[device] = None
                    yield device

    def placement(self, device: D, data: Sequence[Datum]) -> Placement:
        """Return what it means that a request runs on ``device``."""
        if not data:
            return Placement.UNSPECIFIED
        keys = self._keys.get(device, ())
        missing = [datum.key for datum in data if datum.key not in keys]
        if not missing:
            return Placement.RESIDENT
        return Placement.REPLICATED if all(key in self._devices for key in missing) else Placement.LOADED
