"""``kaasctl request``: what waits and runs, over the server's unix socket."""

from __future__ import annotations

from typing import Annotated

import typer

from kaas_client.cli.session import connected

app = typer.Typer(no_args_is_help=True, help="List and cancel requests that wait or run. Over the server's unix socket only.")


@app.command("ls")
def ls(ctx: typer.Context) -> None:
    """List the requests that wait or run, in the order in which they came."""
    with connected(ctx) as (client, printer):
        printer.rows(client.requests(), ["id", "group", "function", "device", "state", "age_ns", "input_bytes"])


@app.command("cancel")
def cancel(ctx: typer.Context, ids: Annotated[list[str], typer.Argument(metavar="ID...", help="The ids to cancel.")]) -> None:
    """Have requests end early: their callers get CANCELLED, and nothing of them is stored."""
    with connected(ctx) as (client, _):
        for id in ids:
            client.cancel_request(id)
