"""``kaasctl device``: where kernels run."""

from __future__ import annotations

from typing import Annotated

import typer

from kaas_client.cli.session import connected
from kaas_client.errors import DeadlineExceededError

app = typer.Typer(no_args_is_help=True, help="Show the server's devices, and take them out of service and back.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The device, as kaasctl device ls names it.")]


@app.command("ls")
def ls(ctx: typer.Context) -> None:
    """List the devices and the state of their workers."""
    with connected(ctx) as (client, printer):
        columns = ["name", "model", "compute_capability", "state", "memory_used_bytes", "memory_bytes", "worker_pid", "restarts"]
        printer.rows(client.devices(), columns)


@app.command("drain")
def drain(ctx: typer.Context, name: NameArgument) -> None:
    """Send no more requests to a device, and return when none is left there. Over the server's unix socket only."""
    with connected(ctx) as (client, _):
        try:
            client.drain_device(name)
        except DeadlineExceededError as error:
            raise DeadlineExceededError(f"{error}; {name} goes on draining, until kaasctl device resume {name}") from error


@app.command("resume")
def resume(ctx: typer.Context, name: NameArgument) -> None:
    """Undo a drain, and have a device that is lost tried again at once. Over the server's unix socket only."""
    with connected(ctx) as (client, _):
        client.resume_device(name)
