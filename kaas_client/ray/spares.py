"""Spare executors: each has the device of another open, and takes the calls that come while that one starts anew.

The pool actor keeps them; who submits a call finds the one that it needs by its name.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kaas_client.ray import table
from kaas_client.ray.reports import Report

_MARK = "/spare-"
"""In a spare's name, behind its executor's."""


def want(wanted: bool) -> None:
    """Have one for each executor from now on, or none."""
    if wanted:
        table.put(table.Kind.SPARES, b"", b"wanted")
    else:
        table.delete(table.Kind.SPARES, b"")


def are_wanted() -> bool:
    """Return whether there are to be some."""
    return table.exists(table.Kind.SPARES, b"")


def is_spare(name: str) -> bool:
    """Return whether an actor's name is a spare's."""
    return _MARK in name


def name_of(executor: str, report: Report) -> str:
    """Return the name of the spare of an executor where that is now: one that was started elsewhere is none."""
    place = sha256(f"{report.node} {report.gpus}".encode()).hexdigest()
    return f"{executor}{_MARK}{place[:12]}"


def names() -> set[str]:
    """Return the names of those that there are."""
    return {name for name in table.actors() if is_spare(name)}


def start(actors: Any, executor: str, device: str, report: Report) -> None:
    """Start the spare of an executor, of this class of actors, beside it."""
    actors.options(
        name=name_of(executor, report),
        namespace=table.NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        num_cpus=0,
        num_gpus=0,  # It shares its executor's.
        scheduling_strategy=NodeAffinitySchedulingStrategy(report.node, soft=False),
    ).remote(device, stands_in=True, gpus=report.gpus)


def stop(name: str) -> None:
    """End one, with what it runs. Idempotent."""
    if (actor := table.actor(name)) is not None:
        ray.kill(actor)
