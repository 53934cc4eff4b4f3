"""``kaasctl quarantine``: requests that are refused because they have cost several workers, over the server's unix socket."""

from __future__ import annotations

from typing import Annotated

import typer

from kaas_client.cli.session import connected

app = typer.Typer(
    no_args_is_help=True,
    help="List and release requests that are refused because they have cost several workers. Over the server's unix socket only.",
)


@app.command("ls")
def ls(ctx: typer.Context) -> None:
    """List the requests that are refused."""
    with connected(ctx) as (client, printer):
        printer.rows(client.quarantine(), ["id", "functions", "workers", "last_time", "last_fault"])


@app.command("rm")
def rm(ctx: typer.Context, ids: Annotated[list[str], typer.Argument(metavar="ID...", help="The ids to release.")]) -> None:
    """Let requests run again."""
    with connected(ctx) as (client, _):
        for id in ids:
            client.release_quarantine(id)
