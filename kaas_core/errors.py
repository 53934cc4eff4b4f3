"""All errors in one place: the tree of exceptions, and the table of reasons and status codes that daemon and client share.

Every exception has a ``reason`` (a name of ``kaas.v1.Reason`` without its prefix), which fixes its status code. Any code may
raise them; ``kaasd.api.errors`` turns them into ``google.rpc.Status``, and ``kaas_client`` turns that back into these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Violation:
    """One bad field of a request."""

    field: str
    """Its path, such as ``kernels[1].arguments[0]``."""
    description: str
    """What is wrong with it and what would be right."""

    def __str__(self) -> str:
        return f"{self.field}: {self.description}" if self.field else self.description


@dataclass(eq=False)
class KaasError(Exception):
    """Base of all errors that a caller may see."""

    message: str
    """For a person to read."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """For a program, as in ``ErrorInfo.metadata``."""

    reason = "INTERNAL"
    code = "INTERNAL"
    retry_after_s: ClassVar[float | None] = None
    """Set where the same call may succeed after that many seconds."""

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # By its fields: constructors differ, and what ``BaseException`` does knows only positional arguments.
        return _restored, (type(self), dict(self.__dict__))


def _restored(kind: type[KaasError], fields: dict[str, Any]) -> KaasError:
    """Return an exception that was pickled."""
    error = kind.__new__(kind)
    error.__dict__.update(fields)
    return error


class InternalError(KaasError):
    """A defect of kaasd, or an answer that the client cannot read."""


class InvalidArgumentError(KaasError):
    """Something in the call is not valid: a name, a key, a page token, a setting."""

    code = "INVALID_ARGUMENT"
    reason = "INVALID_NAME"


class InvalidRequestError(InvalidArgumentError):
    """A request is malformed, or does not fit its kernels or the device. ``violations`` names every bad field."""

    reason = "INVALID_REQUEST"

    def __init__(self, violations: Sequence[Violation], metadata: Mapping[str, str] | None = None) -> None:
        super().__init__("; ".join(str(v) for v in violations), metadata or {})
        self.violations = tuple(violations)

    @classmethod
    def at(cls, field: str, description: str) -> InvalidRequestError:
        """Return the error of a single field."""
        return cls([Violation(field, description)])


class RequestIdReusedError(InvalidArgumentError):
    """The same ``request_id`` was used for a call with other content. Nothing was changed."""

    reason = "REQUEST_ID_REUSED"


class InvalidLibraryError(InvalidArgumentError):
    """The library is not GPU code that this device can load."""

    reason = "INVALID_LIBRARY"


class NotFoundError(KaasError):
    """What was named does not exist."""

    code = "NOT_FOUND"


class KeyNotFoundError(NotFoundError):
    """The store has no such key."""

    reason = "KEY_NOT_FOUND"


class LibraryNotFoundError(NotFoundError):
    """No such library file below an allowed root, or no library of this content id."""

    reason = "LIBRARY_NOT_FOUND"


class KernelNotFoundError(NotFoundError):
    """The library has no such kernel."""

    reason = "KERNEL_NOT_FOUND"


class FunctionNotFoundError(NotFoundError):
    """No function is registered under this name."""

    reason = "FUNCTION_NOT_FOUND"


class GroupNotFoundError(NotFoundError):
    """There is no such group, or the caller may not use it."""

    reason = "GROUP_NOT_FOUND"


class RequestNotFoundError(NotFoundError):
    """No request of this id waits or runs, or is refused where it was to be released."""

    reason = "REQUEST_NOT_FOUND"


class FailedPreconditionError(KaasError):
    """The state of the server does not allow the call."""

    code = "FAILED_PRECONDITION"


class ValueTooShortError(FailedPreconditionError):
    """A key's value is shorter than the range asked of it."""

    reason = "VALUE_TOO_SHORT"


class UploadIncompleteError(FailedPreconditionError):
    """A stream ended before what its header promised. Nothing was stored."""

    reason = "UPLOAD_INCOMPLETE"


class NotEnabledError(FailedPreconditionError):
    """A setting of the server forbids the call."""

    reason = "NOT_ENABLED"


class DataDamagedError(KaasError):
    """Something stored is not what was written, so it is not given out.

    ``metadata`` has its ``kind`` and ``key``; neither where the store's trees are damaged, and not one value.
    """

    code = "DATA_LOSS"
    reason = "DATA_DAMAGED"


