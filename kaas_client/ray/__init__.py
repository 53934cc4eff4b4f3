"""Requests as tasks of a Ray cluster.

    ray.init(address="auto")
    kaas_ray.init()
    dot = kaas_ray.remote(Request([Kernel("dot.ptx", …)]))
    reference = dot.remote(a=array, b=another_reference)
    print(ray.get(reference))

A reference is as any of Ray's: it may be passed on to other tasks before it is ready.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayTaskError, TaskCancelledError

from kaas_client.builders import Request
from kaas_client.ray import cluster, groups, library, pool
from kaas_client.ray import spares as spare
from kaas_client.ray.function import RemoteFunction
from kaas_client.ray.library import find_function, register, upload
from kaas_client.ray.policies import Sharing
from kaas_client.ray.session import Session
from kaas_client.ray.table import NAMESPACE
from kaas_core.errors import CancelledError, InvalidArgumentError, KaasError, UnavailableError
from kaas_core.violations import shown
from kaasd.scheduling import Group
from kaasd.scheduling.leases import RESTART_S

__all__ = [
    "NAMESPACE",
    "RemoteFunction",
    "executors",
    "get",
    "init",
    "policy",
    "register",
    "remote",
    "set_group",
    "shutdown",
    "upload",
]


def init(device: str = "auto", executors: int | None = None, *, spares: bool = False) -> None:
    """Have executors on the cluster that ``ray.init`` joined: those that are there, and new ones up to ``executors``.

    ``auto`` stands for the cluster's GPUs, or for emulated devices where it has none, ``emulator`` for these. None starts one for
    each device that the cluster has. Returns when one is there; the others are used as they come up. With ``spares`` each has
    another beside it, soon after it has come up, with the same device open: it takes the calls that come while the first one
    starts anew, as after a kernel that did not end. Not under ``exclusive``, where a process serves one group alone.

    Raises ``InvalidArgumentError``, ``UnavailableError``.
    """
    if not ray.is_initialized():
        raise UnavailableError("this process has not joined a cluster of Ray: call ray.init() first")
    found = cluster.start(cluster.kind_of_device(device), executors)
    spare.want(spares)
    pool.start()
    cluster.wait_for_one(found)
    Session.begin(found)


def executors() -> list[str]:
    """Return the names of the executors that calls of this process run on."""
    return [executor.name for executor in Session.current().executors]


def remote(request_or_name: Request | str) -> RemoteFunction:
    """Return a request, or the one that was registered under a name, as a task of Ray.

    A library that a kernel names by its path is read now, from this machine. Raises ``InvalidRequestError``,
    ``LibraryNotFoundError``, ``FunctionNotFoundError``.
    """
    if isinstance(request_or_name, str):
        return RemoteFunction(request_or_name, find_function(request_or_name))
    request = library.published(request_or_name.spec)
    return RemoteFunction("+".join(dict.fromkeys(kernel.name for kernel in request.kernels))[:100], request)


def get(references: Any, *, timeout: float | None = None) -> Any:
    """Return what ``ray.get`` does. What it raises of a request is the exception of ``kaas_client.errors`` itself.

    ``ray.get`` raises one of a class derived from this, which cannot be pickled, and hides what was set on the exception alone;
    and for a cancelled request, as for any task, its own ``TaskCancelledError``.
    """
    try:
        return ray.get(references, timeout=timeout)
    except RayTaskError as error:
        if isinstance(error.cause, KaasError):
            raise error.cause from None
        raise
    except TaskCancelledError as error:
        raise CancelledError(str(error)) from None


def set_group(
    name: str,
    share: float = 1.0,
    *,
    priority: int = 0,
    max_running: int = 0,
    max_queued: int = 0,
    max_queued_bytes: int = 0,
    max_device_memory_bytes: int = 0,
) -> None:
    """Make a group, or change what it is granted: its share beside other groups, and limits, each for every executor.

    As a limit 0 is none. Raises ``InvalidArgumentError``, ``UnavailableError``.
    """
    groups.write(Group(name, share, priority, max_running, max_queued, max_queued_bytes, max_device_memory_bytes))
    Session.current().tell("set_group", name)


def policy(name: str, *, owners: Mapping[str, str] | None = None, restart_s: float = RESTART_S) -> None:
    """Have the groups of the cluster share its executors in another way, from now on.

    ``affinity`` is what holds unless another is set, ``balance`` takes no account of where data are. Under ``static`` executors
    belong to groups, by ``owners``. Under ``exclusive`` each serves one group at a time, and starts anew for the next, which
    takes ``restart_s``. Raises ``InvalidArgumentError``, ``UnavailableError``.
    """
    session = Session.current()
    sharing = Sharing.of(name, owners, restart_s)
    if unknown := sharing.owners.keys() - set(executors()):
        raise InvalidArgumentError(f"there is no executor {shown(min(unknown))}: there are {', '.join(executors())}")
    sharing.write()
    session.tell("reload_policy")
    session.placer.refresh()


def shutdown() -> None:
    """End the executors, with what they run, and the pool."""
    pool.stop()
    for name in spare.names():
        spare.stop(name)
    cluster.stop(Session.current().executors)
    Session.end()
