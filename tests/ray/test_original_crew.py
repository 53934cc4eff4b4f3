"""Workers of the original's pools that come, go and fail, without Ray: their actors are stand-ins that the tests answer for."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.exceptions import RayActorError

from kaas_client.ray.original.crew import Crew, PoolError, Work
from kaas_client.ray.original.profiling import profCollection
from kaasd.scheduling import Policy


@dataclass
class Method:
    """Of an actor: as much of it as crews use."""

    remote: Callable[..., Any]

    def options(self, **_: Any) -> Method:
        return self


class Actor:
    def __init__(self, group: str | None, holds_resources: bool | Exception) -> None:
        self.group = group
        self.calls: list[tuple[asyncio.Future[bool], str]] = []
        """What is to be done, with what it was called for."""
        self.shut_down = False
        self._holdsResources = Method(lambda: answer(holds_resources))
        self._getProfile = Method(lambda: answer(self._profile()))
        self._runWithCompletion = Method(self._run)
        self._shutdown = Method(self._end)

    def _run(self, method: str, *args: Any, groupID: str) -> list[Any]:
        done = asyncio.get_running_loop().create_future()
        self.calls.append((done, method))
        return [done, *args]

    def _profile(self) -> profCollection:
        profile = profCollection()
        profile["n_calls"].increment(len(self.calls))
        return profile

    def _end(self) -> asyncio.Future[None]:
        self.shut_down = True
        return answer(None)


@dataclass
class ActorClass:
    holds_resources: list[bool | Exception]
    """What each actor answers in turn, the last one again and again; an exception: it does not start."""
    actors: list[Actor] = field(default_factory=list)

    def remote(self, profLevel: int, defaultGroup: str | None) -> Actor:
        kind = self.holds_resources.pop(0) if len(self.holds_resources) > 1 else self.holds_resources[0]
        self.actors.append(Actor(defaultGroup, kind))
        return self.actors[-1]


def answer(value: Any) -> asyncio.Future[Any]:
    future = asyncio.get_running_loop().create_future()
    if isinstance(value, Exception):
        future.set_exception(value)
    else:
        future.set_result(value)
    return future


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine in a loop whose clock goes on as soon as there is nothing else to do."""
    now = 1000.0

    class Selector(selectors.SelectSelector):
        def select(self, timeout: float | None = None) -> Any:
            nonlocal now
            now += timeout or 0.0
            return super().select(0 if timeout is not None else 1)

    loop = asyncio.SelectorEventLoop(Selector())
    loop.time = lambda: now  # type: ignore[method-assign]
    try:
        loop.run_until_complete(asyncio.wait_for(scenario(), 1000))
    finally:
        loop.close()


async def settled() -> None:
    """Return when all that can happen at this moment has happened."""
    for _ in range(20):
        await asyncio.sleep(0)


def submit(crew: Crew, group: str, method: str) -> asyncio.Task[list[Any]]:
    return asyncio.get_running_loop().create_task(crew.run(Work(group, method, [method], {}, 1)))


def test_work_that_is_cancelled_delays_nobody() -> None:
    async def scenario() -> None:
        workers = ActorClass([False])
        crew = Crew(Policy.BALANCE, 0)
        crew.register("group", workers)
        crew.employ("0", workers)
        first, second, third = (submit(crew, "group", name) for name in ("first", "second", "third"))
        await settled()
        (actor,) = workers.actors
        assert await first == ["first"]
        second.cancel()
        await settled()
        actor.calls[0][0].set_result(True)
        assert await third == ["third"]
        actor.calls[1][0].set_exception(ValueError("its own affair"))
        await crew.idle()
        assert [method for _, method in actor.calls] == ["first", "third"]

    run(scenario)


def test_one_worker_is_enough() -> None:
    async def scenario() -> None:
        workers = ActorClass([ValueError("broken"), False])
        crew = Crew(Policy.BALANCE, 0)
        crew.register("group", workers)
        crew.employ("0", workers)
        crew.employ("1", workers)
        assert await submit(crew, "group", "work") == ["work"]
        assert [len(actor.calls) for actor in workers.actors] == [0, 1]

    run(scenario)


