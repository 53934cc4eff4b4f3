"""What executors say of themselves: their load, and what is on their devices. They write it to the cluster's table now and then.

So nobody has to ask them, and whoever submits knows about as much as they do.
"""

from __future__ import annotations

import logging
import os
import pickle
import threading
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import ray

from kaas_client.ray import table
from kaas_client.ray.engine import Engine
from kaasd.worker.inputs import values_held

REPORT_S = 0.2
"""Between two reports of an executor at least; where nothing has changed there is none."""
CALL_S = 3e-4
"""What a call takes of an executor's process, whatever it takes of the device."""
MOST_FUNCTIONS = 256
"""Whose times are reported, the newest."""
MOST_OBJECTS = 256
"""That are reported as held or as dropped, the latest."""

_log = logging.getLogger(__name__)


class Report(NamedTuple):
    """An executor's word."""

    process: str
    """Which of its processes says so: another one has nothing of what the one before held."""
    node: str
    """Where it runs, by its id."""
    at_s: float
    """When, since the epoch."""
    backlog_s: float
    """What those calls are likely to take that have come there."""
    expected_s: Mapping[Hashable, float]
    """How long calls of a task are likely to take, by its digest."""
    held: Sequence[bytes]
    """Ids of objects that are on the device."""
    dropped: Sequence[bytes]
    """Ids of objects that are there no more."""


class Reporter:
    """Writes the reports of an executor, in a thread of its own."""

    def __init__(self, name: str, engine: Engine) -> None:
        """Write the first one. ``name`` is the executor's."""
        self._name = name.encode()
        self._engine = engine
        self._process = os.urandom(8).hex()
        self._node = ray.get_runtime_context().get_node_id()
        self._held: dict[bytes, None] = {}
        self._dropped: dict[bytes, None] = {}
        self._last = self._write(None)
        threading.Thread(target=self._go_on, name="reports", daemon=True).start()

    def _go_on(self) -> None:
        while True:
            time.sleep(REPORT_S)
            try:
                self._last = self._write(self._last)
            except Exception:  # The table may be away for a while. There is always a next report.
                _log.warning("the cluster's table did not take a report", exc_info=True)

    def _write(self, last: Report | None) -> Report:
        """Write a report, unless it says the same as the last one; return it."""
        load = self._engine.load(MOST_FUNCTIONS)
        self._look_at_device()
        report = Report(
            self._process,
            self._node,
            time.time(),
            load.device_s + load.calls * CALL_S,
            load.expected_s,
            list(self._held)[-MOST_OBJECTS:],
            list(self._dropped),
        )
        if last is None or report != last._replace(at_s=report.at_s):
            table.put(table.Kind.REPORT, self._name, pickle.dumps(tuple(report)))
            return report
        return last

    def _look_at_device(self) -> None:
        """See what has come and gone since the last time."""
        now_held = {bytes.fromhex(object_id) for object_id in values_held(self._engine.executor.memory)}
        for object_id in self._held.keys() - now_held:
            del self._held[object_id]
            self._dropped[object_id] = None
        for object_id in now_held - self._held.keys():
            self._held[object_id] = None
            self._dropped.pop(object_id, None)
        while len(self._dropped) > MOST_OBJECTS:
            del self._dropped[next(iter(self._dropped))]


def read(names: Sequence[str]) -> dict[str, Report]:
    """Return the last reports of those executors that have ever come up, by name."""
    rows = table.get_all(table.Kind.REPORT, [name.encode() for name in names])
    return {name.decode(): Report(*pickle.loads(row)) for name, row in rows.items()}


def forget(name: str) -> None:
    """Delete the report of an executor that is gone for good."""
    table.delete(table.Kind.REPORT, name.encode())
