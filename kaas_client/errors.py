"""What a call may raise: kaasd's own tree of exceptions, and the one failure that only a client can see."""

from __future__ import annotations

from kaas_core.errors import (
    CancelledError,
    DataDamagedError,
    DeadlineExceededError,
    DrainingError,
    FailedPreconditionError,
    FunctionNotFoundError,
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
    QueueFullError,
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
    "InvalidLibraryError",
    "NotFoundError",
    "KeyNotFoundError",
    "LibraryNotFoundError",
    "KernelNotFoundError",
    "FunctionNotFoundError",
    "FailedPreconditionError",
    "ValueTooShortError",
    "UploadIncompleteError",
    "NotEnabledError",
    "StoreForeignError",
    "StoreGoneError",
    "DataDamagedError",
    "ResourceExhaustedError",
    "OutOfDeviceMemoryError",
    "StoreFullError",
    "QueueFullError",
    "MessageTooLargeError",
    "DeadlineExceededError",
    "CancelledError",
    "KernelFaultError",
    "UnavailableError",
    "DrainingError",
    "WorkerRestartingError",
    "WorkerBusyError",
    "ConnectionFailedError",
    "Violation",
]


class ConnectionFailedError(UnavailableError):
    """No server answered at the address, or the connection broke before the answer came."""

    reason = "CONNECTION_FAILED"
