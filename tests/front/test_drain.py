"""A dispatcher that takes no more calls, and takes them again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kaas_core.errors import CancelledError, DrainingError, StoreGoneError
from tests.front.support import REQUEST, dispatching, execute, later, run, until


class TestDrain:
    def test_nothing_in_flight(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with dispatching(tmp_path) as (dispatcher, (worker,)):
                assert not dispatcher.draining
                await dispatcher.drain()
                assert dispatcher.draining
                for call in (execute(dispatcher), dispatcher.prepare(REQUEST), dispatcher.inspect("x")):
                    with pytest.raises(DrainingError):
                        await call
                await dispatcher.drain()
                assert worker.queue.load == 0

        run(body())

    def test_what_is_in_flight_ends_first(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with dispatching(tmp_path) as (dispatcher, (worker,)):
                held = [later(dispatcher, "hold"), later(dispatcher, "hold")]
                await until(lambda: worker.queue.running == 2)
                drains = [asyncio.create_task(dispatcher.drain()) for _ in range(2)]
                await until(lambda: dispatcher.draining)
                with pytest.raises(DrainingError):
                    await execute(dispatcher)
                held[0].cancel()
                await asyncio.wait(held[:1])
                await asyncio.sleep(0)
                assert not any(drain.done() for drain in drains)
                held[1].cancel()
                await asyncio.gather(*drains)

        run(body())


class TestResume:
    def test_calls_are_taken_again(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with dispatching(tmp_path) as (dispatcher, _):
                dispatcher.resume()  # Nothing was drained.
                for _ in range(2):
                    await dispatcher.drain()
                    for _ in range(2):
                        dispatcher.resume()
                    assert not dispatcher.draining
                    await execute(dispatcher)

        run(body())

    def test_what_waits_and_runs_goes_on_and_who_waits_for_its_end_is_told(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with dispatching(tmp_path) as (dispatcher, (worker,)):
                held = [later(dispatcher, "hold") for _ in range(2)]
                await until(lambda: worker.queue.running == 2)
                waiting = [later(dispatcher, "look") for _ in range(2)]
                await until(lambda: dispatcher.stats()[0].queued == 2)
                drains = [asyncio.create_task(dispatcher.drain()) for _ in range(2)]
                await until(lambda: dispatcher.draining)
                await asyncio.sleep(0)
                dispatcher.resume()
                for drain in drains:
                    with pytest.raises(CancelledError, match="the drain was undone"):
                        await drain
                waiting.append(later(dispatcher, "look"))
                await until(lambda: dispatcher.stats()[0].queued == 3)
                again = asyncio.create_task(dispatcher.drain())
                await until(lambda: dispatcher.draining)
                for call in held:
                    call.cancel()
                await asyncio.gather(*waiting)
                await again
                assert dispatcher.draining

        run(body())

    def test_a_drain_for_good_is_not_undone(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with dispatching(tmp_path) as (dispatcher, _):
                await dispatcher.drain()
                await dispatcher.drain(for_good=True)
                await dispatcher.drain()
                for _ in range(2):
                    with pytest.raises(DrainingError, match="shutting down"):
                        dispatcher.resume()
                assert dispatcher.draining

        run(body())

    def test_a_store_that_is_lost_is_not_found_again(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with dispatching(tmp_path) as (dispatcher, (worker,)):
                held = later(dispatcher, "hold")
                await until(lambda: worker.queue.running == 1)
                drain = asyncio.create_task(dispatcher.drain())
                await until(lambda: dispatcher.draining)
                await asyncio.sleep(0)
                dispatcher.give_up(StoreGoneError("it was moved"))
                for call in (held, drain, execute(dispatcher)):
                    with pytest.raises(StoreGoneError, match="it was moved"):
                        await call
                with pytest.raises(StoreGoneError, match="it was moved"):
                    dispatcher.resume()

        run(body())


def test_a_dispatcher_that_drains_is_not_ready(tmp_path: Path) -> None:
    async def body() -> None:
        async with dispatching(tmp_path) as (dispatcher, _):
            readiness = dispatcher.readiness()
            for _ in range(2):
                assert await anext(readiness) is True
                await dispatcher.drain()
                assert await anext(readiness) is False
                dispatcher.resume()
            assert await anext(readiness) is True
            dispatcher.give_up(StoreGoneError("it was moved"))
            assert await anext(readiness) is False

    run(body())
