"""What this process knows of the cluster that it has joined."""

from __future__ import annotations

from typing import Any, ClassVar

import ray
from cachetools import LRUCache

from kaas_client.ray import cluster, reports, table
from kaas_client.ray.cluster import ExecutorRef
from kaas_client.ray.placement import Placer
from kaas_client.ray.tasks import Task
from kaas_core.errors import UnavailableError

MOST_KNOWN = 65536
"""Objects that are known to be there: asking costs 50 microseconds."""


class Session:
    """The executors, and what has been published already."""

    _current: ClassVar[Session | None] = None

    def __init__(self, executors: list[ExecutorRef]) -> None:
        self.executors = executors
        self._job = ray.get_runtime_context().get_job_id()
        self._published: set[bytes] = set()
        self._there: LRUCache[bytes, None] = LRUCache(MOST_KNOWN)
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

    def is_there(self, reference: ray.ObjectRef[Any]) -> bool:
        """Return whether an object has a value, which it keeps once it has one."""
        object_id = reference.binary()
        if object_id in self._there:
            return True
        if not ray.wait([reference], timeout=0, fetch_local=False)[0]:
            return False
        self._there[object_id] = None
        return True
