"""Requests that have cost several workers: they are refused from then on, until an operator lets them go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cachetools import LRUCache

from kaas_core.errors import QuarantinedError, RequestNotFoundError
from kaas_core.violations import shown

MOST_WORKERS = 3
"""That a request may cost: one call of it, and all its calls together."""
MOST_KNOWN = 1024
"""Requests whose costs are known, the last ones."""
MOST_PROVEN = 16384
"""Requests known to have run well; past that, all are forgotten."""


@dataclass(slots=True)
class Losses:
    """What a request has cost."""

    workers: int = 0
    last_fault: str = ""
    last_time: datetime = field(default_factory=lambda: datetime.now(UTC))


class Quarantine:
    """What requests have cost, by the digest of their content. Used by one event loop."""

    def __init__(self) -> None:
        self.suspected: LRUCache[bytes, Losses] = LRUCache(MOST_KNOWN)
        """What requests have cost, by digest."""
        self.refused: set[bytes] = set()
        """Requests that are not run any more."""
        self._proven: set[bytes] = set()
        """Requests that have run well, and have not cost two workers since."""

    def cost(self, digest: bytes, fault: str) -> None:
        """A request has cost a worker, by a fault or by the end of the process."""
        losses = self.suspected.pop(digest, None) or Losses()
        losses.workers += 1
        if losses.workers > 1:
            self._proven.discard(digest)
        losses.last_fault, losses.last_time = fault, datetime.now(UTC)
        self.suspected[digest] = losses
        if losses.workers >= MOST_WORKERS:
            self.refused.add(digest)
        self.refused.intersection_update(self.suspected)  # what is forgotten is refused no more

    def ran_well(self, digest: bytes) -> None:
        """A request has run to its end: what it had cost was by chance."""
        if digest not in self._proven:
            if len(self._proven) >= MOST_PROVEN:
                self._proven.clear()
            self._proven.add(digest)
        if self.suspected and digest not in self.refused:
            self.suspected.pop(digest, None)

    def is_proven(self, digest: bytes) -> bool:
        """Return whether a request has run well, as far as is known, and has not cost two workers since."""
        return digest in self._proven

    def refusal(self, digest: bytes) -> QuarantinedError:
        """Return the error for one that is refused."""
        losses = self.suspected[digest]
        return QuarantinedError(
            f"the request has cost {losses.workers} workers, the last one at {losses.last_time:%Y-%m-%dT%H:%M:%SZ}:"
            f" {losses.last_fault}; it is not run any more, until an operator releases it",
            {"workers": str(losses.workers), "last_fault": losses.last_fault, "request": digest.hex()},
        )

    def list(self, after: str = "", limit: int | None = None) -> Mapping[str, Losses]:
        """Return what up to ``limit`` refused requests have cost, by id, in order, from behind the id ``after``.

        The id of a request is its digest in hexadecimal.
        """
        digests = sorted(digest for digest in self.refused if digest.hex() > after)[:limit]
        return {digest.hex(): self.suspected[digest] for digest in digests}

    def release(self, request_id: str) -> None:
        """Let a refused request run again, and forget what it has cost. Raises ``RequestNotFoundError``."""
        for digest in self.refused:
            if digest.hex() == request_id:
                self.refused.remove(digest)
                del self.suspected[digest]
                return
        raise RequestNotFoundError(f"no request {shown(request_id)} is refused")
