"""Exceptions to ``google.rpc.Status``, in the one place that does it."""

from __future__ import annotations

import logging
import secrets

from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from kaas.v1 import errors_pb2
from kaas_core.errors import InternalError, InvalidRequestError, KaasError

DOMAIN = "kaas"
MAX_MESSAGE_BYTES = 1024
MAX_DETAILS_BYTES = 2048
"""A client drops a call whose trailing metadata pass 8 KiB, and this travels in base64, beside the message: once percent-encoded
(three bytes a byte at worst) and once within the status."""

_log = logging.getLogger(__name__)


def as_kaas_error(error: Exception) -> KaasError:
    """Return ``error`` if it is for callers to see; else log it, and return an error that tells only where in the log it is."""
    if isinstance(error, KaasError):
        return error
    incident = secrets.token_hex(4)
    _log.error("incident %s", incident, exc_info=error)
    return InternalError(f"a defect of kaasd; its log has the details as incident {incident}", {"incident": incident})


def to_status(error: KaasError) -> status_pb2.Status:
    """Return the status of ``error``: its code and message, ``ErrorInfo``, and ``BadRequest`` or ``RetryInfo`` if they apply."""
    room = MAX_DETAILS_BYTES
    metadata = {}
    for key, value in error.metadata.items():
        metadata[key] = _clipped(value, max(0, room))
        room -= len(key) + len(metadata[key].encode())
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)]
    if isinstance(error, InvalidRequestError):
        details.append(_bad_request(error, room))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=code_pb2.Code.Value(error.code), message=_clipped(error.message, MAX_MESSAGE_BYTES))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def to_stream_error(error: KaasError) -> errors_pb2.StreamError:
    """Return what ``to_status`` does, for an error that is an answer of a stream."""
    status = to_status(error)
    return errors_pb2.StreamError(code=status.code, message=status.message, details=status.details)


def _bad_request(error: InvalidRequestError, room: int) -> error_details_pb2.BadRequest:
    """Return as many violations as there is room for, at least one."""
    bad_request = error_details_pb2.BadRequest()
    for violation in error.violations:
        description = _clipped(violation.description, MAX_MESSAGE_BYTES)
        room -= len(violation.field.encode()) + len(description.encode())
        if room < 0 and bad_request.field_violations:
            break
        bad_request.field_violations.add(field=_clipped(violation.field, MAX_MESSAGE_BYTES), description=description)
    return bad_request


def _clipped(text: str, limit_bytes: int) -> str:
    """Return ``text`` cut to ``limit_bytes`` of UTF-8, and valid UTF-8 whatever it was."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= limit_bytes:
        return encoded.decode()
    return encoded[: max(0, limit_bytes - 3)].decode(errors="ignore") + "…"
