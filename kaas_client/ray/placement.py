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

from kaas_client.ray import policies, reports, spares, table
from kaas_client.ray.aliases import alias_of, are_pending, nodes_of
from kaas_client.ray.cluster import ExecutorRef
from kaas_client.ray.policies import ALL, QUICK, Sharing
from kaas_client.ray.reports import CALL_S, REPORT_S, Report
from kaas_client.ray.tasks import Task
from kaas_client.ray.tenants import Tenants
from kaas_core.errors import InvalidArgumentError
from kaas_core.violations import shown
from kaasd.request.plan import SMALL_BYTES
from kaasd.scheduling import DEFAULT_GROUP, Chosen, Datum, Policy
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
    lane: str | None = None
    """The concurrency group in which it is to be sent."""


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
        self._names = [executor.name for executor in executors]
        # Each process has another order, lest all prefer the same of two that are idle.
        random.shuffle(self._names)
        self._lock = threading.Lock()
        self._sharing = Sharing()
        self._tenants = Tenants(sticky=True)
        """With the executors that are taken to be there."""
        self._reports: dict[str, Report] = {}
        self._processes: dict[str, str] = {}
        """The last ones that are known, of those executors that have come up."""
        self._expected_s: dict[Hashable, float] = {}
        self._sent: deque[_Sent] = deque()
        self._awaited: dict[bytes, Chosen] = {}
        """Calls that may not be answered yet, by the results that will stay on their devices."""
        self._near: dict[str, list[str]] = {}
        """Executors by node."""
        self._spares: dict[str, ExecutorRef] = {}
        """Those that were needed, by name."""
        self._located: dict[bytes, None] = {}
        self._look_at = 0.0
        self._used = False
        """Since the watcher has looked."""
        self._watcher: threading.Thread | None = None
        for name in self._names:
            self._tenants.add(name, ALL)
        self.refresh()

    def choose(
        self, task: Task, buffers: Mapping[str, object], group: str, only: str | None = None, *, in_order: bool = False
    ) -> Placed:
        """Return where a group's call with these inputs is to go.

        ``in_order`` says that it may be taken up in the order in which calls come: the executor need not see it before.
        Raises ``InvalidArgumentError`` where ``only`` names no executor that it may use.
        """
        now = monotonic()
        self._used = True
        if self._watcher is None:
            self._start_watcher()
        if only is not None:
            self._check(only, group)
        elif len(self._refs) == 1:
            name = self._names[0]
            return Placed(self._there(name), None, self._lane(name, task, group, in_order))
        with self._lock:
            looks = now >= self._look_at or len(self._sent) <= FEW
            if looks:
                self._look(MANY if now > self._look_at + PAUSE_S else LOOKED_AT, now)
                self._look_at = now + LOOK_S
            data = [Datum(task.serialized.digest, CODE_S)]
            after = self._add_inputs(data, task, buffers)
            expected_s = CALL_S + self._expected_s.get(task.serialized.digest, DEFAULT_S)
            tenant = self._sharing.tenant(group)
            try:
                if only is not None:
                    chosen = self._tenants.count(only, data, expected_s, now)
                else:
                    chosen = self._tenants.choose(tenant, data, expected_s, now, after)
                    while looks and len(self._tenants) > 1 and self._there(chosen.executor).is_down():
                        self._tenants.remove(chosen.executor)
                        chosen = self._tenants.choose(tenant, data, expected_s, now, after)
            except LookupError:
                return Placed(self._refs[only or self._stand_in(tenant)], None, self._sharing.lane(group))
            if len(self._near) > 1:
                self._spread(chosen.executor, data)
        return Placed(self._there(chosen.executor), chosen, self._lane(chosen.executor, task, group, in_order))

    def sent(self, task: Task, placed: Placed, references: Sequence[ray.ObjectRef[Any]]) -> None:
        """A call has been sent where it was to go, which returned these references."""
        chosen = placed.chosen
        if chosen is None:
            return
        kept = [references[index].binary() for index in task.kept]
        with self._lock:
            for object_id in kept:
                self._awaited[object_id] = chosen
                self._tenants.holds(chosen.executor, object_id)
            self._sent.append(_Sent(alias_of(references[0]), chosen, kept))

    def refresh(self) -> None:
        """Take over the cluster's policy, and what executors have reported."""
        sharing, found = policies.read(), reports.read(self._names)
        now, now_s = monotonic(), time.time()
        with self._lock:
            if sharing != self._sharing:
                self._share(sharing)
            for name, report in found.items():
                self._take(name, report, now, max(0.0, now_s - report.at_s))
            if found:
                for name in self._tenants.names() - found.keys() - {sent.chosen.executor for sent in self._sent}:
                    self._tenants.remove(name)  # it has not come up yet
            self._reports = found
            self._near = {}
            self._expected_s = {}
            for name, report in found.items():
                self._near.setdefault(report.node, []).append(name)
                self._expected_s.update(report.expected_s)

    def _there(self, name: str) -> ExecutorRef:
        """Return an executor, or its spare where it is down and that is not."""
        executor = self._refs[name]
        report = self._reports.get(name)
        if not executor.is_down() or report is None or self._sharing.is_exclusive:
            return executor
        spare = spares.name_of(name, report)
        if spare not in self._spares and (actor := table.actor(spare)) is not None:
            self._spares[spare] = ExecutorRef(spare, actor)
        found = self._spares.get(spare, executor)
        return executor if found.is_down() else found

    def _lane(self, name: str, task: Task, group: str, in_order: bool) -> str | None:
        lane = self._sharing.lane(group)
        if lane is None and in_order and group == DEFAULT_GROUP and (report := self._reports.get(name)) is not None:
            return QUICK if task.serialized.digest in report.quick else None
        return lane

    def _check(self, only: str, group: str) -> None:
        if only not in self._refs:
            raise InvalidArgumentError(f"there is no executor {shown(only)}: there are {', '.join(self._refs)}")
        sharing = self._sharing
        if sharing.is_exclusive:
            raise InvalidArgumentError("under exclusive no call can ask for an executor: whose they are changes")
        if sharing.owner(only, None) != sharing.tenant(group):
            raise InvalidArgumentError(f"executor {only} is not one that group {group} may use")

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
                self._tenants.holds(name, _copy_of(object_id))

    def _spread(self, name: str, data: Sequence[Datum]) -> None:
        """What a call needs comes to its executor's node, and so to those beside it."""
        copies = [datum.key for datum in data if isinstance(datum.key, tuple)]
        for neighbour in self._near.get(self._reports[name].node, ()) if name in self._reports else ():
            for key in copies:
                self._tenants.holds(neighbour, key)

    def _stand_in(self, tenant: str) -> str:
        """Return the executor at which a call waits until there is one of its tenant."""
        names = [name for name in self._names if self._sharing.owner(name, None) == tenant]
        names = names or [name for name in self._names if self._tenants.owner(name) is None] or self._names
        return random.choice(names)

    def _look(self, most: int, now: float) -> None:
        """See which of some calls have been answered."""
        if not self._sent:
            return
        some = [self._sent.popleft() for _ in range(min(most, len(self._sent)))]
        for sent, is_pending in zip(some, are_pending([each.output for each in some]), strict=True):
            if is_pending:
                self._sent.append(sent)
                continue
            self._tenants.ended(sent.chosen, now)
            for object_id in sent.kept:
                self._awaited.pop(object_id, None)

    def _share(self, sharing: Sharing) -> None:
        """Another policy holds. Executors come in again with their reports."""
        self._sharing = sharing
        self._tenants = Tenants(sticky=sharing.policy is not Policy.BALANCE)
        for name in self._names:
            if name not in self._processes and (owner := sharing.owner(name, None)) is not None:
                self._tenants.add(name, owner)
        self._processes.clear()

    def _take(self, name: str, report: Report, now: float, age_s: float) -> None:
        """Take over what one has reported ``age_s`` ago."""
        owner = None if report.retiring else self._sharing.owner(name, report.leased_to)
        known = self._processes.get(name)
        if owner is None:
            self._tenants.remove(name)
        elif known != report.process or (name in self._tenants and self._tenants.owner(name) != owner):
            # Of what has just come up nothing is known, but what was sent there before.
            if known is not None or self._tenants.owner(name) != owner:
                self._tenants.add(name, owner)
                self._located.clear()
            self._processes[name] = report.process
        self._tenants.report(name, max(0.0, report.backlog_s - age_s), now)
        last = self._reports.get(name)
        if last is None or last.at_s != report.at_s:
            for object_id in report.held:
                self._tenants.holds(name, object_id)
            for object_id in report.dropped:
                self._tenants.dropped(name, object_id)

    # The watcher

    def _start_watcher(self) -> None:
        with self._lock:
            if self._watcher is None:
                self._watcher = threading.Thread(target=self._watch, name="executors", daemon=True)
                self._watcher.start()

    def _watch(self) -> None:
        """Learn what executors report, for as long as calls are sent.

        This thread asks nothing of Ray's core worker: that ends the process when it is asked after ``ray.shutdown``.
        """
        used_at = monotonic()
        try:
            while self._used or monotonic() < used_at + IDLE_S:
                if self._used:
                    self._used, used_at = False, monotonic()
                    self.refresh()
                time.sleep(REPORT_S)
        except Exception:  # The cluster may be gone. If it is not, the next call starts another.
            _log.debug("executors are watched no more", exc_info=True)
        self._watcher = None


def _copy_of(object_id: bytes) -> Hashable:
    """Return the key that an executor has while an object is in the memory of its node."""
    return "copy", object_id
