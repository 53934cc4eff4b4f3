"""Suspects: what ran when a worker was lost runs again in a process of its own, while its neighbours are served."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from kaas.v1 import admin_pb2
from kaas_core.errors import (
    CancelledError,
    DeadlineExceededError,
    DrainingError,
    KernelFaultError,
    QuarantinedError,
    StoreGoneError,
    WorkerBusyError,
)
from kaasd.front import ward as module
from kaasd.front import worker_calls
from kaasd.front.supervisor import Supervisor
from kaasd.front.ward import Ward
from kaasd.ipc.messages import SerializedRequest
from kaasd.scheduling import QueuedRequest
from tests.front.support import call, config, is_alive, run, supervised, until

READY = admin_pb2.WORKER_STATE_READY
HELD = "die once, then hold"
"""A suspect that goes on until it is cancelled, or released."""


def later(supervisor: Supervisor, script: str, **options: Any) -> asyncio.Task[dict[str, Any]]:
    return asyncio.create_task(call(supervisor, script, **options))


def ward_of(supervisor: Supervisor) -> Ward:
    assert supervisor._ward is not None
    return supervisor._ward


async def suspected(supervisor: Supervisor, script: str = HELD, **options: Any) -> tuple[asyncio.Task[dict[str, Any]], int]:
    """Return a call that runs as a suspect, and the process that runs it; its device serves again."""
    suspect = later(supervisor, script, **options)
    await until(lambda: supervisor.info.restarts == 1 and supervisor.info.state == READY)
    await until(lambda: list(ward_of(supervisor)._process.begun().values()) == [1])
    return suspect, ward_of(supervisor)._process.pid


def with_worker(body: Callable[[Supervisor], Awaitable[None]], directory: Path, script: str = "", concurrency: int = 2) -> None:
    """Run a test with a supervisor, at whose end no process is left."""

    async def test() -> None:
        async with supervised(directory, script, concurrency=concurrency) as worker:
            await body(worker)
            pids = [worker.info.worker_pid, *([worker._ward._process.pid] if worker._ward is not None else [])]
        assert not any(map(is_alive, filter(None, pids)))

    run(test())


def test_neighbours_are_served_while_a_suspect_runs(tmp_path: Path) -> None:
    async def body(worker: Supervisor) -> None:
        suspect, pid = await suspected(worker)
        assert (await call(worker, "look"))["pid"] == worker.info.worker_pid != pid
        assert (worker.running, worker.queued, worker.queue.load) == (1, 0, 0)
        suspect.cancel()
        await until(suspect.done)

    with_worker(body, tmp_path)


def test_suspects_of_one_fault_run_one_at_a_time_and_end_well(tmp_path: Path) -> None:
    async def body(worker: Supervisor) -> None:
        first = later(worker, "deaf")
        await until(lambda: worker.queue.running == 1)
        second = later(worker, "fault 2 once")
        await until(lambda: worker.info.restarts == 1 and worker.info.state == READY)
        # The one that faulted came back first and ends well; the other holds its turn until its caller leaves.
        assert [entry[0] for entry in (await second)["log"]] == ["fault 2 once"]
        assert not first.done()
        first.cancel()
        await until(first.done)
        await call(worker, "look")
        assert worker.info.restarts == 1

    with_worker(body, tmp_path, concurrency=3)


def test_the_guilty_one_costs_its_neighbours_one_worker(tmp_path: Path) -> None:
    async def body(worker: Supervisor) -> None:
        poison = later(worker, "die", request=SerializedRequest.of(b"poison"))
        with pytest.raises(QuarantinedError, match="was running each time when 3 workers died"):
            await poison
        await call(worker, "look")
        assert worker.info.restarts == 1

    with_worker(body, tmp_path)


def test_what_has_run_well_before_runs_at_the_next_worker_and_waits_for_no_process(tmp_path: Path) -> None:
    async def body(worker: Supervisor) -> None:
        known = SerializedRequest.of(b"known")
        await call(worker, "look", request=known)
        suspect = later(worker, "die once, then hold", request=known)
        await until(lambda: worker.info.restarts == 1 and worker.queue.running == 1)
        assert worker._ward is None and not suspect.done()
        await call(worker, "release", request=known)
        await suspect

    with_worker(body, tmp_path)


def test_one_that_ran_well_before_and_does_not_any_more_costs_two_workers(tmp_path: Path) -> None:
    async def body(worker: Supervisor) -> None:
        turned = SerializedRequest.of(b"turned")
        await call(worker, "look", request=turned)
        with pytest.raises(QuarantinedError, match="was running each time when 3 workers died"):
            await call(worker, "die", request=turned)
        await call(worker, "look")
        assert worker.info.restarts == 2

    with_worker(body, tmp_path)


def test_a_suspect_that_faults_alone_is_told_and_the_next_one_runs(tmp_path: Path) -> None:
    async def body(worker: Supervisor) -> None:
        beside = later(worker, "deaf")
        await until(lambda: worker.queue.running == 1)
        with pytest.raises(KernelFaultError):
            await call(worker, "fault of the last one", request=SerializedRequest.of(b"guilty"))
        await until(lambda: worker.running == 1)
        await call(worker, "look")
        assert worker.info.restarts == 1
        beside.cancel()

    with_worker(body, tmp_path, concurrency=3)


def test_one_whose_faults_are_always_anothers_too_is_given_up(tmp_path: Path) -> None:
    async def body(worker: Supervisor) -> None:
        with pytest.raises(QuarantinedError):
            await call(worker, "fault 2")
        assert worker.info.restarts == 1

    with_worker(body, tmp_path)


def test_it_ends_when_no_suspect_is_left_and_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_S", 0.01)

    async def body(worker: Supervisor) -> None:
        first, pid = await suspected(worker)
        first.cancel()
        await until(lambda: not is_alive(pid))
        (tmp_path / "scripted" / "deaths").unlink()
        again = later(worker, HELD)
        await until(lambda: not ward_of(worker).is_over and ward_of(worker)._process.begun())
        assert ward_of(worker)._process.pid != pid
        again.cancel()
        await until(again.done)

    with_worker(body, tmp_path)


def test_one_that_comes_while_it_waits_runs_there_too(tmp_path: Path) -> None:
    async def body(worker: Supervisor) -> None:
        first, pid = await suspected(worker)
        first.cancel()
        await until(first.done)
        (tmp_path / "scripted" / "deaths").unlink()
        assert (await call(worker, "die once"))["pid"] == pid

    with_worker(body, tmp_path)


def test_one_that_finds_no_room_beside_the_worker_runs_there_alone(tmp_path: Path) -> None:
    async def body(worker: Supervisor) -> None:
        assert (await call(worker, "die once, needing room"))["pid"] == worker.info.worker_pid

    with_worker(body, tmp_path)


def test_what_gets_no_process_of_its_own_runs_at_the_worker(tmp_path: Path) -> None:
    async def body(worker: Supervisor) -> None:
        first, second = (later(worker, "die once") for _ in range(2))
        assert {(await each)["pid"] for each in (first, second)} == {worker.info.worker_pid}
        await until(lambda: ward_of(worker).is_over)

    with_worker(body, tmp_path, "fail for suspects")


def test_no_process_is_started_for_a_store_that_is_gone(tmp_path: Path) -> None:
    async def body() -> None:
        gone = False

        def check() -> None:
            if gone:
                raise StoreGoneError("it is gone")

        worker = Supervisor(config(tmp_path, concurrency=2), 10, check)
        try:
            await worker.start()
            gone = True
            with pytest.raises(StoreGoneError):
                await call(worker, "die")
            assert ward_of(worker)._process.pid == 0
        finally:
            await worker.close()

    run(body())


class TestEnds:
    def test_a_suspect_keeps_its_deadline(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(worker_calls, "CANCEL_GRACE_S", 0.05)

        async def body(worker: Supervisor) -> None:
            due = asyncio.get_running_loop().time() + 2
            suspect = later(worker, "die once, then deaf", deadline=due)
            with pytest.raises(DeadlineExceededError):
                await suspect
            assert asyncio.get_running_loop().time() >= due
            await call(worker, "look")
            assert worker.info.restarts == 1

        with_worker(body, tmp_path)

    def test_an_operator_sees_and_cancels_it(self, tmp_path: Path) -> None:
        async def body(worker: Supervisor) -> None:
            suspect, _ = await suspected(worker, queued=QueuedRequest(None))
            (listed,) = worker.requests(0)
            assert (listed.device, listed.state) == ("scripted", admin_pb2.REQUEST_STATE_RUNNING)
            assert worker.cancel_request(listed.id)
            assert not worker.cancel_request("1000")
            with pytest.raises(CancelledError):
                await suspect

        with_worker(body, tmp_path)

    def test_it_fails_at_shutdown(self, tmp_path: Path) -> None:
        async def body(worker: Supervisor) -> None:
            suspect, pid = await suspected(worker, "die once, then deaf")
            await worker.close()
            with pytest.raises(DrainingError):
                await suspect
            assert not is_alive(pid)

        with_worker(body, tmp_path)

    def test_its_process_is_killed(self, tmp_path: Path) -> None:
        async def body(worker: Supervisor) -> None:
            suspect, pid = await suspected(worker)
            os.kill(pid, signal.SIGKILL)
            await until(lambda: ward_of(worker)._process.pid != pid and ward_of(worker)._process.begun())
            suspect.cancel()
            await until(suspect.done)
            assert worker.info.restarts == 1

        with_worker(body, tmp_path)


class TestPages:
    def test_they_are_not_released_while_a_suspect_runs(self, tmp_path: Path) -> None:
        async def body(worker: Supervisor) -> None:
            suspect, _ = await suspected(worker)
            with pytest.raises(WorkerBusyError, match="run aside"):
                await worker.release_pages(10)
            suspect.cancel()
            await until(suspect.done)

        with_worker(body, tmp_path)

    def test_one_that_starts_while_they_are_released_holds_none(self, tmp_path: Path) -> None:
        async def body(worker: Supervisor) -> None:
            await worker.release_pages(10)
            seen = await call(worker, "die once")
            assert seen["log"][0] == ["hold_pages", False]
            worker.hold_pages()
            (tmp_path / "scripted" / "deaths").unlink()
            seen = await call(worker, "die once", request=SerializedRequest.of(b"another"))
            assert ["hold_pages", True] in seen["log"]

        with_worker(body, tmp_path)


def test_it_hears_of_deleted_libraries(tmp_path: Path) -> None:
    async def body(worker: Supervisor) -> None:
        await call(worker, "die once")
        worker.forget_library("sha256:1")
        (tmp_path / "scripted" / "deaths").unlink()
        seen = await call(worker, "die once", request=SerializedRequest.of(b"never seen"))
        assert ["forget_library", "sha256:1"] in seen["log"]

    with_worker(body, tmp_path)
