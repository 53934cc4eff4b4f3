"""A spare takes over at once, and knows what it will be asked."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from kaas.v1 import admin_pb2
from kaas_core.errors import OutOfDeviceMemoryError, StoreGoneError, WorkerRestartingError
from kaasd.front import worker_process
from kaasd.front.spare import Spare
from kaasd.front.supervisor import Supervisor
from kaasd.front.worker_process import WorkerProcess
from kaasd.ipc.messages import SerializedRequest
from tests.front.support import REQUEST, call, config, is_alive, run, supervised, until

READY = admin_pb2.WORKER_STATE_READY
OTHER = SerializedRequest.of(b"another request")


def spare_of(supervisor: Supervisor) -> Spare:
    spare = supervisor._spare
    assert spare is not None
    return spare


def pid_of(spare: Spare) -> int:
    assert spare._process is not None
    return spare._process.pid


def test_it_takes_over_and_another_comes(tmp_path: Path) -> None:
    async def body() -> None:
        async with supervised(tmp_path, has_spare=True) as worker:
            states: list[int] = []
            for restarts in (1, 2):
                await until(lambda: spare_of(worker).is_ready)
                serves, waits = worker.info.worker_pid, pid_of(spare_of(worker))
                assert serves != waits
                worker.on_state = lambda: states.append(worker.info.state)
                os.kill(serves, signal.SIGKILL)
                await until(lambda count=restarts: worker.info.restarts == count)
                assert worker.info.worker_pid == waits
                assert (await call(worker, "look"))["pid"] == waits
                assert states == [READY] * restarts, "there is always one that serves"
                await until(lambda pid=serves: not is_alive(pid))
            left = [worker.info.worker_pid, pid_of(spare_of(worker))]
        assert not any(map(is_alive, left))

    run(body())


def test_what_waited_runs_on_the_spare_and_what_the_worker_ran_elsewhere(tmp_path: Path) -> None:
    async def body() -> None:
        async with supervised(tmp_path, has_spare=True) as worker:
            await until(lambda: spare_of(worker).is_ready)
            spare = pid_of(spare_of(worker))
            calls = [asyncio.create_task(call(worker, script)) for script in ("die once", "look", "look")]
            ran, *waited = [(await each)["pid"] for each in calls]
            assert waited == [spare] * 2
            assert ran not in (spare, pid_of(spare_of(worker)))
            await until(lambda: spare_of(worker).is_ready)
            with pytest.raises(WorkerRestartingError):
                await call(worker, "die committing")
            assert worker.info.restarts == 2

    run(body())


def test_what_finds_no_room_before_the_process_that_was_lost_has_ended_waits_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = asyncio.Event()
    close = WorkerProcess.close

    async def close_late(process: WorkerProcess) -> None:
        await ended.wait()
        await close(process)

    async def body() -> None:
        async with supervised(tmp_path, has_spare=True) as worker:
            await until(lambda: spare_of(worker).is_ready)
            monkeypatch.setattr(WorkerProcess, "close", close_late)
            os.kill(worker.info.worker_pid, signal.SIGKILL)
            await until(lambda: worker.info.restarts == 1)
            needy = asyncio.create_task(call(worker, "need room"))
            await asyncio.sleep(0)
            seen = await call(worker, "look")
            waited = not needy.done()
            ended.set()
            assert waited and [entry[0] for entry in seen["log"]] == ["need room", "look"]
            assert [entry[0] for entry in (await needy)["log"]] == ["need room", "look", "need room"]
            (tmp_path / "scripted" / "needs").unlink()
            with pytest.raises(OutOfDeviceMemoryError):
                await call(worker, "need room")

    run(body())


def test_one_that_stands_still_does_not_take_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(worker_process, "MOST_UNANSWERED", 10**6)

    async def body() -> None:
        async with supervised(tmp_path, has_spare=True) as worker:
            await until(lambda: spare_of(worker).is_ready)
            spare = pid_of(spare_of(worker))
            os.kill(spare, signal.SIGSTOP)
            process = spare_of(worker)._process
            assert process is not None
            await asyncio.sleep(0.2)  # What it has said before is read.
            await until(lambda: process.is_silent)
            assert (await call(worker, "die once"))["pid"] != spare
            await call(worker, "look")
            assert worker.info.worker_pid != spare
            os.kill(spare, signal.SIGKILL)

    run(body())


def prepared(seen: dict[str, Any]) -> list[int]:
    """Return the sizes of the requests that a worker has prepared."""
    return [entry[1] for entry in seen["log"] if entry[0] == "prepare"]


def test_it_loads_the_code_of_what_was_asked_before_and_after_it_came(tmp_path: Path) -> None:
    async def body() -> None:
        async with supervised(tmp_path, has_spare=True) as worker:
            await call(worker, "look", REQUEST)
            await until(lambda: spare_of(worker).is_ready)
            await call(worker, "look", OTHER)
            await call(worker, "look", REQUEST)
            os.kill(worker.info.worker_pid, signal.SIGKILL)
            await until(lambda: worker.info.restarts == 1)
            assert sorted(prepared(await call(worker, "look"))) == sorted([len(REQUEST.content), len(OTHER.content)])

    run(body())


def test_a_spare_that_ends_is_replaced_and_nobody_notices(tmp_path: Path) -> None:
    async def body() -> None:
        async with supervised(tmp_path, has_spare=True) as worker:
            await until(lambda: spare_of(worker).is_ready)
            first = pid_of(spare_of(worker))
            os.kill(first, signal.SIGKILL)
            await until(lambda: pid_of(spare_of(worker)) != first and spare_of(worker).is_ready)
            assert (worker.info.restarts, worker.info.state) == (0, READY)
            await call(worker, "look")

    run(body())


def test_a_worker_that_ends_before_there_is_a_spare_is_replaced_as_without_one(tmp_path: Path) -> None:
    async def body() -> None:
        async with supervised(tmp_path, "fail until told", has_spare=True) as worker:  # the second does not start
            with pytest.raises(WorkerRestartingError):
                await call(worker, "die committing")
            (tmp_path / "scripted" / "start").touch()
            await until(lambda: worker.info.state == READY)
            await call(worker, "look")
            assert worker.info.restarts >= 1

    run(body())


@pytest.mark.parametrize("waits", [True, False])
def test_none_comes_in_place_of_one_that_was_closed(tmp_path: Path, caplog: pytest.LogCaptureFixture, waits: bool) -> None:
    async def body() -> None:
        async with supervised(tmp_path, has_spare=True) as worker:
            spare = spare_of(worker)
            await until(lambda: spare.is_ready if waits else pid_of(spare))
            keeping = spare._keeping
        assert spare._keeping is keeping, "it was started anew"

    run(body())
    assert "ended" not in caplog.text


def test_none_is_started_where_the_store_is_gone(tmp_path: Path) -> None:
    def check() -> None:
        raise StoreGoneError("it is gone")

    async def body() -> None:
        worker = Supervisor(config(tmp_path), 10, check, has_spare=True)
        await worker.start()
        await asyncio.sleep(0)
        spare = spare_of(worker)
        assert spare._keeping is not None
        await spare._keeping
        assert pid_of(spare) == 0
        assert (await call(worker, "look"))["pid"] == worker.info.worker_pid
        await worker.close()

    run(body())
