"""The original's requests in this process, with no cluster: on its first GPU, or on an emulated device."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from ray import cloudpickle

from kaas_client.ray.arrays import bytes_of
from kaas_client.ray.original import profiling
from kaas_client.ray.original.device import Shared, own_device
from kaas_client.ray.original.lowering import Bytes, Read, lower
from kaas_client.ray.original.specs import Name, kaasReq
from kaas_core.request import BufferSpec


class KVKeyError(Exception):
    """A key that the store does not have."""

    def __init__(self, key: Name) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"there is no key {self.key!r}"


class KV(Protocol):
    """What a request reads from and writes to."""

    def put(self, k: Name, v: Any) -> None:
        """Store an array."""

    def get(self, k: Name) -> Any:
        """Return an array, or what has the buffer protocol."""


class LocalKV:
    """Values in memory. Metrics go to ``profile``; with ``profFinal`` their event ends there."""

    def __init__(self, copyObjs: bool = False, serialize: bool = True) -> None:
        """``serialize``: values are kept pickled. Else, they are copied on their way in and out if ``copyObjs``, or lent."""
        self.store: dict[Name, Any] = {}
        self.copy = copyObjs
        self.serialize = serialize

    def put(self, k: Name, v: Any, profile: profiling.profCollection | None = None, profFinal: bool = True) -> None:
        """Store a value."""
        with profiling.timer("t_serialize", profile, profFinal):
            kept = cloudpickle.dumps(v) if self.serialize else self._lent(v)
        with profiling.timer("t_write", profile, profFinal):
            self.store[k] = kept

    def get(self, k: Name | list[Name], profile: profiling.profCollection | None = None, profFinal: bool = True) -> Any:
        """Return the value of a key, or a list of those of a list. Raises ``KVKeyError``."""
        if isinstance(k, list):
            return [self.get(key, profile, profFinal) for key in k]
        with profiling.timer("t_read", profile, profFinal):
            if k not in self.store:
                raise KVKeyError(k)
            kept = self.store[k]
        with profiling.timer("t_deserialize", profile, profFinal):
            return cloudpickle.loads(kept) if self.serialize else self._lent(kept)

    def delete(self, keys: Sequence[Name], profile: profiling.profCollection | None = None, profFinal: bool = True) -> None:
        """Delete values, those that there are."""
        with profiling.timer("t_delete", profile, profFinal):
            for key in keys:
                self.store.pop(key, None)

    def destroy(self) -> None:
        """Do nothing: the values go with the store."""

    def _lent(self, value: Any) -> Any:
        return copy.deepcopy(value) if self.copy else value


def init() -> None:
    """Open the device. Every call of ``invoke`` does so. Raises ``DeviceUnavailable``."""
    own_device()


def invoke(
    rawReq: tuple[kaasReq, Mapping[Name, Name]],
    kv: KV,
    profs: profiling.profCollection | None = None,
    stats: profiling.profCollection | None = None,
) -> None:
    """Run a request: what it reads is got from ``kv``, and its outputs are put there, by the keys of their buffers.

    ``rawReq`` is the request, and keys in place of its own by buffer name. ``profs`` (``stats``, as it was called once) gets
    ``t_e2e``, ``t_parse_request``, ``t_invoke`` and ``n_invoke``, the launches. Raises ``KaasError``, and what ``kv`` raises.
    """
    if profs is None:
        profs = stats
    source, keys = rawReq
    with profiling.timer("t_e2e", profs):
        with profiling.timer("t_parse_request", profs):
            lowered = lower(source)
            inputs = lowered.inputs(source, keys, lambda key, read: _value(kv, key, read))
        with profiling.timer("t_invoke", profs):
            outputs = own_device().run(lowered, inputs)
        for name, output in zip(lowered.outputs, outputs, strict=True):
            kv.put(keys.get(name, source.bufferMap[name].key), output)
    if profs is not None:
        profs["n_invoke"].increment(lowered.launches)


_constants: WeakKeyDictionary[KV, dict[Name, str]] = WeakKeyDictionary()
"""Object ids of constants by key, of each store."""
_ids = count()


def _value(kv: KV, key: Name, read: Read) -> Bytes | Shared:
    content = bytes_of(kv.get(key), BufferSpec(read.buffer, 0))
    if not read.constant:
        return content[read.span]
    known = _constants.setdefault(kv, {})
    if key not in known:
        known[key] = f"constant/{next(_ids)}"
    return Shared(known[key], content)
