"""What the whole cluster knows: requests, libraries and functions, where Ray keeps the code of Python tasks too; our actors."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

import ray
from ray.experimental.internal_kv import (
    _internal_kv_del,
    _internal_kv_exists,
    _internal_kv_get,
    _internal_kv_list,
    _internal_kv_put,
    internal_kv_get_gcs_client,
)
from ray.util import list_named_actors

NAMESPACE = "kaas"
"""Of our rows, and of our actors' names."""
_NAMESPACE = NAMESPACE.encode()


class Kind(Enum):
    """What a row is."""

    TASK = b"task/"
    """A task's content by its digest. Never changes."""
    LIBRARY = b"library/"
    """A file of GPU code by its content id. Never changes."""
    FUNCTION = b"function/"
    """A registered request by its name."""
    GROUP = b"group/"
    """What a group is granted, by its name."""
    REPORT = b"report/"
    """What an executor said of itself last, by its name."""
    POLICY = b"policy/"
    """How groups share executors. One row, without a key."""
    TURNS = b"turns/"
    """The virtual times of groups under ``exclusive``. One row, without a key."""
    SPARES = b"spares/"
    """That executors are to have spares. One row, without a key, or none."""


def put(kind: Kind, key: bytes, value: bytes) -> None:
    """Store a row, in place of what was there."""
    _internal_kv_put(kind.value + key, value, overwrite=True, namespace=_NAMESPACE)


def get(kind: Kind, key: bytes) -> bytes | None:
    """Return a row; None where there is none."""
    return _internal_kv_get(kind.value + key, namespace=_NAMESPACE)


def exists(kind: Kind, key: bytes) -> bool:
    """Return whether there is such a row."""
    return bool(_internal_kv_exists(kind.value + key, namespace=_NAMESPACE))


def get_all(kind: Kind, keys: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return those rows that there are, by key, asking once."""
    found = internal_kv_get_gcs_client().internal_kv_multi_get([kind.value + key for key in keys], _NAMESPACE)
    return {key.removeprefix(kind.value): value for key, value in found.items()}


def keys(kind: Kind) -> list[bytes]:
    """Return the keys of all rows of a kind."""
    return [key.removeprefix(kind.value) for key in _internal_kv_list(kind.value, namespace=_NAMESPACE)]


def delete(kind: Kind, key: bytes) -> None:
    """Delete a row. Idempotent."""
    _internal_kv_del(kind.value + key, namespace=_NAMESPACE)


def actor(name: str) -> Any:
    """Return our actor of this name; None where there is none."""
    try:
        return ray.get_actor(name, NAMESPACE)
    except ValueError:
        return None


def actors() -> list[str]:
    """Return the names of all our actors."""
    return [each["name"] for each in list_named_actors(all_namespaces=True) if each["namespace"] == NAMESPACE]
