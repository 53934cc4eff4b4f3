"""Calls under way, and the loop of a worker, which takes them up and keeps several on its one thread.

``Calls`` is for whoever brings calls, by a channel as ``Loop`` or by a queue as an executor on Ray: each is begun, polled,
cancelled, and ended once.
"""

from __future__ import annotations

import logging
import math
import select
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from time import perf_counter_ns
from typing import Any, NamedTuple, TypeVar

from kaas.v1 import executor_pb2, library_pb2
from kaas.worker.v1 import worker_pb2
from kaas_core.errors import InternalError, KaasError, WorkerRestartingError
from kaasd.devices.base import DeviceLost
from kaasd.ipc.channel import Progress, WorkerChannel
from kaasd.ipc.messages import WAITING_AT_WORKER, SerializedRequest, failed_from_error
from kaasd.ipc.replies import MAX_REPLY_BYTES, pack_reply
from kaasd.store.base import DEFAULT_ACCOUNT, Namespace, Write
from kaasd.worker.cancellation import Cancellation
from kaasd.worker.commit_signal import CommitSignal
from kaasd.worker.execution import Invocation, Job, Result, execute
from kaasd.worker.executor import Executor
from kaasd.worker.inputs import range_key, values_dropped
from kaasd.worker.preparation import inspect, prepare
from kaasd.worker.programs import UnknownRequest

CANCELLED_S = 0.01
"""Between two looks whether a call that waits for its code, or for a slot, is cancelled."""
MAX_COMPILING = 32
"""Calls that wait for their code beside those that are served. More of them take the places of others."""
NAP_S = 0.0001
"""Between looks at requests that take longer than the busy poll."""
ONLY_CALLS = 8
"""So many in a row, each with no other in flight, are of one caller; a single one also comes about among several callers."""

FRONT = "front"
"""Who waits for what the front says that it is needed next."""
EARLY_NS = 300_000
"""So long before a run should end it is looked at without pause: two naps of who polls, and what they oversleep."""
MAX_CANCELLED_EARLY = 1024
"""Cancellations kept of calls that are not under way. Most of these have ended already, and never come again. One that is on its
way comes behind the few others that were sent, so that its cancellation is never the oldest of so many."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


class CallUnderWay(NamedTuple):
    """A call under way."""

    job: Job[Any]
    cancellation: Cancellation
    succeeded: Callable[[Any], None]
    """Takes the job's result. Where it raises, the call has failed with that."""
    failed: Callable[[Exception], None]
    """Takes what the job raised."""


