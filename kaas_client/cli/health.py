"""``kaasctl health``: whether the server serves."""

from __future__ import annotations

import typer

from kaas_client.cli.session import connected


def health(ctx: typer.Context) -> None:
    """Print SERVING and exit with 0, or print another state and exit with 1."""
    with connected(ctx) as (client, printer):
        status = client.health()
        printer.value("status", status)
    if status != "SERVING":
        raise typer.Exit(1)
