"""What workers of a pool inherit from."""

from __future__ import annotations

from typing import Any

import ray

from kaas_client.ray.original import profiling


class PoolWorker:
    """A worker: an actor whose methods a pool calls, one at a time."""

    def __init__(self, profLevel: int = 0, defaultGroup: str | None = None) -> None:
        """Metrics go to the group of each call, and before the first one to ``defaultGroup``; with details from level 1 on."""
        self.profLevel = profLevel
        self._defaultGroup = defaultGroup
        self._renewProfs()

    def getProfs(self) -> profiling.profCollection:
        """Return the metrics of the group that the present call is for."""
        return self._groupProfs

    def shutdown(self) -> None:
        """Called before the worker ends; to be overridden."""

    def _runWithCompletion(self, fName: str, *args: Any, groupID: str | None = None, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method. Return True, which is small enough to wait for, and what it returned, element by element if a tuple."""
        self._groupProfs = self._profs.of_group(groupID)
        result = getattr(self, fName)(*args, **kwargs)
        return (True, *result) if isinstance(result, tuple) else (True, result)

    def _holdsResources(self) -> bool:
        """Return whether others cannot have something of this node for as long as the worker lives."""
        return any(ray.get_runtime_context().get_assigned_resources().values())

    def _getProfile(self) -> profiling.profCollection:
        """Return the metrics, and begin anew."""
        latest = self._profs
        self._renewProfs()
        return latest

    def _shutdown(self) -> None:
        """End the worker, after what was called before."""
        self.shutdown()
        ray.actor.exit_actor()

    def _renewProfs(self) -> None:
        self._profs = profiling.createProfiler(self.profLevel)
        self._groupProfs = self._profs.of_group(self._defaultGroup)
