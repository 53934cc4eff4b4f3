"""A request as it travels between processes."""

from __future__ import annotations

from hashlib import sha256
from typing import NamedTuple


class SerializedRequest(NamedTuple):
    """A ``kaas.v1.Request``, and what it is known by. One of 800 kernels has 110 KB: worth sending once."""

    digest: bytes
    """SHA-256 of the content."""
    content: bytes
    """The serialised message, the same bytes for the same request; empty where the receiver is taken to know it."""

    @classmethod
    def of(cls, content: bytes) -> SerializedRequest:
        """Return ``content`` with its digest."""
        return cls(sha256(content).digest(), content)
