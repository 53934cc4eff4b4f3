"""What a call may raise: kaasd's own tree of exceptions, and the one failure that only a client can see."""

from __future__ import annotations

from kaas_core.errors import (
    CancelledError,
    DataDamagedError,
    DeadlineExceededError,
    DrainingError,
    FailedPreconditionError,
    FunctionNotFoundError,
    GroupLimitError,
    GroupNotFoundError,
    InternalError,
    InvalidArgumentError,
    InvalidLibraryError,
    InvalidRequestError,
    KaasError,
    KernelFaultError,
    KernelNotFoundError,
    KeyNotFoundError,
    LibraryNotFoundError,
    MessageTooLargeError,
    NotEnabledError,
    NotFoundError,
    OutOfDeviceMemoryError,
    QuarantinedError,
    QueueFullError,
    RequestIdReusedError,
    RequestNotFoundError,
    ResourceExhaustedError,
    StoreForeignError,
    StoreFullError,
    StoreGoneError,
    UnavailableError,
    UploadIncompleteError,
    ValueTooShortError,
    Violation,
    WorkerBusyError,
    WorkerRestartingError,
)

__all__ = [
    "KaasError",
    "InternalError",
    "InvalidArgumentError",
    "InvalidRequestError",
    "RequestIdReusedError",
    "InvalidLibraryError",
    "NotFoundError",
    "KeyNotFoundError",
    "LibraryNotFoundError",
    "KernelNotFoundError",
    "FunctionNotFoundError",
    "GroupNotFoundError",
    "RequestNotFoundError",
    "FailedPreconditionError",
    "ValueTooShortError",
    "UploadIncompleteError",
    "NotEnabledError",
    "QuarantinedError",
    "StoreForeignError",
    "StoreGoneError",
    "DataDamagedError",
    "ResourceExhaustedError",
    "OutOfDeviceMemoryError",
    "StoreFullError",
    "QueueFullError",
    "GroupLimitError",
    "MessageTooLargeError",
    "DeadlineExceededError",
    "CancelledError",
    "KernelFaultError",
    "UnavailableError",
    "DrainingError",
    "WorkerRestartingError",
    "WorkerBusyError",
    "ConnectionFailedError",
    "ConnectionLostError",
    "OutputsDroppedError",
    "Violation",
]


class ConnectionFailedError(UnavailableError):
    """No server answered at the address, and nothing was sent; or the connection broke: ``ConnectionLostError``."""

    reason = "CONNECTION_FAILED"
    retry_after_s = None


class ConnectionLostError(ConnectionFailedError):
    """The connection broke before the answer came. The server may have done what it was asked for."""


class OutputsDroppedError(KaasError):
    """The request ran once, before the connection or the server was lost, and its outputs are not to be had any more.

    A reply of more than 64 KiB is kept without them; they are then read from their keys. This one has no key, or something else
    was written there since. Metadata: ``buffer``.
    """

    code = "DATA_LOSS"
    reason = "OUTPUTS_DROPPED"
