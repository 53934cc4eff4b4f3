"""Requests that have cost several workers: they are refused from then on, until an operator lets them go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cachetools import LRUCache

from kaas_core.errors import QuarantinedError

MOST_WORKERS = 3
"""That a request may cost."""
MOST_KNOWN = 1024
"""Requests whose costs are known, the last ones."""


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

    def cost(self, digest: bytes, fault: str) -> None:
        """A request has cost a worker, by a fault or by the end of the process."""
        losses = self.suspected.pop(digest, None) or Losses()
        losses.workers += 1
        losses.last_fault, losses.last_time = fault, datetime.now(UTC)
        self.suspected[digest] = losses
        if losses.workers >= MOST_WORKERS:
            self.refused.add(digest)
        self.refused.intersection_update(self.suspected)  # what is forgotten is refused no more

    def acquit(self, digest: bytes) -> None:
        """A request has run well: what it had cost was by chance."""
        if digest not in self.refused:
            self.suspected.pop(digest, None)

    def refusal(self, digest: bytes) -> QuarantinedError:
        """Return the error for one that is refused."""
        losses = self.suspected[digest]
        return QuarantinedError(
            f"the request has cost {losses.workers} workers, the last one at {losses.last_time:%Y-%m-%dT%H:%M:%SZ}:"
            f" {losses.last_fault}; it is not run any more",
            {"workers": str(losses.workers), "last_fault": losses.last_fault, "request": digest.hex()},
        )

    def list(self) -> Mapping[str, Losses]:
        """Return what is refused, by digest in hexadecimal, in order."""
        return {digest.hex(): self.suspected[digest] for digest in sorted(self.refused)}

    def release(self, request: str) -> bool:
        """Let a request run again, and forget what it has cost; return whether it was refused."""
        found = [digest for digest in self.refused if digest.hex() == request]
        for digest in found:
            self.refused.discard(digest)
            del self.suspected[digest]
        return bool(found)
