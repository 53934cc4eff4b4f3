"""A dispatcher that takes no more calls, or sends one device none, and takes them again."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from kaas.v1 import admin_pb2
from kaas_core.errors import CancelledError, DrainingError, InvalidRequestError, StoreGoneError, WorkerRestartingError
from kaasd.front import worker_process
from kaasd.front.dispatcher import Dispatcher
from kaasd.front.supervisor import MAX_FAILED_STARTS
from kaasd.front.worker_process import RestartPolicy
from tests.front.support import REQUEST, dispatching, execute, later, run, until

READY, DRAINING, LOST = admin_pb2.WORKER_STATE_READY, admin_pb2.WORKER_STATE_DRAINING, admin_pb2.WORKER_STATE_LOST


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


def states(dispatcher: Dispatcher) -> list[admin_pb2.WorkerState]:
    return [device.state for device in dispatcher.devices()]


class TestDrainDevice:
    def test_what_runs_there_ends_and_the_rest_goes_elsewhere(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with dispatching(tmp_path, "", "") as (dispatcher, (worker, _)):
                held = later(dispatcher, "hold", device="d0")
                await until(lambda: worker.queue.running == 1)
                drains = [asyncio.create_task(dispatcher.drain_device("d0")) for _ in range(2)]
                await until(lambda: states(dispatcher) == [DRAINING, READY])
                replies = await asyncio.gather(*(execute(dispatcher) for _ in range(10)))
                assert {reply.device for reply in replies} == {"d1"}
                assert not any(drain.done() for drain in drains)
                held.cancel()
                await asyncio.gather(*drains)
                assert worker.queue.load == 0

                named = later(dispatcher, "look", device="d0")
                await execute(dispatcher)
                listed = [(request.device, request.state) for request in dispatcher.requests()]
                assert listed == [("d0", admin_pb2.REQUEST_STATE_QUEUED)]
                for _ in range(2):
                    dispatcher.resume_device("d0")
                assert (await named).device == "d0"
                assert states(dispatcher) == [READY, READY]

        run(body())

    def test_what_waited_for_it_goes_elsewhere(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with dispatching(tmp_path, "", "") as (dispatcher, workers):
                held = [later(dispatcher, "hold", device=device) for device in ("d0", "d1") for _ in range(3)]
                await until(lambda: [worker.queue.load for worker in workers] == [3, 3])
                waiting = [later(dispatcher, "look") for _ in range(20)]
                await until(lambda: dispatcher.stats()[0].queued == 21)
                drain = asyncio.create_task(dispatcher.drain_device("d0"))
                await until(lambda: states(dispatcher) == [DRAINING, READY])
                for call in held:
                    call.cancel()
                await asyncio.wait(held)
                assert {reply.device for reply in await asyncio.gather(*waiting)} == {"d1"}
                await drain

        run(body())

    def test_it_can_be_undone_meanwhile(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with dispatching(tmp_path, "", "") as (dispatcher, (worker, _)):
                held = later(dispatcher, "hold", device="d0")
                await until(lambda: worker.queue.running == 1)
                drain = asyncio.create_task(dispatcher.drain_device("d0"))
                await until(lambda: states(dispatcher) == [DRAINING, READY])
                dispatcher.resume_device("d0")
                with pytest.raises(CancelledError, match="the drain of d0 was undone"):
                    await drain
                assert states(dispatcher) == [READY, READY]
                held.cancel()

        run(body())

    def test_a_worker_that_takes_the_place_of_a_drained_one_is_drained(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with dispatching(tmp_path, "", "") as (dispatcher, (worker, _)):
                await dispatcher.drain_device("d0")
                os.kill(worker.info.worker_pid, signal.SIGKILL)
                await until(lambda: worker.info.restarts == 1 and states(dispatcher) == [DRAINING, READY])
                replies = await asyncio.gather(*(execute(dispatcher) for _ in range(10)))
                assert {reply.device for reply in replies} == {"d1"}
                async with dispatcher.pages_released():
                    pass
                dispatcher.resume_device("d0")
                assert states(dispatcher) == [READY, READY]
                assert (await execute(dispatcher, device="d0")).device == "d0"

        run(body())

    def test_what_ran_on_one_that_dies_meanwhile_ends_aside(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with dispatching(tmp_path, "", "") as (dispatcher, (worker, _)):
                suspect = later(dispatcher, "die once, then hold", device="d0")
                drain = asyncio.create_task(dispatcher.drain_device("d0"))
                await until(lambda: worker.info.restarts == 1 and worker.running == 1)
                assert not drain.done()
                suspect.cancel()
                await drain
                await until(lambda: states(dispatcher) == [DRAINING, READY])

        run(body())

    def test_one_that_is_not_there(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with dispatching(tmp_path) as (dispatcher, _):
                with pytest.raises(InvalidRequestError) as raised:
                    await dispatcher.drain_device("d1")
                assert [violation.field for violation in raised.value.violations] == ["name"]
                with pytest.raises(InvalidRequestError, match="no device 'd1'; it has d0"):
                    dispatcher.resume_device("d1")

        run(body())

    def test_a_server_with_none_that_takes_requests_is_not_ready(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with dispatching(tmp_path, "", "") as (dispatcher, _):
                readiness = dispatcher.readiness()
                assert await anext(readiness) is True
                for name in ("d0", "d1"):
                    await dispatcher.drain_device(name)
                assert await anext(readiness) is False
                dispatcher.resume_device("d1")
                assert await anext(readiness) is True

        run(body())


class TestLostDevice:
    def test_it_is_tried_at_once_after_resume(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Until then the others serve; what names it hears why it does not."""

        def lost(policy: RestartPolicy, was_ready: bool) -> float:
            policy.failures += not was_ready
            return 0.001 if policy.failures < MAX_FAILED_STARTS else 1e9

        monkeypatch.setattr(RestartPolicy, "lost", lost)
        monkeypatch.setattr(worker_process, "WANTED_DELAY_S", 1e9)

        async def body() -> None:
            async with dispatching(tmp_path, "fail until told", "") as (dispatcher, (worker, _)):
                seen = []
                worker.on_state = lambda: seen.append(worker.info.state)
                os.kill(worker.info.worker_pid, signal.SIGKILL)
                await until(lambda: states(dispatcher) == [LOST, READY])
                assert READY not in seen
                assert {reply.device for reply in await asyncio.gather(*(execute(dispatcher) for _ in range(10)))} == {"d1"}
                with pytest.raises(WorkerRestartingError, match="has not started 3 times in a row"):
                    await execute(dispatcher, device="d0")
                lives = worker.info.restarts
                dispatcher.resume_device("d0")
                await until(lambda: worker.info.restarts == lives + 1 and not worker._process.is_running)
                assert states(dispatcher) == [LOST, READY]
                (tmp_path / "d0" / "start").touch()
                dispatcher.resume_device("d0")
                await until(lambda: states(dispatcher) == [READY, READY])
                assert (await execute(dispatcher, device="d0")).device == "d0"

        run(body())
