"""By which of the server's sockets a call came, and whom it is for: the one place that says so, for all services."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from kaasd.front.groups import Groups


@dataclass(frozen=True, slots=True)
class Listener:
    """One of the addresses that a server listens on."""

    group: str = ""
    """Whom all of its calls are for; empty, where it is for all."""
    local_socket: str = ""
    """Where the local channel of a unix socket is spoken; empty, where there is none."""


listener_of_call: ContextVar[Listener] = ContextVar("listener_of_call", default=Listener())  # noqa: B039  # it never changes
"""By which the present call came. gRPC does not tell by which one of several unix sockets that was, so each of these has a gRPC
server of its own, whose handlers set this."""


def group_of_call(groups: Groups, named: str) -> str:
    """Return whom the present call is for, which names ``named`` or nothing. Raises ``GroupNotFoundError``."""
    return groups.resolve(named, listener_of_call.get().group)
