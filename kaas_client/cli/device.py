"""``kaasctl device``: where kernels run."""

from __future__ import annotations

import typer

from kaas_client.cli.session import connected

app = typer.Typer(no_args_is_help=True, help="Show the server's devices.")


@app.callback()
def device() -> None:
    """Show the server's devices."""


@app.command("ls")
def ls(ctx: typer.Context) -> None:
    """List the devices and the state of their workers."""
    with connected(ctx) as (client, printer):
        columns = ["name", "model", "compute_capability", "state", "memory_used_bytes", "memory_bytes", "worker_pid", "restarts"]
        printer.rows(client.devices(), columns)
