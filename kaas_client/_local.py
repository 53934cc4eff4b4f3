"""The local channel of a client: which transport is taken, and what frames mean. Does no I/O."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path

from google.protobuf.message import DecodeError, Message

from kaas.v1 import admin_pb2, local_pb2
from kaas_client import errors
from kaas_client._status import from_stream_error
from kaas_core.frames import size_of, to_frame

TRANSPORT_VARIABLE = "KAAS_TRANSPORT"
CONNECT_S = 10.0
"""What it may take to connect; a busy server answers late."""

AGAIN_S = 10.0
"""After which a local channel is looked for again, where there was none, or it could not be reached."""

BODIES = {"InvokeRequest": "invoke", "SubmitRequest": "submit", "Hello": "hello"}
"""The field of a frame in which a message goes, by its type: what can be sent over the local channel."""

Failure = Callable[[], errors.KaasError]
"""Makes the exception of each call that a connection's end has failed."""


class Transport(Enum):
    """How requests and invocations travel; all other calls are gRPC's."""

    AUTO = "auto"
    """Over the local channel where the server has one that can be reached, else by gRPC."""
    GRPC = "grpc"
    LOCAL = "local"
    """Never by gRPC."""


def transport_of(address: str, environ: Mapping[str, str] = os.environ) -> Transport:
    """Return what ``KAAS_TRANSPORT`` asks for. Raises ``ValueError``, also where the address cannot have it."""
    text = environ.get(TRANSPORT_VARIABLE) or Transport.AUTO.value
    try:
        transport = Transport(text)
    except ValueError:
        names = ", ".join(each.value for each in Transport)
        raise ValueError(f"{TRANSPORT_VARIABLE}: {text!r} is not one of {names}") from None
    if address.startswith("unix:"):
        return transport
    if transport is Transport.LOCAL:
        raise ValueError(f"{TRANSPORT_VARIABLE}: {address} is not a unix socket, and so it has no local channel")
    return Transport.GRPC


def paths(address: str, info: admin_pb2.GetServerInfoResponse) -> list[str]:
    """Return where the local channel of the server at ``address`` may be, which has said ``info``.

    In a container a socket may be in another directory than on its host; then the channel's is beside it.
    """
    if not info.local_socket:
        return []
    beside = Path(address.removeprefix("unix:").removeprefix("//")).absolute().parent / Path(info.local_socket).name
    return list(dict.fromkeys((info.local_socket, str(beside))))


def frame_of(id: int, message: Message, timeout_ns: int, max_bytes: int) -> list[bytes]:
    """Return the frame of a message that ``BODIES`` has. Raises ``MessageTooLargeError``."""
    frame = to_frame(id, BODIES[message.DESCRIPTOR.name], message, timeout_ns)
    if (size := size_of(frame)) > max_bytes:
        raise errors.MessageTooLargeError(f"a message of {size} bytes, and at most {max_bytes}; use put and get for large values")
    return frame


def parse(data: memoryview) -> local_pb2.LocalFrame:
    """Return a frame of the server. Raises ``InternalError``."""
    try:
        return local_pb2.LocalFrame.FromString(data)  # type: ignore[arg-type]  # it takes any buffer
    except DecodeError as error:
        raise errors.InternalError(f"cannot read the server's answer: {error}") from None


def read(frame: local_pb2.LocalFrame) -> Message:
    """Return the message of an answer. Raises what it says of a failure."""
    body = frame.WhichOneof("body")
    if body == "error":
        raise from_stream_error(frame.error)
    if body not in ("hello", "invoked", "submitted"):
        raise errors.InternalError("cannot read the server's answer: it has no body")
    message: Message = getattr(frame, body)
    return message


def too_large(size_bytes: int, max_bytes: int) -> errors.MessageTooLargeError:
    """Return the error for an answer that is larger than this side takes."""
    return errors.MessageTooLargeError(
        f"an answer of {size_bytes} bytes, and at most {max_bytes} (max_message_bytes); use put and get for large values"
    )


def late() -> errors.DeadlineExceededError:
    """Return the error for a call whose answer did not come in time."""
    return errors.DeadlineExceededError("no answer came before the deadline of the call")


def lost(address: str, why: str) -> errors.ConnectionLostError:
    """Return the error for a call that was sent, on a connection that has ended."""
    return errors.ConnectionLostError(f"lost the connection to the server at {address}: {why}", {"address": address})


def unsent(address: str, why: str) -> errors.ConnectionFailedError:
    """Return the error for a call of which nothing was sent."""
    return errors.ConnectionFailedError(f"cannot reach a server at {address}: {why}; is kaasd running?", {"address": address})


def absent(address: str) -> errors.NotEnabledError:
    """Return the error where there is no local channel, and nothing else is wanted."""
    return errors.NotEnabledError(
        f"{TRANSPORT_VARIABLE} is {Transport.LOCAL.value}, and the server at {address} has no local channel that can be reached"
    )
