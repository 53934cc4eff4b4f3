"""What this process knows of the cluster that it has joined."""

from __future__ import annotations

from typing import Any, ClassVar

import ray
from cachetools import LRUCache
from ray.exceptions import RayError

from kaas_client.ray import cluster, reports, table
from kaas_client.ray.arrays import bytes_of, name_of
from kaas_client.ray.cluster import ExecutorRef
from kaas_client.ray.placement import Placer
from kaas_client.ray.tasks import Task
from kaas_core.errors import InvalidRequestError, UnavailableError
from kaas_core.request import BufferSpec

MOST_KNOWN = 65536
"""Objects that are known to be there: asking costs 50 microseconds."""

MOST_SMALL_BYTES = 32 << 20
"""Of small objects that calls are given again and again, kept here."""


class Session:
    """The executors, and what has been published already."""

    _current: ClassVar[Session | None] = None

    def __init__(self, executors: list[ExecutorRef]) -> None:
        self.executors = executors
        self._job = ray.get_runtime_context().get_job_id()
        self._published: set[bytes] = set()
        self._there: LRUCache[bytes, None] = LRUCache(MOST_KNOWN)
        self._given: LRUCache[bytes, None] = LRUCache(MOST_KNOWN)
        self._small: LRUCache[str, memoryview] = LRUCache(MOST_SMALL_BYTES, len)
        """Values of small objects."""
        self.placer = Placer(executors)

    @classmethod
    def current(cls) -> Session:
        """Return the session of this process, which finds the executors that there are. Raises ``UnavailableError``."""
        if not ray.is_initialized():
            raise UnavailableError("this process has not joined a cluster of Ray: call ray.init() first")
        session = cls._current
        if session is None or session._job != ray.get_runtime_context().get_job_id():
            session = cls._current = Session(cluster.find())
        return session

    @classmethod
    def begin(cls, executors: list[ExecutorRef]) -> Session:
        """Make these the executors of this process."""
        cls._current = Session(executors)
        return cls._current

    @classmethod
    def end(cls) -> None:
        """Forget them."""
        cls._current = None

    def publish(self, task: Task) -> None:
        """Have all executors know a task."""
        digest = task.serialized.digest
        if digest not in self._published:
            table.put(table.Kind.TASK, digest, task.serialized.content)
            self._published.add(digest)

    def tell(self, method: str, *args: object) -> None:
        """Have the executors do something, but for those that have not come up: they find out for themselves."""
        up = set(reports.names())
        ray.get([getattr(each.actor, method).remote(*args) for each in self.executors if each.name in up])

    def small_value(self, reference: ray.ObjectRef[Any], spec: BufferSpec) -> memoryview | None:
        """Return the bytes of an object that is there, and is so small that to send them takes less than to send a reference:
        that costs 60 microseconds at either end. None where it has another size, or what became of it is an error."""
        known_by = name_of(reference.hex(), spec)
        content = self._small.get(known_by)
        if content is None:
            try:
                content = bytes_of(ray.get(reference), spec).data
            except (RayError, InvalidRequestError):
                return None  # the executor says so
            if len(content) != spec.size_bytes:
                return None
            self._small[known_by] = content
        return content

    def was_given(self, reference: ray.ObjectRef[Any]) -> bool:
        """Return whether a call was given an object before: then it may be on a device, and is worth no copy from Ray's store."""
        object_id = reference.binary()
        if object_id in self._given:
            return True
        self._given[object_id] = None
        return False

    def is_there(self, reference: ray.ObjectRef[Any]) -> bool:
        """Return whether an object has a value, which it keeps once it has one."""
        object_id = reference.binary()
        if object_id in self._there:
            return True
        if not ray.wait([reference], timeout=0, fetch_local=False)[0]:
            return False
        self._there[object_id] = None
        return True
