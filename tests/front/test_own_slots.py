"""A group with multiprocessors of its own waits for nobody's requests but its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

from kaasd.scheduling import Group
from tests.front.support import dispatching, execute, later, run, until

ALERTS = Group("alerts", reserves=True)
HELD = 5
"""Requests of others: a worker of two at a time has three, and two wait for it."""


def test_its_request_runs_though_others_have_all_places(tmp_path: Path) -> None:
    async def body() -> None:
        async with dispatching(tmp_path, "divides", groups=[ALERTS]) as (dispatcher, (worker,)):
            dispatcher.reserve({"alerts": 8})
            held = [later(dispatcher, "hold") for _ in range(HELD)]
            await until(lambda: worker.queue.load == 3)
            assert (await execute(dispatcher, group="alerts")).device == "d0"
            own = later(dispatcher, "hold", group="alerts")
            await until(lambda: worker.queue.load == 4)
            second = later(dispatcher, group="alerts", script="look")
            await until(lambda: dispatcher.stats()[0].queued == 2 + 1)
            own.cancel()
            assert (await second).group == "alerts"
            assert worker.queue.load == 3
            for call in held:
                call.cancel()
            await asyncio.wait(held)

    run(body())


def test_without_devices_that_divide_it_waits_as_others_do(tmp_path: Path) -> None:
    async def body() -> None:
        async with dispatching(tmp_path, "", groups=[ALERTS]) as (dispatcher, (worker,)):
            dispatcher.reserve({"alerts": 8})
            held = [later(dispatcher, "hold") for _ in range(3)]
            await until(lambda: worker.queue.load == 3)
            waits = later(dispatcher, "look", group="alerts")
            await until(lambda: dispatcher.stats()[0].queued == 2)
            assert worker.queue.load == 3
            held[0].cancel()
            held[1].cancel()
            assert (await waits).device == "d0"
            held[2].cancel()
            await asyncio.wait(held)

    run(body())


def test_what_is_reserved_no_more_waits_again(tmp_path: Path) -> None:
    async def body() -> None:
        async with dispatching(tmp_path, "divides", groups=[ALERTS]) as (dispatcher, (worker,)):
            dispatcher.reserve({"alerts": 8})
            held = [later(dispatcher, "hold") for _ in range(3)]
            await until(lambda: worker.queue.load == 3)
            await execute(dispatcher, group="alerts")
            dispatcher.reserve({})
            dispatcher._queue.set_group(Group("alerts"))
            waits = later(dispatcher, "look", group="alerts")
            await until(lambda: dispatcher.stats()[0].queued == 2)
            for call in held:
                call.cancel()
            assert (await waits).device == "d0"
            await asyncio.wait(held)

    run(body())
