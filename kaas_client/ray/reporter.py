"""The thread of an executor that writes its reports."""

from __future__ import annotations

import logging
import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable

import ray

from kaas_client.ray import table
from kaas_client.ray.arrays import object_id_of
from kaas_client.ray.engine import Engine
from kaas_client.ray.policies import QUICK_S
from kaas_client.ray.reports import CALL_S, REPORT_S, Report
from kaas_client.ray.tenancy import Tenancy
from kaasd.worker.inputs import values_held

MOST_FUNCTIONS = 256
"""Whose times are reported, the newest."""
MOST_OBJECTS = 256
"""That are reported as held or as dropped, the latest."""

_log = logging.getLogger(__name__)


class Reporter:
    """Writes the reports of an executor, in a thread of its own."""

    def __init__(self, name: str, engine: Engine, tenancy: Tenancy, on_retired: Callable[[], object]) -> None:
        """Write the first one. ``name`` is the executor's; ``on_retired`` is called when it is to end, and has no calls."""
        self._name = name.encode()
        self._engine = engine
        self._tenancy = tenancy
        self._on_retired = on_retired
        self._wake = threading.Event()
        self._node = ray.get_runtime_context().get_node_id()
        self._gpus = ",".join(map(str, ray.get_gpu_ids()))
        self._held: dict[bytes, None] = {}
        self._dropped: dict[bytes, None] = {}
        self._last = self._write(None)
        threading.Thread(target=self._go_on, name="reports", daemon=True).start()

    def soon(self) -> None:
        """Write the next one soon: something has changed that others wait for."""
        self._wake.set()

    def _go_on(self) -> None:
        while True:
            self._wake.wait(REPORT_S)
            self._wake.clear()
            try:
                self._last = self._write(self._last)
                if self._last.retiring and not self._last.calls:
                    self._on_retired()
            except Exception:  # The table may be away for a while. There is always a next report.
                _log.warning("the cluster's table did not take a report", exc_info=True)

    def _write(self, last: Report | None) -> Report:
        """Write a report, unless it says the same as the last one; return it."""
        tenancy = self._tenancy
        retiring = tenancy.retiring
        load = self._engine.load(MOST_FUNCTIONS)
        self._look_at_device()
        waiting = Counter(tenancy.waiting)
        uses = self._engine.group_uses()
        waiting.update({group: use.queued for group, use in uses.items() if use.queued})
        report = Report(
            tenancy.process,
            self._node,
            time.time(),
            load.device_s + load.calls * CALL_S,
            load.expected_s,
            list(self._held)[-MOST_OBJECTS:],
            list(self._dropped),
            tenancy.sharing.digest,
            tenancy.leased_to,
            retiring,
            load.calls,
            dict(waiting),
            self._engine.short_ones(MOST_FUNCTIONS, QUICK_S),
            {group: use.device_s for group, use in uses.items() if use.device_s},
            self._gpus,
        )
        if last is None or report != last._replace(at_s=report.at_s):
            table.put(table.Kind.REPORT, self._name, pickle.dumps(tuple(report)))
            return report
        return last

    def _look_at_device(self) -> None:
        """See what has come and gone since the last time."""
        now_held = {bytes.fromhex(object_id_of(name)) for name in values_held(self._engine.executor.memory)}
        for object_id in self._held.keys() - now_held:
            del self._held[object_id]
            self._dropped[object_id] = None
        for object_id in now_held - self._held.keys():
            self._held[object_id] = None
            self._dropped.pop(object_id, None)
        while len(self._dropped) > MOST_OBJECTS:
            del self._dropped[next(iter(self._dropped))]
