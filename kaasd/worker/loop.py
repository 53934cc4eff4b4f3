"""The loop of a worker: takes calls up, keeps several requests under way on its one thread, answers each when it has ended."""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any, NamedTuple, TypeVar

from kaas.v1 import library_pb2
from kaas.worker.v1 import worker_pb2
from kaas_core.errors import InternalError, KaasError, WorkerRestartingError
from kaasd.devices.base import DeviceLost
from kaasd.ipc.channel import WorkerChannel
from kaasd.ipc.messages import SerializedRequest, failed_from_error
from kaasd.worker.cancellation import Cancellation
from kaasd.worker.execution import Invocation, Job, Result, execute
from kaasd.worker.executor import Executor
from kaasd.worker.preparation import inspect, prepare
from kaasd.worker.programs import UnknownRequest

NAP_S = 0.0001
"""Between looks at requests that take longer than the busy poll."""
EARLY_NS = 300_000
"""So long before a run should end the busy poll begins: two naps, and what they oversleep."""
ONLY_CALLS = 8
"""So many in a row, each with no other in flight, are of one caller; a single one also comes about among several callers."""
MAX_CANCELLED_EARLY = 1024
"""Cancellations kept of calls that are not under way. Most of these have ended already, and never come again. One that is on its
way comes behind the few others that the front has sent, so that its cancellation is never the oldest of so many."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


class CommitSignal:
    """Wakes the loop when a commit has ended; ``notify`` may be called from any thread."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._descriptor

    def notify(self) -> None:
        """A commit has ended."""
        os.eventfd_write(self._descriptor, 1)

    def clear(self) -> None:
        """What was notified has been seen."""
        os.eventfd_read(self._descriptor)

    def close(self) -> None:
        """Free the descriptor."""
        os.close(self._descriptor)


class _UnderWay(NamedTuple):
    """A call under way."""

    job: Job[Any]
    to_answer: Callable[[Any], worker_pb2.FromWorker]
    """Makes the job's result an answer."""
    cancellation: Cancellation


