"""Replies that are kept, so that a request which comes again is answered and not run: by what name, and as which bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError

from kaas.v1 import executor_pb2
from kaas.worker.v1 import worker_pb2
from kaas_core.errors import InternalError, RequestIdReusedError

MAX_REPLY_BYTES = 64 << 10
"""Of a larger one the outputs, and what was printed, are not kept."""


class ReplyKey(NamedTuple):
    """What a reply is kept as."""

    key: str
    """The group and the id."""
    fingerprint: bytes
    """The same for calls with the same content."""

    @property
    def group(self) -> str:
        """Whom the call is for."""
        return self.key.partition("/")[0]

    def check(self, fingerprint: bytes) -> None:
        """Raise ``RequestIdReusedError`` unless ``fingerprint`` is that of this call."""
        if fingerprint != self.fingerprint:
            raise RequestIdReusedError(
                f"request_id: {self.key.partition('/')[2]!r} was used for a call with other content; make a new one for each call"
            )


def pack_reply(
    fingerprint: bytes,
    keys: Sequence[str],
    fill: Callable[[executor_pb2.InvokeResponse], object],
    *,
    outputs_dropped: bool = False,
) -> bytes:
    """Return a reply, which ``fill`` fills in, as it is stored behind the values of ``keys``, in one commit.

    ``outputs_dropped``: its outputs are left out already.
    """
    kept = worker_pb2.KeptReply(fingerprint=fingerprint, keys=keys)
    reply = kept.reply
    fill(reply)
    reply.outputs_dropped = outputs_dropped
    if reply.ByteSize() > MAX_REPLY_BYTES:
        reply.ClearField("outputs")
        reply.ClearField("printed")
        reply.outputs_dropped = True
    return kept.SerializeToString()


def unpack_reply(data: bytes, version: int) -> tuple[bytes, executor_pb2.InvokeResponse]:
    """Return the fingerprint and the reply that were stored as ``version``. Raises ``InternalError``."""
    try:
        kept = worker_pb2.KeptReply.FromString(data)
    except DecodeError as error:
        raise InternalError("a reply that was kept cannot be read") from error
    reply = kept.reply
    first = version - len(kept.keys)
    for index, key in enumerate(kept.keys):
        reply.versions[key] = first + index
    return kept.fingerprint, reply
