"""A supervisor and a real process that speaks its channel well, badly, or not at all."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kaas.v1 import admin_pb2
from kaas.worker.v1 import worker_pb2
from kaas_core.errors import (
    CommitUnknownError,
    DeadlineExceededError,
    DrainingError,
    InternalError,
    InvalidLibraryError,
    KaasError,
    KernelFaultError,
    QuarantinedError,
    QueueFullError,
    StoreFullError,
    StoreGoneError,
    WorkerRestartingError,
)
from kaasd.front import worker_calls, worker_process
from kaasd.front.supervisor import Supervisor
from kaasd.front.worker_process import RestartPolicy
from kaasd.ipc.messages import SerializedRequest
from tests.front.support import REQUEST, call, config, is_alive, run, supervised, until

READY, STARTING, RESTARTING, STOPPED = (
    admin_pb2.WORKER_STATE_READY,
    admin_pb2.WORKER_STATE_STARTING,
    admin_pb2.WORKER_STATE_RESTARTING,
    admin_pb2.WORKER_STATE_STOPPED,
)
LENGTH = len(REQUEST.content)
OTHER = SerializedRequest.of(b"another request")


def note_states(supervisor: Supervisor) -> list[int]:
    """Return a list that every state from now on is added to."""
    states: list[int] = []
    supervisor.on_state = lambda: states.append(supervisor.info.state)
    return states


def later(supervisor: Supervisor, script: str, **options: Any) -> asyncio.Task[dict[str, Any]]:
    return asyncio.create_task(call(supervisor, script, **options))


async def fails(task: asyncio.Task[Any], kind: type[KaasError]) -> str:
    with pytest.raises(kind) as caught:
        await task
    assert caught.value.reason == kind.reason
    return caught.value.message


def test_a_call_and_its_answer(tmp_path: Path) -> None:
    async def body() -> None:
        async with supervised(tmp_path) as worker:
            assert (worker.info.state, worker.info.name, worker.info.model) == (READY, "scripted", "scripted")
            assert (await call(worker, "look"))["pid"] == worker.info.worker_pid
            assert worker.queue.load == 0
            answer, sent_at_ns = await worker.call(worker_pb2.ToWorker(inspect=worker_pb2.Inspect(library="x")))
            assert answer.inspected.device.startswith("scripted x")
            assert sent_at_ns > 0
            with pytest.raises(StoreFullError, match="no room there"):
                await call(worker, "fail")
            assert (await call(worker, "look"))["pid"] == worker.info.worker_pid

    run(body())


def test_a_request_is_sent_once_to_each_worker(tmp_path: Path) -> None:
    async def body() -> None:
        async with supervised(tmp_path) as worker:
            await call(worker, "one")
            await call(worker, "two")
            assert [entry[2] for entry in (await call(worker, "three", SerializedRequest.of(b"another")))["log"]] == [
                LENGTH,
                0,
                7,
            ]
            await worker.call(worker_pb2.ToWorker(prepare=worker_pb2.Prepare()), SerializedRequest.of(b"third"))
            await worker.call(worker_pb2.ToWorker(prepare=worker_pb2.Prepare()), SerializedRequest.of(b"third"))
            assert (await call(worker, "four"))["log"][3:5] == [["prepare", 5], ["prepare", 0]]
            os.kill(worker.info.worker_pid, signal.SIGKILL)
            await until(lambda: worker.info.state != READY)
            assert [entry[2] for entry in (await call(worker, "five"))["log"]] == [LENGTH]

    run(body())


def test_a_worker_that_does_not_know_a_request_is_sent_it_again(tmp_path: Path) -> None:
    async def body() -> None:
        async with supervised(tmp_path) as worker:
            await call(worker, "look")
            await call(worker, "forget")
            log = (await call(worker, "again"))["log"]
            assert [entry[::2] for entry in log] == [["look", LENGTH], ["forget", 0], ["again", 0], ["again", LENGTH]]

    run(body())


def test_a_deleted_library_is_forgotten(tmp_path: Path) -> None:
    async def body() -> None:
        async with supervised(tmp_path) as worker:
            worker.forget_library("sha256:x")
            assert (await call(worker, "look"))["log"][0] == ["forget_library", "sha256:x"]
        supervisor = Supervisor(config(tmp_path), 10)
        supervisor.forget_library("sha256:x")  # before there is a worker, there is nothing to forget

    run(body())


class TestStart:
    def test_a_device_that_cannot_be_opened(self, tmp_path: Path) -> None:
        async def body() -> None:
            supervisor = Supervisor(config(tmp_path, "fail"), 10)
            with pytest.raises(StoreFullError, match="no room here"):
                await supervisor.start()
            await supervisor.close()
            assert supervisor.info.state == STOPPED

        run(body())

    def test_a_worker_that_ends_before_it_is_ready(self, tmp_path: Path) -> None:
        async def body() -> None:
            supervisor = Supervisor(config(tmp_path, "die"), 10)
            with pytest.raises(InternalError, match="scripted ended before it was ready"):
                await supervisor.start()
            await supervisor.close()

        run(body())

    def test_no_process_can_be_started(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async def body() -> None:
            monkeypatch.setattr(worker_process, "COMMAND", (str(tmp_path / "absent"),))
            before = len(list(Path("/proc/self/fd").iterdir()))
            supervisor = Supervisor(config(tmp_path), 10)
            with pytest.raises(FileNotFoundError):
                await supervisor.start()
            assert len(list(Path("/proc/self/fd").iterdir())) == before
            await supervisor.close()

        run(body())

    def test_one_that_is_never_ready_can_be_closed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async def body() -> None:
            monkeypatch.setattr(worker_process, "EXIT_GRACE_S", 0.0)
            supervisor = Supervisor(config(tmp_path, "deaf"), 10)
            starting = asyncio.create_task(supervisor.start())
            await until((tmp_path / "scripted" / "deaf").exists)
            pid = supervisor.info.worker_pid
            assert supervisor.info.state == STARTING
            waiting = later(supervisor, "look")
            await asyncio.sleep(0)
            assert supervisor.queue.queued == 1
            await supervisor.close()
            assert not is_alive(pid)
            await fails(waiting, DrainingError)
            starting.cancel()

        run(body())


class TestLoss:
    def test_what_it_committed_fails_and_what_waited_runs_on_its_successor(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with supervised(tmp_path) as worker:
                states, pid = note_states(worker), worker.info.worker_pid
                served, at_worker, queued = (later(worker, script) for script in ("die committing", "look", "look"))
                assert "all of its outputs are stored, or none is" in await fails(served, CommitUnknownError)
                assert (await at_worker)["pid"] == (await queued)["pid"] == worker.info.worker_pid != pid
                assert states == [RESTARTING, STARTING, READY]
                assert (worker.info.restarts, worker.info.state, worker.info.memory_bytes) == (1, READY, 2)
                assert not is_alive(pid)

        run(body())

    @pytest.mark.parametrize("script", ["die", "garbage"])
    def test_one_that_ends_or_talks_nonsense_is_replaced_a_finite_number_of_times(self, script: str, tmp_path: Path) -> None:
        async def body() -> None:
            async with supervised(tmp_path) as worker:
                pid = worker.info.worker_pid
                poison, queued = later(worker, script, request=OTHER), later(worker, "look")
                assert "was running each time when 3 workers died" in await fails(poison, QuarantinedError)
                assert (await queued)["pid"] != pid
                assert not is_alive(pid)
                assert "has cost 3 workers" in await fails(later(worker, "look", request=OTHER), QuarantinedError)
                await call(worker, "look")
                assert worker.info.restarts == 1  # the others ran nothing else

        run(body())

    def test_what_it_ran_is_run_again_and_its_caller_sees_nothing(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with supervised(tmp_path) as worker:
                pid = worker.info.worker_pid
                assert (await call(worker, "die once"))["pid"] not in (pid, worker.info.worker_pid)
                await call(worker, "look")
                assert worker.info.restarts == 1

        run(body())

    def test_a_successor_that_cannot_start_is_tried_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async def body() -> None:
            monkeypatch.setattr(worker_process, "RestartPolicy", lambda: RestartPolicy(first_delay_s=0.001))
            async with supervised(tmp_path, "die in second life") as worker:
                states = note_states(worker)
                await fails(later(worker, "die committing"), WorkerRestartingError)
                await call(worker, "look")
                assert states == [RESTARTING, STARTING, RESTARTING, STARTING, READY]
                assert worker.info.restarts == 2

        run(body())

    def test_calls_do_not_wait_for_one_that_does_not_start_again_and_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They hear why, instead of waiting until their deadlines; and once one has started all is well again."""

        async def body() -> None:
            monkeypatch.setattr(worker_process, "RestartPolicy", lambda: RestartPolicy(first_delay_s=0.001, longest_delay_s=0.01))
            async with supervised(tmp_path, "fail until told") as worker:
                states = note_states(worker)
                await fails(later(worker, "die committing"), WorkerRestartingError)
                waiting = [later(worker, "look") for _ in range(2)]
                for waited in waiting:
                    text = await fails(waited, WorkerRestartingError)
                    assert "has not started 3 times in a row: no room here" in text
                assert states.count(STARTING) == 3
                await fails(later(worker, "look"), WorkerRestartingError)
                (tmp_path / "scripted" / "start").touch()
                await until(lambda: worker.info.state == READY)
                await call(worker, "look")

        run(body())

    def test_a_process_that_the_machine_has_no_room_for_is_tried_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        failures = [OSError("no memory"), OSError("no memory")]
        real = subprocess.Popen

        def popen(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
            if failures:
                raise failures.pop()
            return real(*arguments, **options)

        async def body() -> None:
            monkeypatch.setattr(worker_process, "RestartPolicy", lambda: RestartPolicy(first_delay_s=0.001))
            async with supervised(tmp_path) as worker:
                monkeypatch.setattr(worker_process.subprocess, "Popen", popen)
                with caplog.at_level(logging.WARNING):
                    await fails(later(worker, "die committing"), WorkerRestartingError)
                    await call(worker, "look")
                assert not failures
                assert (worker.info.restarts, worker.info.state) == (1, READY)
                tried = [record.getMessage() for record in caplog.records if "cannot be started" in record.getMessage()]
                assert [("0.00 s" in line, "no memory" in line) for line in tried] == [(True, True)] * 2

        run(body())

    def test_a_caller_that_left_while_its_call_waited_for_a_successor(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with supervised(tmp_path) as worker:
                served = later(worker, "die committing")
                left = later(worker, "left", deadline=asyncio.get_running_loop().time() + 100)
                await fails(served, WorkerRestartingError)
                left.cancel()
                log = (await call(worker, "look"))["log"]
                assert [entry[0] for entry in log] == ["look"]
                assert worker.queue.load == 0

        run(body())


class TestLostDevice:
    def test_a_single_suspect_is_told(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with supervised(tmp_path) as worker:
                states, pid = note_states(worker), worker.info.worker_pid
                guilty, waiting = later(worker, "fault 1"), later(worker, "look")
                assert await fails(guilty, KernelFaultError) == "illegal address"
                assert (await waiting)["pid"] != pid
                assert states[0] == RESTARTING and states[-1] == READY
                assert worker.info.restarts == 1

        run(body())

    def test_what_ran_beside_the_guilty_one_runs_again(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with supervised(tmp_path, concurrency=3) as worker:
                beside = later(worker, "hold")
                await until(lambda: worker.queue.running == 1)
                assert await fails(later(worker, "fault 1"), KernelFaultError) == "illegal address"
                await until(lambda: worker.info.restarts == 1 and worker.info.state == READY)
                assert worker.queue.running == 1
                await call(worker, "release")  # beside it: it is not a suspect
                await beside

        run(body())


class TestCancelling:
    def test_a_queued_call_is_never_seen_and_a_running_one_is_cancelled(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with supervised(tmp_path) as worker:
                running, at_worker, queued = (later(worker, script) for script in ("hold", "look", "never"))
                await until(lambda: worker.queue.load == 3)
                queued.cancel()
                await until(lambda: worker.queue.load == 2)
                running.cancel()
                log = (await at_worker)["log"]
                assert log[1:] == [["cancel", 1, False], ["look", 2, 0]]
                assert worker.queue.load == 0
                assert queued.cancelled() and running.cancelled()
                assert worker.info.restarts == 0

        run(body())

    def test_a_deadline_cancels_what_runs_and_fails_what_waits(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with supervised(tmp_path) as worker:
                now = asyncio.get_running_loop().time()
                running = later(worker, "hold", deadline=now + 0.3)
                queued = later(worker, "never", deadline=now + 0.1)
                in_time = later(worker, "look", deadline=now + 1000)
                assert "queued" in await fails(queued, DeadlineExceededError)
                assert not running.done()
                assert await fails(running, DeadlineExceededError) == "at last"
                assert ["cancel", 1, True] in (await in_time)["log"]
                assert worker.info.restarts == 0

        run(body())

    @pytest.mark.parametrize("leaves", [False, True], ids=["its caller waits", "its caller left"])
    def test_a_call_that_goes_on_past_its_deadline_costs_its_worker(
        self, leaves: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def body() -> None:
            if leaves:  # the other one has the grace of the daemon
                monkeypatch.setattr(worker_calls, "CANCEL_GRACE_S", 0.05)
            async with supervised(tmp_path) as worker:
                pid = worker.info.worker_pid
                stuck = later(worker, "deaf", deadline=asyncio.get_running_loop().time() + 0.2)
                await until(lambda: worker.queue.running == 1)
                if leaves:
                    stuck.cancel()
                waiting = later(worker, "look")
                assert (await waiting)["pid"] != pid
                assert worker.info.restarts == 1
                if not leaves:
                    assert "running" in await fails(stuck, DeadlineExceededError)

        run(body())

    def test_a_call_that_ends_in_its_grace_spares_its_worker(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async def body() -> None:
            monkeypatch.setattr(worker_calls, "CANCEL_GRACE_S", 0.05)
            async with supervised(tmp_path) as worker:
                loop = asyncio.get_running_loop()
                await fails(later(worker, "hold", deadline=loop.time() + 0.05), DeadlineExceededError)
                after_grace = loop.time() + 0.1
                other = later(worker, "hold", deadline=loop.time() + 100)
                await until(lambda: loop.time() > after_grace)
                other.cancel()
                await call(worker, "look")
                assert worker.info.restarts == 0

        run(body())

    def test_deadlines_of_calls_that_ended_are_forgotten(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with supervised(tmp_path) as worker:
                now = asyncio.get_running_loop().time()
                await call(worker, "look", deadline=now + 0.1)
                held = later(worker, "hold")
                await until(lambda: asyncio.get_running_loop().time() > now + 0.2)
                held.cancel()
                cancelled = [entry for entry in (await call(worker, "look"))["log"] if entry[0] == "cancel"]
                assert cancelled == [["cancel", 2, False]]

        run(body())


def test_a_full_queue_refuses_and_keeps_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        async with supervised(tmp_path, max_queued=1) as worker:
            others = [later(worker, "deaf") for _ in range(3)]
            await until(lambda: worker.queue.load == 3)
            await fails(later(worker, "look"), QueueFullError)
            assert worker.queue.load == 3
            for other in others:
                other.cancel()

    run(body())


class TestClosing:
    def test_what_is_left_fails_and_the_process_ends(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with supervised(tmp_path) as worker:
                pid = worker.info.worker_pid
                left = [later(worker, "deaf", deadline=asyncio.get_running_loop().time() + 100) for _ in range(3)]
                await until(lambda: worker.queue.load == 3)
                await worker.close()
                for call_ in left:
                    assert "shutting down" in await fails(call_, DrainingError)
                assert (worker.info.state, worker.info.worker_pid, worker.info.restarts) == (STOPPED, 0, 0)
                assert not is_alive(pid)
                with pytest.raises(DrainingError):
                    await call(worker, "look")
                assert worker.queue.load == 0

        run(body())

    def test_no_successor_is_started(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async def body() -> None:
            monkeypatch.setattr(worker_process, "RestartPolicy", lambda: RestartPolicy(first_delay_s=0.2))
            supervisor = Supervisor(config(tmp_path, "die"), 10)
            with pytest.raises(InternalError):
                await supervisor.start()
            await supervisor.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.wait(others, timeout=1) if others else None
            assert (tmp_path / "scripted" / "lives").read_text() == "x"
            assert supervisor.info.state == STOPPED

        run(body())


def test_unable_to_prepare(tmp_path: Path) -> None:
    async def body() -> None:
        async with supervised(tmp_path, "unable") as worker:
            with pytest.raises(InvalidLibraryError, match="scripted cannot load it"):
                await worker.call(worker_pb2.ToWorker(prepare=worker_pb2.Prepare()), REQUEST)

    run(body())


def test_no_worker_is_started_where_the_store_is_gone(tmp_path: Path) -> None:
    checks = []

    def check() -> None:
        checks.append("look")
        raise StoreGoneError("it is gone")

    async def test() -> None:
        worker = Supervisor(config(tmp_path), 10, check)
        await worker.start()
        assert checks == []
        with pytest.raises(WorkerRestartingError):
            await call(worker, "die committing")
        with pytest.raises(StoreGoneError, match="it is gone"):
            await call(worker, "after")
        assert (len(checks), worker.info.restarts, worker.info.state) == (1, 0, STOPPED)
        await worker.close()

    run(test())


def test_a_worker_that_is_given_up_serves_nobody_any_more(tmp_path: Path) -> None:
    async def test() -> None:
        async with supervised(tmp_path) as worker:
            calls = [asyncio.create_task(call(worker, "deaf")) for _ in range(3)]
            await until(lambda: worker.queue.load == 3)
            worker.give_up(StoreGoneError("it is gone"))
            for each in (*calls, call(worker, "later")):
                with pytest.raises(StoreGoneError, match="it is gone"):
                    await each

    run(test())
