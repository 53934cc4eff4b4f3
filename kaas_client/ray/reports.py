"""What executors say of themselves: their load, and what is on their devices. They write it to the cluster's table now and then.

So nobody has to ask them, and whoever submits knows about as much as they do.
"""

from __future__ import annotations

import pickle
from collections.abc import Hashable, Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any, NamedTuple

from kaas_client.ray import table

REPORT_S = 0.2
"""Between two reports of an executor at least; where nothing has changed there is none."""
CALL_S = 3e-4
"""What a call takes of an executor's process, whatever it takes of the device."""


class Report(NamedTuple):
    """An executor's word."""

    process: str
    """Which of its processes says so: another one has nothing of what the one before held."""
    node: str
    """Where it runs, by its id."""
    at_s: float
    """When, since the epoch."""
    backlog_s: float
    """What those calls are likely to take that have come there."""
    expected_s: Mapping[Hashable, float]
    """How long calls of a task are likely to take, by its digest."""
    held: Sequence[bytes]
    """Ids of objects that are on the device."""
    dropped: Sequence[bytes]
    """Ids of objects that are there no more."""
    policy: bytes = b""
    """The digest of the policy that it follows."""
    leased_to: str | None = None
    """The group that it serves alone."""
    retiring: bool = False
    """It takes no calls any more, and ends when it has none."""
    calls: int = 0
    """At its device."""
    waiting: Mapping[str, int] = MappingProxyType({})
    """Calls that have come there and wait, by group."""
    quick: Set[Hashable] = frozenset()
    """Digests of tasks whose calls take the device less than ``QUICK_S`` at least; none while others hold all of it up."""
    used_s: Mapping[str, float] = MappingProxyType({})
    """Device time since the process began, by group."""
    gpus: str = ""
    """The GPUs that it sees, as ``CUDA_VISIBLE_DEVICES`` has them."""


def read(names: Sequence[str]) -> dict[str, Report]:
    """Return the last reports of those executors that have ever come up, by name."""
    rows = table.get_all(table.Kind.REPORT, [name.encode() for name in names])
    return {name.decode(): Report(*pickle.loads(row)) for name, row in rows.items()}


def names() -> list[str]:
    """Return the names of the executors that have ever come up."""
    return [key.decode() for key in table.keys(table.Kind.REPORT)]


def actor_of(name: str) -> Any:
    """Return the actor of an executor that has reported; None, and forget it, where it is gone for good."""
    actor = table.actor(name)
    if actor is None:
        forget(name)  # it may have written that when it was told to end
    return actor


def forget(name: str) -> None:
    """Delete the report of an executor that is gone for good."""
    table.delete(table.Kind.REPORT, name.encode())
