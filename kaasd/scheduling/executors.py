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
    sent_s: float
    """What had been sent to the executor then, with this."""


class _Executor:
    __slots__ = ("free_at", "name", "others_until", "outstanding", "planned_s", "sent_s", "slots")

    def __init__(self, name: str, slots: int) -> None:
        self.name = name
        self.slots = slots
        self.outstanding = 0
        self.planned_s = 0.0
        """Of these, together."""
        self.sent_s = 0.0
        """Of all that were ever sent."""
        self.free_at = 0.0
        """When its queue is likely to be empty."""
        self.others_until = 0.0
        """When it is likely to be done with what others have sent there."""

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
        """An executor says how long its queue is, whoever filled it. Ignored where it is not known.

        Requests that were sent from here count in any case: they may not have come there yet.
        """
        if (executor := self._executors.get(name)) is not None:
            own_s = executor.planned_s / executor.slots
            executor.others_until = now + max(0.0, backlog_s - own_s)
            executor.free_at = executor.others_until + own_s
            self._by_load.set(executor, executor.free_at)

    def holds(self, name: str, key: Hashable) -> None:
        """Data are at an executor. What requests bring there is noted without this. Ignored where it is not known."""
        if name in self._executors:
            self._residents.add(name, key)

    def dropped(self, name: str, key: Hashable) -> None:
        """Data are no longer at an executor. Idempotent."""
        self._residents.drop(name, key)

    def choose(
        self,
        data: Sequence[Datum],
        expected_s: float,
        now: float,
        after: Sequence[Chosen] = (),
        only: str | None = None,
    ) -> Chosen:
        """Pick the executor that can begin a request's kernels first, and count the request there until ``ended``.

        ``after`` are those whose results it awaits: until then it waits wherever it is. ``only`` names the executor that it is
        for, if it is for one. Raises ``LookupError`` where there is none.
        """
        best = self._least_loaded(now) if only is None else self._executors[only]
        residents = self._residents
        load_s = residents.missing_s(best.name, data)
        if load_s and only is None and self._sticky:
            unready_s = max((self.ends_at(each, now) for each in after), default=now) - now
            cost_s = load_s + max(best.wait_s(now), unready_s)
            for datum in residents.rarest_first(data):
                for name in residents.holders(datum.key):
                    executor = self._executors[name]
                    missing_s = residents.missing_s(name, data)
                    began_s = missing_s + max(executor.wait_s(now), unready_s)
                    if (began_s, missing_s) < (cost_s, load_s):
                        best, load_s, cost_s = executor, missing_s, began_s
                if cost_s <= datum.load_s:
                    break  # whoever else lacks this, and that alone would cost as much
        placement = residents.bring(best.name, data)
        planned_s = expected_s + load_s
        best.outstanding += 1
        best.planned_s += planned_s
        best.sent_s += planned_s
        best.free_at = max(best.free_at, now) + planned_s / best.slots
        self._by_load.set(best, best.free_at)
        return Chosen(best.name, placement, planned_s, best.sent_s)

    def ends_at(self, chosen: Chosen, now: float) -> float:
        """Return when a request that has not ended is likely to be answered."""
        executor = self._executors.get(chosen.executor)
        if executor is None:
            return now
        executor.wait_s(now)
        return executor.free_at - max(0.0, executor.sent_s - chosen.sent_s) / executor.slots

    def ended(self, chosen: Chosen, now: float) -> None:
        """A request that was sent to an executor is answered, well or not."""
        executor = self._executors.get(chosen.executor)
        if executor is not None and executor.outstanding:
            executor.outstanding -= 1
            executor.planned_s = max(0.0, executor.planned_s - chosen.planned_s) if executor.outstanding else 0.0
            left_s = executor.planned_s / executor.slots
            executor.free_at = min(executor.free_at, max(now, executor.others_until) + left_s)
            self._by_load.set(executor, executor.free_at)

    def _least_loaded(self, now: float) -> _Executor:
        while (executor := self._by_load.first()) is not None:
            executor.wait_s(now)
            if executor.free_at == self._by_load.key(executor):
                return executor
            self._by_load.set(executor, executor.free_at)
        raise LookupError("there is no executor")
