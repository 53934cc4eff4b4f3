"""``kaasctl kv``: values of the store."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kaas_client.cli.files import STANDARD_STREAM, check_writable, open_input, open_output
from kaas_client.cli.npy import read_npy, write_npy
from kaas_client.cli.progress import transfer
from kaas_client.cli.session import connected

if TYPE_CHECKING:
    from kaas_client.types import Entry

app = typer.Typer(no_args_is_help=True, help="Put, get, list and remove values of the store.")

KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="The value's key.")]


_ARRAY_FIELDS = frozenset(("dtype", "shape", "fortran_order"))


def fields_of(entry: Entry) -> dict[str, Any]:
    """Return what is known of a value, and what it is as an array only where it was stored as one."""
    return {name: value for name, value in asdict(entry).items() if entry.dtype or name not in _ARRAY_FIELDS}


@app.command("put")
def put(
    ctx: typer.Context,
    key: KeyArgument,
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file to store; - is standard input.")],
    npy: Annotated[bool, typer.Option("--npy", help="Store the array of a .npy file, with its dtype and shape.")] = False,
) -> None:
    """Store a file as a value."""
    with open_input(file) as source:
        array = read_npy(file, source) if npy else None
        with connected(ctx) as (client, printer):
            with transfer(key) as progress:
                if array is None:
                    entry = client.put(key, source, progress=progress)
                else:
                    entry = client.put(key, array, order="C" if array.flags.c_contiguous else "F", progress=progress)
            printer.record(fields_of(entry))


@app.command("get")
def get(
    ctx: typer.Context,
    key: KeyArgument,
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file to write; - is standard output.")] = STANDARD_STREAM,
    offset: Annotated[int, typer.Option(min=0, metavar="BYTES", help="Where to start.")] = 0,
    size: Annotated[int | None, typer.Option(min=0, metavar="BYTES", help="How many; default: up to the end.")] = None,
    npy: Annotated[bool, typer.Option("--npy", help="Write a .npy file of the array that the value was stored as.")] = False,
) -> None:
    """Write a value to a file, or its bytes to standard output."""
    check_writable([file])
    if npy:
        if offset or size is not None:
            raise typer.BadParameter("a .npy file has the whole value: --offset and --size go without --npy", param_hint="--npy")
        with connected(ctx) as (client, _), open_output(file) as target:
            with transfer(key) as progress:
                value = client.get(key, progress=progress)
            write_npy(value, target)
        return
    with connected(ctx) as (client, _), transfer(key) as progress, open_output(file) as target:
        client.get(key, offset=offset, size=size, into=target, progress=progress)


@app.command("ls")
def ls(
    ctx: typer.Context, prefix: Annotated[str, typer.Argument(metavar="PREFIX", help="Only keys that start with this.")] = ""
) -> None:
    """List keys. No value is compared: DAMAGED are those of which only the key can be read. See kaasctl store check."""
    with connected(ctx) as (client, printer):
        rows = ({**fields_of(entry), "damaged": entry.damaged} for entry in client.list(prefix))
        printer.stored(rows, ["key", "size_bytes", "version", "update_time"])


@app.command("stat")
def stat(ctx: typer.Context, key: KeyArgument) -> None:
    """Show a value's size and version, and its dtype and shape where it was stored as an array."""
    with connected(ctx) as (client, printer):
        printer.record(fields_of(client.stat(key)))


@app.command("rm")
def rm(ctx: typer.Context, keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="The keys to remove.")]) -> None:
    """Remove values."""
    with connected(ctx) as (client, _):
        for key in keys:
            client.delete(key)
