"""Turns a failed call's ``google.rpc.Status`` into an exception of ``kaas_client.errors``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2
from grpc import RpcError
from grpc_status import rpc_status

from kaas.v1.errors_pb2 import StreamError
from kaas_client import errors
from kaas_core.errors import BY_REASON, from_reason

DOMAIN = "kaas"

_BY_CODE: dict[str, type[errors.KaasError]] = {
    kind.code: kind
    for kind in (
        errors.InvalidArgumentError,
        errors.NotFoundError,
        errors.FailedPreconditionError,
        errors.ResourceExhaustedError,
        errors.DeadlineExceededError,
        errors.CancelledError,
        errors.KernelFaultError,
        errors.UnavailableError,
    )
}
"""For a reason that this client does not know yet: the code still tells what kind of failure it is."""

_LOST = re.compile("Cancelling all calls|Stream removed|Socket closed|Connection reset|GOAWAY|ping timeout")
"""What gRPC says where a connection ended, with a call on it. Only the words of our message depend on it."""
_UNSENT = re.compile("failed to connect to all addresses|DNS resolution failed")
"""How what gRPC says begins where there was no connection, so that nothing was sent."""
_NOT_WRITTEN = ("INTERNAL", "Internal error from Core")
"""What gRPC for asyncio says where a message of a stream could not be written, as its connection had just ended."""
_NOT_TLS = "WRONG_VERSION_NUMBER"
"""Of a handshake, where what answered does not speak TLS."""
_HANDSHAKE = re.compile(r".*Tls handshake failed .*?: (?:error:\w+:[\w ]*:\w+:)?([A-Z_]+(?:: [^:]+)?)(?:: OK)?")
"""What gRPC says where there was a connection, but no agreement, and why."""
_CLOSED = re.compile(r"failed to connect to all addresses; last error: \w+: \S+: (?:Socket closed|.*Connection reset by peer.*)")
"""What gRPC says where a server ended the connection at once, as one that expects TLS does."""
_REFUSED = re.compile(
    r"failed to connect to all addresses; last error: \w+: \S+ "
    r"(?:connect failed: addr: \S+ error: |Failed to connect to remote host: )(.*)"
)
"""What gRPC says where there was no connection: the address again, twice for a socket, and the reason."""


def from_rpc_error(error: RpcError, address: str) -> errors.KaasError:
    """Return the exception for ``error``, raised by a call of either kind of client to the server at ``address``."""
    code, details = error.code().name, error.details() or ""
    try:
        status = rpc_status.from_call(error)
    except (ValueError, DecodeError):  # It contradicts the call's code, or is not a status: kaasd did not make it.
        status = None
    converted = _from_details(code, details, status.details) if status is not None else None
    return converted or _from_grpc_itself(code, details, address)


def from_stream_error(error: StreamError) -> errors.KaasError:
    """Return the exception for a failure that was an answer of a stream."""
    code = code_pb2.Code.Name(error.code) if error.code in code_pb2.Code.values() else "UNKNOWN"
    return _from_details(code, error.message, error.details) or errors.InternalError(f"{code}: {error.message}")


def _from_details(code: str, message: str, details: Iterable[AnyMessage]) -> errors.KaasError | None:
    """Return the exception that the details of a status describe; None where kaasd did not write them."""
    info, bad_request, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    try:
        for detail in details:
            for message_type in (info, bad_request, retry):
                detail.Unpack(message_type)
    except DecodeError:
        return None
    if info.domain != DOMAIN:
        return None
    violations = [errors.Violation(v.field, v.description) for v in bad_request.field_violations]
    if info.reason in BY_REASON:
        error = from_reason(info.reason, message, dict(info.metadata), violations)
    else:
        error = _BY_CODE.get(code, errors.InternalError)(message, dict(info.metadata))
    if retry.HasField("retry_delay"):
        # The class has a default; this server says otherwise.
        error.retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()  # type: ignore[misc]
    return error


def _from_grpc_itself(code: str, details: str, address: str) -> errors.KaasError:
    """Return the exception for a failure that gRPC or a proxy reported, not kaasd."""
    if code == "UNAVAILABLE" or (code, details) == _NOT_WRITTEN:
        handshake = _HANDSHAKE.fullmatch(details)
        if handshake is not None:
            why = "it does not speak TLS" if _NOT_TLS in details else f"TLS failed: {handshake[1]}"
            message = f"cannot reach a server at {address}: {why}"
        elif _CLOSED.fullmatch(details) and not address.startswith("unix:"):
            message = (
                f"cannot reach a server at {address}: it closed the connection; where it speaks TLS, tls_ca is needed "
                "(kaasctl --tls-ca), and tls_cert where it asks for that"
            )
        elif code == "INTERNAL" or _LOST.search(details):
            message = f"lost the connection to the server at {address}: {details}"
        else:
            refused = _REFUSED.fullmatch(details)
            message = f"cannot reach a server at {address}: {refused[1] if refused else details}; is kaasd running?"
        kind = errors.ConnectionFailedError if _UNSENT.match(details) else errors.ConnectionLostError
        return kind(message, {"address": address})
    if code == "RESOURCE_EXHAUSTED":
        return errors.MessageTooLargeError(f"{details}; use put and get for large values")
    if code == "DEADLINE_EXCEEDED" and details == "Deadline Exceeded":  # gRPC's words where the client gave up first
        return errors.DeadlineExceededError("no answer came before the deadline of the call")
    if code in ("DEADLINE_EXCEEDED", "CANCELLED"):
        return _BY_CODE[code](details)
    return errors.InternalError(f"{code}: {details}")
