"""What a request needs on its device and stays there: its stored inputs and its kernels; and what bringing each takes.

The times are learnt from what workers say: the rate at which they bring inputs, and how long a request takes that is new to them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from cachetools import LRUCache

from kaas.worker.v1 import worker_pb2
from kaas_core.request import BufferSpec
from kaas_core.uses import Use
from kaasd.ipc.messages import SerializedRequest
from kaasd.request.plan import SMALL_BYTES
from kaasd.scheduling import Datum

BYTES_A_S = 5e9
"""At which inputs are brought, until it is known better."""
START_S = 20e-6
"""Of bringing one."""
CODE_S = 5e-3
"""Of what is new to a device, until it is known better."""
LEARNT_FROM_BYTES = 1 << 20
"""Less tells little of the rate."""
WEIGHT = 0.25
"""Of the latest, against those before; the first that is seen counts alone."""
SAME_RATE = 1.25
"""By so much the rate may change before what was reckoned with it is reckoned anew."""
MOST_KNOWN = 4096
"""Requests whose needs, or whose code's times, are known."""


class StoredInput(NamedTuple):
    """A range of a stored value that stays on the device for whoever reads it next."""

    key: str
    offset_bytes: int
    size_bytes: int

    @classmethod
    def of(cls, spec: BufferSpec, use: Use) -> StoredInput | None:
        """Return what a buffer is read from; None where nothing of it stays."""
        stays = use.reads_first and not use.writes and not spec.ephemeral and (spec.constant or spec.size_bytes > SMALL_BYTES)
        return cls(spec.store_key, spec.offset_bytes, spec.size_bytes) if stays else None


class Needs:
    """The needs of requests."""

    def __init__(self) -> None:
        self._bytes_a_s = self._reckoned_bytes_a_s = BYTES_A_S
        self._seen_rate = False
        self._code_s: LRUCache[bytes, float] = LRUCache(MOST_KNOWN)
        self._known: LRUCache[bytes, Sequence[Datum]] = LRUCache(MOST_KNOWN)
        """Of requests whose own keys are read."""

    def of(
        self,
        request: SerializedRequest,
        stays: Mapping[str, StoredInput],
        keys: Mapping[str, str],
        given: Collection[str],
    ) -> Sequence[Datum]:
        """Return what a request needs; ``stays`` are its stored inputs by buffer name, some of which have other ``keys``; what
        the caller has ``given`` comes with the request.
        """
        own = not any(name in keys or name in given for name in stays) if keys or given else True
        known = self._known.get(request.digest) if own else None
        if known is None:
            needed = [Datum(request.digest, self._code_s.get(request.digest, CODE_S))]
            for name, read in stays.items():
                if name not in given:
                    datum = read._replace(key=keys[name]) if name in keys else read
                    needed.append(Datum(datum, START_S + datum.size_bytes / self._bytes_a_s, datum.size_bytes))
            known = tuple(needed)
            if own:
                self._known[request.digest] = known
        return known

    def learn(self, request: SerializedRequest, executed: worker_pb2.Executed) -> bool:
        """A request has run, and its worker says what it had to bring. Return whether what others need is to be asked anew."""
        timing = executed.reply.timing
        if executed.brought_bytes >= LEARNT_FROM_BYTES and timing.load_ns:
            rate = executed.brought_bytes / timing.load_ns * 1e9
            self._bytes_a_s += (WEIGHT if self._seen_rate else 1.0) * (rate - self._bytes_a_s)
            self._seen_rate = True
            self._known.pop(request.digest, None)
        if executed.new_program:
            self._code_s[request.digest] = timing.plan_ns / 1e9
            self._known.pop(request.digest, None)
        if 1 / SAME_RATE < self._bytes_a_s / self._reckoned_bytes_a_s < SAME_RATE:
            return False
        self._reckoned_bytes_a_s = self._bytes_a_s
        self._known.clear()
        return True


def stored_inputs(execute: worker_pb2.Execute, stays: Mapping[str, StoredInput]) -> Iterator[StoredInput]:
    """Yield what a request reads of the store that stays on a device, as ``Needs.of`` does."""
    for name, read in stays.items():
        if name not in execute.inputs:
            yield read._replace(key=execute.keys[name]) if name in execute.keys else read


def dropped(executed: worker_pb2.Executed) -> list[StoredInput]:
    """Return what a worker has dropped since it last said so."""
    return [StoredInput(value.key, value.offset_bytes, value.size_bytes) for value in executed.dropped]
