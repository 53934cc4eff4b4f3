"""The executors that calls may be sent to, by whose they are: a group's alone, or everybody's."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from kaasd.scheduling import Chosen, Datum, Executors


class Tenants:
    """What is known of their load and data, as ``Executors`` knows it, for each tenant apart."""

    def __init__(self, *, sticky: bool) -> None:
        """``sticky`` as for ``Executors``."""
        self._sticky = sticky
        self._of_tenant: dict[str, Executors] = {}
        self._at: dict[str, Executors] = {}
        self._owners: dict[str, str] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._at

    def __len__(self) -> int:
        return len(self._at)

    def names(self) -> set[str]:
        """Return the executors that calls may be sent to."""
        return set(self._at)

    def owner(self, name: str) -> str | None:
        """Return whose an executor is; None where it is nobody's."""
        return self._owners.get(name)

    def add(self, name: str, owner: str) -> None:
        """An executor is there, or there again, and someone's: idle and empty."""
        self.remove(name)
        executors = self._of_tenant.get(owner)
        if executors is None:
            executors = self._of_tenant[owner] = Executors(sticky=self._sticky)
        executors.add(name)
        self._at[name], self._owners[name] = executors, owner

    def remove(self, name: str) -> None:
        """Nothing more is to be sent to an executor. Idempotent."""
        if (executors := self._at.pop(name, None)) is not None:
            executors.remove(name)
            del self._owners[name]

    def choose(self, tenant: str, data: Sequence[Datum], expected_s: float, now: float, after: Sequence[Chosen]) -> Chosen:
        """Pick one of a tenant's executors. Raises ``LookupError`` where it has none."""
        return self._of_tenant[tenant].choose(data, expected_s, now, after)

    def count(self, name: str, data: Sequence[Datum], expected_s: float, now: float) -> Chosen:
        """Count a call that goes to an executor in any case. Raises ``LookupError`` where that is not there."""
        return self._at[name].choose(data, expected_s, now, only=name)

    def ended(self, chosen: Chosen, now: float) -> None:
        """A call is answered."""
        if (executors := self._at.get(chosen.executor)) is not None:
            executors.ended(chosen, now)

    def report(self, name: str, backlog_s: float, now: float) -> None:
        """An executor says how long its queue is."""
        if (executors := self._at.get(name)) is not None:
            executors.report(name, backlog_s, now)

    def holds(self, name: str, key: Hashable) -> None:
        """Data are at an executor."""
        if (executors := self._at.get(name)) is not None:
            executors.holds(name, key)

    def dropped(self, name: str, key: Hashable) -> None:
        """Data are no longer at an executor."""
        if (executors := self._at.get(name)) is not None:
            executors.dropped(name, key)
