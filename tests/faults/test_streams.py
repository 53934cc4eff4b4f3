"""A stream outlives workers and fronts that are killed in its midst: every invocation is answered, and had its effect once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kaas_client import AsyncClient, Client, Kernel, Key, Request, RetryPolicy, inout
from tests.faults.neighbours import TIMEOUT_S, Daemon, started
from tests.faults.support import wait_until
from tests.faults.test_request_ids import INCREMENT

COUNT = 200
IN_FLIGHT = 32
KILLED_AT = (60, 130)
"""By the number of answers that have come."""
PATIENT = RetryPolicy(max_attempts=10_000, initial_backoff=0.02, max_backoff=0.2)


@pytest.fixture
def daemon(tmp_path: Path, library_root: Path) -> Iterator[Daemon]:
    (library_root / "increment.ptx").write_text(INCREMENT)
    with started(tmp_path, library_root) as daemon, Client(daemon.address) as kaas:
        library = str(library_root / "increment.ptx")
        kaas.register("increment", Request([Kernel(library, "increment", grid=1, block=1, args=[inout("counter", 4)])]))
        for number in range(COUNT):
            kaas.put(f"n{number}", bytes(4))
        yield daemon


def bindings() -> Iterator[dict[str, Key]]:
    """Invocations that each add one to a number of its own."""
    return ({"counter": Key(f"n{number}")} for number in range(COUNT))


def with_threads(daemon: Daemon, kill: Callable[[], None]) -> list[tuple[bytes, int]]:
    answers = []
    client = Client(daemon.address, timeout=TIMEOUT_S, retry=PATIENT)
    with client, client.stream(max_in_flight=IN_FLIGHT) as stream:
        for result in stream.map("increment", bindings(), returns=["counter"]):
            answers.append((result["counter"], result.attempts))
            if len(answers) in KILLED_AT:
                kill()
    return answers


def with_asyncio(daemon: Daemon, kill: Callable[[], None]) -> list[tuple[bytes, int]]:
    async def run() -> list[tuple[bytes, int]]:
        answers = []
        client = AsyncClient(daemon.address, timeout=TIMEOUT_S, retry=PATIENT)
        async with client, client.stream(max_in_flight=IN_FLIGHT) as stream:
            async for result in stream.map("increment", bindings(), returns=["counter"]):
                answers.append((result["counter"], result.attempts))
                if len(answers) in KILLED_AT:
                    await asyncio.to_thread(kill)
        return answers

    return asyncio.run(run())


def check(daemon: Daemon, answers: list[tuple[bytes, int]]) -> None:
    one = (1).to_bytes(4, "little")
    assert [answer for answer, _ in answers] == [one] * COUNT
    with Client(daemon.address) as kaas:
        assert {kaas.get(f"n{number}") for number in range(COUNT)} == {one}


@pytest.mark.parametrize("run", [with_threads, with_asyncio])
def test_workers_are_killed_in_the_midst_of_it(daemon: Daemon, run: Callable) -> None:
    killed = []

    def kill() -> None:
        with Client(daemon.address) as kaas:
            wait_until(lambda: kaas.devices()[0].worker_pid not in (0, *killed))
            killed.append(kaas.devices()[0].worker_pid)
            os.kill(killed[-1], signal.SIGKILL)

    check(daemon, run(daemon, kill))
    with Client(daemon.address) as kaas:
        assert kaas.devices()[0].restarts == len(KILLED_AT)


@pytest.mark.parametrize("run", [with_threads, with_asyncio])
def test_fronts_are_killed_in_the_midst_of_it(daemon: Daemon, run: Callable) -> None:
    def kill() -> None:
        assert daemon.end(signal.SIGKILL) == -signal.SIGKILL
        daemon.start(same_address=True)
        daemon.wait_until_up()

    answers = run(daemon, kill)
    check(daemon, answers)
    assert max(attempts for _, attempts in answers) > 1
