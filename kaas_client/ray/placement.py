"""Which executor a call goes to: who submits it picks that, from what it knows of load and data.

It counts what it has sent and not seen answered, remembers what it has sent where and what was made there, and reads now and then
what executors report. All that is a guess, and may be: a call is right wherever it runs.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from time import monotonic
from typing import Any, NamedTuple

import ray

from kaas_client.ray import reports
from kaas_client.ray.aliases import alias_of, are_pending, nodes_of
from kaas_client.ray.cluster import ExecutorRef
from kaas_client.ray.reports import CALL_S, REPORT_S, Report
from kaas_client.ray.tasks import Task
from kaas_core.errors import InvalidArgumentError
from kaas_core.violations import shown
from kaasd.request.plan import SMALL_BYTES
from kaasd.scheduling import Chosen, Datum, Executors
from kaasd.scheduling.durations import DEFAULT_S

CODE_S = 1e-6
"""What loading a task's code counts. It is done once, so it only decides between executors that are equally free."""
BRING_S = 1e-4
BRING_BYTES_A_S = 10e9
"""To bring an object to a device from the memory of its node."""
FETCH_S = 1e-3
FETCH_BYTES_A_S = 1e9
"""To bring an object from one node to another."""
LOOK_S = 2e-3
"""Between two looks, when calls are sent, at whether others have been answered."""
LOOKED_AT = 16
"""Calls that are looked at then, in turns. A look takes some microseconds, and a call is sent in some hundred."""
FEW = 4
"""Calls that are looked at in any case: who awaits each before it sends the next is to find the executor idle."""
PAUSE_S = 0.1
"""When nothing was sent for so long,"""
MANY = 1024
"""so many are looked at."""
IDLE_S = 10.0
"""For so long executors are watched after the last call."""
MOST_LOCATED = 65536
"""Objects of which it is known on which node they are."""

_log = logging.getLogger(__name__)


class Placed(NamedTuple):
    """Where a call is to go."""

    executor: ExecutorRef
    chosen: Chosen | None
    """How it is counted; None where it is not."""


class _Sent(NamedTuple):
    """A call that may not be answered yet."""

    output: ray.ObjectRef[Any]
    """An alias of its first one."""
    chosen: Chosen
    kept: Sequence[bytes]
    """Ids of those outputs that stay on the device."""


