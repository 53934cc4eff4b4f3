"""How far a worker is with its calls, in memory that it shares with the front: so the front knows what one that died had touched.

A message would come too late where the process is killed, and cost more than a microsecond.
"""

from __future__ import annotations

import mmap
import os
import struct
from enum import IntEnum

_PLACE = struct.Struct("<QQ")
"""A call and its stage; all zeros where there is none."""


class Stage(IntEnum):
    """How far a call is that a worker has begun, and not answered."""

    RUNNING = 1
    """Nothing outside the device has changed."""
    COMMITTING = 2
    """The store may have changed: all that it writes is there, or nothing."""


class Progress:
    """The calls that a worker has begun. The worker writes, and the front reads.

    While the worker runs, what is read may be wrong about a call that begins or ends at that moment.
    """

    def __init__(self, descriptor: int) -> None:
        """Map the memory that ``create`` made. The descriptor is used no more."""
        size = os.fstat(descriptor).st_size
        self._memory = mmap.mmap(descriptor, size)
        self._free = list(range(0, size - _PLACE.size + 1, _PLACE.size))
        self._places: dict[int, int] = {}

    @staticmethod
    def create(calls: int) -> int:
        """Return the descriptor of new memory for so many calls, to be closed by who called."""
        descriptor = os.memfd_create("kaasd-progress", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, -(-calls * _PLACE.size // mmap.PAGESIZE) * mmap.PAGESIZE)
        return descriptor

    def begin(self, call: int) -> None:
        """The worker begins a call."""
        place = self._places[call] = self._free.pop()
        _PLACE.pack_into(self._memory, place, call, Stage.RUNNING)

    def commit(self, call: int) -> None:
        """What a call writes goes to the store from now on."""
        _PLACE.pack_into(self._memory, self._places[call], call, Stage.COMMITTING)

    def end(self, call: int) -> None:
        """A call has its answer, which was sent. Idempotent."""
        place = self._places.pop(call, None)
        if place is not None:
            _PLACE.pack_into(self._memory, place, 0, 0)
            self._free.append(place)

    def begun(self) -> dict[int, Stage]:
        """Return the calls that were begun and not ended."""
        return {call: Stage(stage) for call, stage in _PLACE.iter_unpack(self._memory[:]) if stage}

    def close(self) -> None:
        """Free the memory at this end. Idempotent."""
        self._memory.close()
