"""What this process knows of objects, without asking anyone and without keeping them alive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

Reference = ray.ObjectRef


def alias_of(reference: Reference[Any]) -> Reference[Any]:
    """Return a reference that does not count: its object goes when all others have gone.

    It is for the functions of this module only. Ray has no weak references.
    """
    alias: Reference[Any] = ray.ObjectRef.__new__(ray.ObjectRef)
    alias._set_id(reference.binary())
    return alias


def are_pending(aliases: Sequence[Reference[Any]]) -> list[bool]:
    """Return of each object that this process has made whether it is yet to come; not of one that nobody waits for any more.

    A microsecond for each.
    """
    worker = _core_worker()
    known = worker.get_local_object_locations(aliases)
    return [
        alias in known and known[alias]["object_size"] is None and not worker.object_exists(alias)  # an error may have no size
        for alias in aliases
    ]


def nodes_of(reference: Reference[Any]) -> Sequence[str]:
    """Return the ids of the nodes that hold an object, as far as is known here: of one that this process has made, or put.

    A microsecond; asking the owner, as ``ray.experimental.get_object_locations`` does, takes 300.
    """
    worker = _core_worker()
    place = worker.get_local_object_locations([reference]).get(reference)
    nodes: Sequence[str] = place["node_ids"] if place is not None else ()
    return nodes


def _core_worker() -> Any:
    worker: Any = ray._private.worker.global_worker
    return worker.core_worker
