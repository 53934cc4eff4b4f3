"""The original's pools: groups of callers share workers, which are actors, under a policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from functools import wraps
from typing import Any

import ray

from kaas_client.ray.original.crew import PoolError
from kaas_client.ray.original.pool_actor import CALLS, PoolActor
from kaas_client.ray.original.profiling import createProfiler, profCollection
from kaas_client.ray.original.worker import PoolWorker

__all__ = ["Pool", "PoolError", "PoolWorker", "createProfiler", "maxOutstanding", "policies", "remote_with_confirmation"]

maxOutstanding = 256
"""How many calls of a pool to have under way at once, at most, for its best throughput."""


class policies(StrEnum):
    """How groups share the workers of a pool."""

    BALANCE = "balance"
    """Any worker serves any group; all have the same class."""
    EXCLUSIVE = "exclusive"
    """A worker serves one group, until another one needs it: then it ends, and one of the other's class takes its place."""
    STATIC = "static"
    """Each group has its own workers."""
    AFFINITY = "affinity"
    """Any worker serves any group, and rather those that prefer it."""


class Pool:
    """Workers that groups share. It may be passed to tasks and actors."""

    def __init__(
        self,
        maxWorkers: int,
        policy: policies | str = policies.BALANCE,
        profLevel: int = 0,
        policyArgs: Mapping[str, Any] | None = None,
    ) -> None:
        """Start a pool of so many workers, with details in its metrics from ``profLevel`` 1 on. Raises ``PoolError``."""
        try:
            name = policies(policy).value
        except ValueError:
            raise PoolError(f"there is no policy {policy!r}") from None
        if policyArgs:
            raise PoolError(f"the policy {name} takes no arguments: {', '.join(policyArgs)}")
        self.dead = False
        self.profile: profCollection | None = None
        self.pool = _ACTOR.remote(maxWorkers, name, profLevel)

    def registerGroup(self, groupID: str, workerClass: Any, **policyArgs: Any) -> None:
        """Let a group use the pool, with workers of a class of actors that inherits from ``PoolWorker``.

        ``policyArgs`` are ``weight`` and ``affinities`` for the policy affinity, ``workerResources``, ``resourceName`` and
        ``nWorker`` for static. Raises ``PoolError``.
        """
        ray.get(self.registerGroupAsync(groupID, workerClass, **policyArgs))

    def registerGroupAsync(self, groupID: str, workerClass: Any, **policyArgs: Any) -> Any:
        """As ``registerGroup``, but return a reference at once, which is there when the group may use the pool."""
        self._check()
        return self.pool.register.remote(groupID, workerClass, policyArgs)

    def run(
        self,
        groupID: str | None,
        methodName: str,
        num_returns: int = 1,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        refDeps: Sequence[Any] | None = None,
    ) -> Any:
        """Call a method of one of the group's workers, when one is there for it and the references in ``refDeps`` are ready.

        Return a reference to a reference to what it returns; for more ``num_returns`` than one, a list of such. Raises
        ``PoolError``.
        """
        self._check()
        if num_returns < 1:
            raise PoolError(f"a call returns something: num_returns must be at least 1, not {num_returns}")
        method = self.pool.run.options(num_returns=num_returns)
        return method.remote(groupID, methodName, *(refDeps or ()), num_returns=num_returns, args=args, kwargs=kwargs)

    def getProfile(self) -> profCollection | None:
        """Return the metrics since the last time, when all work is done: those of ``pool`` and of its ``workers``, by group."""
        return self.profile if self.dead else ray.get(self.pool.profile.remote())

    def shutdown(self) -> None:
        """End the workers when all work is done. What they returned is lost with them, where it was not read."""
        self._check()
        self.profile = self.getProfile()
        self.dead = True
        ray.wait([self.pool.shutdown.remote()])

    def _check(self) -> None:
        if self.dead:
            raise PoolError("the pool was shut down")


def remote_with_confirmation(**kwargs: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make a task of a function, as ``ray.remote`` does, that returns True before what the function returns.

    It is small, so a task that waits for it moves no data. ``num_returns`` is what the function returns, without it; with it in
    ``options``.
    """
    kwargs["num_returns"] = kwargs.get("num_returns", 1) + 1

    def decorate(function: Callable[..., Any]) -> Any:
        @wraps(function)
        def confirmed(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
            result = function(*args, **kwargs)
            return (True, *result) if isinstance(result, tuple) else (True, result)

        return _REMOTE(**kwargs)(confirmed)

    return decorate


_REMOTE: Any = ray.remote  # its types are for options that are known
_ACTOR = _REMOTE(num_cpus=0, max_concurrency=CALLS)(PoolActor)
