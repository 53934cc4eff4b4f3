"""Workers of a pool, and the work that waits for them. A scheduler of kaasd decides; to it each worker is a device."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

import ray
from ray.exceptions import RayActorError

from kaas_client.ray.original.profiling import createProfiler, profCollection
from kaasd.scheduling import Datum, Group, Policy, QueuedRequest, Restart, Scheduler

ELSEWHERE = 10
"""What a worker that a group does not prefer costs its request, in times of the group's typical request, as in the original."""
FIRST_S = 1e-3
"""What a group's first request is expected to take."""
TYPICAL_WEIGHT = 0.25
"""Of the latest time in the typical one."""


class PoolError(Exception):
    """What a pool cannot do."""

    def __init__(self, msg: str) -> None:
        super().__init__(msg)
        self.msg = msg


@dataclass(eq=False)
class Work:
    """A call of a worker's method."""

    group: str | None
    method: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    num_returns: int


@dataclass(eq=False)
class Member:
    """A group."""

    id: str | None
    name: str
    """For the scheduler, which does not take every id."""
    worker_class: Any
    prefers: frozenset[str] = frozenset()
    """Workers."""
    typical_s: float = 0.0


@dataclass(eq=False)
class Worker:
    """An actor."""

    actor: Any
    worker_class: Any
    group: str | None
    """The only one that it serves; None: any."""
    holds_resources: bool = True
    """Of its node, for as long as it lives."""


@dataclass(eq=False)
class Pending:
    """Work, until it is done."""

    work: Work
    started: asyncio.Future[list[Any]]
    """Gets references to what the method returns."""


