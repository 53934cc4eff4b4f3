"""``kaasctl health``, ``stats``, ``version``, ``drain`` and ``resume``: the server itself."""

from __future__ import annotations

import typer

from kaas_client.cli.session import connected
from kaas_client.errors import DeadlineExceededError, KaasError
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


def drain(ctx: typer.Context) -> None:
    """Have the server refuse new requests, and return when none is left. Over its unix socket only."""
    with connected(ctx) as (client, _):
        try:
            client.drain()
        except DeadlineExceededError as error:
            raise DeadlineExceededError(f"{error}; the server goes on draining, until kaasctl resume") from error


def resume(ctx: typer.Context) -> None:
    """Have the server take requests again after a drain. Over its unix socket only."""
    with connected(ctx) as (client, _):
        client.resume()


def version(ctx: typer.Context) -> None:
    """Show the versions of kaasctl and of the server; the former also where the server does not answer."""
    with connected(ctx) as (client, printer):
        try:
            server = client.server_info().version
        except KaasError:
            printer.record({"client": __version__, "server": None})
            raise
        printer.record({"client": __version__, "server": server})
