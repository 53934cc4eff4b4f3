"""The original's requests on a cluster of Ray: they run on its executors.

A process that was given a GPU by Ray, because its actor or task asked for one, runs requests on that GPU itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import ray
from cachetools import LRUCache

import kaas_client.ray as kaas_ray
from kaas_client.builders import Request
from kaas_client.ray.arrays import bytes_of
from kaas_client.ray.function import RemoteFunction
from kaas_client.ray.original import profiling
from kaas_client.ray.original.device import Shared, own_device
from kaas_client.ray.original.lowering import Bytes, Lowered, Read, lower
from kaas_client.ray.original.specs import KaasError, Name, kaasReq
from kaas_client.ray.original.worker import PoolWorker
from kaas_client.ray.session import Session
from kaas_core.errors import UnavailableError
from kaas_core.request import BufferSpec

Reference: TypeAlias = "ray.ObjectRef[Any]"
RawRequest: TypeAlias = "tuple[Reference | kaasReq, Mapping[Name, Name]]"
"""A request, or a reference to it, and keys in place of its own, by buffer name."""

MOST_KNOWN = 1024
"""Requests that a process knows by their references."""


def init() -> None:
    """Have a device, or executors: those that the cluster has, or else new ones. Every call of ``invoke`` does so."""
    if _has_gpu():
        own_device()
        return
    try:
        Session.current()
    except UnavailableError:
        kaas_ray.init()


def putObj(obj: object) -> bytes:
    """Return a key for a value, or for that of a reference. The value is kept while the process lives that made the key."""
    key: bytes = ray.cloudpickle.dumps(obj if isinstance(obj, ray.ObjectRef) else ray.put(obj))
    return key


def invoke(
    rawReq: RawRequest,
    profs: profiling.profCollection | None = None,
    clientID: object = None,
    stats: profiling.profCollection | None = None,
) -> tuple[Reference, ...]:
    """Run a request; return references to its outputs, which are there, in order.

    ``profs`` (``stats``, as it was called once) gets ``t_e2e``, ``t_parse_request``, ``t_invoke`` and ``n_invoke``, the launches.
    ``clientID`` changes nothing: no request sees another's buffers. Raises ``KaasError``, and what the request failed with.
    """
    if profs is None:
        profs = stats
    request, keys = rawReq
    with profiling.timer("t_e2e", profs):
        with profiling.timer("t_parse_request", profs):
            source, lowered = (request, lower(request)) if isinstance(request, kaasReq) else _known(request)
        with profiling.timer("t_invoke", profs):
            references = _run_here(lowered, source, keys) if _has_gpu() else _run_on_executor(lowered, source, keys)
    if profs is not None:
        profs["n_invoke"].increment(lowered.launches)
    return references


@ray.remote(num_cpus=0)
class invokerActor(PoolWorker):
    """Runs requests of any client, one at a time. It needs nothing of its node: an executor has the device."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        init()

    def ensureReady(self) -> None:
        """Return when the actor is there."""

    def invoke(self, req: RawRequest, clientID: object = None) -> tuple[Reference, ...]:
        """Run a request, as ``invoke`` of this module; the metrics go to the group that a pool runs it for."""
        return invoke(req, self.getProfs(), clientID)


@ray.remote(num_cpus=0)
def invokerTask(req: RawRequest, profs: profiling.profCollection | None = None) -> Any:
    """Run a request as a task. With ``profs``, return these too, after the references: they are a copy of the caller's."""
    references = invoke(req, profs)
    return references if profs is None else (references, profs)


def _has_gpu() -> bool:
    """Return whether Ray gave this process a GPU."""
    return ray.is_initialized() and _was_given_gpu()


@cache
def _was_given_gpu() -> bool:
    return bool(ray.get_runtime_context().get_accelerator_ids()["GPU"])


_requests: LRUCache[Reference, tuple[kaasReq, Lowered]] = LRUCache(MOST_KNOWN)


def _known(reference: Reference) -> tuple[kaasReq, Lowered]:
    found = _requests.get(reference)
    if found is None:
        source = ray.get(reference)
        found = _requests[reference] = source, lower(source)
    return found


_functions: WeakKeyDictionary[Lowered, RemoteFunction] = WeakKeyDictionary()


def _run_on_executor(lowered: Lowered, source: kaasReq, keys: Mapping[Name, Name]) -> tuple[Reference, ...]:
    function = _functions.get(lowered)
    if function is None:
        init()
        function = kaas_ray.remote(Request.from_spec(lowered.request)).options(returns=lowered.returns)
        _functions[lowered] = function
    found = function.remote(**lowered.inputs(source, keys, _reference_or_bytes))
    references = (found,) if isinstance(found, ray.ObjectRef) else found
    # All are there when one is: the smallest one, so that little is brought here, says what became of the request.
    sizes = {spec.name: spec.size_bytes for spec in lowered.request.buffers}
    _, smallest = min((sizes[name], index) for index, name in enumerate(lowered.returns))
    ray.get(references[smallest])
    return references[: len(lowered.outputs)]


def _run_here(lowered: Lowered, source: kaasReq, keys: Mapping[Name, Name]) -> tuple[Reference, ...]:
    outputs = own_device().run(lowered, lowered.inputs(source, keys, _shared_or_bytes))
    return tuple(map(ray.put, outputs))


def _reference_or_bytes(key: Name, read: Read) -> Reference | Bytes:
    reference = _reference(key)
    return reference if read.shareable else _bytes(reference, read)[read.span]


def _shared_or_bytes(key: Name, read: Read) -> Shared | Bytes:
    reference = _reference(key)
    content = _bytes(reference, read)
    return Shared(reference.hex(), content) if read.shareable else content[read.span]


def _reference(key: Name) -> Reference:
    """Return the reference in a key. Raises ``KaasError``."""
    try:
        reference = ray.cloudpickle.loads(key) if isinstance(key, bytes) else None
    except Exception:
        reference = None
    if not isinstance(reference, ray.ObjectRef):
        raise KaasError(f"{key!r:.80} is not a key that putObj returned")
    return reference


def _bytes(reference: Reference, read: Read) -> Bytes:
    return bytes_of(ray.get(reference), BufferSpec(read.buffer, 0))
