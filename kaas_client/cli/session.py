"""The global options of ``kaasctl``, and the connection that a command makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from kaas_client.cli.output import Format, Printer

if TYPE_CHECKING:
    from kaas_client import Client


@dataclass(frozen=True, slots=True)
class Session:
    """Where to connect, how to print, how long to wait, and for whom."""

    address: str
    output: Format
    timeout: float | None
    group: str
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    @property
    def printer(self) -> Printer:
        return Printer(self.output)


def session_of(ctx: typer.Context) -> Session:
    """Return the session of a command."""
    session = ctx.obj
    assert isinstance(session, Session)
    return session


@contextmanager
def connected(ctx: typer.Context) -> Iterator[tuple[Client, Printer]]:
    """Yield a client of the server that a command is for, and the printer of its results."""
    # gRPC takes longer to import than all the rest of kaasctl, so only a command that makes a call imports it.
    from kaas_client import Client

    session = session_of(ctx)
    try:
        client = Client(
            session.address,
            timeout=session.timeout,
            group=session.group,
            tls_ca=session.tls_ca,
            tls_cert=session.tls_cert,
            tls_key=session.tls_key,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    with client:
        yield client, session.printer
