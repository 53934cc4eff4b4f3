"""The actor that runs requests on one device. It holds the engine itself."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import ray
from cachetools import LRUCache
from ray.exceptions import RayTaskError, TaskCancelledError

from kaas_client.ray import groups, table
from kaas_client.ray.arrays import bytes_of, name_of, returned
from kaas_client.ray.engine import LOOK_S, Engine
from kaas_client.ray.jobs import Job, Outputs
from kaas_client.ray.journal import Journal
from kaas_client.ray.metrics import Metrics, Usage
from kaas_client.ray.node_libraries import NodeLibraries, folder_of_node
from kaas_client.ray.references import Carried, packed_with
from kaas_client.ray.reporter import Reporter
from kaas_client.ray.tasks import Task, TaskCall
from kaas_client.ray.tenancy import Tenancy
from kaas_core.errors import (
    CancelledError,
    DeadlineExceededError,
    InternalError,
    KaasError,
    KeyNotFoundError,
)
from kaasd.ipc.messages import MAX_KNOWN_REQUESTS
from kaasd.worker.execution import Result

THREADS = 128
"""Calls that are under way or queued here; the queue in front of these is Ray's. An idle thread takes 10 KB."""
WAITING_THREADS = 256
"""Calls with a deadline that wait here for an input."""
WAITING = "waiting"
"""The concurrency group of these."""
CONTROL = "control"
"""That of what must not wait behind calls."""
QUICK_THREADS = 4
"""Quick calls that are under way, or queued. Two keep the process busy, and eight are dearer by a fifth; those behind hear of no
cancellation while something else holds up the device."""
LANE_THREADS = 32
"""Calls of one lane that are under way, queued, or wait for an executor of their group."""
EXIT_RETIRED = 0
EMULATOR_UNUSED_BYTES = 512 << 20
"""Constants and outputs that an emulated device keeps for requests to come."""
REPLIES_S = 0.3
"""For the answers to be sent of calls that have just ended, before the process does. One that is lost is run again."""


class Arrived(NamedTuple):
    """A call as it has come."""

    call: TaskCall
    inline: Mapping[str, memoryview]
    """Values that came within it, by buffer name."""
    values: Sequence[Any]
    """Those of ``call.given``."""
    carried: Carried | None
    """What has the references, if there are some."""

    @classmethod
    def of(cls, packed: bytes | Carried, values: Sequence[Any]) -> Arrived:
        """Return what has come as these arguments."""
        carried = packed if isinstance(packed, Carried) else None
        call, inline = TaskCall.from_bytes(packed if isinstance(packed, bytes) else packed.content)
        return cls(call, inline, values, carried)

    def references(self, start: int, stop: int | None) -> list[Any]:
        """Return some of the references, those of constants first."""
        return [] if self.carried is None else self.carried.references(start, stop)


