"""Errors on the channel: a ``KaasError`` as a ``Failed`` message and back."""

from __future__ import annotations

from kaas.worker.v1 import worker_pb2
from kaasd.errors import InvalidRequestError, KaasError, Violation, from_reason


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
