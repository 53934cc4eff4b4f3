"""What waits and runs, as an operator sees it, and ends it."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from kaas.v1 import admin_pb2
from kaas_core.errors import CancelledError, RequestNotFoundError
from tests.front.support import dispatching, execute, later, run, seen, until


def test_what_waits_and_runs_on_all_devices(tmp_path: Path) -> None:
    async def body() -> None:
        async with dispatching(tmp_path, "", "") as (dispatcher, _):
            assert dispatcher.requests() == []
            await execute(dispatcher)
            calls = [later(dispatcher, "hold", device=f"d{number % 2}", function=f"f{number}") for number in range(12)]
            calls.append(later(dispatcher, "look", device="d1", inputs={"a": bytes(7), "b": bytes(5)}))
            running, queued = admin_pb2.REQUEST_STATE_RUNNING, admin_pb2.REQUEST_STATE_QUEUED
            await until(lambda: [r.state for r in dispatcher.requests()] == [running] * 4 + [queued] * 9)
            requests = dispatcher.requests()
            assert [request.id for request in requests] == [str(number) for number in range(2, 15)]
            assert [request.device for request in requests] == ["d0", "d1"] * 6 + ["d1"]
            assert [request.function for request in requests] == [*(f"f{number}" for number in range(12)), ""]
            assert [request.input_bytes for request in requests] == [0] * 12 + [12]
            ages = [request.age.ToNanoseconds() for request in requests]
            assert ages == sorted(ages, reverse=True) and ages[-1] > 0
            first = dispatcher.requests("", 8)
            assert [request.id for request in first + dispatcher.requests(first[-1].id, 8)] == [r.id for r in requests]
            assert dispatcher.requests("no id of ours", 8) == []
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            assert dispatcher.requests() == []

    run(body())


def test_one_that_is_cancelled_while_it_waits(tmp_path: Path) -> None:
    async def body() -> None:
        async with dispatching(tmp_path) as (dispatcher, (worker,)):
            held = [later(dispatcher, "hold") for _ in range(2)]
            waiting = [later(dispatcher, "look") for _ in range(2)]  # one of them at the worker already
            await until(lambda: (worker.queue.load, len(dispatcher.requests())) == (3, 4))
            for request in dispatcher.requests()[2:]:
                dispatcher.cancel_request(request.id)
            for call in waiting:
                with pytest.raises(CancelledError, match=r"^an operator cancelled it while the request was queued$"):
                    await call
            assert len(dispatcher.requests()) == 2
            for call in held:
                call.cancel()
            log = seen(await execute(dispatcher))["log"]
            assert ["cancel", 3, "operator"] in log and "look" not in {entry[0] for entry in log[:-1]}

    run(body())


def test_one_that_is_cancelled_while_it_runs(tmp_path: Path) -> None:
    async def body() -> None:
        async with dispatching(tmp_path) as (dispatcher, (worker,)):
            calls = [later(dispatcher, "hold"), later(dispatcher, "look")]
            await until(lambda: worker.queue.load == 1)
            dispatcher.cancel_request("1")
            with pytest.raises(CancelledError, match="at last"):
                await calls[0]
            assert ["cancel", 1, "operator"] in seen(await execute(dispatcher))["log"]
            assert worker.info.restarts == 0

    run(body())


def test_a_worker_that_does_not_end_one_is_replaced(tmp_path: Path) -> None:
    async def body() -> None:
        async with dispatching(tmp_path) as (dispatcher, (worker,)):
            endless = later(dispatcher, "deaf")
            await until(lambda: worker.queue.running == 1)
            dispatcher.cancel_request("1")
            dispatcher.cancel_request("1")
            with pytest.raises(CancelledError, match=r"^an operator cancelled it while the request was running$"):
                await endless
            await execute(dispatcher)
            assert worker.info.restarts == 1

    run(body())


@pytest.mark.parametrize("unknown", ["", "1", "01", "7", "x" * 5000])
def test_one_that_is_not_there(unknown: str, tmp_path: Path) -> None:
    async def body() -> None:
        async with dispatching(tmp_path) as (dispatcher, (worker,)):
            await execute(dispatcher)
            held = later(dispatcher, "hold")
            await until(lambda: worker.queue.running == 1)
            with pytest.raises(RequestNotFoundError):
                dispatcher.cancel_request(unknown)
            held.cancel()

    run(body())


def test_one_that_commits(tmp_path: Path) -> None:
    async def body() -> None:
        async with dispatching(tmp_path) as (dispatcher, _):
            committing = later(dispatcher, "commit")
            await until(lambda: [r.state for r in dispatcher.requests()] == [admin_pb2.REQUEST_STATE_COMMITTING])
            await execute(dispatcher, "release")
            await committing
            assert dispatcher.requests() == []

    run(body())


def test_one_whose_worker_has_died_waits_again(tmp_path: Path) -> None:
    async def body() -> None:
        async with dispatching(tmp_path, "fail until told") as (dispatcher, (worker,)):
            call = later(dispatcher, "hold")
            await until(lambda: [r.state for r in dispatcher.requests()] == [admin_pb2.REQUEST_STATE_RUNNING])
            os.kill(worker.info.worker_pid, signal.SIGKILL)
            await until(lambda: [r.state for r in dispatcher.requests()] == [admin_pb2.REQUEST_STATE_QUEUED])
            dispatcher.cancel_request("1")
            with pytest.raises(CancelledError, match="while the request was queued"):
                await call

    run(body())