def test_work_fails_with_the_last_worker_that_could_be_started() -> None:
    async def scenario() -> None:
        workers = ActorClass([False, ValueError("broken")])
        crew = Crew(Policy.BALANCE, 0)
        crew.register("group", workers)
        crew.employ("0", workers)
        first, second = submit(crew, "group", "first"), submit(crew, "group", "second")
        assert await first == ["first"]
        workers.actors[0].calls[0][0].set_exception(RayActorError())
        for task in (second, submit(crew, "group", "third")):
            with pytest.raises(PoolError, match="broken"):
                await task
        with pytest.raises(PoolError, match="broken"):
            await submit(crew, "group", "fourth")
        await crew.idle()
        assert len(workers.actors) == 2

    run(scenario)


def test_a_group_without_workers_fails_alone_under_exclusive() -> None:
    async def scenario() -> None:
        good, bad = ActorClass([True]), ActorClass([ValueError("broken")])
        crew = Crew(Policy.EXCLUSIVE, 0)
        crew.open_slot("0")
        crew.register("good", good)
        crew.register("bad", bad)
        assert await submit(crew, "good", "first") == ["first"]
        good.actors[0].calls[0][0].set_result(True)
        with pytest.raises(PoolError, match="broken"):
            await submit(crew, "bad", "work")
        assert await submit(crew, "good", "second") == ["second"]
        good.actors[1].calls[0][0].set_result(True)
        await crew.idle()
        assert [(actor.group, actor.shut_down) for actor in good.actors] == [("good", True), ("good", False)]
        assert (await crew.profile())["n_calls"].total == 2
        assert (await crew.profile())["n_calls"].total == 1

    run(scenario)


def test_a_worker_that_holds_nothing_keeps_for_its_group_under_exclusive() -> None:
    async def scenario() -> None:
        classes = {"a": ActorClass([False]), "b": ActorClass([True])}
        crew = Crew(Policy.EXCLUSIVE, 0)
        crew.open_slot("0")
        for group, workers in classes.items():
            crew.register(group, workers)
        for group in "abab":
            assert await submit(crew, group, group) == [group]
            next(actor for actor in reversed(classes[group].actors) if actor.calls).calls[-1][0].set_result(True)
        await crew.idle()
        assert [(len(actor.calls), actor.shut_down) for actor in classes["a"].actors] == [(2, False)]
        assert [(len(actor.calls), actor.shut_down) for actor in classes["b"].actors] == [(1, True), (1, False)]
        await crew.dismiss()
        assert all(actor.shut_down for workers in classes.values() for actor in workers.actors)

    run(scenario)


def test_a_place_is_anyones_when_its_worker_died_under_exclusive() -> None:
    async def scenario() -> None:
        workers = ActorClass([True])
        crew = Crew(Policy.EXCLUSIVE, 0)
        crew.open_slot("0")
        crew.register("a", workers)
        crew.register("b", workers)
        assert await submit(crew, "a", "first") == ["first"]
        other = submit(crew, "b", "second")
        workers.actors[0].calls[0][0].set_exception(RayActorError())
        began = asyncio.get_running_loop().time()
        assert await other == ["second"]
        assert asyncio.get_running_loop().time() == began
        assert [actor.group for actor in workers.actors] == ["a", "b"]

    run(scenario)


def test_a_group_waits_for_the_worker_that_it_prefers_but_not_for_long() -> None:
    async def scenario() -> None:
        workers = ActorClass([False])
        crew = Crew(Policy.AFFINITY, 0)
        crew.register("group", workers, prefers=frozenset({"1"}))
        crew.employ("0", workers)
        crew.employ("1", workers)
        await settled()
        away, home = workers.actors
        await submit(crew, "group", "first")
        await asyncio.sleep(1.0)
        home.calls[0][0].set_result(True)
        await crew.idle()
        began = asyncio.get_running_loop().time()
        await submit(crew, "group", "second")
        await submit(crew, "group", "third")
        assert [len(actor.calls) for actor in (away, home)] == [1, 2]
        assert 5.0 < asyncio.get_running_loop().time() - began <= 10.0

    run(scenario)
