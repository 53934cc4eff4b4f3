"""Executors that have a queue each: whoever submits picks one, from what it knows of their load and of what lies where."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from kaasd.scheduling.placement import Placement, Residents
from kaasd.scheduling.ranking import Ranking
from kaasd.scheduling.request import Datum


class Chosen(NamedTuple):
    """Where a request is to go."""

    executor: str
    placement: Placement
    planned_s: float
    """For how long it is likely to occupy one of the executor's slots."""


class _Executor:
    __slots__ = ("free_at", "name", "outstanding", "slots")

    def __init__(self, name: str, slots: int) -> None:
        self.name = name
        self.slots = slots
        self.outstanding = 0
        self.free_at = 0.0
        """When its queue is likely to be empty."""

    def wait_s(self, now: float) -> float:
        """Return how long a request that comes now is likely to wait there; what is late may take as long again."""
        if self.free_at < now and self.outstanding >= self.slots:
            self.free_at = 2 * now - self.free_at
        return max(0.0, self.free_at - now)


class Executors:
    """The executors that one group may use. A guess, which ``report``, ``holds`` and ``dropped`` put right."""

    def __init__(self, *, sticky: bool = True) -> None:
        """``sticky``: requests go where their data are, unless waiting there takes longer than bringing them elsewhere."""
        self._sticky = sticky
        self._executors: dict[str, _Executor] = {}
        self._residents: Residents[str] = Residents()
        self._by_load: Ranking[_Executor] = Ranking()

    def __contains__(self, name: str) -> bool:
        return name in self._executors

    def add(self, name: str, slots: int = 1) -> None:
        """An executor is there, or there again: idle and empty. It runs ``slots`` requests at once."""
        self.remove(name)
        executor = self._executors[name] = _Executor(name, slots)
        self._by_load.set(executor, executor.free_at)

    def remove(self, name: str) -> None:
        """An executor is gone. Idempotent."""
        if (executor := self._executors.pop(name, None)) is not None:
            self._by_load.discard(executor)
            self._residents.forget(name)

    def report(self, name: str, backlog_s: float, now: float) -> None:
        """An executor says how long its queue is, whoever filled it. Ignored where it is not known."""
        if (executor := self._executors.get(name)) is not None:
            executor.free_at = now + backlog_s
            self._by_load.set(executor, executor.free_at)

    def holds(self, name: str, key: Hashable) -> None:
        """Data are at an executor. What requests bring there is noted without this. Ignored where it is not known."""
        if name in self._executors:
            self._residents.add(name, key)

    def dropped(self, name: str, key: Hashable) -> None:
        """Data are no longer at an executor. Idempotent."""
        self._residents.drop(name, key)

    def choose(self, data: Sequence[Datum], expected_s: float, now: float) -> Chosen:
        """Pick the executor that can begin a request's kernels first, and count the request there until ``ended``.

        Raises ``LookupError`` where there is none.
        """
        best = self._least_loaded(now)
        residents = self._residents
        load_s = residents.missing_s(best.name, data)
        cost_s = load_s + best.wait_s(now)
        if self._sticky and cost_s:
            for datum in residents.rarest_first(data):
                for name in residents.holders(datum.key):
                    executor = self._executors[name]
                    missing_s = residents.missing_s(name, data)
                    began_s = missing_s + executor.wait_s(now)
                    if (began_s, missing_s) < (cost_s, load_s):
                        best, load_s, cost_s = executor, missing_s, began_s
                if cost_s <= datum.load_s:
                    break  # whoever else lacks this, and that alone would cost as much
        placement = residents.bring(best.name, data)
        planned_s = expected_s + load_s
        best.outstanding += 1
        best.free_at = max(best.free_at, now) + planned_s / best.slots
        self._by_load.set(best, best.free_at)
        return Chosen(best.name, placement, planned_s)

    def ended(self, chosen: Chosen, occupied_s: float) -> None:
        """A request that was sent to an executor is answered; it occupied a slot for ``occupied_s``, 0 if it never began."""
        executor = self._executors.get(chosen.executor)
        if executor is not None and executor.outstanding:
            executor.outstanding -= 1
            executor.free_at += (occupied_s - chosen.planned_s) / executor.slots
            self._by_load.set(executor, executor.free_at)

    def _least_loaded(self, now: float) -> _Executor:
        while (executor := self._by_load.first()) is not None:
            executor.wait_s(now)
            if executor.free_at == self._by_load.key(executor):
                return executor
            self._by_load.set(executor, executor.free_at)
        raise LookupError("there is no executor")
