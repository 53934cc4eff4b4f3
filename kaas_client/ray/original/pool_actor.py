"""The actor behind a pool: its groups and workers, under one of the original's policies."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from kaas_client.ray.original import profiling
from kaas_client.ray.original.crew import Crew, PoolError, Work
from kaasd.scheduling import Policy

CALLS = 10_000
"""Calls that may wait for a worker at once. Each takes some KB."""


class PoolActor:
    """Runs work on workers. Its calls run side by side, in one event loop."""

    def __init__(self, max_workers: int, policy: str, prof_level: int) -> None:
        self._max_workers = max_workers
        self._policy = policy
        self._prof_level = prof_level
        self._crews: dict[str | None, Crew] = {}
        """By group. Under ``static`` each has its own; otherwise they are one and the same."""
        self._shared: Crew | None = None
        self._kind = ""
        """Of its workers."""
        self._waited = profiling.createProfiler(prof_level)
        """Of each group, how long its work waited."""

    async def register(self, group: str, worker_class: Any, arguments: Mapping[str, Any]) -> None:
        """Let a group send work. Raises ``PoolError``, ``TypeError`` for arguments that its policy does not take."""
        register = {
            "balance": self._register_balance,
            "affinity": self._register_affinity,
            "static": self._register_static,
            "exclusive": self._register_exclusive,
        }[self._policy]
        register(group, worker_class, **arguments)

    async def run(
        self,
        group: str | None,
        method: str,
        *awaited: Any,
        num_returns: int,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None,
    ) -> Any:
        """Return a reference to what the method returns, or a tuple of them, when a worker is there for it.

        ``awaited`` is there, or this would not run. Raises ``PoolError``.
        """
        if group not in self._crews:
            if self._policy != "balance" or self._shared is None:
                raise PoolError(f"there is no group {group!r}: call registerGroup")
            # The workers of one group are those of all: programs rely on that, and leave the group out.
            self._crews[group] = self._shared
            self._shared.register(group, None)
        with profiling.timer("t_policy_run", self._waited.of_group(group)):
            results = await self._crews[group].run(Work(group, method, args, kwargs or {}, num_returns))
        return results[0] if num_returns == 1 else tuple(results)

    async def profile(self) -> profiling.profCollection:
        """Return the metrics of the pool and of its workers since the last time, when all work is done."""
        found = profiling.createProfiler(self._prof_level)
        crews = self._each_crew()
        for crew in crews:
            await crew.idle()
        for profile in await asyncio.gather(*(crew.profile() for crew in crews)):
            found.mod("workers").merge(profile)
        for crew in crews:
            found.mod("pool").merge(crew.counters)
            crew.counters = profiling.createProfiler(self._prof_level)
        found.mod("pool").merge(self._waited)
        self._waited = profiling.createProfiler(self._prof_level)
        return found

    async def shutdown(self) -> None:
        """End the workers, and then this."""
        await asyncio.gather(*(crew.dismiss() for crew in self._each_crew()))
        ray.actor.exit_actor()

    def _each_crew(self) -> list[Crew]:
        return list(dict.fromkeys(self._crews.values()))

    def _register_balance(self, group: str, worker_class: Any) -> None:
        self._join_all(group, worker_class).register(group, worker_class)

    def _register_affinity(self, group: str, worker_class: Any, weight: float = 1, affinities: Sequence[int] = ()) -> None:
        """``weight`` is what a request costs its group; it prefers the workers of these numbers, from 0."""
        if not weight > 0:
            raise PoolError(f"a weight is a number above 0, not {weight!r}")
        self._join_all(group, worker_class).register(group, worker_class, 1 / weight, frozenset(map(str, affinities)))

    def _register_exclusive(self, group: str, worker_class: Any) -> None:
        if self._shared is None:
            self._shared = Crew(Policy.EXCLUSIVE, self._prof_level)
            for slot in range(self._max_workers):
                self._shared.open_slot(str(slot))
        self._crews[group] = self._shared
        self._shared.register(group, _for_this_cluster(worker_class))

    def _register_static(
        self,
        group: str,
        worker_class: Any,
        workerResources: int | float | Sequence[tuple[float, float]] = 1,
        resourceName: str = "GPU",
        nWorker: int = 1,
    ) -> None:
        """``workerResources`` are the group's workers: how many with one ``resourceName`` each, or the parts of each of them.

        Parts are of its threads, of which MPS sees to it that it uses no more, and of the resource itself.
        """
        if isinstance(workerResources, int):
            parts = [(1.0, 1.0)] * workerResources
        elif isinstance(workerResources, float):
            parts = [(workerResources, workerResources)] * int(nWorker)
        else:
            parts = list(workerResources)
        if group in self._crews:
            raise PoolError(f"group {group!r} is registered already")
        crew = self._crews[group] = Crew(Policy.BALANCE, self._prof_level)
        crew.register(group, worker_class)
        for slot, (threads, part) in enumerate(parts):
            crew.employ(str(slot), _with_part(worker_class, resourceName, threads, max(threads, part)), group)

    def _join_all(self, group: str, worker_class: Any) -> Crew:
        """Return the crew of all groups, whose workers are of the first one's class. Raises ``PoolError`` for another class."""
        kind = type(worker_class).__name__
        if self._shared is None:
            self._shared = Crew(Policy(self._policy), self._prof_level)
            self._kind = kind
            for slot in range(self._max_workers):
                self._shared.employ(str(slot), _for_this_cluster(worker_class))
        elif kind != self._kind:
            raise PoolError(f"under {self._policy} all groups have workers of the same class")
        self._crews[group] = self._shared
        return self._shared


def _for_this_cluster(worker_class: Any) -> Any:
    """Return a class of actors that asks for no GPU where the cluster has none: kernels run on emulated devices there."""
    options = _without_gpu(worker_class)
    return worker_class.options(**options) if options else worker_class


def _with_part(worker_class: Any, resource: str, threads: float, part: float) -> Any:
    """Return a class of actors that have a part of a resource, and of a GPU's threads under MPS."""
    if not hasattr(worker_class, "options"):
        return worker_class  # It has some already, which say what it needs.
    if resource != "GPU":
        return worker_class.options(**_without_gpu(worker_class), resources={resource: part})
    if not ray.cluster_resources().get("GPU"):
        return _for_this_cluster(worker_class)
    limit = {"env_vars": {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(100 * threads)}}
    return worker_class.options(num_gpus=part, runtime_env=limit)


def _without_gpu(worker_class: Any) -> dict[str, Any]:
    """Return the options of a class that has GPUs where the cluster has none."""
    needs = getattr(worker_class, "_default_options", {})
    if not needs.get("num_gpus") or ray.cluster_resources().get("GPU"):
        return {}
    return {"num_gpus": 0, "num_cpus": needs.get("num_cpus", 0)}
