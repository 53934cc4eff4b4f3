"""Where data lie, and which device a request is to have: the one that can begin its kernels first.

A device that has a request's data is preferred, unless waiting there takes longer than bringing the data elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Sequence
from enum import Enum
from itertools import islice
from typing import Generic, TypeVar

from kaasd.scheduling.ranking import Ranking
from kaasd.scheduling.request import Datum

OWN_PART = 1 / 16
"""Of a device's memory: it is left to what requests have for themselves, of which nobody here knows."""
MOST_KEYS = 65536
"""Keys of one device that are known; beyond, the one that came there first is forgotten."""
FULL_COST = 4.0
"""What bringing something to a full device costs, in the times that it takes: what goes for it is brought again, and by then
something else must go. With 1, two devices that their functions' constants fill exactly reload a quarter of them for ever."""
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
        self._keys: dict[D, dict[Hashable, Datum]] = {}
        """By device, in the order in which they came there."""
        self._filled: dict[D, tuple[int, float]] = {}
        """How many bytes a device has, and what bringing all of it takes."""
        self._room_bytes: dict[D, float] = {}
        """What a device of which that is known has left, if it has nothing but what is known of here."""
        self._roomiest: Ranking[D] = Ranking()
        """Devices of which that is known, by that: the most first."""
        self._full: set[D] = set()
        """Devices that had to drop something for what came: what is brought there costs others theirs."""

    def limit(self, device: D, memory_bytes: float) -> None:
        """An empty device has so much memory."""
        self._set_room(device, memory_bytes * (1 - OWN_PART))

    def _set_room(self, device: D, room_bytes: float) -> None:
        self._room_bytes[device] = room_bytes
        if room_bytes < math.inf:
            self._roomiest.set(device, -room_bytes)

    def add(self, device: D, key: Hashable, load_s: float = 0.0, size_bytes: int = 0) -> None:
        """A device has a key, which bringing takes ``load_s``. Idempotent."""
        keys = self._keys.setdefault(device, {})
        if key not in keys:
            keys[key] = Datum(key, load_s, size_bytes)
            filled_bytes, filled_s = self.filled(device)
            self._filled[device] = filled_bytes + size_bytes, filled_s + load_s
            if size_bytes and device in self._room_bytes:
                self._set_room(device, self._room_bytes[device] - size_bytes)
            self._devices.setdefault(key, {})[device] = None
            if len(keys) > MOST_KEYS:
                self.drop(device, next(iter(keys)))

    def dropped(self, device: D, key: Hashable) -> None:
        """A device has dropped a key, since it needed the room. Idempotent.

        What was not known to be there has left its room to what is.
        """
        if key in self._keys.get(device, ()):
            self._full.add(device)
            self.drop(device, key)

    def drop(self, device: D, key: Hashable) -> None:
        """Take a device to have a key no longer. Idempotent."""
        if (datum := self._keys.get(device, {}).pop(key, None)) is not None:
            filled_bytes, filled_s = self._filled[device]
            self._filled[device] = filled_bytes - datum.size_bytes, filled_s - datum.load_s
            if datum.size_bytes and device in self._room_bytes:
                self._set_room(device, self._room_bytes[device] + datum.size_bytes)
        if devices := self._devices.get(key):
            devices.pop(device, None)
            if not devices:
                del self._devices[key]

    def forget(self, device: D) -> None:
        """A device has lost everything."""
        for key in list(self._keys.get(device, ())):
            self.drop(device, key)
        self._keys.pop(device, None)
        self._filled.pop(device, None)
        self._room_bytes.pop(device, None)
        self._roomiest.discard(device)
        self._full.discard(device)

    def filled(self, device: D) -> tuple[int, float]:
        """Return how many bytes a device has, and what bringing all of it takes, as was guessed when each came: the less, the
        more room it has.
        """
        return self._filled.get(device, (0, 0.0))

    def missing_s(self, device: D, data: Sequence[Datum]) -> float:
        """Return how long bringing what a device lacks takes."""
        keys = self._keys.get(device, ())
        missing_s = 0.0
        for key, load_s, _ in data:
            if key not in keys:
                missing_s += load_s
        return missing_s

    def cost_s(self, device: D, data: Sequence[Datum]) -> float:
        """Return what bringing what a device lacks costs: how long it takes, and more where others lose theirs by it."""
        missing_s = self.missing_s(device, data)
        if not missing_s or not (device in self._full or self._would_fill(device, data)):
            return missing_s
        return missing_s * FULL_COST

    def roomiest(self) -> D | None:
        """Return the device that has most room, of those of which that is known."""
        return self._roomiest.first()

    def missing(self, device: D, data: Sequence[Datum]) -> Sequence[Datum]:
        """Return what a device lacks."""
        keys = self._keys.get(device, ())
        return [datum for datum in data if datum.key not in keys]

    def _would_fill(self, device: D, data: Sequence[Datum]) -> bool:
        """Return whether a device lacks the room for what it lacks."""
        room_bytes = self._room_bytes.get(device)
        if room_bytes is None:
            return False
        keys = self._keys.get(device, ())
        return sum(datum.size_bytes for datum in data if datum.key not in keys) > room_bytes

    def rarest_first(self, data: Sequence[Datum]) -> Sequence[Datum]:
        """Return the data that some device has, what the fewest have first."""
        devices = self._devices
        if len(data) == 1:
            return data if data[0].key in devices else ()
        held = [(len(devices[datum.key]), index) for index, datum in enumerate(data) if datum.key in devices]
        held.sort()
        return [data[index] for _, index in held]

    def holders(self, key: Hashable) -> Collection[D]:
        """Return devices that have a key: all, or ``MOST_HOLDERS`` of more."""
        devices = self._devices.get(key)
        if devices is None:
            return ()
        if len(devices) <= MOST_HOLDERS:
            return devices
        some = list(islice(devices, MOST_HOLDERS))
        for device in some:
            del devices[device]
            devices[device] = None
        return some

    def bring(self, device: D, data: Sequence[Datum]) -> Placement:
        """A request runs on a device, and what it lacks is brought there. Return what that means."""
        keys = self._keys.get(device, ())
        for datum in data:
            if datum.key not in keys:
                break
        else:
            return Placement.RESIDENT if data else Placement.UNSPECIFIED
        missing = self.missing(device, data)
        known = all(datum.key in self._devices for datum in missing)
        for datum in missing:
            self.add(device, *datum)
        return Placement.REPLICATED if known else Placement.LOADED
