"""Whom a call is for: the one place that says so, for all services."""

from __future__ import annotations

from contextvars import ContextVar

from kaasd.front.groups import Groups

group_of_listener: ContextVar[str] = ContextVar("group_of_listener", default="")
"""The group of the socket that the present call came by; empty, where that is for all. gRPC does not tell by which one of several
unix sockets a call came, so each group's are of a server of its own, whose handlers set this."""


def group_of_call(groups: Groups, named: str) -> str:
    """Return whom the present call is for, which names ``named`` or nothing. Raises ``GroupNotFoundError``."""
    return groups.resolve(named, group_of_listener.get())
