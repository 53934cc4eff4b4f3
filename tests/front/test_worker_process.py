"""How long a new worker waits, after ones that served and ones that never did; and when one counts as stuck."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
import uvloop

from kaas.worker.v1 import worker_pb2
from kaas_core.errors import StoreGoneError
from kaasd.front import worker_process
from kaasd.front.worker_process import (
    MOST_TO_START,
    MOST_UNANSWERED,
    MOST_UNANSWERED_AT_START,
    Heartbeat,
    RestartPolicy,
    WorkerProcess,
    ending,
)
from kaasd.ipc.front_channel import FrontChannel
from tests.front.support import config

STOPS_AFTER_AN_ANSWER = """
import os, signal, sys, threading
from kaasd.ipc.channel import WorkerChannel
from kaasd.worker import main

answered = threading.Event()

class Channel(WorkerChannel):
    def send(self, message):
        super().send(message)
        answered.set()

def stop(*_):
    answered.wait()
    os.kill(os.getpid(), signal.SIGSTOP)

main.WorkerChannel, main._open = Channel, stop
sys.exit(main.main(sys.argv[1:]))
"""
"""A worker that stops when it should open its device."""


def test_a_worker_that_served_is_replaced_at_once_and_one_that_cannot_start_ever_later() -> None:
    policy = RestartPolicy(first_delay_s=0.25, longest_delay_s=2.0)
    assert policy.lost(was_ready=True) == 0.0
    assert [policy.lost(was_ready=False) for _ in range(5)] == [0.25, 0.5, 1.0, 2.0, 2.0]
    policy.ready()
    assert policy.lost(was_ready=False) == 0.25


def test_a_delay_between_two_doublings_is_the_longest() -> None:
    policy = RestartPolicy(first_delay_s=0.25, longest_delay_s=3.0)
    assert [policy.lost(was_ready=False) for _ in range(6)] == [0.25, 0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_worker_that_cannot_start_for_days_is_tried_still() -> None:
    policy = RestartPolicy()
    assert {policy.lost(was_ready=False) for _ in range(5000)} == {0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0}


@pytest.mark.parametrize(("delay_s", "looks"), [(1e9, 3), (0.02, 2), (0.0, 0)])
def test_a_start_that_is_wanted_comes_sooner(delay_s: float, looks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "COMMAND", (sys.executable, "-c", ""))
    monkeypatch.setattr(worker_process, "WANTED_DELAY_S", 0.01)
    looked: list[bool] = []
    started: list[int] = []

    def is_wanted() -> bool:
        looked.append(len(looked) == 2)
        return looked[-1]

    async def run() -> None:
        process = WorkerProcess(
            worker_pb2.WorkerConfig(), lambda: started.append(len(looked)), lambda message: None, lambda: None
        )
        process.policy = RestartPolicy(first_delay_s=delay_s or 1.0, longest_delay_s=delay_s or 1.0)
        await process.restart(delay_s == 0.0, lambda: None, is_wanted)
        await process.close()

    asyncio.run(run())
    assert started == [looks]


def questions(heartbeat: Heartbeat) -> int:
    """Return how often it asks of a worker that says nothing."""
    asked = 0
    while heartbeat.ask():
        asked += 1
    return asked


def test_a_worker_has_long_to_start_and_less_once_it_has_answered() -> None:
    heartbeat = Heartbeat()
    assert questions(heartbeat) == MOST_UNANSWERED_AT_START
    heartbeat.answered()
    assert questions(heartbeat) == MOST_UNANSWERED


def test_answers_count_as_often_as_they_come() -> None:
    heartbeat = Heartbeat(is_ready=True)
    for _ in range(10 * MOST_TO_START):
        assert heartbeat.ask()
        heartbeat.answered()


def test_a_worker_that_answers_and_never_opens_its_device_is_given_up() -> None:
    heartbeat = Heartbeat()
    asked = 0
    while heartbeat.ask():
        heartbeat.answered()
        asked += 1
    assert asked == MOST_TO_START


def test_a_process_that_never_answers_is_killed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(worker_process, "COMMAND", (sys.executable, "-c", "import time; time.sleep(1000)"))
    monkeypatch.setattr(worker_process, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(worker_process, "MOST_UNANSWERED_AT_START", 3)

    async def run() -> None:
        lost = asyncio.Event()
        process = WorkerProcess(worker_pb2.WorkerConfig(device="emulator"), lambda: None, lambda message: None, lost.set)
        await process.start()
        await lost.wait()
        await process.close()

    asyncio.run(run())
    assert "worker of emulator" in caplog.text and "does not answer any more" in caplog.text


def test_a_worker_that_stops_while_it_opens_its_device_is_killed_soon(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It answers from the beginning on, so that its silence counts."""
    monkeypatch.setattr(worker_process, "COMMAND", (sys.executable, "-c", STOPS_AFTER_AN_ANSWER))
    monkeypatch.setattr(worker_process, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(worker_process, "MOST_UNANSWERED_AT_START", 10**6)
    monkeypatch.setattr(worker_process, "MOST_TO_START", 10**6)

    async def run() -> None:
        lost = asyncio.Event()
        process = WorkerProcess(
            worker_pb2.WorkerConfig(device="emulator", log_level="ERROR"), lambda: None, lambda message: None, lost.set
        )
        await process.start()
        await lost.wait()
        await process.close()

    asyncio.run(run())
    assert "does not answer any more" in caplog.text


@pytest.mark.parametrize(
    ("code", "how"),
    [("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"), ("raise SystemExit(3)", "exit status 3")],
)
def test_how_a_process_ended_is_logged(
    code: str, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_process, "COMMAND", (sys.executable, "-c", code))

    def gone() -> None:
        raise StoreGoneError("no other is to start")

    async def run() -> None:
        lost = asyncio.Event()
        process = WorkerProcess(worker_pb2.WorkerConfig(device="emulator"), lambda: None, lambda message: None, lost.set)
        await process.start()
        await lost.wait()
        with pytest.raises(StoreGoneError):
            await process.restart(True, gone, lambda: False)
        await process.close()

    asyncio.run(run())
    assert f"ended ({how}); a new one starts at once" in caplog.text


@pytest.mark.parametrize("opened", [1, 2])
def test_one_whose_start_is_cancelled_ends_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: int) -> None:
    """As where the daemon is to end while a worker starts anew: when so many of its channels are open."""
    monkeypatch.setattr(worker_process, "EXIT_GRACE_S", 60.0)
    channels: list[FrontChannel] = []
    original = FrontChannel.open

    async def open_channel(*arguments: Any) -> FrontChannel:
        channels.append(await original(*arguments))
        if len(channels) == opened:
            await asyncio.get_running_loop().create_future()
        return channels[-1]

    async def run() -> None:
        process = WorkerProcess(config(tmp_path), lambda: None, lambda message: None, lambda: None)
        starting = asyncio.create_task(process.start())
        while len(channels) < opened:
            await asyncio.sleep(0.001)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        await process.close()
        assert ending(process._process) == "exit status 0"

    monkeypatch.setattr(FrontChannel, "open", open_channel)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
