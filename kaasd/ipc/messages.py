"""What travels on the channel: requests known by their digest, and errors as messages and back."""

from __future__ import annotations

from hashlib import sha256
from typing import NamedTuple

from kaas.worker.v1 import worker_pb2
from kaas_core.errors import InvalidRequestError, KaasError, Violation, from_reason

MAX_KNOWN_REQUESTS = 1024
"""That a worker keeps the programs of, a few kilobytes each, and that the front takes it to know."""

WAITING_AT_WORKER = 1
"""Calls at a worker beyond those that it runs: one whose inputs it brings meanwhile, and that goes on without a round trip."""


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


def failed_from_error(error: KaasError, device_lost: bool = False) -> worker_pb2.Failed:
    """Return the message for an error."""
    violations = error.violations if isinstance(error, InvalidRequestError) else ()
    return worker_pb2.Failed(
        reason=error.reason,
        message=error.message,
        metadata=dict(error.metadata),
        violations=[worker_pb2.Violation(field=v.field, description=v.description) for v in violations],
        device_lost=device_lost,
    )


def error_from_failed(failed: worker_pb2.Failed) -> KaasError:
    """Return the error of a message."""
    violations = [Violation(v.field, v.description) for v in failed.violations]
    return from_reason(failed.reason, failed.message, dict(failed.metadata), violations)
