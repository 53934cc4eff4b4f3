"""Whose calls an executor runs. Calls of other groups wait here until it is theirs, or are passed on to an executor that is."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import Any

from kaas_client.ray import policies, reports
from kaas_client.ray.policies import Sharing

ASK_S = 0.5
"""Between two looks at what other executors say, while calls wait that should run there."""


class Tenancy:
    """Of one executor's process. It serves one group alone where executors change hands. For any thread."""

    def __init__(self, name: str | None) -> None:
        """``name`` is the executor's; one without runs all calls."""
        self._name = name
        self.process = os.urandom(8).hex()
        """By which this process is told from those before and after it."""
        self.sharing = Sharing() if name is None else policies.read()
        self.leased_to: str | None = None
        """To which group, where executors change hands."""
        self.retiring = False
        """Whether it takes no calls any more, and ends when it has none."""
        self._changed = threading.Condition()
        self._waiting: Counter[str] = Counter()
        self._asked_at = 0.0
        self._others: dict[str, str | None] = {}

    def admits(self, group: str) -> bool:
        """Return whether a group's calls run here now."""
        return not self.retiring and self._owner == self.sharing.tenant(group)

    @property
    def waiting(self) -> Mapping[str, int]:
        """Calls that wait here and may not run here, by group."""
        with self._changed:
            return {group: count for group, count in self._waiting.items() if count}

    def reload(self) -> None:
        """Take over the cluster's policy. What served all is not handed over to one group: it starts anew."""
        sharing = policies.read()
        with self._changed:
            if sharing != self.sharing:
                self.retiring |= sharing.is_exclusive
                self.sharing, self.leased_to = sharing, None
                self._changed.notify_all()

    def lease(self, process: str, group: str) -> None:
        """Have this process serve a group; ignored where another is meant, or it may serve another group. Idempotent."""
        with self._changed:
            if self.sharing.is_exclusive and process == self.process and not self.retiring and self.leased_to in (None, group):
                self.leased_to = group
                self._changed.notify_all()

    def retire(self, process: str) -> None:
        """Take no calls any more; ignored where another process is meant, or executors do not change hands. Idempotent."""
        with self._changed:
            self.retiring |= self.sharing.is_exclusive and process == self.process

    @contextmanager
    def wait(self, group: str) -> Iterator[None]:
        """Count a call as one that waits."""
        with self._changed:
            self._waiting[group] += 1
        try:
            yield
        finally:
            with self._changed:
                self._waiting[group] -= 1

    def wait_for_change(self, timeout_s: float) -> None:
        """Return when something may have changed."""
        with self._changed:
            self._changed.wait(timeout_s)

    def other_for(self, group: str) -> Any:
        """Return another executor on which a group's calls run; None where there is none."""
        with self._changed:
            if monotonic() >= self._asked_at + ASK_S:
                found = reports.read(reports.names())
                sharing = self.sharing
                self._others = {
                    name: sharing.owner(name, report.leased_to)
                    for name, report in found.items()
                    if not report.retiring and name != self._name
                }
                self._asked_at = monotonic()
            tenant = self.sharing.tenant(group)
            names = [name for name, owner in self._others.items() if owner == tenant]
        return reports.actor_of(names[hash(threading.get_ident()) % len(names)]) if names else None

    @property
    def _owner(self) -> str | None:
        return self.sharing.owner(self._name or "", self.leased_to)
