"""The loop of a worker: takes calls up, keeps several requests under way on its one thread, answers each when it has ended."""

from __future__ import annotations

import logging
import os
import select
from functools import partial
from time import perf_counter_ns

from kaas.v1 import library_pb2, types_pb2
from kaas.worker.v1 import worker_pb2
from kaasd.engine.executor import Executor
from kaasd.engine.job import Job, Result
from kaasd.errors import InternalError, KaasError, WorkerRestartingError
from kaasd.workers.channel import WorkerChannel
from kaasd.workers.messages import failed_from_error
from kaasd.workers.stops import Stops
from kaasd.workers.tracing import trace_to_proto

NAP_S = 0.0001
"""Between looks at requests that take longer than one spins."""

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


class Serving:
    """Serves the calls of one channel with one executor."""

    def __init__(
        self, calls: WorkerChannel, executor: Executor, stops: Stops, commits: CommitSignal, concurrency: int, spin_s: float
    ) -> None:
        """``concurrency`` is how many requests may be under way; ``commits`` is what the executor notifies.

        For ``spin_s`` after anything happened the loop looks for the next thing instead of sleeping.
        """
        self._calls = calls
        self._executor = executor
        self._stops = stops
        self._commits = commits
        self._concurrency = concurrency
        self._jobs: dict[int, Job] = {}
        self._abandoned: list[Job] = []
        """Closing these would wait for their kernels."""
        self._last_event_ns = 0
        self._spin_ns = round(spin_s * 1e9)

    def run(self) -> None:
        """Serve until the front has closed its end, or the device is lost and all that was under way is answered."""
        while not self._executor.device_lost:
            if self._call_waits():
                message = self._calls.receive()
                if message is None:
                    break
                self._take(message)
                self._last_event_ns = perf_counter_ns()
            self._poll()
            if any(call_id in self._jobs and not self._jobs[call_id].is_committing for call_id in self._stops.overdue):
                self._give_up()
        while self._jobs and self._executor.device_lost:
            self._poll()
        for job in self._jobs.values():
            job.close()

    def _give_up(self) -> None:
        """Lose the device, which only the end of this process takes from a kernel that goes on past its request's deadline.

        What commits is answered when it has; the other requests have changed nothing, and can run again in another process.
        """
        self._executor.give_up()
        for call_id, job in list(self._jobs.items()):
            if not job.is_committing:
                del self._jobs[call_id]
                self._abandoned.append(job)
                try:
                    self._stops.check(call_id)
                    raise WorkerRestartingError("another request's kernel went on past its deadline; nothing was changed")
                except KaasError as error:
                    self._fail(call_id, error)

    def _call_waits(self) -> bool:
        """Wait until there is something to do; return whether it is a call that can be taken up."""
        if not self._jobs:
            while self._spins and not self._calls.has_begun:
                if select.select([self._calls], (), (), 0)[0]:
                    break
            return True
        room = len(self._jobs) < self._concurrency
        if room and self._calls.has_begun:
            return True
        awaited: list[WorkerChannel | CommitSignal] = [self._commits, *([self._calls] if room else [])]
        ready, _, _ = select.select(awaited, (), (), self._timeout_s())
        if self._commits in ready:
            self._commits.clear()
        return self._calls in ready

    def _timeout_s(self) -> float | None:
        if all(job.is_committing for job in self._jobs.values()):
            return None
        return 0 if self._spins else NAP_S

    @property
    def _spins(self) -> bool:
        return perf_counter_ns() - self._last_event_ns < self._spin_ns

    def _take(self, message: worker_pb2.ToWorker) -> None:
        """Begin a request; serve any other call at once."""
        try:
            self._stops.begin(message.id)
            match message.WhichOneof("call"):
                case "execute":
                    call = message.execute
                    self._jobs[message.id] = self._executor.begin(
                        call.request,
                        keys=call.keys,
                        inputs=call.inputs,
                        return_buffers=call.return_buffers,
                        check_stop=partial(self._stops.check, message.id),
                        trace_from_ns=call.trace_from_ns,
                    )
                case "prepare":
                    self._executor.prepare(message.prepare.request)
                    self._answer(message.id, worker_pb2.FromWorker(prepared=worker_pb2.Prepared()))
                case "inspect":
                    self._answer(message.id, worker_pb2.FromWorker(inspected=_inspect(self._executor, message.inspect)))
                case unknown:
                    raise InternalError(f"the front sent a call that this worker does not know: {unknown}")
        except Exception as error:
            self._fail(message.id, error)

    def _poll(self) -> None:
        """Let every request go on; answer those that have ended."""
        for call_id, job in list(self._jobs.items()):
            try:
                result = job.poll()
            except Exception as error:
                del self._jobs[call_id]
                self._fail(call_id, error)
                continue
            if result is not None:
                del self._jobs[call_id]
                self._answer(call_id, worker_pb2.FromWorker(executed=_executed(result, self._executor.memory_used_bytes)))

    def _fail(self, call_id: int, error: Exception) -> None:
        if not isinstance(error, KaasError):
            _log.error("call %d", call_id, exc_info=error)
            error = InternalError("a defect of kaasd; its log has the details")
        failed = failed_from_error(error, device_lost=self._executor.device_lost)
        self._answer(call_id, worker_pb2.FromWorker(failed=failed))

    def _answer(self, call_id: int, answer: worker_pb2.FromWorker) -> None:
        self._stops.end(call_id)
        answer.id = call_id
        self._calls.send(answer)
        self._last_event_ns = perf_counter_ns()


def _executed(result: Result, memory_used_bytes: int) -> worker_pb2.Executed:
    return worker_pb2.Executed(
        outputs=result.outputs,
        versions=result.versions,
        printed=result.printed,
        timing=types_pb2.Timing(plan_ns=result.plan_ns, load_ns=result.load_ns, run_ns=result.run_ns, commit_ns=result.commit_ns),
        kernels_launched=result.kernels_launched,
        memory_used_bytes=memory_used_bytes,
        trace=None if result.trace is None else trace_to_proto(result.trace),
    )


def _inspect(executor: Executor, call: worker_pb2.Inspect) -> library_pb2.InspectLibraryResponse:
    library, kernels = executor.inspect(call.library, call.content if call.HasField("content") else None)
    return library_pb2.InspectLibraryResponse(
        id=library.id,
        kind=library.kind,
        kernels=[
            library_pb2.KernelInfo(
                name=attributes.name,
                parameter_size_bytes=attributes.parameter_size_bytes or (),
                static_shared_memory_bytes=attributes.static_shared_memory_bytes,
                max_threads_per_block=attributes.max_threads_per_block,
            )
            for attributes in kernels
        ],
        device=executor.device_name,
    )
