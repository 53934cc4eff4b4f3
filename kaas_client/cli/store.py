"""``kaasctl store``: care of a server's store, over its unix socket."""

from __future__ import annotations

from typing import Annotated

import typer

from kaas_client.cli.files import check_writable, open_output
from kaas_client.cli.progress import transfer
from kaas_client.cli.session import connected

app = typer.Typer(no_args_is_help=True, help="Look after the store while the server runs. Over its unix socket only.")


@app.callback()
def store() -> None:
    """Look after the store while the server runs. Over its unix socket only."""


@app.command("check")
def check(ctx: typer.Context) -> None:
    """Look at all that is stored; exit with 1 where something is damaged, and say what."""
    with connected(ctx) as (client, printer):
        with transfer("check") as progress:
            found = client.check_store(progress=progress)
        printer.record(found)
    if found.damaged:
        raise typer.Exit(1)


@app.command("backup")
def backup(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="The tar file to write; - is standard output.")],
) -> None:
    """Write a copy of all values, libraries and functions: mkdir DIR, tar -xf FILE -C DIR, kaasd --store DIR."""
    check_writable([file])
    with connected(ctx) as (client, _), transfer("backup") as progress, open_output(file, private=True) as target:
        client.backup_store(target, progress=progress)


@app.command("compact")
def compact(ctx: typer.Context) -> None:
    """Give the disk back what is free in the store."""
    with connected(ctx) as (client, printer):
        printer.record(client.compact_store())
