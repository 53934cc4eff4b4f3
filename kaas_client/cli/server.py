"""``kaasctl health``, ``stats`` and ``version``: what the server says of itself."""

from __future__ import annotations

import typer

from kaas_client.cli.session import connected
from kaas_client.errors import KaasError
from kaas_core import __version__


def health(ctx: typer.Context) -> None:
    """Print SERVING and exit with 0, or print another state and exit with 1."""
    with connected(ctx) as (client, printer):
        status = client.health()
        printer.value("status", status)
    if status != "SERVING":
        raise typer.Exit(1)


def stats(ctx: typer.Context) -> None:
    """Show counters since the server's start, and current values."""
    with connected(ctx) as (client, printer):
        printer.record(client.stats())


def version(ctx: typer.Context) -> None:
    """Show the versions of kaasctl and of the server; the former also where the server does not answer."""
    with connected(ctx) as (client, printer):
        try:
            server = client.server_info().version
        except KaasError:
            printer.record({"client": __version__, "server": None})
            raise
        printer.record({"client": __version__, "server": server})
