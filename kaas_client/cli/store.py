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


@app.command("backup")
def backup(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="The tar file to write; - is standard output.")],
) -> None:
    """Write a copy of all values, libraries and functions: mkdir DIR, tar -xf FILE -C DIR, kaasd --store DIR."""
    check_writable([file])
    with connected(ctx) as (client, _), transfer("backup") as progress, open_output(file, private=True) as target:
        client.backup_store(target, progress=progress)
