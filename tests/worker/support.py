"""A worker's loop in a thread over real socketpairs, with jobs that end when the test says so."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from kaas.worker.v1 import worker_pb2
from kaas_core.errors import KaasError
from kaasd.ipc.channel import Progress, WorkerChannel
from kaasd.ipc.messages import WAITING_AT_WORKER
from kaasd.worker.cancellation import Cancellation, Listener
from kaasd.worker.commit_signal import CommitSignal
from kaasd.worker.execution import Invocation, Result
from kaasd.worker.executor import Executor
from kaasd.worker.loop import Loop
from kaasd.worker.turns import Slots

CONFIG = worker_pb2.WorkerConfig(device="deaf", concurrency=4)
MOST_UNDER_WAY = CONFIG.concurrency + WAITING_AT_WORKER
RESULT = Result({}, {}, "", kernels_launched=1, plan_ns=0, load_ns=0, run_ns=0, commit_ns=0)


@dataclass
class HeldJob:
    """Goes on until it is let go."""

    cancellation: Cancellation
    is_committing: bool = False
    is_compiling: bool = False
    awaits_slot: bool = False
    awaits_memory: bool = False
    awaits_what_is_done: bool = True
    expected_end_ns: int = 0
    ended: threading.Event = field(default_factory=threading.Event)
    begun: bool = False

    def poll(self) -> Result | None:
        self.begun = True
        if not self.is_committing:
            self.cancellation.check()
        return RESULT if self.ended.is_set() else None

    def close(self) -> None:
        raise AssertionError("waits for a kernel that never ends")


class DeafJob(HeldJob):
    """A kernel that cannot be stopped."""

    def poll(self) -> Result | None:
        return RESULT if self.ended.is_set() else None


class SomeMemory:
    """Holds a number that is no other's, and has dropped something once, of which one value is back."""

    held_bytes = 11

    def __init__(self) -> None:
        self.gone: list[object] = [("value", "key", 4, 5), ("value", "back", 4, 5), ("instance", 7, 0), b"other"]
        self.was_full = True
        self.awaited: list[object] = []

    def awaits(self, who: object, keys: Sequence[object]) -> None:
        self.awaited = list(keys)

    def __contains__(self, key: object) -> bool:
        return key == ("value", "back", 4, 5)

    def take_gone(self) -> list[object]:
        gone, self.gone = self.gone, []
        return gone

    def take_was_full(self) -> bool:
        was_full, self.was_full = self.was_full, False
        return was_full


class ForgetfulPrograms:
    """Notes which libraries it is to forget."""

    def __init__(self) -> None:
        self.forgotten: list[str] = []

    def forget_library(self, library_id: str) -> None:
        self.forgotten.append(library_id)


class DeafDevice:
    """Cannot stop a kernel, as a GPU cannot."""

    def __init__(self) -> None:
        self.asked = 0

    def stop(self) -> bool:
        self.asked += 1
        return False


class HeldExecutor:
    """Has the jobs that it was given begun, one a request."""

    device_name = "deaf"

    def __init__(self, *kinds: type[HeldJob]) -> None:
        self._kinds = list(kinds)
        self.jobs: list[HeldJob] = []
        self.invocations: list[Invocation] = []
        self.device = DeafDevice()
        self.slots = Slots(CONFIG.concurrency)
        self.memory = SomeMemory()
        self.programs = ForgetfulPrograms()
        self.device_lost = False
        self.holds_pages = True
        self.fails_to_release: Exception | None = None

    def hold_pages(self, *, allowed: bool) -> None:
        if self.fails_to_release is not None:
            raise self.fails_to_release
        self.holds_pages = allowed

    def reserve(self, groups: Mapping[str, int]) -> None:
        self.slots.reserve(groups)

    def begin(self, invocation: Invocation) -> HeldJob:
        self.invocations.append(invocation)
        self.jobs.append(self._kinds.pop(0)(invocation.cancellation))
        return self.jobs[-1]

    def mark_device_lost(self) -> None:
        self.device_lost = True


class Worker:
    """A serving loop in a thread, and the front's ends of its channels."""

    def __init__(self, executor: HeldExecutor) -> None:
        calls, cancellations = socket.socketpair(), socket.socketpair()
        self._front, self._front_cancellations = calls[0], cancellations[0]
        self._commits = CommitSignal()
        self._closed = False
        shared = Progress.create(2 * CONFIG.concurrency)
        self.progress, progress = Progress(shared), Progress(shared)
        """As the front and the worker see it."""
        os.close(shared)
        self.serving = Loop(WorkerChannel(calls[1]), cast(Executor, executor), self._commits, CONFIG, progress)
        Listener(WorkerChannel(cancellations[1]), on_failure=lambda: None).calls = self.serving.calls
        self._thread = threading.Thread(target=self.serving.run)
        self._thread.start()

    def send(self, message: worker_pb2.ToWorker) -> None:
        self._write(self._front, message)

    def cancel(self, call_id: int, *, deadline_exceeded: bool = True) -> None:
        cancel = worker_pb2.Cancel(deadline_exceeded=deadline_exceeded)
        self._write(self._front_cancellations, worker_pb2.ToWorker(id=call_id, cancel=cancel))

    def wait_for_early_cancellation(self, call_id: int) -> None:
        wait_until(lambda: call_id in self.serving.calls._cancelled_early)

    def answer(self) -> worker_pb2.FromWorker:
        (length,) = memoryview(self._front.recv(4, socket.MSG_WAITALL)).cast("I")
        return worker_pb2.FromWorker.FromString(self._front.recv(length, socket.MSG_WAITALL))

    def join(self) -> None:
        self._thread.join()

    def close(self) -> None:
        """End it. Idempotent."""
        self._front.close()
        self._front_cancellations.close()
        self._thread.join()
        if not self._closed:
            self._closed = True
            self._commits.close()

    @staticmethod
    def _write(channel: socket.socket, message: worker_pb2.ToWorker) -> None:
        data = message.SerializeToString()
        channel.sendall(len(data).to_bytes(4, "little") + data)


def execute(call_id: int) -> worker_pb2.ToWorker:
    return worker_pb2.ToWorker(id=call_id, execute=worker_pb2.Execute(request=worker_pb2.SerializedRequest(digest=b"any")))


def reasons(answers: list[worker_pb2.FromWorker]) -> dict[int, Any]:
    return {answer.id: (answer.failed.reason, answer.failed.device_lost) for answer in answers}


def reason(error: type[KaasError]) -> str:
    return error.reason


def first_answer(worker: Worker, executor: HeldExecutor) -> worker_pb2.FromWorker:
    """Send the first call, let it end, and return what it is answered."""
    worker.send(execute(1))
    wait_for_jobs(executor, 1)
    executor.jobs[0].ended.set()
    return worker.answer()


def wait_for_jobs(executor: HeldExecutor, count: int) -> None:
    wait_until(lambda: len(executor.jobs) == count)


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll; the test's own time limit ends a wait in vain."""
    ticks = threading.Event()
    while not condition():
        ticks.wait(0.001)