class StoreForeignError(FailedPreconditionError):
    """What lies in the store's directory is not a store of kaasd, or is damaged. Nothing was written to it."""

    reason = "STORE_FOREIGN"


class StoreGoneError(FailedPreconditionError):
    """The store is no longer in its directory: it was removed, replaced or emptied."""

    reason = "STORE_GONE"


class QuarantinedError(FailedPreconditionError):
    """The request cost several workers. Metadata: ``workers``, how many, and ``last_fault``, what is known of the last."""

    reason = "QUARANTINED"


class ResourceExhaustedError(KaasError):
    """A limit is reached."""

    code = "RESOURCE_EXHAUSTED"


class OutOfDeviceMemoryError(ResourceExhaustedError):
    """The device does not have enough memory."""

    reason = "OUT_OF_DEVICE_MEMORY"


class StoreFullError(ResourceExhaustedError):
    """The store has reached its limit."""

    reason = "STORE_FULL"


class QueueFullError(ResourceExhaustedError):
    """Too many requests are waiting."""

    reason = "QUEUE_FULL"
    retry_after_s = 0.1


class GroupLimitError(ResourceExhaustedError):
    """A group has reached one of its limits. Metadata: ``group``, and ``limit``, the name of the field in ``kaas.v1.Group``."""

    reason = "GROUP_LIMIT"
    retry_after_s = 1.0


class MessageTooLargeError(ResourceExhaustedError):
    """A message is larger than the server accepts."""

    reason = "MESSAGE_TOO_LARGE"


class DeadlineExceededError(KaasError):
    """The deadline passed while the request was queued or running."""

    code = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_EXCEEDED"


class CancelledError(KaasError):
    """The call was cancelled: by its caller, or by an operator of the server."""

    code = "CANCELLED"
    reason = "CANCELLED"


class KernelFaultError(KaasError):
    """A kernel faulted. Metadata: ``fault``, ``kernel_index``, ``kernel`` and, where there is one, ``report``."""

    code = "ABORTED"
    reason = "KERNEL_FAULT"


class UnavailableError(KaasError):
    """The server cannot take the call now; the same call may succeed later."""

    code = "UNAVAILABLE"
    retry_after_s: ClassVar[float | None] = 1.0


class DrainingError(UnavailableError):
    """The server is draining."""

    reason = "DRAINING"


class WorkerRestartingError(UnavailableError):
    """The worker died while it committed what the request wrote, and all of its outputs are stored, or none; or no worker starts,
    and nothing was changed."""

    reason = "WORKER_RESTARTING"


class CommitUnknownError(WorkerRestartingError):
    """The first of these: all outputs are stored, or none is."""


class WorkerBusyError(UnavailableError):
    """A worker did not come to it in time, because of the requests that it runs. Nothing was changed."""

    reason = "WORKER_BUSY"


BY_REASON: Mapping[str, type[KaasError]] = {
    kind.reason: kind
    for kind in (
        InternalError, InvalidArgumentError, InvalidRequestError, InvalidLibraryError, KeyNotFoundError, LibraryNotFoundError,
        KernelNotFoundError, FunctionNotFoundError, ValueTooShortError, UploadIncompleteError, NotEnabledError,
        OutOfDeviceMemoryError, StoreFullError, QueueFullError, MessageTooLargeError, DeadlineExceededError, CancelledError,
        KernelFaultError, DrainingError, WorkerRestartingError, WorkerBusyError, StoreForeignError, StoreGoneError,
        DataDamagedError, GroupNotFoundError, GroupLimitError, QuarantinedError, RequestNotFoundError, RequestIdReusedError,
    )
}  # fmt: skip
"""The table: reason to exception, and by its ``code`` to the name of a status code."""


def from_reason(
    reason: str, message: str, metadata: Mapping[str, str] | None = None, violations: Sequence[Violation] = ()
) -> KaasError:
    """Return the exception of ``reason``; an unknown reason gives ``InternalError``."""
    kind = BY_REASON.get(reason, InternalError)
    if issubclass(kind, InvalidRequestError):
        error: KaasError = kind(violations or [Violation("", message)], metadata)
        error.message = message
        return error
    return kind(message, dict(metadata or {}))