class ExecutorActor:
    """Runs tasks on one device. Each call has a thread of its own."""

    def __init__(self, device: str, *, stands_in: bool = False, gpus: str = "") -> None:
        """Open the device. Raises ``DeviceUnavailable``.

        One that ``stands_in`` for another is its spare: it sees that one's ``gpus``, runs whatever comes, and reports nothing.
        """
        if gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus
        # An emulated device's memory is the machine's, which others need too.
        unused_limit_bytes = None if device.startswith("cuda:") else EMULATOR_UNUSED_BYTES
        self._libraries = NodeLibraries(folder_of_node())
        self._engine = Engine(
            device,
            self._libraries,
            unused_limit_bytes=unused_limit_bytes,
            journal=Journal(_journal_path()),
            on_failure=_end_process,
            on_result=self._note_stages,
        )
        self._context = ray.get_runtime_context()
        """Of the call that a thread serves: it tells by the thread which that is."""
        name = self._context.get_actor_name()
        self._metrics = Metrics(name or device, self._engine.group_uses, self.usage)
        self._metrics.begin()
        self._tasks: LRUCache[bytes, Task] = LRUCache(MAX_KNOWN_REQUESTS)
        known_as = None if stands_in else name
        self._tenancy = Tenancy(known_as)
        retire = partial(_end_process, EXIT_RETIRED)
        self._reporter = Reporter(known_as, self._engine, self._tenancy, retire) if known_as else None

    def device(self) -> str:
        """Return the device's name."""
        return self._engine.executor.device_name

    def run(self, packed: bytes | Carried, *values: Any) -> object:
        """Run a task; return its output, or a tuple of several. Raises ``KaasError``."""
        return self._answer(Arrived.of(packed, values), self._serve)

    @ray.method(concurrency_group=WAITING)
    def run_when_ready(self, packed: Carried, *values: Any) -> object:
        """As ``run``, when the objects are there that the call awaits. Raises what became of one that will never be there."""
        return self._answer(Arrived.of(packed, values), self._serve_when_ready)

    def _answer(self, arrived: Arrived, serve: Callable[[Arrived], object]) -> object:
        """Return what ``serve`` does; of a call that Ray cancelled what Ray drops, so that its caller gets Ray's own
        ``TaskCancelledError``, as for any task."""
        try:
            with self._metrics.request(arrived.call.group):
                return serve(arrived)
        except CancelledError:
            outputs = len(self._task(arrived.call.digest).outputs)
            return (None,) * outputs if outputs > 1 else None

    def _serve_when_ready(self, arrived: Arrived) -> object:
        waiting = arrived.call
        awaited = arrived.references(len(waiting.constants), None)
        is_cancelled = self._context.is_canceled
        while True:
            left_s = waiting.deadline_s - time.time()
            _, missing = ray.wait(awaited, num_returns=len(awaited), timeout=max(0.0, min(LOOK_S, left_s)))
            if not missing:
                break
            if left_s <= 0:
                raise DeadlineExceededError("the deadline passed while the request waited for an input")
            if is_cancelled():
                raise CancelledError("the call was cancelled while the request waited for an input")
        ready = waiting._replace(given=[*waiting.given, *waiting.awaited], awaited=())
        return self._serve(arrived._replace(call=ready, values=[*arrived.values, *ray.get(awaited)]))

    def _serve(self, arrived: Arrived) -> object:
        call = arrived.call
        task = self._task(call.digest)
        if not self._tenancy.admits(call.group) and (other := self._elsewhere(call)) is not None:
            return _run_at(other, self._tenancy.sharing.lane(call.group), task, arrived)
        if not self._engine.knows_group(call.group):
            self._engine.set_group(groups.read(call.group))
        job = _job(task, arrived, str(self._context.get_task_id()))
        if call.constants:
            outputs = self._run_with_constants(job, task, arrived)
        else:
            outputs = self._engine.run(job, self._context.is_canceled)
        results = zip(job.outputs.values(), task.forms, strict=True)
        values = [returned(outputs.contents[object_id], form, outputs.loan) for object_id, form in results]
        return tuple(values) if len(values) > 1 else values[0]

    def _elsewhere(self, call: TaskCall) -> Any:
        """Wait until a group's calls run here, or return another executor where they do. Raises ``KaasError``."""
        is_cancelled = self._context.is_canceled
        groups.check(call.group)
        with self._tenancy.wait(call.group):
            self._report_soon()
            while not self._tenancy.admits(call.group):
                if (other := self._tenancy.other_for(call.group)) is not None:
                    return other
                if is_cancelled():
                    raise CancelledError("the call was cancelled while the request waited for an executor of its group")
                if call.deadline_s and time.time() >= call.deadline_s:
                    raise DeadlineExceededError("the deadline passed while the request waited for an executor of its group")
                self._tenancy.wait_for_change(LOOK_S)
        return None

    @ray.method(concurrency_group=CONTROL)
    def reload_policy(self) -> None:
        """Take over what the cluster knows of its policy now."""
        self._tenancy.reload()
        self._report_soon()

    @ray.method(concurrency_group=CONTROL)
    def lease(self, process: str, group: str) -> None:
        """Serve a group alone from now on, if this is the process that is meant."""
        self._tenancy.lease(process, group)
        self._report_soon()

    @ray.method(concurrency_group=CONTROL)
    def retire(self, process: str) -> None:
        """Take no calls any more, and make room for a process that serves another group, if this is the one that is meant."""
        self._tenancy.retire(process)
        self._report_soon()

    def _report_soon(self) -> None:
        if self._reporter is not None:
            self._reporter.soon()

    def _run_with_constants(self, job: Job, task: Task, arrived: Arrived) -> Outputs:
        """Run a job, with the values of those constants that are not on the device. Raises ``KaasError``."""
        constants, is_cancelled = arrived.call.constants, self._context.is_canceled
        missing = [
            index for index, (name, _) in enumerate(constants) if not self._engine.holds(job.keys[name], task.buffers[name])
        ]
        try:
            return self._engine.run(_with_constants(job, task, arrived, missing), is_cancelled)
        except KeyNotFoundError as error:  # One went meanwhile.
            if error.metadata["key"] not in (job.keys[name] for name, _ in constants):
                raise
        return self._engine.run(_with_constants(job, task, arrived, range(len(constants))), is_cancelled)

    def set_group(self, name: str) -> None:
        """Take over what the cluster knows of a group now."""
        self._engine.set_group(groups.read(name))

    def usage(self) -> Usage:
        """Return what is on the device, and what has been brought there."""
        executor = self._engine.executor
        return Usage(executor.memory.held_bytes, executor.memory.in_use_bytes, executor.uploads, executor.uploaded_bytes)

    def _note_stages(self, result: Result) -> None:
        stages_ns = {"plan": result.plan_ns, "load": result.load_ns, "run": result.run_ns, "commit": result.commit_ns}
        self._metrics.stages_ended(stages_ns)

    def _task(self, digest: bytes) -> Task:
        task = self._tasks.get(digest)
        if task is None:
            content = table.get(table.Kind.TASK, digest)
            if content is None:
                raise InternalError(f"the cluster has no task {digest.hex()}")
            task = self._tasks[digest] = Task.from_content(content)
        return task


