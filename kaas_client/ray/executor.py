"""The actor that runs requests on one device. It holds the engine itself."""

from __future__ import annotations

import math
import os
import time
from dataclasses import replace
from time import monotonic

import ray
from cachetools import LRUCache

from kaas_client.ray import table
from kaas_client.ray.arrays import LentArray, bytes_of
from kaas_client.ray.engine import Engine, Job
from kaas_client.ray.tasks import Call, Task
from kaas_core.errors import InternalError, KeyNotFoundError, LibraryNotFoundError
from kaasd.ipc.messages import MAX_KNOWN_REQUESTS
from kaasd.libraries.registry import CACHE_BYTES, ResolvedLibrary

THREADS = 256
"""Calls that are under way or queued here; the queue in front of these is Ray's. An idle thread takes 10 KB."""
WAITING_THREADS = 256
"""Calls with a deadline that wait here for an input."""
WAITING = "waiting"
"""The concurrency group of these."""
EXIT_DEFECT = 71
"""The device is served no more, by a defect; Ray starts another executor."""


class ClusterLibraries:
    """The libraries of the cluster, each fetched once."""

    def __init__(self) -> None:
        self._fetched: LRUCache[str, ResolvedLibrary] = LRUCache(CACHE_BYTES, lambda library: len(library.data))

    def resolve(self, reference: str) -> ResolvedLibrary:
        """Return the library of a content id. Raises ``LibraryNotFoundError``."""
        library = self._fetched.get(reference)
        if library is None:
            content = table.get(table.Kind.LIBRARY, reference.encode())
            if content is None:
                raise LibraryNotFoundError(f"the cluster has no library {reference}")
            library = ResolvedLibrary(reference, reference, content, None)
            if len(content) <= CACHE_BYTES:
                self._fetched[reference] = library
        return library

    def is_current(self, resolved: ResolvedLibrary) -> bool:
        """Return True: what a content id stands for does not change."""
        return True


class Executor:
    """Runs tasks on one device. Each call has a thread of its own; the device has another."""

    def __init__(self, device: str) -> None:
        """Open the device. Raises ``DeviceUnavailable``."""
        self._engine = Engine(device, ClusterLibraries(), on_failure=lambda: os._exit(EXIT_DEFECT))
        self._tasks: LRUCache[bytes, Task] = LRUCache(MAX_KNOWN_REQUESTS)

    def device(self) -> str:
        """Return the device's name."""
        return self._engine.executor.device_name

    def run(self, call: Call, *values: object) -> object:
        """Run a task; return its output, or a tuple of several. Raises ``KaasError``."""
        task = self._tasks.get(call.digest) or self._fetch(call.digest)
        inputs: dict[str, memoryview] = {}
        keys: dict[str, str] = {}
        objects: dict[str, memoryview] = {}
        for (name, object_id), value in zip(call.inputs, values, strict=True):
            content = bytes_of(value, task.buffers[name]).data
            if object_id and name in task.shareable:
                keys[name] = object_id
                objects[object_id] = content
            else:
                inputs[name] = content
        keys.update((name, object_id) for name, object_id, _ in call.constants)
        context = ray.get_runtime_context()
        task_id = context.get_task_id()
        results = [f"{task_id}{index.to_bytes(4, 'little').hex()}" for index in range(1, len(task.outputs) + 1)]
        keys.update(zip((spec.name for spec in task.outputs), results, strict=True))
        deadline = monotonic() + call.deadline_s - time.time() if call.deadline_s else math.inf
        job = Job(task.serialized, keys, inputs, objects, results, deadline)
        try:
            outputs = self._engine.run(job, context.is_canceled)
        except KeyNotFoundError as error:
            if not any(object_id == error.metadata["key"] for _, object_id, _ in call.constants):
                raise
            fetched = ray.get([boxed[0] for _, _, boxed in call.constants])
            constants = {
                object_id: bytes_of(value, task.buffers[name]).data
                for (name, object_id, _), value in zip(call.constants, fetched, strict=True)
            }
            outputs = self._engine.run(replace(job, values={**objects, **constants}), context.is_canceled)
        arrays = [
            LentArray.of(outputs.contents[object_id], form, outputs.loan)
            for object_id, form in zip(results, task.forms, strict=True)
        ]
        return tuple(arrays) if len(arrays) > 1 else arrays[0]

    def _fetch(self, digest: bytes) -> Task:
        content = table.get(table.Kind.TASK, digest)
        if content is None:
            raise InternalError(f"the cluster has no task {digest.hex()}")
        task = self._tasks[digest] = Task.from_content(content)
        return task