class Placer:
    """What this process knows of the executors. For any thread."""

    def __init__(self, executors: Sequence[ExecutorRef]) -> None:
        self._refs = {executor.name: executor for executor in executors}
        self._alone = executors[0] if len(executors) == 1 else None
        self._lock = threading.Lock()
        self._executors = Executors()
        self._reports: dict[str, Report] = {}
        self._there: dict[str, str] = {}
        """Executors that are taken to be there, with what is known of their process: empty before the first report."""
        self._expected_s: dict[Hashable, float] = {}
        self._sent: deque[_Sent] = deque()
        self._awaited: dict[bytes, Chosen] = {}
        """Calls that may not be answered yet, by the results that will stay on their devices."""
        self._near: dict[str, list[str]] = {}
        """Executors by node."""
        self._located: dict[bytes, None] = {}
        self._look_at = 0.0
        self._used = False
        """Since the watcher has looked."""
        self._watcher: threading.Thread | None = None
        if self._alone is None:
            # Each process has another order, lest all prefer the same of two that are idle.
            for executor in random.sample(executors, len(executors)):
                self._add(executor.name, "")
            self._refresh()

    def choose(self, task: Task, buffers: Mapping[str, object], only: str | None) -> Placed:
        """Return where a call with these inputs is to go. Raises ``InvalidArgumentError`` where ``only`` names no executor."""
        if only is not None and only not in self._refs:
            raise InvalidArgumentError(f"there is no executor {shown(only)}: there are {', '.join(self._refs)}")
        if self._alone is not None:
            return Placed(self._alone, None)
        now = monotonic()
        with self._lock:
            self._used = True
            if self._watcher is None:
                self._watcher = threading.Thread(target=self._watch, name="executors", daemon=True)
                self._watcher.start()
            looks = now >= self._look_at or len(self._sent) <= FEW
            if looks:
                self._look(MANY if now > self._look_at + PAUSE_S else LOOKED_AT, now)
                self._look_at = now + LOOK_S
            if only is not None and only not in self._there:
                return Placed(self._refs[only], None)
            data = [Datum(task.serialized.digest, CODE_S)]
            after = self._add_inputs(data, task, buffers)
            expected_s = CALL_S + self._expected_s.get(task.serialized.digest, DEFAULT_S)
            chosen = self._executors.choose(data, expected_s, now, after, only)
            while looks and only is None and len(self._there) > 1 and self._refs[chosen.executor].is_down():
                self._remove(chosen.executor)
                chosen = self._executors.choose(data, expected_s, now, after)
            if len(self._near) > 1:
                self._spread(chosen.executor, data)
        return Placed(self._refs[chosen.executor], chosen)

    def sent(self, task: Task, placed: Placed, references: Sequence[ray.ObjectRef[Any]]) -> None:
        """A call has been sent where it was to go, which returned these references."""
        chosen = placed.chosen
        if chosen is None:
            return
        kept = [references[index].binary() for index in task.kept]
        with self._lock:
            for object_id in kept:
                self._awaited[object_id] = chosen
                self._executors.holds(chosen.executor, object_id)
            self._sent.append(_Sent(alias_of(references[0]), chosen, kept))

    # Parts, called with the lock held

    def _add_inputs(self, data: list[Datum], task: Task, buffers: Mapping[str, object]) -> list[Chosen]:
        """Add what a call must have on its device; return the calls that make some of that."""
        after = []
        for name, value in buffers.items():
            spec = task.buffers[name]
            if (spec.size_bytes > SMALL_BYTES or spec.constant) and isinstance(value, ray.ObjectRef):
                object_id = value.binary()
                data.append(Datum(object_id, BRING_S + spec.size_bytes / BRING_BYTES_A_S))
                if (maker := self._awaited.get(object_id)) is not None:
                    after.append(maker)
                if len(self._near) > 1:
                    self._locate(object_id, value)
                    data.append(Datum(_copy_of(object_id), FETCH_S + spec.size_bytes / FETCH_BYTES_A_S))
        return after

    def _locate(self, object_id: bytes, reference: ray.ObjectRef[Any]) -> None:
        """Learn which executors are on a node that has an object."""
        if object_id in self._located or object_id in self._awaited:
            return
        nodes = nodes_of(reference)
        if nodes:
            self._located[object_id] = None
            if len(self._located) > MOST_LOCATED:
                del self._located[next(iter(self._located))]
        for node in nodes:
            for name in self._near.get(node, ()):
                self._executors.holds(name, _copy_of(object_id))

    def _spread(self, name: str, data: Sequence[Datum]) -> None:
        """What a call needs comes to its executor's node, and so to those beside it."""
        copies = [datum.key for datum in data if isinstance(datum.key, tuple)]
        for neighbour in self._near.get(self._reports[name].node, ()) if name in self._reports else ():
            for key in copies:
                self._executors.holds(neighbour, key)

    def _look(self, most: int, now: float) -> None:
        """See which of some calls have been answered."""
        if not self._sent:
            return
        some = [self._sent.popleft() for _ in range(min(most, len(self._sent)))]
        for sent, is_pending in zip(some, are_pending([each.output for each in some]), strict=True):
            if is_pending:
                self._sent.append(sent)
                continue
            self._executors.ended(sent.chosen, now)
            for object_id in sent.kept:
                self._awaited.pop(object_id, None)

    def _add(self, name: str, process: str) -> None:
        self._there[name] = process
        self._executors.add(name)

    def _remove(self, name: str) -> None:
        del self._there[name]
        self._executors.remove(name)

    # The watcher

    def _watch(self) -> None:
        """Learn what executors report, for as long as calls are sent.

        This thread asks nothing of Ray's core worker: that ends the process when it is asked after ``ray.shutdown``.
        """
        used_at = monotonic()
        try:
            while True:
                with self._lock:
                    used, self._used = self._used, False
                    if used:
                        used_at = monotonic()
                    elif monotonic() - used_at > IDLE_S:
                        self._watcher = None
                        return
                if used:
                    self._refresh()
                time.sleep(REPORT_S)
        except Exception:  # The cluster may be gone. If it is not, the next call starts another.
            _log.debug("executors are watched no more", exc_info=True)
            self._watcher = None

    def _refresh(self) -> None:
        """Take over what executors have reported."""
        found = reports.read(list(self._refs))
        now, now_s = monotonic(), time.time()
        with self._lock:
            for name, report in found.items():
                self._take(name, report, now, max(0.0, now_s - report.at_s))
            if found:
                for name in self._there.keys() - found.keys() - {sent.chosen.executor for sent in self._sent}:
                    self._remove(name)  # it has not come up yet
            self._reports = found
            self._near = {}
            self._expected_s = {}
            for name, report in found.items():
                self._near.setdefault(report.node, []).append(name)
                self._expected_s.update(report.expected_s)

    def _take(self, name: str, report: Report, now: float, age_s: float) -> None:
        """Take over what one has reported ``age_s`` ago."""
        last = self._reports.get(name)
        if name not in self._there:
            if last is not None and last.process == report.process:
                return  # it has ended since
            self._add(name, report.process)
            self._located.clear()
        elif self._there[name] != report.process:
            if self._there[name]:
                self._add(name, report.process)
            self._there[name] = report.process
        self._executors.report(name, max(0.0, report.backlog_s - age_s), now)
        if last is None or last.at_s != report.at_s:
            for object_id in report.held:
                self._executors.holds(name, object_id)
            for object_id in report.dropped:
                self._executors.dropped(name, object_id)


def _copy_of(object_id: bytes) -> Hashable:
    """Return the key that an executor has while an object is in the memory of its node."""
    return "copy", object_id
