"""The pool actor. It has executors follow the cluster's policy, and hands them from group to group under ``exclusive``.

No request passes it. All that it knows it reads in the cluster's table, where executors and users write. So it may end at any
time, and the next one goes on where it was.
"""

from __future__ import annotations

import json
import logging
import threading
from time import monotonic
from typing import Any, NamedTuple

import ray

from kaas_client.ray import cluster, groups, policies, reports, spares, table
from kaas_client.ray.executor import ExecutorActor
from kaas_client.ray.landlord import Landlord, Lease
from kaas_client.ray.policies import Sharing
from kaas_client.ray.reports import REPORT_S, Report
from kaas_client.ray.table import NAMESPACE
from kaasd.scheduling import Group

POOL = "pool"
"""The actor's name."""
REST_S = 2.0
"""Between two looks, where executors do not change hands."""

_log = logging.getLogger(__name__)


class ExecutorState(NamedTuple):
    """What the pool knows of an executor."""

    name: str
    node: str
    """By its id."""
    owner: str | None
    """The group whose it is; empty, where it is everybody's; None: nobody's at the moment."""
    calls: int
    """At its device."""
    waiting: int
    """Calls that have come there, and wait."""


class PoolState(NamedTuple):
    """What the pool knows."""

    sharing: Sharing
    groups: list[Group]
    """That were made."""
    executors: list[ExecutorState]
    """That have come up."""


class PoolActor:
    """Looks after the executors, in a thread of its own."""

    def __init__(self) -> None:
        self._sharing = Sharing()
        self._landlord: Landlord | None = None
        self._written: dict[str, float] = {}
        self._spares: set[str] | None = None
        """Names of those that there are to be; None: it is not known which there are."""
        threading.Thread(target=self._go_on, name="pool", daemon=True).start()

    def state(self) -> PoolState:
        """Return what there is."""
        sharing, found = policies.read(), reports.read(reports.names())
        executors = [
            ExecutorState(name, report.node, sharing.owner(name, report.leased_to), report.calls, sum(report.waiting.values()))
            for name, report in sorted(found.items())
        ]
        return PoolState(sharing, groups.read_all(), executors)

    def _go_on(self) -> None:
        rest = threading.Event()
        while True:
            try:
                self._look(monotonic())
            except Exception:  # The table may be away for a while.
                _log.warning("the pool looks again later", exc_info=True)
            rest.wait(REST_S if self._landlord is None else REPORT_S)

    def _look(self, now: float) -> None:
        """See how things are, and tell executors what is to be done."""
        sharing = policies.read()
        if sharing != self._sharing:
            self._sharing, self._landlord = sharing, None
        found = reports.read(reports.names())
        digest = sharing.digest
        for name, report in found.items():
            if report.policy != digest:
                self._tell(name, "reload_policy")
        self._keep_spares(found if spares.are_wanted() else {})
        if sharing.is_exclusive:
            self._lease({name: report for name, report in found.items() if report.policy == digest}, now)

    def _keep_spares(self, found: dict[str, Report]) -> None:
        """Have a spare beside each executor that has come up, and no others."""
        wanted = {spares.name_of(name, report): name for name, report in found.items()}
        if self._spares == wanted.keys():
            return
        there = spares.names() if self._spares is None else self._spares
        for name in there - wanted.keys():
            spares.stop(name)
        for name in wanted.keys() - there:
            executor = wanted[name]
            spares.start(cluster.actor_class(ExecutorActor), executor, cluster.device_of(executor), found[executor])
        self._spares = set(wanted)

    def _lease(self, found: dict[str, Report], now: float) -> None:
        if self._landlord is None:
            self._landlord = Landlord(self._sharing.restart_s, json.loads(table.get(table.Kind.TURNS, b"") or "{}"))
        for told in self._landlord.step(found, groups.read_all(), now):
            if isinstance(told, Lease):
                self._tell(told.executor, "lease", found[told.executor].process, told.group)
            else:
                self._tell(told.executor, "retire", found[told.executor].process)
        if self._written != (virtual_times := self._landlord.virtual_times()):
            table.put(table.Kind.TURNS, b"", json.dumps(virtual_times).encode())
            self._written = virtual_times

    def _tell(self, name: str, method: str, *args: object) -> None:
        """Have an executor do something, without waiting for it."""
        executor = reports.actor_of(name)
        if executor is not None:
            getattr(executor, method).options(max_task_retries=0).remote(*args)


def start() -> None:
    """Have a pool actor, which is started again whenever it ends."""
    remote: Any = ray.remote  # its types lack some options
    actors = remote(max_restarts=-1, max_task_retries=-1, num_cpus=0)(PoolActor)
    actors.options(name=POOL, namespace=NAMESPACE, get_if_exists=True, lifetime="detached").remote()


def find() -> Any:
    """Return the pool actor; None where there is none."""
    return table.actor(POOL)


def stop() -> None:
    """End the pool actor."""
    if (actor := find()) is not None:
        ray.kill(actor)
