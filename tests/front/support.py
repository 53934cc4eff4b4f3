"""Supervisors and dispatchers of scripted workers, and calls to them."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop

from kaas.v1 import executor_pb2
from kaas.worker.v1 import worker_pb2
from kaasd.front.dispatcher import Dispatcher
from kaasd.front.in_flight import BusyPoll
from kaasd.front.pending_call import PendingCall
from kaasd.front.request_queue import RequestQueue
from kaasd.front.supervisor import Supervisor
from kaasd.ipc.messages import SerializedRequest
from kaasd.scheduling import Group, Policy, QueuedRequest, Scheduler

COMMAND = (sys.executable, str(Path(__file__).parent / "scripted_worker.py"))
"""In place of ``kaasd.front.worker_process.COMMAND``."""
TIMEOUT_S = 60
"""Nothing waits that long when it works."""
REQUEST = SerializedRequest.of(b"a request")


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test on the event loop of the daemon, which no signal interrupts."""

    async def within_time() -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await test

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(within_time())


def config(directory: Path, script: str = "", *, device: str = "scripted", concurrency: int = 1) -> worker_pb2.WorkerConfig:
    """Return the settings of a worker that keeps its notes in a directory of its own."""
    notes = directory / device
    notes.mkdir(exist_ok=True)
    return worker_pb2.WorkerConfig(device=device, store_path=str(notes), device_options=script, concurrency=concurrency)


@asynccontextmanager
async def supervised(
    directory: Path,
    script: str = "",
    *,
    device: str = "scripted",
    concurrency: int = 1,
    max_queued: int = 10,
    has_spare: bool = False,
) -> AsyncIterator[Supervisor]:
    """A supervisor whose worker is ready."""
    settings = config(directory, script, device=device, concurrency=concurrency)
    supervisor = Supervisor(settings, max_queued, has_spare=has_spare)
    try:
        await supervisor.start()
        yield supervisor
    finally:
        await supervisor.close()


async def call(
    supervisor: Supervisor,
    script: str,
    request: SerializedRequest = REQUEST,
    deadline: float | None = None,
    queued: QueuedRequest | None = None,
) -> dict[str, Any]:
    """Have a call scripted, and return what the worker saw of it, and before it. With ``queued`` it is listed as a request."""
    message = worker_pb2.ToWorker(id=next(supervisor.ids), execute=worker_pb2.Execute(keys={"do": script}))
    pending = PendingCall(message, asyncio.get_running_loop().create_future(), request, deadline, queued)
    supervisor.begin(pending)
    answer = await pending.outcome()
    seen: dict[str, Any] = json.loads(answer.executed.reply.printed)
    return seen


@asynccontextmanager
async def dispatching(
    directory: Path,
    *scripts: str,
    max_run_s: float = 100.0,
    policy: Policy = Policy.AFFINITY,
    max_queued: int = 100,
    groups: Sequence[Group] = (),
) -> AsyncIterator[tuple[Dispatcher, list[Supervisor]]]:
    """A dispatcher of one device for each script, ``d0`` and so on; default: one."""
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(supervised(directory, script, device=f"d{index}", concurrency=2))
            for index, script in enumerate(scripts or ("",))
        ]
        queue = RequestQueue(Scheduler(groups, policy=policy), [worker.info.name for worker in workers], max_queued=max_queued)
        stack.callback(queue.close)
        yield Dispatcher(workers, max_run_s, BusyPoll(0.0), queue), workers


async def execute(dispatcher: Dispatcher, script: str = "look", **options: Any) -> executor_pb2.InvokeResponse:
    return await dispatcher.execute(REQUEST, keys={"do": script}, **options)


def later(dispatcher: Dispatcher, script: str, **options: Any) -> asyncio.Task[executor_pb2.InvokeResponse]:
    return asyncio.create_task(execute(dispatcher, script, **options))


def seen(reply: executor_pb2.InvokeResponse) -> dict[str, Any]:
    """Return what the worker saw of a call."""
    return dict(json.loads(reply.printed))


async def until(condition: Callable[[], object]) -> None:
    """Return when a condition holds; the test's own time limit ends a wait in vain."""
    for _ in itertools.count():
        if condition():
            return
        await asyncio.sleep(0.002)


def is_alive(pid: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