class Calls:
    """The calls of one executor, by number. ``cancel`` and ``cancel_all`` are for another thread."""

    def __init__(
        self,
        executor: Executor,
        concurrency: float = math.inf,
        on_compiling: Callable[[int, bool], object] = lambda call_id, begins: None,
    ) -> None:
        """At most ``concurrency`` calls are polled, beside those that wait for their code: those are *compiling*.

        ``on_compiling`` is called with a call's number when that begins, and when it ends.
        """
        self._executor = executor
        self.concurrency = concurrency
        self._on_compiling = on_compiling
        self._compiling: set[int] = set()
        self._lock = threading.Lock()
        """Held while a call begins, ends or is cancelled, so that a device is never told to stop the next one."""
        self._under_way: dict[int, CallUnderWay] = {}
        self._cancelled_early: dict[int, KaasError] = {}
        """Errors of calls that are not under way, in the order of their cancellation."""
        self._overdue: frozenset[int] = frozenset()
        """Calls that go on past their deadline, on a device that cannot stop them."""
        self._abandoned: list[Job[Any]] = []
        """Closing these would wait for their kernels."""

    def __len__(self) -> int:
        return len(self._under_way)

    @property
    def has_room(self) -> bool:
        """Whether another may begin. Those that are compiling come before it once they have their code."""
        return self._served + self._ready < self.concurrency

    @property
    def wait_s(self) -> float | None:
        """How long to wait at most where all others commit, which end with a signal; None: for ever.

        So does compiling; that a call is cancelled which waits for that, or for a slot, gives none.
        """
        if waiting := [job for job in self.jobs if job.awaits_slot]:
            return 0 if any(job.awaits_what_is_done for job in waiting) else CANCELLED_S
        if not self._compiling:
            return None
        return 0 if self._ready and self._served < self.concurrency else CANCELLED_S

    @property
    def _served(self) -> int:
        """How many are not compiling."""
        return len(self._under_way) - len(self._compiling)

    @property
    def _ready(self) -> int:
        """How many count as compiling though they have their code."""
        return sum(self._under_way[call_id].job.awaits_what_is_done for call_id in self._compiling) if self._compiling else 0

    @property
    def jobs(self) -> Iterable[Job[Any]]:
        """Those under way."""
        return (call.job for call in self._under_way.values())

    @property
    def some_run(self) -> bool:
        """Whether one is not committing. For any thread."""
        return any(not call.job.is_committing for call in list(self._under_way.values()))

    def one_ends_about(self, now_ns: int, late_ns: int) -> bool:
        """Return whether the run of one should end about now, by how long it took before: ``late_ns`` ago at most."""
        return any(-EARLY_NS < now_ns - job.expected_end_ns < late_ns for job in self.jobs)

    def begin(self, call_id: int, call: CallUnderWay) -> None:
        """Have a call polled from now on. Raises the reason where it was cancelled before."""
        with self._lock:
            if self._cancelled_early and (error := self._cancelled_early.pop(call_id, None)) is not None:
                raise error
            self._under_way[call_id] = call

    def poll(self) -> None:
        """Let every call go on; tell of those that have ended. Lose the device where one of them is long overdue."""
        for call_id, call in list(self._under_way.items()):
            if call_id in self._compiling and not self._comes_back(call_id, call):
                continue
            try:
                result = call.job.poll()
            except Exception as error:
                self._fail(call_id, call, error)
            else:
                if result is not None:
                    self._succeed(call_id, call, result)
                elif call.job.is_compiling and len(self._compiling) < MAX_COMPILING:
                    self._begins_to_compile(call_id)
        if self._overdue and self._is_overdue():
            self._mark_device_lost()

    def cancel(self, call_id: int, error: KaasError, *, overdue: bool = False) -> bool:
        """Have one call end, now or when it comes. Returns whether it is under way, and is to be cancelled again.

        ``overdue`` says that it had time enough to do so: a device that cannot stop it is lost.
        """
        with self._lock:
            call = self._under_way.get(call_id)
            if call is None:
                self._cancel_early(call_id, _during("queued", error))
                return False
            if not self._cancel(call_id, call, error) and overdue:
                self._overdue |= {call_id}
            return True

    def cancel_all(self, error: KaasError) -> None:
        """Have all calls end that are under way."""
        with self._lock:
            for call_id, call in self._under_way.items():
                self._cancel(call_id, call, error)

    def close(self) -> None:
        """End what is under way; waits for the device and the store."""
        for call in self._under_way.values():
            call.job.close()

    def _begins_to_compile(self, call_id: int) -> None:
        with self._lock:
            self._compiling.add(call_id)
        self._on_compiling(call_id, True)

    def _comes_back(self, call_id: int, call: CallUnderWay) -> bool:
        """Return whether a call that is compiling goes on: with its code, where others leave it the room, or to its end."""
        if call.cancellation.reason is None and not (call.job.awaits_what_is_done and self._served < self.concurrency):
            return False
        with self._lock:
            self._compiling.discard(call_id)
        self._on_compiling(call_id, False)
        return True

    def _cancel(self, call_id: int, call: CallUnderWay, error: KaasError) -> bool:
        """Have a call end; return whether the device could be told to stop it."""
        if call.cancellation.reason is None:
            call.cancellation.reason = _during("running", error)
        # A device that can stop a kernel has one call at a time on it, so what it stops is this one, unless that has left it.
        return call_id in self._compiling or _is_off_device(call.job) or self._executor.device.stop()

    def _cancel_early(self, call_id: int, error: KaasError) -> None:
        self._cancelled_early[call_id] = error
        if len(self._cancelled_early) > MAX_CANCELLED_EARLY:
            del self._cancelled_early[next(iter(self._cancelled_early))]

    def _is_overdue(self) -> bool:
        """Whether a kernel goes on past its request's deadline."""
        calls = map(self._under_way.get, self._overdue)
        return any(call is not None and not _is_off_device(call.job) for call in calls)

    def _mark_device_lost(self) -> None:
        """Lose the device, which only the end of this process takes from a kernel that goes on past its request's deadline.

        What commits is answered when it has; the other requests have changed nothing, and can run again in another process.
        """
        self._executor.mark_device_lost()
        for call_id, call in list(self._under_way.items()):
            if not call.job.is_committing:
                self._abandoned.append(call.job)
                by_another = WorkerRestartingError("another request's kernel went on past its deadline; nothing was changed")
                self._fail(call_id, call, call.cancellation.reason or by_another)

    def _succeed(self, call_id: int, call: CallUnderWay, result: Any) -> None:
        self._end(call_id)
        try:
            call.succeeded(result)
        except Exception as error:
            call.failed(error)

    def _fail(self, call_id: int, call: CallUnderWay, error: Exception) -> None:
        self._end(call_id)
        if isinstance(error, UnknownRequest) and call.cancellation.reason is not None:
            with self._lock:  # It comes again, with its request.
                self._cancel_early(call_id, call.cancellation.reason)
        call.failed(error)

    def _end(self, call_id: int) -> None:
        with self._lock:
            del self._under_way[call_id]
            self._compiling.discard(call_id)
            self._overdue -= {call_id}


