"""How much the replies take that callers have not taken: gRPC holds them in the front, until they are read or their calls end."""

from __future__ import annotations

from typing import Any

import grpc

from kaas_core.errors import QueueFullError

_SMALL_BYTES = 64 << 10
"""Of a smaller reply nobody keeps account, unless it has buffers: its call takes about as much."""


class HeldReplies:
    """The buffers in replies from when their calls come until they are read, and other replies from when they are there.

    Room is taken before a call runs: what it has done could not be undone for a reply that finds none. In memory a reply that is
    not read takes twice its size: its bytes, and gRPC's copy of them. Used by one event loop.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._of_calls: dict[Any, int] = {}
        self.held_bytes = 0

    def take(self, size_bytes: int) -> None:
        """Take room, which ``give`` is to give back. Raises ``QueueFullError``."""
        if self.held_bytes and self.held_bytes + size_bytes > self._limit_bytes:
            raise QueueFullError(
                f"replies of {self.held_bytes} bytes are to come, or not read yet; with {size_bytes} more they would have more"
                f" than the {self._limit_bytes} (--max-queued-bytes) that this server allows"
            )
        self.held_bytes += size_bytes

    def give(self, size_bytes: int) -> None:
        """Give room back."""
        self.held_bytes -= size_bytes

    def take_for(self, context: grpc.aio.ServicerContext, size_bytes: int) -> None:
        """Take room for the one reply of a call, until that is read or the call has ended. Raises ``QueueFullError``."""
        self.take(size_bytes)
        self._of_calls[context] = size_bytes
        context.add_done_callback(self._ended)

    def hold(self, context: grpc.aio.ServicerContext, size_bytes: int) -> None:
        """The one reply of a call is there. Raises ``QueueFullError`` where there was no room taken for it, and there is none."""
        taken_bytes = self._of_calls.get(context)
        if taken_bytes is not None:
            self.held_bytes += size_bytes - taken_bytes
            self._of_calls[context] = size_bytes
        elif size_bytes > _SMALL_BYTES:
            self.take_for(context, size_bytes)

    def _ended(self, context: grpc.aio.ServicerContext) -> None:
        self.held_bytes -= self._of_calls.pop(context)