class Crew:
    """Used within one event loop."""

    def __init__(self, policy: Policy, prof_level: int) -> None:
        self.counters = createProfiler(prof_level)
        """``n_cold_start`` and ``n_killed``; whoever reads them puts others in place."""
        self._scheduler = Scheduler(policy=policy)
        self._is_exclusive = policy is Policy.EXCLUSIVE
        self._prof_level = prof_level
        self._members: dict[str | None, Member] = {}
        self._slots: set[str] = set()
        """Of workers: those that are there, start, or are there to be filled."""
        self._workers: dict[str, Worker] = {}
        """By slot, those that are used; a slot may be empty until it is."""
        self._starting: dict[str, Worker] = {}
        self._parked: dict[str | None, list[Worker]] = {}
        """Workers whose slots other groups have now: those that hold nothing need not end, and what they own is not lost."""
        self._last_profiles: list[Any] = []
        """References to the metrics of workers that have ended."""
        self._failure = "the pool has no workers"
        """Why there is no slot."""
        self._pending: dict[QueuedRequest, Pending] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def register(self, group: str | None, worker_class: Any, share: float = 1.0, prefers: frozenset[str] = frozenset()) -> None:
        """Let a group send work; again, to change what it is granted."""
        member = self._members.setdefault(group, Member(group, f"g{len(self._members)}", worker_class))
        member.prefers = prefers
        self._scheduler.set_group(Group(member.name, share))
        for slot in prefers & self._workers.keys():
            self._scheduler.holds(slot, member.name)

    def employ(self, slot: str, worker_class: Any, group: str | None = None) -> None:
        """Start a worker, which serves only ``group`` if one is given."""
        self._slots.add(slot)
        self._starting[slot] = self._hire(worker_class, group)
        self._spawn(self._start(slot))

    def open_slot(self, slot: str) -> None:
        """Have a worker here for whichever group needs one."""
        self._slots.add(slot)
        self._scheduler.add_device(slot)

    async def run(self, work: Work) -> list[Any]:
        """Return references to what the method returns, as soon as a worker is there for it. Raises ``PoolError``."""
        if not self._slots:
            raise PoolError(self._failure)
        member = self._members[work.group]
        data = (Datum(member.name, ELSEWHERE * (member.typical_s or FIRST_S)),) if member.prefers else ()
        request = QueuedRequest(work, member.name, data=data)
        pending = self._pending[request] = Pending(work, asyncio.get_running_loop().create_future())
        self._idle.clear()
        self._scheduler.submit(request)
        self._decide()
        try:
            return await pending.started
        except asyncio.CancelledError:
            if self._scheduler.cancel(request):
                self._forget(request)
            raise

    async def idle(self) -> None:
        """Return when all work is done."""
        await self._idle.wait()

    async def profile(self) -> profCollection:
        """Return the metrics of all workers since the last time; those of one that died are lost."""
        found = createProfiler(self._prof_level)
        profiles, self._last_profiles = self._last_profiles, []
        profiles += [worker.actor._getProfile.remote() for worker in self._all_workers()]
        for profile in await asyncio.gather(*profiles, return_exceptions=True):
            if isinstance(profile, profCollection):
                found.merge(profile)
            elif not isinstance(profile, RayActorError):
                raise profile
        return found

    async def dismiss(self) -> None:
        """End all workers, each after its own ``shutdown``; those that are not ready at once."""
        for task in self._tasks:
            task.cancel()
        for worker in self._starting.values():
            ray.kill(worker.actor)
        await asyncio.gather(*(worker.actor._shutdown.remote() for worker in self._all_workers()), return_exceptions=True)

    # Workers

    def _hire(self, worker_class: Any, group: str | None) -> Worker:
        self.counters.of_group(group)["n_cold_start"].increment(1)
        return Worker(worker_class.remote(profLevel=self._prof_level, defaultGroup=group), worker_class, group)

    def _worker_for(self, member: Member) -> Worker:
        parked = self._parked.get(member.id)
        return parked.pop() if parked else self._hire(member.worker_class, member.id)

    async def _get_ready(self, worker: Worker) -> None:
        """Return when a worker is there. Raises what became of it instead."""
        worker.holds_resources = await worker.actor._holdsResources.remote()

    async def _start(self, slot: str) -> None:
        """Open a slot when its worker is there."""
        worker = self._starting[slot]
        try:
            await self._get_ready(worker)
        except Exception as error:
            self._slots.discard(slot)
            self._failed(error, () if self._slots else self._members)
            return
        finally:
            del self._starting[slot]
        self._workers[slot] = worker
        self._scheduler.add_device(slot)
        for member in self._members.values():
            if slot in member.prefers:
                self._scheduler.holds(slot, member.name)
        self._decide()

    async def _replace(self, slot: str, member: Member) -> None:
        """Give a slot to another group: what its worker was is gone, or is kept for its own group."""
        old = self._workers.pop(slot, None)
        if old is not None and old.holds_resources:
            self.counters.of_group(old.group)["n_killed"].increment(1)
            self._last_profiles.append(old.actor._getProfile.remote())
            old.actor._shutdown.remote()
        elif old is not None:
            self._parked.setdefault(old.group, []).append(old)
        worker = self._starting[slot] = self._worker_for(member)
        try:
            await self._get_ready(worker)
        except Exception as error:
            self._failed(error, [member.id])
            self._scheduler.remove_device(slot)
        else:
            self._workers[slot] = worker
        finally:
            del self._starting[slot]
        self._scheduler.add_device(slot)
        self._decide()

    def _failed(self, error: Exception, groups: Collection[str | None]) -> None:
        """A worker could not be started. The work of these groups has none."""
        self._failure = f"a worker could not be started: {error}"
        for request, pending in list(self._pending.items()):
            if pending.work.group in groups and self._scheduler.cancel(request):
                pending.started.set_exception(PoolError(self._failure))
                self._forget(request)

    def _all_workers(self) -> list[Worker]:
        return [*self._workers.values(), *chain.from_iterable(self._parked.values())]

    # Work

    def _decide(self) -> None:
        """Do what the scheduler decides, after anything has happened."""
        for decision in self._scheduler.decide(self._now()):
            if isinstance(decision, Restart):
                member = next(each for each in self._members.values() if each.name == decision.group)
                self._spawn(self._replace(decision.device, member))
            else:
                self._call(decision.request, decision.device)
        if self._timer is not None:
            self._timer.cancel()
        wakes_at = self._scheduler.wakes_at
        self._timer = None if wakes_at == math.inf else asyncio.get_running_loop().call_at(wakes_at, self._decide)

    def _call(self, request: QueuedRequest, slot: str) -> None:
        pending = self._pending[request]
        work = pending.work
        worker = self._workers.get(slot)
        if worker is None:
            worker = self._workers[slot] = self._worker_for(self._members[work.group])
            self._spawn(self._learn(worker))
        method = worker.actor._runWithCompletion.options(num_returns=work.num_returns + 1)
        done: Any = None
        try:
            done, *results = method.remote(work.method, *work.args, groupID=work.group, **work.kwargs)
        except Exception as error:  # The arguments are such that Ray does not take them.
            if not pending.started.done():
                pending.started.set_exception(error)
        else:
            if not pending.started.done():
                pending.started.set_result(results)
        self._spawn(self._wait(request, slot, worker, done))

    async def _learn(self, worker: Worker) -> None:
        """Learn what a worker holds. If it is not there, the work that it was called for says so."""
        with suppress(Exception):
            await self._get_ready(worker)

    async def _wait(self, request: QueuedRequest, slot: str, worker: Worker, done: Any) -> None:
        """Wait until a worker has done what it was called for, well or not: that is for who has the references to say."""
        lost = False
        try:
            if done is not None:
                await done
        except RayActorError:
            lost = self._workers.get(slot) is worker
        except Exception:
            pass
        if lost:
            del self._workers[slot]
            self._scheduler.remove_device(slot)
        self._finished(request, slot)
        if lost and self._is_exclusive:
            self._scheduler.add_device(slot)
        elif lost:
            self.employ(slot, worker.worker_class, worker.group)
        self._decide()

    def _finished(self, request: QueuedRequest, slot: str) -> None:
        now = self._now()
        member = self._members[self._pending[request].work.group]
        took_s = now - request.started_at
        member.typical_s += (took_s - member.typical_s) * (TYPICAL_WEIGHT if member.typical_s else 1)
        self._scheduler.finished(request, now)
        if member.prefers and slot not in member.prefers:
            self._scheduler.dropped(slot, member.name)
        self._forget(request)

    def _forget(self, request: QueuedRequest) -> None:
        del self._pending[request]
        if not self._pending:
            self._idle.set()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