class Loop:
    """Serves the calls of one channel with one executor."""

    def __init__(
        self,
        channel: WorkerChannel,
        executor: Executor,
        commits: CommitSignal,
        config: worker_pb2.WorkerConfig,
        progress: Progress,
    ) -> None:
        """``commits`` is what the executor notifies; ``progress`` is told of every call."""
        self._channel = channel
        self._executor = executor
        self._commits = commits
        self._progress = progress
        self._concurrency = config.concurrency + WAITING_AT_WORKER
        self.calls = Calls(executor, self._concurrency, self._tell_compiling)
        """Those under way."""
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
                    message = self._channel.receive()
                    if message is None:
                        break
                    self._take(message)
                    self._last_event_ns = perf_counter_ns()
                    self._only_calls = self._only_calls + 1 if message.only_call else 0
                self.calls.poll()
            while self.calls and self._executor.device_lost:
                self.calls.poll()
        finally:
            self.calls.close()

    def _call_waits(self) -> bool:
        """Wait until there is something to do; return whether it is a call that can be taken up."""
        if not self.calls:
            while self._busy_polls and not self._channel.has_begun:
                if select.select([self._channel], (), (), 0)[0]:
                    break
            return True
        room = self.calls.has_room
        if room and self._channel.has_begun:
            return True
        awaited: list[WorkerChannel | CommitSignal] = [self._commits, *([self._channel] if room else [])]
        ready, _, _ = select.select(awaited, (), (), self._timeout_s())
        if self._commits in ready:
            self._commits.clear()
        return self._channel in ready

    def _timeout_s(self) -> float | None:
        if all(job.is_committing or job.is_compiling or job.awaits_slot for job in self.calls.jobs):
            return self.calls.wait_s
        return 0 if self._busy_polls else NAP_S

    @property
    def _busy_polls(self) -> bool:
        if not self._busy_poll_ns or not (self._busy_poll_beside_others or self._only_calls >= ONLY_CALLS):
            return False
        now = perf_counter_ns()
        return now - self._last_event_ns < self._busy_poll_ns or self.calls.one_ends_about(now, self._busy_poll_ns)

    def _take(self, message: worker_pb2.ToWorker) -> None:
        """Begin a call."""
        cancellation = Cancellation()
        try:
            if message.id:
                self._progress.begin(message.id)
            match message.WhichOneof("call"):
                case "execute":
                    call = message.execute
                    group = call.group or DEFAULT_ACCOUNT
                    invocation = Invocation(
                        _request(call.request),
                        keys=dict(call.keys),
                        inputs=dict(call.inputs),  # once: each look into the message copies
                        return_buffers=tuple(call.return_buffers),
                        cancellation=cancellation,
                        trace_from_ns=call.trace_from_ns,
                        on_commit=partial(self._progress.commit, message.id),
                        on_waiting=partial(self._waits, message.id),
                        kept=partial(self._kept, call.keep_as, group) if call.HasField("keep_as") else None,
                        group=group,
                        priority=call.priority,
                        max_device_memory_bytes=call.max_device_memory_bytes,
                    )
                    self._hear_awaited(call.awaited)
                    self._begin(message.id, execute(self._executor, invocation), cancellation, self._executed)
                case "prepare":
                    preparation = Job(prepare(self._executor, _request(message.prepare.request), cancellation))
                    self._begin(message.id, preparation, cancellation, _prepared)
                case "inspect":
                    library = message.inspect.library
                    content = message.inspect.content if message.inspect.HasField("content") else None
                    inspection = Job(inspect(self._executor, library, content, cancellation))
                    self._begin(message.id, inspection, cancellation, _inspected)
                case "forget_library":
                    self._executor.programs.forget_library(message.forget_library.library)
                case "reserve":
                    self._executor.reserve(dict(message.reserve.multiprocessors))
                    self.calls.concurrency = self._concurrency + len(message.reserve.multiprocessors)
                case "hold_pages":
                    self._hold_pages(message)
                case unknown:
                    raise InternalError(f"the front sent a call that this worker does not know: {unknown}")
        except Exception as error:
            self._fail(message.id, error)

    def _hear_awaited(self, awaited: Sequence[worker_pb2.ResidentValue]) -> None:
        """Have what the front knows to be needed next evicted last."""
        keys = [range_key(value.key, value.offset_bytes, value.size_bytes) for value in awaited]
        self._executor.memory.awaits(FRONT, keys)

    def _hold_pages(self, message: worker_pb2.ToWorker) -> None:
        allowed = message.hold_pages.allowed
        try:
            self._executor.hold_pages(allowed=allowed)
        except DeviceLost:  # This process ends, and its pages with it.
            self._executor.mark_device_lost()
            raise
        if not allowed:
            self._answer(message.id, worker_pb2.FromWorker(pages_released=worker_pb2.PagesReleased()))
        else:
            self._progress.end(message.id)  # which has no answer

    def _begin(
        self, call_id: int, job: Job[T], cancellation: Cancellation, to_answer: Callable[[T], worker_pb2.FromWorker]
    ) -> None:
        """Have a call polled from now on; ``to_answer`` makes its result an answer. Raises where it was cancelled before."""

        def succeeded(result: T) -> None:
            self._answer(call_id, to_answer(result))

        def failed(error: Exception) -> None:
            self._fail(call_id, error)

        self.calls.begin(call_id, CallUnderWay(job, cancellation, succeeded, failed))

    def _fail(self, call_id: int, error: Exception) -> None:
        if isinstance(error, UnknownRequest):
            self._answer(call_id, worker_pb2.FromWorker(unknown_request=worker_pb2.UnknownRequest()))
            return
        if not isinstance(error, KaasError):
            _log.error("call %d", call_id, exc_info=error)
            error = InternalError("a defect of kaasd; its log has the details")
        failed = failed_from_error(error, device_lost=self._executor.device_lost)
        self._answer(call_id, worker_pb2.FromWorker(failed=failed))

    def _tell_compiling(self, call_id: int, begins: bool) -> None:
        """Tell the front that a call leaves its place to others, or takes one again. Meanwhile it counts as not begun."""
        if begins:
            self._progress.end(call_id)
        else:
            self._progress.begin(call_id)
        self._channel.send(worker_pb2.FromWorker(id=call_id, compiling=worker_pb2.Compiling(begins=begins)))

    def _waits(self, call_id: int, begins: bool) -> None:
        """A call waits for others, or goes on. Meanwhile it counts as not begun: nothing is its doing."""
        if begins:
            self._progress.end(call_id)
        else:
            self._progress.begin(call_id)

    def _answer(self, call_id: int, answer: worker_pb2.FromWorker) -> None:
        answer.id = call_id
        self._channel.send(answer)
        self._progress.end(call_id)
        self._last_event_ns = perf_counter_ns()

    def _executed(self, result: Result) -> worker_pb2.FromWorker:
        answer = worker_pb2.FromWorker()
        executed = answer.executed
        executed.kernels_launched = result.kernels_launched
        executed.memory_used_bytes = self._executor.memory.held_bytes
        executed.device_ns = result.device_ns
        executed.brought_bytes, executed.new_program = result.brought_bytes, result.new_program
        for key, offset_bytes, size_bytes in values_dropped(self._executor.memory):
            executed.dropped.add(key=key, offset_bytes=offset_bytes, size_bytes=size_bytes)
        executed.device_full = self._executor.memory.take_was_full()
        reply = executed.reply
        self._fill(reply, result)
        for key, version in result.versions.items():
            reply.versions[key] = version
        if result.trace is not None:
            reply.trace.CopyFrom(result.trace)
        return answer

    def _kept(self, keep_as: worker_pb2.KeepAs, group: str, result: Result, keys: Sequence[str]) -> Write:
        """Return the reply of a request as what is stored with its outputs."""
        size = sum(map(len, result.outputs.values())) + len(result.printed)
        if is_large := size > MAX_REPLY_BYTES:
            result = result._replace(outputs={}, printed="")
        kept = pack_reply(keep_as.fingerprint, keys, partial(self._fill, result=result), outputs_dropped=is_large)
        return Write(keep_as.key, [kept], namespace=Namespace.REPLIES, must_be_new=True, account=group)

    def _fill(self, reply: executor_pb2.InvokeResponse, result: Result) -> None:
        """Fill in a reply in its place: handing over its parts would copy each twice."""
        for name, content in result.outputs.items():
            reply.outputs[name] = content
        reply.device = self._executor.device_name
        reply.printed = result.printed
        timing = reply.timing
        timing.plan_ns, timing.load_ns = result.plan_ns, result.load_ns
        timing.run_ns, timing.commit_ns = result.run_ns, result.commit_ns
        timing.queue_ns = result.slot_ns


def _is_off_device(job: Job[Any]) -> bool:
    """Whether nothing of a job runs on the device now, so that it ends without that."""
    return job.is_committing or job.awaits_slot or job.awaits_memory


def _request(named: worker_pb2.SerializedRequest) -> SerializedRequest:
    return SerializedRequest(named.digest, named.content)


def _prepared(_: bool) -> worker_pb2.FromWorker:
    return worker_pb2.FromWorker(prepared=worker_pb2.Prepared())


def _inspected(response: library_pb2.InspectLibraryResponse) -> worker_pb2.FromWorker:
    return worker_pb2.FromWorker(inspected=response)


def _during(stage: str, error: KaasError) -> KaasError:
    """Return an error that also says what it interrupted."""
    return type(error)(f"{error.message} while the request was {stage}")
