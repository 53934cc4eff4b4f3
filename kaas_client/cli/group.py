"""``kaasctl group``: whom calls are for, what each is granted, and what it uses; over the server's unix socket."""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated

import typer

from kaas_client import errors
from kaas_client.cli.session import connected
from kaas_client.types import Group

app = typer.Typer(
    no_args_is_help=True,
    help="List, make, change and remove groups, and show what they use. Over the server's unix socket only.",
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The group's name.")]
_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_COLUMNS = ["name", "share", "priority", "max_running", "max_queued", "max_device_memory_bytes", "max_stored_bytes", "max_keys"]


def parse_size(text: str) -> int:
    """Return a size in bytes: a number, or text such as ``64GiB``. Raises ``typer.BadParameter``."""
    match = re.fullmatch(r"(\d+) ?([A-Za-z]*)", text, re.ASCII)
    if match is None or match[2] not in _UNITS:
        raise typer.BadParameter(f"expected a size such as 16MiB, got {text!r}")
    return int(match[1]) * _UNITS[match[2]]


def _count(help: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(min=0, metavar="N", help=f"{help}; 0: no limit.")
    return option


def _size(help: str, none: str = "no limit") -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(parser=parse_size, metavar="SIZE", help=f"{help}; 0: {none}.")
    return option


@app.command("ls")
def ls(ctx: typer.Context) -> None:
    """List the groups, and what each is granted. Of a limit, 0 is none."""
    with connected(ctx) as (client, printer):
        printer.rows(client.groups(), _COLUMNS)


@app.command("set")
def set_group(
    ctx: typer.Context,
    name: NameArgument,
    share: Annotated[
        float | None, typer.Option(metavar="N", help="Its part of the devices, beside the shares of the other groups.")
    ] = None,
    priority: Annotated[int | None, typer.Option(metavar="N", help="Higher goes first, by a bounded advance.")] = None,
    max_running: Annotated[int | None, _count("Most requests at devices; more wait")] = None,
    max_queued: Annotated[int | None, _count("Most requests that wait; more are refused")] = None,
    max_queued_bytes: Annotated[int | None, _size("Most bytes of inputs that wait with requests")] = None,
    max_device_memory_bytes: Annotated[int | None, _size("Most memory of each device for its requests and their inputs")] = None,
    max_stored_bytes: Annotated[int | None, _size("Most bytes that it has put in the store")] = None,
    max_keys: Annotated[int | None, _count("Most keys that it has put")] = None,
    max_region_bytes: Annotated[int | None, _size("Most bytes of its open regions", "4GiB")] = None,
    reserved_multiprocessors: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Multiprocessors of each device that are its own.")
    ] = None,
) -> None:
    """Make a group, or change what it is granted. What is not given stays as it is."""
    given = {
        "share": share,
        "priority": priority,
        "max_running": max_running,
        "max_queued": max_queued,
        "max_queued_bytes": max_queued_bytes,
        "max_device_memory_bytes": max_device_memory_bytes,
        "max_stored_bytes": max_stored_bytes,
        "max_keys": max_keys,
        "max_region_bytes": max_region_bytes,
        "reserved_multiprocessors": reserved_multiprocessors,
    }
    with connected(ctx) as (client, printer):
        try:
            group = client.group(name).group
        except errors.GroupNotFoundError:
            group = Group(name)
        changed = dataclasses.asdict(group) | {field: value for field, value in given.items() if value is not None}
        printer.record(client.set_group(**changed))


@app.command("rm")
def rm(ctx: typer.Context, names: Annotated[list[str], typer.Argument(metavar="NAME...", help="The groups to remove.")]) -> None:
    """Take no more calls for groups. Those that wait or run go on, and what was stored stays."""
    with connected(ctx) as (client, _):
        for name in names:
            client.delete_group(name)


@app.command("stat")
def stat(ctx: typer.Context, name: NameArgument) -> None:
    """Show what a group is granted and what it uses."""
    with connected(ctx) as (client, printer):
        printer.record(client.group(name))