class Loop:
    """Serves the calls of one channel with one executor. ``cancel`` and ``cancel_all`` are for another thread."""

    def __init__(self, calls: WorkerChannel, executor: Executor, commits: CommitSignal, config: worker_pb2.WorkerConfig) -> None:
        """``commits`` is what the executor notifies."""
        self._calls = calls
        self._executor = executor
        self._commits = commits
        self._concurrency = config.concurrency
        self._lock = threading.Lock()
        """Held while a call begins, ends or is cancelled, so that a device is never told to stop the next one."""
        self._under_way: dict[int, _UnderWay] = {}
        self._cancelled_early: dict[int, KaasError] = {}
        """Errors of calls that are not under way, in the order of their cancellation."""
        self._overdue: frozenset[int] = frozenset()
        """Calls that go on past their deadline, on a device that cannot stop them."""
        self._abandoned: list[Job[Any]] = []
        """Closing these would wait for their kernels."""
        self._last_event_ns = 0
        self._only_calls = 0
        """In a row."""
        self._busy_poll_ns = round(config.busy_poll_s * 1e9)
        self._busy_poll_beside_others = config.busy_poll_beside_others

    def run(self) -> None:
        """Serve until the front has closed its end, or the device is lost and all that was under way is answered."""
        try:
            while not self._executor.device_lost:
                if self._call_waits():
                    message = self._calls.receive()
                    if message is None:
                        break
                    self._take(message)
                    self._last_event_ns = perf_counter_ns()
                    self._only_calls = self._only_calls + 1 if message.only_call else 0
                self._poll()
                if self._overdue and self._is_overdue():
                    self._mark_device_lost()
            while self._under_way and self._executor.device_lost:
                self._poll()
        finally:
            for call in self._under_way.values():
                call.job.close()

    def cancel(self, call_id: int, error: KaasError, *, overdue: bool = False) -> bool:
        """Have one call end, now or when it comes. Returns whether it is under way, and is to be cancelled again.

        ``overdue`` says that it had time enough to do so: a device that cannot stop it is lost.
        """
        with self._lock:
            call = self._under_way.get(call_id)
            if call is None:
                self._cancel_early(call_id, _during("queued", error))
                return False
            if not self._cancel(call, error) and overdue:
                self._overdue |= {call_id}
            return True

    def cancel_all(self, error: KaasError) -> None:
        """Have all calls end that are under way."""
        with self._lock:
            for call in self._under_way.values():
                self._cancel(call, error)

    def _cancel(self, call: _UnderWay, error: KaasError) -> bool:
        """Have a call end; return whether the device could be told to stop it."""
        if call.cancellation.reason is None:
            call.cancellation.reason = _during("running", error)
        # A device that can stop a kernel runs one call at a time, so what it stops is this one.
        return self._executor.device.stop()

    def _cancel_early(self, call_id: int, error: KaasError) -> None:
        self._cancelled_early[call_id] = error
        if len(self._cancelled_early) > MAX_CANCELLED_EARLY:
            del self._cancelled_early[next(iter(self._cancelled_early))]

    def _is_overdue(self) -> bool:
        """Whether a kernel goes on past its request's deadline."""
        calls = map(self._under_way.get, self._overdue)
        return any(call is not None and not call.job.is_committing for call in calls)

    def _mark_device_lost(self) -> None:
        """Lose the device, which only the end of this process takes from a kernel that goes on past its request's deadline.

        What commits is answered when it has; the other requests have changed nothing, and can run again in another process.
        """
        self._executor.mark_device_lost()
        for call_id, call in list(self._under_way.items()):
            if not call.job.is_committing:
                self._abandoned.append(call.job)
                by_another = WorkerRestartingError("another request's kernel went on past its deadline; nothing was changed")
                self._fail(call_id, call.cancellation.reason or by_another)

    def _call_waits(self) -> bool:
        """Wait until there is something to do; return whether it is a call that can be taken up."""
        if not self._under_way:
            while self._busy_polls and not self._calls.has_begun:
                if select.select([self._calls], (), (), 0)[0]:
                    break
            return True
        room = len(self._under_way) < self._concurrency
        if room and self._calls.has_begun:
            return True
        awaited: list[WorkerChannel | CommitSignal] = [self._commits, *([self._calls] if room else [])]
        ready, _, _ = select.select(awaited, (), (), self._timeout_s())
        if self._commits in ready:
            self._commits.clear()
        return self._calls in ready

    def _timeout_s(self) -> float | None:
        if all(call.job.is_committing for call in self._under_way.values()):
            return None
        return 0 if self._busy_polls else NAP_S

    @property
    def _busy_polls(self) -> bool:
        if not self._busy_poll_ns or not (self._busy_poll_beside_others or self._only_calls >= ONLY_CALLS):
            return False
        now = perf_counter_ns()
        return now - self._last_event_ns < self._busy_poll_ns or any(
            -EARLY_NS < now - call.job.expected_end_ns < self._busy_poll_ns for call in self._under_way.values()
        )

    def _take(self, message: worker_pb2.ToWorker) -> None:
        """Begin a call."""
        cancellation = Cancellation()
        try:
            match message.WhichOneof("call"):
                case "execute":
                    call = message.execute
                    invocation = Invocation(
                        _request(call.request),
                        keys=dict(call.keys),
                        inputs=dict(call.inputs),  # once: each look into the message copies
                        return_buffers=tuple(call.return_buffers),
                        cancellation=cancellation,
                        trace_from_ns=call.trace_from_ns,
                    )
                    self._begin(message.id, _UnderWay(execute(self._executor, invocation), self._executed, cancellation))
                case "prepare":
                    preparation = Job(prepare(self._executor, _request(message.prepare.request), cancellation))
                    self._begin(message.id, _UnderWay(preparation, _prepared, cancellation))
                case "inspect":
                    library = message.inspect.library
                    content = message.inspect.content if message.inspect.HasField("content") else None
                    inspection = Job(inspect(self._executor, library, content, cancellation))
                    self._begin(message.id, _UnderWay(inspection, _inspected, cancellation))
                case "forget_library":
                    self._executor.programs.forget_library(message.forget_library.library)
                case "hold_pages":
                    self._hold_pages(message)
                case unknown:
                    raise InternalError(f"the front sent a call that this worker does not know: {unknown}")
        except Exception as error:
            self._fail(message.id, error)

    def _hold_pages(self, message: worker_pb2.ToWorker) -> None:
        allowed = message.hold_pages.allowed
        try:
            self._executor.hold_pages(allowed=allowed)
        except DeviceLost:  # This process ends, and its pages with it.
            self._executor.mark_device_lost()
            raise
        if not allowed:
            self._calls.send(worker_pb2.FromWorker(id=message.id, pages_released=worker_pb2.PagesReleased()))

    def _begin(self, call_id: int, call: _UnderWay) -> None:
        """Have a call polled from now on. Raises the reason where it was cancelled before."""
        with self._lock:
            if self._cancelled_early and (error := self._cancelled_early.pop(call_id, None)) is not None:
                raise error
            self._under_way[call_id] = call

    def _poll(self) -> None:
        """Let every call go on; answer those that have ended."""
        for call_id, call in list(self._under_way.items()):
            try:
                result = call.job.poll()
                answer = None if result is None else call.to_answer(result)
            except UnknownRequest:
                answer = worker_pb2.FromWorker(unknown_request=worker_pb2.UnknownRequest())
            except Exception as error:
                self._fail(call_id, error)
                continue
            if answer is not None:
                self._answer(call_id, answer)

    def _fail(self, call_id: int, error: Exception) -> None:
        if not isinstance(error, KaasError):
            _log.error("call %d", call_id, exc_info=error)
            error = InternalError("a defect of kaasd; its log has the details")
        failed = failed_from_error(error, device_lost=self._executor.device_lost)
        self._answer(call_id, worker_pb2.FromWorker(failed=failed))

    def _answer(self, call_id: int, answer: worker_pb2.FromWorker) -> None:
        with self._lock:
            call = self._under_way.pop(call_id, None)
            self._overdue -= {call_id}
            if call is not None and call.cancellation.reason is not None and answer.HasField("unknown_request"):
                self._cancel_early(call_id, call.cancellation.reason)
        answer.id = call_id
        self._calls.send(answer)
        self._last_event_ns = perf_counter_ns()

    def _executed(self, result: Result) -> worker_pb2.FromWorker:
        answer = worker_pb2.FromWorker()
        executed = answer.executed
        executed.kernels_launched = result.kernels_launched
        executed.memory_used_bytes = self._executor.memory.held_bytes
        reply = executed.reply  # Filled in its place: handing over the parts would copy each twice.
        for name, content in result.outputs.items():
            reply.outputs[name] = content
        for key, version in result.versions.items():
            reply.versions[key] = version
        reply.device = self._executor.device_name
        reply.printed = result.printed
        timing = reply.timing
        timing.plan_ns, timing.load_ns = result.plan_ns, result.load_ns
        timing.run_ns, timing.commit_ns = result.run_ns, result.commit_ns
        if result.trace is not None:
            reply.trace.CopyFrom(result.trace)
        return answer


def _during(stage: str, error: KaasError) -> KaasError:
    """Return an error that also says what it interrupted."""
    return type(error)(f"{error.message} while the request was {stage}")


def _request(named: worker_pb2.SerializedRequest) -> SerializedRequest:
    return SerializedRequest(named.digest, named.content)


def _prepared(_: bool) -> worker_pb2.FromWorker:
    return worker_pb2.FromWorker(prepared=worker_pb2.Prepared())


def _inspected(response: library_pb2.InspectLibraryResponse) -> worker_pb2.FromWorker:
    return worker_pb2.FromWorker(inspected=response)
