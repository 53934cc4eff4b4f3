"""``kaasctl version``: of this program and of the server."""

from __future__ import annotations

import typer

from kaas_client.cli.session import connected
from kaas_client.errors import KaasError
from kaas_core import __version__


def version(ctx: typer.Context) -> None:
    """Show the versions of kaasctl and of the server. Its own is shown even where the server does not answer."""
    with connected(ctx) as (client, printer):
        try:
            server = client.server_info().version
        except KaasError:
            printer.record({"client": __version__, "server": None})
            raise
        printer.record({"client": __version__, "server": server})
