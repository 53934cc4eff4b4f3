"""How groups share the executors of a cluster: the policy, which all who use them know from the cluster's table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from zlib import crc32

from kaas_client.ray import table
from kaas_core.errors import InvalidArgumentError
from kaas_core.violations import shown
from kaasd.scheduling import Group, Policy
from kaasd.scheduling.leases import RESTART_S

LANES = tuple(f"lane{number}" for number in range(8))
"""Under ``exclusive`` calls come to an executor in lanes, by group: so those that must wait do not hold up the owner's."""
QUICK = "quick"
"""Calls that are known to take a device less than ``QUICK_S``, of those who have no group, come in this lane. Its few threads are
more than can be used: bringing and answering a call takes a process 0.3 ms, one call at a time. With many under way they only
take turns at Python's interpreter, which made each call twice as dear."""
QUICK_S = 1e-3
ALL = ""
"""Whose executors are that belong to no group: everybody's who has none of its own."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """A policy, and what goes with it. Raises ``InvalidArgumentError`` for what cannot be."""

    policy: Policy = Policy.AFFINITY
    owners: Mapping[str, str] = field(default_factory=dict)
    """Groups by executor, for ``static``."""
    restart_s: float = RESTART_S
    """What a restart takes, for ``exclusive``: a group keeps an executor for some ten times that."""

    def __post_init__(self) -> None:
        if self.owners and self.policy is not Policy.STATIC:
            raise InvalidArgumentError(f"only under static executors have owners, not under {self.policy.value}")
        for group in self.owners.values():
            Group(group)  # raises where it cannot be one's name
        if not 0 < self.restart_s < math.inf:
            raise InvalidArgumentError(f"restart_s must be a number of seconds greater than 0, not {self.restart_s!r}")

    @classmethod
    def of(cls, name: str, owners: Mapping[str, str] | None, restart_s: float) -> Sharing:
        """Return the policy of a name. Raises ``InvalidArgumentError``."""
        try:
            policy = Policy(name)
        except ValueError:
            names = ", ".join(each.value for each in Policy)
            raise InvalidArgumentError(f"there is no policy {shown(name)}: there are {names}") from None
        return cls(policy, dict(owners or {}), restart_s)

    @property
    def is_exclusive(self) -> bool:
        """Whether executors change hands."""
        return self.policy is Policy.EXCLUSIVE

    @property
    def digest(self) -> bytes:
        """By which it is told from others."""
        return sha256(self._content()).digest()[:8]

    def tenant(self, group: str) -> str:
        """Return as whose the executors count that a group may use."""
        return group if self.is_exclusive or group in self.owners.values() else ALL

    def owner(self, executor: str, leased_to: str | None) -> str | None:
        """Return whose an executor is, which says to whom it is leased; None: nobody's."""
        return leased_to if self.is_exclusive else self.owners.get(executor, ALL)

    def lane(self, group: str) -> str | None:
        """Return the concurrency group in which a group's calls are sent; None for that of all calls."""
        return LANES[crc32(group.encode()) % len(LANES)] if self.is_exclusive else None

    def write(self) -> None:
        """Make it the cluster's."""
        table.put(table.Kind.POLICY, b"", self._content())

    def _content(self) -> bytes:
        return json.dumps({**asdict(self), "policy": self.policy.value}, sort_keys=True).encode()


def read() -> Sharing:
    """Return the cluster's policy: ``affinity``, unless another was set."""
    content = table.get(table.Kind.POLICY, b"")
    if content is None:
        return Sharing()
    found = json.loads(content)
    return Sharing(Policy(found.pop("policy")), **found)
