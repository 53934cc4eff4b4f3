"""``kaasctl library``: files of GPU code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kaas_client.cli.files import open_input
from kaas_client.cli.progress import transfer
from kaas_client.cli.session import connected

app = typer.Typer(no_args_is_help=True, help="Upload, inspect, list and remove libraries of kernels.")


@app.command("upload")
def upload(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="PTX, cubin, fatbin or a shared object; - is standard input.")],
) -> None:
    """Upload a library and print its id, which requests name it by."""
    with open_input(file) as source, connected(ctx) as (client, printer):
        with transfer(file) as progress:
            id = client.upload(source, file_name=Path(file).name, progress=progress)
        printer.value("id", id)


@app.command("inspect")
def inspect(
    ctx: typer.Context,
    library: Annotated[
        str, typer.Argument(metavar="LIBRARY", help="The id of an uploaded library, or an absolute path on the server.")
    ],
) -> None:
    """Show the kernels of a library and the sizes of their parameters."""
    with connected(ctx) as (client, printer):
        printer.record(client.inspect(library))


@app.command("ls")
def ls(ctx: typer.Context) -> None:
    """List uploaded libraries."""
    with connected(ctx) as (client, printer):
        printer.stored(client.libraries(), ["id", "file_name", "kind", "size_bytes", "create_time"])


@app.command("rm")
def rm(ctx: typer.Context, ids: Annotated[list[str], typer.Argument(metavar="ID...", help="The ids to remove.")]) -> None:
    """Remove uploaded libraries."""
    with connected(ctx) as (client, _):
        for id in ids:
            client.delete_library(id)