def _journal_path() -> Path:
    """Return where this actor writes, in each of its processes on this node."""
    actor_id = ray.get_runtime_context().get_actor_id()
    return Path(tempfile.gettempdir()) / f"kaas-ray-{os.getuid()}" / f"{actor_id}.journal"


def _end_process(status: int) -> None:
    """End this process: Ray starts the actor again, and sends the calls there that have no answer yet."""
    time.sleep(REPLIES_S)
    os._exit(status)


def _run_at(executor: Any, lane: str | None, task: Task, arrived: Arrived) -> object:
    """Return what a call returns that is passed on to another executor. Raises ``KaasError``."""
    call = arrived.call
    packed = packed_with(call.to_bytes(arrived.inline.values()), arrived.references(0, len(call.constants)))
    retries = -1 if call.max_retries else 0
    method = executor.run.options(num_returns=len(task.outputs), concurrency_group=lane, max_task_retries=retries)
    try:
        results: object = ray.get(method.remote(packed, *arrived.values))
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, KaasError) else error from None
    except TaskCancelledError as error:
        raise CancelledError(str(error)) from None
    return tuple(results) if isinstance(results, list) else results


def _job(task: Task, arrived: Arrived, task_id: str) -> Job:
    """Return what the engine is to run. Raises ``InvalidRequestError`` for a value that is no array and no bytes."""
    call = arrived.call
    inputs: dict[str, memoryview] = {}
    input_keys: dict[str, str] = {}
    keys = {name: name_of(object_id, task.buffers[name]) for name, object_id in call.constants}
    objects: dict[str, memoryview] = {}
    given = [(name, object_id, arrived.inline[name]) for name, _, object_id in call.inline]
    for (name, object_id), value in zip(call.given, arrived.values, strict=True):
        given.append((name, object_id, bytes_of(value, task.buffers[name]).data))
    for name, object_id, content in given:
        known_by = name_of(object_id, task.buffers[name])
        if object_id and name in task.shareable:
            keys[name] = known_by
            objects[known_by] = content
        else:
            inputs[name] = content
            if object_id:
                input_keys[name] = known_by
    results = {spec.name: f"{task_id}{number.to_bytes(4, 'little').hex()}" for number, spec in enumerate(task.outputs, 1)}
    keys.update(task.names_of(results))
    return Job(
        task.serialized,
        keys,
        inputs,
        objects,
        results,
        deadline=monotonic() + call.deadline_s - time.time() if call.deadline_s else math.inf,
        task_id=task_id,
        max_losses=call.max_retries,
        input_keys=input_keys,
        group=call.group,
        priority=call.priority,
    )


def _with_constants(job: Job, task: Task, arrived: Arrived, indices: Sequence[int]) -> Job:
    """Return the job with the values of some constants. Raises what became of one that is not there any more."""
    if not indices:
        return job
    references = arrived.references(0, len(arrived.call.constants))
    constants = [arrived.call.constants[index] for index in indices]
    values = zip(constants, ray.get([references[index] for index in indices]), strict=True)
    objects = {job.keys[name]: bytes_of(value, task.buffers[name]).data for (name, _), value in values}
    return replace(job, values={**job.values, **objects})
