"""``kaasctl stats``: what the server has done, and holds."""

from __future__ import annotations

import typer

from kaas_client.cli.session import connected


def stats(ctx: typer.Context) -> None:
    """Show counters since the server's start, and gauges of now."""
    with connected(ctx) as (client, printer):
        printer.record(client.stats())
