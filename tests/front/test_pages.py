"""Workers that are to let go of the store's pages: all of them, those that start meanwhile too, or the caller hears of it."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from kaas.v1 import admin_pb2
from kaas_core.errors import InternalError, KaasError, WorkerBusyError, WorkerRestartingError
from kaasd.front import dispatcher as module
from kaasd.front.supervisor import Supervisor
from tests.front.support import call, config, run, supervised, until
from tests.front.test_dispatcher import dispatching, execute, later, seen

READY = admin_pb2.WORKER_STATE_READY


async def told(worker: Supervisor) -> list[bool]:
    """Return what the latest process was told of pages, before this call."""
    return [entry[1] for entry in (await call(worker, "look"))["log"] if entry[0] == "hold_pages"]


def test_all_workers_let_go_and_may_hold_on_again(tmp_path: Path) -> None:
    async def body() -> None:
        async with dispatching(tmp_path, "", "") as (dispatcher, workers):
            async with dispatcher.pages_released():
                assert [await told(worker) for worker in workers] == [[False], [False]]
            assert [await told(worker) for worker in workers] == [[False, True], [False, True]]

    run(body())


def test_requests_under_way_do_not_keep_a_worker_from_it(tmp_path: Path) -> None:
    async def body() -> None:
        async with dispatching(tmp_path) as (dispatcher, (worker,)):
            held = later(dispatcher, "hold")
            await until(lambda: worker.queue.running == 1)
            async with dispatcher.pages_released():
                assert seen(await execute(dispatcher))["log"][-2] == ["hold_pages", False]
            held.cancel()

    run(body())


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        ("keeps pages", WorkerBusyError, r"d1 has not let go .* within 0.2 s"),
        ("cannot release pages", InternalError, "they are held"),
        ("dies of releasing pages", WorkerRestartingError, "d1 has ended; nothing was changed"),
    ],
)
def test_one_that_does_not_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, kind: type[KaasError], message: str
) -> None:
    """Nothing is done, and all of them may hold on again."""
    monkeypatch.setattr(module, "RELEASE_TIMEOUT_S", 0.2 if script == "keeps pages" else 60.0)

    async def body() -> None:
        async with dispatching(tmp_path, "", script) as (dispatcher, workers):
            with pytest.raises(kind, match=message) as caught:
                async with dispatcher.pages_released():
                    raise AssertionError("not all have let go")
            assert type(caught.value) is kind
            assert await told(workers[0]) == [False, True]
            await until(lambda: workers[1].info.state == READY)
            assert (await told(workers[1]))[-1:] != [False]

    run(body())


def test_a_worker_that_dies_meanwhile_has_a_successor_that_is_told_before_its_first_call(tmp_path: Path) -> None:
    async def body() -> None:
        async with dispatching(tmp_path) as (dispatcher, (worker,)):
            async with dispatcher.pages_released():
                os.kill(worker.info.worker_pid, signal.SIGKILL)
                await until(lambda: worker.info.state != READY)
                assert seen(await execute(dispatcher))["log"][0] == ["hold_pages", False]
            assert await told(worker) == [False, True]
            os.kill(worker.info.worker_pid, signal.SIGKILL)
            await until(lambda: worker.info.state != READY)
            assert await told(worker) == []

    run(body())


def test_a_worker_that_starts_is_told_before_its_first_call(tmp_path: Path) -> None:
    async def body() -> None:
        supervisor = Supervisor(config(tmp_path), 10)
        await supervisor.release_pages(60.0)
        await supervisor.start()
        assert await told(supervisor) == [False]
        await supervisor.close()
        await supervisor.release_pages(60.0)  # whoever is gone holds none

    run(body())


def test_a_worker_whose_end_is_near_is_not_waited_for(tmp_path: Path) -> None:
    """Its process may hold pages as long as it is there."""

    async def body() -> None:
        async with supervised(tmp_path) as worker:
            worker._set_state(admin_pb2.WORKER_STATE_RESTARTING)
            with pytest.raises(WorkerRestartingError):
                await worker.release_pages(60.0)

    run(body())


def test_who_waits_for_it_may_be_cancelled(tmp_path: Path) -> None:
    async def body() -> None:
        async with dispatching(tmp_path, "keeps pages") as (dispatcher, (worker,)):

            async def release() -> None:
                async with dispatcher.pages_released():
                    raise AssertionError("it keeps them")

            task = asyncio.create_task(release())
            await until(lambda: worker._released is not None)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await told(worker) == [False, True]

    run(body())
